"""What do students learn from the labels of a real crowd? The runs and the rows of docs/evidence/crowd.md.

A folder has train.tar and validation.tar of CLASS/IMAGE and crowd.csv (filename, annotator, label; three answers an
image). For each seed 2,000 images are drawn, those of benchmarks.recipe, and labelled in five ways from that CSV:

    one, worst   one answer an image, drawn at random: of all three, or of those that are wrong, if any is
    majority, mean, dawid-skene   all three, by ?combine=

All students learn by train_w2s.py and are tested on the first 2,000 test images. Each run is a process of its own,
begun by a fork after the imports. What is finished stays: repeat the command to go on.

    python docs/evidence/studies/crowd/crowd.py cifar10 lite0.safetensors output/crowd --what probe recipe
    python docs/evidence/studies/crowd/crowd.py cifar10 lite0.safetensors output/crowd --rows crowd.csv

The second line writes a row for each finished run, of which tables.py makes the table.
"""

import argparse
import csv
import json
import os
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

from forked import ADAPTCONF, COMMON, PROBE, regress, train  # noqa: E402

from benchmarks.recipe import LAST, WHOLE, divide, right  # noqa: E402
from w2s_plugins.labels.combine import combine_annotators  # noqa: E402
from w2s_plugins.labels.store import LabelReader  # noqa: E402

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
COLUMNS = ["set", "seed", "student", "flags", "labels", "right", "top1", "seconds", "cpu", "commit"]


def main(argv: Sequence[str] | None = None) -> None:
    """Do what is asked for, or write the rows."""
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
    parser.add_argument("--rows", type=Path, help="write the rows of what is finished to this file")
    parser.add_argument("--cpu", default="", help="a column of the rows")
    parser.add_argument("--commit", default="", help="another")
    args = parser.parse_args(argv)
    args.data, args.weights, args.output = (
        p.resolve() for p in (args.data, args.weights, args.output)
    )
    if args.rows:
        return write_rows(args)
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


# ---------------------------------------------------------------- rows


def write_rows(args: argparse.Namespace) -> None:
    """Write a row for each finished run: its top-1, and of weak labels on how many percent of its images they are right."""
    names = {
        **STUDENTS,
        **FROM_SCRATCH,
        "logistic": "",
        **dict.fromkeys(TRUE, "--config weak-labels-ceiling"),
    }
    with args.rows.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for seed in args.seeds:
            folder = args.output / f"seed{seed}"
            for name, flags in names.items():
                part = "all_" if name in FROM_SCRATCH else ""
                for kind in ["true"] if name in TRUE else KINDS:
                    place = folder / (name if name in TRUE else f"{name.replace(', ', '-')}_{kind}")
                    if not (place / "seconds.json").exists():
                        continue
                    labels = np.full(1, 100.0) if name in TRUE else labels_right(folder, kind, part)
                    writer.writerow(
                        {
                            "set": "CIFAR-10",
                            "seed": seed,
                            "student": name,
                            "flags": flags,
                            "labels": kind,
                            "right": f"{labels.mean():.1f}",
                            "top1": f"{right(place).mean():.2f}",
                            "seconds": f"{json.loads((place / 'seconds.json').read_text()):.0f}",
                            "cpu": args.cpu,
                            "commit": args.commit,
                        }
                    )


if __name__ == "__main__":
    main()
