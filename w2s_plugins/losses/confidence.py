"""Weak-to-strong losses: the weak teacher is weighed against the student's own prediction."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from .arguments import NonNegative, Positive, Share
from .base import LossInputs, ramped, register_loss
from .logits import cross_entropy, kl_per_sample
from .several import adaptconf_by_class

_THRESHOLD_ROUNDS = 6  # more rounds bring the class proportions no closer
_THRESHOLD_STEP = 0.7
_NO_CLASS = -100  # what cross-entropy leaves out


def self_cross_entropy(student_logits: Tensor) -> Tensor:
    """Return CE(z, argmax z) for each sample: the student's loss on its own hardened prediction, (B,).

    It is 0 where the student has none, for all its logits are one number, as those of a head of zeros are; the first
    class would be taught to all samples.
    """
    # a head of zeros says the first class of everything, and would learn to go on saying it
    undecided = student_logits.amax(dim=1) == student_logits.amin(dim=1)
    predicted = student_logits.argmax(dim=1).masked_fill(undecided, _NO_CLASS)
    return F.cross_entropy(student_logits, predicted, reduction="none", ignore_index=_NO_CLASS)


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
    # beta says how far the student is trusted; with a gradient it could lower the loss by trusting itself
    logits = student_logits.detach()
    # CE_self - CE_weak is a difference of two logits, for the normaliser cancels, and the ratio is its sigmoid
    on_teacher = logits.gather(1, teacher_logits.argmax(dim=1, keepdim=True)).squeeze(1)
    return ((on_teacher - logits.amax(dim=1)) / temperature).sigmoid()


def balanced_labels(probabilities: Tensor, proportions: Tensor) -> Tensor:
    """Harden probabilities so that the labels follow given class proportions.

    A sample's label is the class with the largest p_c - tau_c. The thresholds tau make the share of samples with label
    c equal to proportions[c], as far as the batch can resolve it; with two classes they are a quantile of p_0. They
    are found one class against the best of the others, in a few damped rounds over all classes at once. A batch smaller
    than the number of classes cannot resolve the shares; there tau stays the quantile of each class by itself.

    Args:
        probabilities: (B, C).
        proportions: (C,), of sum 1.

    Returns:
        (B,) class indices. The larger the batch is against the number of classes, the closer the shares.
    """
    batch_size, num_classes = probabilities.shape
    # one sample has no proportions
    if batch_size == 1:
        return probabilities.argmax(dim=1)
    # the quantile of each class by itself, to start from
    thresholds = _upper_quantile(probabilities, proportions)
    rounds = _THRESHOLD_ROUNDS if batch_size >= num_classes else 0
    for _ in range(rounds):
        # a class against the best of the others, all classes at once
        lead = probabilities - thresholds
        best, winner = lead.max(dim=1, keepdim=True)
        second = lead.scatter(1, winner, -torch.inf).amax(dim=1, keepdim=True)
        rival = best.expand_as(lead).scatter(1, winner, second)
        wanted = _upper_quantile(probabilities - rival, proportions)
        thresholds = torch.lerp(thresholds, wanted, _THRESHOLD_STEP)
    return (probabilities - thresholds).argmax(dim=1)


@register_loss(
    "adaptconf",
    summary="weighs teacher against self-prediction sample by sample",
    paper="Guo et al. 2024, 2402.03749",
    several=adaptconf_by_class,
)
def adaptconf(
    inputs: LossInputs,
    *,
    temperature: Positive = 0.5,
    kd_temperature: Positive = 1.0,
    ramp: Share = 0.0,
    logit_standardization: bool = False,
) -> dict[str, Tensor]:
    """AdaptConf (Vision Superalignment, 2024, arXiv 2402.03749).

    mean over the batch of (1 - beta) * KD(student, teacher; kd_temperature) + beta * CE_self, see `adaptive_weight`.
    beta is multiplied by min(1, progress / ramp); the paper's noisy-label setting has ramp = 0.25.
    ``logit_standardization`` concerns the KD term alone.
    """
    # how far the student is trusted, sample by sample
    beta = adaptive_weight(inputs.student_logits, inputs.teacher_logits, temperature)
    beta = beta * ramped(inputs.progress, ramp)
    # the two terms share one weight, so that a sample counts as much as any other
    kd = kl_per_sample(inputs, kd_temperature, logit_standardization)
    on_itself = self_cross_entropy(inputs.student_logits)
    return {"kd": ((1 - beta) * kd).mean(), "self": (beta * on_itself).mean()}


@register_loss(
    "augconf",
    summary="a fixed share of self-prediction, ramped up at the start",
    paper="Guo et al. 2024, 2402.03749",
)
def augconf(
    inputs: LossInputs,
    *,
    alpha: Share = 0.5,
    ramp: Share = 0.3,
    kd_temperature: Positive = 1.0,
    logit_standardization: bool = False,
) -> dict[str, Tensor]:
    """AugConf (Vision Superalignment, 2024, arXiv 2402.03749, after Burns et al. 2023, arXiv 2312.09390).

    (1 - a) * KD + a * CE_self, where a rises linearly from 0 to ``alpha`` over the first ``ramp`` of training.
    ``logit_standardization`` concerns the KD term alone.
    """
    # one weight for all samples
    weight = alpha * ramped(inputs.progress, ramp)
    kd = kl_per_sample(inputs, kd_temperature, logit_standardization).mean()
    return {
        "kd": (1 - weight) * kd,
        "self": weight * self_cross_entropy(inputs.student_logits).mean(),
    }


@register_loss(
    "logconf",
    summary="teacher's softmax mixed with the student's own labels, "
    "hardened to the teacher's class proportions",
    paper="Burns et al. 2023, 2312.09390",
)
def logconf(
    inputs: LossInputs,
    *,
    aux_coef: Share = 0.5,
    warmup: Share = 0.1,
    original_warmup: bool = False,
    form: Literal["auto", "binary", "multiclass"] = "auto",
) -> dict[str, Tensor]:
    """Auxiliary confidence loss (Weak-to-Strong Generalization, 2023, arXiv 2312.09390).

    (1 - a) * CE(p, q) + a * CE(p, h), where h are the student's predictions hardened so that in the batch they follow
    the mean of the teacher's softmax q, and a rises linearly from 0 to ``aux_coef`` over the first ``warmup`` of
    training.

    Args:
        inputs: logits and progress.
        aux_coef: weight of the student's own labels after the warm-up.
        warmup: share of training.
        original_warmup: a = aux_coef * progress during the warm-up, as in the released code, which jumps at its end.
        form: "binary" is the published one, a threshold on the first class's probability; "multiclass" has a
            threshold for each class, see `balanced_labels`; "auto" takes the binary form for two classes.
    """
    # the published form is for two classes
    num_classes = inputs.student_logits.shape[1]
    if form == "binary" and num_classes != 2:
        raise UserError(
            f"loss 'logconf': form=binary is for 2 classes, here are {num_classes}; "
            "use form=multiclass"
        )
    log_p = inputs.student_logits.log_softmax(dim=1)
    q = inputs.teacher_logits.softmax(dim=1)
    # the student's own labels, in the proportions of the teacher's
    p = log_p.detach().exp()
    proportions = q.mean(dim=0)
    if form == "multiclass" or num_classes != 2:
        label = balanced_labels(p, proportions)
    else:
        threshold = torch.quantile(p[:, 0], proportions[1].nan_to_num().clamp(0, 1))
        label = (p[:, 0] < threshold).long()
    # the share of the student's labels
    if original_warmup:
        weight = aux_coef * (1.0 if inputs.progress > warmup else inputs.progress)
    else:
        weight = aux_coef * ramped(inputs.progress, warmup)
    return {
        "kd": (1 - weight) * cross_entropy(log_p, q).mean(),
        "self": weight * F.nll_loss(log_p, label),
    }


@register_loss(
    "product",
    summary="cross-entropy on the normalised product of the teacher's and the student's softmax",
    paper="Burns et al. 2023, 2312.09390, released code",
)
def product(
    inputs: LossInputs, *, alpha: NonNegative = 1.0, beta: NonNegative = 1.0
) -> dict[str, Tensor]:
    """Product loss, CE(p, p^beta * q^alpha / sum), no gradient through the target.

    From the code released with Weak-to-Strong Generalization (2023, arXiv 2312.09390).
    """
    log_p = inputs.student_logits.log_softmax(dim=1)
    log_q = inputs.teacher_logits.log_softmax(dim=1)
    # A product of probabilities is a sum of logarithms; softmax normalises it. The target is fixed: through it the
    # student could agree with itself at no cost.
    target = (beta * log_p.detach() + alpha * log_q).softmax(dim=1)
    return {"product": cross_entropy(log_p, target).mean()}


@register_loss(
    "bootstrap",
    summary="teacher's softmax mixed with the student's own prediction, soft or hard",
    paper="Reed et al. 2014, 1412.6596",
)
def bootstrap(
    inputs: LossInputs, *, beta: Share | None = None, hard: bool = False
) -> dict[str, Tensor]:
    """Bootstrapping (Training Deep Neural Networks on Noisy Labels with Bootstrapping, 2014, arXiv 1412.6596).

    beta * CE(p, q) + (1 - beta) * CE(p, s), with q the teacher's softmax and s the student's own prediction: its
    softmax (soft; the gradient goes through it, so the second part is the entropy of p) or its argmax (hard).

    Args:
        inputs: logits.
        beta: share of the teacher; by default the paper's 0.95 (soft) or 0.8 (hard).
        hard: which of the two forms.
    """
    # the paper's shares of the two forms
    if beta is None:
        beta = 0.8 if hard else 0.95
    log_p = inputs.student_logits.log_softmax(dim=1)
    q = inputs.teacher_logits.softmax(dim=1)
    # Soft, the student is not detached, as published: the term is its entropy, whose gradient makes it surer. An argmax
    # has no gradient anyway.
    if hard:
        on_itself = self_cross_entropy(inputs.student_logits).mean()
    else:
        on_itself = cross_entropy(log_p, log_p.exp()).mean()
    return {"kd": beta * cross_entropy(log_p, q).mean(), "self": (1 - beta) * on_itself}


def _upper_quantile(values: Tensor, shares: Tensor) -> Tensor:
    """Return for each column the value above which lies the given share of the rows, interpolated linearly."""
    # sorting along the contiguous dimension is several times faster
    ordered = values.T.contiguous().sort(dim=1).values
    # the place in the order, between two rows
    position = (1 - shares).clamp(0, 1) * (len(values) - 1)
    lower = position.nan_to_num().long().clamp(max=len(values) - 2).unsqueeze(1)
    below = ordered.gather(1, lower)
    above = ordered.gather(1, lower + 1)
    return torch.lerp(below, above, position.unsqueeze(1) - lower).squeeze(1)
