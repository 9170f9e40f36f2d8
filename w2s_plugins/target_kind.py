"""What a label is: the one place that knows what logits mean, how opinions are averaged, and what is right.

There is one kind, `ONE_CLASS`: each image has one of C classes. The kind is made once, from the data (`Data.target_kind`),
and handed on; who has no data (a loss of its own, a table by itself) takes `ONE_CLASS`. What each method would be for
several classes an image stands beside "Several:".
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .errors import UserError

if TYPE_CHECKING:
    from timm.task.evaluator import ClassificationEvaluator

UNMAPPED_LOGIT = -1e4  # finite, so that no loss meets 0 * inf; its probability is 0 in float32
TINY = torch.finfo(torch.float32).tiny  # for the logarithm of a probability of 0


class TargetKind(ABC):
    """What the labels of images are. Logits and probabilities are (B, C), one row an image and one column a class.

    Attributes:
        name: known to losses, which register the kinds that they can learn.
        words: how messages call it.
    """

    name: str
    words: str

    # ---------------------------------------------------------------- what logits mean

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probability of each class. Several: the sigmoid of each logit."""

    @abstractmethod
    def from_probabilities(self, probabilities: Tensor) -> Tensor:
        """Return finite logits that mean these probabilities. Several: the logit of each."""

    @abstractmethod
    def average(self, opinions: Sequence[Tensor]) -> Tensor:
        """Return the logits of one model as they are, of several those of the mean of their probabilities. Several: the
        same, class by class.
        """

    @abstractmethod
    def mix(self, logits: Tensor, share: Tensor) -> Tensor:
        """Mix answers about single images as the images of a batch were mixed; return the logarithm of the probabilities.
        Several: the logits of the mixed probabilities.

        Args:
            logits: answers about the single images (..., B, C).
            share: (B, 1) the share of image i in mixed image i. The rest of it is image B - 1 - i, as timm pairs them. If
                the share is 1, the image was not mixed, and its logits are returned as they are.
        """

    @abstractmethod
    def map_classes(self, logits: Tensor, class_map: Tensor, num_classes: int) -> Tensor:
        """Return student-class logits: the log of the summed exponentials of the teacher classes mapped to each. Several:
        the largest of their logits.

        Args:
            logits: (B, T) of the teacher.
            class_map: (T,) student class of each teacher class, -1 for none.
            num_classes: C.

        Returns:
            (B, C); `UNMAPPED_LOGIT` for classes that no teacher class is mapped to.
        """

    @abstractmethod
    def divergence(self, teachers: Tensor, student: Tensor) -> Tensor:
        """Return KL(teacher || student) (M, B) of the logits of teachers (M, B, C) and of a student. Several: the sum of
        that of each class.
        """

    @abstractmethod
    def confidence(self, logits: Tensor) -> Tensor:
        """Return how sure a model is of each image, (B,): the probability of its class. Several: the mean over the
        classes of that of what it says of each.
        """

    @abstractmethod
    def uncertainty(self, probabilities: Tensor) -> Tensor:
        """Return the entropy (B,) of each row. Several: the sum of that of each class."""

    # ---------------------------------------------------------------- hard labels

    @abstractmethod
    def decide(self, logits: Tensor) -> Tensor:
        """Return the hard label of each row of logits or probabilities: the first of the likeliest classes, (B,). Several:
        which classes are above a threshold, (B, C).
        """

    @abstractmethod
    def of_decisions(self, decisions: Tensor, num_classes: int, confidence: float = 1.0) -> Tensor:
        """Return finite logits of hard labels. Several: of each class by itself; what is unknown has no label.

        Args:
            decisions: (B,).
            num_classes: C.
            confidence: the probability of the label's class; the others share the rest evenly.
        """

    @abstractmethod
    def agreement(self, decisions: Tensor, others: Tensor) -> Tensor:
        """Return how far two hard labels of each image agree, (B,) from 0 to 1: fully or not at all. Several: the share of
        the classes of which they say the same.
        """

    @abstractmethod
    def score(self, decisions: Tensor, truth: Tensor) -> Tensor:
        """Return the score (B,) of the hard labels of each image, whose mean is the accuracy: hit or not. Several: F1 of
        its classes.
        """

    @abstractmethod
    def predictions(self, decisions: Mapping[str, Tensor]) -> tuple[list[str], Tensor]:
        """Return names of columns and rows (N, ...) in int32 of who says what of each sample, as a run writes them.
        Several: a column for each class of each.
        """

    @abstractmethod
    def columns(
        self, probabilities: np.ndarray, names: Sequence[str]
    ) -> dict[str, Sequence[str] | np.ndarray]:
        """Return the columns of a table with the hard label of each row, by names, and how sure it is. Several: the names
        that are said of it in one cell.
        """

    @abstractmethod
    def evaluator(self, device: torch.device, max_samples: int | None) -> "ClassificationEvaluator":
        """Return timm's evaluator of logits against ground truth: loss, top-1, top-5. Several: its mAP, F1.

        Args:
            device: of the logits.
            max_samples: how many count; what follows is padding.
        """


class OneClass(TargetKind):
    """Each image has one class. A hard label is its number."""

    name = "one-class"
    words = "one class an image"

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=1)

    def from_probabilities(self, probabilities: Tensor) -> Tensor:
        return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()

    def average(self, opinions: Sequence[Tensor]) -> Tensor:
        # One model keeps its logits: losses with a temperature, or on logits, are not invariant to a shift of them.
        if len(opinions) == 1:
            return opinions[0]
        log_shares = torch.stack([logits.log_softmax(dim=1) for logits in opinions])
        return log_shares.logsumexp(dim=0) - torch.log(torch.tensor(len(opinions)))

    def mix(self, logits: Tensor, share: Tensor) -> Tensor:
        # Add probabilities by their logarithms, because small ones would become 0 otherwise.
        unmixed = logits.log_softmax(dim=-1)
        mixed = torch.logaddexp(unmixed + share.log(), unmixed.flip(-2) + (1 - share).log())
        return torch.where(share == 1, logits, mixed)

    def map_classes(self, logits: Tensor, class_map: Tensor, num_classes: int) -> Tensor:
        # Exponentials are summed below the largest logit, so that none overflows.
        peak = logits.amax(dim=1, keepdim=True)
        sums = torch.zeros(len(logits), num_classes + 1, device=logits.device)
        column = class_map % (num_classes + 1)  # -1 becomes one more column, which is left out
        sums.index_add_(1, column, (logits - peak).exp())
        sums = sums[:, :num_classes]
        # A class that nothing is mapped to has a logit that is finite, and below all others.
        mapped = (sums.log() + peak).clamp(min=UNMAPPED_LOGIT)
        return torch.where(sums > 0, mapped, torch.full_like(mapped, UNMAPPED_LOGIT))

    def divergence(self, teachers: Tensor, student: Tensor) -> Tensor:
        log_q, log_p = teachers.log_softmax(dim=2), student.log_softmax(dim=1)
        return (log_q.exp() * (log_q - log_p)).sum(dim=2)

    def confidence(self, logits: Tensor) -> Tensor:
        return self.probabilities(logits).amax(dim=1)

    def uncertainty(self, probabilities: Tensor) -> Tensor:
        return torch.special.entr(probabilities).sum(dim=1)

    def decide(self, logits: Tensor) -> Tensor:
        return logits.argmax(dim=1)

    def of_decisions(self, decisions: Tensor, num_classes: int, confidence: float = 1.0) -> Tensor:
        other = math.log(max((1 - confidence) / max(1, num_classes - 1), TINY))
        logits = torch.full((len(decisions), num_classes), other, device=decisions.device)
        return logits.scatter_(1, decisions.long().unsqueeze(1), math.log(max(confidence, TINY)))

    def agreement(self, decisions: Tensor, others: Tensor) -> Tensor:
        return decisions == others

    def score(self, decisions: Tensor, truth: Tensor) -> Tensor:
        return decisions == truth

    def predictions(self, decisions: Mapping[str, Tensor]) -> tuple[list[str], Tensor]:
        return [*decisions], torch.stack([*decisions.values()], dim=1).int()

    def columns(
        self, probabilities: np.ndarray, names: Sequence[str]
    ) -> dict[str, Sequence[str] | np.ndarray]:
        classes: list[int] = probabilities.argmax(axis=1).tolist()
        return {"label": [names[i] for i in classes], "confidence": probabilities.max(axis=1)}

    def evaluator(self, device: torch.device, max_samples: int | None) -> "ClassificationEvaluator":
        from timm.task.evaluator import ClassificationEvaluator  # losses need no timm

        return ClassificationEvaluator(device, max_samples=max_samples)


ONE_CLASS = OneClass()


def require_one_class(what: str, target_kind: TargetKind) -> None:
    """Raise a `UserError` where something that is made for one class an image alone is to be used with another kind."""
    if target_kind.name != ONE_CLASS.name:
        raise UserError(f"{what}: labels of {target_kind.words}, expected {ONE_CLASS.words}")
