"""One answer a sample of what several annotators say of it: majority, mean, or a model of the annotators; and how well
they agree.
"""

from collections.abc import Iterator

import numpy as np

from ..settings.forms import FITTED
from .annotators import Crowd, Votes, fit_crowd
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
            the mean of the answers. The models of `annotators.Crowd` are fitted to the labels alone.
        shares: (R, C) probabilities of each answer; None where it is a class alone.
    """
    if isinstance(how, Crowd) or how in FITTED:
        # models of annotators know the likeliest class of an answer alone
        counted = count_votes(samples, annotators, labels, num_classes)
        how = how if isinstance(how, Crowd) else settle(how, [counted])
        if how.name in FITTED:
            return fit_crowd(counted, how).posterior
        how = how.name

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
    samples: np.ndarray, annotators: np.ndarray, shares: np.ndarray, how: str | Crowd = "majority"
) -> np.ndarray:
    """Return probabilities (N, C) of what several annotators say of each class of a sample by itself, NaN where nobody
    says anything.

    Args:
        samples: (R,) sample of each answer, in [0, N).
        annotators: (R,) annotator of each answer, in [0, A).
        shares: (R, C) probability of each class, NaN where the annotator says nothing of it.
        how: of those who say something of the class, ``majority``: the share of those who say yes, at a probability of
            a half or more. ``mean``: the mean of their probabilities. The models of `annotators.Crowd` are fitted to yes
            and no of each class.
    """
    is_known = ~np.isnan(shares)
    count = int(samples.max()) + 1
    if isinstance(how, Crowd) or how in FITTED:
        # each class is a question of its own, which people may be good at or not
        of_classes = [*votes_of_classes(samples, annotators, shares)]
        how = how if isinstance(how, Crowd) else settle(how, [votes for *_, votes in of_classes])
        if how.name in FITTED:
            combined = np.full((count, shares.shape[1]), np.nan)
            for column, answered, votes in of_classes:
                combined[answered, column] = fit_crowd(votes, how).posterior[:, 1]
            return combined
        how = how.name

    # the mean of those who say something of it
    votes = shares >= 0.5 if how == "majority" else np.nan_to_num(shares)
    total, answers = _sums(samples, votes, count), _sums(samples, is_known, count)
    return np.where(answers > 0, total / np.maximum(answers, 1), np.nan)


def count_votes(
    samples: np.ndarray, annotators: np.ndarray, labels: np.ndarray, num_classes: int
) -> Votes:
    """Return answers, each (R,), as `Votes` of as many samples and annotators as there are."""
    shape = (int(samples.max()) + 1, int(annotators.max()) + 1, num_classes)
    return Votes(samples, annotators, labels, shape)


def votes_of_classes(
    samples: np.ndarray, annotators: np.ndarray, shares: np.ndarray
) -> Iterator[tuple[int, np.ndarray, Votes]]:
    """Yield each class of which something is said, the samples of which it is said, and the votes for no (0) and yes (1),
    whose samples are numbered in the order of those; arguments as of `combine_classes`.
    """
    for column, of_class in enumerate(shares.T):
        rows = (~np.isnan(of_class)).nonzero()[0]
        if len(rows):
            # only those of whom and by whom something is said
            answered, sample = np.unique(samples[rows], return_inverse=True)
            who = np.unique(annotators[rows], return_inverse=True)[1]
            labels = (of_class[rows] >= 0.5).astype(np.int64)
            yield column, answered, count_votes(sample, who, labels, 2)


def _sums(groups: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """Return the sums (count, C) of the rows (R, C) of each group (R,), added in their order."""
    columns = [
        np.bincount(groups, rows[:, column], minlength=count) for column in range(rows.shape[1])
    ]
    return np.stack(columns, axis=1)


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
