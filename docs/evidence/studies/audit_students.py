"""What `audit_several.py` reads: what eight students say of the images that they have learned from.

    python docs/evidence/studies/audit_students.py DATA lite0.safetensors output/audit_students

`DATA` and the weights are those of photographs.py, and so are the runs, with less of everything: 64 px, at most 1,840
images, and the whole student for 5 epochs. What is finished stays: repeat the command to go on. Each set gets a file
SET.npz in the output folder, with ``truth`` (N,), ``labels`` (N,) of the teacher, ``says`` and ``confidence`` (N, K),
``probabilities`` (N, K, C), and the ``names`` of students, ``keys`` and ``classes``.
"""

import argparse
import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent / "photographs"))

from forked import predict
from photographs import ROOT, SETS, STUDENTS, file_name, run_all

# images without labels
PHOTOS = {
    "CIFAR-10": 1200,
    "groceries": 1840,
    "traffic signs": 1200,
    "paintings": 1000,
    "Fashion-MNIST": 1200,
}
PIXELS = 64
NO_TEST = "--val-slice 0:250"  # of the test images, which no audit sees
STUDENTS = {name: flags for name, flags in STUDENTS.items() if "8 epochs" not in name}
STUDENTS["the recipe, whole student"] = STUDENTS["the recipe, whole student"].replace("12", "5")
del STUDENTS["with labels"]


def names_in(path: Path) -> list[str]:
    """Return the files of a tar file in order."""
    with tarfile.open(path) as file:
        return [member.name for member in file if member.isfile()]


def store(folder: Path, output: Path) -> None:
    """Write the file of a set, and print how good the students are and how often they agree."""
    classes = (folder / "classes.txt").read_text().split()
    photos = folder / "photos.tar"
    true = dict(zip(names_in(photos), names_in(folder / "rest.tar")))
    keys = sorted(true)
    truth = np.array([classes.index(Path(true[key]).parent.name) for key in keys])
    runs = [folder / name for name in ("weak", *map(file_name, STUDENTS))]
    tables = [predict(run, photos, classes) for run in runs]
    teacher, *students = (np.array([one[key] for key in keys], dtype=np.float32) for one in tables)
    probabilities = np.stack(students, axis=1)
    labels, says = teacher.argmax(axis=1), probabilities.argmax(axis=2)
    np.savez_compressed(
        output,
        truth=truth,
        labels=labels,
        says=says,
        confidence=probabilities.max(axis=2),
        probabilities=probabilities,
        names=list(STUDENTS),
        keys=keys,
        classes=classes,
    )
    print(f"{output.stem}: {len(keys)} images, labels {100 * (labels == truth).mean():.1f}")
    print(f"all students agree on {100 * (says == says[:, :1]).all(axis=1).mean():.1f} %")
    for name, own in zip(STUDENTS, says.T):
        agree = " ".join(f"{share:.0f}" for share in 100 * (says == own[:, None]).mean(axis=0))
        print(f"| {name} | {100 * (own == truth).mean():.1f} | {agree} |")


def main() -> None:
    """Train the students of each set, and write what they say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the sets")
    parser.add_argument("weights", type=Path, help="of tf_efficientnet_lite0")
    parser.add_argument("output", type=Path)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    args = parser.parse_args()
    args.data, args.weights, args.output = (
        path.resolve() for path in (args.data, args.weights, args.output)
    )
    args.what = list(STUDENTS)
    os.chdir(ROOT)
    torch.set_num_threads(1)
    for name in args.sets:
        data, labelled, _, _, more = SETS[name]
        flags = f"{more.partition('--val-slice')[0]} {NO_TEST}"
        own = {name: (data, labelled, PHOTOS[name], PIXELS, flags)}
        run_all(args, name, 0, own, STUDENTS)
        store(args.output / data / "seed0", args.output / f"{name}.npz")


if __name__ == "__main__":
    main()
