"""AlexNet, which timm lacks: torchvision's network and weights behind timm's model interface."""

from typing import Any

import torch
import torchvision
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import nn
from torchvision.models import AlexNet_Weights


class AlexNet(torchvision.models.AlexNet):
    """AlexNet in the form of *One weird trick for parallelizing convolutional neural networks* (2014, arXiv 1404.5997).

    Args:
        num_classes: classes; 0 for no classifier.
        in_chans: input channels.
        global_pool: only ``avg``, to 6 x 6.
        drop_rate: dropout before each of the first two linear layers, in [0, 1).
    """

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, global_pool: str = "avg", drop_rate: float = 0.5):
        super().__init__(num_classes=max(1, num_classes), dropout=drop_rate)
        if in_chans != 3:
            first = self.features[0]
            self.features[0] = nn.Conv2d(
                in_chans, first.out_channels, first.kernel_size, first.stride, first.padding)
        self.in_chans, self.num_features, self.head_hidden_size = in_chans, 256, 4096
        levels = ((2, 64, 8), (5, 192, 16), (12, 256, 32))  # the max-pools
        self.feature_info = [dict(module=f"features.{i}", num_chs=c, reduction=r) for i, c, r in levels]
        self.num_classes = max(1, num_classes)
        if num_classes == 0:
            self.reset_classifier(0)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns that sort parameters by depth, for layer-wise learning-rate decay."""
        return {"stem": r"^features\.0\.", "blocks": r"^features\.(\d+)"}  # linear layers count with the head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Gradient checkpointing is not offered."""
        assert not enable, "gradient checkpointing not supported"

    def get_classifier(self) -> nn.Module:
        """The last linear layer, or an identity when there is none."""
        return self.classifier[6]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new last layer in place; 0 classes for none."""
        weight = self.classifier[4].weight
        self.num_classes = num_classes
        self.classifier[6] = nn.Linear(
            self.head_hidden_size, num_classes, device=weight.device, dtype=weight.dtype,
        ) if num_classes else nn.Identity()

    def forward_intermediates(
            self,
            x: torch.Tensor,
            indices: int | list[int] | None = None,
            norm: bool = False,
            stop_early: bool = False,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the final features and those after each max-pool, from one pass; arguments are those of `StagedNet`.
        """
        assert not stop_early, "stop_early is not supported"
        take, _ = feature_take_indices(len(self.feature_info), indices)
        wanted = {self.feature_info[i]["module"] for i in take}
        found = []
        for name, layer in self.features.named_children():
            x = layer(x)
            if f"features.{name}" in wanted:
                found.append(x)
        return x, found

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) to the features before pooling, (B, 256, h, w)."""
        return self.features(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Features before pooling to logits (B, num_classes), or to what the last layer sees, (B, 4096)."""
        x = self.classifier[:6](self.avgpool(x).flatten(1))
        return x if pre_logits else self.classifier[6](x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


default_cfgs = generate_default_cfgs({
    "alexnet.tv_in1k": {  # as torchvision documents its IMAGENET1K_V1: resized to 256, centre 224, bilinear
        "url": AlexNet_Weights.IMAGENET1K_V1.url,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (6, 6),
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "interpolation": "bilinear",
        "crop_pct": 0.875,
        "first_conv": "features.0",
        "classifier": "classifier.6",
        "license": "bsd-3-clause",
        "origin_url": "https://github.com/pytorch/vision",
    },
})


@register_model
def alexnet(pretrained: bool = False, **kwargs: Any) -> AlexNet:
    """torchvision's AlexNet; its published weights have 56.522 % top-1 on ImageNet."""
    place = {"device": kwargs.pop("device", None), "dtype": kwargs.pop("dtype", None)}
    return build_model_with_cfg(AlexNet, "alexnet", pretrained, **kwargs).to(**place)
