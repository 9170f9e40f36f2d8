"""What a label is: the one place that knows what logits mean, how opinions are averaged, and what is right.

There are two kinds. Of `ONE_CLASS` each image has one of C classes. Of `SEVERAL_CLASSES` it may have any number of them,
and each class is a question of its own, which may be unanswered: NaN among logits, probabilities and true labels, `NO_LABEL`
among hard labels. The kind is made once, for the data (`Data.target_kind`), and handed on; who has no data (a loss of its
own, a table by itself) takes `ONE_CLASS`.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UserError
from .no_label import NO_LABEL

UNMAPPED_LOGIT = -1e4  # finite, so that no loss meets 0 * inf; its probability is 0 in float32
TINY = torch.finfo(torch.float32).tiny  # for the logarithm of a probability of 0
THRESHOLDS = "label_thresholds"  # what the config.json of an export calls them
LIST_SEPARATOR = ","  # between the names of classes in a cell
LOGIT = "_logit"  # ends the name of a column of logits among predictions
SUREST = 1e-6  # how near to 0 and 1 the probability of a class comes that is one of several: a logit of 13.8


class TargetKind(ABC):
    """What the labels of images are. Logits and probabilities are (B, C), one row an image and one column a class.

    Attributes:
        name: known to losses, which register the kinds that they can learn.
        words: how messages call it.
        task: timm's name of it, which ``--task`` takes.
        problem_type: that of transformers, which the config.json of an export has.
        headline: the figure that models are compared by, of those of an evaluation.
        score_name: the figure that is the mean of `score`.
    """

    name: str
    words: str
    task: str
    problem_type: str
    headline: str
    score_name: str

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


class OneClass(TargetKind):
    """Each image has one class. A hard label is its number."""

    name = "one-class"
    words = "one class an image"
    task = "classification"
    problem_type = "single_label_classification"
    headline = score_name = "top1"

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

    def are_answers(self, logits: Tensor) -> Tensor:
        return logits.isfinite().all(dim=1)

    def decide(self, logits: Tensor) -> Tensor:
        return logits.argmax(dim=1)

    def decide_shares(self, probabilities: Tensor) -> Tensor:
        return probabilities.argmax(dim=1)

    def of_decisions(self, decisions: Tensor, num_classes: int, confidence: float = 1.0) -> Tensor:
        other = math.log(max((1 - confidence) / max(1, num_classes - 1), TINY))
        logits = torch.full((len(decisions), num_classes), other, device=decisions.device)
        return logits.scatter_(1, decisions.long().unsqueeze(1), math.log(max(confidence, TINY)))

    def agreement(self, decisions: Tensor, others: Tensor) -> Tensor:
        return decisions == others

    def copied(self, decisions: Tensor, teacher: Tensor, truth: Tensor) -> Tensor:
        return (decisions == teacher)[teacher != truth]

    def score(self, decisions: Tensor, truth: Tensor) -> Tensor:
        return decisions == truth

    def predictions(
        self, decisions: Mapping[str, Tensor], logits: Mapping[str, Tensor | None] = {}
    ) -> tuple[list[str], Tensor]:
        return [*decisions], torch.stack([*decisions.values()], dim=1).int()

    def columns(
        self, probabilities: np.ndarray, names: Sequence[str]
    ) -> dict[str, Sequence[str] | np.ndarray]:
        classes: list[int] = probabilities.argmax(axis=1).tolist()
        return {"label": [names[i] for i in classes], "confidence": probabilities.max(axis=1)}


class SeveralClasses(TargetKind):
    """Each image has any number of classes. A hard label is a row with 1, 0 or `NO_LABEL` for each class.

    Args:
        threshold: probability from which on an image has a class, above 0 and below 1; one for all, or one for each.
    """

    name = "several-classes"
    words = "several classes an image"
    task = "multilabel"  # where no torch is loaded it is `settings.forms.MULTILABEL`
    problem_type = "multi_label_classification"
    headline = "map"
    score_name = "sample_f1"

    def __init__(self, threshold: float | Sequence[float] = 0.5):
        self.threshold = threshold

    @property
    def recorded(self) -> dict[str, object]:
        said: dict[str, object] = {"problem_type": self.problem_type}
        if isinstance(self.threshold, Sequence):
            said[THRESHOLDS] = list(self.threshold)
        return said

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def from_probabilities(self, probabilities: Tensor) -> Tensor:
        return probabilities.logit(eps=SUREST)

    def average(self, opinions: Sequence[Tensor]) -> Tensor:
        # One model keeps its logits, to the last bit.
        if len(opinions) == 1:
            return opinions[0]
        return self.from_probabilities(self.probabilities(torch.stack([*opinions])).nanmean(dim=0))

    def mix(self, logits: Tensor, share: Tensor) -> Tensor:
        # what is unknown of one of two images is unknown of their mixture, if it has a share in it
        unmixed = self.probabilities(logits)
        mixed = self.from_probabilities(share * unmixed + (1 - share) * unmixed.flip(-2))
        mixed = torch.where(share == 0, logits.flip(-2), mixed)
        return torch.where(share == 1, logits, mixed)

    def map_classes(self, logits: Tensor, class_map: Tensor, num_classes: int) -> Tensor:
        # An image has a class if it has any of those that are mapped to it; -1 becomes a column that is left out.
        mapped = torch.full((len(logits), num_classes + 1), -torch.inf, device=logits.device)
        column = (class_map % (num_classes + 1)).expand(len(logits), -1)
        mapped = mapped.scatter_reduce(1, column, logits.float(), "amax")[:, :num_classes]
        return mapped.masked_fill(mapped == -torch.inf, torch.nan)

    def divergence(self, teachers: Tensor, student: Tensor) -> Tensor:
        # of what is so and of what is not so, for each class
        p = self.probabilities(teachers)
        yes = p * (F.logsigmoid(teachers) - F.logsigmoid(student))
        no = (1 - p) * (F.logsigmoid(-teachers) - F.logsigmoid(-student))
        return (yes + no).nansum(dim=2)

    def confidence(self, logits: Tensor) -> Tensor:
        return self.probabilities(logits.abs()).nanmean(dim=1)

    def uncertainty(self, probabilities: Tensor) -> Tensor:
        entropy = torch.special.entr(probabilities) + torch.special.entr(1 - probabilities)
        return entropy.nansum(dim=1)

    def are_answers(self, logits: Tensor) -> Tensor:
        return ~logits.isinf().any(dim=1) & ~logits.isnan().all(dim=1)

    def decide(self, logits: Tensor) -> Tensor:
        least = torch.tensor(self.threshold, dtype=torch.float64).logit().to(logits)
        return (logits >= least).to(torch.int8).masked_fill(logits.isnan(), NO_LABEL)

    def decide_shares(self, probabilities: Tensor) -> Tensor:
        return (
            (probabilities >= torch.tensor(self.threshold).to(probabilities))
            .to(torch.int8)
            .masked_fill(probabilities.isnan(), NO_LABEL)
        )

    def of_decisions(self, decisions: Tensor, num_classes: int, confidence: float = 1.0) -> Tensor:
        # The labels that are unknown become no opinion again.
        is_known = decisions != NO_LABEL
        probability = torch.where(decisions == 1, confidence, 1 - confidence)
        return self.from_probabilities(probability).masked_fill(~is_known, torch.nan)

    def agreement(self, decisions: Tensor, others: Tensor) -> Tensor:
        both = self._known(decisions, others)
        agreeing = (both & (decisions == others)).sum(dim=1)
        return torch.where(both.any(dim=1), agreeing / both.sum(dim=1).clamp(min=1), 1.0)

    def copied(self, decisions: Tensor, teacher: Tensor, truth: Tensor) -> Tensor:
        wrong = self._known(decisions, teacher, truth) & (teacher != truth)
        return (decisions == teacher)[wrong]

    def score(self, decisions: Tensor, truth: Tensor) -> Tensor:
        known = self._known(decisions, truth)
        says, has = known & (decisions == 1), known & (truth == 1)
        return 2 * (says & has).sum(dim=1) / (says.sum(dim=1) + has.sum(dim=1)).clamp(min=1)

    def predictions(
        self, decisions: Mapping[str, Tensor], logits: Mapping[str, Tensor | None] = {}
    ) -> tuple[list[str], Tensor]:
        names = [f"{who}.{i}" for who, rows in decisions.items() for i in range(rows.shape[1])]
        # true labels are numbers with NaN where nobody knows
        whole = [rows.nan_to_num(nan=NO_LABEL).int() for rows in decisions.values()]
        known = {who: rows.float() for who, rows in logits.items() if rows is not None}
        names += [f"{who}{LOGIT}.{i}" for who, rows in known.items() for i in range(rows.shape[1])]
        return names, torch.cat([*whole, *known.values()], dim=1)

    def columns(
        self, probabilities: np.ndarray, names: Sequence[str]
    ) -> dict[str, Sequence[str] | np.ndarray]:
        # an empty cell would be no answer, and a name may have the separator in it
        is_plain = not any(LIST_SEPARATOR in name or name.startswith(("[", "{")) for name in names)
        cells: list[str] = []
        for row in (probabilities >= np.array(self.threshold)).tolist():
            present = [name for name, has in zip(names, row) if has]
            plain = LIST_SEPARATOR.join(present)
            cells.append(plain if is_plain and present else json.dumps(present, ensure_ascii=False))
        return {"labels": cells}

    @staticmethod
    def _known(*labels: Tensor) -> Tensor:
        """Say which classes (B, C) all of some hard or true labels say something of."""
        return torch.stack([(rows == 0) | (rows == 1) for rows in labels]).all(dim=0)


ONE_CLASS, SEVERAL_CLASSES = OneClass(), SeveralClasses()
KINDS: dict[str, TargetKind] = {kind.task: kind for kind in (ONE_CLASS, SEVERAL_CLASSES)}


def kind_of_task(task: str, threshold: float | Sequence[float] = 0.5) -> TargetKind:
    """Return what a label is, by timm's name of the task; ``threshold`` as of `SeveralClasses`."""
    if task == ONE_CLASS.task:
        return ONE_CLASS
    return SeveralClasses(threshold)


def kind_of_problem(problem_type: object) -> TargetKind | None:
    """Return what a label is, by transformers' name of the problem; None if that is nothing known."""
    for kind in KINDS.values():
        if problem_type == kind.problem_type:
            return kind
    return None


def require_one_class(what: str, target_kind: TargetKind) -> None:
    """Raise a `UserError` where something that is made for one class an image alone is to be used with another kind."""
    if target_kind.name != ONE_CLASS.name:
        raise UserError(f"{what}: labels of {target_kind.words}, expected {ONE_CLASS.words}")
