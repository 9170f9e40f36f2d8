"""Faults of the disk and of processes under a run, for real."""

import os
import re
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import train_w2s
from tests.conftest import fill, remount
from tests.e2e.conftest import TINY, Run, assert_same_end, read_run
from tests.forks import finish, start
from tests.processes import wait_until

CNN = [*TINY, "--model w2s_cnn2"]


@pytest.fixture
def limit() -> Iterator[Callable[[int | None], None]]:
    """Sets how large a file may get, as a disk that is full does; None for the limit of before."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    whole = resource.getrlimit(resource.RLIMIT_FSIZE)

    def set_limit(size: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, whole if size is None else (size, whole[1]))

    yield set_limit
    set_limit(None)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_recovery_checkpoint_that_cannot_be_written(
    here: Run, at_step: Callable, limit: Callable, tmp_path: Path
) -> None:
    """It ends the run in one line; the newest complete one stays, and the run goes on from there."""
    flags = [*CNN, "--recovery-interval 1", "--output", tmp_path, "--experiment"]
    at_step(6, lambda: limit(12_000))  # less than a checkpoint, more than the other files
    done = here(*flags, "run")
    limit(None)
    assert "cannot be written" in done.error and "go on with --resume" in done.error
    assert [p.name for p in (tmp_path / "run").glob("recovery-*")] == ["recovery-1-0.pth.tar"]
    assert "goes on with epoch 2, step 1" in here(*flags, "run", "--resume auto").ok().err
    here(*flags, "whole").ok()
    assert_same_end(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_an_epoch_that_cannot_be_saved(
    here: Run, at_step: Callable, disk: Path, fault: str
) -> None:
    flags = [*CNN, "--epochs 3", "--output", disk, "--experiment"]
    at_step(6, lambda: fill(disk) if fault == "full" else remount(disk, "ro"))
    done = here(*flags, "run")
    if fault == "full":
        (disk / "filler").unlink()
    else:
        remount(disk, "rw")
    assert "cannot be written" in done.error and "go on with --resume" in done.error
    assert str(disk / "run") in done.error and (fault != "full" or "No space left" in done.error)
    assert read_run(disk / "run")["epoch"] == 0
    here(*flags, "run", "--resume auto").ok()
    here(*flags, "whole").ok()
    assert_same_end(disk / "whole", disk / "run")


# ---------------------------------------------------------------- what is left behind


def shared_memory() -> set[str]:
    """Files in /dev/shm, but for those of other programs that run now, as the tests beside this one do."""

    def of_others(name: str) -> bool:
        made = re.match(r"torch_(\d+)_", name)
        return made is not None and int(made[1]) != os.getpid() and is_running(int(made[1]))

    return {name for name in os.listdir("/dev/shm") if not of_others(name)}


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (lambda pid, run: os.kill(pid, signal.SIGKILL), -signal.SIGKILL),
        (lambda pid, run: os.kill(pid, signal.SIGTERM), 143),
        (lambda pid, run: os.kill(pid, signal.SIGINT), 130),
        (lambda pid, run: run.rename(run.with_name("gone")), 2),
    ],
    ids=["SIGKILL", "SIGTERM", "SIGINT", "error"],
)
def test_no_process_and_no_shared_memory_is_left(
    here: Run, tmp_path: Path, end: Callable[[int, Path], None], code: int
) -> None:
    """Of a run with data workers, whose main process ends without Python's own clearing up."""
    before, run, log = shared_memory(), tmp_path / "run", tmp_path / "log"
    command = [
        "train_w2s.py",
        *CNN,
        "--workers 2 --epochs 500",
        "--output",
        tmp_path,
        "--experiment run",
    ]
    pid = start(train_w2s.main, command, log, group=True)
    wait_until(lambda: (run / "last.pth.tar").exists())
    workers = children(pid)
    assert len(workers) >= 2
    end(pid, run)
    assert finish(pid) == code, log.read_text()
    wait_until(
        lambda: not any(map(is_running, workers))
    )  # they look for their main process every five seconds
    wait_until(lambda: shared_memory() <= before)


def children(pid: int) -> list[int]:
    """Return the processes that the threads of a process have started."""
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
