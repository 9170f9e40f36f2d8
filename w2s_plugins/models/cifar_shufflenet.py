"""ShuffleNets for 32-pixel images: a 1x1 convolution as stem, and stages at half, a quarter and an eighth of the size.

Zhang et al., *ShuffleNet* (2017, arXiv 1707.01083) and Ma et al., *ShuffleNet V2* (2018, arXiv 1807.11164). Module
names are those of the checkpoints of Tian et al., *Contrastive Representation Distillation* (2020, arXiv 1910.10699).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ._base import BlockNet, ConvBlock, register_variants

STEM_WIDTH = 24
GROUPS = 3  # of ShuffleNetV1's 1x1 convolutions


class ShuffleV1Block(ConvBlock):
    """Grouped 1x1, depthwise 3x3 and grouped 1x1 convolutions; at stride 2 the pooled input is concatenated, not added.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int):
        # The branch makes the channels that the pooled input has not.
        branch_chs = out_chs - in_chs if stride == 2 else out_chs
        mid_chs = branch_chs // 4
        groups = 1 if in_chs == STEM_WIDTH else GROUPS
        super().__init__(
            (in_chs, mid_chs, 1, 1, groups),
            (mid_chs, mid_chs, 3, stride, mid_chs),
            (mid_chs, branch_chs, 1, 1, GROUPS),
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

    def __init__(self, block: Callable[[int, int, int], nn.Module], widths: tuple[int, ...], **common: Any):
        super().__init__(
            block, (4, 8, 4), (STEM_WIDTH, *widths), strides=(2, 2, 2), stem_kernel=1, he_init=False, **common)


register_variants(
    CifarShuffleNet,
    {
        "cifar_shufflenetv1": {"block": ShuffleV1Block, "widths": (240, 480, 960)},
        "cifar_shufflenetv2": {"block": shuffle_v2_block, "widths": (116, 232, 464), "final_width": 1024},
    },
    pool_size=(4, 4),
)
