"""Encoders of few-shot learning on miniImageNet at 80 pixels, with a linear classifier on its 64 base classes.

The block is that of TADAM (Oreshkin et al. 2018, arXiv 1805.10123); the deeper networks repeat it as Guo et al.,
*Vision Superalignment* (2024, arXiv 2402.03749), do.
"""

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.resnet import downsample_conv
from torch import Tensor, nn

from ._base import BlockNet, ConvBlock, register_variants


class FewShotBlock(ConvBlock):
    """Three 3x3 convolutions with batch norm and LeakyReLU(0.1); one with stride 2 ends in a 2x2 max-pool and has a
    convolution on the shortcut.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int):
        # A block with stride halves the resolution by its pool, not by a convolution.
        super().__init__((in_chs, out_chs), (out_chs, out_chs), (out_chs, out_chs))
        self.downsample = downsample_conv(in_chs, out_chs, 1) if stride == 2 else nn.Identity()
        self.act = nn.LeakyReLU(0.1, inplace=True)
        self.pool = nn.MaxPool2d(2) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        # The shortcut joins before the last activation, and what was joined is pooled.
        y = self.act(self.normed(1, x))
        y = self.act(self.normed(2, y))
        return self.pool(self.act(self.normed(3, y) + self.downsample(x)))


class FewShotResNet(BlockNet):
    """Four stages, each at half the resolution of what it is given."""

    def __init__(self, depths: tuple[int, ...], **common: Any):
        super().__init__(
            FewShotBlock,
            depths,
            (64, 128, 256, 512),
            strides=(2, 2, 2, 2),
            stem_kernel=0,
            **common,
        )


register_variants(
    FewShotResNet,
    {
        "fewshot_resnet12": {"depths": (1, 1, 1, 1)},
        "fewshot_resnet18": {"depths": (1, 2, 2, 1)},
        "fewshot_resnet36": {"depths": (2, 3, 5, 2)},
    },
    num_classes=64,
    input_size=(3, 80, 80),
    pool_size=(5, 5),
    mean=IMAGENET_DEFAULT_MEAN,
    std=IMAGENET_DEFAULT_STD,
    crop_pct=80 / 92,
    first_conv=("layer1.0.conv1", "layer1.0.downsample.0"),
)
