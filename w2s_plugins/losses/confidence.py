"""Weak-to-strong losses: the weak teacher is weighed against the student's own prediction."""

import torch.nn.functional as F
from torch import Tensor

from .base import LossInputs, register_loss
from .logits import kl_per_sample


def self_cross_entropy(student_logits: Tensor) -> Tensor:
    """Return CE(z, argmax z) for each sample: the student's loss on its own hardened prediction, (B,)."""
    return F.cross_entropy(student_logits, student_logits.argmax(dim=1), reduction="none")


def adaptive_weight(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return beta(x) of AdaptConf for each sample, without gradient.

    beta = exp(CE_self / T) / (exp(CE_self / T) + exp(CE_weak / T)), where CE_self and CE_weak are the student's
    cross-entropies on its own and on the teacher's hardened prediction (arXiv 2402.03749). It is 1/2 where the two
    agree, and falls towards 0 as the student's loss on the teacher's class grows.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        temperature: T > 0.

    Returns:
        (B,), in (0, 1/2].
    """
    log_p = F.log_softmax(student_logits.detach(), dim=1)
    ce_self = -log_p.amax(dim=1)
    ce_weak = -log_p.gather(1, teacher_logits.argmax(dim=1, keepdim=True)).squeeze(1)
    return ((ce_self - ce_weak) / temperature).sigmoid()  # the quotient above, which cannot overflow


@register_loss(
    "adaptconf",
    summary="weighs teacher against self-prediction sample by sample",
    paper="Guo et al. 2024, 2402.03749",
)
def adaptconf(inputs: LossInputs, *, temperature: float = 0.5, kd_temperature: float = 1.0) -> dict[str, Tensor]:
    """AdaptConf (Vision Superalignment, 2024, arXiv 2402.03749).

    mean over the batch of (1 - beta) * KD(student, teacher; kd_temperature) + beta * CE_self, see `adaptive_weight`.
    """
    beta = adaptive_weight(inputs.student_logits, inputs.teacher_logits, temperature)
    kd = kl_per_sample(inputs.student_logits, inputs.teacher_logits, kd_temperature)
    return {"kd": ((1 - beta) * kd).mean(), "self": (beta * self_cross_entropy(inputs.student_logits)).mean()}


@register_loss(
    "augconf",
    summary="a fixed share of self-prediction, ramped up at the start",
    paper="Guo et al. 2024, 2402.03749",
)
def augconf(
        inputs: LossInputs,
        *,
        alpha: float = 0.5,
        ramp: float = 0.3,
        kd_temperature: float = 1.0,
) -> dict[str, Tensor]:
    """AugConf (Vision Superalignment, 2024, arXiv 2402.03749, after Burns et al. 2023, arXiv 2312.09390).

    (1 - a) * KD + a * CE_self, where a rises linearly from 0 to ``alpha`` over the first ``ramp`` of training.
    """
    weight = alpha * min(1.0, inputs.progress / ramp) if ramp > 0 else alpha
    kd = kl_per_sample(inputs.student_logits, inputs.teacher_logits, kd_temperature).mean()
    return {"kd": (1 - weight) * kd, "self": weight * self_cross_entropy(inputs.student_logits).mean()}
