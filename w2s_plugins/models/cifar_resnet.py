"""Residual networks for 32-pixel images.

The thin ones of He et al., *Deep Residual Learning for Image Recognition* (2015, arXiv 1512.03385), section 4.2, with
a convolution on the shortcut where the shape changes, their four times wider forms, and a ResNet-50 with a stem that
keeps the resolution. Module names are those of the checkpoints of Tian et al., *Contrastive Representation
Distillation* (2020, arXiv 1910.10699).
"""

from timm.models.resnet import BasicBlock, downsample_conv
from torch import Tensor, nn

from ._base import BlockNet, ConvBlock, register_variants


class CifarResNet(BlockNet):
    """Residual blocks, each stage after the first at half the resolution."""


class CifarBottleneckResNet(BlockNet):
    """Blocks of `Bottleneck`, with the classifier's name in their checkpoints."""
    classifier_name = "linear"


def basic(in_chs: int, out_chs: int, stride: int) -> BasicBlock:
    """timm's basic block, with a convolution and batch norm on the shortcut where the shape changes."""
    # timm's shortcut is the input unless it is given another.
    changes = stride != 1 or in_chs != out_chs
    return BasicBlock(in_chs, out_chs, stride, downsample_conv(in_chs, out_chs, 1, stride) if changes else None)


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
    {"cifar_resnet50": {"block": Bottleneck, "depths": (3, 4, 6, 3), "widths": (64, 256, 512, 1024, 2048)}},
    pool_size=(4, 4),
)
