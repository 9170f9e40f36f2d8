"""Ways to train all weights of a transformer, beside the recipe: rows of docs/evidence/transformer.md.

    python docs/evidence/studies/transformer.py DATA dinov2_s14.safetensors output/transformer rows.csv --seeds 0 1

`DATA` is what sets.py makes; the weights are those of timm's vit_small_patch14_dinov2. A small network, the teacher,
labels 800 images. All students learn from its answers, in bfloat16. Whose names begin with "all":

    all, field       as transformers are fine-tuned: the head at 0.002, each block below it at 0.65 of the next one's
                     rate, an epoch of warm-up, gradients clipped at 3, stochastic depth of 0.1.
    all, LP-FT       the same, from the head of a linear probe (https://arxiv.org/abs/2202.10054).
    all, Auto-RGN    from that head, and each tensor has its own rate: 0.002 for the one whose gradient is the largest
                     beside its weights, those of the others in proportion (https://arxiv.org/abs/2210.11466).

If they are asked for, the others are stages: those of weak-labels-plus-few-true (nine_sets.py), and candidates of
weak-labels-candidates, which learn half of the weak labels. What is finished stays.
"""

import io
import json
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import adjusted_mutual_info_score

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "evidence" / "studies")]

from forked import add_rows, parser_of_study, predict, row_of  # noqa: E402
from nine_sets import (  # noqa: E402
    STAGES,
    all_weights,
    cluster,
    figures_of_half,
    folder_name,
    stages_of,
    train_students,
)
from rates import rates_by_tensor  # noqa: E402
from sets import divide_by_thing, read  # noqa: E402

from benchmarks.recipe import WEAK, right  # noqa: E402

# by set: its folder, images with labels and without
SETS = {"CIFAR-10": ("cifar10", 1000, 800), "groceries": ("grocery", 800, 800)}
SETS |= {f"{name}, 100 labels": (data, 100, 300) for name, (data, *_) in SETS.items()}
PIXELS = 98
VIT = f"--model vit_small_patch14_dinov2 --finetune {{weights}} --img-size {PIXELS} --amp --amp-dtype bfloat16"
STUDENTS = {
    "teacher": ("truth", WEAK),
    "probe": (
        "teacher",
        f"{VIT} --linear-probe --loss elr --opt adamw --lr 0.01 --batch-size 64 --epochs 20",
    ),
    "recipe": ("teacher", f"{VIT} --config weak-labels"),
    **all_weights(VIT, "probe"),
    **stages_of(VIT, "--tune all --lr 0.002 --layer-decay 0.65"),
}
CANDIDATES = {
    f"candidates, {stage}": ("teacher", f"{VIT} --config {{{stage}}} --select best")
    for stage in STAGES["weak-labels-candidates"]
}
STUDENTS |= CANDIDATES
COLUMNS = [
    *("set", "seed", "student", "flags", "labels", "teacher", "top1", "cpu", "commit"),
    *("seconds", "held_out", "class_ami"),
]


def class_ami(place: Path, photos: Path, classes: list[str]) -> float:
    """Return what clusters of a run's features tell about its answers (docs/evidence/nine-sets.md has the source)."""
    found = place / "class_ami.json"
    if not found.exists():
        images = [Image.open(io.BytesIO(content)) for content in read(photos).values()]
        says = [int(np.argmax(answer)) for answer in predict(place, photos, classes).values()]
        clusters = cluster(place, images, len(classes))
        found.write_text(json.dumps(adjusted_mutual_info_score(clusters, says)))
    return json.loads(found.read_text())


def main() -> None:
    """Train, and write the rows of what is finished."""
    parser = parser_of_study(__doc__, SETS, ["CIFAR-10", "groceries"])
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=list(STUDENTS)[:6])
    args = parser.parse_args()
    args.data, args.weights, args.output = (
        p.resolve() for p in (args.data, args.weights, args.output)
    )
    torch.set_num_threads(1)
    students = {student: STUDENTS[student] for student in STUDENTS if student in args.students}
    for seed in args.seeds:
        for name in args.sets:
            data, labelled, photos = SETS[name]
            folder = args.output / folder_name(name) / f"seed{seed}"
            divide_by_thing(args.data / data, labelled, photos, seed, folder)
            prepare = {"all, Auto-RGN": partial(rates_by_tensor, folder, PIXELS)}
            train_students(folder, students, args.weights, seed, "--val-slice 0:1000", prepare)
    # all that is finished, by any command
    rows = []
    for name, (_, labelled, _) in SETS.items():
        for folder in sorted((args.output / folder_name(name)).glob("seed*")):
            for student, (teacher, flags) in STUDENTS.items():
                place = folder / folder_name(student)
                if not (place / "seconds.json").exists():
                    continue
                seed, figures = int(folder.name.removeprefix("seed")), figures_of_half(place)
                row = row_of(args, name, seed, student, flags, place, figures)
                if student in CANDIDATES:
                    classes = (folder / "classes.txt").read_text().split()
                    row["class_ami"] = f"{class_ami(place, folder / 'photos.tar', classes):.3f}"
                row |= dict(labels=f"{labelled} true", teacher="")
                if teacher != "truth":
                    weak = f"{right(folder / 'teacher').mean():.1f}"
                    row |= dict(labels="of the teacher", teacher=weak)
                rows.append(row)
    add_rows(args.rows, rows, COLUMNS)


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
