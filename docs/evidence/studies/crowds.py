"""How the answers of a crowd are best combined: the runs of docs/evidence/crowd.md, *Which way suits a crowd?*.

    python docs/evidence/studies/crowds.py DATA crowds.csv

`DATA` is what sets.py makes, with the answers of real people about LabelMe and CIFAR-10. Made crowds have 600 samples
of six classes, three answers about each, and people of five kinds. Their seeds are 2 to 4: with 0 and 1 it was chosen
what `auto` compares the ways by. Nothing is trained, and the file is written anew, in about two minutes.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from w2s_plugins.labels.combine import combine_annotators, count_votes  # noqa: E402
from w2s_plugins.labels.forecast import MODELS, settle  # noqa: E402

SAMPLES, CLASSES, EACH = 600, 6, 3
ANSWERS = (3, 10, 30)  # of a person
SEEDS = (2, 3, 4)
EYE = np.eye(CLASSES)
EVENLY = (1 - EYE) / (CLASSES - 1)
NEXT = np.roll(EYE, 1, axis=1)


def mixed(right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Return the confusion (A, C, C) of people who are right so often (A,), and else answer as `wrong` says."""
    return right[:, None, None] * EYE + (1 - right)[:, None, None] * wrong


def confusions(kind: str, people: int, rng: np.random.Generator) -> np.ndarray:
    """Return the confusion (A, C, C) of people of a kind."""
    if kind == "all alike":
        return mixed(np.full(people, 0.7), EVENLY)
    if kind == "good and bad":
        return mixed(rng.uniform(0.3, 0.95, people), EVENLY)
    if kind == "same confusions":
        return mixed(rng.uniform(0.4, 0.9, people), NEXT)
    if kind == "confusions of their own":
        wrong = np.stack([EYE[rng.permutation(CLASSES)] for _ in range(people)])
        return mixed(np.full(people, 0.6), wrong)
    # two of five answer one class whatever is there
    always = EYE[rng.integers(CLASSES, size=people)][:, None].repeat(CLASSES, axis=1)
    is_careless = (rng.random(people) < 0.4)[:, None, None]
    careless = 0.9 * always + 0.1 / CLASSES
    return np.where(is_careless, careless, mixed(np.full(people, 0.85), EVENLY))


KINDS = (
    "all alike",
    "good and bad",
    "same confusions",
    "confusions of their own",
    "careless people",
)


def made(kind: str, answers: int, seed: int) -> tuple[np.ndarray, ...]:
    """Return true classes, and of each answer its sample, person and class."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(CLASSES, size=SAMPLES)
    people = SAMPLES * EACH // answers
    confusion = confusions(kind, people, rng)
    samples = np.repeat(np.arange(SAMPLES), EACH)
    who = np.concatenate([rng.choice(people, EACH, replace=False) for _ in range(SAMPLES)])
    until = confusion[who, truth[samples]].cumsum(axis=1)
    labels = (until < rng.random((len(samples), 1))).sum(axis=1).clip(max=CLASSES - 1)
    return truth, samples, who, labels


def real(table: Path) -> tuple[np.ndarray, ...]:
    """Return the same of a table of answers about images in class folders."""
    rows = pandas.read_csv(table)
    samples, images = pandas.factorize(rows["filename"])
    of_images = [image.split("/")[0] for image in images]
    classes = sorted({*of_images, *rows["label"]})
    truth = np.array([classes.index(name) for name in of_images])
    labels = np.array([classes.index(name) for name in rows["label"]])
    return truth, samples, pandas.factorize(rows["annotator"])[0], labels


def accuracies(crowd: tuple[np.ndarray, ...]) -> dict[str, float]:
    """Return the share of samples whose label is right, in percent, by each way; of classes that tie each counts in part.

    With it comes what `auto` has taken.
    """
    truth, *answers = crowd
    count = int(max(truth.max(), answers[2].max())) + 1
    chosen = settle("auto", [count_votes(*answers, count)])
    right = {}
    for how in (*MODELS, "auto"):
        shares = combine_annotators(*answers, count, chosen if how == "auto" else how)
        best = shares > shares.max(axis=1, keepdims=True) - 1e-9
        right[how] = 100 * (best[np.arange(len(truth)), truth] / best.sum(axis=1)).mean()
    return {**right, "taken": chosen.name}


def main() -> None:
    """Write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("rows", type=Path)
    args = parser.parse_args()
    crowds = {
        ("LabelMe, 59 people", 43, ""): real(args.data / "labelme" / "crowd.csv"),
        ("CIFAR-10, 747 people", 201, ""): real(args.data / "cifar10" / "crowd.csv"),
    }
    for kind in KINDS:
        for answers in ANSWERS:
            for seed in SEEDS:
                crowds[kind, answers, seed] = made(kind, answers, seed)
    rows = []
    for (crowd, answers, seed), content in crowds.items():
        right = accuracies(content)
        taken = right.pop("taken")
        for how, value in right.items():
            note = taken if how == "auto" else ""
            rows.append(
                dict(
                    crowd=crowd,
                    answers=answers,
                    seed=seed,
                    how=how,
                    top1=f"{value:.2f}",
                    taken=note,
                )
            )
        print(crowd, answers, seed, {how: f"{value:.1f}" for how, value in right.items()}, taken)
    pandas.DataFrame(rows).to_csv(args.rows, index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
