"""What to make of several teachers beyond the mean of their probabilities."""

import torch
from torch import Tensor

from ..target_kind import ONE_CLASS, TargetKind


def nearest_teacher(
    teachers: Tensor, student: Tensor, target_kind: TargetKind = ONE_CLASS
) -> tuple[Tensor, dict[str, Tensor]]:
    """Give each sample the teacher whose prediction is nearest to the student's current one.

    Nearest means the smallest KL(teacher || student) (Co-Supervised Learning, 2024, arXiv 2402.15505).

    Args:
        teachers: logits (M, B, C).
        student: logits (B, C), through which no gradient goes.
        target_kind: what the labels are.

    Returns:
        The logits (B, C) of the chosen teachers, and the share of each of them for the log.
    """
    # The student is not detached from its loss here, but from this choice, which has no gradient.
    chosen = target_kind.divergence(teachers, student.detach().float()).argmin(dim=0)
    # One teacher for each sample, and the share that each of them has of the batch.
    numbers = torch.arange(len(teachers), device=chosen.device)
    shares = (chosen == numbers[:, None]).sum(dim=1) / len(chosen)
    logits = teachers[chosen, torch.arange(len(chosen), device=chosen.device)]
    return logits, {f"teacher{i}_share": share for i, share in enumerate(shares)}
