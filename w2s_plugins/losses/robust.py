"""Learning from labels that may be wrong: the teacher is an annotator, its argmax the label.

In the formulas p is the student's softmax, q the teacher's, y the teacher's argmax (one-hot where it is a vector).
None of these losses looks at ground truth.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..target_kind import ONE_CLASS, SEVERAL_CLASSES
from .arguments import Decay, NonNegative, Positive, PositiveShare, Share
from .base import (
    DistillationLoss,
    LossContext,
    LossInputs,
    promised,
    ramped,
    register_loss,
)
from .logits import cross_entropy, kl_per_sample
from .memory import ClassShift, PredictionMemory, gather_rows, merge_repeats, size_of
from .several import cross_entropy_by_class, mean_over, read_labels
from .undo import Undo

_LARGEST_AGREEMENT = 1 - 1e-4  # ELR's log(1 - <p, t>) stays finite


@register_loss(
    "hard",
    summary="cross-entropy on the teacher's argmax, the naive weak-to-strong baseline",
    paper="Lee 2013, Pseudo-Label, ICML workshop",
)
def hard(inputs: LossInputs) -> dict[str, Tensor]:
    """Cross-entropy on the teacher's hardened prediction."""
    return {"hard": F.cross_entropy(inputs.student_logits, inputs.teacher_logits.argmax(dim=1))}


@register_loss(
    "gce",
    summary="generalised cross-entropy, between CE and MAE",
    paper="Zhang et al. 2018, 1805.07836",
)
def gce(inputs: LossInputs, *, q: PositiveShare = 0.7) -> dict[str, Tensor]:
    """Generalised cross-entropy (1 - p_y^q) / q (2018, arXiv 1805.07836).

    It is the cross-entropy as q -> 0 and the mean absolute error at q = 1.
    """
    # the larger q, the less a sample counts that the student doubts; expm1 keeps the digits where p_y is almost 1
    log_p_y = _log_p_of_label(inputs)
    return {"gce": (-torch.expm1(q * log_p_y) / q).mean()}


@register_loss(
    "sce",
    summary="cross-entropy plus reverse cross-entropy",
    paper="Wang et al. 2019, 1908.06112",
)
def sce(
    inputs: LossInputs,
    *,
    alpha: NonNegative = 0.1,
    beta: NonNegative = 1.0,
    log_zero: float = -4.0,
) -> dict[str, Tensor]:
    """Symmetric cross-entropy alpha * CE + beta * RCE (2019, arXiv 1908.06112).

    RCE = -sum p log y, which is -A (1 - p_y) when log 0 is taken as A = ``log_zero``.
    """
    # CE learns, RCE is bounded and so cannot be ruled by wrong labels
    log_p_y = _log_p_of_label(inputs)
    reverse = _reverse_cross_entropy(log_p_y, log_zero)
    return {"ce": -alpha * log_p_y.mean(), "rce": beta * reverse.mean()}


@register_loss(
    "nce_rce",
    summary="normalised cross-entropy plus reverse cross-entropy",
    paper="Ma et al. 2020, 2006.13554",
)
def nce_rce(
    inputs: LossInputs,
    *,
    alpha: NonNegative = 1.0,
    beta: NonNegative = 1.0,
    log_zero: float = -4.0,
) -> dict[str, Tensor]:
    """Active passive loss alpha * NCE + beta * RCE (Normalized Loss Functions, 2020, arXiv 2006.13554).

    NCE = log p_y / sum over c of log p_c; RCE as in `sce`.
    """
    # divided by its sum over all labels, a loss is robust to symmetric noise (the paper's theorem), but learns slowly
    log_p = inputs.student_logits.log_softmax(dim=1)
    label = inputs.teacher_logits.argmax(dim=1, keepdim=True)
    log_p_y = log_p.gather(1, label).squeeze(1)
    nce = log_p_y / log_p.sum(dim=1)
    reverse = _reverse_cross_entropy(log_p_y, log_zero)
    return {"nce": alpha * nce.mean(), "rce": beta * reverse.mean()}


@register_loss(
    "small_loss",
    summary="only the share of the batch with the smallest loss",
    paper="Han et al. 2018, 1804.06872",
)
def small_loss(
    inputs: LossInputs, *, keep: PositiveShare = 0.8, ramp: Share = 0.05
) -> dict[str, Tensor]:
    """Small-loss selection (Co-teaching, 2018, arXiv 1804.06872): mean CE over the samples that fit their label best.

    Args:
        inputs: logits and progress.
        keep: share of the batch that is kept; 1 minus the share of wrong labels, where that is known.
        ramp: share of training over which the dropped share grows from 0; the network then still ignores noise.
    """
    # fewer and fewer samples, those that fit their label best
    kept = 1 - (1 - keep) * ramped(inputs.progress, ramp)
    losses = -_log_p_of_label(inputs)
    count = max(1, round(kept * len(losses)))
    return {"small_loss": losses.topk(count, largest=False, sorted=False).values.mean()}


@register_loss(
    "conf_weighted",
    summary="kd weighted by the teacher's confidence in the sample",
    paper="this project",
)
def conf_weighted(
    inputs: LossInputs,
    *,
    temperature: Positive = 1.0,
    logit_standardization: bool = False,
) -> dict[str, Tensor]:
    """KD with every sample weighted by max q, the weights scaled to a mean of 1 over the batch.

    The weights are the teacher's confidence at temperature 1, whatever ``temperature`` KD has.
    """
    # weights of mean 1, so that the loss keeps its size
    confidence = _confidence(inputs.teacher_logits)
    kd = kl_per_sample(inputs, temperature, logit_standardization)
    return {"conf_weighted": (confidence * kd).sum() / confidence.sum()}


@register_loss(
    "confidence_mask",
    summary="cross-entropy only where the teacher or the student is sure",
    paper="Sohn et al. 2020, 2001.07685",
)
def confidence_mask(
    inputs: LossInputs,
    *,
    threshold: Share = 0.95,
    source: Literal["either", "teacher", "student"] = "either",
) -> dict[str, Tensor]:
    """CE on the teacher's argmax where max p or max q reaches a threshold, after FixMatch (2020, arXiv 2001.07685).

    As in FixMatch the mean is over the whole batch, so the loss is small as long as few samples pass.

    Args:
        inputs: logits.
        threshold: smallest confidence that counts as sure.
        source: whose confidence decides.
    """
    # one sure side is enough; the student's confidence chooses samples, so it has no gradient
    logits = inputs.student_logits
    sure = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    if source != "student":
        sure = sure | (_confidence(inputs.teacher_logits) >= threshold)
    if source != "teacher":
        sure = sure | (_confidence(logits.detach()) >= threshold)
    return {"confidence_mask": (sure.float() * -_log_p_of_label(inputs)).mean()}


@register_loss(
    "evidential",
    summary="cross-entropy of a Dirichlet whose evidence are the logits, "
    "with a growing pull to the uniform one",
    paper="Cui et al. 2024, 2406.03199",
)
def evidential(inputs: LossInputs) -> dict[str, Tensor]:
    """Evidential loss (Bayesian WeakS-to-Strong, 2024, arXiv 2406.03199).

    With a = relu(z) + 1 and S = sum a: sum over c of q_c (log S - log a_c) + t * KL(Dir(q + (1 - q) * a) || Dir(1)),
    t the share of training done.
    """
    q = inputs.teacher_logits.softmax(dim=1)
    a = inputs.student_logits.relu() + 1
    # The expected cross-entropy, and the pull to no evidence. q + (1 - q) a leaves the evidence for the label out of the
    # pull, so that only what speaks for other classes is taken back.
    evidence = a.sum(dim=1).log() - (q * a.log()).sum(dim=1)
    kl = _dirichlet_kl_to_uniform(q + (1 - q) * a)
    return {"evidence": evidence.mean(), "kl": inputs.progress * kl.mean()}


@register_loss(
    "elr",
    summary="cross-entropy to the teacher, held to what the student predicted early on",
    paper="Liu et al. 2020, 2007.00151",
    target_kinds=(ONE_CLASS.name, SEVERAL_CLASSES.name),
)
class EarlyLearningRegularization(DistillationLoss):
    """Early-learning regularisation (2020, arXiv 2007.00151).

    CE(p, q) + lam * mean of log(1 - <p, t_i>), where t_i is the moving average of the student's softmax on sample i,
    t_i <- beta * t_i + (1 - beta) * p, taken before it is used and without gradient. It starts at zero, so that after k
    visits it has mass 1 - beta^k, and the regulariser comes in slowly.

    Of several classes an image, each is a problem of two: t_i is the average of (p, 1 - p) of each class, and both terms
    are means over the known labels. For C = 1 that is the loss of the logits (0, z) and (0, w).

    Args:
        lam: weight of the regulariser. Published with beta: 3 and 0.7 or 1 and 0.9 (CIFAR-10), 7 and 0.9 (CIFAR-100),
            3 and 0.7 (Clothing1M).
        beta: share of the average kept at each visit.
    """

    needs_index = True

    def __init__(self, lam: NonNegative = 3.0, beta: Decay = 0.7):
        super().__init__()
        self.lam, self.beta = lam, beta

    def setup(self, context: LossContext) -> None:
        self.memory = PredictionMemory(self.beta, size_of(context, self.name), context.num_classes)

    def compute(self, inputs: LossInputs) -> dict[str, Tensor]:
        if self.target_kind.name == SEVERAL_CLASSES.name:
            return self._compute_by_class(inputs)
        index = promised(inputs.index, "index")
        log_p = inputs.student_logits.log_softmax(dim=1)
        q = self.labels(inputs.teacher_logits)
        p = log_p.exp()
        # A target of detached averages. Through it the student could lower the loss by changing what it remembers.
        if self.training:
            self.memory.update(index, p.detach())
        # what the student predicted early pulls against what it learns late
        average = self.memory.mean[index]
        agreement = (p * average.to(p.dtype)).sum(dim=1).clamp(max=_LARGEST_AGREEMENT)
        return {
            "ce": cross_entropy(log_p, q).mean(),
            "elr": self.lam * torch.log1p(-agreement).mean(),
        }

    def _compute_by_class(self, inputs: LossInputs) -> dict[str, Tensor]:
        index = promised(inputs.index, "index")
        p = inputs.student_logits.sigmoid()
        q, is_known = read_labels(inputs.teacher_logits)
        if self.training:
            self.memory.update(index, p.detach())
        # the averages of a yes and of a no, which add up to the mass of the visits so far
        yes = self.memory.mean[index].to(p.dtype)
        visits = self.memory.visits[index].to(p.dtype).unsqueeze(1)
        no = 1 - self.beta**visits - yes
        agreement = (p * yes + (1 - p) * no).clamp(max=_LARGEST_AGREEMENT)
        return {
            "ce": mean_over(cross_entropy_by_class(inputs.student_logits, q), is_known),
            "elr": self.lam * mean_over(torch.log1p(-agreement), is_known),
        }

    def labels(self, teacher_logits: Tensor) -> Tensor:
        """Return the teacher's softmax (B, C)."""
        return teacher_logits.softmax(dim=1)


@register_loss(
    "balanced_elr",
    summary="elr on the teacher's softmax, shifted until its classes have their known shares",
    paper="this project, after Liu et al. 2020, 2007.00151",
)
class BalancedEarlyLearning(EarlyLearningRegularization):
    """Early-learning regularisation (2020, arXiv 2007.00151) on a teacher without its preference for some classes.

    A teacher of few labels predicts some too often. If the classes' shares are known (uniform unless given), that
    can be mended without labels, see `ClassShift`. The label is softmax(w + balance * b).

    It is wrong where the shares are wrong: give ``shares`` for a data set whose classes are not equally frequent, or
    balance = 0, which is `elr`. With lam = 0 it is cross-entropy to the shifted teacher.

    Args:
        lam: weight of the regulariser, as for `elr`.
        beta: share of the average kept at each visit, as for `elr`.
        balance: how much of the shift is applied.
        shares: share of each class, in the order of the logits; scaled to sum 1.
    """

    def __init__(
        self,
        lam: NonNegative = 3.0,
        beta: Decay = 0.7,
        balance: Share = 1.0,
        shares: list[Positive] | None = None,
    ):
        super().__init__(lam, beta)
        self.balance, self.shares = balance, shares

    def setup(self, context: LossContext) -> None:
        super().setup(context)
        # uniform unless given
        shares = [1.0] * context.num_classes if self.shares is None else self.shares
        if len(shares) != context.num_classes:
            raise UserError(
                f"loss 'balanced_elr': shares has {len(shares)} numbers, "
                f"expected one for each of the {context.num_classes} classes"
            )
        self.shift = ClassShift(torch.tensor(shares, dtype=torch.float32))

    def labels(self, teacher_logits: Tensor) -> Tensor:
        # the shift of the steps before: the label does not depend on its own batch
        bias = self.balance * self.shift.bias.to(teacher_logits.dtype)
        if self.training:
            self.shift.update(teacher_logits)
        return (teacher_logits + bias).softmax(dim=1)


@register_loss(
    "temporal",
    summary="teacher's softmax mixed with the average of the student's earlier predictions",
    paper="Laine and Aila 2016, 1610.02242",
)
class TemporalEnsembling(DistillationLoss):
    """Temporal ensembling as a target (2016, arXiv 1610.02242).

    CE(p, (1 - w) * q + w * Z_i / (1 - alpha^k)), where Z_i <- alpha * Z_i + (1 - alpha) * p on each of the k visits to
    sample i so far. The current prediction enters after it was compared, as published. w grows along the published
    curve to ``share``, share * exp(-5 (1 - min(1, progress / ramp))^2), and is 0 on a sample's first visit.

    Args:
        alpha: share of the average kept at each visit.
        share: largest share of the average in the target; the rest is the teacher's.
        ramp: share of training until it is reached; 80 of 300 epochs in the paper.
    """

    needs_index = True

    def __init__(self, alpha: Decay = 0.6, share: Share = 0.5, ramp: Share = 0.27):
        super().__init__()
        self.alpha, self.share, self.ramp = alpha, share, ramp

    def setup(self, context: LossContext) -> None:
        self.memory = PredictionMemory(self.alpha, size_of(context, self.name), context.num_classes)

    def compute(self, inputs: LossInputs) -> dict[str, Tensor]:
        index = promised(inputs.index, "index")
        log_p = inputs.student_logits.log_softmax(dim=1)
        q = inputs.teacher_logits.softmax(dim=1)
        # the average of earlier visits, and how much it counts by now
        average, seen = self.memory.read(index)
        still_to_come = 1 - ramped(inputs.progress, self.ramp)
        weight = self.share * math.e ** (-5 * still_to_come**2)
        target = torch.lerp(q, average.to(q.dtype), weight * seen.to(q.dtype).unsqueeze(1))
        if self.training:
            self.memory.update(index, log_p.detach().exp())
        return {"temporal": cross_entropy(log_p, target).mean()}


@register_loss(
    "sop",
    summary="learns for each sample how far its label is from the truth",
    paper="Liu et al. 2022, 2202.14026",
)
class SparseOverParameterization(DistillationLoss):
    """Sparse over-parameterisation (2022, arXiv 2202.14026).

    CE(normalise(max(p + u_i^2 * y - v_i^2 * (1 - y), floor)), y): u_i and v_i, learnt for each sample, take up what is
    wrong in the label, so that the network need not. They also follow the gradient of the published second loss,
    |argmax p (one-hot) + u_i^2 * y - v_i^2 * (1 - y) - y|^2, which has none on the network and is no term here.

    u and v are buffers with a plain SGD of their own inside the loss, as published (constant rates, no momentum, no
    weight decay): a step at each call in training mode, on the mean over the batch of all ranks. They are neither
    scaled by the weight of the loss nor by a gradient scaler, and are no business of the optimizer.

    Args:
        lr_u: learning rate of u. Published: 10 (CIFAR-10), 1 (CIFAR-100), at batches of 128.
        lr_v: learning rate of v. Published: 10; 100 for asymmetric noise on CIFAR-100.
    """

    needs_index = True

    u: Tensor  # (N, 1)
    v: Tensor  # (N, C)

    def __init__(self, lr_u: NonNegative = 1.0, lr_v: NonNegative = 10.0):
        super().__init__()
        self.lr_u, self.lr_v = lr_u, lr_v
        self.undo = Undo()
        self.register_buffer("u", None)
        self.register_buffer("v", None)

    def setup(self, context: LossContext) -> None:
        size = size_of(context, self.name)
        # the same on every rank, whatever their seeds; not 0, where a square has no gradient to leave it by
        generator = torch.Generator().manual_seed(0)
        self.u = torch.randn(size, 1, generator=generator) * 1e-8
        self.v = torch.randn(size, context.num_classes, generator=generator) * 1e-8

    def compute(self, inputs: LossInputs) -> dict[str, Tensor]:
        index = promised(inputs.index, "index")
        logits = inputs.student_logits
        label = inputs.teacher_logits.argmax(dim=1, keepdim=True)
        p = logits.softmax(dim=1)
        # u is of the label, v of all other classes
        u = self.u[index].to(p.dtype)
        v = self.v[index].to(p.dtype).scatter_(1, label, 0)
        shift_u = u.square().clamp(max=1)
        shift_v = v.square().clamp(max=1)
        # the published 1e-4 would be all of p at 10,000 classes
        floor = min(1e-4, 0.1 / p.shape[1])
        # the prediction with what is taken to be wrong in the label
        shifted = (p - shift_v).scatter_add(1, label, shift_u).clamp(min=floor)
        of_label = shifted.gather(1, label)
        total = shifted.sum(dim=1, keepdim=True)
        loss = (total / of_label).log().mean()
        if self.training:
            with torch.no_grad():
                # the gradients of both published losses, in closed form
                predicted = logits.argmax(dim=1, keepdim=True)
                slope_of_first = (1 / total - 1 / of_label) * (of_label > floor)
                slope = slope_of_first + 2 * ((predicted == label) + shift_u - 1)
                grad_u = 2 * u * slope * (u.abs() <= 1)
                grad_v = (v * shift_v).scatter_add_(1, predicted, -v.gather(1, predicted))
                grad_v = grad_v.mul_(4).masked_fill_(v.abs() > 1, 0)
                self._step(index, grad_u, grad_v)
        return {"sop": loss}

    def _step(self, index: Tensor, grad_u: Tensor, grad_v: Tensor) -> None:
        """One step of SGD on the mean over the batch of all ranks; a repeated sample adds up its gradients."""
        # one step for the batch of all ranks
        grads = torch.cat([grad_u, grad_v], dim=1).to(self.u.dtype)
        index, grads = gather_rows(index, grads)
        first, sums, _ = merge_repeats(index, grads)
        sums = torch.where(first, sums, 0)
        self.undo.note(self.u, self.v, index=index)
        self.u.index_add_(0, index, sums[:, :1], alpha=-self.lr_u / len(index))
        self.v.index_add_(0, index, sums[:, 1:], alpha=-self.lr_v / len(index))


def _dirichlet_kl_to_uniform(a: Tensor) -> Tensor:
    """Return KL(Dir(a) || Dir(1)) for each row, (B,). torch.distributions' own cannot be compiled."""
    # logarithms of gamma functions: the functions themselves overflow
    total = a.sum(dim=1, keepdim=True)
    of_total = torch.lgamma(total).squeeze(1) - math.lgamma(a.shape[1])
    of_classes = (a - 1) * (torch.digamma(a) - torch.digamma(total)) - torch.lgamma(a)
    return of_total + of_classes.sum(dim=1)


def _log_p_of_label(inputs: LossInputs) -> Tensor:
    label = inputs.teacher_logits.argmax(dim=1)
    return -F.cross_entropy(inputs.student_logits, label, reduction="none")


def _reverse_cross_entropy(log_p_y: Tensor, log_zero: float) -> Tensor:
    return log_zero * torch.expm1(log_p_y)


def _confidence(logits: Tensor) -> Tensor:
    """Return max softmax, (B,), without building the softmax."""
    return (logits.amax(dim=1) - logits.logsumexp(dim=1)).exp()
