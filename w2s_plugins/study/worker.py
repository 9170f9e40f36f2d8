"""One run of a study: its lock, its process with a second try, and what is written about it."""

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..errors import write_errors
from ..files import TOP
from ..warm import Forked, cold
from .layout import AGAIN, PlannedRun, finished, load_plan, read_state, read_top1, write_json
from .lease import BEATS, STALE, Lease, Leases, acquire

SCRIPT = TOP / "train_w2s.py"
# what takes runs longest to import, and starts no thread: scikit-learn is not here, whose pandas may import pyarrow
MODULES = ("train_w2s", "scipy.stats")
Start = Callable[..., Forked | subprocess.Popen]  # `cold`, or what starts programs as it does
DONE, FAILED, BUSY = 0, 1, 75  # EX_TEMPFAIL: somebody else works on it
TRIES = 2
GRACE = 60.0  # seconds for the step in hand and its checkpoint, after SIGTERM
PAUSE = 0.1
MIN_GAP = 0.5  # points between teacher and ceiling; a PGR of less is noise


class Stop:
    """The signal that ends the work before its time.

    While it is entered, SIGTERM and SIGINT are noted; a second SIGINT is a KeyboardInterrupt.
    """

    def __init__(self):
        self.signum = 0

    def __enter__(self) -> "Stop":
        self.former = {signum: signal.signal(signum, self._note) for signum in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for signum, handler in self.former.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: object) -> None:
        if self.signum and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = self.signum or signum

    def __bool__(self) -> bool:
        return bool(self.signum)


def work(
        run: PlannedRun,
        stop: Stop,
        stale: float = STALE,
        say: Callable[[str], None] = print,
        env: Mapping[str, str] | None = None,
        start: Start = cold,
) -> int:
    """Bring a run to its end, unless it is there already.

    Args:
        run: the run; those that it needs are finished.
        stop: asked again and again.
        stale: seconds without a sign of life after which a lock is free.
        say: told what happens.
        env: environment of the training; None is that of this process.
        start: starts its process.

    Returns:
        0 when the run is finished, 1 when it failed twice, 75 when somebody else works on it, 128 + the number of the
        signal when it was stopped.

    Raises:
        UserError: lock, state or log cannot be written; what the training has saved is kept.
    """
    if finished(run):
        return DONE
    needed = [other for other in load_plan(run.root) if other.id in run.needs]
    if missing := [other.id for other in needed if not finished(other)]:
        error = f"needs {', '.join(missing)}, not finished"
        write_json(run.state_file("json"), dict(state="blocked", error=error))
        say(f"{run.id}: {error}")
        return FAILED
    lease = acquire(run, stale)
    if lease is None:
        return BUSY
    code = FAILED
    try:
        code = DONE if finished(run) else _try_twice(run, ceiling_flags(needed), lease, stop, stale, say, env, start)
    finally:
        if code != BUSY:
            lease.release(finished(run))
    return code


def _try_twice(
        run: PlannedRun,
        more: list[str],
        lease: Lease,
        stop: Stop,
        stale: float,
        say: Callable[[str], None],
        env: Mapping[str, str] | None,
        start: Start,
) -> int:
    command = [str(SCRIPT), *run.argv, *more]
    earlier = read_state(run).get("seconds", 0.0)
    state: dict[str, object] = dict(
        state="running", host=socket.gethostname(), started=time.time(), earlier=earlier)
    for attempt in range(1, TRIES + 1):
        state.update(attempt=attempt)
        write_json(run.state_file("json"), state)
        _write_command(run, command)
        code = _train(run, command, lease, stop, stale, env, start)
        if code is None:
            say(f"{run.id}: another runner has taken it over")
            return BUSY
        state["seconds"] = earlier + time.time() - state["started"]
        if finished(run):
            write_json(run.state_file("json"), {**state, "state": "done"})
            return DONE
        if stop:
            write_json(run.state_file("json"), {**state, "state": "stopped"})
            return 128 + stop.signum
        state["error"] = f"exit code {code}: {last_line(run.state_file('log'))}"
        if attempt < TRIES:
            say(f"{run.id}: {state['error']}; trying once more")
    write_json(run.state_file("json"), {**state, "state": "failed", "ended": time.time()})
    return FAILED


def _write_command(run: PlannedRun, command: Sequence[str]) -> None:
    """Let the log of a run say what follows."""
    with write_errors(run.state_file("log"), AGAIN), run.state_file("log").open("ab", buffering=0) as file:
        file.write(f"$ {shlex.join([sys.executable, *command])}\n".encode())


def _train(
        run: PlannedRun,
        command: list[str],
        lease: Lease | Leases,
        stop: Stop,
        stale: float,
        env: Mapping[str, str] | None,
        start: Start,
        told: object = None,
) -> int | None:
    """Run the script to its end; return its exit code, None when the lock was lost on the way. It reads what it is told
    from its standard input.

    Without a sign of life for half of ``stale`` it is stopped, before others may take it over.
    """
    log = run.state_file("log")
    with log.open("ab") as file, tempfile.TemporaryFile() as given:
        given.write(json.dumps(told).encode())
        given.seek(0)
        child = start(command, env, stdin=given, stdout=file, stderr=file)
    try:
        with write_errors(lease.path, AGAIN):
            lease.write(child=child.pid)
        beat, deadline = time.monotonic(), None
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(PAUSE)
            now = time.monotonic()
            if now - beat > stale / BEATS:
                with contextlib.suppress(OSError):  # a disk that is read-only, or away for a while
                    if not lease.refresh():
                        return None
                    beat = now
            if deadline is None and (stop or now - beat > stale / 2):
                child.terminate()
                deadline = now + (GRACE if stop else min(GRACE, stale / 3))
            if deadline is not None and now > deadline:
                return _kill(child)
    finally:
        _kill(child)


def _kill(child: Forked | subprocess.Popen) -> int:
    """End a process with all that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    return child.wait()


def ceiling_flags(needed: list[PlannedRun]) -> list[str]:
    """Return the flag that lets a student report its PGR, from the finished runs that it needs.

    There is none where the ceiling is not clearly above the teacher, so that a PGR would be noise, or where nothing is
    known of the teacher.
    """
    top1 = {other.kind: read_top1(other) for other in needed}
    weak, ceiling = top1.get("weak"), top1.get("ceiling")
    return ["--ceiling-acc", repr(ceiling)] if None not in (weak, ceiling) and ceiling > weak + MIN_GAP else []


def last_line(log: Path) -> str:
    """Return the last line of a log that says something."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
