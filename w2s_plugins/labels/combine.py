"""One answer a sample of what several annotators say of it: majority, mean, or a model of the annotators; and how well
they agree.
"""

import numpy as np

from ..settings.forms import FITTED
from .annotators import MOST_STEPS, TOLERANCE, Crowd, Votes, fit_crowd
from .forecast import settle


def combine_annotators(
    samples: np.ndarray,
    annotators: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    how: str | Crowd = "majority",
    shares: np.ndarray | None = None,
) -> np.ndarray:
    """Return probabilities (N, C) of the classes of each sample; of a sample with one answer they are that answer.

    Args:
        samples: (R,) sample of each answer, in [0, N).
        annotators: (R,) annotator of each answer, in [0, A).
        labels: (R,) class of each answer, in [0, C): the most likely one.
        num_classes: C.
        how: ``majority``: the class with the most votes, shared evenly by those that have as many; where answers are
            probabilities a vote weighs that of its class, and the class gets the mean of those of its votes. ``mean``:
            the mean of the answers. What is fitted, as `annotators.Crowd` says, is of the labels alone; ``auto`` is the one
            that `forecast.settle` takes.
        shares: (R, C) probabilities of each answer; None where it is a class alone.
    """
    crowd = how if isinstance(how, Crowd) else Crowd(how)
    if crowd.name in FITTED:
        votes = count_votes(samples, annotators, labels, num_classes)
        crowd = crowd if isinstance(how, Crowd) else settle(how, [votes])
    if crowd.name in FITTED:
        return fit_crowd(votes, crowd).posterior

    # the mean of classes is their shares of the votes
    votes = np.zeros((samples.max() + 1, num_classes))
    if how == "mean":
        if shares is None:
            np.add.at(votes, (samples, labels), 1)
        else:
            np.add.at(votes, samples, shares)
        return votes / np.bincount(samples)[:, None]

    # a vote weighs as much as whoever gave it is sure
    weights = np.ones(len(labels))
    if shares is not None:
        weights = shares[np.arange(len(labels)), labels].astype(float)
    np.add.at(votes, (samples, labels), weights)
    best = votes == votes.max(axis=1, keepdims=True)
    winners = best.sum(axis=1, keepdims=True)
    if shares is None:
        return best / winners

    # the class that wins is as likely as those who said it find it; the others share the rest
    voted = best[samples, labels]
    sure = np.bincount(samples[voted], weights[voted]) / np.bincount(samples[voted])
    others = np.maximum(num_classes - winners, 1)
    combined = np.where(best, sure[:, None] / winners, (1 - sure[:, None]) / others)
    return combined / combined.sum(axis=1, keepdims=True)


def combine_classes(
    samples: np.ndarray, annotators: np.ndarray, shares: np.ndarray, how: str = "majority"
) -> np.ndarray:
    """Return probabilities (N, C) of what several annotators say of each class of a sample by itself, NaN where nobody
    says anything.

    Args:
        samples: (R,) sample of each answer, in [0, N).
        annotators: (R,) annotator of each answer, in [0, A).
        shares: (R, C) probability of each class, NaN where the annotator says nothing of it.
        how: of those who say something of the class, ``majority``: the share of those who say yes, at a probability of
            a half or more. ``mean``: the mean of their probabilities. ``dawid-skene``: `dawid_skene` of yes and no.
    """
    is_known = ~np.isnan(shares)
    says_yes = shares >= 0.5
    size, count = shares.shape[1], int(samples.max()) + 1
    if how == "dawid-skene":
        combined = np.full((count, size), np.nan)
        for column in range(size):
            rows = is_known[:, column].nonzero()[0]
            if not len(rows):
                continue
            # only those of whom and by whom something is said
            answered, sample = np.unique(samples[rows], return_inverse=True)
            who = np.unique(annotators[rows], return_inverse=True)[1]
            labels = says_yes[rows, column].astype(np.int64)
            combined[answered, column] = dawid_skene(sample, who, labels, 2)[:, 1]
        return combined

    # the mean of those who say something of it
    votes = says_yes if how == "majority" else np.nan_to_num(shares)
    total, answers = _sums(samples, votes, count), _sums(samples, is_known, count)
    return np.where(answers > 0, total / np.maximum(answers, 1), np.nan)


def dawid_skene(
    samples: np.ndarray,
    annotators: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    max_steps: int = MOST_STEPS,
    tolerance: float = TOLERANCE,
) -> np.ndarray:
    """Fit a confusion matrix to each annotator and return the posterior (N, C) of the true classes, see `fit_crowd`.

    Args:
        samples: (R,) sample of each answer, in [0, N).
        annotators: (R,) annotator of each answer, in [0, A).
        labels: (R,) class of each answer, in [0, C).
        num_classes: C.
        max_steps: steps of expectation and maximisation at most.
        tolerance: by which the likelihood of a sample has to grow for another one.
    """
    shape = (int(samples.max()) + 1, int(annotators.max()) + 1, num_classes)
    votes = Votes(samples, annotators, labels, shape)
    return fit_crowd(votes, Crowd("dawid-skene"), max_steps, tolerance).posterior


def _sums(groups: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """Return the sums (count, C) of the rows (R, C) of each group (R,), added in their order."""
    columns = [
        np.bincount(groups, rows[:, column], minlength=count) for column in range(rows.shape[1])
    ]
    return np.stack(columns, axis=1)


def choose_means(answers: np.ndarray, reliability: np.ndarray, num_classes: int) -> tuple[str, str]:
    """Return which of the means of `combine_annotators` suits a crowd that has given labels, and why.

    `dawid_skene` has a matrix of classes by classes to learn of each annotator. In simulated crowds it was above the
    majority from about four answers a cell on, if the annotators differ in how reliable they are, and below it with
    fewer (tests/labels/test_combine.py).

    Args:
        answers: (A,) number of answers of each annotator.
        reliability: (A,) share of them that is right, as far as that can be told.
        num_classes: C.
    """
    # of few answers the matrix is mostly chance; of annotators that are alike it says nothing that a vote does not
    needed = max(FEWEST_ANSWERS, ANSWERS_PER_CELL * num_classes**2)
    typical = int(np.median(answers))
    worst, best = float(reliability.min()), float(reliability.max())
    if typical < needed:
        return "majority", (
            f"an annotator has given {typical} answers (median), and dawid-skene needs about {needed} "
            f"to tell what each confuses among {num_classes} classes"
        )
    if best - worst < LEVEL:
        return "majority", f"the annotators are about as reliable, {worst:.2f} to {best:.2f}"
    return "dawid-skene", (
        f"the annotators differ in how reliable they are, {worst:.2f} to {best:.2f}, and have given "
        f"{typical} answers (median), of about {needed} that it needs"
    )


def krippendorff_alpha(votes: np.ndarray) -> float:
    """Return how far answers agree beyond chance, 1 at most (Krippendorff, Content Analysis, 1980, for classes without
    an order); nan where nothing can be said.

    Args:
        votes: (N, C) of each class for each sample.
    """
    # pairs of answers that are alike: of a sample, and of all
    votes = votes[votes.sum(axis=1) > 1].astype(float)
    each, counts, total = votes.sum(axis=1), votes.sum(axis=0), votes.sum()
    with np.errstate(invalid="ignore"):
        alike = ((votes * (votes - 1)).sum(axis=1) / (each - 1)).sum() / total
        by_chance = (counts * (counts - 1)).sum() / (total * (total - 1))
        return float((alike - by_chance) / (1 - by_chance))
