#!/usr/bin/env python3
"""Speed of training against what bounds it, and against timm; ratios with their spread as Markdown tables.

    python -m benchmarks.throughput step
    python -m benchmarks.throughput script --timm CLONE
    python -m benchmarks.throughput teacher --quick

step       a training step against its parts: student (forward, backward, optimizer) and teacher, each alone in a loop
teacher    what the online teacher adds to a step, against what timm's LogitDistillationTask adds
script     this project's script against the train.py of a clone of timm: images per second, start-up, whole process;
           with --no-teacher-eval, since timm's does not evaluate its teacher

What is compared takes turns in one process tree. A ratio is that of two figures of the same turn; shown are the median
of the turns and their quartiles. Models start from random weights; images are random, or crops of two photographs.
With --device cuda a time ends when the device has done what it was asked for.
"""

import argparse
import copy
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from timm.models import save_for_hf
from timm.task import ClassificationTask, LogitDistillationTask, TrainingTask
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import w2s_plugins.models  # noqa: F401  (registers the small networks)
from benchmarks.measure import machine, ratios, spread, table, take_turns, timed, write_photographs
from train_w2s import train_one_epoch
from w2s_plugins.cli import parse, train_parser
from w2s_plugins.data import Batch
from w2s_plugins.distributed.signals import SignalWatch
from w2s_plugins.distributed.world import Precision, World
from w2s_plugins.monitor import Console
from w2s_plugins.resolve.train import resolve_train_args
from w2s_plugins.run.position import Position
from w2s_plugins.settings.composite import TrainSettings
from w2s_plugins.teachers.teacher import Teacher
from w2s_plugins.training import optimisation as build
from w2s_plugins.training.create_task import build_task
from w2s_plugins.training.device import compile_options, create_precision
from w2s_plugins.training.splits import Data
from w2s_plugins.training.student import Student, build_student
from w2s_plugins.training.teacher import build_teacher
from w2s_plugins.training.training_run import Run

ROOT = Path(__file__).parents[1]
PAIRS = (
    "resnet18<-resnet10t",
    "vit_tiny_patch16_224<-resnet10t",
    "tf_efficientnet_lite0<-w2s_cnn5",
)
QUICK_PAIRS = ("w2s_cnn2<-w2s_cnn2",)
# the number of a step: "Train: 0 [   0/16 (  6%)]" of timm, and "epoch 1/1 step 1/16" of this project
STEP = re.compile(r"(?:Train: \d+ \[|epoch \d+/\d+ step) *(\d+)/")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=BENCHMARKS)
    parser.add_argument(
        "--pairs",
        nargs="+",
        default=PAIRS,
        metavar="STUDENT<-TEACHER",
        help="script takes the first",
    )
    parser.add_argument("--size", type=int, default=64, help="of the images")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--device", default="cpu", choices=["cpu", "cuda"], help="of step, teacher and script"
    )
    parser.add_argument("--steps", type=int, default=2, help="steps in a turn; script: of 16")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--timm", type=Path, metavar="CLONE", help="clone of timm, for script")
    parser.add_argument(
        "--flags",
        default="",
        help="further flags of training, in one string; script: of both scripts",
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny models and one turn, to see that it works"
    )
    args = parser.parse_args(argv)
    if args.what == "script" and args.timm is None:
        parser.error("script compares with timm's train.py: give --timm CLONE")
    if args.quick:
        args.pairs, args.turns, args.steps, args.size, args.batch_size = QUICK_PAIRS, 1, 2, 16, 4
    torch.set_num_threads(1)
    print(f"{machine()}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        BENCHMARKS[args.what](args, Path(folder))


@dataclass
class Pair:
    """A student and a teacher, built as a run builds them."""

    student: nn.Module
    teacher: Teacher
    task: Callable[[nn.Module], TrainingTask]
    precision: Precision
    world: World
    settings: TrainSettings
    batches: list[Batch]


Loops = Callable[[str, Pair], dict[str, Callable[[], object]]]


def build_pair(pair: str, args: argparse.Namespace, folder: Path) -> Pair:
    """Build student, teacher and task by the factories of the training script."""
    # random weights, in a file as a teacher has them
    torch.manual_seed(0)
    student_name, _, teacher_name = pair.partition("<-")
    weights = folder / f"{teacher_name}.pth"
    torch.save(timm.create_model(teacher_name, num_classes=100).state_dict(), weights)
    # parts as the training script makes them
    world = World(torch.device(args.device), rank=0, size=1, distributed=False)
    settings = resolve_train_args(
        *parse(
            train_parser(),
            [
                "--dataset",
                "w2s/digits",
                "--device",
                args.device,
                "--num-classes",
                "100",
                "--img-size",
                str(args.size),
                "--model",
                student_name,
                "--teacher",
                teacher_name,
                "--teacher-checkpoint",
                str(weights),
                "--teacher-img-size",
                str(args.size),
                "--loss",
                "kd",
                "--lr",
                "0.01",
                *args.flags.split(),
            ],
        )
    )
    student, config, _, _, layout = build_student(settings, world, settings.data.num_classes)
    precision = create_precision(settings.compute, world, layout)
    teacher = build_teacher(settings, student, config, precision)
    data = Data(TensorDataset(torch.empty(args.batch_size)), None, None)

    def task(student: nn.Module) -> TrainingTask:
        return build_task(settings, student, teacher, None, data, config, precision, world)

    batches = [
        Batch(
            *(
                part.to(world.device)
                for part in (
                    torch.randn(args.batch_size, *config["input_size"]).contiguous(
                        memory_format=layout
                    ),
                    torch.randint(100, (args.batch_size,)),
                    torch.arange(args.batch_size),
                )
            )
        )
        for _ in range(args.steps)
    ]
    return Pair(student, teacher, task, precision, world, settings, batches)


class MemoryLoader(list[Batch]):
    """Batches in memory, with the interface of `TrainLoader`."""

    @property
    def average_batch_size(self) -> float:
        return float(len(self[0].input))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        return iter(self[start:])


def create_epoch(task: TrainingTask, pair: Pair) -> Callable[[], object]:
    """Return a function that trains for an epoch as the script does."""
    # what the script has in its hands when an epoch begins
    optim = pair.settings.optim
    optimizer = build.create_optimizer(optim, task)
    schedule = build.create_schedule(
        optim, optimizer, len(pair.batches), seed=pair.settings.run.seed
    )
    if options := compile_options(pair.settings.compute):
        task.compile(**options)
    loaders = {"train": MemoryLoader(pair.batches)}
    run = Run(
        settings=pair.settings,
        world=pair.world,
        precision=pair.precision,
        task=task,
        loaders=loaders,
        optimizer=optimizer,
        schedule=schedule,
        data=Data(TensorDataset(torch.empty(0)), None, None),
        student=Student(pair.student, {}, {}, {}),
    )

    def epoch() -> None:
        run.position = Position()
        with SignalWatch(()) as watch:
            train_one_epoch(run, watch, Console(primary=False, total=0))

    return epoch


def student_loop(pair: Pair) -> Callable[[], None]:
    """Return a function that does what no training can do without."""
    student = copy.deepcopy(pair.student)
    optimizer = build.create_optimizer(
        pair.settings.optim, ClassificationTask(student, nn.CrossEntropyLoss(), verbose=False)
    )
    options = compile_options(pair.settings.compute)
    forward = torch.compile(student, **options) if options else student

    def loop() -> None:
        # forward, backward, step: nothing else
        student.train()
        for batch in pair.batches:
            with pair.precision.autocast():
                loss = F.cross_entropy(forward(batch.input), batch.target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return loop


def teacher_loop(pair: Pair) -> Callable[[], None]:
    """Return a function that runs the teacher's network on images in the teacher's own form."""
    (member,) = pair.teacher.members
    # the images as the teacher wants them, so that only its network is timed
    images: list[Tensor] = [
        member.adapt(batch.input).to(member.dtype, memory_format=torch.channels_last)
        for batch in pair.batches
    ]

    @torch.inference_mode()
    def loop() -> None:
        for batch in images:
            member.run(batch)

    return loop


def seconds_of(
    args: argparse.Namespace, folder: Path, loops: Loops
) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """Yield the name of each pair, and for each of its loops the seconds of all turns."""
    for name in args.pairs:
        measures = {
            kind: timed(loop) for kind, loop in loops(name, build_pair(name, args, folder)).items()
        }
        yield name, take_turns(measures, args.turns)


def step(args: argparse.Namespace, folder: Path) -> None:
    """Print the time of a training step as a multiple of the time of its parts alone."""

    def loops(name: str, pair: Pair) -> dict[str, Callable[[], object]]:
        return dict(
            student=student_loop(pair),
            teacher=teacher_loop(pair),
            training=task_loop("ours", name, pair),
        )

    rows = []
    for name, seconds in seconds_of(args, folder, loops):
        # student and teacher, each alone, one after the other
        limit = [s + t for s, t in zip(seconds["student"], seconds["teacher"])]
        rows.append(
            (
                name,
                *(milliseconds(turns, args) for turns in seconds.values()),
                spread(ratios(seconds["training"], limit)),
            )
        )
    print_table(
        "A training step against its parts alone",
        ("pair", "student, ms", "teacher, ms", "training, ms", "training / (student + teacher)"),
        rows,
        args,
    )


def teacher(args: argparse.Namespace, folder: Path) -> None:
    """Print what a teacher adds to a step, and the ratio to what it adds in timm's task."""

    def loops(name: str, pair: Pair) -> dict[str, Callable[[], object]]:
        return {kind: task_loop(kind, name, pair) for kind in ("none", "ours", "timm")}

    rows = []
    for name, seconds in seconds_of(args, folder, loops):
        # what the teacher adds, in the same turn
        added = {k: [a - b for a, b in zip(seconds[k], seconds["none"])] for k in ("ours", "timm")}
        rows.append(
            (
                name,
                *(milliseconds(turns, args) for turns in (seconds["none"], *added.values())),
                spread(ratios(added["ours"], added["timm"])),
            )
        )
    print_table(
        "What an online teacher adds to a step",
        ("pair", "no teacher, ms", "added here, ms", "added by timm, ms", "here / timm"),
        rows,
        args,
    )


def task_loop(kind: str, name: str, pair: Pair) -> Callable[[], object]:
    """Return a function that trains for an epoch with no teacher (``none``), that of the pair (``ours``), or timm's."""
    student, device, loss = (
        copy.deepcopy(pair.student),
        pair.precision.device,
        nn.CrossEntropyLoss(),
    )
    if kind == "ours":
        task = pair.task(student)
    elif kind == "none":
        task = ClassificationTask(student, loss, device=device, verbose=False)
    else:
        # timm's task has a teacher of its own
        theirs = timm.create_model(name.partition("<-")[2], num_classes=100)
        theirs.to(device, memory_format=pair.precision.layout)
        task = LogitDistillationTask(student, theirs, loss, device=device, verbose=False)
    return create_epoch(task, pair)


def script(args: argparse.Namespace, folder: Path) -> None:
    """Print images per second, start-up and total time of this project's script and of timm's, and their ratios."""
    # images for an epoch, some for its evaluation, and a teacher that both can load
    steps = 16 * args.steps
    write_photographs(folder / "data", steps * args.batch_size)
    write_photographs(folder / "data", 8, split="validation")
    student_name, _, teacher_name = args.pairs[0].partition("<-")
    model = timm.create_model(teacher_name, num_classes=2)
    save_for_hf(
        model, folder / "teacher", model_config=dict(num_classes=2), safe_serialization=True
    )
    teacher_id = f"local-dir:{folder / 'teacher'}"

    # timm's script runs with the installed timm, so that both use the same library
    shared = [
        "--data-dir",
        str(folder / "data"),
        "--num-classes",
        "2",
        "--img-size",
        str(args.size),
        "--epochs",
        "1",
        "--model",
        student_name,
        "--lr",
        "0.01",
        "--device",
        args.device,
        "--batch-size",
        str(args.batch_size),
        "--workers",
        "1",
        *args.flags.split(),
    ]
    run_clone = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    commands = {
        "here": [
            str(ROOT / "train_w2s.py"),
            *shared,
            "--teacher",
            teacher_id,
            "--loss",
            "kd",
            # timm's does not evaluate its teacher, which sees the student's size
            "--no-teacher-eval",
            "--teacher-img-size",
            str(args.size),
        ],
        "timm": [
            "-c",
            run_clone,
            str(args.timm.resolve() / "train.py"),
            *shared,
            "--kd-model-name",
            teacher_id,
        ],
    }
    runs = take_turns(
        {
            name: lambda command=command: run_script(
                [sys.executable, *command], args.batch_size, folder
            )
            for name, command in commands.items()
        },
        args.turns,
    )

    # a row for each figure: medians here and of timm, and the ratio
    rows = []
    for label in runs["here"][0]:
        here, theirs = ([run[label] for run in runs[name]] for name in ("here", "timm"))
        rows.append(
            (
                label,
                f"{statistics.median(here):.2f}",
                f"{statistics.median(theirs):.2f}",
                spread(ratios(here, theirs)),
            )
        )
    print_table(
        f"The whole script, {steps} steps, teacher not evaluated",
        ("", "here", "timm", "here / timm"),
        rows,
        args,
    )


def run_script(command: Sequence[str], images_per_step: int, folder: Path) -> dict[str, float]:
    """Run a script for one epoch that logs at least its first and its last step.

    Returns:
        By its words in the table: images per second between these steps, and seconds from the start of the process to
        the end of the first step and to its own end.

    Raises:
        RuntimeError: it failed, or logged fewer than two steps; the message has its last lines.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop(
        "PYTHONDONTWRITEBYTECODE", None
    )  # else this project is compiled anew in each run, and timm is not
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    # the time of each step that is logged
    lines, steps = [], []
    for line in process.stdout:
        lines.append(line)
        if found := STEP.search(line):
            steps.append((int(found[1]), time.perf_counter()))
    code = process.wait()
    total = time.perf_counter() - started
    if code or len(steps) < 2:
        raise RuntimeError(
            f"exit code {code}, {len(steps)} steps logged: {' '.join(command)}\n{''.join(lines[-20:])}"
        )
    (first, first_time), (last, last_time) = steps[0], steps[-1]
    rate = images_per_step * (last - first) / (last_time - first_time)
    return {
        "images/s": rate,
        "start to first step, s": first_time - started,
        "start to end, s": total,
    }


def milliseconds(turns: list[float], args: argparse.Namespace) -> str:
    """Return the median of the turns, by step."""
    return f"{1e3 * statistics.median(turns) / args.steps:.1f}"


def print_table(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    args: argparse.Namespace,
) -> None:
    print(f"{title}; {args.size} px, batch {args.batch_size}, {args.turns} turns {args.flags}\n")
    print(f"{table(header, rows)}\n", flush=True)


BENCHMARKS = dict(step=step, teacher=teacher, script=script)


if __name__ == "__main__":
    main()
