"""One class an image: softmax of the logits, and a hard label is the number of a class."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from .base import TargetKind
from .table import OneClassTable

UNMAPPED_LOGIT = -1e4  # finite, so that no loss meets 0 * inf; its probability is 0 in float32
TINY = torch.finfo(torch.float32).tiny  # for the logarithm of a probability of 0


class OneClass(OneClassTable, TargetKind):
    """Each image has one class. A hard label is its number."""

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
