"""Faults of the disk and of processes under a run, for real."""

import gc
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import TINY, Done, Forked, read_lines, read_run
from tests.e2e.test_bad_input import disk  # noqa: F401  (a fixture)
from w2s_plugins import engine

Run = Callable[..., Done]
CNN = [*TINY, "--model", "w2s_cnn2"]


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Does something before a step of training, counted from 0."""
    original, actions, count = engine.seed_step, {}, [0]

    def seed_step(*key: object) -> None:
        actions.pop(count[0], lambda: None)()
        count[0] += 1
        original(*key)

    monkeypatch.setattr(engine, "seed_step", seed_step)
    return actions.__setitem__


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


SMALL = 12000  # less than a checkpoint, more than the other files


def test_a_failed_recovery_checkpoint_is_a_warning(
        here: Run, at_step: Callable, limit: Callable, tmp_path: Path) -> None:
    at_step(5, lambda: limit(SMALL))
    at_step(7, lambda: limit(None))
    done = here(*CNN, "--recovery-interval", 1, "--output", tmp_path, "--experiment", "run").ok()
    assert "make room and go on with --resume; training goes on without this recovery checkpoint (1 of 3" in done.err
    here(*CNN, "--output", tmp_path, "--experiment", "whole").ok()
    assert (tmp_path / "run/export/model.safetensors").read_bytes() == (
        tmp_path / "whole/export/model.safetensors").read_bytes()


def test_too_many_of_them_end_the_run(here: Run, at_step: Callable, limit: Callable, tmp_path: Path) -> None:
    flags = [*CNN, "--recovery-interval", 1, "--max-save-failures", 1, "--output", tmp_path, "--experiment", "run"]
    at_step(5, lambda: limit(SMALL))  # in the second epoch, after a first recovery checkpoint of it
    done = here(*flags)
    limit(None)
    assert "(1 of 1 failures in a row)" in done.err
    assert "cannot be written" in done.error and "--max-save-failures 1" in done.error
    run = tmp_path / "run"
    assert read_run(run)["epoch"] == 0
    assert [p.name for p in run.glob("recovery-*")] == ["recovery-1-0.pth.tar"]  # the newest complete one stays
    assert "goes on with epoch 2, step 1" in here(*flags, "--resume", "auto").ok().err


def test_the_folder_is_deleted_under_the_run(here: Run, at_step: Callable, tmp_path: Path) -> None:
    at_step(5, lambda: shutil.rmtree(tmp_path / "run"))
    done = here(*CNN, "--output", tmp_path, "--experiment", "run")
    assert "cannot be written" in done.error and "the folder was deleted or its disk is gone" in done.error


def test_the_disk_becomes_read_only(here: Run, at_step: Callable, disk: Path) -> None:  # noqa: F811
    def remount(mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", str(disk)], check=True)

    at_step(5, lambda: remount("ro"))
    flags = [*CNN, "--output", disk, "--experiment", "run"]
    done = here(*flags)
    remount("rw")
    assert "Read-only file system" in done.error and "make the folder writable and go on with --resume" in done.error
    assert read_run(disk / "run")["epoch"] == 0
    here(*flags, "--resume", "auto").ok()


def test_too_little_room_is_said_at_the_start(here: Run, disk: Path) -> None:  # noqa: F811
    filler = disk / "filler"
    filler.write_bytes(bytes(6_900_000))
    flags = ["--dataset", "w2s/digits", *CNN[2:], "--opt", "adamw", "--output", disk, "--experiment", "run"]
    done = here(*flags, "--model", "w2s_cnn5", "--checkpoint-hist", 5, "--epochs", 99, "--stop-epoch", 1)
    assert "the checkpoints of this run take about" in done.ok().err and "MB free; make room" in done.err
    shutil.rmtree(disk / "run")
    filler.write_bytes(bytes(7_600_000))
    error = here(*flags, "--model", "w2s_cnn5").error
    assert "no room on the disk: a checkpoint takes about" in error


# ---------------------------------------------------------------- what is left behind


def open_things() -> tuple[set[str], set[str], int]:
    """Files that this process has open, without pipes of the tests; shared memory; children."""
    gc.collect()  # a queue of data workers is in a cycle
    descriptors = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            descriptors.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
        except OSError:
            continue  # the one of the listing
    return descriptors, set(os.listdir("/dev/shm")), len(multiprocessing.active_children())


@pytest.fixture
def nothing_left(here: Run, tmp_path: Path) -> Iterator[None]:
    here(*CNN, "--workers", 1, "--output", tmp_path, "--experiment", "first").ok()  # what is opened once stays open
    before = open_things()
    yield
    deadline = time.monotonic() + 5
    while len((after := open_things())[0]) > len(before[0]) and time.monotonic() < deadline:
        time.sleep(0.05)  # threads of queues that have been closed
    assert after[2] == before[2] == 0
    assert len(after[0]) <= len(before[0]), after[0] - before[0]
    assert after[1] <= before[1]


def test_nothing_is_left_open_after_a_run(here: Run, tmp_path: Path, nothing_left: None) -> None:
    for name in ("second", "third"):
        here(*CNN, "--workers", 1, "--output", tmp_path, "--experiment", name).ok()


def test_killed_runs_leave_no_process_and_no_shared_memory(fork: Callable[..., Forked], tmp_path: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    run = fork(*CNN, "--workers", 2, "--epochs", 50, "--output", tmp_path, "--experiment", "run")
    run.wait_until(lambda: (tmp_path / "run" / "last.pth.tar").exists())
    children = Path(f"/proc/{run.pids[0]}/task/{run.pids[0]}/children").read_text().split()
    assert len(children) >= 2
    run.send(signal.SIGKILL)
    assert run.wait() == [-signal.SIGKILL]
    deadline = 200  # data workers look for their main process every five seconds
    while any(is_running(int(pid)) for pid in children) and deadline:
        deadline -= 1
        time.sleep(0.05)
    assert not any(is_running(int(pid)) for pid in children)
    assert set(os.listdir("/dev/shm")) <= before


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_two_runs_at_once_do_not_disturb_each_other(fork: Callable[..., Forked], tmp_path: Path, weak: Path) -> None:
    """They share the folder of runs and the target cache, which one writes while the other waits."""
    flags = [*CNN, "--teacher", "w2s_cnn2", "--teacher-checkpoint", weak, "--teacher-targets", "cached",
             "--output", tmp_path, "--experiment"]
    runs = [fork(*flags, name) for name in ("one", "two")]
    assert [run.wait() for run in runs] == [[0], [0]], runs[0].text(0) + runs[1].text(0)
    one, two = (tmp_path / name for name in ("one", "two"))
    for name in ("metrics.jsonl", "export/model.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert len(read_lines(one / "metrics.jsonl")) == len(read_lines(two / "metrics.jsonl"))
    caches = [json.loads((p / "result.json").read_text())["teacher"]["cache"] for p in (one, two)]
    assert caches[0] == caches[1]
