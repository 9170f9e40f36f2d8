"""What `audit_several.py` reads: what the students of photographs.py say of the images that they have learned from.

    python docs/evidence/studies/audit_students.py output/photographs/grocery/seed0 groceries.npz

The folder has the runs of one set and seed. The file gets ``truth`` (N,), ``labels`` (N,) of the teacher, ``says`` and
``confidence`` (N, K), ``probabilities`` (N, K, C), and the ``names`` of students, ``keys`` and ``classes``.
"""

import csv
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np

STUDENTS = (
    "recipe",
    "balanced_elr-in-recipe",
    "recipe-whole-student",
    "AdaptConf-zeros",
    "probe-elr",
    "probe-balanced_elr",
    "probe-kd",
    "probe-adaptconf",
)
PREDICT = sys.executable, "-m", "w2s_plugins.predictions"


def names_in(path: Path) -> list[str]:
    """Return the files of a tar file in order."""
    with tarfile.open(path) as file:
        return [member.name for member in file if member.isfile()]


def predict(run: Path, photos: Path, classes: list[str]) -> dict[str, list[float]]:
    """Return the probabilities (C,) of each image, by its name."""
    table = run / "photos.csv"
    if not table.exists():
        subprocess.run([*PREDICT, run, photos, "--all", "--output", table], check=True)
    with table.open(newline="") as file:
        return {
            row["filename"]: [float(row[c] or 0) for c in classes] for row in csv.DictReader(file)
        }


def main(folder: Path, output: Path) -> None:
    """Write the file, and print how good the students are and how often they agree."""
    classes = (folder / "classes.txt").read_text().split()
    photos = folder / "photos.tar"
    true = dict(zip(names_in(photos), names_in(folder / "rest.tar")))
    keys = sorted(true)
    truth = np.array([classes.index(Path(true[key]).parent.name) for key in keys])
    tables = [predict(folder / name, photos, classes) for name in ("weak", *STUDENTS)]
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
        names=STUDENTS,
        keys=keys,
        classes=classes,
    )
    print(
        f"{len(keys)} images, labels {100 * (labels == truth).mean():.1f}, all students agree on",
        end=" ",
    )
    print(f"{100 * (says == says[:, :1]).all(axis=1).mean():.1f} %")
    for name, own in zip(STUDENTS, says.T):
        agree = " ".join(f"{share:.0f}" for share in 100 * (says == own[:, None]).mean(axis=0))
        print(f"| {name} | {100 * (own == truth).mean():.1f} | {agree} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
