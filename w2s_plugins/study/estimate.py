"""How long a study will take: of each kind of run one is trained for some updates on a few samples."""

import functools
import json
import os
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import Dataset, IterableDataset

from ..build.data import open_train_split, open_val_split
from ..cli.declare import Parser, Role
from ..data.slices import parse_slice, take_slice
from ..errors import UserError
from ..warm import Warm
from .check import resolve_command
from .layout import PlannedRun, fill_in
from .plan import encode
from .pool import child_env
from .worker import MODULES, SCRIPT, Start

WARM, STEPS = 2, 8  # updates before the clock starts, and on it
EVAL_BATCHES = 4
# flags on which the time of a run does not depend, or hardly
SAME_TIME = Role.TUNING | Role.WHERE | Role.REPORT


@dataclass(frozen=True)
class Timing:
    """What one command costs.

    Args:
        start: seconds of everything around updates and evaluations: imports, preparation, export.
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
        """Duration of the run, without a teacher's labels."""
        return self.start + self.step * self.updates + self.eval_image * self.val_images * self.evaluations


def estimate(plan: Sequence[PlannedRun], parser: Parser, env: Mapping[str, str]) -> dict[str, float]:
    """Return the expected seconds of each run, by id.

    One run of each kind is measured: those that differ only in seed, loss and weights take the same time, and so do
    students with cached targets whatever their teacher. To the measured time come the first evaluation of student and
    teacher, and, for the first user of a cache of targets, its labels.

    Args:
        plan: the runs, each after those that it needs.
        parser: knows the flags of train_w2s.py.
        env: variables of the process, such as the device.

    Raises:
        UserError: a run does not train.
    """
    kinds = {run.id: kind_of(run, parser) for run in plan}
    measured: dict[str, tuple[PlannedRun, Timing]] = {}
    env = child_env(env)
    with tempfile.TemporaryDirectory() as folder, Warm(MODULES, env) as python:
        start = functools.partial(python.start, env=env)
        for run in plan:
            if kinds[run.id] not in measured:
                argv = fill_in(run.argv, Path(folder))
                for needed in run.needs:  # the run of that kind which has been measured stands in for it
                    argv = [part.replace(needed, measured[kinds[needed]][0].id) for part in argv]
                try:
                    measured[kinds[run.id]] = run, measure(argv, parser, start)
                except UserError as error:
                    raise UserError(f"{run.label}: {error}") from error
    by_id = {run.id: run for run in plan}
    seconds, caches = {}, set()
    for run in plan:
        timing = measured[kinds[run.id]][1]
        seconds[run.id] = timing.seconds
        if not run.needs:
            continue
        teacher = next((measured[kinds[i]][1].eval_image for i in run.needs if by_id[i].kind != "ceiling"), 0.0)
        seconds[run.id] += timing.val_images * (timing.eval_image + teacher)
        cache = run.set, run.flag("--teacher"), run.flag("--teacher-checkpoint"), run.flag("--train-slice")
        if (run.flag("--teacher-targets") or "online") != "online" and cache not in caches:
            caches.add(cache)
            seconds[run.id] += timing.train_images * teacher
    return seconds


def kind_of(run: PlannedRun, parser: Parser) -> str:
    """Return what runs that take the same time have in common."""
    flags = {**parser.defaults(), **parser.take(run.argv)}
    cached = flags["teacher"] and flags["teacher_targets"] != "online"
    left_out = parser.names(SAME_TIME | Role.TEACHER if cached or not flags["teacher"] else SAME_TIME)
    return json.dumps([run.set, {k: v for k, v in sorted(flags.items()) if k not in left_out}], default=str)


def measure(argv: Sequence[str], parser: Parser, start: Start) -> Timing:
    """Train a command for some updates on a part of its samples, evaluate on another part, and look at the clock.

    Args:
        argv: the command.
        parser: knows the flags.
        start: starts its process.

    Raises:
        UserError: it does not train, or its data cannot be cut.
    """
    args = resolve_command(argv, parser)
    train, train_images = open_part(open_train_split(args), args.train_slice, args.slice_seed)
    val, val_images = open_part(open_val_split(args), args.val_slice, args.slice_seed)
    per_update, epoch_images = args.batch_size * args.grad_accum_steps, train_images
    if args.epoch_slice:
        epoch_images = max(train_images, open_part(train, args.epoch_slice, args.slice_seed)[1])
    few = min(train_images, per_update * (WARM + STEPS))
    few_val = min(val_images, EVAL_BATCHES * (args.validation_batch_size or args.batch_size))
    epochs = min(args.epochs, args.stop_epoch or args.epochs)
    left_out = parser.names(Role.NOISE | Role.SELECTION | Role.STUDENT) | {"log_wandb", "log_trackio", "epoch_slice"}
    flags = {name: value for name, value in parser.take(argv).items() if name not in left_out}
    flags.update(
        train_slice=narrowed(args.train_slice, few, train), val_slice=narrowed(args.val_slice, few_val, val),
        stop_epoch=min(epochs, -(-(WARM + STEPS) // -(-few // per_update))), val_interval=epochs + 1, log_interval=1)
    steps, evaluated, total = clock(encode(flags, parser), start)
    warm = min(WARM, len(steps) - 2) if len(steps) > 2 else 0
    step = (steps[-1] - steps[warm]) / max(1, len(steps) - 1 - warm)
    return Timing(total - (evaluated - steps[0]), step, epochs * -(-epoch_images // per_update),
                  (evaluated - steps[-1]) / few_val, -(-epochs // args.val_interval), train_images, val_images)


def open_part(whole: Dataset, text: str | None, seed: int) -> tuple[Dataset, int]:
    """Return a split, and how many of its samples a slice has."""
    if isinstance(whole, IterableDataset):
        raise UserError("streams cannot be cut, so that nothing can be measured on a few samples: give --no-estimate")
    return whole, len(take_slice(whole, text, seed))


def narrowed(text: str | None, count: int, whole: Dataset) -> str:
    """Return the first ``count`` samples of the slice ``text`` of a split as a slice."""
    start, stop = parse_slice(text) if text else (None, None)
    if isinstance(start, float) or isinstance(stop, float):
        return f"{start or 0.0!r}:{min(stop or 1.0, (start or 0.0) + count / len(whole))!r}"
    return f"{start or 0}:{(start or 0) + count}"


def clock(words: Sequence[str], start: Start) -> tuple[list[float], float, float]:
    """Run train_w2s.py; return when each of its updates and its evaluation had ended, and when it had, in seconds.

    The time that it has waited for a core is left out, where the system tells: others who work here now are not those
    who will when the study runs.

    Raises:
        UserError: it fails.
    """
    steps, evaluated, delay, last = [], 0.0, 0.0, ""
    reader, writer = os.pipe()
    with open(reader, errors="replace") as lines:
        try:
            child = start([str(SCRIPT), *words], stdout=writer, stderr=writer)
        finally:
            os.close(writer)
        started = time.monotonic()
        for line in lines:
            delay = max(delay, waited(child.pid))  # nothing is known of one that has ended
            last, now = line.strip() or last, time.monotonic() - started - delay
            if re.search(r" epoch \d+/\d+ step \d+/\d+ ", line):
                steps.append(now)
            elif re.search(r" epoch \d+/\d+ done: ", line):
                evaluated = now
        code, ended = child.wait(), time.monotonic() - started - delay
    if code or not steps:
        raise UserError(f"cannot be measured: {last or f'exit code {code}'}")
    return steps, evaluated, ended


def waited(pid: int) -> float:
    """Return the seconds for which a process was ready to run, and others did."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
