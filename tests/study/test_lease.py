"""Who may work on a run: exactly one, also after the death of a holder."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import fill, remount
from w2s_plugins.errors import UserError
from w2s_plugins.study.layout import PlannedRun
from w2s_plugins.study.lease import Held, acquire, here, look

STALE = 5.0


def planned(root: Path) -> PlannedRun:
    (root / "state").mkdir()
    return PlannedRun("weak-a-s0", "weak", "weak-a-s0", "a", None, None, None, 0, [], [], root)


@pytest.fixture
def run(tmp_path: Path) -> PlannedRun:
    return planned(tmp_path)


def locks(run: PlannedRun) -> list[str]:
    return sorted(path.name for path in (run.root / "state").iterdir())


def forget(path: Path, seconds: float) -> None:
    """Let a lock look as if its holder had given no sign of life for so long."""
    os.utime(path, (time.time() - seconds,) * 2)


def elsewhere(path: Path, **content: object) -> None:
    """Let a lock be held by a process of another machine."""
    path.write_text(json.dumps({"host": "node7", "place": "node7", "pid": os.getpid(), **content}))


def test_one_at_a_time(run: PlannedRun) -> None:
    lease = acquire(run, STALE)
    assert look(run, STALE).host and not look(run, STALE).free and acquire(run, STALE) is None
    assert lease.refresh()
    lease.release(finished=False)
    again = acquire(run, STALE)
    assert again.number == 2 and locks(run) == ["weak-a-s0.2.lock"]
    again.release(finished=True)
    assert locks(run) == [] and look(run, STALE).free


def test_another_run_with_a_longer_name_is_another_run(run: PlannedRun) -> None:
    (run.root / "state" / "weak-a-s01.1.lock").touch()
    assert look(run, STALE).number == 0


def test_dead_node(run: PlannedRun) -> None:
    lease = acquire(run, STALE)
    elsewhere(lease.path)
    forget(lease.path, STALE - 2)
    assert acquire(run, STALE) is None, "it may only be slow"
    forget(lease.path, STALE + 2)
    taken = acquire(run, STALE)
    assert taken.number == 2 and taken.refresh()
    assert not lease.refresh(), "should the node come back, it has lost the run"
    lease.path.touch()
    assert not lease.refresh()


def test_dead_process_of_this_machine(run: PlannedRun) -> None:
    lease = acquire(run, STALE)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    lease.path.write_text(json.dumps({"host": "x", "place": here(), "pid": gone.pid, "child": os.getpid()}))
    assert acquire(run, STALE) is None, "its training goes on"
    lease.path.write_text(json.dumps({"host": "x", "place": here(), "pid": gone.pid}))
    assert acquire(run, STALE).number == 2


def test_a_time_to_come_is_no_sign_of_life(run: PlannedRun) -> None:
    lease = acquire(run, STALE)
    elsewhere(lease.path)
    forget(lease.path, -STALE + 2)
    assert acquire(run, STALE) is None
    forget(lease.path, -3600)
    assert acquire(run, STALE).number == 2


def test_a_suspended_worker_whose_training_goes_on(run: PlannedRun) -> None:
    lease = acquire(run, STALE)
    training = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    lease.write(child=training.pid)
    forget(lease.path, STALE + 2)
    assert acquire(run, STALE) is None
    training.communicate(b"\n")
    assert acquire(run, STALE).number == 2


@pytest.mark.parametrize("content", ["", "{", '{"host": "node7", "place": "node7"}'])
def test_a_lock_that_is_being_written_is_held(run: PlannedRun, content: str) -> None:
    (run.root / "state" / "weak-a-s0.3.lock").write_text(content)
    assert acquire(run, STALE) is None
    forget(run.root / "state" / "weak-a-s0.3.lock", STALE + 2)
    assert acquire(run, STALE).number == 4


@pytest.mark.parametrize("content", [
    "[]", "3", '{"pid": "x"}', '{"pid": -1, "child": 1e400}', '{"host": ["a"], "place": {}}', "[" * 100_000])
def test_a_lock_that_nobody_writes(run: PlannedRun, content: str) -> None:
    path = run.root / "state" / "weak-a-s0.1.lock"
    path.write_text(content.replace("{", f'{{"place": "{here()}", ', 1))
    assert not look(run, STALE).free
    forget(path, STALE + 2)
    assert acquire(run, STALE).number == 2


def test_full_disk(disk: Path) -> None:
    """A lock is there with its content or not at all; one that is held needs no more room."""
    run = planned(disk)
    filler = fill(disk)
    with pytest.raises(UserError, match=r"lock: cannot be written .*No space left.*make room and start the same"):
        acquire(run, STALE)
    assert locks(run) == []
    filler.unlink()
    lease = acquire(run, STALE)
    fill(disk)
    lease.write(child=os.getpid())
    assert lease.refresh() and not look(run, STALE).free
    lease.release(finished=False)
    assert look(run, STALE).free


def test_read_only_disk(disk: Path) -> None:
    """Whoever may only read can see who works on a run."""
    run = planned(disk)
    lease = acquire(run, STALE)
    remount(disk, "ro")
    assert look(run, STALE) == Held(1, socket.gethostname(), False)
    with pytest.raises(OSError, match="Read-only"):
        lease.refresh()
    lease.release(finished=True)
    remount(disk, "rw")


@pytest.mark.parametrize("prepare", [lambda lock: None, lambda lock: lock.write_text('{"released": true}'),
                                     lambda lock: (elsewhere(lock), forget(lock, 100))], ids=["new", "free", "stale"])
def test_many_at_once(run: PlannedRun, prepare: Callable[[Path], None]) -> None:
    """Also when each has seen the state at another time: a slow one must not win with an old number."""
    for _ in range(20):
        for path in (run.root / "state").iterdir():
            path.unlink()
        prepare(run.root / "state" / "weak-a-s0.1.lock")
        start, leases = threading.Barrier(6), []

        def try_it(start: threading.Barrier = start, leases: list = leases) -> None:
            start.wait()
            leases.append(acquire(run, STALE))

        threads = [threading.Thread(target=try_it) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winners = [lease for lease in leases if lease is not None]
        assert len(leases) == 6 and len(winners) == 1 and winners[0].refresh()


def test_an_old_look_does_not_win(run: PlannedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    from w2s_plugins.study import lease as module

    first = acquire(run, STALE)
    first.release(finished=False)
    old = look(run, STALE)
    second = acquire(run, STALE)
    second.release(finished=False)
    third = acquire(run, STALE)
    monkeypatch.setattr(module, "look", lambda *args: old)
    assert acquire(run, STALE) is None and third.refresh() and locks(run) == ["weak-a-s0.3.lock"]
