"""Several labels an image: the runs of docs/several-labels.md.

    python docs/evidence/studies/several_labels.py DATA lite0.safetensors output/several rows.csv --seeds 0 1 2 3 4

`DATA` has `grocery`, as sets.py makes it. Two sets are made of its photographs, which are of 44 coarse classes:

    grids     two to four photographs in the cells of one image, 48 px each, on grey; its labels are their classes.
              No photograph is in two parts, and none is twice in a grid.
    kinds     one photograph; its labels are the coarse class and, if that has several kinds, the kind: apple and
              pink-lady.

A small network, the teacher, learns from a few labelled images and says of others how likely each class is. The
students learn from that. Those whose names begin with "single" are told one true label of each image instead, and
nothing of the other classes; those that begin with "whole" see whole images. What is finished stays.
"""

import csv
import io
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "evidence" / "studies")]

from forked import COMMON, add_rows, parser_of_study, row_of, train  # noqa: E402
from nine_sets import LITE0  # noqa: E402
from sets import read, write  # noqa: E402

from w2s_plugins.files import read_plain  # noqa: E402

CELL, GREY = 48, (127, 127, 127)
# images with labels, without, and for the test
COUNTS = {"grids": (400, 800, 600), "kinds": (700, 1500, 1000)}
SEVERAL_PROBE = "--linear-probe --opt adamw --lr 0.003 --epochs 100 --loss"
WEAK, SINGLE = "teacher", "labels:{folder}/single.csv?unlisted=unknown"
# by student: who teaches it (truth: labelled images, all: those without labels, by their true ones), and its flags
STUDENTS = {
    "teacher": (
        "truth",
        "--model w2s_cnn5 --img-size 48 --no-aug --epochs 60 --opt adamw --lr 0.003 --batch-size 32",
    ),
    "direct": ("truth", f"{LITE0} --config weak-labels-ceiling"),
    "ceiling": ("all", f"{LITE0} --config weak-labels-ceiling"),
    "weak, recipe": (WEAK, f"{LITE0} --config weak-labels"),
    # the recipe but for what the name says
    "weak, adaptconf": (WEAK, f"{LITE0} --config weak-labels --loss adaptconf"),
    "weak, 60 epochs": (WEAK, f"{LITE0} --config weak-labels --epochs 60"),
    "weak, 0.002": (WEAK, f"{LITE0} --config weak-labels --lr 0.002"),
    "weak, all": (WEAK, f"{LITE0} --config weak-labels --tune all"),
    "weak, all, 0.002": (WEAK, f"{LITE0} --config weak-labels --tune all --lr 0.002"),
    **{
        student: (WEAK, f"{LITE0} --config weak-labels --no-aug --loss {how}")
        for student, how in {
            "whole, 4 epochs": "bce --epochs 4 --lr 0.0006",
            "whole, elr, 4 epochs": "elr --epochs 4 --lr 0.0006",
            "whole, 4 epochs, 0.002": "bce --epochs 4 --lr 0.002",
            "whole, 12 epochs, 0.002": "bce --epochs 12 --lr 0.002",
            "whole, 0.002": "bce --epochs 30 --lr 0.002",
            "whole, asl": "asl --epochs 12 --lr 0.002",
            "whole, twoway": "twoway --epochs 12 --lr 0.002",
            "whole, adaptconf": "adaptconf --epochs 12 --lr 0.002",
        }.items()
    },
    **{
        f"probe, {loss}": (WEAK, f"{LITE0} {SEVERAL_PROBE} {loss}")
        for loss in ("bce", "kd", "adaptconf", "elr", "poly", "zlpr", "asl", "twoway")
    },
    **{
        f"single, probe, {loss}": (SINGLE, f"{LITE0} {SEVERAL_PROBE} {loss}")
        for loss in ("an", "wan", "ll_r", "ll_ct", "elr")
    },
    **{
        f"single, {loss}": (
            SINGLE,
            f"{LITE0} --config weak-labels --no-aug --loss {loss} --epochs 12 --lr 0.0006",
        )
        for loss in ("an", "wan")
    },
}
FIGURES = ["map", "micro_f1", "macro_f1"]
COLUMNS = ["set", "seed", "student", "flags", *FIGURES, "seconds", "cpu", "commit"]


def kinds_of(name: str) -> list[str]:
    """Return the labels of a photograph by its name: the coarse class, and the kind where it is called otherwise."""
    parts = Path(name).stem.split("_")
    coarse, kind = parts[2], parts[-2]
    return [coarse] if kind == coarse else [coarse, kind]


def one_by_one(images: dict[str, bytes], count: int, rng: random.Random) -> Iterator:
    """Yield photographs with their labels."""
    for name in rng.sample(sorted(images), count):
        yield images[name], kinds_of(name)


def in_grids(images: dict[str, bytes], count: int, rng: random.Random) -> Iterator:
    """Yield images of several photographs with their labels, as JPEG files."""
    names = sorted(images)
    for _ in range(count):
        chosen = rng.sample(names, rng.randint(2, 4))
        canvas = Image.new("RGB", (2 * CELL, 2 * CELL), GREY)
        for cell, name in zip(rng.sample(range(4), len(chosen)), chosen):
            photograph = Image.open(io.BytesIO(images[name])).convert("RGB")
            small = photograph.resize((CELL, CELL), Image.Resampling.BICUBIC)
            canvas.paste(small, (CELL * (cell % 2), CELL * (cell // 2)))
        file = io.BytesIO()
        canvas.save(file, "JPEG", quality=95)
        yield file.getvalue(), sorted({kinds_of(name)[0] for name in chosen})


MAKERS = {"grids": in_grids, "kinds": one_by_one}


def make(data: Path, name: str, seed: int, folder: Path) -> None:
    """Write the tar files and tables of a set, if that is not done: labelled, photos (and a label of each), test."""
    if (folder / "single.csv").exists():
        return
    trained, tested = (read(data / "grocery" / f"{part}.tar") for part in ("train", "validation"))
    rng = random.Random(seed)
    order = sorted(trained)
    rng.shuffle(order)
    third = len(order) // 3
    pools = [
        {name: trained[name] for name in order[:third]},
        {name: trained[name] for name in order[third:]},
        tested,
    ]
    test_rng = random.Random(7)  # the same test images for every seed
    for part, pool, count in zip(("labelled", "photos", "test"), pools, COUNTS[name]):
        made = list(MAKERS[name](pool, count, test_rng if part == "test" else rng))
        files = [f"{number:05}.jpg" for number in range(len(made))]
        write(folder / f"{part}.tar", ((file, image) for file, (image, _) in zip(files, made)))
        write_labels(folder / f"{part}.csv", files, [labels for _, labels in made])
        if part == "photos":
            write_labels(folder / "single.csv", files, [[rng.choice(said)] for _, said in made])
    names = {label for name in (*trained, *tested) for label in kinds_of(name)}
    if name == "grids":
        names = {kinds_of(name)[0] for name in (*trained, *tested)}
    (folder / "classes.txt").write_text("".join(f"{label}\n" for label in sorted(names)))


def write_labels(file: Path, names: list[str], labels: list[list[str]]) -> None:
    """Write a table with a cell of labels for each image."""
    with file.open("w", newline="") as table:
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["filename", "labels"])
        writer.writerows((name, ",".join(of_image)) for name, of_image in zip(names, labels))


def main() -> None:
    """Train, and add the rows of what is finished."""
    parser = parser_of_study(__doc__, MAKERS, list(MAKERS))
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=list(STUDENTS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    for seed in args.seeds:
        for name in args.sets:
            folder = args.output.resolve() / name / f"seed{seed}"
            make(args.data, name, seed, folder)
            common = (
                f"{COMMON} --task multilabel --data-dir {folder} --class-names {folder}/classes.txt --seed {seed} "
                f"--val-split test.tar --val-labels {folder}/test.csv --target-cache {folder}/cache"
            )
            rows = []
            for student in [student for student in STUDENTS if student in args.students]:
                teacher, flags = STUDENTS[student]
                part = "photos" if teacher == "all" else "labelled"
                whom = f"--train-split {part}.tar --train-labels {folder}/{part}.csv"
                if teacher not in ("truth", "all"):
                    who = folder / "teacher" if teacher == WEAK else teacher.format(folder=folder)
                    whom = f"--unlabeled {folder}/photos.tar --teacher {who}"
                place = folder / student.replace(", ", "-")
                weights = args.weights.resolve()
                train(place, f"{common} {whom} {flags.format(weights=weights)}")
                measured = read_plain(place / "result.json")["metrics"]
                figures = {figure: f"{measured[figure]:.2f}" for figure in FIGURES}
                rows.append(row_of(args, name, seed, student, flags, place, figures))
            add_rows(args.rows, rows, COLUMNS)


if __name__ == "__main__":
    main()
