"""What to make of several teachers beyond the mean of their probabilities."""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Mixed(NamedTuple):
    """The outcome for one batch.

    Args:
        logits: (B, C), the target made of all teachers.
        terms: further terms of the loss, by name.
        figures: scalars for the log, by name.
        keep: (B,) samples to train on, or None for all.
    """

    logits: Tensor
    terms: dict[str, Tensor]
    figures: dict[str, Tensor]
    keep: Tensor | None = None


class NearestTeacher(nn.Module):
    """Gives each sample the teacher whose prediction is nearest to the student's current one.

    Nearest means the smallest KL(teacher || student) (Co-Supervised Learning, 2024, arXiv 2402.15505).
    """

    def forward(self, teachers: Tensor, student: Tensor, progress: float) -> Mixed:
        """Choose among teacher logits (M, B, C) for student logits (B, C); the share of each teacher is a figure."""
        log_q, log_p = teachers.log_softmax(dim=2), student.detach().float().log_softmax(dim=1)
        divergence = (log_q.exp() * (log_q - log_p)).sum(dim=2)
        chosen = divergence.argmin(dim=0)
        shares = torch.bincount(chosen, minlength=len(teachers)) / len(chosen)
        logits = teachers[chosen, torch.arange(len(chosen), device=chosen.device)]
        return Mixed(logits, {}, {f"teacher{i}_share": share for i, share in enumerate(shares)})


class LearnedTeacherWeights(nn.Module):
    """Learns a weight for each teacher with the student (RAVEN, 2025, arXiv 2510.21332).

    The target is the weighted mean of the teachers' probabilities. The weights, a softmax of parameters that start
    equal, follow the gradient of the cross-entropy between that target and the student. At first only samples on which
    all teachers agree are trained on.

    Args:
        num_teachers: M.
        agreement_share: share of training, in [0, 1], with samples of agreement only.
    """

    def __init__(self, num_teachers: int, agreement_share: float):
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(num_teachers))
        self.agreement_share = agreement_share

    def forward(self, teachers: Tensor, student: Tensor, progress: float) -> Mixed:
        """Mix teacher logits (M, B, C) for student logits (B, C); the weight of each teacher is a figure."""
        weights = self.scores.softmax(dim=0)
        target = torch.einsum("m,mbc->bc", weights, teachers.softmax(dim=2))
        cross_entropy = -(target * student.detach().float().log_softmax(dim=1)).sum(dim=1).mean()
        keep = None
        if progress < self.agreement_share:
            votes = teachers.argmax(dim=2)
            keep = (votes == votes[0]).all(dim=0)
        logits = target.detach().clamp(min=torch.finfo(target.dtype).tiny).log()
        figures = {f"teacher{i}_weight": weight.detach() for i, weight in enumerate(weights)}
        # Only its gradient counts, which is that of the loss by the weights; its value is in the loss already.
        return Mixed(logits, {"teacher_weights": cross_entropy - cross_entropy.detach()}, figures, keep)
