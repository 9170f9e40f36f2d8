"""How long a study will take, from a few measured steps of each kind of run."""

import heapq
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..cli.declare import Parser, Role
from ..cli.parser import parse
from ..errors import UserError
from .layout import PlannedRun, fill_in
from .pool import child_env

# flags on which the time of a run does not depend, or hardly
SAME_TIME = Role.TUNING | Role.WHERE | Role.REPORT


@dataclass(frozen=True)
class Timing:
    """What one command costs.

    Args:
        start: seconds of preparation.
        step: seconds of an update.
        updates: in the whole run.
        eval_image: seconds of an image in an evaluation.
        evaluations: in the whole run.
        train_images: size of the training set.
        val_images: size of the test set.
    """

    start: float
    step: float
    updates: int
    eval_image: float
    evaluations: int
    train_images: int
    val_images: int

    @property
    def seconds(self) -> float:
        """Duration of the run, without the import of its modules and without a teacher's labels."""
        return self.start + self.step * self.updates + self.eval_image * self.val_images * self.evaluations


def estimate(plan: Sequence[PlannedRun], parser: Parser, env: Mapping[str, str]) -> dict[str, float]:
    """Return the expected seconds of each run, by id.

    One run of each kind is measured: those that differ only in seed, loss and weights take the same time, and so do
    students with cached targets whatever their teacher. To the measured time come the import of the modules, the first
    evaluation of student and teacher, and, for the first user of a cache of targets, its labels.

    Args:
        plan: the runs, each after those that it needs.
        parser: knows the flags of train_w2s.py.
        env: variables of the process, such as the device.

    Raises:
        UserError: a run cannot be prepared.
    """
    kinds = {run.id: kind_of(run, parser) for run in plan}
    chosen: dict[str, PlannedRun] = {}
    for run in plan:
        chosen.setdefault(kinds[run.id], run)
    imports, timings = measure_all(list(chosen.values()), {run.id: chosen[kinds[run.id]] for run in plan}, env)
    of_kind = dict(zip(chosen, timings))
    by_id = {run.id: run for run in plan}
    seconds, caches = {}, set()
    for run in plan:
        timing = of_kind[kinds[run.id]]
        seconds[run.id] = imports + timing.seconds
        if run.kind != "student":
            continue
        teacher = next((of_kind[kinds[i]].eval_image for i in run.needs if by_id[i].kind == "weak"), 0.0)
        seconds[run.id] += timing.val_images * (timing.eval_image + teacher)
        cache = run.flag("--teacher-checkpoint"), run.flag("--train-slice")
        if (run.flag("--teacher-targets") or "online") != "online" and cache not in caches:
            caches.add(cache)
            seconds[run.id] += timing.train_images * teacher
    return seconds


def kind_of(run: PlannedRun, parser: Parser) -> str:
    """Return what runs that take the same time have in common."""
    args, _ = parse(parser, run.argv)
    cached = args.teacher and args.teacher_targets != "online"
    left_out = parser.names(SAME_TIME | Role.TEACHER if cached or not args.teacher else SAME_TIME)
    return json.dumps({k: v for k, v in sorted(vars(args).items()) if k not in left_out}, default=str)


def measure_all(
        runs: Sequence[PlannedRun],
        stand_ins: Mapping[str, PlannedRun],
        env: Mapping[str, str],
) -> tuple[float, list[Timing]]:
    """Measure runs in one new process; teachers are untrained ones of the same kind.

    Args:
        runs: what is measured, teachers first.
        stand_ins: for each id of a run, the measured one of its kind.
        env: variables of the process.

    Returns:
        Seconds of the imports, and the times of each run.
    """
    with tempfile.TemporaryDirectory() as folder:
        commands = []
        for run in runs:
            names = {needed: stand_ins[needed].id for needed in run.needs}
            argv = fill_in(run.argv, Path(folder))
            for name, other in names.items():
                argv = [part.replace(name, other) for part in argv]
            commands.append(argv)
        started = time.time()
        done = subprocess.run(
            [sys.executable, "-m", "w2s_plugins.study.calibrate"], input=json.dumps(commands), env=child_env(env),
            capture_output=True, text=True)
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for run, answer in zip(runs, answers[1:]):
        if "error" in answer:
            raise UserError(f"{run.label}: {answer['error']}")
    if len(answers) != len(runs) + 1:
        run = runs[max(0, len(answers) - 1)]
        text = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(f"{run.label}: cannot be measured: {text[-1]}")
    return answers[0]["ready"] - started, [Timing(**answer) for answer in answers[1:]]


def makespan(plan: Sequence[PlannedRun], seconds: Mapping[str, float], slots: int) -> float:
    """Return the time until the last run has ended, so many at a time; runs that are not in ``seconds`` take none.

    Args:
        plan: the runs, each after those that it needs.
        seconds: duration of each run, by id.
        slots: runs at a time.
    """
    free, ends = [0.0] * slots, {}
    for run in plan:
        if run.id not in seconds:
            continue
        start = max([heapq.heappop(free), *(ends[i] for i in run.needs if i in ends)])
        ends[run.id] = start + seconds[run.id]
        heapq.heappush(free, ends[run.id])
    return max(ends.values(), default=0.0)
