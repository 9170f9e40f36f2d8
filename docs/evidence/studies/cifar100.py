"""The paper's first pair on CIFAR-100, ResNet20 -> ResNet56: the runs of docs/evidence/paper.md.

    python docs/evidence/studies/cifar100.py DATA/cifar100 output/cifar100 --seeds 0
    python docs/evidence/studies/cifar100.py DATA/cifar100 output/cifar100 --seeds 0 --rows cifar100.csv

`DATA` is what sets.py makes. The runs take days of a CPU, so they are made to be interrupted: SIGTERM ends the one at
work after its step, and the same command goes on with it. How often each was begun, and the seconds of the processor
in all, are noted beside it. The second command adds the rows of what is finished to the file.
"""

import argparse
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "evidence" / "studies")]

from forked import add_rows, parser_of_study  # noqa: E402

# one process with the images of the paper's eight; compiled, and in bfloat16, which is the fastest on a CPU with it
COMMON = (
    "--dataset '' --train-split train.tar --val-split validation.tar --batch-size 512 --device cpu "
    "--workers 1 --amp --amp-dtype bfloat16 --torchcompile --resume auto"
)
TEACHER_EPOCHS, PAIR_EPOCHS = 240, 30
PAIR = f"--epochs {PAIR_EPOCHS} --warmup-epochs 1 --config cifar100-resnet20-resnet56"
WEAK = "no-ground-truth"
# by student: its flags; those with a pair have the teacher of the same seed
STUDENTS = {
    "teacher": f"--epochs {TEACHER_EPOCHS} --config cifar100-v0 --model cifar_resnet20",
    "no teacher": f"{PAIR} ceiling",
    "kd": f"{PAIR} paper-kd",
    "augconf": f"{PAIR} paper-augconf",
    "adaptconf": PAIR,
    "hard, weak labels alone": f"{PAIR} {WEAK} --loss hard",
    "kd, weak labels alone": f"{PAIR} paper-kd {WEAK}",
    "adaptconf, weak labels alone": f"{PAIR} {WEAK}",
    "elr, weak labels alone": f"{PAIR} {WEAK} --loss elr",
}
COLUMNS = [
    "student",
    "seed",
    "epochs",
    "flags",
    "top1",
    "seconds",
    "interruptions",
    "cpu",
    "commit",
]


def train(data: Path, output: Path, name: str, flags: str, threads: int) -> int:
    """Begin a run, or go on with it, and note how often it was begun and the seconds of each start.

    Returns its exit code.
    """
    if (output / name / "result.json").exists():
        return 0
    note = output / f"{name}.starts.json"
    starts = json.loads(note.read_text()) if note.exists() else []
    # one whose seconds are never noted, because the machine went away, is a start as well
    note.write_text(json.dumps([*starts, 0]))
    words = shlex.split(f"{flags} {COMMON} --data-dir {data} --output {output} --experiment {name}")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with (output / f"{name}.log").open("a") as log:
        child = subprocess.Popen(
            [sys.executable, "train_w2s.py", *words],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        code = child.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    note.write_text(json.dumps([*starts, round(seconds)]))
    return code


def rows(output: Path, args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Yield a row of each run that is finished."""
    for seed in args.seeds:
        for student, flags in STUDENTS.items():
            run = output / name_of(student, seed)
            if not (run / "result.json").exists():
                continue
            starts = json.loads((output / f"{run.name}.starts.json").read_text())
            epochs = pandas.read_csv(run / "summary.csv")
            yield dict(
                student=student,
                seed=seed,
                epochs=len(epochs),
                flags=flags,
                top1=f"{epochs['eval_top1'].iloc[-1]:.2f}",
                seconds=sum(starts),
                interruptions=len(starts) - 1,
                cpu=args.cpu,
                commit=args.commit,
            )


def name_of(student: str, seed: int) -> str:
    """Return the name of a run's folder."""
    return f"{student.replace(',', '').replace(' ', '-')}-{seed}"


def main() -> None:
    """Train what is not finished, or write the rows of what is."""
    parser = parser_of_study(__doc__, [], [])
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--threads", type=int, default=2, help="of the processor")
    parser.add_argument("--students", nargs="+", choices=list(STUDENTS), default=list(STUDENTS))
    parser.add_argument("--rows", type=Path, help="add rows to this CSV file and train nothing")
    args = parser.parse_args()
    if args.rows:
        add_rows(args.rows, list(rows(args.output, args)), COLUMNS, ("student", "seed"))
        return
    args.output.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for student in args.students:
            flags = f"{STUDENTS[student]} --seed {seed}"
            if PAIR in flags and "ceiling" not in flags:
                teacher = args.output.resolve() / name_of("teacher", seed)
                flags += f" --teacher-checkpoint {teacher}"
            place = args.data.resolve(), args.output.resolve()
            code = train(*place, name_of(student, seed), flags, args.threads)
            if code:
                raise SystemExit(f"{name_of(student, seed)} ended with {code}, see its log")


if __name__ == "__main__":
    main()
