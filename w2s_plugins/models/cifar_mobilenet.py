"""MobileNetV2 at half width for 32-pixel images.

Sandler et al., *MobileNetV2: Inverted Residuals and Linear Bottlenecks* (2018, arXiv 1801.04381), with the strides of
the second and the first stage reduced and with ReLU. Module names are those of the checkpoints of Tian et al.,
*Contrastive Representation Distillation* (2020, arXiv 1910.10699).
"""

import functools
from typing import Any

from torch import Tensor, nn

from ._base import StagedNet, conv, conv_bn_act, init_weights, register_variants, repeat_block

STAGES = (  # expansion, output channels, blocks, stride
    (1, 8, 1, 1),
    (6, 12, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)


class InvertedResidual(nn.Module):
    """A 1x1 convolution that widens, a depthwise 3x3 one and a linear 1x1 one that narrows."""

    def __init__(self, in_chs: int, out_chs: int, stride: int, expansion: int):
        super().__init__()
        mid_chs = in_chs * expansion
        self.residual = stride == 1 and in_chs == out_chs
        self.conv = nn.Sequential(
            *conv_bn_act(in_chs, mid_chs, 1),
            *conv_bn_act(mid_chs, mid_chs, 3, stride, groups=mid_chs),
            conv(mid_chs, out_chs, 1),
            nn.BatchNorm2d(out_chs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class CifarMobileNetV2(StagedNet):
    """Stages of `InvertedResidual` after a 3x3 convolution of stride 2, then a 1x1 convolution to 1280 channels.

    The features are those with which a resolution ends.
    """
    stem = ("conv1",)
    stage_name = "blocks.{}"
    final = ("conv2",)
    classifier_name = "classifier.0"

    def __init__(self, **common: Any):
        super().__init__(**common)
        # The stem halves the resolution.
        chs, reduction = 16, 2
        self.conv1 = nn.Sequential(*conv_bn_act(self.in_chans, chs, 3, stride=2))
        self._add_feature("conv1", chs, reduction)
        self.blocks = nn.Sequential()
        for number, (expansion, width, depth, stride) in enumerate(STAGES):
            # A feature is what the last stage of a resolution gives.
            reduction *= stride
            block = functools.partial(InvertedResidual, expansion=expansion)
            stage = repeat_block(block, chs, width, depth, stride)
            self._add_stage(number, stage, width, reduction if number in (1, 2, 4, 6) else None)
            chs = width
        # The last convolution widens to what the classifier sees.
        self.conv2 = nn.Sequential(*conv_bn_act(chs, 1280, 1))
        self.classifier = nn.Sequential(nn.Identity())
        self._finish(1280)
        init_weights(self, linear_std=0.01)


register_variants(CifarMobileNetV2, {"cifar_mobilenetv2": {}}, pool_size=(2, 2), first_conv="conv1.0")
