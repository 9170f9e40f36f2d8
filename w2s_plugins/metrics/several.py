"""Figures of several classes an image: average precision, F1 and thresholds of each class, and intervals.

Truth is (N, C): 1, 0, or NaN where nobody knows, which counts nowhere. Scores are (N, C), logits or probabilities; NaN
is a class that a model says nothing of: it ranks below all others, and is decided to be none. A class that all known
images have, or none, cannot be ranked: its AP is NaN, and it leaves the mAP. One that all have leaves F1 too.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse

from ..private_names import average_precision_columns
from .resampling import drawn_counts, resampled_means

THRESHOLD = 0.5  # of a probability, from which on a class is said to be there
FEWEST_FOR_THRESHOLD = 10  # positives that a threshold of a class is chosen on


# ---------------------------------------------------------------- average precision


class _Ranking(NamedTuple):
    """The images of which one class is known, the likeliest first.

    Args:
        order: (K,) their positions.
        has: (K,) whether they have the class.
        start: (K,) where the images of the same score begin.
        end: (K,) where they end, the last one's place.
    """

    order: np.ndarray
    has: np.ndarray
    start: np.ndarray
    end: np.ndarray

    @property
    def is_ranked(self) -> bool:
        """Whether some images have the class, and others do not."""
        return bool(self.has.any() and not self.has.all())

    @classmethod
    def of(cls, scores: np.ndarray, truth: np.ndarray) -> "_Ranking":
        """Rank by the scores (N,) of one class."""
        known = np.flatnonzero(~np.isnan(truth))
        ours = scores[known]
        ours = np.where(np.isnan(ours), -np.inf, ours)
        by_score = np.argsort(-ours, kind="stable")
        ours = ours[by_score]
        # a threshold takes in all images of its score, or none of them
        is_last = np.append(ours[1:] != ours[:-1], True)[: len(ours)]
        ends = np.flatnonzero(is_last)
        sizes = np.diff(ends, prepend=-1)
        order = known[by_score]
        return cls(
            order, truth[order] >= 0.5, np.repeat(ends - sizes + 1, sizes), np.repeat(ends, sizes)
        )


def _rankings(scores: np.ndarray, truth: np.ndarray) -> list[_Ranking]:
    return [_Ranking.of(of_class, true) for of_class, true in zip(scores.T, truth.T)]


def average_precision(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the average precision (C,) of each class, from 0 to 1: the mean of the precision at each positive image.

    It is timm's, over the images of which the class is known. It is not interpolated, as in scikit-learn's
    ``average_precision_score``: images of one score come together. A class that cannot be ranked has NaN; the mean over
    the others is the mAP.

    Args:
        scores: (N, C).
        truth: (N, C).
    """
    known, has = ~np.isnan(truth), truth >= 0.5
    # what nothing is said of is below all else
    ranked = torch.from_numpy(np.where(np.isnan(scores), -np.inf, scores))
    if known.all():
        values = average_precision_columns(ranked, torch.from_numpy(has)).cpu().numpy()
    else:
        columns = [
            average_precision_columns(ranked[rows, i, None], torch.from_numpy(has[rows, i, None]))
            for i, rows in enumerate(known.T)
        ]
        values = torch.cat(columns).numpy()
    values[~has.any(axis=0) | ~(known & ~has).any(axis=0)] = np.nan
    return values


def mean_of_known(values: np.ndarray) -> float:
    """Return the mean without NaN, summed in the order in which timm sums; NaN of nothing."""
    return torch.from_numpy(values[~np.isnan(values)]).mean().item()


def map_by_image(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return what each image contributes to the mAP, (N,), whose mean is the mAP, from 0 to 1; NaN where there is none.

    An image has no mAP of its own. What is returned is the mAP plus N times its derivative by the weight of the image,
    the first-order term of what the bootstrap does (the infinitesimal jackknife: Efron, The Jackknife, the Bootstrap and
    Other Resampling Plans, 1982, chapter 6). It serves to tell noise of images from noise of seeds; intervals are those of
    `resampled_map`, which computes the mAP anew.

    Args:
        scores: (N, C).
        truth: (N, C).
    """
    count, classes = len(scores), 0
    slopes, total = np.zeros(count), 0.0
    for one in _rankings(scores, truth):
        if not one.is_ranked:
            continue
        positives, classes = one.has.sum(), classes + 1
        true, taken = one.has.cumsum()[one.end], one.end + 1
        precision = true / taken
        ap = precision[one.has].mean()
        total += ap
        # the weight of an image counts among the positives, and in the precision at all positives that rank no higher
        gained = np.where(one.has, 1 / taken, 0)[::-1].cumsum()[::-1][one.start]
        lost = np.where(one.has, true / taken**2, 0)[::-1].cumsum()[::-1][one.start]
        slopes[one.order] += (one.has * (precision - ap + gained) - lost) / positives
    return (total + count * slopes) / (classes or np.nan)


# ---------------------------------------------------------------- decisions


class F1(NamedTuple):
    """F1 from 0 to 1, with 0 where there is nothing to find and nothing was said, as in timm; NaN without any class.

    Args:
        micro: of all classes and images together.
        macro: mean over the classes.
        sample: mean over the images.
        by_class: (C,), NaN of those that leave it.
    """

    micro: float
    macro: float
    sample: float
    by_class: np.ndarray


def _counts(decisions: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where a class is found, and in how many of decision and truth it is, both (N, C) in float64, and which
    classes (C,) count.
    """
    has_negative = (truth < 0.5).sum(axis=0) > 0
    known = ~np.isnan(truth) & has_negative
    says, has = known & (decisions == 1), known & (truth >= 0.5)
    return (says & has).astype(np.float64), says.astype(np.float64) + has, has_negative


def f1_figures(decisions: np.ndarray, truth: np.ndarray) -> F1:
    """Return F1 of decisions.

    Args:
        decisions: (N, C), 1 for a class that is said to be there; anything else is none.
        truth: (N, C).
    """
    # over all images of a class, over all classes of an image, and over everything; none at all counts as 0, as in timm
    found, either, counted = _counts(decisions, truth)
    by_class = 2 * found.sum(axis=0) / np.maximum(either.sum(axis=0), 1)
    by_class[~counted] = np.nan
    if not counted.any():
        return F1(np.nan, np.nan, np.nan, by_class)
    by_image = 2 * found.sum(axis=1) / np.maximum(either.sum(axis=1), 1)
    micro = 2 * found.sum() / max(either.sum(), 1)
    return F1(float(micro), mean_of_known(by_class), mean_of_known(by_image), by_class)


def decide(scores: np.ndarray, thresholds: float | np.ndarray = THRESHOLD) -> np.ndarray:
    """Return 1 where a score is at least the threshold, or that of its class (C,), else 0."""
    with np.errstate(invalid="ignore"):  # NaN is below every threshold
        return (scores >= thresholds).astype(np.int8)


def best_thresholds(
    scores: np.ndarray, truth: np.ndarray, fewest: int = FEWEST_FOR_THRESHOLD
) -> np.ndarray:
    """Return the threshold (C,) of each class that its F1 is highest with, halfway between two scores.

    They are to be chosen on images that nothing is reported on: on the reported ones they would flatter. A class with few
    positives keeps 0.5, because the best threshold of a handful of images is that of their noise, and so does one without a
    negative, because the lowest threshold is always best there.

    Args:
        scores: (N, C) probabilities of a held-out part.
        truth: (N, C).
        fewest: positives that a class needs.
    """
    thresholds = np.full(scores.shape[1], THRESHOLD)
    for i, one in enumerate(_rankings(scores, truth)):
        said = ~np.isnan(scores[one.order, i])
        positives = int(one.has.sum())
        if positives < fewest or not one.is_ranked or not said.any():
            continue
        # F1 with all images down to each place accepted; what nothing is said of is never accepted
        f1 = (2 * one.has.cumsum()[one.end] / (one.end + 1 + positives))[said]
        place = one.end[f1.argmax()]
        accepted = scores[one.order[place], i]
        has_next = place + 1 < said.sum()
        next_one = scores[one.order[place + 1], i] if has_next else accepted
        halfway = (float(accepted) + float(next_one)) / 2
        thresholds[i] = halfway if halfway > next_one else accepted
    return thresholds


def class_rows(
    names: Sequence[str],
    scores: np.ndarray,
    truth: np.ndarray,
    thresholds: np.ndarray | None = None,
) -> list[dict[str, object]]:
    """Return a row a class: ``class``, ``known`` images, ``positives``, ``AP`` and ``F1`` in percent, ``threshold``.

    AP is None for a class without a positive or a negative, which nobody can rank, and F1 without a negative.

    Args:
        names: of the classes.
        scores: (N, C) probabilities.
        truth: (N, C).
        thresholds: (C,), 0.5 if there are none.
    """
    if thresholds is None:
        thresholds = np.full(len(names), THRESHOLD)
    # how well images are ranked, and what becomes of it at a threshold
    aps = 100 * average_precision(scores, truth)
    f1 = 100 * f1_figures(decide(scores, thresholds), truth).by_class
    # of how many images a reader has to know to believe either
    positives = (truth >= 0.5).sum(axis=0).tolist()
    known = (~np.isnan(truth)).sum(axis=0).tolist()
    return [
        {
            "class": name,
            "known": known[i],
            "positives": positives[i],
            "AP": None if np.isnan(aps[i]) else float(aps[i]),
            "F1": None if np.isnan(f1[i]) else float(f1[i]),
            "threshold": float(thresholds[i]),
        }
        for i, name in enumerate(names)
    ]


# ---------------------------------------------------------------- intervals


class _Segments:
    """The images of one class by the places at which its precision is read, so that a resample needs no sorting.

    A resample changes how often an image is there, and not how it ranks. Images between two scores that positives have
    are counted together; counts of all resamples are a product with a sparse matrix.
    """

    def __init__(self, ranking: _Ranking, count: int):
        places = np.flatnonzero(ranking.has)
        stops, group = np.unique(ranking.end[places], return_inverse=True)
        # every image down to the last positive belongs to the first stop that it is not below
        taken = ranking.order[: stops[-1] + 1]
        segment = np.searchsorted(stops, np.arange(len(taken)))
        self.all = self._indicator(segment, taken, (len(stops), count))
        self.positive = self._indicator(group, ranking.order[places], (len(stops), count))
        self.negative = ranking.order[~ranking.has]

    @staticmethod
    def _indicator(
        rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]
    ) -> sparse.csr_array:
        return sparse.csr_array((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)

    def average_precision(self, times: np.ndarray) -> np.ndarray:
        """Return the AP (R,) in resamples, NaN where the class cannot be ranked; ``times`` (N, R): how often each image is
        there.
        """
        taken = (self.all @ times).cumsum(axis=0, dtype=np.float64)
        positive = self.positive @ times
        true = positive.cumsum(axis=0, dtype=np.float64)
        sums = (positive * true / np.maximum(taken, 1)).sum(axis=0)
        is_ranked = (true[-1] > 0) & times[self.negative].any(axis=0)
        return np.divide(sums, true[-1], out=np.full(len(sums), np.nan), where=is_ranked)


def resampled_map(
    scores: Mapping[str, np.ndarray], truth: np.ndarray, resamples: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return the mAP (R,) of models, from 0 to 1, computed anew in each resample of the images, the same for all.

    Without resampling it is the mean of `average_precision`. A class that cannot be ranked in a resample leaves its mean;
    as 0 it would draw the interval below the mAP. A resample in which none can be ranked is replaced by another one; without
    any it is NaN.

    Args:
        scores: (N, C) of each model.
        truth: (N, C).
        resamples: R.
        seed: of the draws, which are those of `resampled_means`.
    """
    # each class is sorted once; a resample changes how often an image counts, and not its place
    count = len(truth)
    by_model = {
        name: [_Segments(one, count) for one in _rankings(rows, truth) if one.is_ranked]
        for name, rows in scores.items()
    }
    values = {name: np.zeros(resamples) for name in scores}
    # some resamples at a time, so that their counts fit into memory
    for start, times in drawn_counts(count, resamples, seed):
        columns = np.ascontiguousarray(times.T)
        part = slice(start, start + len(times))
        for name, segments in by_model.items():
            sums, present = np.zeros(len(times)), np.zeros(len(times))
            for one in segments:
                ap = one.average_precision(columns)
                sums += np.nan_to_num(ap)
                present += ~np.isnan(ap)
            values[name][part] = np.divide(
                sums, present, out=np.full(len(times), np.nan), where=present > 0
            )
    # which these are depends on the truth alone, so models stay paired
    for drawn in values.values():
        lacking = np.isnan(drawn)
        if not lacking.all():
            drawn[lacking] = np.resize(drawn[~lacking], lacking.sum())
    return values


def resampled_f1(
    decisions: np.ndarray, truth: np.ndarray, resamples: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return ``micro_f1``, ``macro_f1`` and ``sample_f1`` (R,) from 0 to 1 in resamples of the images.

    A class that is in no decision and no truth of a resample is left out of the macro F1 there.

    Args:
        decisions: (N, C), as of `f1_figures`.
        truth: (N, C).
        resamples: R.
        seed: of the draws, which are those of `resampled_means`.
    """
    found, either, counted = _counts(decisions, truth)
    share = either.any(axis=0).sum() / max(counted.sum(), 1)
    micro, macro = np.zeros(resamples), np.zeros(resamples)
    for start, times in drawn_counts(len(truth), resamples, seed):
        part = slice(start, start + len(times))
        # whole numbers, which float32 holds exactly
        hits = (times @ found.astype(np.float32)).astype(np.float64)
        sizes = (times @ either.astype(np.float32)).astype(np.float64)
        micro[part] = 2 * hits.sum(axis=1) / np.maximum(sizes.sum(axis=1), 1)
        by_class = 2 * hits / np.maximum(sizes, 1)
        present = np.maximum((sizes > 0).sum(axis=1), 1)
        macro[part] = by_class.sum(axis=1) / present * share
    by_image = 2 * found.sum(axis=1) / np.maximum(either.sum(axis=1), 1)
    return {
        "micro_f1": micro,
        "macro_f1": macro,
        "sample_f1": resampled_means(by_image[None], resamples, seed)[0],
    }
