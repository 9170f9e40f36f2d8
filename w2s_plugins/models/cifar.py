"""Networks of the distillation literature for 32-pixel images.

Module names are those of the checkpoints of Tian et al., *Contrastive Representation Distillation* (2020,
arXiv 1910.10699).
"""

import functools
from typing import Any

import torch
from timm.models.resnet import BasicBlock, downsample_conv
from torch import Tensor, nn

from ._base import (
    Block,
    BlockNet,
    ConvBlock,
    StagedNet,
    conv,
    conv_bn_act,
    init_weights,
    register_variants,
    repeat_block,
)

# ---------------------------------------------------------------- ResNet

# The thin ones of He et al., Deep Residual Learning for Image Recognition (2015, arXiv 1512.03385), section 4.2, with a
# convolution on the shortcut where the shape changes, their four times wider forms, and a ResNet-50 with a stem that
# keeps the resolution.


class CifarResNet(BlockNet):
    """Residual blocks, each stage after the first at half the resolution."""


class CifarBottleneckResNet(BlockNet):
    """Blocks of `Bottleneck`, with the classifier's name in their checkpoints."""

    classifier_name = "linear"


def basic(in_chs: int, out_chs: int, stride: int) -> BasicBlock:
    """timm's basic block, with a convolution and batch norm on the shortcut where the shape changes."""
    # timm's shortcut is the input unless it is given another.
    shortcut = None
    if stride != 1 or in_chs != out_chs:
        shortcut = downsample_conv(in_chs, out_chs, 1, stride)
    return BasicBlock(in_chs, out_chs, stride, shortcut)


class Bottleneck(ConvBlock):
    """1x1, 3x3 and 1x1 convolutions at a quarter of the width, with the shortcut under the name ``shortcut``."""

    def __init__(self, in_chs: int, out_chs: int, stride: int):
        mid_chs = out_chs // 4
        super().__init__((in_chs, mid_chs, 1), (mid_chs, mid_chs, 3, stride), (mid_chs, out_chs, 1))
        # The shortcut is the input, or a convolution where the shape changes.
        changes = stride != 1 or in_chs != out_chs
        self.shortcut = downsample_conv(in_chs, out_chs, 1, stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.normed(1, x))
        y = self.act(self.normed(2, y))
        return self.act(self.normed(3, y) + self.shortcut(x))


def _thin(depth: int, widths: tuple[int, ...] = (16, 16, 32, 64)) -> dict:
    """A depth of 6n + 2 layers has n blocks of two convolutions in each of its three stages."""
    return {"block": basic, "depths": ((depth - 2) // 6,) * 3, "widths": widths}


register_variants(
    CifarResNet,
    {
        "cifar_resnet8": _thin(8),
        "cifar_resnet20": _thin(20),
        "cifar_resnet32": _thin(32),
        "cifar_resnet56": _thin(56),
        "cifar_resnet110": _thin(110),
        "cifar_resnet8x4": _thin(8, (32, 64, 128, 256)),
        "cifar_resnet32x4": _thin(32, (32, 64, 128, 256)),
    },
)
register_variants(
    CifarBottleneckResNet,
    {
        "cifar_resnet50": {
            "block": Bottleneck,
            "depths": (3, 4, 6, 3),
            "widths": (64, 256, 512, 1024, 2048),
        }
    },
    pool_size=(4, 4),
)


# ---------------------------------------------------------------- VGG

# Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition (2014, arXiv 1409.1556),
# with batch norm and one linear layer.
VGG_WIDTHS = (64, 128, 256, 512, 512)


class CifarVGG(StagedNet):
    """Five stages of 3x3 convolutions; a 2x2 max-pool comes before the second, third and fourth.

    Args:
        depths: Convolutions of each stage.
    """

    stage_name = "block{}"
    classifier_name = "classifier"

    def __init__(self, depths: tuple[int, ...], **common: Any):
        super().__init__(**common)
        chs = self.in_chans
        for i, (width, depth) in enumerate(zip(VGG_WIDTHS, depths)):
            # The pool is in front, so that features are those before it; the last stage is not pooled again.
            stage = nn.Sequential()
            if 1 <= i <= 3:
                stage.add_module("pool", nn.MaxPool2d(2))
            # Convolutions with batch norm, under the numbers of the published weights.
            for first in range(0, 3 * depth, 3):
                stage.add_module(str(first), nn.Conv2d(chs, width, 3, padding=1))
                stage.add_module(str(first + 1), nn.BatchNorm2d(width))
                stage.add_module(str(first + 2), nn.ReLU(inplace=True))
                chs = width
            self._add_stage(i, stage, width, 2 ** min(i, 3))
        self._add_classifier(chs)
        init_weights(self, linear_std=0.01)


register_variants(
    CifarVGG,
    {
        "cifar_vgg8": {"depths": (1, 1, 1, 1, 1)},
        "cifar_vgg11": {"depths": (1, 1, 2, 2, 2)},
        "cifar_vgg13": {"depths": (2, 2, 2, 2, 2)},
        "cifar_vgg16": {"depths": (2, 2, 3, 3, 3)},
        "cifar_vgg19": {"depths": (2, 2, 4, 4, 4)},
    },
    pool_size=(4, 4),
    first_conv="block0.0",
)


# ---------------------------------------------------------------- MobileNetV2

# At half width: Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks (2018, arXiv 1801.04381), with
# the strides of the second and the first stage reduced and with ReLU.
MOBILE_STAGES = (  # expansion, output channels, blocks, stride
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
        for number, (expansion, width, depth, stride) in enumerate(MOBILE_STAGES):
            # A feature is what the last stage of a resolution gives.
            reduction *= stride
            block = functools.partial(InvertedResidual, expansion=expansion)
            stage = repeat_block(block, chs, width, depth, stride)
            self._add_stage(number, stage, width, reduction if number in (1, 2, 4, 6) else None)
            chs = width
        # The last convolution widens to what the classifier sees.
        self.conv2 = nn.Sequential(*conv_bn_act(chs, 1280, 1))
        self.classifier = nn.Sequential(nn.Identity())
        self._add_classifier(1280)
        init_weights(self, linear_std=0.01)


register_variants(
    CifarMobileNetV2, {"cifar_mobilenetv2": {}}, pool_size=(2, 2), first_conv="conv1.0"
)


# ---------------------------------------------------------------- ShuffleNet

# Zhang et al., ShuffleNet (2017, arXiv 1707.01083) and Ma et al., ShuffleNet V2 (2018, arXiv 1807.11164): a 1x1
# convolution as stem, and stages at half, a quarter and an eighth of the size.
SHUFFLE_WIDTH = 24  # of the stem
SHUFFLE_GROUPS = 3  # of ShuffleNetV1's 1x1 convolutions


class ShuffleV1Block(ConvBlock):
    """Grouped 1x1, depthwise 3x3 and grouped 1x1 convolutions; at stride 2 the pooled input is concatenated, not added."""

    def __init__(self, in_chs: int, out_chs: int, stride: int):
        # The branch makes the channels that the pooled input has not.
        branch_chs = out_chs - in_chs if stride == 2 else out_chs
        mid_chs = branch_chs // 4
        groups = 1 if in_chs == SHUFFLE_WIDTH else SHUFFLE_GROUPS
        super().__init__(
            (in_chs, mid_chs, 1, 1, groups),
            (mid_chs, mid_chs, 3, stride, mid_chs),
            (mid_chs, branch_chs, 1, 1, SHUFFLE_GROUPS),
        )
        self.shuffle = nn.ChannelShuffle(groups)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.shuffle(self.act(self.normed(1, x)))
        y = self.normed(3, self.act(self.normed(2, y)))
        return self.act(x + y if self.pool is None else torch.cat([y, self.pool(x)], dim=1))


class ShuffleV2Block(ConvBlock):
    """Half of the channels pass by 1x1, depthwise 3x3 and 1x1 convolutions; then the halves are shuffled."""

    def __init__(self, chs: int):
        chs //= 2
        super().__init__((chs, chs, 1), (chs, chs, 3, 1, chs), (chs, chs, 1))
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        # One half passes unchanged.
        kept, y = x.chunk(2, dim=1)
        y = self.normed(2, self.act(self.normed(1, y)))
        y = self.act(self.normed(3, y))
        return self.shuffle(torch.cat([kept, y], dim=1))


class ShuffleV2DownBlock(ConvBlock):
    """Two branches of stride 2 over all channels, each giving half of the output, shuffled."""

    def __init__(self, in_chs: int, out_chs: int):
        chs = out_chs // 2
        super().__init__(
            (in_chs, in_chs, 3, 2, in_chs),
            (in_chs, chs, 1),
            (in_chs, chs, 1),
            (chs, chs, 3, 2, chs),
            (chs, chs, 1),
        )
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        # Left: depthwise, then 1x1; right: 1x1, depthwise, 1x1.
        left = self.act(self.normed(2, self.normed(1, x)))
        right = self.normed(4, self.act(self.normed(3, x)))
        right = self.act(self.normed(5, right))
        return self.shuffle(torch.cat([left, right], dim=1))


def shuffle_v2_block(in_chs: int, out_chs: int, stride: int) -> nn.Module:
    """The block of ShuffleNetV2 for a stride."""
    return ShuffleV2DownBlock(in_chs, out_chs) if stride == 2 else ShuffleV2Block(out_chs)


class CifarShuffleNet(BlockNet):
    """A 1x1 convolution and three stages of 4, 8 and 4 blocks, each with stride 2.

    Args:
        block: As in `BlockNet`, as is ``final_width`` among the others.
        widths: Output channels of each stage.
    """

    classifier_name = "linear"

    def __init__(self, block: Block, widths: tuple[int, ...], **common: Any):
        super().__init__(
            block,
            (4, 8, 4),
            (SHUFFLE_WIDTH, *widths),
            strides=(2, 2, 2),
            stem_kernel=1,
            he_init=False,
            **common,
        )


register_variants(
    CifarShuffleNet,
    {
        "cifar_shufflenetv1": {"block": ShuffleV1Block, "widths": (240, 480, 960)},
        "cifar_shufflenetv2": {
            "block": shuffle_v2_block,
            "widths": (116, 232, 464),
            "final_width": 1024,
        },
    },
    pool_size=(4, 4),
)
