"""What the answers about some images say of all of them: accuracy of labels and student, and their difference."""

import math
from typing import NamedTuple

import numpy as np

from ..no_label import NO_LABEL
from .draw import DIFFERING, STRATA, THIRDS

DRAWS = 20_000  # of the posterior
TAILS = 0.025, 0.975  # of a 95 % interval
MARGIN = 1.43  # times half of its width: so far from 0 such an interval is beyond 0 in four of five cases
# Outcomes: both are right, the label alone, the student alone, neither.
# Jeffreys' parameters of a Dirichlet distribution, where they agree and where they differ
PRIOR = np.array([[1, 0, 0, 1], [0, 1, 1, 1]]) / 2
# what an outcome counts for the accuracy of the labels, of the student, and for the difference
RIGHT = np.array([[1, 1, 0], [1, 0, -1], [0, 1, 1], [0, 0, 0]])


class Estimate(NamedTuple):
    """Accuracies over all images of a run, from 0 to 1; each (3,) of the labels, of the student, the difference.

    Args:
        value: by inverse probability.
        low: lower end of the interval.
        high: upper end.
        needed: about how many images decide which is better, if the difference is as estimated.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    needed: int


def count_outcomes(
    strata: np.ndarray, labels: np.ndarray, student: np.ndarray, truth: np.ndarray
) -> np.ndarray:
    """Return how many images (strata, 4) have each outcome; those whose ``truth`` (n,) is `NO_LABEL` do not count."""
    known = truth != NO_LABEL
    label_is_wrong = (labels != truth)[known].astype(int)
    student_is_wrong = (student != truth)[known].astype(int)
    counts = np.zeros((STRATA, 2, 2), dtype=np.int64)
    np.add.at(counts, (strata[known], label_is_wrong, student_is_wrong), 1)
    return counts.reshape(STRATA, 4)


def estimate(sizes: np.ndarray, counts: np.ndarray, seed: int = 0) -> Estimate:
    """Estimate accuracies from the outcomes of images that were drawn at random in each stratum.

    Intervals are those of the posterior, in which images without an answer have the outcomes of their half of the
    strata, where student and labels agree or where they differ. So nothing is open where all images have an answer.

    Args:
        sizes: (strata,) images in each.
        counts: (strata, 4) outcomes of those with an answer, from `count_outcomes`.
        seed: of the draws from the posterior.
    """
    # the share of each outcome in the halves, by inverse probability: a stratum with any answer counts by its size
    answered = counts.sum(axis=1)
    weights = np.where(answered, sizes / np.maximum(answered, 1), 0)[:, None] * counts
    images, known, weighted = (
        rows.reshape(2, THIRDS, -1).sum(axis=1) for rows in (sizes, counts, weights)
    )
    total, seen = (rows.sum(axis=1, keepdims=True) for rows in (weighted, known))
    shares = np.where(
        total, weighted / np.maximum(total, 1), PRIOR / PRIOR.sum(axis=1, keepdims=True)
    )
    value = (images * shares).sum(axis=0) @ RIGHT / images.sum()
    # where they agree, confidence tells how often both are right, so that answers count for more than without strata
    right = (counts[:THIRDS, 0] + 0.5) / (answered[:THIRDS] + 1)
    within = (sizes[:THIRDS] * right * (1 - right)).sum() / max(1, images[0, 0])
    gain = max(1.0, shares[0, 0] * shares[0, 3] / max(within, 1e-9))

    # the posterior of these shares, and of the images without an answer
    rng, posterior = np.random.default_rng(seed), shares * seen * [[gain], [1]] + PRIOR
    gammas = rng.standard_gamma(np.broadcast_to(posterior, (DRAWS, *PRIOR.shape)))
    rest = rng.multinomial((images - seen)[:, 0], gammas / gammas.sum(axis=2, keepdims=True))
    low, high = np.quantile((known + rest).sum(axis=1) @ RIGHT / images.sum(), TAILS, axis=0)

    # answers where they differ that make the interval so narrow; the square of its width goes with 1/n - 1/N
    differing, width = max(1, int(images[1, 0])), max(high[2] - low[2], 1e-9)
    narrower = (2 * value[2] / (MARGIN * width)) ** 2
    answers = math.ceil(1 / (narrower * (1 / max(1, seen[1, 0]) - 1 / differing) + 1 / differing))
    needed = min(
        math.ceil(answers / max(DIFFERING, differing / images.sum())), answers + int(images[0, 0])
    )
    return Estimate(value, np.minimum(low, value), np.maximum(high, value), needed)
