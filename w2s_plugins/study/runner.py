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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from filelock import FileLock, Timeout

from ..cli.parser import parse, train_parser
from ..distributed.signals import SignalWatch
from ..errors import UserError, quietly, say, shown
from ..files import TOP, write_text
from ..made_of import Ingredient
from ..metrics.figures import HEADINGS, headline_name
from ..run.lock import LOCK
from ..settings.composite import TrainSettings
from .executor import Executor
from .layout import StudyRun
from .plan import RunPlan

SCRIPT = TOP / "train_w2s.py"


@dataclass
class Work:
    """A run whose process is going on.

    Args:
        run: what is trained.
        lock: it is held by.
        process: that trains it.
        slot: environment that is free again afterwards.
    """

    run: StudyRun
    lock: FileLock
    process: subprocess.Popen
    slot: Mapping[str, str]


def hold_run(run: StudyRun) -> FileLock | None:
    """Take hold of a run; None while another runner, or a training that has lost its runner, works on it."""
    run.state_file("lock").parent.mkdir(parents=True, exist_ok=True)
    # one lock for runners, one that the training itself holds in the folder of the run
    lock = FileLock(run.state_file("lock"))
    try:
        lock.acquire(timeout=0)
        if run.folder.is_dir():
            with FileLock(run.folder / LOCK, timeout=0):
                pass
    except Timeout:
        lock.release()
        return None
    return lock


def start(run: StudyRun, plan: RunPlan[StudyRun], slot: Mapping[str, str]) -> subprocess.Popen:
    """Start the process of a run whose needs are finished; it appends to its log, and signals of the terminal do not
    reach it.
    """
    # a student that knows its ceiling's accuracy reports its PGR by itself
    command = [sys.executable, str(SCRIPT), *run.command]
    ceiling_acc = plan.ceiling_acc(run)
    if ceiling_acc is not None:
        command += ["--ceiling-acc", repr(ceiling_acc)]
    # it may have failed before, which is settled now
    run.state_file("failed").unlink(missing_ok=True)
    with run.state_file("log").open("ab", buffering=0) as log:
        log.write(f"$ {shlex.join(command)}\n".encode())
        # the process is of a session of its own, so that Ctrl-C reaches the runner alone
        return subprocess.Popen(
            command,
            env={**os.environ, **slot},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def files_now(run: StudyRun) -> list[Ingredient]:
    """Return the files of weights and labels that a run would be made of now; none if one cannot be had, of which the
    run tells. Images are not opened: a run of a study has its process for that.
    """
    import torch

    from ..distributed.world import World
    from .ahead import sources_now

    # the runner is no rank of its trainings, and needs no device
    alone = World(torch.device("cpu"), 0, 1, False)
    try:
        with quietly():
            args, _ = parse(train_parser(), run.command)
        return sources_now(TrainSettings.from_flags(vars(args)), alone, with_splits=False)
    except UserError:
        return []


def last_line(run: StudyRun) -> str:
    """Return the last line of the log of a run that says something."""
    # whatever a training or a library has printed, in whatever encoding
    text = run.state_file("log").read_text(encoding="utf-8", errors="replace")
    return shown(text.strip().rpartition("\n")[2])[:300]


def note_failure(run: StudyRun, code: int) -> str:
    """Write down that a run has failed, and return why."""
    # `study status` shows it, when this process and its terminal are gone
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
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(number) for number in range(count)]
    if visible is not None:
        names = visible.split(",")[:count]
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


class Runner(Executor[StudyRun]):
    """Makes each run by a process of its own, some at a time.

    Args:
        plan: the runs of a study.
        slots: environment of each run that goes on at a time.
    """

    def __init__(self, plan: RunPlan[StudyRun], slots: Sequence[Mapping[str, str]]):
        super().__init__(plan)
        self.free = list(slots)
        self.working: list[Work] = []

    def run(self) -> int:
        """Return 0 when all runs are finished, 1 when some failed, 128 + the number of a signal that ended it.

        Raises:
            UserError: data, labels or weights changed between two runs, which then belong in no table together.
        """
        with SignalWatch((signal.SIGTERM, signal.SIGINT)) as watch:
            try:
                self.work(lambda: watch.received is not None)
            finally:
                # every process that still goes on saves a checkpoint
                for work in self.working:
                    work.process.terminate()
                for work in self.working:
                    work.process.wait()
                    work.lock.release()
        if watch.received is not None:
            return 128 + watch.received
        # a study goes on without the runs that failed, and says so by its exit code
        return 1 if self.lost else 0

    def begin(self, run: StudyRun) -> bool:
        """Start the process of a run; False if there is no free slot, or somebody else works on it."""
        # whoever has a lock and no slot would keep other runners from the run
        lock = hold_run(run) if self.free else None
        if lock is None:
            return False
        if run.finished:  # by somebody else, since it was looked at
            lock.release()
            return False
        files = files_now(run)
        self.check_before(run, files)
        self.begun[run.name] = files
        slot = self.free.pop()
        self.working.append(Work(run, lock, start(run, self.plan, slot), slot))
        return True

    def collect(self) -> None:
        """Free the slots of processes that have ended, and say how their runs have."""
        # a process that was killed has a code as well, and no result
        ended = [work for work in self.working if work.process.poll() is not None]
        for work in ended:
            self.working.remove(work)
            self.free.append(work.slot)
            work.lock.release()
            del self.begun[work.run.name]
            self.tell(work.run, work.process.returncode)

    def tell(self, run: StudyRun, code: int) -> None:
        """Say how a run has ended."""
        if not run.look():
            self.lost.add(run.name)
            say(f"FAILED {run.name}: {note_failure(run, code)} ({run.state_file('log')})")
            return
        runs = self.plan.runs
        done = sum(other.finished for other in runs)
        outcome = "done"
        if run.headline is not None:
            name = HEADINGS[headline_name(run.record["metrics"])]
            outcome = f"{name} {run.headline:.2f}"
        say(f"[{done}/{len(runs)}] {run.name}: {outcome}")
