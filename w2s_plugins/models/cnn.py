"""Two plain convolutional networks that train in seconds on a CPU: a weak teacher and a strong student."""

from typing import Any

from torch import nn

from ._base import StagedNet, init_weights, register_variants


class PlainCNN(StagedNet):
    """Stages of convolutions, each at half the resolution of the last, global pooling and a linear classifier.

    Args:
        widths: Output channels of each convolution, a tuple for each stage.
        kernel_size: Size of the kernels.
        strided: Halve the resolution by the first convolution of every stage, not by a max-pool before it.
        batch_norm: Normalise after each convolution.
    """

    stage_name = "stage{}"

    def __init__(
        self,
        widths: tuple[tuple[int, ...], ...],
        kernel_size: int = 3,
        strided: bool = False,
        batch_norm: bool = False,
        **common: Any,
    ):
        super().__init__(**common)
        chs = self.in_chans
        for i, stage_widths in enumerate(widths):
            layers: list[nn.Module] = []
            if i and not strided:
                layers.append(nn.MaxPool2d(2))
            # Only the first convolution of a stage may halve the resolution.
            for k, width in enumerate(stage_widths):
                stride = 2 if strided and k == 0 else 1
                padding = kernel_size // 2
                layers.append(
                    nn.Conv2d(chs, width, kernel_size, stride, padding, bias=not batch_norm)
                )
                if batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU(inplace=True))
                chs = width
            self._add_stage(i + 1, nn.Sequential(*layers), chs, 2 ** (i + strided))
        # The classifier comes after, with PyTorch's own initialisation.
        init_weights(self)
        self._add_classifier(chs)


register_variants(
    PlainCNN,
    {
        # Two layers see a whole digit only with large kernels and strides.
        "w2s_cnn2": {"widths": ((8,), (16,)), "kernel_size": 7, "strided": True},
        "w2s_cnn5": {"widths": ((16,), (24, 32), (48, 48)), "batch_norm": True},
    },
    num_classes=10,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    first_conv="stage1.0",
)
