"""Several classes an image: each is a question of its own, the sigmoid of its logit, and may be unanswered."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..no_label import NO_LABEL
from .base import TargetKind
from .table import LIST_SEPARATOR, LOGIT, THRESHOLDS, SeveralClassesTable

SUREST = 1e-6  # how near to 0 and 1 the probability of a class comes that is one of several: a logit of 13.8


class SeveralClasses(SeveralClassesTable, TargetKind):
    """Each image has any number of classes. A hard label is a row with 1, 0 or `NO_LABEL` for each class.

    Args:
        threshold: probability from which on an image has a class, above 0 and below 1; one for all, or one for each.
    """

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
