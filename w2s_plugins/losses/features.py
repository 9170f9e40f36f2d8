"""Losses on feature maps, for any two models: sizes are matched by pooling, widths by learnt projections.

The student's maps and the teacher's are paired from the deepest; each loss is summed over the pairs. `ofa` reads
logits off the student's maps and needs no maps of the teacher.
"""

import functools
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from .arguments import Count, Positive, Share
from .base import (
    DistillationLoss,
    LossContext,
    LossInputs,
    add_up,
    label_of,
    promised,
    ramped,
    register_loss,
)
from .logits import ofa_per_sample

T = TypeVar("T")


def both_features(inputs: LossInputs) -> tuple[list[Tensor], list[Tensor]]:
    """Return the features of student and teacher."""
    student = promised(inputs.student_features, "student_features")
    teacher = promised(inputs.teacher_features, "teacher_features")
    return student, teacher


def both_shapes(context: LossContext) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Return the shapes of the features of student and teacher, see `LossContext`."""
    student = promised(context.student_feature_shapes, "student_feature_shapes")
    teacher = promised(context.teacher_feature_shapes, "teacher_feature_shapes")
    return student, teacher


def pair_from_deepest(student: Sequence[T], teacher: Sequence[T]) -> list[tuple[T, T]]:
    """Return (student, teacher) pairs, shallow to deep; the side with more stages leaves out its shallowest."""
    # the deepest stages mean the same in all networks
    count = min(len(student), len(teacher))
    return list(zip(student[len(student) - count :], teacher[len(teacher) - count :]))


def match_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool whichever map (B, C, H, W) is the larger, in each direction, to the size of the other."""
    # the larger is pooled: nothing is made up
    size = (min(student.shape[-2], teacher.shape[-2]), min(student.shape[-1], teacher.shape[-1]))
    return _pool(student, size), _pool(teacher, size)


def paired_maps(inputs: LossInputs) -> list[tuple[Tensor, Tensor]]:
    """Return the maps of student and teacher, paired from the deepest, of one size in each pair."""
    # the pre-logits are no map
    student, teacher = ([f for f in side if f.ndim == 4] for side in both_features(inputs))
    return [match_size(s, t) for s, t in pair_from_deepest(student, teacher)]


def paired_widths(context: LossContext) -> list[tuple[int, int]]:
    """Return the channels of student and teacher for each pair of `paired_maps`."""
    student, teacher = (
        [shape[0] for shape in shapes if len(shape) == 3] for shapes in both_shapes(context)
    )
    return pair_from_deepest(student, teacher)


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that uses its running statistics where a batch has only one value a channel."""

    def forward(self, input: Tensor) -> Tensor:
        # one value a channel has no variance
        if self.training and input.numel() == input.shape[1]:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)


@register_loss(
    "fitnet",
    summary="squared distance of projected feature maps to the teacher's",
    paper="Romero et al. 2014, 1412.6550",
)
class FitNet(DistillationLoss):
    """FitNets: Hints for Thin Deep Nets (2014, arXiv 1412.6550, equation 3).

    Mean over elements of (r(s) - t)^2, with r a learnt 1x1 convolution for each stage.
    """

    needs_features = True

    def setup(self, context: LossContext) -> None:
        self.projections = nn.ModuleList(nn.Conv2d(s, t, 1) for s, t in paired_widths(context))

    def compute(self, inputs: LossInputs) -> dict[str, Tensor]:
        # learnt with the student and thrown away: the widths of two networks say nothing about each other
        pairs = zip(self.projections, paired_maps(inputs))
        return {"fitnet": add_up(F.mse_loss(project(s), t) for project, (s, t) in pairs)}


@register_loss(
    "at",
    summary="squared distance of normalised spatial attention maps",
    paper="Zagoruyko and Komodakis 2016, 1612.03928",
    needs_features=True,
)
def at(inputs: LossInputs, *, p: Count = 2) -> dict[str, Tensor]:
    """Attention transfer (Paying More Attention to Attention, 2016, arXiv 1612.03928, equation 2).

    A map's attention is the mean over channels of its p-th power, L2-normalised over positions; the loss is the mean
    square of the difference of the attentions.
    """
    # of unit length (equation 2): where a network looks counts, not how strongly
    distances = [
        F.mse_loss(attention_map(s, p), attention_map(t, p)) for s, t in paired_maps(inputs)
    ]
    return {"at": add_up(distances)}


def attention_map(features: Tensor, p: int) -> Tensor:
    """Return the spatial attention (B, H * W) of a map (B, C, H, W), of unit length."""
    return F.normalize(features.pow(p).mean(dim=1).flatten(1), dim=1)


@register_loss(
    "nst",
    summary="maximum mean discrepancy of the channels' activation patterns",
    paper="Huang and Wang 2017, 1707.01219",
    needs_features=True,
)
def nst(inputs: LossInputs) -> dict[str, Tensor]:
    """Neuron selectivity transfer (Like What You Like, 2017, arXiv 1707.01219).

    The squared maximum mean discrepancy between the student's and the teacher's channels, each a unit vector over
    positions, with the polynomial kernel k(x, y) = (x . y)^2; the mean over samples.
    """
    return {"nst": add_up(_discrepancy(s, t) for s, t in paired_maps(inputs))}


@register_loss(
    "vid",
    summary="variational bound on the information shared with the teacher",
    paper="Ahn et al. 2019, 1904.05835",
)
class VID(DistillationLoss):
    """Variational Information Distillation for Knowledge Transfer (2019, arXiv 1904.05835).

    -log q(t | s) with q normal: its mean is three learnt 1x1 convolutions of s, its variance learnt for each channel
    of the teacher and the same at all positions. The mean over elements of (t - mean)^2 / (2 var) + log(var) / 2.

    Args:
        init_pred_var: variance at the start.
        eps: smallest variance.
    """

    needs_features = True

    def __init__(self, *, init_pred_var: Positive = 5.0, eps: Positive = 1e-5):
        super().__init__()
        # the scale is what softplus is taken of
        excess = init_pred_var - eps
        if not excess > 0:
            raise UserError(
                f"loss 'vid': init_pred_var={init_pred_var}: expected more than eps, which is {eps}"
            )
        self.eps = eps
        # softplus gives the variance back
        self.init_scale = excess + math.log(-math.expm1(-excess))

    def setup(self, context: LossContext) -> None:
        # a variance of its own lets the student give up a channel of the teacher that it cannot predict
        widths = paired_widths(context)
        self.regressors = nn.ModuleList(_regressor(s, t) for s, t in widths)
        scales = (torch.full((t, 1, 1), self.init_scale) for _, t in widths)
        self.scales = nn.ParameterList(scales)

    def compute(self, inputs: LossInputs) -> dict[str, Tensor]:
        terms: list[Tensor] = []
        for regress, scale, (s, t) in zip(self.regressors, self.scales, paired_maps(inputs)):
            # the negative logarithm of a normal density
            variance = F.softplus(scale) + self.eps
            density = (regress(s) - t).square() / variance + variance.log()
            terms.append(0.5 * density.mean())
        return {"vid": add_up(terms)}


@register_loss(
    "reviewkd",
    summary="the student's fused stages against each stage of the teacher",
    paper="Chen et al. 2021, 2104.09044",
)
class ReviewKD(DistillationLoss):
    """Distilling Knowledge via Knowledge Review (2021, arXiv 2104.09044).

    From the deepest stage (the pre-logits, a map of one pixel) to the shallowest, an attention-based fusion joins the
    student's map with what was fused so far, and the hierarchical context loss compares it with the teacher's map.

    Args:
        warmup: share of training over which the loss rises linearly from 0; the released code uses 20 of 240 epochs.
    """

    needs_features = True
    max_width = 512

    def __init__(self, *, warmup: Share = 0.0):
        super().__init__()
        self.warmup = warmup

    def setup(self, context: LossContext) -> None:
        # the pre-logits are a stage of one pixel here
        pairs = pair_from_deepest(*both_shapes(context))
        width = min(self.max_width, pairs[-1][0][0])
        deepest = len(pairs) - 1
        self.fusions = nn.ModuleList(
            _Fusion(s[0], width, t[0], has_deeper=i < deepest) for i, (s, t) in enumerate(pairs)
        )

    def compute(self, inputs: LossInputs) -> dict[str, Tensor]:
        student, teacher = ([_as_map(f) for f in side] for side in both_features(inputs))
        # from the deepest stage to the shallowest
        fused: Tensor | None = None
        outputs: list[Tensor] = []
        targets: list[Tensor] = []
        pairs = zip(self.fusions, pair_from_deepest(student, teacher))
        for fusion, (s, t) in reversed(list(pairs)):
            output, fused = fusion(s, fused, t.shape[-2:])
            outputs.append(output)
            targets.append(t)
        loss = hierarchical_context_loss(outputs, targets)
        return {"reviewkd": loss * ramped(inputs.progress, self.warmup)}


def hierarchical_context_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return the HCL of ReviewKD (arXiv 2104.09044), summed over pairs of maps of equal shape.

    The mean squared distance at full size and pooled to 4x4, 2x2 and 1x1 where that is smaller, each level with half
    the weight of the one before; the weights sum to one.
    """
    losses: list[Tensor] = []
    for s, t in zip(student, teacher):
        # full size, then pooled
        levels = [F.mse_loss(s, t)]
        for n in (4, 2, 1):
            if n < min(s.shape[-2:]):
                levels.append(F.mse_loss(_pool(s, (n, n)), _pool(t, (n, n))))
        weights = [0.5**i for i in range(len(levels))]
        losses.append(add_up(w * level for w, level in zip(weights, levels)) / sum(weights))
    return add_up(losses)


class _Fusion(nn.Module):
    """Attention-based fusion of ReviewKD: a stage and the fused deeper ones, gated by position.

    Args:
        in_chs: channels of the student's map.
        mid_chs: channels of what is handed on to the next, shallower stage.
        out_chs: channels of the teacher's map.
        has_deeper: there are deeper stages to fuse with.
    """

    def __init__(self, in_chs: int, mid_chs: int, out_chs: int, has_deeper: bool):
        super().__init__()
        # to a common width, joined with the deeper stages, to the teacher's width
        narrowing = nn.Conv2d(in_chs, mid_chs, 1, bias=False)
        self.reduce = nn.Sequential(narrowing, BatchNorm(mid_chs))
        self.gate = None
        if has_deeper:
            self.gate = nn.Sequential(nn.Conv2d(2 * mid_chs, 2, 1), nn.Sigmoid())
        widening = nn.Conv2d(mid_chs, out_chs, 3, padding=1, bias=False)
        self.expand = nn.Sequential(widening, BatchNorm(out_chs))
        # drawn after all others, so that a seed gives the weights that it always gave
        for conv in (narrowing, widening):
            nn.init.kaiming_uniform_(conv.weight, a=1)

    def forward(
        self,
        x: Tensor,
        deeper: Tensor | None,
        size: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """Return the map to compare with the teacher's, of its width and ``size``, and the fused map to hand on."""
        # this stage
        x = self.reduce(x)
        # joined with the deeper ones, position by position
        if self.gate is not None and deeper is not None:
            deeper = F.interpolate(deeper, x.shape[-2:], mode="nearest")
            gates = self.gate(torch.cat([x, deeper], dim=1))
            x = gates[:, :1] * x + gates[:, 1:] * deeper
        # brought to the teacher's size and width
        if x.shape[-2:] != size:
            x = F.interpolate(x, size, mode="nearest")
        return self.expand(x), x


@register_loss(
    "ofa",
    summary="target-enhanced cross-entropy to the teacher's logits, "
    "also from exits on the student's stages",
    paper="Hao et al. 2023, 2310.19444",
)
class OFA(DistillationLoss):
    """One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation (2023, 2310.19444).

    The mean of `ofa_per_sample` on the student's logits and on those of a learnt exit on each of its maps. An exit is a
    depthwise-separable convolution block for each stage that is still to come, global pooling and a classifier.

    Args:
        eps: exponent gamma; above 1 it stresses the target class.
        temperature: of both softmaxes.
        exit_weight: weight of the sum of the exits' losses.
        logit_standardization: see `standardize`.
    """

    needs_features = True
    needs_target = True

    def __init__(
        self,
        *,
        eps: Positive = 1.0,
        temperature: Positive = 1.0,
        exit_weight: float = 1.0,
        logit_standardization: bool = False,
    ):
        super().__init__()
        self.per_sample = functools.partial(
            ofa_per_sample,
            eps=eps,
            temperature=temperature,
            logit_standardization=logit_standardization,
        )
        self.exit_weight = exit_weight

    def setup(self, context: LossContext) -> None:
        # an exit ends in the width of the wider network
        shapes = promised(context.student_feature_shapes, "student_feature_shapes")
        teacher_shapes = context.teacher_feature_shapes or shapes
        width = max(shapes[-1][0], teacher_shapes[-1][0])
        maps = [shape for shape in shapes if len(shape) == 3]
        self.exits = nn.ModuleList(
            _exit(maps[i:], width, context.num_classes) for i in range(len(maps))
        )

    def compute(self, inputs: LossInputs) -> dict[str, Tensor]:
        # Exits turn maps into logits, in which networks of two families speak of the same things. The head and the exits
        # are compared with the same logits of the teacher.
        label = label_of(promised(inputs.target, "target"))
        features = promised(inputs.student_features, "student_features")
        maps = [f for f in features if f.ndim == 4]
        final = self.per_sample(inputs.student_logits, inputs.teacher_logits, label).mean()
        exits: list[Tensor] = []
        for branch, feature in zip(self.exits, maps):
            exits.append(self.per_sample(branch(feature), inputs.teacher_logits, label).mean())
        return {"ofa": final, "exits": self.exit_weight * add_up(exits)}


def _pool(features: Tensor, size: tuple[int, int]) -> Tensor:
    return features if features.shape[-2:] == size else F.adaptive_avg_pool2d(features, size)


def _as_map(features: Tensor) -> Tensor:
    return features if features.ndim == 4 else features[:, :, None, None]


def _discrepancy(student: Tensor, teacher: Tensor) -> Tensor:
    # a channel is the pattern of where it fires, so that channels of two networks can be compared without pairing them
    s, t = (F.normalize(f.flatten(2), dim=2) for f in (student, teacher))
    if s.shape[2] <= max(s.shape[1], t.shape[1]):
        # The mean of (x . y)^2 over channels x, y is the inner product of the means of x x^T and y y^T. These are the
        # smaller matrices for deep maps, which have few positions and many channels.
        return (_second_moment(s) - _second_moment(t)).square().sum(dim=(1, 2)).mean()
    return _kernel_mean(t, t) + _kernel_mean(s, s) - 2 * _kernel_mean(s, t)


def _second_moment(channels: Tensor) -> Tensor:
    return channels.transpose(1, 2) @ channels / channels.shape[1]


def _kernel_mean(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.transpose(1, 2)).square().mean()


def _regressor(in_chs: int, out_chs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_chs, out_chs, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(out_chs, out_chs, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(out_chs, out_chs, 1, bias=False),
    )


def _exit(shapes: Sequence[tuple[int, ...]], width: int, num_classes: int) -> nn.Sequential:
    """An exit on the first of ``shapes``, the maps from that stage on: a block takes it to each of the next ones."""
    # the last block makes the width of the classifier
    widths = [*(shape[0] for shape in shapes[:-1]), width]
    blocks: list[nn.Module] = []
    for i, (here, following) in enumerate(pairwise(shapes)):
        stride = 2 if here[1] > following[1] else 1
        blocks += _separable_block(widths[i], widths[i + 1], stride)
    if not blocks:
        blocks = [nn.Conv2d(shapes[0][0], width, 1)]
    return nn.Sequential(
        *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)
    )


def _separable_block(in_chs: int, out_chs: int, stride: int) -> list[nn.Module]:
    """Two depthwise-separable convolutions, the first with the stride."""
    layers: list[nn.Module] = []
    for chs, step in ((in_chs, stride), (out_chs, 1)):
        layers += [
            nn.Conv2d(in_chs, in_chs, 3, step, 1, groups=in_chs, bias=False),
            nn.Conv2d(in_chs, chs, 1, bias=False),
            BatchNorm(chs),
            nn.ReLU(),
        ]
    return layers
