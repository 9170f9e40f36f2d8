"""Residual networks with batch norm and ReLU before each convolution, for 32-pixel images.

He et al., *Identity Mappings in Deep Residual Networks* (2016, arXiv 1603.05027), and their wide form, Zagoruyko and
Komodakis, *Wide Residual Networks* (2016, arXiv 1605.07146).
"""

from typing import Any

from torch import Tensor, nn

from ._base import BlockNet, StagedNet, conv, init_weights, register_variants


class PreActBlock(nn.Module):
    """The shortcut starts from the activated input in every block.

    He et al. have the input itself on the shortcut of a block that keeps the shape; the networks with which the
    noisy-label literature reports its results do not.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_chs)
        self.conv1 = conv(in_chs, out_chs, 3, stride)
        self.bn2 = nn.BatchNorm2d(out_chs)
        self.conv2 = conv(out_chs, out_chs)
        self.act = nn.ReLU(inplace=True)
        self._add_shortcut(in_chs, out_chs, stride)

    def _add_shortcut(self, in_chs: int, out_chs: int, stride: int) -> None:
        # an empty sequence is the identity, and has no entry in a checkpoint
        self.shortcut = nn.Sequential()
        if stride != 1 or in_chs != out_chs:
            self.shortcut.append(conv(in_chs, out_chs, 1, stride))

    def _skip(self, x: Tensor, activated: Tensor) -> Tensor:
        return self.shortcut(activated)

    def forward(self, x: Tensor) -> Tensor:
        # Norm and activation come before each convolution; what follows the first pair is shared with the shortcut.
        activated = self.act(self.bn1(x))
        y = self.act(self.bn2(self.conv1(activated)))
        return self.conv2(y) + self._skip(x, activated)


class WideBlock(PreActBlock):
    """The shortcut is the input, or a 1x1 convolution of the activated input where the channels change."""

    def _add_shortcut(self, in_chs: int, out_chs: int, stride: int) -> None:
        # under the name that it has in the authors' checkpoints
        self.convShortcut = conv(in_chs, out_chs, 1, stride) if in_chs != out_chs else None

    def _skip(self, x: Tensor, activated: Tensor) -> Tensor:
        return x if self.convShortcut is None else self.convShortcut(activated)


class WideResNet(StagedNet):
    """Three stages of `WideBlock`, then batch norm and ReLU.

    Args:
        depth: Layers, 6n + 4 for n blocks in each stage.
        width: Factor on the stages' 16, 32 and 64 channels.
    """

    stem = ("conv1",)
    stage_name = "block{}.layer"
    final = ("bn1", "act1")

    def __init__(self, depth: int, width: int, **common: Any):
        super().__init__(**common)
        # The stem is thin, stages are wide, and the last norm and activation follow them.
        widths = (16 * width, 32 * width, 64 * width)
        self.conv1 = conv(self.in_chans, 16)
        self._add_feature("conv1", 16, 1)
        self.block1, self.block2, self.block3 = nn.Module(), nn.Module(), nn.Module()
        self._add_stages(WideBlock, 16, zip(widths, ((depth - 4) // 6,) * 3, (1, 2, 2)))
        self.bn1 = nn.BatchNorm2d(widths[-1])
        self.act1 = nn.ReLU(inplace=True)
        init_weights(self)
        self._add_classifier(widths[-1])


class PreActResNet(BlockNet):
    """Stages of `PreActBlock`, with the classifier's name in the checkpoints of Sel-CL (2022, arXiv 2203.04181)."""

    classifier_name = "linear2"


PREACT_WIDTHS = (64, 64, 128, 256, 512)


def checkpoint_filter_fn(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Leave out the projection head, which checkpoints of Sel-CL have beside the classifier."""
    # A model whose own classifier is called head keeps it.
    names = model.state_dict().keys()
    return {
        name: value
        for name, value in state.items()
        if name in names or not name.startswith("head.")
    }


register_variants(
    WideResNet,
    {
        "cifar_wrn_16_1": {"depth": 16, "width": 1},
        "cifar_wrn_16_2": {"depth": 16, "width": 2},
        "cifar_wrn_40_1": {"depth": 40, "width": 1},
        "cifar_wrn_40_2": {"depth": 40, "width": 2},
    },
)
register_variants(
    PreActResNet,
    {
        "preact_resnet18": {"block": PreActBlock, "depths": (2, 2, 2, 2), "widths": PREACT_WIDTHS},
        "preact_resnet34": {"block": PreActBlock, "depths": (3, 4, 6, 3), "widths": PREACT_WIDTHS},
    },
    pool_size=(4, 4),
)
