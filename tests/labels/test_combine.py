"""Several annotators brought to one answer, against an independent implementation."""

import numpy as np
import pandas
import pytest

from w2s_plugins.labels.annotators import Crowd, fit_crowd
from w2s_plugins.labels.combine import (
    combine_annotators,
    combine_classes,
    count_votes,
    krippendorff_alpha,
)
from w2s_plugins.labels.forecast import STRENGTHS, advise, settle
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


def dawid_skene(samples, annotators, labels, *how) -> np.ndarray:
    """The posterior, after so many steps, or at so small a gain."""
    votes = count_votes(samples, annotators, labels, CLASSES)
    return fit_crowd(votes, Crowd("dawid-skene"), *how).posterior


@pytest.mark.parametrize("steps", [1, 8])
def test_dawid_skene_is_that_of_crowd_kit(crowd, frame, steps):
    """The same posteriors after as many steps, to 1e-9: there probabilities are kept above 1e-10.

    Its own rule ends at the sixth step, where posteriors of the samples that are contested still move by 0.6.
    """
    aggregation = pytest.importorskip("crowdkit.aggregation")
    ours = dawid_skene(*crowd[1:], steps, -np.inf)
    theirs = aggregation.DawidSkene(n_iter=steps, tol=-np.inf).fit_predict_proba(frame)
    assert np.abs(ours - theirs.loc[range(SAMPLES), range(CLASSES)].to_numpy()).max() < 1e-9


def test_dawid_skene_has_converged_and_is_better_than_the_majority(crowd):
    truth, *answers = crowd
    ours = combine_annotators(*answers, CLASSES, "dawid-skene")
    assert np.abs(ours - dawid_skene(*answers, 1000, -np.inf)).max() < 1e-3
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


def test_one_coin_is_that_of_crowd_kit(crowd, frame):
    """The same class after as many steps; there a reliability is kept above 1e-10 in another way."""
    aggregation = pytest.importorskip("crowdkit.aggregation")
    votes = count_votes(*crowd[1:], CLASSES)
    ours = fit_crowd(votes, Crowd("one-coin"), 8, -np.inf).posterior
    theirs = aggregation.OneCoinDawidSkene(n_iter=8, tol=-np.inf).fit_predict_proba(frame)
    theirs = theirs.loc[range(SAMPLES), range(CLASSES)].to_numpy()
    assert (ours.argmax(1) == theirs.argmax(1)).mean() > 0.98
    assert np.abs(ours - theirs).mean() < 0.02


def test_pooled_annotators_are_between_their_own_matrix_and_the_common_one(crowd):
    """Confusions are drawn towards what all confuse, the further the stronger."""
    votes = count_votes(*crowd[1:], CLASSES)
    spreads = []
    for strength in (0.01, 10.0, 1e6):
        confusion = fit_crowd(votes, Crowd("dawid-skene-pooled", strength)).confusion
        assert np.allclose(confusion.sum(axis=2), 1)
        spreads.append(confusion.std(axis=0).mean())
    assert spreads[0] > 1.2 * spreads[1] > 0 and spreads[2] < 1e-4


@pytest.mark.parametrize("how", [name for name in MEANS if name not in (*STRENGTHS, "auto")])
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


def made(people: int, matrices: str, size: int = 1500) -> tuple[np.ndarray, ...]:
    """True classes, and three answers to each of some samples, by people who confuse classes in a way of their own, in
    the same way, evenly, or as one.
    """
    rng = np.random.default_rng(5)
    truth = rng.integers(CLASSES, size=size)
    samples = np.repeat(np.arange(size), 3)
    annotators = np.concatenate([rng.choice(people, 3, replace=False) for _ in range(size)])
    eye = np.eye(CLASSES)
    skill = np.linspace(0.4, 0.95, people) if matrices != "alike" else np.full(people, 0.7)
    wrong = {
        "own": [eye[rng.permutation(CLASSES)] for _ in range(people)],
        "common": [np.roll(eye, 1, axis=1)] * people,
    }.get(matrices, [(1 - eye) / (CLASSES - 1)] * people)
    confusion = skill[:, None, None] * eye + (1 - skill)[:, None, None] * np.stack(wrong)
    shares = confusion[annotators, truth[samples]].cumsum(axis=1)
    labels = (shares < rng.random((len(samples), 1))).sum(axis=1).clip(max=CLASSES - 1)
    return truth, samples, annotators, labels


def accuracy(truth: np.ndarray, shares: np.ndarray) -> float:
    best = shares > shares.max(axis=1, keepdims=True) - 1e-9
    return float((best[np.arange(len(truth)), truth] / best.sum(axis=1)).mean())


@pytest.mark.parametrize(
    "people, matrices, expected",
    [
        (90, "alike", "majority"),
        (90, "coins", "one-coin"),
        (90, "common", "dawid-skene-pooled"),
        (8, "own", "dawid-skene"),
    ],
)
def test_auto_takes_what_suits_the_crowd(people, matrices, expected, caplog):
    """The way that knows how people confuse classes, and not more than their answers tell; never half a point below."""
    truth, *answers = made(people, matrices)
    votes = count_votes(*answers, CLASSES)
    with caplog.at_level("INFO"):
        chosen = settle("auto", [votes], "--teacher labels:x.csv")
    assert caplog.messages[0].startswith(
        f"--teacher labels:x.csv: combine=auto takes {chosen.name}: "
    )
    right = {how: accuracy(truth, combine_annotators(*answers, CLASSES, how)) for how in MEANS[:-1]}
    right["auto"] = accuracy(truth, combine_annotators(*answers, CLASSES, chosen))
    assert right["auto"] >= max(right.values()) - 0.005, right
    # those that know as much as there is to know may be level
    assert chosen.name == expected or right["auto"] >= right[expected] - 0.002
    lines = [*advise([votes])]
    assert lines[2].split()[0] == chosen.name and f"?combine={chosen.name}," in lines[-1]


def test_auto_of_several_classes_knows_people_by_each():
    """Somebody who never says yes to one class is no vote against it."""
    rng = np.random.default_rng(0)
    truth = rng.random((400, 2)) < 0.5
    people, samples = np.tile(np.arange(3), 400), np.repeat(np.arange(400), 3)
    shares = (truth[samples] ^ (rng.random((1200, 2)) < 0.1)).astype(float)
    shares[people > 0, 1] *= rng.random(800) < 0.2
    by_majority, auto = (
        ((combine_classes(samples, people, shares, how) > 0.5) == truth).mean(axis=0)
        for how in ("majority", "auto")
    )
    assert auto[1] > by_majority[1] + 0.2 and auto[0] >= by_majority[0] - 0.005


def test_auto_without_two_answers_of_a_sample_is_the_majority():
    votes = count_votes(np.arange(3), np.zeros(3, int), np.array([2, 0, 1]), 3)
    assert settle("auto", [votes]).name == "majority"
