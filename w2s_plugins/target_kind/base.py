"""What a kind of target does with tensors: what logits mean, how opinions are averaged, and what is right."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from .table import TargetTable


class TargetKind(TargetTable):
    """What the labels of images are. Logits and probabilities are (B, C), one row an image and one column a class."""

    @property
    def recorded(self) -> dict[str, object]:
        """What the config.json of an export says of it: nothing of one class an image. Several: ``problem_type``, and the
        thresholds if there is one for each class.
        """
        return {}

    # ---------------------------------------------------------------- what logits mean

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probability of each class. Several: the sigmoid of each logit."""

    @abstractmethod
    def from_probabilities(self, probabilities: Tensor) -> Tensor:
        """Return finite logits that mean these probabilities; of NaN they are NaN. Several: the logit of each."""

    @abstractmethod
    def average(self, opinions: Sequence[Tensor]) -> Tensor:
        """Return the logits of one model as they are, of several those of the mean of their probabilities. Several: the
        same, class by class, of those who say something of it.
        """

    @abstractmethod
    def mix(self, logits: Tensor, share: Tensor) -> Tensor:
        """Mix answers about single images as the images of a batch were mixed; return logits of the mixed probabilities.

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
            (B, C); for classes that no teacher class is mapped to `UNMAPPED_LOGIT`. Several: NaN, unknown.
        """

    @abstractmethod
    def divergence(self, teachers: Tensor, student: Tensor) -> Tensor:
        """Return KL(teacher || student) (M, B) of the logits of teachers (M, B, C) and of a student. Several: the sum of
        that of each class that the teacher says something of.
        """

    @abstractmethod
    def confidence(self, logits: Tensor) -> Tensor:
        """Return how sure a model is of each image, (B,): the probability of its class. Several: the mean over the
        classes of that of what it says of each.
        """

    @abstractmethod
    def uncertainty(self, probabilities: Tensor) -> Tensor:
        """Return the entropy (B,) of each row. Several: the sum of that of each class."""

    @abstractmethod
    def are_answers(self, logits: Tensor) -> Tensor:
        """Say which rows (B,) are opinions: all values are finite. Several: those that are not unknown, and some are."""

    # ---------------------------------------------------------------- hard labels

    @abstractmethod
    def decide(self, logits: Tensor) -> Tensor:
        """Return the hard label of each row of logits: the first of the likeliest classes, (B,). Several: 1 for each class
        whose probability is at least the threshold, else 0, `NO_LABEL` for an unknown one, (B, C) in int8.
        """

    def decide_shares(self, probabilities: Tensor) -> Tensor:
        """Return the hard label of each row of probabilities, as `decide` does."""
        return self.decide(self.from_probabilities(probabilities))

    @abstractmethod
    def of_decisions(self, decisions: Tensor, num_classes: int, confidence: float = 1.0) -> Tensor:
        """Return finite logits of hard labels. Several: of each class by itself; NaN for an unknown one.

        Args:
            decisions: as `decide` returns them.
            num_classes: C.
            confidence: the probability of the label's class; the others share the rest evenly. Several: of what is said of
                each class.
        """

    @abstractmethod
    def agreement(self, decisions: Tensor, others: Tensor) -> Tensor:
        """Return how far two hard labels of each image agree, (B,) from 0 to 1: fully or not at all. Several: the share of
        the classes of which they say the same, among those of which both say something; 1 without such.
        """

    @abstractmethod
    def copied(self, decisions: Tensor, teacher: Tensor, truth: Tensor) -> Tensor:
        """Say of each error (E,) of the teacher whether it is made again. Several: an error is one about a class."""

    @abstractmethod
    def score(self, decisions: Tensor, truth: Tensor) -> Tensor:
        """Return the score (B,) of the hard labels of each image, whose mean is the accuracy: hit or not. Several: F1 of
        its classes, as timm has it.
        """

    @abstractmethod
    def predictions(
        self, decisions: Mapping[str, Tensor], logits: Mapping[str, Tensor | None] = {}
    ) -> tuple[list[str], Tensor]:
        """Return names of columns and rows (N, ...) in int32 of who says what of each sample, as a run writes them.
        Several: a column for each class of each, ``student.3``, and its logit, ``student_logit.3``, which mAP is computed
        of; then all is float32.

        Args:
            decisions: hard labels of each, and the true ones.
            logits: (N, C) of those who have them.
        """

    @abstractmethod
    def columns(
        self, probabilities: np.ndarray, names: Sequence[str]
    ) -> dict[str, Sequence[str] | np.ndarray]:
        """Return the columns of a table with the hard label of each row, by names, and how sure it is. Several: the names
        of the classes that the image has in one cell.
        """
