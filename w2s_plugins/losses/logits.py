"""Distillation on logits: the teacher's distribution is the target."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import Positive, PositiveShare, ProperShare
from .base import LossInputs, add_up, label_of, promised, register_loss
from .several import kd_by_class

_STD_EPS = 1e-7  # keeps constant logits finite
_EXCLUDED = -1e30  # a logit whose probability is exactly 0, finite so that 0 * log 0 is 0


def standardize(logits: Tensor) -> Tensor:
    """Return logits with mean 0 and (unbiased) standard deviation 1 in each sample.

    Logit Standardization in Knowledge Distillation (2024, arXiv 2403.01427): teacher and student need not agree
    in the range of their logits, only in their relations.

    Args:
        logits: (B, C).
    """
    # a temperature cannot undo another range of each sample; constant logits stay 0
    std, mean = torch.std_mean(logits, dim=1, keepdim=True)
    return (logits - mean) / (std + _STD_EPS)


def soften(logits: Tensor, temperature: float, logit_standardization: bool = False) -> Tensor:
    """Return logits divided by the temperature, standardised before where that is asked for.

    This is the one place where a temperature is applied.

    Args:
        logits: (B, C).
        temperature: T > 0.
        logit_standardization: see `standardize`.
    """
    # standardised first: the temperature then means the same for teacher and student
    if logit_standardization:
        logits = standardize(logits)
    return logits if temperature == 1 else logits / temperature


def soft_logits(
    inputs: LossInputs, temperature: float, logit_standardization: bool
) -> list[Tensor]:
    """Return the logits of the student and of the teacher at a temperature, (B, C) each, see `soften`."""
    both = (inputs.student_logits, inputs.teacher_logits)
    return [soften(logits, temperature, logit_standardization) for logits in both]


def soft_log_probabilities(
    inputs: LossInputs,
    temperature: float,
    logit_standardization: bool = False,
) -> list[Tensor]:
    """Return the log-probabilities of the student and of the teacher at a temperature, (B, C) each, see `soften`."""
    return [
        logits.log_softmax(dim=1)
        for logits in soft_logits(inputs, temperature, logit_standardization)
    ]


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(q || p) for each sample, (B,), from log-probabilities (B, C)."""
    # F.kl_div to the last bit, but torch.vmap has no rule for that
    return (log_q.exp() * (log_q - log_p)).sum(dim=1)


def cross_entropy(log_p: Tensor, q: Tensor) -> Tensor:
    """Return -sum q log p for each sample, (B,), from log-probabilities and any weights of the classes (B, C)."""
    return -(q * log_p).sum(dim=1)


def kl_per_sample(inputs: LossInputs, temperature: float, logit_standardization: bool) -> Tensor:
    """Return T^2 * KL(softmax(teacher / T) || softmax(student / T)) for each sample.

    Args:
        inputs: logits (B, C).
        temperature: T > 0; the factor T^2 keeps gradients of one size as T changes.
        logit_standardization: see `standardize`.

    Returns:
        (B,), each >= 0.
    """
    # Hinton et al., section 2: gradients of soft targets shrink as 1 / T^2, so T^2 keeps their balance with other terms
    log_p, log_q = soft_log_probabilities(inputs, temperature, logit_standardization)
    return divergence(log_p, log_q) * temperature**2


def split_target(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split a softmax into the label's class and the distribution over the other classes.

    Args:
        logits: (B, C).
        label: (B,) class indices.

    Returns:
        log p_y (B,); log(1 - p_y) (B,), exact where p_y is almost 1; the log-probabilities of the other classes among
        themselves (B, C), with the label's entry so low that its probability is 0.
    """
    index = label.unsqueeze(1)
    # the label against all others together, and these among themselves
    of_label = logits.gather(1, index)
    others = logits.scatter(1, index, _EXCLUDED)
    of_others = others.logsumexp(dim=1, keepdim=True)
    # in logarithms, so that 1 - p keeps its digits
    total = torch.logaddexp(of_label, of_others)
    return (of_label - total).squeeze(1), (of_others - total).squeeze(1), others - of_others


@register_loss(
    "kd",
    summary="KL divergence to the softened teacher, times T^2",
    paper="Hinton et al. 2015, 1503.02531",
    several=kd_by_class,
)
def kd(
    inputs: LossInputs,
    *,
    temperature: Positive = 4.0,
    logit_standardization: bool = False,
) -> dict[str, Tensor]:
    """Knowledge distillation (Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531)."""
    return {"kd": kl_per_sample(inputs, temperature, logit_standardization).mean()}


@register_loss(
    "bkd",
    summary="binary cross-entropy against the teacher's softmax",
    paper="Guo et al. 2024, 2402.03749, baseline",
)
def bkd(inputs: LossInputs) -> dict[str, Tensor]:
    """Binary KD: sigmoid cross-entropy of each student logit against the teacher's class probability.

    The baseline of Vision Superalignment (2024, arXiv 2402.03749); the mean is over samples and classes.
    """
    # a question of yes or no for each class: the student's classes do not compete, the teacher's have
    q = inputs.teacher_logits.softmax(dim=1)
    return {"kd": F.binary_cross_entropy_with_logits(inputs.student_logits, q)}


@register_loss(
    "reverse_kl",
    summary="KL from student to teacher: mode-seeking",
    paper="Yao et al. 2025, 2502.11107",
)
def reverse_kl(
    inputs: LossInputs,
    *,
    temperature: Positive = 1.0,
    logit_standardization: bool = False,
) -> dict[str, Tensor]:
    """Reverse KL divergence T^2 * KL(p || q) (Revisiting Weak-to-Strong Generalization, 2025, arXiv 2502.11107).

    Classes that the student holds unlikely weigh little, so it need not cover the teacher's mistakes.
    """
    # the two change places; p is not detached, for what the student holds likely is what it has to answer for
    log_p, log_q = soft_log_probabilities(inputs, temperature, logit_standardization)
    return {"reverse_kl": divergence(log_q, log_p).mean() * temperature**2}


@register_loss(
    "jsd_kd",
    summary="generalised Jensen-Shannon divergence to the teacher",
    paper="Agarwal et al. 2023, 2306.13649",
)
def jsd_kd(
    inputs: LossInputs,
    *,
    beta: ProperShare = 0.5,
    temperature: Positive = 1.0,
    logit_standardization: bool = False,
) -> dict[str, Tensor]:
    """Generalised Jensen-Shannon divergence (On-Policy Distillation of Language Models, 2023, arXiv 2306.13649).

    T^2 * (beta * KL(q || m) + (1 - beta) * KL(p || m)) with m = beta * q + (1 - beta) * p, p the student's and q the
    teacher's distribution; bounded by T^2 * log 2 at beta = 1/2.
    """
    log_p, log_q = soft_log_probabilities(inputs, temperature, logit_standardization)
    # the mixture, and how far each of the two is from it
    log_m = torch.logaddexp(log_q + math.log(beta), log_p + math.log(1 - beta))
    jsd = beta * divergence(log_m, log_q) + (1 - beta) * divergence(log_m, log_p)
    return {"jsd_kd": jsd.mean() * temperature**2}


@register_loss(
    "reverse_ce",
    summary="cross-entropy from student to teacher: draws the student to one class",
    paper="Xu et al. 2025, 2505.24313",
)
def reverse_ce(inputs: LossInputs) -> dict[str, Tensor]:
    """Reverse cross-entropy -sum p log q (On the Emergence of Weak-to-Strong Generalization, 2025, arXiv 2505.24313).

    It is reverse KL plus the student's entropy, so its minimum is all of p on the teacher's likeliest class. A teacher
    that finds all classes alike gives no gradient.
    """
    # the student's softmax is the target here, and the gradient goes through it alone
    p = inputs.student_logits.softmax(dim=1)
    return {"reverse_ce": F.cross_entropy(inputs.teacher_logits, p)}


@register_loss(
    "hellinger",
    summary="squared Hellinger distance to the teacher",
    paper="Yao et al. 2025, 2506.03109",
)
def hellinger(inputs: LossInputs) -> dict[str, Tensor]:
    """Squared Hellinger distance, sum (sqrt p - sqrt q)^2 (Weak-to-Strong and f-Divergence, 2025, arXiv 2506.03109).

    From 0 to 2. A class that the student holds impossible pulls with sqrt p, so a sure student keeps its mind.
    """
    log_p, log_q = soft_log_probabilities(inputs, 1.0)
    # half of a logarithm is that of the root, whose own gradient is infinite at 0
    difference = (log_p / 2).exp() - (log_q / 2).exp()
    return {"hellinger": difference.square().sum(dim=1).mean()}


@register_loss(
    "chi2",
    summary="chi-square divergence from the teacher",
    paper="Yao et al. 2025, 2506.03109",
)
def chi2(inputs: LossInputs, *, floor: PositiveShare = 0.01) -> dict[str, Tensor]:
    """Pearson's chi-square divergence, sum (p - q)^2 / q (Weak-to-Strong and f-Divergence, 2025, arXiv 2506.03109).

    Args:
        inputs: logits.
        floor: least q in the denominator; without it a sure teacher has an infinite gradient. 1 is the Brier score.
    """
    # where q is small the square weighs most
    p = inputs.student_logits.softmax(dim=1)
    q = inputs.teacher_logits.softmax(dim=1)
    return {"chi2": ((p - q).square() / q.clamp(min=floor)).sum(dim=1).mean()}


@register_loss(
    "dkd",
    summary="target and non-target classes distilled apart",
    paper="Zhao et al. 2022, 2203.08679",
    needs_target=True,
)
def dkd(
    inputs: LossInputs,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: Positive = 4.0,
    logit_standardization: bool = False,
) -> dict[str, Tensor]:
    """Decoupled knowledge distillation (2022, arXiv 2203.08679, eq. 7).

    T^2 * (alpha * KL((q_y, 1 - q_y) || (p_y, 1 - p_y)) + beta * KL(q^ || p^)), where y is the target class and p^, q^
    are the distributions over the other classes. Of a soft target y is the likeliest class.
    """
    # In `kd` the second part is scaled by 1 - q_y, which silences it where the teacher is sure. Here both have weights of
    # their own (equation 7), so that what a sure teacher says of the other classes is heard.
    label = label_of(promised(inputs.target, "target"))
    student, teacher = soft_logits(inputs, temperature, logit_standardization)
    log_p_y, log_p_not_y, log_p_others = split_target(student, label)
    log_q_y, log_q_not_y, log_q_others = split_target(teacher, label)
    # two classes, the label and all others
    of_label = log_q_y.exp() * (log_q_y - log_p_y)
    target = of_label + log_q_not_y.exp() * (log_q_not_y - log_p_not_y)
    # the others among themselves
    non_target = divergence(log_p_others, log_q_others)
    return {
        "target": target.mean() * (alpha * temperature**2),
        "non_target": non_target.mean() * (beta * temperature**2),
    }


@register_loss(
    "nkd",
    summary="soft cross-entropy on the target class, normalised cross-entropy on the others",
    paper="Yang et al. 2023, 2303.13005",
    needs_target=True,
)
def nkd(
    inputs: LossInputs,
    *,
    gamma: float = 1.5,
    temperature: Positive = 1.0,
    logit_standardization: bool = False,
) -> dict[str, Tensor]:
    """Normalised KD (From Knowledge Distillation to Self-Knowledge Distillation, 2023, arXiv 2303.13005).

    -q_y log p_y - gamma * T^2 * sum over the other classes of q^ log p^, where p^ and q^ are the distributions over
    these at temperature T. The first part has no temperature and no standardisation. Of a soft target y is the
    likeliest class.
    """
    label = label_of(promised(inputs.target, "target"))
    student, teacher = soft_logits(inputs, temperature, logit_standardization)
    log_p_y, _, log_p_others = split_target(student, label)
    log_q_y, _, log_q_others = split_target(teacher, label)
    # the label's own part is as the network says it
    if temperature != 1 or logit_standardization:
        log_p_y = -F.cross_entropy(inputs.student_logits, label, reduction="none")
        log_q_y = -F.cross_entropy(inputs.teacher_logits, label, reduction="none")
    # the others at the temperature
    non_target = cross_entropy(log_p_others, log_q_others.exp())
    return {
        "target": -(log_q_y.exp() * log_p_y).mean(),
        "non_target": non_target.mean() * (gamma * temperature**2),
    }


def ofa_per_sample(
    student_logits: Tensor,
    teacher_logits: Tensor,
    label: Tensor,
    *,
    eps: float = 1.0,
    temperature: float = 1.0,
    logit_standardization: bool = False,
) -> Tensor:
    """Return the OFA loss of one pair of logits for each sample, (B,): sum over c of ((q + y)^eps - y) * -log p.

    Args:
        student_logits: (B, C), of the head or of an exit on an intermediate feature.
        teacher_logits: (B, C).
        label: (B,) class indices; y is their one-hot form.
        eps: exponent > 0; above 1 it raises the target class against the others.
        temperature: T > 0; there is no factor T^2.
        logit_standardization: see `standardize`.
    """
    log_p = soften(student_logits, temperature, logit_standardization).log_softmax(dim=1)
    log_q = soften(teacher_logits, temperature, logit_standardization).log_softmax(dim=1)
    index = label.unsqueeze(1)
    # the exponent raises what the label adds
    of_label = (1 + log_q.gather(1, index).exp()) ** eps - 1
    weight = (eps * log_q).exp().scatter(1, index, of_label)
    return cross_entropy(log_p, weight)


@register_loss(
    "dist",
    summary="correlation with the teacher, by sample and by class",
    paper="Huang et al. 2022, 2205.10536",
)
def dist(
    inputs: LossInputs,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: Positive = 1.0,
    logit_standardization: bool = False,
) -> dict[str, Tensor]:
    """DIST (Knowledge Distillation from A Stronger Teacher, 2022, arXiv 2205.10536).

    T^2 * (beta * (1 - mean correlation of rows) + gamma * (1 - mean correlation of columns)) of the softmax matrices.
    """
    # a correlation does not ask for the same numbers: a strong teacher's are hard to match, their order is what counts
    p, q = (
        logits.softmax(dim=1) for logits in soft_logits(inputs, temperature, logit_standardization)
    )
    return {
        "inter": (1 - _correlation(p, q, dim=1).mean()) * (beta * temperature**2),
        "intra": (1 - _correlation(p, q, dim=0).mean()) * (gamma * temperature**2),
    }


@register_loss(
    "ttm",
    summary="tempered teacher, student without temperature",
    paper="Zheng and Yang 2024, 2402.11148",
)
def ttm(
    inputs: LossInputs,
    *,
    temperature: Positive = 10.0,
    logit_standardization: bool = False,
) -> dict[str, Tensor]:
    """Transformed teacher matching: KL(softmax(w / T) || softmax(z)) (2024, arXiv 2402.11148).

    The paper's exponent gamma is 1 / T.
    """
    kl, _ = _transformed_teacher_matching(inputs, temperature, logit_standardization)
    return {"ttm": kl.mean()}


@register_loss(
    "wttm",
    summary="ttm weighted by the smoothness of the teacher's distribution",
    paper="Zheng and Yang 2024, 2402.11148",
)
def wttm(
    inputs: LossInputs,
    *,
    temperature: Positive = 10.0,
    logit_standardization: bool = False,
) -> dict[str, Tensor]:
    """Weighted transformed teacher matching (2024, arXiv 2402.11148).

    Each sample of `ttm` is weighted by the power sum of the teacher's probabilities, sum over c of q_c^(1/T), which is
    1 for a one-hot teacher and grows as its distribution becomes flatter.
    """
    kl, power_sum = _transformed_teacher_matching(inputs, temperature, logit_standardization)
    return {"wttm": (power_sum * kl).mean()}


@register_loss(
    "mlkd",
    summary="kd at several temperatures, for samples, pairs of samples and pairs of classes",
    paper="Jin et al. 2023, CVPR",
)
def mlkd(
    inputs: LossInputs,
    *,
    temperatures: tuple[Positive, ...] | list[Positive] = (4.0, 3.0, 5.0, 2.0, 6.0),
    logit_standardization: bool = False,
) -> dict[str, Tensor]:
    """Multi-level logit distillation (Jin, Wang and Lin, CVPR 2023), on one view.

    The sum over the temperatures of kd, of |P P' - Q Q'|^2 / B and of |P' P - Q' Q|^2 / C, with P and Q the (B, C)
    matrices of the student's and the teacher's softmax and |.| the Frobenius norm.

    The C x C matrices are never built: |P' P - Q' Q|^2 = |P P'|^2 - 2 |P Q'|^2 + |Q Q'|^2.
    """
    # three levels at each temperature
    instance: list[Tensor] = []
    batch: list[Tensor] = []
    classes: list[Tensor] = []
    for temperature in temperatures:
        log_p, log_q = soft_log_probabilities(inputs, temperature, logit_standardization)
        instance.append(divergence(log_p, log_q).mean() * temperature**2)
        p = log_p.exp()
        q = log_q.exp()
        # products of B x B, whatever the number of classes
        pp = p @ p.T
        pq = p @ q.T
        qq = q @ q.T
        batch.append((pp - qq).square().sum() / len(p))
        classes.append((pp.square().sum() - 2 * pq.square().sum() + qq.square().sum()) / p.shape[1])
    return {"instance": add_up(instance), "batch": add_up(batch), "class": add_up(classes)}


def _transformed_teacher_matching(
    inputs: LossInputs,
    temperature: float,
    logit_standardization: bool,
) -> tuple[Tensor, Tensor]:
    # the teacher alone has a temperature: what that adds to KD is a regulariser, an entropy of the student (Renyi's)
    student, teacher = soft_logits(inputs, 1.0, logit_standardization)
    tempered = teacher / temperature
    log_norm = tempered.logsumexp(dim=1)
    power_sum = (log_norm - teacher.logsumexp(dim=1) / temperature).exp()
    return divergence(student.log_softmax(dim=1), tempered - log_norm.unsqueeze(1)), power_sum


def _correlation(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Return Pearson's correlation along ``dim``; 0 where one of the two is constant."""
    # centred, then the cosine
    a = a - a.mean(dim=dim, keepdim=True)
    b = b - b.mean(dim=dim, keepdim=True)
    return (a * b).sum(dim=dim) / (a.norm(dim=dim) * b.norm(dim=dim) + 1e-8)
