"""Expectation and maximisation for annotators: what each confuses, and what then is true of each sample.

Whoever answers, a person of a crowd or a teacher, has a confusion matrix, whose rows are true classes. Expectation takes
the matrices as known and says what is true of each sample; maximisation counts answers by what is then true (Dawid &
Skene, Maximum Likelihood Estimation of Observer Error-Rates Using the EM Algorithm, 1979, Applied Statistics 28, 20).
`teachers.posterior` goes over stored answers of teachers in this way, and `fit_crowd` over the votes of a crowd.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar, cast

import numpy as np
from scipy import sparse
from torch import Tensor

TINY = float(np.finfo(float).tiny)
MOST_STEPS, TOLERANCE = 200, 1e-7  # of the likelihood of a sample, below which they end
_NEARLY = 1e-10  # from 0 and 1, for a reliability: a single other answer is possible
_FROM_COIN = 1.0  # answers of a class that are assumed to be confused evenly, in the confusion that is common

Array = TypeVar("Array", np.ndarray, Tensor)
State = TypeVar("State")


def alternate(
    step: Callable[[State], tuple[State, float]], state: State, max_steps: int, tolerance: float
) -> State:
    """Repeat a step of expectation and maximisation until what it changes is below ``tolerance``.

    Args:
        step: returns the next state, and how much it changed.
        state: to begin with.
        max_steps: steps at most.
        tolerance: see above.
    """
    for _ in range(max_steps):
        state, change = step(state)
        if change < tolerance:
            break
    return state


def shrink(counts: Array, towards: Array, strength: float) -> Array:
    """Return rows of counts (..., C) as shares, with ``strength`` answers more, which are as ``towards`` (..., C) says."""
    total = counts.sum(-1)[..., None] + strength
    return cast("Array", (counts + strength * towards) / total.clip(TINY))


class Crowd(NamedTuple):
    """A model of a crowd.

    Args:
        name: ``majority``: all annotators are as reliable, and all classes as frequent. ``one-coin``: each is right with
            a probability of their own, and wrong answers are spread evenly. ``dawid-skene``: each has a confusion
            matrix. ``dawid-skene-pooled``: these are drawn towards the confusion that all have in common (Paun et al.,
            Comparing Bayesian Models of Annotation, 2018, TACL 6, 571). `FITTED` without ``auto``, or ``majority``.
        strength: how many answers (of ``dawid-skene-pooled`` about a class) what all have in common weighs as much as.
    """

    name: str
    strength: float = 0.0


_FORECASTING = Crowd("dawid-skene-pooled", 10.0)  # of 3, 10 and 30 all chose alike


class Votes:
    """Answers of a crowd, each a class.

    Args:
        samples: (R,) sample of each answer, in [0, N).
        annotators: (R,) annotator of each answer, in [0, A).
        labels: (R,) class of each answer, in [0, C).
        shape: N, A and C.
    """

    def __init__(
        self,
        samples: np.ndarray,
        annotators: np.ndarray,
        labels: np.ndarray,
        shape: tuple[int, int, int],
    ):
        self.samples, self.annotators, self.labels, self.shape = samples, annotators, labels, shape
        samples_, annotators_, classes = shape
        cells = annotators * classes + labels
        ones = np.ones(len(samples))
        # by sample, and by annotator and class: expectation and maximisation are products with it
        self.cells = sparse.csr_array(
            (ones, (samples, cells)), shape=(samples_, annotators_ * classes)
        )
        counted = sparse.csr_array((ones, (samples, labels)), shape=(samples_, classes)).toarray()
        self.answers = counted.sum(axis=1)
        # nobody says anything of a sample whose answers are all held out
        self.has = self.answers > 0
        self.shares = np.full(counted.shape, 1 / classes)
        self.shares[self.has] = counted[self.has] / self.answers[self.has, None]

    def take(self, rows: np.ndarray) -> "Votes":
        """Return some of the answers, of the same samples, annotators and classes."""
        return Votes(self.samples[rows], self.annotators[rows], self.labels[rows], self.shape)


class Fit(NamedTuple):
    """What a model makes of answers.

    Args:
        posterior: (N, C) probabilities of the true classes.
        confusion: (A, C, C) by annotator, true class and answer; rows sum to 1.
        likelihood: mean log-likelihood of a sample.
    """

    posterior: np.ndarray
    confusion: np.ndarray
    likelihood: float


def fit_crowd(
    votes: Votes, crowd: Crowd, max_steps: int = MOST_STEPS, tolerance: float = TOLERANCE
) -> Fit:
    """Fit a model of a crowd; it ends when the likelihood of a sample grows by less than ``tolerance``.

    A start at random would name the classes in any order; the shares of votes name them as people do.
    """
    # Shares of classes that are fitted too may end with fewer classes, where all confuse the same two.
    shares = votes.shares[votes.has].mean(axis=0)
    if crowd.name == "majority":
        shares = np.full_like(shares, 1 / len(shares))

    def step(before: Fit) -> tuple[Fit, float]:
        confusion = _maximise(votes, before.posterior, crowd)
        prior = shares
        if crowd.name == "dawid-skene":
            prior = before.posterior[votes.has].mean(axis=0)
        # what each sample is, if annotators are so; the peak is taken out before exp, which would underflow
        logs = np.log(np.maximum(confusion, TINY)).transpose(0, 2, 1).reshape(-1, len(prior))
        log_joint = np.log(np.maximum(prior, TINY)) + votes.cells @ logs
        peak = log_joint.max(axis=1, keepdims=True)
        posterior = np.exp(log_joint - peak)
        total = posterior.sum(axis=1, keepdims=True)
        likelihood = float((peak + np.log(total)).mean())
        return Fit(posterior / total, confusion, likelihood), likelihood - before.likelihood

    # the first step counts answers by the shares of votes
    start = Fit(votes.shares, np.empty(0), -np.inf)
    return alternate(step, start, max_steps, tolerance)


def _maximise(votes: Votes, posterior: np.ndarray, crowd: Crowd) -> np.ndarray:
    """Return the confusion (A, C, C) of each annotator, if the samples are what ``posterior`` (N, C) says."""
    people, classes = votes.shape[1:]
    # by annotator, true class and answer
    # an answer counts for each true class as much as that is likely
    counts = (votes.cells.T @ posterior).reshape(people, classes, classes).transpose(0, 2, 1)
    # one that never answered about a class has a row of zeros there, which a likelihood of 0 excludes
    if crowd.name == "dawid-skene":
        return shrink(counts, np.zeros(classes), 0.0)
    # what all have in common: how often an answer is right, and what is taken for what
    total = counts.sum(axis=0)
    overall = np.trace(total) / total.sum()
    if crowd.name == "majority":
        return _coins(np.full(people, overall), classes)
    # the share of right answers of each, drawn towards that of all
    if crowd.name == "one-coin":
        hits = np.trace(counts, axis1=1, axis2=2)
        reliability = hits + crowd.strength * overall
        return _coins(reliability / (counts.sum(axis=(1, 2)) + crowd.strength), classes)
    # the confusion of all, itself drawn towards even mistakes by one answer, so that nothing in it is impossible
    common = shrink(total, _coins(np.array([overall]), classes)[0], _FROM_COIN)
    return shrink(counts, common, crowd.strength)


def _coins(reliability: np.ndarray, classes: int) -> np.ndarray:
    """Return the matrices (A, C, C) of annotators who are right so often (A,), and else say any other class."""
    right = reliability.clip(_NEARLY, 1 - _NEARLY)[:, None, None]
    same = np.eye(classes)
    return right * same + (1 - right) / max(1, classes - 1) * (1 - same)


def forecast(votes: Votes, posterior: np.ndarray, held_out: Votes) -> np.ndarray:
    """Return how likely each of the answers ``held_out`` is, (R,), if samples are what ``posterior`` (N, C) says.

    Whatever model has found the posterior, annotators confuse classes as the other ``votes`` say beside it. So models
    are compared by what they take for true, and none wins because it knows what a careless annotator always answers.
    """
    confusion = _maximise(votes, posterior, _FORECASTING)
    truth = posterior[held_out.samples]
    return (truth * confusion[held_out.annotators, :, held_out.labels]).sum(axis=1)
