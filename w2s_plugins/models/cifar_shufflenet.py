"""ShuffleNets for 32-pixel images: a 1x1 convolution as stem, and stages at half, a quarter and an eighth of the size.

Zhang et al., *ShuffleNet* (2017, arXiv 1707.01083) and Ma et al., *ShuffleNet V2* (2018, arXiv 1807.11164). Module
names are those of the checkpoints of Tian et al., *Contrastive Representation Distillation* (2020, arXiv 1910.10699).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ._base import CIFAR_CFG, StagedNet, conv, register_variants, with_short_names

STEM_WIDTH = 24
GROUPS = 3  # of ShuffleNetV1's 1x1 convolutions


class ShuffleV1Block(nn.Module):
    """Grouped 1x1, depthwise 3x3 and grouped 1x1 convolutions; at stride 2 the pooled input is concatenated, not added.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int):
        super().__init__()
        branch_chs = out_chs - in_chs if stride == 2 else out_chs
        mid_chs = branch_chs // 4
        groups = 1 if in_chs == STEM_WIDTH else GROUPS
        self.conv1 = conv(in_chs, mid_chs, 1, groups=groups)
        self.bn1 = nn.BatchNorm2d(mid_chs)
        self.shuffle = nn.ChannelShuffle(groups)
        self.conv2 = conv(mid_chs, mid_chs, 3, stride, groups=mid_chs)
        self.bn2 = nn.BatchNorm2d(mid_chs)
        self.conv3 = conv(mid_chs, branch_chs, 1, groups=GROUPS)
        self.bn3 = nn.BatchNorm2d(branch_chs)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.shuffle(self.act(self.bn1(self.conv1(x))))
        y = self.bn3(self.conv3(self.act(self.bn2(self.conv2(y)))))
        return self.act(x + y if self.pool is None else torch.cat([y, self.pool(x)], dim=1))


class ShuffleV2Block(nn.Module):
    """Half of the channels pass by 1x1, depthwise 3x3 and 1x1 convolutions; then the halves are shuffled."""

    def __init__(self, chs: int):
        super().__init__()
        chs //= 2
        self.conv1 = conv(chs, chs, 1)
        self.bn1 = nn.BatchNorm2d(chs)
        self.conv2 = conv(chs, chs, groups=chs)
        self.bn2 = nn.BatchNorm2d(chs)
        self.conv3 = conv(chs, chs, 1)
        self.bn3 = nn.BatchNorm2d(chs)
        self.act = nn.ReLU(inplace=True)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept, y = x.chunk(2, dim=1)
        y = self.bn2(self.conv2(self.act(self.bn1(self.conv1(y)))))
        y = self.act(self.bn3(self.conv3(y)))
        return self.shuffle(torch.cat([kept, y], dim=1))


class ShuffleV2DownBlock(nn.Module):
    """Two branches of stride 2 over all channels, each giving half of the output, shuffled."""

    def __init__(self, in_chs: int, out_chs: int):
        super().__init__()
        chs = out_chs // 2
        self.conv1 = conv(in_chs, in_chs, 3, 2, groups=in_chs)
        self.bn1 = nn.BatchNorm2d(in_chs)
        self.conv2 = conv(in_chs, chs, 1)
        self.bn2 = nn.BatchNorm2d(chs)
        self.conv3 = conv(in_chs, chs, 1)
        self.bn3 = nn.BatchNorm2d(chs)
        self.conv4 = conv(chs, chs, 3, 2, groups=chs)
        self.bn4 = nn.BatchNorm2d(chs)
        self.conv5 = conv(chs, chs, 1)
        self.bn5 = nn.BatchNorm2d(chs)
        self.act = nn.ReLU(inplace=True)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left = self.act(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = self.bn4(self.conv4(self.act(self.bn3(self.conv3(x)))))
        right = self.act(self.bn5(self.conv5(right)))
        return self.shuffle(torch.cat([left, right], dim=1))


def shuffle_v2_block(in_chs: int, out_chs: int, stride: int) -> nn.Module:
    """The block of ShuffleNetV2 for a stride."""
    return ShuffleV2DownBlock(in_chs, out_chs) if stride == 2 else ShuffleV2Block(out_chs)


class CifarShuffleNet(StagedNet):
    """A 1x1 convolution and three stages of 4, 8 and 4 blocks, each with stride 2.

    Args:
        block: Makes a block from input channels, output channels and stride.
        widths: Output channels of each stage.
        final_width: Output channels of a last 1x1 convolution; 0 for none.
    """
    classifier_name = "linear"

    def __init__(
            self,
            block: Callable[[int, int, int], nn.Module],
            widths: tuple[int, ...],
            final_width: int = 0,
            **common: Any,
    ):
        super().__init__(**common)
        self.conv1 = conv(self.in_chans, STEM_WIDTH, 1)
        self.bn1 = nn.BatchNorm2d(STEM_WIDTH)
        self.act1 = nn.ReLU(inplace=True)
        self._add_feature("act1", STEM_WIDTH, 1)
        self._add_stages(block, STEM_WIDTH, widths, depths=(4, 8, 4), strides=(2, 2, 2))
        if final_width:
            self.final = ("conv2", "bn2", "act2")
            self.conv2 = conv(widths[-1], final_width, 1)
            self.bn2 = nn.BatchNorm2d(final_width)
            self.act2 = nn.ReLU(inplace=True)
        self._finish(final_width or widths[-1])


register_variants(
    globals(),
    CifarShuffleNet,
    with_short_names({
        "cifar_shufflenetv1": {"block": ShuffleV1Block, "widths": (240, 480, 960)},
        "cifar_shufflenetv2": {"block": shuffle_v2_block, "widths": (116, 232, 464), "final_width": 1024},
    }),
    **{**CIFAR_CFG, "pool_size": (4, 4)},
)
