"""A run folder belongs to one process at a time, and to nobody when that has ended, in whatever way."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.e2e import conftest
from tests.e2e.conftest import TINY, Fork, Forked, Run, in_step

FLAGS = [*TINY, "--model w2s_cnn2 --experiment run --resume auto --output"]


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def is_stopped(run: Forked) -> bool:
    return Path(f"/proc/{run.pids[0]}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def wait_until_stopped(run: Forked) -> None:
    run.wait_until(lambda: is_stopped(run))


def content(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in [folder, *folder.rglob("*")]
    }


def assert_same_end(here: Run, run: Path, tmp_path: Path) -> None:
    here(*FLAGS, tmp_path / "alone").ok()
    conftest.assert_same_end(tmp_path / "alone" / "run", run)


@pytest.mark.parametrize("end", ["killed", "goes on"])
def test_a_second_process(here: Run, fork: Fork, tmp_path: Path, end: str) -> None:
    """It is refused in one line and touches nothing, also while the first one is suspended."""
    first = fork(*FLAGS, tmp_path, "--workers 1", before=in_step(6, stop))
    wait_until_stopped(first)
    before = content(tmp_path / "run")
    second = fork(*FLAGS, tmp_path)
    assert second.wait() == [2], second.text(0)
    assert (
        second.text(0)
        .splitlines()[-1]
        .endswith(
            f"error: another process trains in {tmp_path / 'run'}: wait for its end, or give another --experiment"
        )
    )
    assert content(tmp_path / "run") == before
    first.send(
        signal.SIGKILL if end == "killed" else signal.SIGCONT
    )  # not the data worker, which ends by itself
    assert first.wait() == [-signal.SIGKILL if end == "killed" else 0], first.text(0)
    third = fork(*FLAGS, tmp_path)
    assert third.wait() == [0], third.text(0)
    assert_same_end(here, tmp_path / "run", tmp_path)


def test_two_at_the_same_time(here: Run, fork: Fork, tmp_path: Path) -> None:
    """Whichever of both is the first waits in its training for the other one, however slow that is."""
    pair = [fork(*FLAGS, tmp_path, before=in_step(6, stop)) for _ in range(2)]
    while not any(map(is_stopped, pair)):
        time.sleep(0.01)
    first, second = sorted(pair, key=is_stopped, reverse=True)
    assert second.wait() == [2], second.text(0)
    first.send(signal.SIGCONT)
    assert first.wait() == [0], first.text(0)
    assert_same_end(here, tmp_path / "run", tmp_path)


def test_ranks_stop_and_go_on(fork: Fork, tmp_path: Path) -> None:
    """As a requeued job does; rank 0 holds the lock, and another process is refused, on all of its ranks."""
    flags = [*FLAGS, tmp_path, "--batch-size 8"]
    first = fork(*flags, processes=2, before=in_step(6, stop))
    wait_until_stopped(first)
    second = fork(*flags, processes=2)
    assert second.wait() == [2, 2]
    assert "another process trains in" in second.text(0)
    first.send(signal.SIGTERM)
    first.send(signal.SIGCONT)
    assert first.wait() == [143, 143], first.text(0)
    third = fork(*flags, processes=2)
    assert third.wait() == [0, 0], third.text(0)
