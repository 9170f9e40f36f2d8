"""VGG networks for 32-pixel images, with batch norm and one linear layer.

Simonyan and Zisserman, *Very Deep Convolutional Networks for Large-Scale Image Recognition* (2014, arXiv 1409.1556).
Module names are those of the checkpoints of Tian et al., *Contrastive Representation Distillation* (2020,
arXiv 1910.10699).
"""

from typing import Any

from torch import nn

from ._base import StagedNet, init_weights, register_variants

WIDTHS = (64, 128, 256, 512, 512)


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
        for i, (width, depth) in enumerate(zip(WIDTHS, depths)):
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
        self._finish(chs)
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
