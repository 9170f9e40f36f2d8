"""Which candidate to take without true labels: a person's answers, or a score of what the students say.

    python docs/evidence/studies/choose.py choose.csv output/nine_sets/*.npz

It needs the files of nine_sets.py, and adds a row for each set, seed and way to choose that is not there yet: the
candidate, and its top-1 on the test images; tables.py compares them with the same candidate always, and with the best in
hindsight. Ways:

    60 answers, 100 answers   the one that most probably is the best after so many answers to `w2s-labels audit`, drawn
                        as it draws; the mean over audits.
    agreement, SND, BNM, InfoMax, MaNo   the candidate with the highest score of its answers, without truth
                        (docs/evidence/nine-sets.md has the sources).
    ClassAMI            the one whose answers tell most about the clusters of its features, and these about them.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from audit_several import may_be_best
from forked import add_rows
from nine_sets import CANDIDATES
from scipy.special import logsumexp, softmax
from sklearn.metrics import adjusted_mutual_info_score

from w2s_plugins.audit import estimate as estimates
from w2s_plugins.audit.draw import Opinions, Step, chances, drawing_order, group_images
from w2s_plugins.audit.estimate import Evidence, estimate
from w2s_plugins.audit.run import ENOUGH

AUDITS = 40  # of each set and seed
ANSWERS = 60, 100
DRAWS = 1000  # of a posterior
SHARPNESS = 0.05  # the temperature of SND
UNSURE = 5.0  # mean cross-entropy to uniform, above which MaNo takes the softmax


def snd(shares: np.ndarray) -> float:
    """Soft neighbourhood density (arXiv 2108.10860): mean entropy of the similarities of each image to the others."""
    unit = shares / np.linalg.norm(shares, axis=1, keepdims=True)
    similar = unit @ unit.T / SHARPNESS
    np.fill_diagonal(similar, -np.inf)
    near = softmax(similar, axis=1)
    return float(-(near * np.log(np.maximum(near, 1e-12))).sum(axis=1).mean())


def bnm(shares: np.ndarray) -> float:
    """Batch nuclear norm (arXiv 2003.12237), over the number of images."""
    return float(np.linalg.norm(shares, "nuc") / len(shares))


def entropy(shares: np.ndarray) -> np.ndarray:
    """Entropy of each row."""
    return -(shares * np.log(np.maximum(shares, 1e-12))).sum(axis=-1)


def infomax(shares: np.ndarray) -> float:
    """Entropy of the mean answer without the mean entropy of the answers."""
    return float(entropy(shares.mean(axis=0)) - entropy(shares).mean())


def mano(shares: np.ndarray) -> float:
    """Matrix norm of normalised logits (arXiv 2405.18979)."""
    logits = np.log(np.maximum(shares, 1e-12))
    logits -= logits.mean(axis=1, keepdims=True)
    to_uniform = (logsumexp(logits, axis=1) - logits.mean(axis=1)).mean()
    if to_uniform > UNSURE:
        scaled = softmax(logits, axis=1)
    else:
        scaled = 1 + logits + logits**2 / 2
        scaled -= scaled.min(axis=1, keepdims=True)
        scaled /= scaled.sum(axis=1, keepdims=True)
    return float((scaled**4).mean() ** 0.25)


SCORES: dict[str, Callable[[np.ndarray], float]] = {
    "SND": snd,
    "BNM": bnm,
    "InfoMax": infomax,
    "MaNo": mano,
}


def audit(opinions: Opinions, truth: np.ndarray, answers: int, seed: int) -> int:
    """Return the opinion that an audit with so many answers names."""
    estimates.DRAWS = DRAWS
    lots = np.random.default_rng(seed).random(len(truth))
    columns = range(opinions.says.shape[1])
    steps = [Step(columns, answers)]
    if answers > ENOUGH:
        # after the first answers it goes on with those that may be the best
        steps[0] = steps[0]._replace(drawn=ENOUGH)
        steps.append(Step(may_be_best(ask(opinions, truth, ENOUGH, lots, steps)), answers))
    return int(estimate(*ask(opinions, truth, answers, lots, steps)).is_best.argmax())


def ask(
    opinions: Opinions, truth: np.ndarray, answers: int, lots: np.ndarray, steps: list[Step]
) -> Evidence:
    """Return what a person who is always right says of the images that are drawn."""
    rows = drawing_order(opinions, lots, steps)[:answers]
    groups = group_images(opinions, [opinions.of(step.columns) for step in steps])
    return Evidence(opinions, rows, truth[rows], chances(opinions, lots, steps, rows), groups)


def choose(file: Path) -> Iterator[dict[str, object]]:
    """Yield a row for each way to choose."""
    name, _, seed = file.stem.rpartition("-")
    stored = np.load(file)
    students = stored["names"].tolist()
    columns = [students.index(one) for one in CANDIDATES]
    top1 = stored["top1"][columns]
    shares = stored["probabilities"][:, columns].astype(float)
    says = shares.argmax(axis=2)
    teacher = stored["probabilities"][:, students.index("teacher")].argmax(axis=1)
    scores = {"agreement": (says == teacher[:, None]).mean(axis=0)} | {
        score: np.array([rule(shares[:, k]) for k in range(len(columns))])
        for score, rule in SCORES.items()
    }
    scores["ClassAMI"] = np.array(
        [
            adjusted_mutual_info_score(stored["clusters"][:, k], says[:, k])
            for k in range(len(columns))
        ]
    )
    about = {"set": name, "seed": seed}
    for way, values in scores.items():
        best = int(values.argmax())
        yield about | {"way": way, "candidate": CANDIDATES[best], "top1": f"{top1[best]:.2f}"}
    opinions = Opinions(says, shares.max(axis=2))
    for answers in ANSWERS:
        named = [audit(opinions, stored["truth"], answers, number) for number in range(AUDITS)]
        often = np.bincount(named, minlength=len(columns))
        yield about | {
            "way": f"{answers} answers",
            "candidate": CANDIDATES[int(often.argmax())],
            "top1": f"{top1[named].mean():.2f}",
        }


def main() -> None:
    """Add the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", type=Path)
    parser.add_argument("files", nargs="+", type=Path)
    args = parser.parse_args()
    rows = [row for file in args.files for row in choose(file)]
    by = ["set", "seed", "way"]
    add_rows(args.rows, rows, [*by, "candidate", "top1"], by)


if __name__ == "__main__":
    main()
