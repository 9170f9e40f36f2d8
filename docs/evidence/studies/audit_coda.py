"""CODA, by which `audit_several.py` measures an audit: it asks one image after another, the next by all answers so far.

Written from the paper (Kay, Van Horn, Maji, Sheldon and Beery, "Consensus-Driven Active Model Selection", arXiv
2507.23771), and from the constants of its public code, where the paper leaves them open.
"""

import numpy as np
from scipy.special import betaln

POINTS = 256  # of the integrals over accuracies
PRIOR = 2.0  # times the confusion matrix that is expected of each student
CONSENSUS = 0.1  # times its confusion with the mean of all
ANSWER = 0.01  # what an answer adds to a parameter
LEAST = 1e-12


class Coda:
    """What is believed of K students of C classes: a Dirichlet distribution for each row of each confusion matrix.

    Args:
        probabilities: (N, K, C) of each image, by each student.
        weight: what an answer adds to a parameter.
    """

    def __init__(self, probabilities: np.ndarray, weight: float = ANSWER) -> None:
        self.weight = weight
        students, classes = probabilities.shape[1:]
        self.students, self.classes = np.arange(students), np.arange(classes)
        self.says = probabilities.argmax(axis=2)
        self.probabilities = probabilities.transpose(1, 0, 2)

        # the diagonal is expected, and what the mean of all students says
        consensus = np.eye(classes, dtype=np.float32)[probabilities.mean(axis=1).argmax(axis=1)]
        confusion = np.einsum("nc,knj->kcj", consensus, self.probabilities, optimize=True)
        confusion /= np.maximum(confusion.sum(axis=2, keepdims=True), 1e-6)
        expected = np.full((classes, classes), 1 / (classes - 1))
        np.fill_diagonal(expected, 1)
        self.parameters = PRIOR * (expected + CONSENSUS * confusion)
        self.true = np.einsum("kcj,knj->nc", self.parameters, self.probabilities, optimize=True)

        # it never asks where all agree; elsewhere, who is right if the truth is a class, as a number
        self.open = (self.says != self.says[:, :1]).any(axis=1).nonzero()[0]
        hits = self.says[self.open][:, None, :] == self.classes[:, None]
        self.outcomes = hits @ (1 << self.students)
        self.possible = [np.unique(self.outcomes[:, one]) for one in range(classes)]
        self.now = np.zeros((classes, students))  # who is best in a class
        self.after = np.zeros(
            (classes, 1 << students, students)
        )  # if an image of it had an outcome
        for one in range(classes):
            self._update(one)

    def is_best(self) -> np.ndarray:
        """Return how probably each student (K,) is the best one."""
        return self._shares() @ self.now

    def ask(self, rng: np.random.Generator) -> int:
        """Return the image that is expected to tell most about which student is best, one of several by chance."""
        shares, best = self._shares(), self.is_best()
        doubt = np.zeros(self.after.shape[:2])
        for one, outcomes in enumerate(self.possible):
            changed = best + shares[one] * (self.after[one, outcomes] - self.now[one])
            doubt[one, outcomes] = _entropy(changed)
        expected = (self._posterior()[self.open] * doubt[self.classes, self.outcomes]).sum(axis=1)
        return int(self.open[rng.choice(np.isclose(expected, expected.min(), 1e-8).nonzero()[0])])

    def answer(self, image: int, truth: int) -> None:
        """Learn the class of an image."""
        self.parameters[self.students, truth, self.says[image]] += self.weight
        self.true[:, truth] = np.einsum(
            "kj,knj->n", self.parameters[:, truth], self.probabilities, optimize=True
        )
        left = self.open != image
        self.open, self.outcomes = self.open[left], self.outcomes[left]
        self._update(truth)

    def _posterior(self) -> np.ndarray:
        """Return how probable each class of each image (N, C) is."""
        return self.true / np.maximum(self.true.sum(axis=1, keepdims=True), LEAST)

    def _shares(self) -> np.ndarray:
        """Return how frequent each class (C,) is."""
        return self._posterior().mean(axis=0)

    def _update(self, one: int) -> None:
        """Find who is best in a class, now and after each possible outcome of one more answer."""
        right = self.parameters[:, one, one]
        wrong = self.parameters[:, one].sum(axis=1) - right
        self.now[one] = _best_of(*_beta(right, wrong))
        outcomes = self.possible[one]
        hits = (outcomes[:, None] >> self.students & 1 == 1)[..., None]
        if_right, if_wrong = _beta(right + 1, wrong), _beta(right, wrong + 1)
        self.after[one, outcomes] = _best_of(
            *(np.where(hits, *pair).astype(np.float32) for pair in zip(if_right, if_wrong))
        )


GRID = np.linspace(1e-6, 1 - 1e-6, POINTS)


def _beta(right: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return density and logarithm of the distribution function (..., points) of Beta distributions (...)."""
    logs = (right[..., None] - 1) * np.log(GRID) + (wrong[..., None] - 1) * np.log1p(-GRID)
    density = np.exp(logs - betaln(right, wrong)[..., None])
    below = np.zeros_like(density)
    below[..., 1:] = np.cumsum((density[..., 1:] + density[..., :-1]) / 2 * np.diff(GRID), axis=-1)
    return density, np.log(np.maximum(below, 1e-30))


def _best_of(density: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return how probably each of K numbers (..., K, points) is the greatest."""
    others = np.exp(np.clip(below.sum(axis=-2, keepdims=True) - below, -80, 80))
    found = np.trapezoid(density * others, GRID, axis=-1)
    return found / np.maximum(found.sum(axis=-1, keepdims=True), 1e-30)


def _entropy(shares: np.ndarray) -> np.ndarray:
    """Return the entropy (...) of distributions (..., K)."""
    shares = np.maximum(shares, LEAST)
    return -(shares * np.log2(shares)).sum(axis=-1)
