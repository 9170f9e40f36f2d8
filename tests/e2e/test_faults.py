"""Faults of the disk and of processes under a run, for real."""

import csv
import gc
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from benchmarks.crashes import start
from benchmarks.long_run import children
from tests.conftest import fill, remount
from tests.e2e.conftest import TINY, Done, Forked, differences, read_lines, read_run
from tests.forks import finish
from w2s_plugins.engine import saving, step

Run = Callable[..., Done]
CNN = [*TINY, "--model", "w2s_cnn2"]


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Does something before a step of training, counted from 0."""
    original, actions, count = step.seed_step, {}, [0]

    def seed_step(*key: object) -> None:
        actions.pop(count[0], lambda: None)()
        count[0] += 1
        original(*key)

    monkeypatch.setattr(step, "seed_step", seed_step)
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


def test_too_many_of_them_end_the_run(
        here: Run, at_step: Callable, limit: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "MAX_FAILURES", 1)
    flags = [*CNN, "--recovery-interval", 1, "--output", tmp_path, "--experiment", "run"]
    at_step(5, lambda: limit(SMALL))  # in the second epoch, after a first recovery checkpoint of it
    done = here(*flags)
    limit(None)
    assert "(1 of 1 failures in a row)" in done.err
    assert "cannot be written" in done.error and "2 saves in a row failed" in done.error
    run = tmp_path / "run"
    assert read_run(run)["epoch"] == 0
    assert [p.name for p in run.glob("recovery-*")] == ["recovery-1-0.pth.tar"]  # the newest complete one stays
    assert "goes on with epoch 2, step 1" in here(*flags, "--resume", "auto").ok().err


def check_nothing_is_lost(run: Path, whole: Path, unsaved: list[int]) -> None:
    """A run that could not write for a while ends as one that could, but for the epochs that have no checkpoint."""
    for name in ("metrics.jsonl", "summary.csv", "predictions_last.csv", "export/model.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    saved = {int(path.name.split("-")[1].split(".")[0]) for path in run.glob("checkpoint-*")}
    assert not saved & {*unsaved} and read_run(run)["epoch"] == read_run(whole)["epoch"]
    assert not [path.name for path in run.iterdir() if "tmp" in path.name or path.name.startswith("recovery")]


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_epochs_that_cannot_be_saved(
        here: Run, at_step: Callable, disk: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second epoch on, until after the third, nothing can be written; then there is room again."""
    monkeypatch.setattr(saving, "MAX_FAILURES", 9)
    flags = [*CNN, "--epochs", 4, "--checkpoint-hist", 2, "--recovery-interval", 3, "--output", disk, "--experiment"]
    seen: list[int] = []
    at_step(5, lambda: fill(disk) if fault == "full" else remount(disk, "ro"))
    at_step(11, lambda: seen.append(read_run(disk / "run")["epoch"]))
    at_step(13, lambda: (disk / "filler").unlink() if fault == "full" else remount(disk, "rw"))
    done = here(*flags, "run").ok()
    here(*flags, "whole").ok()
    assert seen == [0]  # the newest complete one stayed
    assert "metrics.jsonl: cannot be written" in done.err
    assert "training goes on without the checkpoint of epoch 2 (" in done.err and "of 9 failures in a row" in done.err
    check_nothing_is_lost(disk / "run", disk / "whole", [1, 2])


def test_what_could_not_be_written_is_in_the_checkpoint(here: Run, at_step: Callable, tmp_path: Path) -> None:
    """The run is stopped while metrics.jsonl and summary.csv cannot be written, and goes on when they can."""
    run, names = tmp_path / "run", ("metrics.jsonl", "summary.csv")

    def obstruct() -> None:
        for name in names:
            (run / name).rename(tmp_path / name)
            (run / name).mkdir()

    at_step(5, obstruct)
    at_step(9, lambda: os.kill(os.getpid(), signal.SIGTERM))
    flags = [*CNN, "--epochs", 3, "--output", tmp_path, "--experiment"]
    done = here(*flags, "run")
    assert done.code == 143 and "it is written at the end of a later epoch" in done.err
    for name in names:
        (run / name).rmdir()
        (tmp_path / name).rename(run / name)
    here(*flags, "run", "--resume", "auto").ok()
    here(*flags, "whole").ok()
    check_nothing_is_lost(run, tmp_path / "whole", [])


def test_too_many_epochs_end_the_run(
        here: Run, at_step: Callable, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "MAX_FAILURES", 1)
    flags = [*CNN, "--epochs", 5, "--output", disk, "--experiment"]
    at_step(5, lambda: fill(disk))
    done = here(*flags, "run")
    assert "(1 of 1 failures in a row)" in done.err and "2 saves in a row failed" in done.error
    (disk / "filler").unlink()
    here(*flags, "run", "--resume", "auto").ok()
    here(*flags, "whole").ok()
    check_nothing_is_lost(disk / "run", disk / "whole", [])


def test_the_best_epoch_is_one_that_was_saved(
        here: Run, at_step: Callable, limit: Callable, tmp_path: Path) -> None:
    """From the second epoch on, the best one, there is room for the export but not for a checkpoint."""
    at_step(5, lambda: limit(60_000))
    here(*CNN, "--opt", "adamw", "--lr", 0.003, "--eval-metric", "loss", "--select", "best", "--output", tmp_path,
         "--experiment", "run").ok()
    limit(None)
    events = read_lines(tmp_path / "run/metrics.jsonl")
    first, last = (event["val"] for event in events if event["event"] == "eval")
    assert last["loss"] < first["loss"] and read_run(tmp_path / "run")["epoch"] == 0
    record = json.loads((tmp_path / "run/result.json").read_text())
    assert record["best"]["epoch"] == 0 and record["metrics"] == first and record["last"]["loss"] == last["loss"]
    exported = load_file(tmp_path / "run/export/model.safetensors")
    assert differences(read_run(tmp_path / "run", "model_best.pth.tar")["state_dict"], exported) == []
    with (tmp_path / "run/predictions_best.csv").open(newline="") as file:
        right = [row["target"] == row["student"] for row in csv.DictReader(file)]
    assert 100 * sum(right) / len(right) == pytest.approx(first["top1"])


def test_the_folder_is_deleted_under_the_run(here: Run, at_step: Callable, tmp_path: Path) -> None:
    at_step(5, lambda: shutil.rmtree(tmp_path / "run"))
    done = here(*CNN, "--output", tmp_path, "--experiment", "run")
    assert "cannot be written (" in done.error and "disk is full" not in done.error
    assert f"make the folder again (mkdir {tmp_path / 'run'})" in done.error


def test_the_folder_is_made_again(here: Run, at_step: Callable, tmp_path: Path) -> None:
    at_step(5, lambda: shutil.rmtree(tmp_path / "run"))
    at_step(9, lambda: (tmp_path / "run").mkdir())
    here(*CNN, "--epochs", 3, "--output", tmp_path, "--experiment", "run").ok()
    here(*CNN, "--epochs", 3, "--output", tmp_path, "--experiment", "whole").ok()
    for name in ("metrics.jsonl", "summary.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert read_run(tmp_path / "run")["epoch"] == 2 and (tmp_path / "run/export/model.safetensors").is_file()


def test_the_disk_becomes_read_only(here: Run, at_step: Callable, disk: Path) -> None:
    at_step(5, lambda: remount(disk, "ro"))
    flags = [*CNN, "--output", disk, "--experiment", "run"]
    done = here(*flags)
    remount(disk, "rw")
    assert "Read-only file system" in done.error and "make the folder writable and go on with --resume" in done.error
    assert read_run(disk / "run")["epoch"] == 0
    here(*flags, "--resume", "auto").ok()


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
    return descriptors, shared_memory(), len(multiprocessing.active_children())


def shared_memory() -> set[str]:
    """Files in /dev/shm, but for those of other programs that run now, as the tests beside this one do."""
    def of_others(name: str) -> bool:
        made = re.match(r"torch_(\d+)_", name)
        return made is not None and int(made[1]) != os.getpid() and is_running(int(made[1]))

    return {name for name in os.listdir("/dev/shm") if not of_others(name)}


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


@pytest.mark.parametrize(("end", "code"), [
    (lambda pid, run: os.kill(pid, signal.SIGKILL), -signal.SIGKILL),
    (lambda pid, run: os.kill(pid, signal.SIGTERM), 143),
    (lambda pid, run: os.kill(pid, signal.SIGINT), 130),
    (lambda pid, run: run.rename(run.with_name("gone")), 2),
], ids=["SIGKILL", "SIGTERM", "SIGINT", "error"])
def test_no_process_and_no_shared_memory_is_left(
        here: Run, tmp_path: Path, end: Callable[[int, Path], None], code: int) -> None:
    """Of a run with data workers, whose main process ends without Python's own clearing up."""
    before, run, log = shared_memory(), tmp_path / "run", tmp_path / "log"
    pid = start([*map(str, (*CNN, "--workers", 2, "--epochs", 500, "--output", tmp_path,
                            "--experiment", "run"))], log)
    wait_until(lambda: (run / "last.pth.tar").exists())
    workers = children(pid)
    assert len(workers) >= 2
    end(pid, run)
    assert finish(pid) == code, log.read_text()
    wait_until(lambda: not any(map(is_running, workers)))  # they look for their main process every five seconds
    wait_until(lambda: shared_memory() <= before)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("processes", [0, 2])
def test_two_runs_at_once_do_not_disturb_each_other(
        fork: Callable[..., Forked], tmp_path: Path, weak: Path, processes: int) -> None:
    """They share the folder of runs and the target cache, which one writes while the other waits."""
    flags = [*CNN, "--batch-size", 8, "--teacher", "w2s_cnn2", "--teacher-checkpoint", weak, "--teacher-targets",
             "cached", "--output", tmp_path, "--experiment"]
    runs = [fork(*flags, name, processes=processes) for name in ("one", "two")]
    codes = [run.wait() for run in runs]
    assert codes == 2 * [[0] * max(1, processes)], runs[0].text(0) + runs[1].text(0)
    one, two = (tmp_path / name for name in ("one", "two"))
    for name in ("metrics.jsonl", "export/model.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert len(read_lines(one / "metrics.jsonl")) > 10
    caches = [json.loads((p / "result.json").read_text())["teacher"]["cache"] for p in (one, two)]
    assert caches[0] == caches[1]


def test_a_port_that_another_run_has(fork: Callable[..., Forked], tmp_path: Path) -> None:
    """Of a run that is not started by torchrun, or with a port that was chosen by hand."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as taken:
        port = str(taken.getsockname()[1])
        run = fork(*CNN, "--output", tmp_path, processes=2, before=lambda rank: os.environ.update(MASTER_PORT=port))
        assert run.wait(kill_others=True)[0] == 2
    assert f"error: the processes cannot meet at 127.0.0.1:{port}: " in run.text(0)
    assert "give each its own MASTER_PORT" in run.text(0).splitlines()[-1] and "Traceback" not in run.text(0)
