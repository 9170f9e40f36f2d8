"""Labels of several classes an image: each class is a question of its own, yes or no, and may be unanswered.

In the formulas z and w are the logits that student and teacher give a class of an image, p and q their sigmoids, and
BCE(p, q) is -q log p - (1 - q) log(1 - p). The teacher's logit of an unknown label is NaN. Unless a loss says otherwise,
it is the mean over the known labels of a batch; of a batch without any it is 0, and so is its gradient.

`an`, `wan`, `ll_r` and `ll_ct` are made for tables that name some of the classes that an image has, and never those
that it hasn't. They take an unknown label for a no, if something is known of the image; images of which nothing is known
are left out. Unobserved, and so perhaps wrong, is each label that isn't a yes (q < 1/2, or unknown). Use
``trust_negatives`` where a no was said by somebody: then only unknown labels are unobserved.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..target_kind import SEVERAL_CLASSES
from .arguments import Decay, NonNegative, Positive, ProperShare, Share
from .base import DistillationLoss, LossContext, LossInputs, promised, ramped, register_loss
from .memory import PredictionMemory, gather_rows, size_of

_SEVERAL = (SEVERAL_CLASSES.name,)
_EXCLUDED = -1e30  # a logit that no maximum notices, finite so that a row of them has a gradient
_SMALLEST_BASE = 1e-8  # of a power between 0 and 1, whose slope at 0 is infinite


def read_labels(teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probability of each label, 0 where it is unknown, and whether it is known, (B, C) each."""
    is_known = ~teacher_logits.isnan()
    return torch.where(is_known, teacher_logits.sigmoid(), 0), is_known


def mean_over(values: Tensor, counts: Tensor) -> Tensor:
    """Return the mean of those values that count, two tensors of one shape; 0, with a graph, if none does."""
    return torch.where(counts, values, 0).sum() / counts.sum().clamp(min=1)


def cross_entropy_by_class(student_logits: Tensor, q: Tensor) -> Tensor:
    """Return BCE(p, q) of each label, (B, C)."""
    return F.binary_cross_entropy_with_logits(student_logits, q, reduction="none")


# ---------------------------------------------------------------- losses that know both kinds: their form by class


def kl_by_class(inputs: LossInputs, temperature: float) -> Tensor:
    """Return T^2 * KL(sigmoid(w / T) || sigmoid(z / T)) of each label, (B, C); finite where w is unknown."""
    z = inputs.student_logits / temperature
    w = inputs.teacher_logits.nan_to_num(nan=0.0) / temperature
    # logarithms of the sigmoids on both sides of 0, so that 1 - p keeps its digits
    yes = w.sigmoid() * (F.logsigmoid(w) - F.logsigmoid(z))
    no = (-w).sigmoid() * (F.logsigmoid(-w) - F.logsigmoid(-z))
    return (yes + no) * temperature**2


def kd_by_class(inputs: LossInputs, *, temperature: Positive = 4.0) -> dict[str, Tensor]:
    """Knowledge distillation of each class as a problem of two (2015, arXiv 1503.02531), see `kl_by_class`."""
    is_known = ~inputs.teacher_logits.isnan()
    return {"kd": mean_over(kl_by_class(inputs, temperature), is_known)}


def adaptconf_by_class(
    inputs: LossInputs,
    *,
    temperature: Positive = 0.5,
    kd_temperature: Positive = 1.0,
    ramp: Share = 0.0,
) -> dict[str, Tensor]:
    """AdaptConf (2024, arXiv 2402.03749) of each class as a problem of two, yes and no, with the logits z and 0.

    The paper's beta = exp(CE_self / T) / (exp(CE_self / T) + exp(CE_weak / T)) is sigmoid((CE_self - CE_weak) / T). Of
    two classes CE_self = log(1 + exp(-|z|)), the student's loss on its own decision. CE_weak, its loss on the
    teacher's, is the same if both decide alike, and log(1 + exp(|z|)) = CE_self + |z| if they do not. So beta is 1/2
    where they agree and sigmoid(-|z| / T) where they differ. The loss is (1 - beta) * KD + beta * CE_self of each label;
    KD is that of `kd_by_class` at ``kd_temperature``. For C = 1 it is `adaptconf` of the logits (0, z) and (0, w).
    """
    # how far the student is trusted, label by label; without a gradient, as for one class
    z = inputs.student_logits
    opinion = z.detach()
    differ = (opinion >= 0) != (inputs.teacher_logits >= 0)
    beta = (-opinion.abs() * differ / temperature).sigmoid() * ramped(inputs.progress, ramp)
    # a logit of 0, as of a head of zeros, is no decision that could be learned from
    on_itself = torch.where(opinion == 0, 0, F.softplus(-z.abs()))
    is_known = ~inputs.teacher_logits.isnan()
    kd = kl_by_class(inputs, kd_temperature)
    return {
        "kd": mean_over((1 - beta) * kd, is_known),
        "self": mean_over(beta * on_itself, is_known),
    }


# ---------------------------------------------------------------- timm's


@register_loss(
    "bce",
    summary="binary cross-entropy on the teacher's probabilities, or on its decisions",
    paper="timm's BinaryCrossEntropy",
    target_kinds=_SEVERAL,
)
def bce(inputs: LossInputs, *, target_threshold: Share | None = None) -> dict[str, Tensor]:
    """Mean of BCE(p, q), as timm's ``bce`` has it if nothing is unknown.

    Args:
        inputs: logits.
        target_threshold: if given, labels are 1 above this probability, else 0.
    """
    q, is_known = read_labels(inputs.teacher_logits)
    if target_threshold is not None:
        q = (q > target_threshold).to(q.dtype)
    return {"bce": mean_over(cross_entropy_by_class(inputs.student_logits, q), is_known)}


@register_loss(
    "asl",
    summary="binary cross-entropy that forgets easy negatives sooner than easy positives",
    paper="Ridnik et al. 2020, 2009.14119",
    target_kinds=_SEVERAL,
)
def asl(
    inputs: LossInputs,
    *,
    gamma_neg: NonNegative = 4.0,
    gamma_pos: NonNegative = 1.0,
    clip: Share = 0.05,
    reduction: Literal["batchmean", "mean"] = "batchmean",
) -> dict[str, Tensor]:
    """Asymmetric loss (2020, arXiv 2009.14119), as timm's ``asl`` has it if nothing is unknown.

    -q (1 - p)^gamma_pos log p for a yes, -(1 - q) m^gamma_neg log(1 - m) for a no, where m = max(p - clip, 0). Of a soft
    label the two are mixed, in the power too, as timm does. timm ends the logarithm at 1e-8; here it goes on, so that a
    yes which the student excludes has a gradient.

    Args:
        inputs: logits.
        gamma_neg: the larger, the less a no counts that the student almost knows.
        gamma_pos: the same for a yes.
        clip: a no with a smaller p counts nothing.
        reduction: "mean" is over known labels. "batchmean", timm's default, is C times that: the sum over the classes of
            an image, mean over images, as large as if all labels were known.
    """
    z = inputs.student_logits
    q, is_known = read_labels(inputs.teacher_logits)
    # an easy no is moved to where its loss is 0
    margin = (z.sigmoid() - clip).clamp(min=0)
    log_no = F.logsigmoid(-z) if clip == 0 else torch.log1p(-margin)
    # what is missing to a sure answer, and how much that matters
    missing = (q * (-z).sigmoid() + (1 - q) * margin).clamp(min=_SMALLEST_BASE)
    focus = missing ** (gamma_pos * q + gamma_neg * (1 - q))
    losses = -focus * (q * F.logsigmoid(z) + (1 - q) * log_no)
    scale = z.shape[1] if reduction == "batchmean" else 1
    return {"asl": scale * mean_over(losses, is_known)}


@register_loss(
    "poly",
    summary="binary cross-entropy, or focal loss, plus a multiple of the missing probability",
    paper="Leng et al. 2022, 2204.12511",
    target_kinds=_SEVERAL,
)
def poly(
    inputs: LossInputs,
    *,
    epsilon: float = 2.0,
    gamma: NonNegative = 0.0,
    alpha: Share | None = None,
) -> dict[str, Tensor]:
    """Poly-1 (2022, arXiv 2204.12511), as timm's ``poly`` has it if nothing is unknown.

    BCE * e^gamma + epsilon * e^(gamma + 1) with e = q (1 - p) + (1 - q) p.

    Args:
        inputs: logits.
        epsilon: weight of the second term.
        gamma: the larger, the less an answer counts that the student almost knows.
        alpha: weight of a yes, that of a no being 1 - alpha; both are 1 if it isn't given.
    """
    z = inputs.student_logits
    q, is_known = read_labels(inputs.teacher_logits)
    # how much probability the answer lacks, of a yes and of a no
    missing = q * (-z).sigmoid() + (1 - q) * z.sigmoid()
    focus = missing.clamp(min=_SMALLEST_BASE) ** gamma
    losses = focus * (cross_entropy_by_class(z, q) + epsilon * missing)
    if alpha is not None:
        losses = losses * torch.lerp(1 - q, q, alpha)
    return {"poly": mean_over(losses, is_known)}


@register_loss(
    "zlpr",
    summary="logits of yes above 0 and those of no below, by the hardest of each image",
    paper="Su et al. 2022, 2208.02955",
    target_kinds=_SEVERAL,
)
def zlpr(inputs: LossInputs) -> dict[str, Tensor]:
    """Zero-bounded log-sum-exp (2022, arXiv 2208.02955), as timm's ``zlpr`` has it if nothing is unknown.

    log(1 + sum of exp(z) where the teacher says no) + log(1 + sum of exp(-z) where it says yes), mean over the images of
    which something is known. The teacher says yes where q >= 1/2.
    """
    z, w = inputs.student_logits, inputs.teacher_logits
    # NaN is neither above nor below, so what is unknown is in neither sum
    zero = z.new_zeros(len(z), 1)
    of_no = torch.cat([zero, z.masked_fill(~(w < 0), -torch.inf)], dim=1).logsumexp(dim=1)
    of_yes = torch.cat([zero, (-z).masked_fill(~(w >= 0), -torch.inf)], dim=1).logsumexp(dim=1)
    return {"zlpr": mean_over(of_no + of_yes, (~w.isnan()).any(dim=1))}


@register_loss(
    "twoway",
    summary="hardest yes above hardest no, among the classes of an image and among the images of a class",
    paper="Kobayashi 2023, Two-way Multi-Label Loss, CVPR",
    target_kinds=_SEVERAL,
)
def twoway(inputs: LossInputs, *, tp: Positive = 4.0, tn: Positive = 1.0) -> dict[str, Tensor]:
    """Two-way loss (CVPR 2023), as timm's ``twoway`` has it if nothing is unknown.

    softplus(tn * logsumexp of z / tn over each no + tp * logsumexp of -z / tp over each yes), over the images of a class,
    mean over classes, plus the same over the classes of an image, mean over images. Classes and images without a yes are
    left out. The teacher says yes where q >= 1/2. p has no meaning as a probability afterwards.

    Args:
        inputs: logits.
        tp: temperature of a yes.
        tn: temperature of a no.
    """
    z, w = inputs.student_logits, inputs.teacher_logits
    # NaN is neither above nor below, so what is unknown is in neither sum
    is_yes = w >= 0
    yes = (-z / tp).masked_fill(~is_yes, _EXCLUDED)
    no = (z / tn).masked_fill(~(w < 0), _EXCLUDED)
    terms = {}
    for name, dim in (("samples", 0), ("classes", 1)):
        gap = tn * no.logsumexp(dim=dim) + tp * yes.logsumexp(dim=dim)
        terms[name] = mean_over(F.softplus(gap), is_yes.any(dim=dim))
    return terms


# ---------------------------------------------------------------- unknown and wrong labels


def _assume_negatives(
    teacher_logits: Tensor, trust_negatives: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return labels, which of them count, and which of those are unobserved, (B, C) each; see the top of the file."""
    q, is_known = read_labels(teacher_logits)
    counts = is_known.any(dim=1, keepdim=True).expand_as(is_known)
    observed = is_known if trust_negatives else teacher_logits >= 0
    return q, counts, counts & ~observed


@register_loss(
    "an",
    summary="binary cross-entropy that takes unknown labels for a no",
    paper="Cole et al. 2021, 2106.09708",
    target_kinds=_SEVERAL,
)
def an(inputs: LossInputs) -> dict[str, Tensor]:
    """Assume negative (2021, arXiv 2106.09708): mean of BCE(p, q), where q of an unknown label is 0."""
    q, counts, _ = _assume_negatives(inputs.teacher_logits, True)
    return {"an": mean_over(cross_entropy_by_class(inputs.student_logits, q), counts)}


@register_loss(
    "wan",
    summary="an, with so little weight on each assumed no that all of an image weigh as one yes",
    paper="Cole et al. 2021, 2106.09708",
    target_kinds=_SEVERAL,
)
def wan(inputs: LossInputs, *, trust_negatives: bool = False) -> dict[str, Tensor]:
    """Weak assume negative (2021, arXiv 2106.09708): `an` with weight 1 / (C - 1) on unobserved labels.

    The sum is divided by the number of all labels that count, whatever their weight, as published.

    Args:
        inputs: logits.
        trust_negatives: only unknown labels are unobserved, see the top of the file.
    """
    q, counts, unobserved = _assume_negatives(inputs.teacher_logits, trust_negatives)
    losses = cross_entropy_by_class(inputs.student_logits, q)
    weight = 1 / max(1, losses.shape[1] - 1)
    return {"wan": mean_over(torch.where(unobserved, weight * losses, losses), counts)}


def _have_largest(losses: Tensor, unobserved: Tensor, counts: Tensor, share: float) -> Tensor:
    """Say which unobserved labels (B, C) have the largest losses, as many as a share of all that count, rounded up."""
    # the device need not be waited for: how many count is a tensor, and so is the rank that is looked up
    most = math.ceil(share * losses.numel())
    if most == 0:
        return torch.zeros_like(unobserved)
    candidates = losses.detach().masked_fill(~unobserved, -torch.inf)
    largest = candidates.flatten().topk(most).values
    rank = (share * counts.sum()).ceil().long().clamp(1, most) - 1
    return unobserved & (candidates >= largest.gather(0, rank.reshape(1)))


def _share_of_large(progress: float, share: float, start: float) -> float:
    # As published, an epoch without, then as many times delta_rel as there were epochs; here without their steps.
    return share * progress if progress >= start else 0.0


@register_loss(
    "ll_r",
    summary="an without the unobserved labels that have the largest losses, more and more of them",
    paper="Kim et al. 2022, 2206.03740",
    target_kinds=_SEVERAL,
)
def ll_r(
    inputs: LossInputs,
    *,
    share: Share = 0.02,
    start: Share = 0.1,
    trust_negatives: bool = False,
) -> dict[str, Tensor]:
    """Large loss rejection (LL-R of Large Loss Matters, 2022, arXiv 2206.03740).

    `an`, in which a share of the labels of a batch counts 0, the unobserved ones with the largest losses. Published is
    the share (t - 1) * delta_rel in epoch t of ten, delta_rel 0.1 % to 0.5 %. Here it is ``share`` * progress from
    ``start`` on, which is the same at the beginning of each epoch for share = 10 * delta_rel and start = 1 / 10.

    Args:
        inputs: logits and progress.
        share: of all labels that count, at the end of training. Published: 0.01 to 0.05.
        start: share of training before which nothing is left out: the student knows too little yet.
        trust_negatives: only unknown labels are unobserved, see the top of the file.
    """
    q, counts, unobserved = _assume_negatives(inputs.teacher_logits, trust_negatives)
    losses = cross_entropy_by_class(inputs.student_logits, q)
    reached = _share_of_large(inputs.progress, share, start)
    # what fits an assumed no so badly is probably a yes, and teaches nothing
    large = _have_largest(losses, unobserved, counts, reached)
    return {"ll_r": mean_over(losses.masked_fill(large, 0), counts)}


@register_loss(
    "ll_ct",
    summary="an with a yes for the unobserved labels that have the largest losses, more and more",
    paper="Kim et al. 2022, 2206.03740",
    target_kinds=_SEVERAL,
)
def ll_ct(
    inputs: LossInputs,
    *,
    share: Share = 0.02,
    start: Share = 0.1,
    trust_negatives: bool = False,
) -> dict[str, Tensor]:
    """Large loss correction, temporary (LL-Ct of Large Loss Matters, 2022, arXiv 2206.03740).

    As `ll_r`, but those labels are turned round, q to 1 - q, in this step alone.

    Args:
        inputs: logits and progress.
        share: as for `ll_r`.
        start: as for `ll_r`.
        trust_negatives: as for `ll_r`.
    """
    q, counts, unobserved = _assume_negatives(inputs.teacher_logits, trust_negatives)
    losses = cross_entropy_by_class(inputs.student_logits, q)
    reached = _share_of_large(inputs.progress, share, start)
    large = _have_largest(losses, unobserved, counts, reached)
    # in the next step it may be what it was
    turned = cross_entropy_by_class(inputs.student_logits, 1 - q)
    return {"ll_ct": mean_over(torch.where(large, turned, losses), counts)}


class LabelShares(nn.Module):
    """How often each class has been a yes among the known labels so far, the same on every rank.

    A yes and a no are added to each class, so that no share is 0 or 1.
    """

    positives: Tensor
    known: Tensor

    def __init__(self, num_classes: int):
        super().__init__()
        self.register_buffer("positives", torch.ones(num_classes))
        self.register_buffer("known", torch.full((num_classes,), 2.0))

    def read(self) -> Tensor:
        """Return the shares (C,), in (0, 1)."""
        return self.positives / self.known

    @torch.no_grad()
    def update(self, q: Tensor, is_known: Tensor) -> None:
        """Count the labels (B, C) of all ranks."""
        q, is_known = gather_rows(q.to(self.positives.dtype), is_known.to(self.known.dtype))
        self.positives += q.sum(dim=0)
        self.known += is_known.sum(dim=0)


@register_loss(
    "nvum",
    summary="binary cross-entropy, held to what the student predicted early on, rare classes no less",
    paper="Liu et al. 2022, 2103.04053",
    target_kinds=_SEVERAL,
)
class NonVolatileUnbiasedMemory(DistillationLoss):
    """Non-volatile unbiased memory (NVUM, 2022, arXiv 2103.04053): early-learning regularisation class by class.

    BCE(p, q) + lam * log(1 - sigmoid(m_i * p)), where m_i is the moving average of the student's logits on image i less
    the logarithm of the class's share, m_i <- beta * m_i + (1 - beta) * (z - log pi). It starts at 0 and is taken before
    it is used, without gradient. The sigmoid is the released code's; without it the logarithm would not exist for m_i p
    above 1. There the memory is filled by an average of the student's weights, here by the student.

    Args:
        lam: weight of the regulariser.
        beta: share of the average kept at each visit.
        shares: share pi of the images that have each class, in the order of the logits; if not given, it is counted in
            the labels as they come, see `LabelShares`.
    """

    needs_index = True

    def __init__(
        self, lam: NonNegative = 1.0, beta: Decay = 0.9, shares: list[ProperShare] | None = None
    ):
        super().__init__()
        self.lam, self.beta, self.shares = lam, beta, shares

    def setup(self, context: LossContext) -> None:
        self.memory = PredictionMemory(self.beta, size_of(context, self.name), context.num_classes)
        self.counted = LabelShares(context.num_classes)
        if self.shares is None:
            return
        if len(self.shares) != context.num_classes:
            raise UserError(
                f"loss 'nvum': shares has {len(self.shares)} numbers, "
                f"expected one for each of the {context.num_classes} classes"
            )

    def compute(self, inputs: LossInputs) -> dict[str, Tensor]:
        index = promised(inputs.index, "index")
        z = inputs.student_logits
        q, is_known = read_labels(inputs.teacher_logits)
        # what is remembered is without the preference for frequent classes
        if self.training:
            self.counted.update(q, is_known)
            shares = self.counted.read() if self.shares is None else z.new_tensor(self.shares)
            self.memory.update(index, z.detach() - shares.to(z.dtype).log())
        # what the student predicted early pulls against what it learns late
        early = self.memory.mean[index].to(z.dtype)
        return {
            "bce": mean_over(cross_entropy_by_class(z, q), is_known),
            "nvum": self.lam * mean_over(F.logsigmoid(-early * z.sigmoid()), is_known),
        }
