"""Does `weak-labels` get further past a teacher than AdaptConf does?

From two tar files of CLASS/IMAGE, for each seed: some images keep their labels, from which a small network learns;
others lose them, and the same pretrained student is taught by that network on these,

    adaptconf   all of it fine-tuned, as in the paper, from timm's head,
    adaptconf, zeros   the same with a head that begins with zeros, as is the default,
    adaptconf, part   only what the recipe tunes, in the same way,
    recipe      weak-labels,
    recipe, plain   with --no-refine-labels,
    ceiling     what the recipe tunes, on the true labels, as `direct` is trained (weak-labels-ceiling),

and, with the labels at hand,

    recipe with labels   weak-labels-plus-few-true,
    direct      its first stage: the student on the labelled images alone.

PGR is by one ceiling for all, so that ratios of PGR are ratios of gains. Differences are over pairs of runs of one
seed on the same test images (study/statistics.py), without correction for the number of comparisons. Time is that of
the processor, with the start of each process.

    python -m benchmarks.recipe train.tar validation.tar --labelled 1000 --photos 5000 --student \\
        "--model tf_efficientnet_lite0 --finetune lite0.safetensors --img-size 64"
"""

import argparse
import os
import random
import shlex
import shutil
import statistics
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import yaml

from w2s_plugins.metrics.pgr import performance_gap_recovered
from w2s_plugins.metrics.resampling import resampled_means
from w2s_plugins.monitor import format_table
from w2s_plugins.study.statistics import RESAMPLES, compare

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "hparams" / "parts" / "weak-labels.yaml"

COMMON = (
    "--sched cosine --sched-on-updates --warmup-epochs 0 --val-interval 1000 --workers 0 --log-interval 1000 "
    "--smoothing 0 --validation-batch-size 250 --channels-last"
)
WEAK = (
    "--train-split labelled.tar --no-aug --model w2s_cnn5 --img-size 32 --epochs 20 --opt sgd --lr 0.05 "
    "--batch-size 32"
)
# what that file says of all but teacher and loss; of its flags without a value, TAUGHT has --no-aug
LAST = " ".join(
    f"--{name.replace('_', '-')} {value}"
    for name, value in yaml.safe_load(FILE.read_text(encoding="utf-8")).items()
    if name not in ("loss", "teacher_targets", "ceiling_config") and value is not True
)
WHOLE = "--opt adamw --weight-decay 0.05 --batch-size 64 --lr 1e-3 --epochs 4"
TAUGHT = "--unlabeled {data}/photos.tar --teacher {weak} --teacher-targets cached --no-aug --loss adaptconf"
RECIPE = "--unlabeled {data}/photos.tar --train-split labelled.tar --teacher {weak}"
# flags of each run, beside those of the student
ROWS = {
    "adaptconf": f"{TAUGHT} {WHOLE} --head-init-scale 1",
    "adaptconf, zeros": f"{TAUGHT} {WHOLE}",
    "adaptconf, part": f"{TAUGHT} {LAST}",
    "recipe": f"{RECIPE} --config weak-labels",
    "recipe, plain": f"{RECIPE} --config weak-labels --no-refine-labels",
    "ceiling": "--train-split rest.tar --config weak-labels-ceiling",
    "recipe with labels": f"{RECIPE} --stages weak-labels-plus-few-true",
}
REFERENCES = ["adaptconf", "adaptconf, zeros", "adaptconf, part", "recipe", "direct"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run all seeds and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "train", type=Path, help="tar file of CLASS/IMAGE: labelled images and photographs"
    )
    parser.add_argument("validation", type=Path, help="tar file of CLASS/IMAGE, to measure on")
    parser.add_argument("--labelled", type=int, default=1000, help="images that keep their labels")
    parser.add_argument("--photos", type=int, default=2000, help="images that lose them")
    parser.add_argument(
        "--student",
        default="--model tf_efficientnet_lite0.in1k --pretrained --img-size 96",
        help="flags that name the strong model",
    )
    parser.add_argument("--flags", default="", help="more flags of every run, such as --hflip 0")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--what", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--output", type=Path, default=Path("output/recipe"))
    parser.add_argument(
        "--quick", action="store_true", help="few images and a tiny student, to see that it works"
    )
    args = parser.parse_args(argv)
    if args.quick:
        args.labelled, args.photos, args.seeds, args.what = 40, 80, [0], ["adaptconf", "ceiling"]
        args.student, args.flags = "--model w2s_cnn2 --img-size 16", "--epochs 1"
    runs = [run_seed(args, seed) for seed in args.seeds]
    against = [name for name in REFERENCES if name in runs[0]]
    print(
        format_table(
            list(make_rows(runs, against)),
            ["", "top-1", "PGR", *(f"over {n}" for n in against), "CPU s"],
        )
    )


def run_seed(args: argparse.Namespace, seed: int) -> dict[str, tuple[np.ndarray, float]]:
    """Train what is asked for; return of each which test images it gets right, 0 or 100, and seconds."""
    folder = (args.output / f"seed{seed}").resolve()
    # the images are divided once for all runs of a seed
    if not (folder / "test.tar").exists():
        divide(args, seed, folder)
    # the weak teacher, and all who learn from it
    found = {"teacher": train(args, WEAK, "weak", folder, seed)}
    for name in args.what:
        flags = ROWS[name].format(data=folder, weak=folder / "weak")
        run_name = name.replace(", ", "-").replace(" ", "-")
        found[name] = train(args, f"{flags} {args.student}", run_name, folder, seed)
    # the first of its stages is a run of its own
    if "recipe with labels" in found:
        found["direct"] = right(folder / "recipe-with-labels" / "direct"), 0.0
    return found


def divide(args: argparse.Namespace, seed: int, folder: Path) -> None:
    """Write the parts as tar files: labelled ones, photographs without and with their classes, and the test set."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(args.train) as source:
        names = sorted(member.name for member in source if member.isfile())
        classes = sorted({Path(name).parent.name for name in names})
        if args.labelled + args.photos > len(names):
            raise SystemExit(
                f"{args.train} has {len(names)} images, fewer than --labelled and --photos together"
            )
        random.Random(seed).shuffle(names)
        labelled = random.Random(seed).sample(names[: args.labelled], args.labelled)
        photos = random.Random(seed).sample(names[args.labelled :], args.photos)

        # the names of photographs do not tell their classes
        parts = {
            "labelled.tar": {name: name for name in labelled},
            "rest.tar": {name: name for name in photos},
            "photos.tar": {
                name: f"{number:05}{Path(name).suffix}" for number, name in enumerate(photos)
            },
        }
        for part, new_names in parts.items():
            with tarfile.open(folder / part, "w") as target:
                for name, new_name in new_names.items():
                    member = tarfile.TarInfo(new_name)  # a copy could keep its long name
                    member.size = source.getmember(name).size
                    target.addfile(member, source.extractfile(name))
    (folder / "classes.txt").write_text("".join(f"{kind}\n" for kind in classes), encoding="utf-8")
    (folder / "test.tar").symlink_to(args.validation.resolve())


def train(
    args: argparse.Namespace, flags: str, name: str, folder: Path, seed: int
) -> tuple[np.ndarray, float]:
    """Run train_w2s.py, if that is not done; return what is right, of stages that of the last one, and seconds."""
    cost = folder / name / "seconds.json"
    if not cost.exists():
        shutil.rmtree(
            folder / name, ignore_errors=True
        )  # of a run that was interrupted: its time is not known
        command = (
            f"{ROOT / 'train_w2s.py'} {flags} {COMMON} {args.flags} --data-dir {folder} --val-split test.tar "
            f"--class-map {folder}/classes.txt --seed {seed} --target-cache {folder}/targets-{name} "
            f"--output {folder} --experiment {name}"
        )
        print(f"python {command}", flush=True)
        before = os.times()
        with (folder / f"{name}.log").open("w") as log:
            subprocess.run(
                [sys.executable, *shlex.split(command)],
                stdout=log,
                stderr=log,
                check=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        after = os.times()
        seconds = (
            after.children_user
            + after.children_system
            - before.children_user
            - before.children_system
        )
        cost.write_text(str(seconds))
    last = folder / name / ("student" if "--stages" in flags else "")
    return right(last), float(cost.read_text())


def right(run: Path) -> np.ndarray:
    """Return for each test image 100 where the run is right about it, else 0."""
    target, student = np.loadtxt(
        run / "predictions_last.csv", delimiter=",", skiprows=1, dtype=int
    )[:, :2].T
    return 100.0 * (target == student)


def make_rows(
    runs: list[dict[str, tuple[np.ndarray, float]]], against: list[str]
) -> Iterator[list[str]]:
    """Yield the rows of the table: means over seeds, each seed, and differences to some with interval and p."""
    # by run, seed and test image
    answers = {name: np.stack([run[name][0] for run in runs]) for name in runs[0]}
    # PGR needs the ceiling
    weak, top = (answers[name].mean() if name in answers else 0 for name in ("teacher", "ceiling"))
    for name, rows in answers.items():
        each = ", ".join(f"{one:.1f}" for one in rows.mean(axis=1))
        pgr = f"{performance_gap_recovered(weak, rows.mean(), top):.2f}" if top > weak else ""
        seconds = statistics.median(run[name][1] for run in runs)
        yield [
            name,
            f"{rows.mean():.1f} ({each})",
            pgr,
            *(difference(rows - answers[other]) if other != name else "" for other in against),
            f"{seconds:.0f}",
        ]


def difference(rows: np.ndarray) -> str:
    """Return the mean of differences by seed and test image, its 95 % interval and p; of one seed the mean."""
    if len(rows) < 2:
        return f"{rows.mean():+.1f}"
    found = compare(rows, resampled_means(rows.mean(axis=0)[None], RESAMPLES)[0])
    return f"{found['value']:+.1f} [{found['low']:+.1f}, {found['high']:+.1f}] p {found['p']:.3f}"


if __name__ == "__main__":
    main()
