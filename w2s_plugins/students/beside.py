"""What foundation models are measured by beside a probe: classifiers that are not trained step by step, on the features
and labels that its head learns from.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS, TEMPERATURE = 20, 0.07
_CHUNK = 2 ** 25  # values at a time


def knn(features: Tensor, labels: Tensor, queries: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """Return the classes (M,) that the k nearest of the samples vote for, each with exp(cosine / 0.07), as in DINO.

    Args:
        features: (N, D).
        labels: (N,) classes.
        queries: (M, D).
        k: neighbours.
    """
    samples, classes, said = F.normalize(features, dim=1), int(labels.max()) + 1, []
    for rows in F.normalize(queries, dim=1).split(max(1, _CHUNK // max(len(samples), classes))):
        nearness, index = (rows @ samples.T).topk(min(k, len(samples)), dim=1)
        votes = rows.new_zeros(len(rows), classes).scatter_add_(1, labels[index], (nearness / TEMPERATURE).exp())
        said.append(votes.argmax(dim=1))
    return torch.cat(said)


def logistic(features: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    """Return the classes (M,) of scikit-learn's logistic regression; arguments as for `knn`."""
    from sklearn.linear_model import LogisticRegression  # takes most of a second, in every run

    if labels.eq(labels[0]).all():  # which it refuses
        return labels[:1].expand(len(queries))
    model = LogisticRegression(max_iter=1000).fit(features.cpu().numpy(), labels.cpu().numpy())
    return torch.from_numpy(model.predict(queries.cpu().numpy())).to(queries.device)


CLASSIFIERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"knn": knn, "logistic": logistic}
