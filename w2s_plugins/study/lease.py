"""Locks of runs that survive a dead machine: a file that its holder touches every few seconds.

A lock of the operating system (flock) is not seen by other machines on many shared file systems, or stays when a
machine dies. So the holder of a run has a file ``state/ID.N.lock``, created exclusively, whose time of modification it
refreshes; once that is older than ``stale`` seconds, whoever creates number N + 1 holds the run. Times are compared
with that of a file touched just now on the same file system, so the clocks of the machines need not agree.

filelock's SoftFileLease does not do here. In 4.3 every contender has to watch a lease for ``stale`` seconds itself, so
that a task that has just started and ``study status`` cannot know that it is dead, and one whose holder was killed
before it wrote its name is never free; in 3.30 its age is taken by the clock of whoever looks.
"""

import contextlib
import json
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..errors import write_errors
from .layout import AGAIN, STATE, read_json

STALE = 120.0  # seconds without a sign of life; attributes of files on NFS may be a minute old
BEATS = 6  # signs of life in that time
SIZE = 512  # bytes of a lock: written again in place, it needs no room on a full disk
LOCK = re.compile(r"(.+)\.(\d+)\.lock")


class Work(Protocol):
    """What one process at a time works on, such as a `PlannedRun`: ``root`` has a folder for locks."""

    id: str
    root: Path

    def state_file(self, suffix: str) -> Path: ...


def here() -> str:
    """Name the place in which a process id means one process: host, boot and container."""
    place = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with contextlib.suppress(OSError):
            place.append(os.readlink(path) if path.startswith("/proc/self") else Path(path).read_text().strip())
    return " ".join(place)


@dataclass(frozen=True)
class Held:
    """A lock as it is found: its number, who has it, and whether that is over."""

    number: int
    host: str
    free: bool


def look(run: Work, stale: float) -> Held:
    """Return the newest lock of a run; number 0 where there is none."""
    number, path = max(_locks(run), default=(0, None))
    if path is None:
        return Held(0, "", True)
    now = _now(path.parent)
    try:
        age = abs(now - path.stat().st_mtime)  # a time to come is no sign of life either
    except FileNotFoundError:  # its holder has just finished, or somebody has taken the next number
        return Held(number, "", True)
    content = read_json(path) or {}  # nothing while it is being written, or where its writer was killed
    pids = [pid for pid in (content.get("pid"), content.get("child")) if type(pid) is int and 0 < pid < 2 ** 31]
    near = content.get("place") == here()
    dead = near and bool(pids) and not any(map(_alive, pids))
    trains = near and pids[1:] and _leads(pids[1])  # though whoever should touch the lock is suspended
    host = "".join(c for c in str(content.get("host", "")) if c.isprintable())
    return Held(number, host, bool(content.get("released")) or dead or (age > stale and not trains))


class Lease:
    """The right to work on a run, as long as `refresh` says so.

    Args:
        run: the run.
        number: of the lock.
    """

    def __init__(self, run: Work, number: int):
        self.run, self.number = run, number
        self.path = run.state_file(f"{number}.lock")

    def write(self, **content: object) -> None:
        """Say who holds the lock; also a sign of life.

        Raises:
            OSError: it cannot be written, or has been lost.
        """
        about = dict(host=socket.gethostname(), place=here(), pid=os.getpid(), **content)
        with self.path.open("r+b") as file:
            file.write(json.dumps(about).ljust(SIZE).encode())
            file.truncate()

    def refresh(self) -> bool:
        """Give a sign of life; False when the lock has been lost to somebody who thought us dead.

        Raises:
            OSError: none can be given.
        """
        if self.run.state_file(f"{self.number + 1}.lock").exists():
            return False
        try:
            os.utime(self.path)
        except FileNotFoundError:
            return False
        return True

    def release(self, finished: bool) -> None:
        """Let others have the run. The number of a run that is not finished is kept: it must not be given twice."""
        with contextlib.suppress(OSError):
            self.path.unlink() if finished else self.write(released=True)


class Leases:
    """The right to work on several runs at once, as long as none of them is lost.

    Args:
        held: the right to work on each.
    """

    def __init__(self, held: Sequence[Lease]):
        self.held, self.path = held, held[0].path

    def write(self, **content: object) -> None:
        """As `Lease.write`."""
        for lease in self.held:
            lease.write(**content)

    def refresh(self) -> bool:
        """As `Lease.refresh`; False when one has been lost."""
        return all(list(map(Lease.refresh, self.held)))  # each of them


def acquire(run: Work, stale: float) -> Lease | None:
    """Take a run that nobody works on, or whose holder gives no sign of life; None where somebody does.

    Raises:
        UserError: the lock cannot be written.
    """
    held = look(run, stale)
    if not held.free:
        return None
    lease = Lease(run, held.number + 1)
    with write_errors(lease.path, AGAIN):
        try:
            os.close(os.open(lease.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            return None
        try:
            lease.write()
        except OSError:  # a full disk may have room for a name alone
            with contextlib.suppress(OSError):
                lease.path.unlink()
            raise
    newest = max(_locks(run), default=(0, None))[0]
    if newest > lease.number:  # what we saw was old, and others have been here since
        lease.path.unlink(missing_ok=True)
        return None
    for number, path in _locks(run):
        if number < lease.number:
            path.unlink(missing_ok=True)
    return lease


def _locks(run: Work) -> list[tuple[int, Path]]:
    return [(number, path) for name, number, path in _all_locks(run.root) if name == run.id]


def locked_runs(root: Path) -> set[str]:
    """Return the ids of the runs that have a lock, held or not."""
    return {name for name, _, _ in _all_locks(root)}


def _all_locks(root: Path) -> Iterator[tuple[str, int, Path]]:
    with contextlib.suppress(FileNotFoundError), os.scandir(root / STATE) as entries:
        for entry in entries:
            if match := LOCK.fullmatch(entry.name):
                yield match[1], int(match[2]), Path(entry.path)


def _now(folder: Path) -> float:
    """Return the time by the clock of the file system, or of this machine where nothing can be written to it."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock-") as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return not _is_zombie(pid)


def _leads(pid: int) -> bool:
    """True for a living process that leads a session, as a training does; hardly one that has its number by chance."""
    with contextlib.suppress(ProcessLookupError):
        return _alive(pid) and os.getsid(pid) == pid
    return False


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return False
