"""What do students learn from the labels of a real crowd? The runs and the tables of docs/evidence/crowd.md.

A folder has train.tar and validation.tar of CLASS/IMAGE and crowd.csv (filename, annotator, label; three answers an
image). For each seed 2,000 images are drawn, those of benchmarks.recipe, and labelled in five ways from that CSV:

    one, worst   one answer an image, drawn at random: of all three, or of those that are wrong, if any is
    majority, mean, dawid-skene   all three, by ?combine=

All students learn by train_w2s.py and are tested on the first 2,000 test images. Each run is a process of its own,
begun by a fork after the imports. What is finished stays: repeat the command to go on.

    python docs/evidence/studies/crowd/crowd.py cifar10 lite0.safetensors output/crowd --what probe recipe
    python docs/evidence/studies/crowd/crowd.py cifar10 lite0.safetensors output/crowd --report
"""

import argparse
import json
import os
import statistics
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas
import torch
from sklearn.model_selection import GroupKFold

ROOT = Path(__file__).resolve().parents[4]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "evidence" / "studies")]

from forked import ADAPTCONF, COMMON, PROBE, draw_dots, half_of, regress, train  # noqa: E402

from benchmarks.recipe import LAST, RESAMPLES, WHOLE, difference, divide, right  # noqa: E402
from w2s_plugins.labels.combine import combine_annotators  # noqa: E402
from w2s_plugins.labels.store import LabelReader  # noqa: E402
from w2s_plugins.metrics.resampling import resampled_means  # noqa: E402
from w2s_plugins.monitor import format_table  # noqa: E402
from w2s_plugins.study.statistics import bounds  # noqa: E402

LABELS = "the labels themselves"
ALL = "the labels of all images"
KINDS = ["one", "majority", "mean", "dawid-skene", "worst"]
TESTED = "--val-slice 0:2000 --val-split test.tar"
LITE0 = "--model tf_efficientnet_lite0 --img-size 64"
# flags of the students of weak labels
STUDENTS = {
    "recipe": "--config weak-labels --channels-last",
    "adaptconf, part": f"{ADAPTCONF} {LAST}",
    "adaptconf, whole": f"{ADAPTCONF} {WHOLE} --head-init-scale 0",
    **{
        f"probe, {loss}": f"{PROBE} {loss}"
        for loss in ("elr", "balanced_elr", "kd", "augconf", "hard", "adaptconf")
    },
}
# of those that begin with random weights, and learn from all images
SCRATCH = (
    "--model cifar_resnet20 --img-size 32 --mean 0.4914 0.4822 0.4465 --std 0.2023 0.1994 0.2010 "
    "--interpolation bilinear --crop-pct 1 --scale 0.8 1 --ratio 0.9 1.1 --color-jitter 0 --opt sgd --lr 0.1 "
    "--weight-decay 0.0005 --batch-size 128 --epochs 6 --amp --amp-dtype bfloat16 --channels-last --loss"
)
FROM_SCRATCH = {f"resnet20, {loss}": f"{SCRATCH} {loss}" for loss in ("hard", "elr", "adaptconf")}
# and of those of true labels
TRUE = {"direct": "labelled.tar", "ceiling": "rest.tar"}


def main(argv: Sequence[str] | None = None) -> None:
    """Do what is asked for, or print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path, help="of tf_efficientnet_lite0")
    parser.add_argument("output", type=Path)
    parser.add_argument(
        "--what",
        nargs="+",
        default=[*STUDENTS, *FROM_SCRATCH, "logistic", *TRUE],
        help="rows, or how they begin",
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument(
        "--report", action="store_true", help="print the tables of what is finished"
    )
    parser.add_argument("--figure", type=Path, help="write the figure to this file")
    args = parser.parse_args(argv)
    args.data, args.weights, args.output = (
        p.resolve() for p in (args.data, args.weights, args.output)
    )
    if args.report or args.figure:
        return report(args)
    os.chdir(ROOT)
    torch.set_num_threads(1)
    for seed in args.seeds:
        folder = args.output / f"seed{seed}"
        if not (folder / "answers.csv").exists():
            draw(args, seed, folder)
        for name in [*STUDENTS, *FROM_SCRATCH, "logistic"]:
            if name.startswith(tuple(args.what)):
                for kind in args.kinds:
                    run(args, seed, folder, name, kind)
        for name, images in TRUE.items():
            if name.startswith(tuple(args.what)):
                train(
                    folder / name,
                    f"--data-dir {folder} --train-split {images} --config weak-labels-ceiling "
                    f"--channels-last --seed {seed} {common(args)}",
                )


# ---------------------------------------------------------------- images and labels


def draw(args: argparse.Namespace, seed: int, folder: Path) -> None:
    """Write the images of a seed, 2,000 for weak labels and 1,000 others with true ones, and one answer an image."""
    divide(
        argparse.Namespace(
            train=args.data / "train.tar",
            validation=args.data / "validation.tar",
            labelled=1000,
            photos=2000,
        ),
        seed,
        folder,
    )
    with tarfile.open(folder / "rest.tar") as source:
        photos = source.getnames()
    (folder / "crowd.csv").symlink_to(args.data / "crowd.csv")

    # one answer an image: of anyone, and of someone who is wrong
    crowd = pandas.read_csv(args.data / "crowd.csv")
    crowd["wrong"] = crowd["label"] != crowd["filename"].str.split("/").str[0]
    for part, rows in {"": crowd[crowd["filename"].isin(photos)], "all_": crowd}.items():
        rows = rows.sample(frac=1, random_state=seed)
        for kind, order in {
            "one": rows,
            "worst": rows.sort_values("wrong", ascending=False, kind="stable"),
        }.items():
            order.drop_duplicates("filename")[["filename", "label"]].to_csv(
                folder / f"{part}{kind}.csv", index=False
            )
        if not part:
            rows.to_csv(folder / "answers.csv", index=False)  # for the tables


def labels_of(folder: Path, kind: str, part: str = "") -> tuple[list[str], list[str], np.ndarray]:
    """Return the images (N,), the classes (C,) and the probabilities (N, C) that a kind of labels gives.

    The images are the 2,000 of the seed, or by `all_` as the part those of the whole CSV.
    """
    classes = (folder / "classes.txt").read_text().split()
    together = "crowd.csv" if part or kind == "dawid-skene" else "answers.csv"
    table = pandas.read_csv(
        folder / (f"{part}{kind}.csv" if kind in ("one", "worst") else together)
    )
    rows, images = pandas.factorize(table["filename"])
    said = np.array([classes.index(label) for label in table["label"]])
    who = (
        pandas.factorize(table["annotator"])[0]
        if "annotator" in table
        else np.zeros(len(table), int)
    )
    how = kind if kind in ("majority", "mean", "dawid-skene") else "majority"
    shares = combine_annotators(rows, who, said, len(classes), how)
    # Dawid-Skene knows the people by what they say of all images
    chosen = pandas.Index(images).isin(pandas.read_csv(folder / f"{part}one.csv")["filename"])
    return list(images[chosen]), classes, shares[chosen]


def labels_right(folder: Path, kind: str, part: str = "") -> np.ndarray:
    """Return of each label 100 if it is right, else 0; of classes that tie each counts its share."""
    images, classes, shares = labels_of(folder, kind, part)
    best = shares > shares.max(axis=1, keepdims=True) - 1e-9
    true = [classes.index(image.split("/")[0]) for image in images]
    return 100 * (best / best.sum(axis=1, keepdims=True))[np.arange(len(true)), true]


# ---------------------------------------------------------------- students


def run(args: argparse.Namespace, seed: int, folder: Path, name: str, kind: str) -> None:
    """Train one student of weak labels."""
    place = folder / f"{name.replace(', ', '-')}_{kind}"
    if name == "logistic":
        return logistic(args, folder, kind, place)
    whole = name in FROM_SCRATCH  # all 50,000 images
    images, part = (args.data / "train.tar", "all_") if whole else (folder / "rest.tar", "")
    labels = f"{part}{kind}.csv" if kind in ("one", "worst") else f"crowd.csv?combine={kind}"
    student = (
        f"{FROM_SCRATCH[name]} {COMMON} {TESTED}" if whole else f"{STUDENTS[name]} {common(args)}"
    )
    train(
        place,
        f"--unlabeled {images} --data-dir {folder} --class-map {folder}/classes.txt "
        f"--teacher labels:{folder}/{labels} --seed {seed} {student}",
    )


def common(args: argparse.Namespace) -> str:
    """Return the flags of all runs of an EfficientNet-Lite0."""
    return f"{COMMON} {TESTED} {LITE0} --finetune {args.weights} --target-cache {args.output}/cache"


def logistic(args: argparse.Namespace, folder: Path, kind: str, place: Path) -> None:
    """Fit scikit-learn's logistic regression to the features that the probes have stored, and write what it says.

    The strength of its penalty is chosen by five folds. Of `mean` each image has its three answers.
    """
    if (place / "seconds.json").exists():
        return
    place.mkdir(exist_ok=True)
    before = time.process_time()
    images, classes, shares = labels_of(folder, kind)
    if kind == "mean":
        table = pandas.read_csv(folder / "answers.csv")
        rows = pandas.factorize(table["filename"])[0]
        labels = np.array([classes.index(label) for label in table["label"]])
    else:
        rows, labels = np.arange(len(images)), shares.argmax(axis=1)
    features, test, test_features = stored_features(args, images)
    seen = np.stack([features[image] for image in images])
    folds = list(GroupKFold(5, shuffle=True, random_state=0).split(rows, groups=rows))
    regress(
        place,
        before,
        seen[rows],
        labels,
        folds,
        test_features,
        [classes.index(n.split("/")[0]) for n in test],
    )


def stored_features(
    args: argparse.Namespace, images: Sequence[str]
) -> tuple[dict[str, np.ndarray], list[str], np.ndarray]:
    """Return the stored features of these images, the names of the test images, and their features."""
    features, test, test_features = {}, [], np.zeros(0)
    for file in (args.output / "cache").glob("*/keys.json"):
        names = json.loads(file.read_text())
        values = LabelReader(file.parent)(torch.arange(len(names)), torch.device("cpu")).numpy()
        if set(names) == set(images):
            features = dict(zip(names, values))
        # of all splits only that of the test images has as many of each class
        elif (
            len(
                {
                    sum(name.startswith(kind) for name in names)
                    for kind in {n.split("/")[0] for n in names}
                }
            )
            == 1
        ):
            test, test_features = names, values
    return features, test, test_features


# ---------------------------------------------------------------- tables


def report(args: argparse.Namespace) -> None:
    """Print the tables of the seeds that are finished, and draw the figure."""
    found = collect(args)
    if args.report:
        rows = [
            [name, *(mean_of(by_seed(cells[kind])) for kind in KINDS)]
            for name, cells in found.items()
        ]
        first = args.output / f"seed{args.seeds[0]}"
        rows.append([ALL, *(f"{labels_right(first, kind, 'all_').mean():.1f}" for kind in KINDS)])
        print(format_table(rows, ["means", *KINDS]), "\n")
        for other in ("recipe", "probe, elr", "logistic", "resnet20, hard", "resnet20, elr"):
            rows = [
                [name, *(over(cells[kind], found[other][kind]) for kind in KINDS)]
                for name, cells in found.items()
                if name not in (LABELS, other, *TRUE)
            ]
            print(format_table(rows, [f"over {other}", *KINDS]), "\n")
        rows = [
            [name, *(over(cells["majority"], cells[kind], paired=name != LABELS) for kind in KINDS)]
            for name, cells in found.items()
            if name not in TRUE
        ]
        print(format_table(rows, ["majority over", *KINDS]), "\n")
        print(
            format_table(
                [[name, f"{median_seconds(args, name):.0f}"] for name in found if name != LABELS],
                ["CPU seconds", ""],
            )
        )
    if args.figure:
        shown = {
            LABELS: "k|",
            "recipe": "C0o",
            "adaptconf, part": "C1^",
            "probe, elr": "C2s",
            "logistic": "C3x",
            "ceiling": "C7|",
        }
        values = {name: {kind: by_seed(found[name][kind]) for kind in KINDS} for name in shown}
        draw_dots(values, shown, args.figure)


def collect(args: argparse.Namespace) -> dict[str, dict[str, dict[int, np.ndarray]]]:
    """Return of each student, kind of labels and seed what is right, 0 or 100: of test images, or of the labels."""
    found = {LABELS: {kind: {} for kind in KINDS}}
    for seed in args.seeds:
        for kind in KINDS:
            found[LABELS][kind][seed] = labels_right(args.output / f"seed{seed}", kind)
    for name in [*STUDENTS, *FROM_SCRATCH, "logistic", *TRUE]:
        found[name] = {kind: {} for kind in KINDS}
        for kind in KINDS:
            for seed in args.seeds:
                place = (
                    args.output
                    / f"seed{seed}"
                    / (name if name in TRUE else f"{name.replace(', ', '-')}_{kind}")
                )
                if (place / "seconds.json").exists():
                    found[name][kind][seed] = right(place)
    return found


def median_seconds(args: argparse.Namespace, name: str) -> float:
    """Return the median over all runs of a student."""
    files = args.output.glob(
        f"seed*/{name}/seconds.json"
        if name in TRUE
        else f"seed*/{name.replace(', ', '-')}_*/seconds.json"
    )
    return statistics.median([json.loads(file.read_text()) for file in files] or [0])


def by_seed(answers: dict[int, np.ndarray]) -> list[float]:
    """Return the mean of each seed."""
    return [float(rows.mean()) for rows in answers.values()]


def over(first: dict[int, np.ndarray], second: dict[int, np.ndarray], paired: bool = True) -> str:
    """Return the difference on the seeds of both, with its 95 % interval; of labels over seeds alone, and of a single
    seed over test images alone.
    """
    seeds = sorted(first.keys() & second.keys())
    if not seeds or first is second:
        return ""
    if not paired:
        return mean_of([float(first[seed].mean() - second[seed].mean()) for seed in seeds])
    rows = np.stack([first[seed] - second[seed] for seed in seeds])
    if len(rows) > 1:
        return f"{difference(rows)} [{len(rows)}]"
    low, high = bounds(resampled_means(rows, RESAMPLES)[0])
    return f"{rows.mean():+.1f} [{low:+.1f}, {high:+.1f}] [1]"


def mean_of(values: Sequence[float]) -> str:
    """Return the mean over seeds, with half of its 95 % interval by Student's t."""
    if len(values) < 2:
        return f"{values[0]:.1f} [1]" if values else ""
    return f"{statistics.mean(values):.1f} ± {half_of(values):.1f}" + (
        f" [{len(values)}]" if len(values) < 5 else ""
    )


if __name__ == "__main__":
    main()
