"""Works through the runs of a study: each is a process of its own, some at a time.

A run is held by a lock of the operating system while its process is watched, so several runners may share a folder. A
runner that is killed leaves its processes to go on; whoever comes next sees by the lock in the run folder, which the
training itself holds, that it has to wait for them.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import write_errors
from ..files import TOP, write_text
from ..monitor.console import duration
from ..run.lock import LOCK
from .layout import AGAIN, RESULT, RUNS, STATE, PlannedRun, read_record, read_top1
from .same_data import check_same_data

SCRIPT = TOP / "train_w2s.py"
PAUSE, LOOK_AGAIN = 0.1, 2.0  # seconds between looks at own runs, and at those that others work on
LONGEST_LINE = 300
MIN_GAP = 0.5  # points between teacher and ceiling; a PGR of less is noise


@dataclass
class Work:
    """A run whose process is going on.

    Args:
        run: what is trained.
        lock: it is held by.
        process: that trains it.
        slot: environment that is free again afterwards.
    """

    run: PlannedRun
    lock: FileLock
    process: subprocess.Popen
    slot: Mapping[str, str]
    began: float = field(default_factory=time.monotonic)


def acquire(run: PlannedRun) -> FileLock | None:
    """Take hold of a run; None while another runner, or a training that has lost its runner, works on it."""
    run.state_file("lock").parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run.state_file("lock"))
    try:
        lock.acquire(timeout=0)
        if run.path.is_dir():
            with FileLock(run.path / LOCK, timeout=0):
                pass
    except Timeout:
        lock.release()
        return None
    return lock


def is_held(run: PlannedRun) -> bool:
    """True while somebody works on a run."""
    lock = acquire(run)
    if lock is not None:
        lock.release()
    return lock is None


def command_of(run: PlannedRun, plan: Sequence[PlannedRun]) -> list[str]:
    """Return the command of a run whose needs are finished.

    A student is told its ceiling, so that it can report its PGR, where that is clearly above its teacher.
    """
    needed = {other.kind: read_top1(other) for other in plan if other.id in run.needs}
    weak, ceiling = needed.get("weak"), needed.get("ceiling")
    known = weak is not None and ceiling is not None
    more = ["--ceiling-acc", repr(ceiling)] if known and ceiling > weak + MIN_GAP else []
    return [sys.executable, str(SCRIPT), *run.command, *more]


def start(run: PlannedRun, plan: Sequence[PlannedRun], slot: Mapping[str, str]) -> subprocess.Popen:
    """Start the process of a run, which appends to its log; signals of the terminal do not reach it."""
    command, log = command_of(run, plan), run.state_file("log")
    run.state_file("failed").unlink(missing_ok=True)
    with write_errors(log, AGAIN), log.open("ab", buffering=0) as file:
        file.write(f"$ {shlex.join(command)}\n".encode())
        return subprocess.Popen(command, env={**os.environ, **slot}, stdin=subprocess.DEVNULL, stdout=file,
                                stderr=file, start_new_session=True)


def last_line(run: PlannedRun) -> str:
    """Return the last line of the log of a run that says something."""
    lines = run.state_file("log").read_text(encoding="utf-8", errors="replace").splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return "".join(c for c in last if c.isprintable())[:LONGEST_LINE]


def note_failure(run: PlannedRun, code: int) -> str:
    """Write down that a run has failed, and return why."""
    reason = f"exit code {code}: {last_line(run)}"
    with contextlib.suppress(OSError):  # a full disk; it is told all the same
        write_text(run.state_file("failed"), reason + "\n")
    return reason


def make_slots(jobs: int | None) -> list[dict[str, str]]:
    """Return the environment of each of the runs that go on at a time: on GPUs in turn, else with one thread each.

    Args:
        jobs: how many; None is one for each GPU, else one for each core.
    """
    import torch

    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(number) for number in range(count)] if given is None else given.split(",")[:count]
    if names:
        return [{"CUDA_VISIBLE_DEVICES": names[i % len(names)].strip()} for i in range(jobs or len(names))]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name not in os.environ}
    return [threads for _ in range(jobs or cores)]


class Runner:
    """Brings every run of a plan to its end, but for those that fail and those that need them.

    Args:
        root: folder of the study.
        plan: the runs, each after those that it needs.
        slots: environment of each run that goes on at a time.
        say: told what happens.
    """

    def __init__(self, root: Path, plan: Sequence[PlannedRun], slots: Sequence[Mapping[str, str]],
                 say: Callable[[str], None] = print):
        self.plan, self.free, self.say = plan, list(slots), say
        self.working: dict[str, Work] = {}
        self.lost: set[str] = set()  # runs that failed, or that need one
        self.looked = 0.0  # when runs of others were last looked at
        self.signum, self.trained = 0, 0
        self.records: dict[str, Mapping] = {}  # what finished runs were made of, which has to be the same data
        self.began = time.monotonic()
        for folder in (RUNS, STATE):
            with write_errors(root, "choose another --output"):
                (root / folder).mkdir(parents=True, exist_ok=True)

    def run(self) -> int:
        """Return 0 when all runs are finished, 1 when some failed, 128 + the number of a signal that ended it.

        Raises:
            UserError: the data or labels changed between two runs, which then belong in no table together.
        """
        for run in self.plan:
            if run.finished:
                self.compare(run)
        former = {signum: signal.signal(signum, self._note) for signum in (signal.SIGTERM, signal.SIGINT)}
        try:
            while not self.signum and self.step():
                time.sleep(PAUSE)
        finally:
            self.stop()
            for signum, handler in former.items():
                signal.signal(signum, handler)
        if self.signum:
            return 128 + self.signum
        return 1 if self.lost else 0

    def step(self) -> bool:
        """Collect what has ended and start what can be; False when nothing is left to do."""
        for work in list(self.working.values()):
            if work.process.poll() is not None:
                self.collect(work)
        left = [run for run in self.plan if run.id not in self.lost and not run.finished]
        for run in left:
            if self.lost & set(run.needs):
                self.lost.add(run.id)
                self.say(f"{run.id}: left out, since it needs a run that failed")

        # what others work on is looked at now and then, what waits for our own runs as soon as one ends
        if self.free and time.monotonic() - self.looked > LOOK_AGAIN:
            self.looked = time.monotonic()
            finished = {run.id for run in self.plan if run.finished}
            for run in left:
                if self.free and run.id not in {*self.working, *self.lost} and finished.issuperset(run.needs):
                    self.begin(run)
        return bool(left or self.working)

    def begin(self, run: PlannedRun) -> None:
        """Start a run unless somebody else works on it, or has finished it meanwhile."""
        lock = acquire(run)
        if lock is None:
            return
        if run.finished:
            lock.release()
            return
        slot = self.free.pop()
        self.working[run.id] = Work(run, lock, start(run, self.plan, slot), slot)

    def collect(self, work: Work) -> None:
        """Say how a run has ended, with the time that is left as far as the others take as long."""
        del self.working[work.run.id]
        self.free.append(work.slot)
        self.looked = 0.0  # what has waited for it can begin
        work.lock.release()
        if work.run.finished:
            self.compare(work.run)
            self.trained += 1
            done = sum(run.finished and run.id not in self.working for run in self.plan)
            left = len(self.plan) - done - len(self.lost)
            pace = (time.monotonic() - self.began) / self.trained
            top1 = read_top1(work.run)
            figure = "" if top1 is None else f", top-1 {top1:.2f}"
            self.say(f"[{done}/{len(self.plan)}] {work.run.id}: {duration(time.monotonic() - work.began)}{figure}; "
                     f"about {duration(pace * left)} left")
        elif not self.signum:
            self.lost.add(work.run.id)
            reason = note_failure(work.run, work.process.returncode)
            self.say(f"FAILED {work.run.id}: {reason} ({work.run.state_file('log')})")

    def compare(self, run: PlannedRun) -> None:
        """Raise a `UserError` where a finished run was made of other data or labels than those before it."""
        self.records[run.id] = read_record(run.path / RESULT) or {}
        check_same_data(self.records, "study run")

    def stop(self) -> None:
        """Let every process that still goes on save a checkpoint, and wait for it."""
        if self.working:
            self.say(f"{len(self.working)} runs are saving where they are")
        for work in self.working.values():
            work.process.terminate()
        for work in self.working.values():
            work.process.wait()
            work.lock.release()

    def _note(self, signum: int, frame: object) -> None:
        """Note the first signal; a second one does not wait for checkpoints."""
        if self.signum:
            for work in self.working.values():
                work.process.kill()
        self.signum = signum
