"""Distillation on logits: the teacher's distribution is the target."""

import torch.nn.functional as F
from torch import Tensor

from .base import LossInputs, register_loss


def kl_per_sample(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return T^2 * KL(softmax(teacher / T) || softmax(student / T)) for each sample.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        temperature: T > 0; the factor T^2 keeps gradients of one size as T changes.

    Returns:
        (B,), each >= 0.
    """
    log_p = F.log_softmax(student_logits / temperature, dim=1)
    log_q = F.log_softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(dim=1) * temperature ** 2


@register_loss("kd", summary="KL divergence to the softened teacher, times T^2", paper="Hinton et al. 2015, 1503.02531")
def kd(inputs: LossInputs, *, temperature: float = 4.0) -> dict[str, Tensor]:
    """Knowledge distillation (Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531)."""
    return {"kd": kl_per_sample(inputs.student_logits, inputs.teacher_logits, temperature).mean()}


@register_loss(
    "bkd", summary="binary cross-entropy against the teacher's softmax", paper="Guo et al. 2024, 2402.03749, baseline")
def bkd(inputs: LossInputs) -> dict[str, Tensor]:
    """Binary KD: sigmoid cross-entropy of each student logit against the teacher's class probability.

    The baseline of Vision Superalignment (2024, arXiv 2402.03749); the mean is over samples and classes.
    """
    return {"kd": F.binary_cross_entropy_with_logits(inputs.student_logits, inputs.teacher_logits.softmax(dim=1))}
