"""Few-shot learning: a frozen encoder measured on episodes of novel classes, and training on episodes.

Evaluation is that of Chen et al., *Meta-Baseline* (2021, arXiv 2003.04390), which Guo et al., *Vision Superalignment*
(2024, arXiv 2402.03749) use: the pooled features of a frozen encoder, and a query belongs to the class whose mean of
shots is nearest by cosine. Training on episodes is Meta-Baseline's second stage, with distillation on the logits of the
queries.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.episodes import query_labels
from ..losses import DistillationLoss
from ..models.feature_extraction import pooled_features
from ..models.loading import classifier_prefixes
from ..settings.forms import EpisodeShape
from ..teachers.teacher import Teacher
from .task import WeakToStrongTask

SCALE = 10.0  # of the cosine at first, and of a teacher's: the released code takes a teacher's encoder only
_CHUNK = 2**24  # numbers that are gathered at once


# ---------------------------------------------------------------- evaluation


@dataclass(frozen=True)
class FewShotTest:
    """Test episodes of one split, the same for every model.

    Args:
        shapes: ways and shots, in the order in which they are reported.
        episodes: for each of them positions (E, ways, shots + queries) in the split.
    """

    shapes: Sequence[EpisodeShape]
    episodes: Sequence[Tensor]

    def measure(self, features: Tensor) -> dict[str, float]:
        """Return, for each shape, the mean accuracy in percent (``5x1``) and half its 95 % interval (``5x1_ci95``).

        Args:
            features: (N, D), of all samples of the split.
        """
        figures = {}
        for shape, episodes in zip(self.shapes, self.episodes):
            accuracies = episode_accuracies(features, episodes, shape.shots)
            figures[str(shape)], figures[f"{shape}_ci95"] = mean_and_interval(100 * accuracies)
        return figures


def episode_accuracies(features: Tensor, episodes: Tensor, shots: int) -> Tensor:
    """Return the share (E,) of the queries of each episode whose class has the nearest mean of shots, by cosine.

    Args:
        features: (N, D).
        episodes: positions (E, ways, shots + queries).
        shots: labelled samples of a class.
    """
    # Episodes are gathered in chunks, because all of their features at once may not fit.
    _, ways, per_class = episodes.shape
    chunk = max(1, _CHUNK // (ways * per_class * features.shape[1]))
    labels, accuracies = query_labels(ways, per_class - shots), []
    for rows in episodes.split(chunk):
        cosines = cosine_to_centroids(features[rows], shots)
        accuracies.append((cosines.argmax(dim=2) == labels).float().mean(dim=1))
    return torch.cat(accuracies)


def cosine_to_centroids(features: Tensor, shots: int) -> Tensor:
    """Return the cosine of each query to the mean of each class's shots.

    Args:
        features: (E, ways, shots + queries, D) of the samples of E episodes.
        shots: labelled samples of a class, which come first.

    Returns:
        (E, ways * queries, ways).
    """
    # Shots come first in each class, queries after them.
    centroids = F.normalize(features[:, :, :shots].mean(dim=2), dim=-1)
    queries = F.normalize(features[:, :, shots:].flatten(1, 2), dim=-1)
    return queries @ centroids.transpose(1, 2)


def mean_and_interval(values: Tensor) -> tuple[float, float]:
    """Return the mean and half its 95 % interval by Student's t; the latter is nan for a single value."""
    count = len(values)
    # A single episode says nothing of how much others would differ.
    if count < 2:
        return float(values.mean()), math.nan
    from scipy.stats import t as student_t  # takes most of a second, in every run

    # In float64, since the deviation of many accuracies that are nearly equal loses digits.
    values = values.double()
    return float(values.mean()), float(
        student_t.ppf(0.975, count - 1) * values.std() / math.sqrt(count)
    )


# ---------------------------------------------------------------- training on episodes


class CosineHead(nn.Module):
    """Logits of the queries of a batch of episodes: a learnt scale times the cosine to the mean of the class's shots.

    Args:
        shape: shape of the episodes; a batch has them one after the other, class by class, shots before queries.
    """

    shapes: tuple[tuple[int, ...], ...] = ()  # of features for losses: there are none

    def __init__(self, shape: EpisodeShape):
        super().__init__()
        self.shape, self.num_classes = shape, shape.ways
        self.scale = nn.Parameter(torch.tensor(SCALE))

    def forward(self, model: nn.Module, images: Tensor) -> tuple[Tensor, None]:
        """Return logits (episodes * ways * queries, ways) for images (episodes * ways * (shots + queries), C, H, W)."""
        return self.logits(pooled_features(model, images), self.scale), None

    def logits(self, features: Tensor, scale: Tensor | float) -> Tensor:
        """Return the logits for the features (B, D) of a batch."""
        # Cosines in float32: in half precision neighbours would tie.
        with torch.autocast(features.device.type, enabled=False):
            features = features.float().unflatten(0, (-1, self.shape.ways, self.shape.per_class))
            return scale * cosine_to_centroids(features, self.shape.shots).flatten(0, 1)


class EpisodeTeacher:
    """What a frozen teacher says of the queries: logits from its own features, whichever stage it was trained in.

    Args:
        teacher: one or several models; of several, probabilities are averaged. None says nothing.
        head: turns features into logits.
    """

    feature_shapes: tuple[tuple[int, ...], ...] = ()

    def __init__(self, teacher: Teacher | None, head: CosineHead):
        self.teacher, self.head = teacher, head

    def __call__(self, images: Tensor) -> Tensor | None:
        """Return logits (episodes * ways * queries, ways)."""
        if self.teacher is None:
            return None
        with torch.no_grad():
            # Shots and queries are embedded together, and each teacher compares them in its own features.
            encoded = self.teacher.encode(images)
            opinions = [self.head.logits(features, SCALE) for features in encoded]
            return self.teacher.target_kind.average(opinions)

    def with_features(self, images: Tensor) -> tuple[Tensor | None, None]:
        """Return the logits and, in place of features for losses, None."""
        return self(images), None


def create_episodic_task(
    student: nn.Module,
    teacher: Teacher | None,
    loss: DistillationLoss | None,
    criterion: nn.Module | None,
    shape: EpisodeShape,
    **kwargs: Any,
) -> WeakToStrongTask:
    """Return a task that trains an encoder on episodes: criterion and distillation on the logits of the queries, whose
    classes are numbered by their place in the episode. The student's own classifier is no part of it and stays.

    Args:
        student: a timm model.
        teacher: frozen, or None.
        loss: distillation loss, or None without a teacher. It sees the classes of an episode only.
        criterion: supervised criterion on (logits, target).
        shape: shape of the episodes.
        **kwargs: further arguments of `WeakToStrongTask`.
    """
    # Nothing of the classifier is in the loss, and DDP waits for what has no gradient.
    for name, parameter in student.named_parameters():
        if name.startswith(classifier_prefixes(student)):
            parameter.requires_grad_(False)
    # The head is the extractor of the task: it runs the student, and makes logits of its pooled features.
    head = CosineHead(shape)
    return WeakToStrongTask(
        student,
        EpisodeTeacher(teacher, head),
        loss or DistillationLoss(),
        criterion,
        extractor=head,
        **kwargs,
    )
