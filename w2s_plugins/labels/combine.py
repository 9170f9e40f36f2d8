"""One answer a sample of what several annotators say of it: majority, mean, or a model of the annotators."""

import numpy as np

MEANS = ("majority", "mean", "dawid-skene")


def combine_annotators(
        samples: np.ndarray,
        annotators: np.ndarray,
        labels: np.ndarray,
        num_classes: int,
        how: str = "majority",
        weights: np.ndarray | None = None,
) -> np.ndarray:
    """Return probabilities (N, C) of the classes of each sample.

    Args:
        samples: (R,) sample of each answer, in [0, N).
        annotators: (R,) annotator of each answer, in [0, A).
        labels: (R,) class of each answer, in [0, C).
        num_classes: C.
        how: ``majority``: the class with the most votes, shared evenly by those that have as many; ``mean``: the share
            of votes of each class; ``dawid-skene``: `dawid_skene`.
        weights: (R,) weight of each vote, for majority and mean; None for 1 each.
    """
    if how == "dawid-skene":
        return dawid_skene(samples, annotators, labels, num_classes)
    votes = np.zeros((samples.max() + 1, num_classes))
    np.add.at(votes, (samples, labels), 1.0 if weights is None else weights)
    votes[~votes.any(axis=1)] = 1  # nobody is sure of anything
    if how == "majority":
        votes = (votes == votes.max(axis=1, keepdims=True)).astype(float)
    return votes / votes.sum(axis=1, keepdims=True)


def dawid_skene(
        samples: np.ndarray,
        annotators: np.ndarray,
        labels: np.ndarray,
        num_classes: int,
        max_steps: int = 200,
        tolerance: float = 1e-7,
) -> np.ndarray:
    """Fit a confusion matrix to each annotator and return the posterior (N, C) of the true classes.

    Dawid & Skene, Maximum Likelihood Estimation of Observer Error-Rates Using the EM Algorithm, 1979 (Applied
    Statistics 28, 20). It starts from the shares of votes and ends when the likelihood of a sample grows by less than
    ``tolerance``.

    Args:
        samples: (R,) sample of each answer, in [0, N).
        annotators: (R,) annotator of each answer, in [0, A).
        labels: (R,) class of each answer, in [0, C).
        num_classes: C.
        max_steps: steps of expectation and maximisation at most.
        tolerance: see above.
    """
    tiny = np.finfo(float).tiny
    posterior = combine_annotators(samples, annotators, labels, num_classes, "mean")
    likelihood = -np.inf
    for _ in range(max_steps):
        prior = posterior.mean(axis=0)
        confusion = np.zeros((annotators.max() + 1, num_classes, num_classes))  # annotator, said, true
        np.add.at(confusion, (annotators, labels), posterior[samples])
        confusion /= np.maximum(confusion.sum(axis=1, keepdims=True), tiny)
        log_joint = np.tile(np.log(np.maximum(prior, tiny)), (len(posterior), 1))
        np.add.at(log_joint, samples, np.log(np.maximum(confusion[annotators, labels], tiny)))
        peak = log_joint.max(axis=1, keepdims=True)
        posterior = np.exp(log_joint - peak)
        total = posterior.sum(axis=1, keepdims=True)
        posterior /= total
        before, likelihood = likelihood, float((peak + np.log(total)).mean())
        if likelihood - before < tolerance:
            break
    return posterior


def agreement_of_annotators(samples: np.ndarray, labels: np.ndarray) -> float | None:
    """Return how often two annotators of one sample say the same, over all pairs; None where no sample has two."""
    counts = np.bincount(samples)
    pairs = (counts * (counts - 1) // 2).sum()
    if not pairs:
        return None
    _, same = np.unique(np.stack([samples, labels]), axis=1, return_counts=True)
    return float((same * (same - 1) // 2).sum() / pairs)
