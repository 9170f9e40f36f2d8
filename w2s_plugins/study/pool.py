"""Runs of a study side by side, on GPUs or CPU cores of this machine, shared with runners on others."""

import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..files import TOP
from ..monitor.console import duration
from ..warm import cold
from .layout import PlannedRun, finished, read_state, read_top1
from .lease import STALE, look
from .worker import BUSY, Start, Stop, last_line, work

PAUSE = 0.1
LOOK_AGAIN = 2.0  # seconds between looks at runs that others work on


class Worker(threading.Thread):
    """Works on one run; a second Ctrl-C does not wait for it.

    Args:
        task: the run.
        work: what brings it to its end.

    Attributes:
        code: what ``work`` returned.
        error: what it raised in place of that.
    """

    def __init__(self, task: PlannedRun, work: Callable[[], int]):
        super().__init__(daemon=True)
        self.task, self.work, self.began = task, work, time.monotonic()
        self.code, self.error = None, None

    def run(self) -> None:
        """Bring the run to its end."""
        try:
            self.code = self.work()
        except BaseException as error:
            self.error = error


@dataclass
class Slot:
    """A GPU or some cores, and who works there.

    Args:
        env: variables of its processes.
    """

    env: dict[str, str]
    worker: Worker | None = None


@dataclass
class Outcome:
    """How the runs of a plan ended: ids of finished, failed and blocked ones, and the signal that stopped it."""

    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    blocked: set[str] = field(default_factory=set)
    signum: int = 0

    @property
    def exit_code(self) -> int:
        return 128 + self.signum if self.signum else int(bool(self.failed or self.blocked))


class Pool:
    """Works through a plan. Runs that others hold are waited for, those that failed are not waited for twice.

    Args:
        plan: the runs, each after those that it needs.
        slots: where they run.
        stale: seconds without a sign of life after which another runner's lock is free.
        say: told what happens.
        start: starts the processes of runs.
    """

    def __init__(
            self,
            plan: Sequence[PlannedRun],
            slots: Sequence[Slot],
            stale: float = STALE,
            say: Callable[[str], None] = print,
            start: Start = cold,
    ):
        self.plan, self.slots, self.stale, self.say, self.start = plan, slots, stale, say, start
        self.out = Outcome({run.id for run in plan if finished(run)})
        self.held: dict[str, float] = {}  # runs that others work on: when to look again
        self.began = time.time()
        self.waiting = False
        self.stop = Stop()

    def run(self) -> Outcome:
        """Work until every run is finished, failed or blocked, or a signal comes.

        Raises:
            UserError: what is noted about runs cannot be written; the trainings have ended with a checkpoint where
                they could save one.
        """
        with self.stop:
            try:
                while not self.stop and self.step():
                    time.sleep(PAUSE)
                self.out.signum = self.stop.signum
            finally:
                self.end_workers()
        return self.out

    def step(self) -> bool:
        """Collect what has ended and start what can be; False when there is nothing left to do."""
        for slot in self.slots:
            if slot.worker is not None and not slot.worker.is_alive():
                self.collect(slot)
        self.block()
        for slot in self.slots:
            if slot.worker is None and (run := self.next_run()):
                env = child_env(slot.env)
                slot.worker = Worker(run, functools.partial(
                    work, run, self.stop, self.stale, self.say, env, self.start))
                slot.worker.start()
                self.waiting = False
        busy = any(slot.worker for slot in self.slots)
        left = [run for run in self.plan if self.is_open(run)]
        if left and not busy and not self.waiting:
            self.waiting = True
            self.say(f"{len(left)} runs are left, with other runners or waiting for theirs")
        return busy or bool(left)

    def is_open(self, run: PlannedRun) -> bool:
        """True for a run whose end is not known."""
        return run.id not in self.out.done and run.id not in self.out.failed and run.id not in self.out.blocked

    def block(self) -> None:
        """Give up what needs a failed run; the plan has needs first."""
        for run in self.plan:
            lost = [other for other in run.needs if other in self.out.failed or other in self.out.blocked]
            if lost and self.is_open(run):
                self.out.blocked.add(run.id)

    def next_run(self) -> PlannedRun | None:
        """Return the first run that nobody works on and that has all it needs. Notice what others have done."""
        now = time.monotonic()
        mine = {slot.worker.task.id for slot in self.slots if slot.worker is not None}
        for run in self.plan:
            if not self.is_open(run) or run.id in mine or not self.out.done.issuperset(run.needs):
                continue
            if self.held.get(run.id, now) > now:
                continue
            state = read_state(run)
            if finished(run):
                self.out.done.add(run.id)
            elif state.get("state") == "failed" and state.get("ended", 0.0) > self.began:
                self.out.failed[run.id] = state.get("error", "")
            elif not look(run, self.stale).free:
                self.held[run.id] = now + LOOK_AGAIN
            else:
                return run
        return None

    def collect(self, slot: Slot) -> None:
        """Note how the work on a run ended. Raises what ended it."""
        worker, slot.worker = slot.worker, None
        if worker.error is not None:
            raise worker.error
        run = worker.task
        if finished(run):
            self.out.done.add(run.id)
            top1 = read_top1(run)
            figure = "" if top1 is None else f", top-1 {top1:.2f}"
            took = duration(time.monotonic() - worker.began)
            self.say(f"[{len(self.out.done)}/{len(self.plan)}] {run.id}: {took}{figure}")
        elif worker.code == BUSY:
            self.held[run.id] = time.monotonic() + LOOK_AGAIN
        else:
            error = read_state(run).get("error") or last_line(run.state_file("log"))
            self.out.failed[run.id] = error
            self.say(f"FAILED {run.id}: {error} ({run.state_file('log')})")

    def end_workers(self) -> None:
        """Let every worker end its process, which saves a checkpoint, and wait for them."""
        workers = [slot.worker for slot in self.slots if slot.worker is not None]
        if workers:
            cause = signal.Signals(self.stop.signum).name if self.stop else "an error"
            self.say(f"{cause}: {len(workers)} runs are saving where they are")
        self.stop.signum = self.stop.signum or signal.SIGTERM
        for worker in workers:
            worker.join()


def make_slots(jobs: int | None, devices: Sequence[str], threads: int | None) -> list[Slot]:
    """Return one slot for each device, or ``jobs`` of them on the CPU.

    Args:
        jobs: runs side by side; None is one for each core, or for each ``threads`` cores.
        devices: values for ``CUDA_VISIBLE_DEVICES``; empty without GPUs.
        threads: of each run on the CPU; None is 1, and with GPUs what PyTorch chooses.
    """
    if devices:
        count = {} if threads is None else _threads(threads)
        return [Slot({"CUDA_VISIBLE_DEVICES": device, **count}) for device in devices]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [Slot(_threads(threads or 1)) for _ in range(jobs or max(1, cores // (threads or 1)))]


def _threads(count: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(count), "MKL_NUM_THREADS": str(count)}


def child_env(more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process that imports this package, wherever it is started."""
    path = os.pathsep.join([str(TOP), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **more}
