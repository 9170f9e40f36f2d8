"""A linear classifier in closed form: what frozen features make of labels that may be wrong.

The mean of a class averages over the mistakes of its labels, and one covariance for all classes, shrunk halfway, leaves
little room to learn them by heart, which a layer that is trained step by step does.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..metrics.calibration import find_temperature

_SHRINKAGE = 0.5
_ABSENT = 1e-6  # samples of a class at most, where stored labels have none: their logits are finite
_TEMPERATURES = (1e-2, 1e4)  # between which that of the logits is looked for
_LOGITS = 2**25  # that it is looked for on: of ImageNet all would take 20 GB


class Discriminant(NamedTuple):
    """Logits are ``features @ weight.T + bias``: weight (C, D), bias (C,), float32."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Return the logits (B, C) of features (B, D)."""
        return torch.nn.functional.linear(features.float(), self.weight, self.bias)


def fit_discriminant(batches: Callable[[], Iterator[tuple[Tensor, Tensor]]]) -> Discriminant:
    """Return Fisher's linear discriminant (1936, doi 10.1111/j.1469-1809.1936.tb02137.x) of soft labels.

    Features are standardised; each sample belongs to all classes, in the shares of its label. The covariance within
    the classes is S = (W + tr(W) / D I) / 2, weight and bias are S^-1 m_c and -m_c S^-1 m_c / 2 for the mean m_c of a
    class: no share of the classes is assumed. One number scales all logits so that their softmax has the least
    cross-entropy to the labels.

    Args:
        batches: yields features (B, D) and labels (B, C), whose rows sum to 1; it is called twice.

    Returns:
        It is computed in float64; a class of which labels have no share is never said.
    """
    # Sums over the samples, weighted by the shares of their labels: all that the means and the covariance need.
    moments: list[Tensor] | None = None
    count = 0
    for features, labels in batches():
        x, p = features.double(), labels.double()
        of_batch = [x.sum(0), x.T @ x, p.sum(0), p.T @ x]
        moments = of_batch if moments is None else [a.add_(b) for a, b in zip(moments, of_batch)]
        count += len(x)
    assert moments is not None, "no batches"
    total, squares, shares, sums = moments

    # Standardised features. One that never changes is left as it is.
    mean = total / count
    deviation = (squares.diagonal() / count - mean**2).clamp(min=0).sqrt()
    deviation = torch.where(
        deviation > 1e-6 * deviation.max(), deviation, torch.ones_like(deviation)
    )

    # The covariance within the classes is that of all samples without that of the means of the classes.
    there = shares > _ABSENT
    means = torch.where(
        there[:, None], (sums / shares.clamp(min=1e-300)[:, None] - mean) / deviation, 0.0
    )
    within = (squares / count - torch.outer(mean, mean)) / torch.outer(deviation, deviation)
    within -= means.T @ (shares[:, None] / count * means)
    shrunk = (1 - _SHRINKAGE) * within
    mean_variance = within.diagonal().mean().clamp(min=1e-6)  # features may all be alike
    shrunk.diagonal().add_(_SHRINKAGE * mean_variance)

    # The discriminant, brought back to the features as they are.
    weight = torch.linalg.solve(shrunk, means.T).T
    bias = -(weight * means).sum(1) / 2
    weight = weight / deviation
    bias -= weight @ mean

    # One scale makes probabilities of its logits.
    step = -(-count * len(shares) // _LOGITS)
    scale = _calibrate(((x[::step], p[::step]) for x, p in batches()), weight, bias, there)
    bias = torch.where(there, scale * bias, -1e4)  # which float16 has too
    return Discriminant((scale * weight).float(), bias.float())


def _calibrate(
    batches: Iterable[tuple[Tensor, Tensor]], weight: Tensor, bias: Tensor, there: Tensor
) -> float:
    """Return the scale of the logits whose softmax has the least cross-entropy to the labels, by bisection: the
    derivative, the mean of <logits, softmax - label>, rises with the scale.
    """
    # Logits and labels of the samples, classes without a share left out.
    parts = [
        (features.double() @ weight[there].T + bias[there], labels.double()[:, there])
        for features, labels in batches
    ]
    logits, labels = (torch.cat(part) for part in zip(*parts))

    def is_too_sure(temperature: float) -> Tensor:
        return (logits * ((logits / temperature).softmax(1) - labels)).sum(1).mean() >= 0

    return 1 / find_temperature(is_too_sure, *_TEMPERATURES)
