"""The candidates without true labels, and the true labels alone, on nine sets: the runs of docs/evidence/nine-sets.md.

    python docs/evidence/studies/nine_sets.py DATA lite0.safetensors output/nine_sets --seeds 0 1
    python docs/evidence/studies/nine_sets.py DATA lite0.safetensors output/nine_sets --seeds 0 1 --rows nine_sets.csv
    python docs/evidence/studies/nine_sets.py DATA lite0.safetensors output/nine_sets --figure nine-sets.svg

`DATA` is what sets.py makes, and the weights are those of tf_efficientnet_lite0. For each set and seed a small network,
the teacher, learns from a few labelled images. The students learn from its labels of other images. What is finished
stays: repeat the command to go on. The second command adds the rows that the file has not yet. Where all candidates are
there, it also writes what they say of the images that they have learned from, and how their features cluster
(SET-SEED.npz in the output folder), which choose.py reads. The third one draws the figure from the rows that are beside
this file.
"""

import argparse
import csv
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
import yaml
from PIL import Image
from sklearn.cluster import KMeans

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "evidence" / "studies")]

from forked import (  # noqa: E402
    ADAPTCONF,
    COMMON,
    PROBE,
    add_rows,
    draw_dots,
    parser_of_study,
    predict,
    row_of,
    train,
)
from rates import rates_by_tensor  # noqa: E402
from sets import AFTERWARDS, SETS, divide_by_thing, read  # noqa: E402

from benchmarks.recipe import WEAK, WHOLE, right  # noqa: E402
from w2s_plugins.api import load_student  # noqa: E402
from w2s_plugins.files import recipe_path  # noqa: E402
from w2s_plugins.study.chain import choose_assign, right_of  # noqa: E402

PIXELS = 64
LITE0 = f"--model tf_efficientnet_lite0 --finetune {{weights}} --img-size {PIXELS}"


def stages_of(flags: str, whole: str) -> dict[str, tuple[str, str]]:
    """Return the students of weak-labels-plus-few-true, with the flags of a network, and those of all of its weights;
    see `write_stage`.

    The last two are what the stages train where `whole` is better than `part`.
    """
    return {
        "part": ("truth", f"{flags} --config {{part}} --select best"),
        "whole": ("truth", f"{flags} --config {{whole}} --select best"),
        "direct": ("truth", f"{flags} --config weak-labels-ceiling"),
        "both": ("teacher and direct", f"{flags} --config {{student}}"),
        "direct, all": ("truth", f"{flags} --config weak-labels-ceiling {whole}"),
        "both, all": ("teacher and direct, all", f"{flags} --config {{student}} {whole}"),
    }


def all_weights(flags: str, probe: str) -> dict[str, tuple[str, str]]:
    """Return students of which all weights are trained, as transformer.py explains, with the flags of a network.

    The last two begin with the head of a probe, the name of a student's folder.
    """
    flags += " --config weak-labels --tune all --epochs 5 --warmup-epochs 1 --clip-grad 3"
    flags += " --drop-path 0.1 --lr 0.002"
    from_probe = f"--finetune {{folder}}/{probe}/last.pth.tar --head-init-scale 1"
    return {
        "all, field": ("teacher", f"{flags} --layer-decay 0.65"),
        "all, LP-FT": ("teacher", f"{flags} --layer-decay 0.65 {from_probe}"),
        "all, Auto-RGN": ("teacher", f"{flags} {from_probe}"),
    }


# what a notebook does: the same network, learning rate and epochs, with cross-entropy on the weak labels as they are
PLAIN = f"{LITE0} --config weak-labels --no-refine-labels --loss"
ALL = "--tune all --lr 0.001 --epochs 6"

# by student: who teaches it, and its flags
STUDENTS = {
    "teacher": ("truth", WEAK),
    "probe, elr": ("teacher", f"{LITE0} {PROBE} elr"),
    "probe, balanced_elr": ("teacher", f"{LITE0} {PROBE} balanced_elr"),
    # the true shares of the classes, as far as the labelled images tell them, each class counted once more
    "probe, balanced_elr, shares": (
        "teacher",
        f"{LITE0} {PROBE} balanced_elr --loss-kwargs shares=[{{shares}}]",
    ),
    "probe, kd": ("teacher", f"{LITE0} {PROBE} kd"),
    "probe, adaptconf": ("teacher", f"{LITE0} {PROBE} adaptconf"),
    "last third": ("teacher", f"{LITE0} --config weak-labels"),
    "adapters": ("teacher", f"{LITE0} --config weak-labels --tune lora --lr 0.002"),
    "all": ("teacher", f"{LITE0} --config weak-labels {ALL}"),
    "cross-entropy": ("teacher", f"{PLAIN} hard"),
    "cross-entropy, random head": ("teacher", f"{PLAIN} hard --head-init-scale 1"),
    "cross-entropy, all": ("teacher", f"{PLAIN} hard {ALL}"),
    "cross-entropy, adapters": ("teacher", f"{PLAIN} hard --tune lora --lr 0.002"),
    "cross-entropy, probabilities": ("teacher", f"{PLAIN} kd --loss-kwargs temperature=1"),
    # the recipe without one of its parts
    "recipe, not refined": ("teacher", f"{LITE0} --config weak-labels --no-refine-labels"),
    "recipe, cross-entropy": (
        "teacher",
        f"{LITE0} --config weak-labels --loss kd --loss-kwargs temperature=1",
    ),
    "recipe, random head": ("teacher", f"{LITE0} --config weak-labels --head-init-scale 1"),
    **all_weights(LITE0, "probe-elr"),
    "AdaptConf": ("teacher", f"{LITE0} {ADAPTCONF} --head-init-scale 0 {WHOLE}"),
    **stages_of(LITE0, "--tune all --lr 0.001"),
    "both, mean": ("teacher and direct", f"{LITE0} --config {{student}} --teacher-assign mean"),
}
# of the figure: names and markers
SHOWN = {
    "teacher": ("teacher", "k|"),
    "AdaptConf": ("AdaptConf, whole", "C1^"),
    "probe, elr": ("probe, elr", "C2s"),
    "last third": ("the recipe", "C0o"),
    "direct": ("direct", "C3x"),
    "both": ("true and weak labels", "C4D"),
}
ALL_SETS = {**SETS, **AFTERWARDS}
CANDIDATES = ["probe, balanced_elr", "last third", "adapters", "all"]
# the same, which learn half of the weak labels, and are measured by the other half, once, at their end (COMMON)
STUDENTS |= {
    f"{name}, half": (STUDENTS[name][0], f"{STUDENTS[name][1]} --select best --select-split 0.5")
    for name in CANDIDATES
}
COLUMNS = [
    "set",
    "seed",
    "student",
    "flags",
    "labelled",
    "unlabelled",
    "top1",
    "seconds",
    "cpu",
    "commit",
]
# and on the half of the labels that some do not learn: the top-1, or how often they say what weak labels say
OF_HALVES = [*COLUMNS, "held_out"]


# whose figures others need, or which may be compared alone
STAGES = {
    "weak-labels-plus-few-true": ("part", "whole", "student"),
    "weak-labels-candidates": ("probe", "last", "adapters", "all"),
}


def write_stage(recipe: str, name: str, folder: Path) -> str:
    """Write a stage of a recipe, but for what names others, as a file for --config; return its path."""
    stages = yaml.safe_load(recipe_path(recipe).read_text())
    stage = next(stage for stage in stages if stage.get("name") == name)
    others = ("name", "unlabeled", "teacher", "assign_by", "tune_by", "val_interval")
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({flag: stage[flag] for flag in stage if flag not in others}))
    return str(file)


def folder_name(student: str) -> str:
    """Return the folder of a student."""
    return student.replace(", ", "-").replace(" ", "-")


def train_students(
    folder: Path,
    students: Mapping[str, tuple[str, str]],
    weights: Path,
    seed: int,
    more: str = "",
    prepare: Mapping[str, Callable[[], None]] = MappingProxyType({}),
) -> None:
    """Train whom a folder of a divided set has not trained yet.

    Args:
        folder: has the images, and gets a folder for each student.
        students: by name, who teaches it (truth, teacher, or others as --teacher has them, and direct), and its flags.
        weights: of the pretrained student.
        seed: of the runs.
        more: flags of every run.
        prepare: by student, what is called before its training.
    """
    common = f"{COMMON} --data-dir {folder} --val-split test.tar --class-map {folder}/classes.txt --seed {seed} {more}"
    classes = (folder / "classes.txt").read_text().split()
    counted = Counter(key.split("/")[0] for key in read(folder / "labelled.tar"))
    shares = ",".join(str(counted[kind] + 1) for kind in classes)
    stages = {
        stage: write_stage(recipe, stage, folder) for recipe in STAGES for stage in STAGES[recipe]
    }
    for student, (teacher, flags) in students.items():
        own = flags.format(weights=weights, shares=shares, folder=folder, **stages)
        from_whom = ""
        if teacher != "truth":
            weak, with_direct, tuned = teacher.partition(" and direct")
            names = str(folder / "teacher") if weak == "teacher" else weak.format(folder=folder)
            from_whom = f"--unlabeled {folder}/photos.tar --teacher {names}"
            if with_direct:
                judge = "whole" if tuned else "part"
                measured = json.loads((folder / judge / "result.json").read_text())
                from_whom += f",{folder / folder_name('direct' + tuned)}"
                from_whom += f" --teacher-assign {choose_assign(judge, measured)}"
        train(
            folder / folder_name(student),
            f"{from_whom} --target-cache {folder}/cache {common} --train-split labelled.tar {own}",
            prepare.get(student),
        )


def run(args: argparse.Namespace, name: str, seed: int) -> None:
    """Divide the images of a set, and train its students."""
    data, labelled, photos, more = ALL_SETS[name]
    folder = args.output / data / f"seed{seed}"
    divide_by_thing(args.data / data, labelled, photos, seed, folder)
    students = {student: STUDENTS[student] for student in STUDENTS if student in args.students}
    prepare = {"all, Auto-RGN": partial(rates_by_tensor, folder, PIXELS)}
    train_students(folder, students, args.weights, seed, more, prepare)


def figures_of_half(place: Path) -> dict[str, str] | None:
    """Return the top-1 of a finished run, and that on the labels that it holds out, or its agreement with weak ones; None
    if it holds out none.
    """
    record = json.loads((place / "result.json").read_text())
    # of an epoch that was selected, part and whole have no file of predictions of the last one
    if not record["held_out"]["student"]:
        return None
    return {
        "top1": f"{record['metrics']['top1']:.2f}",
        "held_out": f"{right_of(place.name, record):.2f}",
    }


@torch.no_grad()
def cluster(run: Path, images: list[Image.Image], count: int) -> np.ndarray:
    """Return the cluster (N,) of each image, by k-means of the features of a run's student."""
    student = load_student(run)
    parts = []
    for start in range(0, len(images), 250):
        views = [student.transform(image.convert("RGB")) for image in images[start : start + 250]]
        maps = student.forward_features(torch.stack(views))
        parts.append(student.forward_head(maps, pre_logits=True))
    found = KMeans(count, n_init=1, random_state=0).fit_predict(torch.cat(parts).numpy())
    return found.astype(np.int16)


def collect(args: argparse.Namespace, name: str, seed: int) -> Iterator[dict[str, object]]:
    """Yield the rows of a set and seed; of one where all candidates are there, write the file of what they say."""
    data, labelled, _, more = ALL_SETS[name]
    folder = args.output / data / f"seed{seed}"
    classes = (folder / "classes.txt").read_text().split()
    keys = list(read(folder / "photos.tar"))
    truth = [classes.index(Path(key).parent.name) for key in read(folder / "rest.tar")]
    finished = [
        student for student in STUDENTS if (folder / folder_name(student) / "seconds.json").exists()
    ]
    for student in finished:
        place = folder / folder_name(student)
        figures = figures_of_half(place)
        row = row_of(args, name, seed, student, f"{STUDENTS[student][1]} {more}", place, figures)
        yield dict(held_out="", labelled=labelled, unlabelled=len(keys)) | row
    asked = ["teacher", *CANDIDATES]
    if not {*asked} <= {*finished}:
        return
    places = [folder / folder_name(student) for student in asked]
    images = [Image.open(io.BytesIO(content)) for content in read(folder / "photos.tar").values()]
    answers = [predict(place, folder / "photos.tar", classes) for place in places]
    np.savez_compressed(
        args.output / f"{name}-{seed}.npz",
        truth=truth,
        names=asked,
        probabilities=np.array([[says[key] for says in answers] for key in keys], dtype=np.float32),
        top1=[right(place).mean() for place in places],
        clusters=np.stack([cluster(place, images, len(classes)) for place in places[1:]], axis=1),
    )


def draw(file: Path) -> None:
    """Draw the means over seeds of some students."""
    with (Path(__file__).parent / "nine_sets.csv").open(newline="") as table:
        rows = [row for row in csv.DictReader(table) if row["student"] in SHOWN]
    # of all students the same seeds, but for the last one, which takes the longest
    counts = Counter((row["set"], row["seed"]) for row in rows if row["student"] != "both")
    values: dict[str, dict[str, list[float]]] = {name: {} for name, _ in SHOWN.values()}
    for row in rows:
        if counts[row["set"], row["seed"]] == len(SHOWN) - 1:
            of_set = values[SHOWN[row["student"]][0]].setdefault(row["set"], [])
            of_set.append(float(row["top1"]))
    for by_set in values.values():
        for name in SETS:
            by_set.setdefault(name, [])
    # means alone: of one or two seeds an interval would be wider than the figure
    means = {
        who: {
            name: [sum(by_set[name]) / len(by_set[name])] if by_set[name] else [] for name in SETS
        }
        for who, by_set in values.items()
    }
    draw_dots(means, dict(SHOWN.values()), file)


def main() -> None:
    """Train, draw, or write the rows."""
    parser = parser_of_study(__doc__, ALL_SETS, list(SETS))
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=list(STUDENTS))
    parser.add_argument("--rows", type=Path, help="write the rows of what is finished to this file")
    parser.add_argument("--figure", type=Path, help="draw the rows that are beside this file")
    args = parser.parse_args()
    args.data, args.weights, args.output = (
        p.resolve() for p in (args.data, args.weights, args.output)
    )
    if args.figure:
        draw(args.figure)
        return
    if args.rows:
        found = [
            row
            for name in args.sets
            for seed in args.seeds
            if (args.output / ALL_SETS[name][0] / f"seed{seed}").exists()
            for row in collect(args, name, seed)
        ]
        add_rows(args.rows, found, OF_HALVES)
        return
    os.chdir(ROOT)
    torch.set_num_threads(1)
    for seed in args.seeds:
        for name in args.sets:
            run(args, name, seed)


if __name__ == "__main__":
    main()
