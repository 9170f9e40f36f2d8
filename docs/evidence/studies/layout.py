"""Do the memory layout and bfloat16 change what students learn? The runs of docs/evidence/decoder.md.

    python docs/evidence/studies/layout.py DATA lite0.safetensors output/layout layout.csv --seeds 0 1 2

`DATA` is what sets.py makes. For each set and seed a small network learns from labels, and two students learn from what
it says of other images, by the recipe: one in the layout that is chosen, channels last, and its twin in timm's. A row has
the accuracy of a student, and the share of the test images of which it predicts the class that its twin predicts. Three
more rows are of the first student, asked of a thousand test images in its layout, in timm's, and in bfloat16; there the
share is of its predictions in its layout. What is finished stays.
"""

import io
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "evidence" / "studies")]

from forked import add_rows, parser_of_study  # noqa: E402
from nine_sets import ALL_SETS, STUDENTS, folder_name, train_students  # noqa: E402
from sets import divide_by_thing, read  # noqa: E402

from w2s_plugins.api import load_student  # noqa: E402

SETS = ["CIFAR-10", "groceries", "traffic signs", "cartoons", "clothes"]
RECIPE = "last third"
BATCH = 64
ASKED = 1000  # test images of which the first student is asked in three ways
# by layout: flags of the training
LAYOUTS = {"channels last": "--channels-last", "contiguous": "--no-channels-last"}
COLUMNS = ["set", "seed", "layout", "asked", "top1", "agreement", "seconds", "cpu", "commit"]


@torch.no_grad()
def ask(run: Path, files: list[bytes], layout: torch.memory_format, half: bool) -> pandas.Series:
    """Return the classes that a student predicts of image files, in a layout, and in bfloat16 if half."""
    student = load_student(run).to(memory_format=layout)
    images = [Image.open(io.BytesIO(content)).convert("RGB") for content in files]
    classes: list[int] = []
    for start in range(0, len(images), BATCH):
        views = torch.stack([student.transform(image) for image in images[start : start + BATCH]])
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = student(views.to(memory_format=layout))
        classes += logits.argmax(1).tolist()
    return pandas.Series(classes)


def rows_of_seed(folder: Path) -> Iterator[dict[str, object]]:
    """Yield the figures of both students, and of the first one asked in three ways, on the same test images."""
    runs = {layout: folder / folder_name(f"{RECIPE}, {layout}") for layout in LAYOUTS}
    twin = pandas.read_csv(runs["contiguous"] / "predictions_last.csv")
    for layout, run in runs.items():
        table = pandas.read_csv(run / "predictions_last.csv")
        yield dict(
            layout=layout,
            asked="as trained",
            top1=f"{100 * (table['student'] == table['target']).mean():.2f}",
            agreement=f"{100 * (table['student'] == twin['student']).mean():.2f}",
            seconds=f"{float((run / 'seconds.json').read_text()):.0f}",
        )
    # the same code and images for all three, so that nothing but layout and precision differs
    images = read(folder / "test.tar")
    names = sorted(images)
    random.Random(0).shuffle(names)
    names = names[:ASKED]
    kinds = (folder / "classes.txt").read_text().split()
    target = pandas.Series([kinds.index(Path(name).parent.name) for name in names])
    files = [images[name] for name in names]
    run = runs["channels last"]
    first = ask(run, files, torch.channels_last, False)
    for asked, layout, half in (
        ("channels last", torch.channels_last, False),
        ("contiguous", torch.contiguous_format, False),
        ("bfloat16", torch.channels_last, True),
    ):
        classes = ask(run, files, layout, half)
        yield dict(
            layout="channels last",
            asked=asked,
            top1=f"{100 * (classes == target).mean():.2f}",
            agreement=f"{100 * (classes == first).mean():.2f}",
            seconds="",
        )


def main() -> None:
    """Train, and write the rows of what is finished."""
    parser = parser_of_study(__doc__, ALL_SETS, SETS)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("rows", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    teacher, flags = STUDENTS[RECIPE]
    students = {"teacher": STUDENTS["teacher"]}
    for layout, more in LAYOUTS.items():
        students[f"{RECIPE}, {layout}"] = (teacher, f"{flags} {more}")
    for seed in args.seeds:
        for name in args.sets:
            data, labelled, photos, more = ALL_SETS[name]
            folder = args.output.resolve() / data / f"seed{seed}"
            divide_by_thing(args.data / data, labelled, photos, seed, folder)
            train_students(folder, students, args.weights.resolve(), seed, more)
            rows = [
                dict(set=name, seed=seed, **row, cpu=args.cpu, commit=args.commit)
                for row in rows_of_seed(folder)
            ]
            add_rows(args.rows, rows, COLUMNS, by=("set", "seed", "layout", "asked"))


if __name__ == "__main__":
    main()
