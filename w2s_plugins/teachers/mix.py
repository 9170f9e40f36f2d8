"""What to make of several teachers beyond the mean of their probabilities."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

TRAINED_SHARE = "trained_share"  # the figure of samples on which all teachers agree, where these alone count


class Mixed(NamedTuple):
    """The outcome for one batch.

    Args:
        logits: (B, C), the target made of all teachers.
        figures: scalars for the log, by name.
        keep: positions (K,) of the samples to train on, or None for all.
    """

    logits: Tensor
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
        # One teacher for each sample, and the share that each of them has of the batch.
        chosen = divergence.argmin(dim=0)
        numbers = torch.arange(len(teachers), device=chosen.device)
        shares = (chosen == numbers[:, None]).sum(dim=1) / len(chosen)
        logits = teachers[chosen, torch.arange(len(chosen), device=chosen.device)]
        return Mixed(logits, {f"teacher{i}_share": share for i, share in enumerate(shares)})


class LearnedTeacherWeights(nn.Module):
    """Learns a weight for each teacher with the student, as the code of RAVEN does (2025, arXiv 2510.21332).

    The target is the weighted mean of the teachers' probabilities. The weights start equal and have an SGD of their
    own: after each batch in training mode a step on the cross-entropy of target and student, over the samples of all
    ranks that are trained on; then they are raised to `LEAST` and scaled to sum 1. At first only samples on which all
    teachers agree are trained on.

    Args:
        num_teachers: M.
        agreement_share: share of training, in [0, 1], with samples of agreement only.
    """

    RATE, LEAST = 1e-3, 1e-6  # those of the code

    def __init__(self, num_teachers: int, agreement_share: float = 0.1):
        super().__init__()
        self.register_buffer("weights", torch.full((num_teachers,), 1 / num_teachers))
        self.agreement_share = agreement_share

    def forward(self, teachers: Tensor, student: Tensor, progress: float) -> Mixed:
        """Mix teacher logits (M, B, C) for student logits (B, C); the weight of each teacher is a figure, and with an
        `agreement_share` the share of the samples that are trained on.
        """
        shares = teachers.softmax(dim=2)
        target = torch.einsum("m,mbc->bc", self.weights, shares)
        figures = {f"teacher{i}_weight": weight for i, weight in enumerate(self.weights.clone())}
        # At first only samples that all teachers say the same of are trained on.
        keep = None
        if self.agreement_share:
            figures[TRAINED_SHARE] = torch.ones_like(self.weights[0])
        if progress < self.agreement_share:
            votes = teachers.argmax(dim=2)
            agreed = (votes == votes[0]).all(dim=0)
            figures[TRAINED_SHARE] = agreed.to(self.weights).mean()
            keep = agreed.nonzero().flatten()  # how many there are is waited for, here alone
        # The weights follow their gradient on what is trained on.
        if self.training:
            losses = -(shares * student.detach().float().log_softmax(dim=1)).sum(dim=2)
            self._step(losses if keep is None else losses[:, keep])
        return Mixed(target.clamp(min=torch.finfo(target.dtype).tiny).log(), figures, keep)

    def _step(self, losses: Tensor) -> None:
        """Follow the gradient of the mean of the cross-entropies (M, B) with each teacher, at weights that sum to 1."""
        # Sums and their number over all ranks, so that the step does not depend on how many there are.
        total = torch.cat([losses.sum(dim=1), losses.new_full((1,), losses.shape[1])])
        if dist.is_initialized():
            dist.all_reduce(total)
        # Back to positive weights of sum 1.
        mean = total[:-1] / total[-1].clamp(min=1)
        moved = (self.weights - self.RATE * (mean - self.weights @ mean)).clamp(min=self.LEAST)
        self.weights.copy_(moved / moved.sum())
