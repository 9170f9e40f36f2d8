"""Measures how long a disk of a few MB/s holds training up, with recovery checkpoints in the background and without.

    python benchmarks/slow_disk.py --rate 4

The disk is a file system in a file, throttled by the blkio controller of Linux (version 1 of its control groups); root
alone can make one.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks import crashes
from tests import forks
from w2s_plugins.run import saver
from w2s_plugins.run.history import History

GROUPS = Path("/sys/fs/cgroup/blkio")
STEPS, INTERVAL = 200, 50  # of an epoch, and between recovery checkpoints
KINDS = ("background", "at once")


@contextlib.contextmanager
def slow_disk(folder: Path, megabytes: int, rate: float) -> Iterator[tuple[Path, Path]]:
    """Mount a disk that writes ``rate`` MB/s for the processes of a control group; yield its folder and the group.

    Raises:
        PermissionError: this process may not mount, or the system has no such controller.
    """
    image, disk, group = folder / "image", folder / "slow", GROUPS / f"slow-{os.getpid()}"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    with contextlib.ExitStack() as stack:
        try:
            device = _run("losetup", "--find", "--show", image)
            stack.callback(_run, "losetup", "--detach", device)
            _run("mkfs.ext4", "-q", device)
            _run("mount", device, disk)
            stack.callback(_run, "umount", disk)
            group.mkdir()
            stack.callback(group.rmdir)
            number = Path("/sys/block", Path(device).name, "dev").read_text().strip()
            (group / "blkio.throttle.write_bps_device").write_text(f"{number} {int(rate * 1e6)}")
        except (OSError, subprocess.CalledProcessError) as error:
            raise PermissionError(f"no slow disk can be made here: {error}") from error
        yield disk, group


def _run(*command: object) -> str:
    return subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout.strip()


def flags(disk: Path, kind: str) -> list[str]:
    return ["--dataset", "w2s/digits", "--img-size", "16", "--train-slice", f"0:{4 * STEPS}", "--batch-size", "4",
            "--workers", "0", "--warmup-epochs", "0", "--model", "cifar_shufflenetv1", "--epochs", "1", "--device",
            "cpu", "--opt", "adamw", "--lr", "0.001", "--log-interval", "1", "--output", str(disk), "--experiment",
            kind.replace(" ", "-"), "--recovery-interval", str(INTERVAL)]


def timed(function: Callable[..., object], into: list[float]) -> Callable[..., object]:
    """Return a function that notes the seconds of its calls."""
    def wrapped(*args: object, **kwargs: object) -> object:
        began = time.monotonic()
        try:
            return function(*args, **kwargs)
        finally:
            into.append(time.monotonic() - began)
    return wrapped


def measure(disk: Path, group: Path, kind: str, log: Path) -> dict[str, list[float]]:
    """Train for an epoch on the slow disk. Returns the seconds that training waited for each recovery checkpoint, those
    that each took to be written, and those of all log lines.
    """
    times: dict[str, list[float]] = {"waited": [], "written": [], "lines": []}

    def main() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))
        saver.Saver.save_recovery = timed(saver.Saver.save_recovery, times["waited"])
        saver.save_state = timed(saver.save_state, times["written"])
        History.write = timed(History.write, times["lines"])
        if kind == "at once":
            saver.available_memory = lambda: 0  # as on a machine that has no room for a copy
        crashes.train()
        log.with_suffix(".json").write_text(json.dumps(times))

    if forks.finish(forks.start(main, ["train_w2s.py", *flags(disk, kind)], log, group=True)):
        raise SystemExit(log.read_text())
    return json.loads(log.with_suffix(".json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=8.0, help="MB/s")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, slow_disk(Path(folder), 200, args.rate) as (disk, group):
        found = {kind: measure(disk, group, kind, Path(folder) / kind.replace(" ", "-")) for kind in KINDS}
        size = (disk / KINDS[0] / "last.pth.tar").stat().st_size
    print(f"A checkpoint has {size / 1e6:.1f} MB. Seconds, means of {STEPS // INTERVAL}:\n")
    print("| recovery checkpoints | to write one | training waits for one | longest wait for a log line |")
    print("| --- | ---: | ---: | ---: |")
    for kind, times in found.items():
        written = times["written"][:STEPS // INTERVAL]  # the last one is that of the epoch
        print(f"| {kind} | {np.mean(written):.2f} | {np.mean(times['waited']):.3f} | {max(times['lines']):.3f} |")


if __name__ == "__main__":
    main()
