"""The runs of a study as job arrays of SLURM, by submitit: one array for the runs that need nothing, one for those that
need these, and so on.

A task that is preempted, or runs out of time, is put back into the queue; its run goes on from its checkpoint.
"""

import contextlib
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import UserError, one_line
from .layout import STATE, StudyRun, load_plan
from .plan import RunPlan
from .runner import hold_run, note_failure, start

TIMEOUTS = 100  # after so many a task is not put back into the queue
GRACE = 120  # seconds before the end of its time in which a task is told to save


class Task:
    """One run, as submitit carries it to a node.

    Args:
        root: folder of the study.
        run_id: of the run.
    """

    def __init__(self, root: Path, run_id: str):
        self.root, self.run_id = root, run_id
        self.process: subprocess.Popen | None = None

    def __call__(self) -> str:
        """Train the run. Raises `UserError` where it fails, or where a run that it needs is not finished."""
        # a node knows the folder of the study, and nothing else
        plan = RunPlan("study run", self.root, load_plan(self.root))
        runs = {run.name: run for run in plan.runs}
        run = runs[self.run_id]
        # an array begins when the one before has ended, be it well or not
        for name in run.needs:
            if not runs[name].look():
                raise UserError(f"{run.name} needs {name}, which is not finished")
        lock = None if run.finished else hold_run(run)
        if lock is None:
            return "finished before, or held by another runner"
        with lock:
            # SLURM tells all processes of a task that its time ends: the training is told by `checkpoint`
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
            self.process = start(run, plan, {})
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])
            code = self.process.wait()
        if code not in (0, 128 + signal.SIGTERM):  # the latter has saved a checkpoint
            raise UserError(note_failure(run, code))
        return "stopped" if code else "finished"

    def checkpoint(self) -> object:
        """Let the process save where it is; return what submitit puts back into the queue."""
        from submitit.helpers import DelayedSubmission

        # `__call__` waits for the process meanwhile; it saves a checkpoint, and the same run is put back into the queue
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.terminate()
            self.process.wait()
        return DelayedSubmission(Task(self.root, self.run_id))


def submit(
    root: Path,
    runs: Sequence[StudyRun],
    at_most: int | None,
    options: Mapping[str, object],
) -> None:
    """Submit the runs of a study.

    Args:
        root: folder of the study, on a file system that all nodes see.
        runs: those that are not finished, each after those that it needs.
        at_most: tasks of an array at a time.
        options: of submitit: ``timeout_min``, ``slurm_partition``.

    Raises:
        UserError: submitit is not installed, an unknown option, or SLURM refuses.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError("--slurm needs submitit: pip install submitit") from error

    # the runs that need one another are in arrays of their own
    depths: dict[str, int] = {}
    for run in runs:
        depths[run.name] = 1 + max((depths.get(needed, 0) for needed in run.needs), default=0)
    root = root.resolve()
    try:
        executor = submitit.AutoExecutor(
            root / STATE / "slurm", cluster="slurm", slurm_max_num_timeout=TIMEOUTS
        )
        executor.update_parameters(
            name=root.name,
            slurm_signal_delay_s=GRACE,
            slurm_array_parallelism=at_most or 256,
            **options,
        )
        # an array begins when all tasks of the one before have ended; each task looks itself whether they were finished
        waits_for = None
        for depth in sorted(set(depths.values())):
            tasks = [Task(root, run.name) for run in runs if depths[run.name] == depth]
            if waits_for:
                executor.update_parameters(slurm_dependency=f"afterany:{waits_for}")
            jobs = executor.map_array(lambda task: task(), tasks)
            waits_for = jobs[0].job_id.split("_")[0]
            print(f"array {waits_for}: {len(tasks)} runs")
    except Exception as error:  # submitit has errors of every kind
        raise UserError(f"--slurm: {one_line(error)}") from error
