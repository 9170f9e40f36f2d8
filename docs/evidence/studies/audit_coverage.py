"""How often the intervals of an audit hold the truth, and how many images plain drawing needs for the same width.

    python docs/evidence/studies/audit_coverage.py RUN photos.tar rest.tar

RUN has been audited, so that it has audit/plan.json. The tar files hold the same images in the same order, the second
one as CLASS/IMAGE, which is the truth.
"""

import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from w2s_plugins.audit.draw import STRATA, drawing_order
from w2s_plugins.audit.estimate import DRAWS, RIGHT, TAILS, count_outcomes, estimate

AUDITS = 500
Answers = tuple[np.ndarray, np.ndarray, np.ndarray]  # labels, student, truth, as classes


def names_in(path: str) -> list[str]:
    """Return the files of a tar file in order."""
    with tarfile.open(path) as file:
        return [member.name for member in file if member.isfile()]


def read(run: str, photos: str, rest: str) -> tuple[np.ndarray, Answers]:
    """Return the strata of a run's images, and what is said of them and true."""
    plan = json.loads(Path(run, "audit/plan.json").read_text())
    truth = dict(zip(names_in(photos), (Path(name).parent.name for name in names_in(rest))))
    classes = {name: number for number, name in enumerate(plan["classes"])}
    true = np.array([classes[truth[key]] for key in plan["keys"]])
    return np.array(plan["strata"]), (np.array(plan["labels"]), np.array(plan["student"]), true)


def audit_once(
    strata: np.ndarray, answers: Answers, images: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends (3,) of the intervals of one audit."""
    labels, student, truth = answers
    rows = drawing_order(strata, labels, student, seed)[:images]
    found = estimate(
        np.bincount(strata, minlength=STRATA),
        count_outcomes(strata[rows], labels[rows], student[rows], truth[rows]),
        seed,
    )
    return found.low, found.high


def plain_once(
    strata: np.ndarray, answers: Answers, images: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends (3,) of the intervals if the images are drawn from all: the same posterior, of one stratum."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(strata), images, replace=False)
    labels, student, truth = (one[rows] for one in answers)
    counts = count_outcomes(np.zeros(images, dtype=int), labels, student, truth)[0]
    shares = rng.dirichlet(counts + 0.25, DRAWS)
    found = (counts + rng.multinomial(len(strata) - images, shares)) @ RIGHT / len(strata)
    low, high = np.quantile(found, TAILS, axis=0)
    return low, high


def repeat(audit: Callable, times: int, strata: np.ndarray, answers: Answers, images: int) -> tuple:
    """Return how often the intervals hold the truth in percent, their mean widths in points, and the verdicts."""
    labels, student, truth = answers
    true = np.array([(labels == truth).mean(), (student == truth).mean(), 0])
    true[2] = true[1] - true[0]
    low, high = (
        np.array(ends)
        for ends in zip(*(audit(strata, answers, images, seed) for seed in range(times)))
    )
    held = 100 * ((low <= true + 1e-9) & (true <= high + 1e-9)).mean(axis=0)
    right, wrong = low[:, 2] > 0, high[:, 2] < 0
    if true[2] < 0:
        right, wrong = wrong, right
    return held, 100 * (high - low).mean(axis=0), (100 * right.mean(), 100 * wrong.mean())


def plain_images(width: float, strata: np.ndarray, answers: Answers, most: int) -> int:
    """Return how many images give an interval of the difference as narrow as ``width``, by bisection."""
    few, many = 10, most
    while many - few > max(2, few // 50):
        middle = (few + many) // 2
        found = repeat(plain_once, 60, strata, answers, middle)[1][2]
        few, many = (middle, many) if found > width else (few, middle)
    return many


def main(run: str, photos: str, rest: str) -> None:
    """Print a row for each number of images."""
    strata, answers = read(run, photos, rest)
    labels, student, truth = answers
    print(
        f"{len(truth)} images, labels {100 * (labels == truth).mean():.1f}, student "
        f"{100 * (student == truth).mean():.1f}, they agree on {100 * (labels == student).mean():.1f} %"
    )
    for images in (50, 100, 200):
        held, width, verdicts = repeat(audit_once, AUDITS, strata, answers, images)
        plain = plain_images(width[2], strata, answers, len(strata))
        print(
            f"| {images} | {' | '.join(f'{one:.1f}' for one in held)} | ±{width[2] / 2:.1f} | {plain} | "
            f"{images / plain:.2f} | {verdicts[0]:.0f} | {verdicts[1]:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
