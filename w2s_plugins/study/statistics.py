"""What can be said of a few seeds on one test set: intervals, paired comparisons, and many of them at once.

Two things are random: the seed, of which there are a few, and the test sample, of which there are many and which all
seeds share. A comparison of two losses draws both. Samples are resampled with replacement, the same ones for all losses
and seeds. Seeds are not: to resample three or five of them gives intervals that are too narrow (What Teachers Should
Know About the Bootstrap, 2015, arXiv 1411.5279), so their part is drawn from the distribution of a mean of so few,
Student's t with S - 1 degrees of freedom. The two parts are independent and add up, as in the bootstrap for crossed
factors (The Pigeonhole Bootstrap, 2007, arXiv 0712.1111); the noise of single answers is in both and is taken out of
the second, see `sample_share`. Few seeds may agree by chance, more than that noise would let them, and the sum then
falls short of what the samples alone leave open: an interval reaches at least as far as theirs. Where samples do not
matter this is the paired t-test over seeds, where seeds do not matter nearly the paired bootstrap over samples.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas
from scipy import stats

from ..metrics.resampling import CONFIDENCE, resampled_means

RESAMPLES = 5000


def t_interval(values: Iterable[float]) -> dict[str, Any]:
    """Return the mean as ``value``, ``low`` and ``high`` of its 95 % t-interval, ``sd`` and ``n``; None with one value. Of
    equal ones there is no interval, which would have no width.

    Args:
        values: one a seed.
    """
    x = np.fromiter(values, np.float64)
    mean, count = float(x.mean()), len(x)
    if count == 1:
        return dict(value=mean, low=None, high=None, sd=None, n=1)
    # seeds are few, so their spread is itself uncertain: Student's t
    sd = float(x.std(ddof=1))
    if sd == 0:
        return dict(value=mean, low=None, high=None, sd=sd, n=count)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * sd / count**0.5
    return dict(value=mean, low=mean - half, high=mean + half, sd=sd, n=count)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm's step-down rule.

    S. Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979 (Scandinavian Journal of Statistics 6, 65).

    Args:
        p_values: of all comparisons that are made together.

    Returns:
        In the same order; to call those below a level significant errs once or more with at most that probability.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    # the least of them counts for all, the next one for all but that, and so on
    raised = p[order] * np.arange(len(p), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(raised))
    return adjusted.tolist()


def percentiles(draws: np.ndarray) -> tuple[float, float]:
    """Return the ends of the percentile interval of draws (R,)."""
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def bounds(draws: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """Return `percentiles`; None where some draws are not finite, or all are equal."""
    is_interval = np.isfinite(draws).all() and np.ptp(draws) > 0
    return percentiles(draws) if is_interval else (None, None)


def sample_interval(
    draws: np.ndarray, value: float, images: int, lowest: float = 0.0
) -> tuple[float, float]:
    """Return the ends of the percentile interval of draws (R,), in percent.

    Draws that are all equal say nothing of images that were not seen: as many as the upper end of Wilson's interval of 0
    in n (Probable Inference, 1927, JASA 22, 209) may be otherwise, and of a difference Newcombe's interval is that wide
    (Statistics in Medicine 17, 1998, 2635).

    Args:
        draws: of the figure in resamples.
        value: of the figure.
        images: n.
        lowest: value that it may have, -100 of a difference; the highest is 100.
    """
    low, high = percentiles(draws)
    if high - low > 1e-9:
        return low, high
    z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    unseen = z**2 / (images + z**2)
    return value - unseen * (value - lowest), value + unseen * (100 - value)


def sample_share(differences: np.ndarray) -> float:
    """Return the share of the spread between samples' means over seeds that is the samples' own, in [0, 1].

    The rest is the noise of single answers, which differences between seeds already have in them. It is estimated as
    the interaction of a two-way analysis of variance.

    Args:
        differences: (S, N), S at least 2.
    """
    # what is left of the table when means of seeds and of samples are taken off is noise of single answers
    seeds, samples = differences.shape
    means = differences.mean(axis=0)
    between = seeds * float(((means - means.mean()) ** 2).sum()) / (samples - 1)
    rest = differences - means - differences.mean(axis=1, keepdims=True) + means.mean()
    noise = float((rest**2).sum()) / ((seeds - 1) * (samples - 1))
    return max(0.0, 1 - noise / between) if between > 0 else 0.0


def compare(differences: np.ndarray, draws: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Compare two losses by their differences on the same seeds and samples.

    Args:
        differences: (S, N) for each seed and sample, N at least 2.
        draws: (R,) means of them for each resample of the test samples, see `metrics.resampling`.
        seed: of the order in which draws of the seeds meet those of the samples.

    Returns:
        The difference as ``value``, ``low`` and ``high`` of its 95 % interval, two-sided ``p``, ``seeds``; of one seed
        the interval is over samples alone, and ``p`` None.
    """
    count = len(differences)
    images = differences.shape[1]
    if count == 1:
        value = float(differences.mean())
        low, high = sample_interval(draws, value, images, -100)
        return dict(value=value, low=low, high=high, p=None, seeds=1)
    by_seed = differences.mean(axis=1)
    difference, spread = float(by_seed.mean()), float(by_seed.std(ddof=1)) / count**0.5
    # the tails of Student's t are heavy, so that random draws from it would differ much: its quantiles, in random order
    quantiles = stats.t.ppf((np.arange(len(draws)) + 0.5) / len(draws), count - 1)
    of_samples = draws - draws.mean()
    of_both = sample_share(differences) ** 0.5 * of_samples
    of_both += spread * np.random.default_rng(seed).permutation(quantiles)
    # few seeds may agree by chance: nothing is surer than the samples alone leave it
    low, high = percentiles(of_both)
    least_low, least_high = sample_interval(difference + of_samples, difference, images, -100)
    beyond = max(
        int((np.abs(part) >= abs(difference) - 1e-12).sum()) for part in (of_both, of_samples)
    )
    return dict(
        value=difference,
        low=min(difference + low, least_low),
        high=max(difference + high, least_high),
        p=(1 + beyond) / (1 + len(draws)),  # the data count as a draw of their own
        seeds=count,
    )


def compare_all(
    differences: Mapping[tuple, pandas.DataFrame],
    draws: Mapping[tuple, np.ndarray] | None = None,
) -> dict[tuple, dict]:
    """Return `compare` of many comparisons, on the same resamples of the test samples; without those of no seed.

    Args:
        differences: of each comparison (S, N) for each seed and sample.
        draws: of each comparison (R,) the mean over its seeds in resamples, where it is not the mean of the samples': mAP.
    """
    rows = {pair: table.to_numpy() for pair, table in differences.items() if len(table)}
    if not rows:
        return {}
    means = np.stack([row.mean(axis=0) for row in rows.values()])
    if draws is None:
        draws = dict(zip(rows, resampled_means(means, RESAMPLES)))
    return {pair: compare(row, draws[pair]) for pair, row in rows.items()}
