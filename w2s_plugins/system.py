"""What the system has: its signals, its memory."""

import signal
from pathlib import Path

# that stop a run; Windows has only the first two
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


def available_memory() -> int:
    """Return the bytes that this machine, and on Linux this container, can still give; 0 where it does not say."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        available = 1024 * int(fields["MemAvailable"].split()[0])  # counts the cache of files, which gives way
    except (OSError, KeyError, ValueError):
        return 0
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return available
    return min(available, limit - used + int(statistics.get("inactive_file", 0)))
