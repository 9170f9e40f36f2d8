"""Several annotators brought to one answer, against an independent implementation."""

import numpy as np
import pandas
import pytest

from w2s_plugins.labels.combine import (
    choose_means,
    combine_annotators,
    dawid_skene,
    krippendorff_alpha,
)
from w2s_plugins.settings.forms import MEANS

SAMPLES, CLASSES = 200, 4


@pytest.fixture(scope="module")
def crowd() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """True classes, and what seven annotators, good and bad, say of the samples that each has seen."""
    rng = np.random.default_rng(3)
    truth = rng.integers(CLASSES, size=SAMPLES)
    rows = []
    for annotator, right in enumerate((0.95, 0.9, 0.8, 0.7, 0.5, 0.4, 0.25)):
        seen = rng.choice(SAMPLES, 150 if annotator else SAMPLES, replace=False)
        said = np.where(
            rng.random(len(seen)) < right, truth[seen], rng.integers(CLASSES, size=len(seen))
        )
        if annotator == 5:  # takes 0 for 1
            said = np.where(truth[seen] == 0, 1, said)
        rows.append(np.stack([seen, np.full(len(seen), annotator), said]))
    return truth, *np.concatenate(rows, axis=1)


@pytest.fixture(scope="module")
def frame(crowd) -> pandas.DataFrame:
    """The answers as Crowd-Kit takes them."""
    return pandas.DataFrame(dict(zip(("task", "worker", "label"), crowd[1:])))


@pytest.mark.parametrize("steps", [1, 8])
def test_dawid_skene_is_that_of_crowd_kit(crowd, frame, steps):
    """The same posteriors after as many steps, to 1e-9: there probabilities are kept above 1e-10.

    Its own rule ends at the sixth step, where posteriors of the samples that are contested still move by 0.6.
    """
    aggregation = pytest.importorskip("crowdkit.aggregation")
    ours = dawid_skene(*crowd[1:], CLASSES, steps, -np.inf)
    theirs = aggregation.DawidSkene(n_iter=steps, tol=-np.inf).fit_predict_proba(frame)
    assert np.abs(ours - theirs.loc[range(SAMPLES), range(CLASSES)].to_numpy()).max() < 1e-9


def test_dawid_skene_has_converged_and_is_better_than_the_majority(crowd):
    truth, *answers = crowd
    ours = combine_annotators(*answers, CLASSES, "dawid-skene")
    assert np.abs(ours - dawid_skene(*answers, CLASSES, 1000, -np.inf)).max() < 1e-3
    majority = combine_annotators(*answers, CLASSES, "majority")
    assert (ours.argmax(1) == truth).mean() > (majority.argmax(1) == truth).mean() > 0.9


def test_majority_is_that_of_crowd_kit(crowd, frame):
    """A tie is shared evenly here; there one of its classes is taken."""
    votes = pytest.importorskip("crowdkit.aggregation").MajorityVote()
    theirs = votes.fit_predict(frame).loc[range(SAMPLES)].to_numpy()
    ours = combine_annotators(*crowd[1:], CLASSES)
    assert (ours[np.arange(SAMPLES), theirs] > 0).all() and (ours.max(1) == 1).mean() > 0.5
    shares = votes.fit_predict_proba(frame).loc[range(SAMPLES), range(CLASSES)].to_numpy()
    assert np.allclose(combine_annotators(*crowd[1:], CLASSES, "mean"), shares)


@pytest.mark.parametrize("first", [0, 550])
def test_agreement_is_that_of_crowd_kit(frame, first):
    """Krippendorff's alpha, where not all have seen every sample, and some samples have one answer."""
    metrics = pytest.importorskip("crowdkit.metrics.data")
    part = frame[first:]
    theirs = metrics.alpha_krippendorff(part)
    counts = pandas.crosstab(part.task, part.label).to_numpy()
    assert krippendorff_alpha(counts) == pytest.approx(theirs, abs=1e-12)
    assert 0 < theirs < 0.5


def test_agreement_of_those_who_share_no_sample():
    assert np.isnan(krippendorff_alpha(np.eye(3)))


@pytest.mark.parametrize("how", MEANS)
def test_one_annotator_is_believed(how):
    said = np.array([2, 0, 1])
    shares = combine_annotators(np.arange(3), np.zeros(3, int), said, 3, how)
    assert np.allclose(shares, np.eye(3)[said])


@pytest.mark.parametrize(
    "how, expected", [("mean", [1.6 / 3, 1.4 / 3]), ("majority", [0.35, 0.65])]
)
def test_votes_weigh_what_they_are_sure_of(how, expected):
    """0.9 for one class, 0.6 and 0.7 for another, which wins and is as likely as those who said it find it."""
    shares = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7]])
    samples, who, said = np.zeros(3, int), np.arange(3), np.array([0, 1, 1])
    assert np.allclose(combine_annotators(samples, who, said, 2, how, shares), [expected])


def test_a_tie_shares_its_probability():
    shares = np.array([[0.75, 0.05, 0.2], [0.05, 0.75, 0.2]])
    both = np.arange(2)
    found = combine_annotators(np.zeros(2, int), both, both, 3, "majority", shares)
    assert np.allclose(found, [[0.375, 0.375, 0.25]])


@pytest.mark.parametrize(
    "people, spread, expected",
    [(90, 0.4, "majority"), (8, 0.0, "majority"), (8, 0.4, "dawid-skene")],
)
def test_the_choice_is_the_better_one(people, spread, expected):
    """With few answers of each annotator the majority, and so where all are as good; else the model of annotators."""
    rng = np.random.default_rng(5)
    size = 1500
    truth = rng.integers(CLASSES, size=size)
    samples = np.repeat(np.arange(size), 3)
    annotators = np.concatenate([rng.choice(people, 3, replace=False) for _ in range(size)])
    skill = 0.75 + spread * np.linspace(-0.5, 0.5, people)
    other = (truth[samples] + rng.integers(1, CLASSES, len(samples))) % CLASSES
    labels = np.where(rng.random(len(samples)) < skill[annotators], truth[samples], other)
    right = {}
    for how in ("majority", "dawid-skene"):
        shares = combine_annotators(samples, annotators, labels, CLASSES, how)
        best = shares > shares.max(axis=1, keepdims=True) - 1e-9
        right[how] = (best[np.arange(size), truth] / best.sum(axis=1)).mean()
    how, why = choose_means(np.bincount(annotators), skill, CLASSES)
    assert how == expected, why
    level = 0.005 if spread == 0 else 0  # where all are as good, either may be better by chance
    assert right[how] >= max(right.values()) - level
