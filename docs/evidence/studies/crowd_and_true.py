"""A crowd's labels beside true ones: rows of docs/evidence/few-true-labels.md.

    python docs/evidence/studies/crowd_and_true.py DATA/cifar10/crowd.csv lite0.safetensors output/nine_sets rows.csv

The crowd are the people of CIFAR-10N, three for each image; the table has a row an answer. `direct` and `part` are those of
nine_sets.py, which has to run before on CIFAR-10. The students learn from the same images as there:

    crowd             the recipe, on the labels of the majority alone.
    crowd and direct  the last stage of weak-labels-plus-few-true, on the labels of the majority.
    three and direct  the same, but each of three columns of answers is a teacher with a matrix of its own.
"""

import sys
from pathlib import Path

import pandas
import torch

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "evidence" / "studies")]

from forked import add_rows, parser_of_study, row_of  # noqa: E402
from nine_sets import COLUMNS, LITE0, folder_name, train_students  # noqa: E402
from nine_sets import STUDENTS as NINE_SETS  # noqa: E402
from sets import read  # noqa: E402

PEOPLE = 3
COLUMNS_OF_PEOPLE = ",".join(f"labels:{{folder}}/person{number}.csv" for number in range(PEOPLE))
STUDENTS = {
    "crowd": ("labels:{folder}/crowd.csv", f"{LITE0} --config weak-labels"),
    "crowd and direct": ("labels:{folder}/crowd.csv and direct", f"{LITE0} --config {{student}}"),
    "three and direct": (f"{COLUMNS_OF_PEOPLE} and direct", f"{LITE0} --config {{student}}"),
}


def write_tables(crowd: Path, folder: Path) -> float:
    """Write the answers about the images of a folder by their names there; return how often the majority is right."""
    names = dict(zip(read(folder / "rest.tar"), read(folder / "photos.tar"), strict=True))
    answers = pandas.read_csv(crowd, dtype=str)
    answers = answers[answers["filename"].isin(names)]
    truth = answers["filename"].str.split("/").str[0]
    counts = answers.assign(right=answers["label"] == truth).groupby("filename")["right"].sum()
    answers["filename"] = answers["filename"].map(names)
    answers.to_csv(folder / "crowd.csv", index=False)
    order = answers.groupby("filename").cumcount()
    for number in range(PEOPLE):
        own = answers[order == number][["filename", "label"]]
        own.to_csv(folder / f"person{number}.csv", index=False)
    return 100 * float((counts >= 2).mean())


def main() -> None:
    """Train, and add the rows."""
    parser = parser_of_study(__doc__, ["CIFAR-10"], ["CIFAR-10"])
    parser.add_argument("crowd", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("runs", type=Path, help="output folder of nine_sets.py")
    parser.add_argument("rows", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for seed in args.seeds:
        folder = args.runs.resolve() / "cifar10" / f"seed{seed}"
        print(f"seed {seed}: two of three are right on {write_tables(args.crowd, folder):.1f} %")
        train_students(folder, STUDENTS, args.weights.resolve(), seed, "--val-slice 0:1000")
        finished = {"direct": NINE_SETS["direct"]} | STUDENTS
        rows = [
            row_of(args, "CIFAR-10", seed, student, flags, folder / folder_name(student))
            for student, (_, flags) in finished.items()
        ]
        counts = dict(labelled=1000, unlabelled=2000)
        add_rows(args.rows, [row | counts for row in rows], COLUMNS)


if __name__ == "__main__":
    main()
