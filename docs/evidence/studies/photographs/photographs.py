"""The runs of audit_students.py: a teacher that has learned from few labelled images, and students of its labels.

A folder has train.tar and validation.tar of CLASS/IMAGE for each set. For each seed a small network, the teacher,
learns from a few labelled images, as in benchmarks.recipe. Then the same student learns from its labels of other
images, in several ways. Every run is a process of its own, begun by a fork after the imports. What is finished stays.
"""

import argparse
import random
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[4]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "evidence" / "studies")]

from forked import ADAPTCONF, COMMON, PROBE, train  # noqa: E402

from benchmarks.recipe import WEAK, WHOLE, divide  # noqa: E402

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
PICTURES_OF_A_SIGN = 30


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


def file_name(row: str) -> str:
    """Return the folder of a row."""
    return row.replace("the ", "").replace(", ", "-").replace(" ", "-")
