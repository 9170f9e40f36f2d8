"""Intervals and tests against other implementations, and against the errors that they are to make."""

import time

import numpy as np
import pandas
import pytest
from scipy import stats
from statsmodels.stats.anova import AnovaRM
from statsmodels.stats.contingency_tables import mcnemar as their_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from w2s_plugins.metrics.resampling import resampled_means
from w2s_plugins.study.outcome import intervals
from w2s_plugins.study.statistics import bounds, compare, holm, mcnemar, sample_share, t_interval


def test_t_interval_is_that_of_statsmodels() -> None:
    values = [84.5, 86.0, 85.2, 87.9, 85.5]
    found = t_interval(values)
    assert (found["low"], found["high"]) == pytest.approx(DescrStatsW(values).tconfint_mean())
    assert found["sd"] == pytest.approx(np.std(values, ddof=1))
    assert found["n"] == 5
    assert t_interval([3.0]) == dict(mean=3.0, sd=None, low=None, high=None, n=1)


@pytest.mark.parametrize("p_values", [
    [0.01, 0.04, 0.03, 0.005], [0.04, 0.04, 0.04], [0.9, 0.2], [0.05], [], [0.0002, 1.0, 0.03, 0.03, 0.6, 0.011]])
def test_holm_is_that_of_statsmodels(p_values: list[float]) -> None:
    expected = multipletests(p_values, method="holm")[1].tolist() if p_values else []
    assert holm(p_values) == pytest.approx(expected)


def test_mcnemar_is_that_of_statsmodels() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random(300) < 0.8, rng.random(300) < 0.7
    table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    assert mcnemar(a, b) == pytest.approx(their_mcnemar(table, exact=True).pvalue)
    assert mcnemar(a, a) == 1.0


def test_samples_are_resampled_as_the_protocol_does() -> None:
    draw = np.random.default_rng(1).random(1000)
    rows = np.stack([draw < 0.6, draw < 0.7, draw < 0.9, np.random.default_rng(2).random(1000) < 0.8])
    means = 100 * resampled_means(rows, 5000)
    for name, row in zip(("weak", "student", "ceiling", "agreement"), means):
        theirs = intervals(*rows)[name]
        assert bounds(row) == pytest.approx((theirs["low"], theirs["high"]), abs=0.3)
    assert np.corrcoef(means[0], means[1])[0, 1] > 0.7, "all rows are resampled alike"
    assert bounds(np.array([1.0, np.nan])) == (None, None)


def test_limits() -> None:
    """Without an influence of samples it is the paired t-test over seeds; without one of seeds, the samples decide."""
    rng = np.random.default_rng(3)
    seeds = np.array([0.01, 0.03, 0.02, 0.05])
    flat = np.tile(seeds[:, None], (1, 200)) + 1e-9 * rng.normal(size=(4, 200))
    found = compare(flat, resampled_means(flat.mean(axis=0)[None], 5000)[0])
    expected = stats.ttest_1samp(seeds, 0)
    assert found["p"] == pytest.approx(expected.pvalue, abs=1e-3)
    assert (found["low"], found["high"]) == pytest.approx(tuple(expected.confidence_interval()), abs=1e-3)

    row = (rng.random(500) < 0.15).astype(float)
    same = np.tile(row, (4, 1))
    draws = resampled_means(row[None], 5000)[0]
    found = compare(same, draws)
    assert sample_share(same) == pytest.approx(1)
    assert (found["low"], found["high"]) == pytest.approx(bounds(draws), abs=0.002)


@pytest.mark.parametrize(("seeds", "of_seed", "of_sample"), [
    (2, 0.1, 0.0), (3, 0.0, 0.0), (3, 0.1, 0.5), (5, 0.1, 0.0)])
def test_equal_losses_rarely_differ(seeds: int, of_seed: float, of_sample: float) -> None:
    """Of 200 comparisons of equals at most 9 % are significant, 3 standard errors above the nominal 5 %: where the 95 %
    interval, which never ends before that of the samples alone, leaves out 0.
    """
    wrong = 0
    for trial in range(200):
        found, alone = two_losses(seeds, of_seed, of_sample, trial)
        wrong += found["p"] < 0.05
        assert (found["p"] < 0.05) == (not found["low"] <= 0 <= found["high"]) or 0.04 < found["p"] < 0.06
        assert found["low"] <= alone[0] + 1e-9 and found["high"] >= alone[1] - 1e-9
    assert wrong <= 18


def test_a_real_difference_is_found() -> None:
    found = [two_losses(3, 0.02, 0.2, trial, effect=0.5)[0]["p"] < 0.05 for trial in range(20)]
    assert sum(found) >= 16


def two_losses(seeds: int, of_seed: float, of_sample: float, trial: int, effect: float = 0.0) -> tuple[dict, tuple]:
    """Compare two losses whose scores differ by seed and sample at random, on 300 samples; also return the ends of the
    paired bootstrap over samples.
    """
    rng = np.random.default_rng([7, trial])
    ease, sided = rng.normal(0, 1, 300), rng.normal(0, of_sample, 300) / 2
    shape = (seeds, 300)
    base = ease + rng.normal(0, 0.5, shape) + 0.5
    a = base + sided + rng.normal(0, of_seed, (seeds, 1)) + rng.normal(0, 0.5, shape) + effect > 0
    b = base - sided + rng.normal(0, 0.5, shape) > 0
    differences = a.astype(float) - b
    draws = resampled_means(differences.mean(axis=0)[None], 500, trial)[0]
    low, high = bounds(draws - draws.mean() + differences.mean())
    return compare(differences, draws, trial), (low, high)


def test_large_studies_take_seconds() -> None:
    rows = np.random.default_rng(0).random((100, 10_000)) < 0.7
    started = time.process_time()
    assert resampled_means(rows, 5000).shape == (100, 5000)
    assert time.process_time() - started < 20


def test_the_share_of_samples_is_that_of_an_analysis_of_variance() -> None:
    """What is left of F, the spread between samples over that of single answers; nothing where none is left."""
    draw = np.random.default_rng(0)
    for spread in (1.0, 0.0):
        differences = draw.normal(size=(4, 12)) + spread * draw.normal(size=12)
        table = pandas.DataFrame([
            dict(seed=seed, sample=sample, value=value) for (seed, sample), value in np.ndenumerate(differences)])
        found = AnovaRM(table, "value", "seed", within=["sample"]).fit().anova_table["F Value"].item()
        assert sample_share(differences) == pytest.approx(max(0.0, 1 - 1 / found))
    assert sample_share(np.tile([[1.0], [2.0]], 5)) == 0.0


def test_the_least_p_is_one_of_all_draws() -> None:
    """The data count as a draw of their own, so that no p is 0."""
    differences = 1 + np.random.default_rng(0).normal(size=(5, 50)) * 1e-6
    assert compare(differences, resampled_means(differences.mean(axis=0)[None], 500)[0])["p"] == 1 / 501
