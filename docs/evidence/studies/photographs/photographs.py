"""The recipe beside probes, AdaptConf and logistic regression: the runs, tables and figure of docs/evidence/recipe.md.

A folder has train.tar and validation.tar of CLASS/IMAGE for each set. For each seed a small network, the teacher,
learns from a few labelled images, as in benchmarks.recipe. Then the same student learns from its labels of other
images, in several ways. Every run is a process of its own, begun by a fork after the imports. What is finished stays:
repeat the command to go on.

    python docs/evidence/studies/photographs/photographs.py DATA lite0.safetensors output/photographs
    python docs/evidence/studies/photographs/photographs.py DATA lite0.safetensors output/photographs --report
"""

import argparse
import json
import os
import random
import statistics
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[4]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "evidence" / "studies")]

from forked import ADAPTCONF, COMMON, PROBE, draw_dots, regress, train  # noqa: E402

from benchmarks.recipe import WEAK, WHOLE, difference, divide, right  # noqa: E402
from w2s_plugins.labels.store import LabelReader  # noqa: E402
from w2s_plugins.monitor import format_table  # noqa: E402

# by set: its folder, images with labels and without, pixels, flags
SETS = {
    "CIFAR-10": ("cifar10", 1000, 2000, 64, "--val-slice 0:2000"),
    "groceries": ("grocery", 800, 1840, 96, ""),
    "traffic signs": ("gtsrb", 1500, 2000, 64, "--hflip 0 --val-slice 0:2000"),
    "paintings": ("paintings", 300, 1000, 96, ""),
    "Fashion-MNIST": ("fashion", 700, 4000, 64, "--val-slice 0:2000"),
}
# flags of the students
STUDENTS = {
    "the recipe": "--config weak-labels --channels-last",
    "the recipe, 8 epochs": "--config weak-labels --channels-last --epochs 8",
    "the recipe, whole student": "--config weak-labels --channels-last --tune all --lr 0.001 --epochs 12",
    "balanced_elr in the recipe": "--config weak-labels --channels-last --loss balanced_elr",
    "AdaptConf, zeros": f"{ADAPTCONF} --head-init-scale 0 {WHOLE}",
    **{f"probe, {loss}": f"{PROBE} {loss}" for loss in ("elr", "balanced_elr", "kd", "adaptconf")},
    "with labels": "--stages weak-labels-plus-few-true --channels-last",
}
# of the stages of the last one, three have a row
ROWS = [
    "weak",
    "ceiling",
    *(row for row in STUDENTS if row != "with labels"),
    "logistic",
    "with labels/taught",
    "with labels/direct",
    "with labels/student",
]
# rows of the figure, their names and markers
SHOWN = {
    "weak": ("teacher", "k|"),
    "the recipe": ("recipe", "C0o"),
    "AdaptConf, zeros": ("AdaptConf, whole", "C1^"),
    "probe, elr": ("probe, elr", "C2s"),
    "logistic": ("logistic", "C3x"),
    "ceiling": ("ceiling", "C7|"),
}
PICTURES_OF_A_SIGN = 30


def main(argv: Sequence[str] | None = None) -> None:
    """Do what is asked for, or print the table and draw the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the sets")
    parser.add_argument("weights", type=Path, help="of tf_efficientnet_lite0")
    parser.add_argument("output", type=Path)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument(
        "--what",
        nargs="+",
        default=[*STUDENTS, "ceiling", "logistic"],
        help="rows, or how they begin",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--figure", type=Path, help="write the figure to this file")
    args = parser.parse_args(argv)
    args.data, args.weights, args.output = (
        p.resolve() for p in (args.data, args.weights, args.output)
    )
    if args.report:
        print(format_table(list(make_rows(args)), ["student", *args.sets, "CPU s"]))
    if args.figure:
        values = {
            shown: {
                name: [one.mean() for one in answers(args, name, row).values()]
                for name in args.sets
            }
            for row, (shown, _) in SHOWN.items()
        }
        draw_dots(values, dict(SHOWN.values()), args.figure)
    if args.report or args.figure:
        return
    os.chdir(ROOT)
    torch.set_num_threads(1)
    for seed in args.seeds:
        for name in args.sets:
            run_all(args, name, seed)


def run_all(
    args: argparse.Namespace,
    name: str,
    seed: int,
    sets: Mapping[str, tuple[str, int, int, int, str]] = SETS,
    students: Mapping[str, str] = STUDENTS,
) -> None:
    """Divide the images of a set, train the teacher, and then all students that are asked for."""
    data, labelled, photos, pixels, more = sets[name]
    folder = args.output / data / f"seed{seed}"
    if not (folder / "test.tar").exists():
        split = argparse.Namespace(
            train=args.data / data / "train.tar",
            validation=args.data / data / "validation.tar",
            labelled=labelled,
            photos=photos,
        )
        (divide_signs if data == "gtsrb" else divide)(split, seed, folder)

    # the teacher and its students are tested on the same images
    common = f"{COMMON} --data-dir {folder} --val-split test.tar --class-map {folder}/classes.txt --seed {seed} {more}"
    train(folder / "weak", f"{WEAK} {common}")
    student = f"--model tf_efficientnet_lite0 --finetune {args.weights} --img-size {pixels}"
    taught = (
        f"--unlabeled {folder}/photos.tar --train-split labelled.tar --teacher {folder}/weak "
        f"--target-cache {folder}/cache"
    )
    for row, flags in students.items():
        if row.startswith(tuple(args.what)):
            train(folder / file_name(row), f"{taught} {student} {common} {flags}")
    if "ceiling" in args.what:
        train(
            folder / "ceiling",
            f"--train-split rest.tar {student} {common} --config weak-labels-ceiling "
            "--channels-last",
        )
    if "logistic" in args.what:
        logistic(folder)


def divide_signs(split: argparse.Namespace, seed: int, folder: Path) -> None:
    """Do as `divide` does, but keep all pictures of one sign together."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(split.train) as source:
        names = sorted(member.name for member in source if member.isfile())
        signs: dict[tuple[str, int], list[str]] = {}
        for name in names:
            signs.setdefault(
                (Path(name).parent.name, int(Path(name).stem) // PICTURES_OF_A_SIGN), []
            ).append(name)
        order = sorted(signs)
        random.Random(seed).shuffle(order)
        names = [name for sign in order for name in signs[sign]]
        third = len(names) // 3
        labelled = random.Random(seed).sample(names[:third], split.labelled)
        photos = random.Random(seed).sample(names[third:], split.photos)
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
                    member = tarfile.TarInfo(new_name)
                    member.size = source.getmember(name).size
                    target.addfile(member, source.extractfile(name))
    (folder / "classes.txt").write_text(
        "".join(f"{kind}\n" for kind in sorted({n.split("/")[0] for n in names}))
    )
    (folder / "test.tar").symlink_to(split.validation.resolve())


def logistic(folder: Path) -> None:
    """Fit scikit-learn's logistic regression to the features that a probe has stored, on the teacher's classes.

    The strength of its penalty is chosen by five folds.
    """
    place = folder / "logistic"
    if (place / "seconds.json").exists():
        return
    place.mkdir(exist_ok=True)
    before = time.process_time()
    with tarfile.open(folder / "photos.tar") as source:
        photos = sorted(Path(name).stem for name in source.getnames())
    stored: dict[str, dict[str, np.ndarray]] = {}
    for file in (folder / "cache").glob("*/keys.json"):
        names = json.loads(file.read_text())
        values = LabelReader(file.parent)(torch.arange(len(names)), torch.device("cpu")).numpy()
        of_photos = sorted(Path(name).stem for name in names) == photos and "/" not in names[0]
        kind = ("photos" if of_photos else "test") + (
            " features" if values.shape[1] == 1280 else " teacher"
        )
        stored[kind] = dict(zip(names, values))
    classes = (folder / "classes.txt").read_text().split()
    names, test = list(stored["photos features"]), list(stored["test features"])
    regress(
        place,
        before,
        np.stack([stored["photos features"][name] for name in names]),
        [stored["photos teacher"][name].argmax() for name in names],
        5,
        np.stack([stored["test features"][name] for name in test]),
        [classes.index(name.split("/")[0]) for name in test],
    )


# ---------------------------------------------------------------- the table


def make_rows(args: argparse.Namespace) -> Iterator[list[str]]:
    """Yield the rows: means over the seeds that are finished, and the recipe above each row, with its interval."""
    for row in ROWS:
        cells, seconds = [], []
        for name in args.sets:
            found = answers(args, name, row)
            seconds += [
                json.loads((run_of(args, name, row, seed) / "seconds.json").read_text())
                for seed in found
            ]
            means = [one.mean() for one in found.values()]
            cell = f"{statistics.mean(means):.1f} [{len(means)}]" if means else ""
            # the last row is compared with the one before it
            first = answers(args, name, row if row.endswith("/student") else "the recipe")
            second = (
                answers(args, name, "with labels/direct") if row.endswith("/student") else found
            )
            both = sorted(first.keys() & second.keys())
            if row != "the recipe" and both:
                cell += f" ({difference(np.stack([first[seed] - second[seed] for seed in both]))})"
            cells.append(cell)
        yield [
            "teacher" if row == "weak" else row,
            *cells,
            f"{statistics.median(seconds):.0f}" if seconds else "",
        ]


def answers(args: argparse.Namespace, name: str, row: str) -> dict[int, np.ndarray]:
    """Return of each seed that is finished which test images are right, 0 or 100."""
    return {
        seed: right(args.output / SETS[name][0] / f"seed{seed}" / file_name(row))
        for seed in args.seeds
        if (run_of(args, name, row, seed) / "seconds.json").exists()
    }


def run_of(args: argparse.Namespace, name: str, row: str, seed: int) -> Path:
    """Return the folder of the run that a row is of."""
    return args.output / SETS[name][0] / f"seed{seed}" / file_name(row.split("/")[0])


def file_name(row: str) -> str:
    """Return the folder of a row."""
    return row.replace("the ", "").replace(", ", "-").replace(" ", "-")


if __name__ == "__main__":
    main()
