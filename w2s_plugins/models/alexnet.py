"""AlexNet, which timm lacks: torchvision's network and weights behind timm's model interface."""

import torch
import torchvision
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import get_device_dtype
from torch import nn
from torchvision.models import AlexNet_Weights

from ._base import StagedNet, register_variants


class AlexNet(StagedNet):
    """AlexNet in the form of *One weird trick for parallelizing convolutional neural networks* (2014, arXiv 1404.5997).

    Args:
        num_classes: classes; 0 for no classifier.
        in_chans: input channels.
        global_pool: only ``avg``, to 6 x 6.
        drop_rate: dropout before each of the first two linear layers, in [0, 1).
    """
    stem = ()
    stage_name = "features.{}"
    classifier_name = "classifier.6"

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, global_pool: str = "avg", drop_rate: float = 0.5):
        super().__init__(num_classes, in_chans, global_pool, drop_rate)
        # torchvision's layers, under their names.
        network = torchvision.models.AlexNet(max(1, num_classes), drop_rate)
        if in_chans != 3:
            network.features[0] = nn.Conv2d(in_chans, 64, kernel_size=11, stride=4, padding=2)
        self.features = network.features
        self.avgpool = network.avgpool
        self.classifier = network.classifier
        self.num_features = 256
        self.head_hidden_size = 4096
        # Each layer is a stage; features are those after the max-pools.
        self._stages = [f"features.{number}" for number in range(len(network.features))]
        for number, chs, reduction in ((2, 64, 8), (5, 192, 16), (12, 256, 32)):
            self._add_feature(f"features.{number}", chs, reduction)
        if num_classes == 0:
            self.reset_classifier(0)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns that sort parameters by depth, for layer-wise learning-rate decay."""
        return {"stem": r"^features\.0\.", "blocks": r"^features\.(\d+)"}  # linear layers count with the head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Gradient checkpointing is not offered."""
        assert not enable, "gradient checkpointing not supported"

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new last layer in place; 0 classes for none."""
        new = nn.Linear(self.head_hidden_size, num_classes, **get_device_dtype(self)) if num_classes else nn.Identity()
        self.num_classes = num_classes
        self.classifier[6] = new

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Features before pooling to logits (B, num_classes), or to what the last layer sees, (B, 4096)."""
        x = self.classifier[:6](self.avgpool(x).flatten(1))
        return x if pre_logits else self.classifier[6](x)


register_variants(
    globals(),
    AlexNet,
    {"alexnet.tv_in1k": {}},  # its published weights have 56.522 % top-1 on ImageNet
    url=AlexNet_Weights.IMAGENET1K_V1.url,  # documented as resized to 256, centre 224, bilinear
    num_classes=1000,
    input_size=(3, 224, 224),
    pool_size=(6, 6),
    mean=IMAGENET_DEFAULT_MEAN,
    std=IMAGENET_DEFAULT_STD,
    crop_pct=0.875,
    first_conv="features.0",
    license="bsd-3-clause",
    origin_url="https://github.com/pytorch/vision",
)
