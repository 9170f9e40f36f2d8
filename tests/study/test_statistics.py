"""Intervals and tests against other implementations, and against the errors that they are to make."""

import numpy as np
import pandas
import pytest
from scipy import stats
from statsmodels.stats.anova import AnovaRM
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from w2s_plugins.metrics.resampling import resampled_means
from w2s_plugins.study.scores import figure_text
from w2s_plugins.study.statistics import (
    bounds,
    compare,
    holm,
    sample_interval,
    sample_share,
    t_interval,
)


def test_t_interval_is_that_of_statsmodels() -> None:
    values = [84.5, 86.0, 85.2, 87.9, 85.5]
    found = t_interval(values)
    assert (found["low"], found["high"]) == pytest.approx(DescrStatsW(values).tconfint_mean())
    assert (found["value"], found["sd"], found["n"]) == (
        pytest.approx(np.mean(values)),
        np.std(values, ddof=1),
        5,
    )
    assert t_interval([3.0]) == dict(value=3.0, low=None, high=None, sd=None, n=1)


@pytest.mark.parametrize(
    ("value", "lowest", "images"),
    [(100.0, 0.0, 6), (0.0, 0.0, 40), (0.0, -100.0, 6), (100.0, -100.0, 29)],
)
def test_no_interval_without_width(value: float, lowest: float, images: int) -> None:
    """Where all samples agree it is Wilson's, of a difference Newcombe's, as statsmodels has them."""
    low, high = sample_interval(np.full(5000, value), value, images, lowest)
    hits = images if value == 100 else 0
    wilson = proportion_confint(hits, images, method="wilson")
    if lowest == 0:
        assert (low, high) == pytest.approx([100 * end for end in wilson], abs=1e-9)
    else:
        # of pairs of which none is different; of pairs of which all are, as many may be the other way round
        unseen = 100 * proportion_confint(0, images, method="wilson")[1]
        wanted = (-unseen, unseen) if value == 0 else (100 - 2 * unseen, 100)
        assert (low, high) == pytest.approx(wanted)
    draws = np.random.default_rng(0).normal(size=5000)
    assert sample_interval(draws, 0.0, 6) == bounds(draws)


def test_seeds_and_samples_that_agree() -> None:
    """Equal differences of all seeds and samples do not make a comparison sure, nor equal seeds a mean."""
    for seeds in (1, 3):
        found = compare(np.zeros((seeds, 6)), np.zeros(5000))
        assert found["low"] == pytest.approx(-39.03, abs=0.01) and found["high"] == -found["low"]
    assert t_interval([100.0, 100.0]) == dict(value=100.0, low=None, high=None, sd=0.0, n=2)
    assert figure_text(t_interval([100.0, 100.0])) == "100.00"


@pytest.mark.parametrize(
    "p_values",
    [
        [0.01, 0.04, 0.03, 0.005],
        [0.04, 0.04, 0.04],
        [0.9, 0.2],
        [0.05],
        [],
        [0.0002, 1.0, 0.03, 0.03, 0.6, 0.011],
    ],
)
def test_holm_is_that_of_statsmodels(p_values: list[float]) -> None:
    expected = multipletests(p_values, method="holm")[1].tolist() if p_values else []
    assert holm(p_values) == pytest.approx(expected)


def test_limits() -> None:
    """Without an influence of samples it is the paired t-test over seeds; without one of seeds, the samples decide."""
    rng = np.random.default_rng(3)
    seeds = np.array([0.01, 0.03, 0.02, 0.05])
    flat = np.tile(seeds[:, None], (1, 200)) + 1e-9 * rng.normal(size=(4, 200))
    found = compare(flat, resampled_means(flat.mean(axis=0)[None], 5000)[0])
    expected = stats.ttest_1samp(seeds, 0)
    assert found["p"] == pytest.approx(expected.pvalue, abs=1e-3)
    assert (found["low"], found["high"]) == pytest.approx(
        tuple(expected.confidence_interval()), abs=1e-3
    )

    row = (rng.random(500) < 0.15).astype(float)
    same = np.tile(row, (4, 1))
    draws = resampled_means(row[None], 5000)[0]
    found = compare(same, draws)
    assert sample_share(same) == pytest.approx(1)
    assert (found["low"], found["high"]) == pytest.approx(bounds(draws), abs=0.002)


@pytest.mark.parametrize(
    ("seeds", "of_seed", "of_sample"), [(2, 0.1, 0.0), (3, 0.0, 0.0), (3, 0.1, 0.5), (5, 0.1, 0.0)]
)
def test_equal_losses_rarely_differ(seeds: int, of_seed: float, of_sample: float) -> None:
    """Of 200 comparisons of equals at most 9 % are significant, 3 standard errors above the nominal 5 %: where the 95 %
    interval, which never ends before that of the samples alone, leaves out 0.
    """
    wrong = 0
    for trial in range(200):
        found, alone = two_losses(seeds, of_seed, of_sample, trial)
        wrong += found["p"] < 0.05
        if not 0.04 < found["p"] < 0.06:  # both are estimates
            leaves_out_zero = not found["low"] <= 0 <= found["high"]
            assert (found["p"] < 0.05) == leaves_out_zero
        assert found["low"] <= alone[0] + 1e-9 and found["high"] >= alone[1] - 1e-9
    assert wrong <= 18


def test_a_real_difference_is_found() -> None:
    found = [two_losses(3, 0.02, 0.2, trial, effect=0.5)[0]["p"] < 0.05 for trial in range(20)]
    assert sum(found) >= 16


def two_losses(
    seeds: int, of_seed: float, of_sample: float, trial: int, effect: float = 0.0
) -> tuple[dict, tuple]:
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


@pytest.mark.parametrize(("spread", "seed"), [(1.0, 0), (0.0, 0), (0.0, 2)])
def test_the_share_of_samples_is_that_of_an_analysis_of_variance(spread: float, seed: int) -> None:
    """What is left of F, the spread between samples over that of single answers; nothing where none is left."""
    draw = np.random.default_rng(seed)
    differences = draw.normal(size=(4, 12)) + spread * draw.normal(size=12)
    table = pandas.DataFrame(
        [
            dict(seed=seed, sample=sample, value=value)
            for (seed, sample), value in np.ndenumerate(differences)
        ]
    )
    ratio = AnovaRM(table, "value", "seed", within=["sample"]).fit().anova_table["F Value"].item()
    assert sample_share(differences) == pytest.approx(max(0.0, 1 - 1 / ratio))


def test_the_same_differences_of_all_samples_have_no_share() -> None:
    assert sample_share(np.tile([[1.0], [2.0]], 5)) == 0.0


def test_the_least_p_is_one_of_all_draws() -> None:
    """The data count as a draw of their own, so that no p is 0."""
    differences = 1 + np.random.default_rng(0).normal(size=(5, 50)) * 1e-6
    assert (
        compare(differences, resampled_means(differences.mean(axis=0)[None], 500)[0])["p"]
        == 1 / 501
    )
