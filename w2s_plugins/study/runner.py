"""Works through the runs of a study: each is a process of its own, some at a time.

A run is held by a lock of the operating system while its process is watched, so several runners may share a folder. A
runner that is killed leaves its processes to go on; whoever comes next sees by the lock in the run folder, which the
training itself holds, that it has to wait for them.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from filelock import FileLock, Timeout

from ..cli.parser import parse, train_parser
from ..distributed.signals import SignalWatch
from ..errors import UserError, quietly, say, shown
from ..files import TOP, write_text
from ..made_of import Ingredient, check_same
from ..run.lock import LOCK
from .layout import RESULT, PlannedRun, made_of_run, read_record

SCRIPT = TOP / "train_w2s.py"
PAUSE = 0.2  # seconds between looks at the runs


@dataclass
class Work:
    """A run whose process is going on.

    Args:
        run: what is trained.
        lock: it is held by.
        process: that trains it.
        slot: environment that is free again afterwards.
        made_of: files of weights and labels that it began with.
    """

    run: PlannedRun
    lock: FileLock
    process: subprocess.Popen
    slot: Mapping[str, str]
    made_of: list[Ingredient]


def lock_run(run: PlannedRun) -> FileLock | None:
    """Take hold of a run; None while another runner, or a training that has lost its runner, works on it."""
    run.state_file("lock").parent.mkdir(parents=True, exist_ok=True)
    # one lock for runners, one that the training itself holds in the folder of the run
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


def start(run: PlannedRun, plan: Sequence[PlannedRun], slot: Mapping[str, str]) -> subprocess.Popen:
    """Start the process of a run whose needs are finished; it appends to its log, and signals of the terminal do not
    reach it.

    A student is told its ceiling, so that it can report its PGR.
    """
    # what a run needs is finished, and its ceiling has been measured
    command = [sys.executable, str(SCRIPT), *run.command]
    for other in plan:
        if other.id in run.needs and other.kind == "ceiling":
            command += ["--ceiling-acc", repr(read_top1(other))]
    # the process is of a session of its own, so that Ctrl-C reaches the runner alone
    run.state_file("failed").unlink(missing_ok=True)
    with run.state_file("log").open("ab", buffering=0) as log:
        log.write(f"$ {shlex.join(command)}\n".encode())
        return subprocess.Popen(
            command,
            env={**os.environ, **slot},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def files_now(run: PlannedRun) -> list[Ingredient]:
    """Return the files of weights and labels that a run would be made of now; none if one cannot be had, of which the
    run tells.
    """
    import torch

    from ..distributed.world import World
    from ..settings.composite import TrainSettings
    from ..training.data import files_of_labels
    from ..training.labels import find_labels
    from ..training.weights import weights_of

    alone = World(torch.device("cpu"), 0, 1, False)
    try:
        with quietly():
            args, _ = parse(train_parser(), run.command)
            settings = TrainSettings.from_flags(vars(args))
            weights = weights_of(settings.teacher, settings.student, settings.labels)
            return weights + files_of_labels(settings.labels, find_labels(settings.teacher, alone))
    except UserError:
        return []


def read_top1(run: PlannedRun) -> float | None:
    """Return the top-1 accuracy of a finished run, None where it has none."""
    record = read_record(run.path / RESULT) or {}
    return record.get("metrics", {}).get("top1")


def last_line(run: PlannedRun) -> str:
    """Return the last line of the log of a run that says something."""
    # whatever a training or a library has printed, in whatever encoding
    text = run.state_file("log").read_text(encoding="utf-8", errors="replace")
    return shown(text.strip().rpartition("\n")[2])[:300]


def note_failure(run: PlannedRun, code: int) -> str:
    """Write down that a run has failed, and return why."""
    reason = f"exit code {code}: {last_line(run)}"
    write_text(run.state_file("failed"), reason + "\n")
    return reason


def make_slots(jobs: int | None) -> list[dict[str, str]]:
    """Return the environment of each of the runs that go on at a time: on GPUs in turn, else with one thread each.

    Args:
        jobs: how many; None is one for each GPU, else one for each core.
    """
    import torch

    # the GPUs that were given have names of their own, which are not the numbers from 0 on
    count, given = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(number) for number in range(count)] if given is None else given.split(",")[:count]
    if names:
        return [
            {"CUDA_VISIBLE_DEVICES": names[i % len(names)].strip()}
            for i in range(jobs or len(names))
        ]
    # many processes with a thread for each core would be in each other's way
    threads = {
        name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name not in os.environ
    }
    return [threads] * (jobs or os.cpu_count() or 1)


class Runner:
    """Brings every run of a plan to its end, but for those that fail and those that need them.

    Args:
        plan: the runs, each after those that it needs.
        slots: environment of each run that goes on at a time.
    """

    def __init__(self, plan: Sequence[PlannedRun], slots: Sequence[Mapping[str, str]]):
        self.plan, self.free = plan, list(slots)
        self.working: dict[str, Work] = {}
        self.lost: set[str] = set()  # runs that failed, or that need one
        self.made_of: dict[str, list[Ingredient]] = {}  # of finished runs

    def run(self) -> int:
        """Return 0 when all runs are finished, 1 when some failed, 128 + the number of a signal that ended it.

        Raises:
            UserError: data, labels or weights changed between two runs, which then belong in no table together.
        """
        with SignalWatch((signal.SIGTERM, signal.SIGINT)) as watch:
            try:
                while watch.received is None and self.step():
                    time.sleep(PAUSE)
            finally:
                # every process that still goes on saves a checkpoint
                for work in self.working.values():
                    work.process.terminate()
                for work in self.working.values():
                    work.process.wait()
                    work.lock.release()
        return int(bool(self.lost)) if watch.received is None else 128 + watch.received

    def step(self) -> bool:
        """Collect what has ended and start what can be; False when nothing is left to do."""
        # what has ended frees its slot
        for work in [work for work in self.working.values() if work.process.poll() is not None]:
            del self.working[work.run.id]
            self.free.append(work.slot)
            work.lock.release()
            self.tell(work.run, work.process.returncode)
        # what is finished, whoever has trained it, has to be of the same data and weights
        finished = {run.id: run for run in self.plan if run.finished}
        for name, run in finished.items():
            if name not in self.made_of:
                self.made_of[name] = made_of_run(run.path, read_record(run.path / RESULT) or {})
        check_same(self.made_of, "study run")
        # what can begin: nothing that it needs is missing, and nobody works on it
        left = [run for run in self.plan if run.id not in finished.keys() | self.lost]
        for run in left:
            if self.lost & set(run.needs):
                self.lost.add(run.id)
                say(f"{run.id}: left out, since it needs a run that failed")
            elif self.free and run.id not in self.working and finished.keys() >= set(run.needs):
                lock = lock_run(run)
                if (
                    lock is not None and not run.finished
                ):  # nobody else works on it, or has finished it meanwhile
                    made_of = files_now(run)
                    begun = {name: work.made_of for name, work in self.working.items()}
                    check_same({**self.made_of, **begun, run.id: made_of}, "study run")
                    slot = self.free.pop()
                    self.working[run.id] = Work(
                        run, lock, start(run, self.plan, slot), slot, made_of
                    )
        return bool(left or self.working)

    def tell(self, run: PlannedRun, code: int) -> None:
        """Say how a run has ended."""
        if run.finished:
            done = sum(other.finished for other in self.plan)
            top1 = read_top1(run)
            say(
                f"[{done}/{len(self.plan)}] {run.id}: {'done' if top1 is None else f'top-1 {top1:.2f}'}"
            )
        else:
            self.lost.add(run.id)
            say(f"FAILED {run.id}: {note_failure(run, code)} ({run.state_file('log')})")
