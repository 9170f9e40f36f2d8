"""A network whose classifier sees the pooled outputs of several of its blocks side by side.

The last block of a pretrained network is made for the classes it was trained on; blocks before it know more of what
other classes differ in (Evci et al., *Head2Toe*, ICML 2022, arXiv 2201.03529). No plain timm model has such a
classifier, so it is registered as an architecture of its own, of which another one is the ``base``.
"""

from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, get_model_args, register_model
from torch import Tensor, nn

NAME = "w2s_levels"


class Levels(nn.Module):
    """A timm model without its head, and a linear layer on what several of its blocks give.

    Args:
        base: name of an architecture of timm.
        blocks: how many of its last blocks, as ``forward_intermediates`` counts them (of convolutional networks the
            last ones of each resolution), are pooled beside what its own classifier would see.
        num_classes: Classes; 0 for no classifier.
        **base_args: arguments of the base.
    """

    def __init__(self, base: str, blocks: int, num_classes: int = 1000, **base_args: Any):
        super().__init__()
        self.base = timm.create_model(base, num_classes=0, **base_args).eval()
        self.blocks, self.in_chans = blocks, base_args.get("in_chans", 3)
        size = base_args.get("img_size") or self.base.pretrained_cfg["input_size"][1:]
        with torch.no_grad():
            some = torch.zeros(1, self.in_chans, *(size if isinstance(size, (list, tuple)) else (size, size)))
            self.num_features = self.features(some).shape[1]
        self.reset_classifier(num_classes)

    def get_classifier(self) -> nn.Module:
        """Return the linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Make the linear layer anew; of 0 classes there is none."""
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def features(self, images: Tensor) -> Tensor:
        """Return the pooled outputs of the blocks, and what the classifier of the base would see, (B, D)."""
        token = getattr(self.base, "global_pool", None) == "token"
        prefix = dict(return_prefix_tokens=True) if token else {}
        final, taken = self.base.forward_intermediates(images, self.blocks, norm=True, **prefix)
        pooled = [one[1][:, 0] if token else one.mean(dim=(2, 3)) for one in taken]
        return torch.cat([*pooled, self.base.forward_head(final, pre_logits=True)], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def with_levels(model: nn.Module, blocks: int) -> Levels:
    """Return a `Levels` of a model of timm, which becomes a part of it and loses its head."""
    cfg = model.pretrained_cfg
    args = {**get_model_args(model), "base": cfg["architecture"], "blocks": blocks}
    levels = timm.create_model(NAME, **args)
    model.reset_classifier(0)
    levels.base = model
    levels.pretrained_cfg = {**cfg, "architecture": NAME, "classifier": "head"}
    return levels


default_cfgs = generate_default_cfgs({NAME: {"classifier": "head"}})


@register_model
def w2s_levels(pretrained: bool = False, **kwargs: Any) -> Levels:
    """`Levels`."""
    return build_model_with_cfg(Levels, NAME, pretrained, **kwargs)
