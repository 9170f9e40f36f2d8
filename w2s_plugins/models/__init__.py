"""Small networks of the distillation literature, registered in timm's registry when this package is imported."""

from . import cifar, cnn, fewshot, preact

__all__ = ["cifar", "cnn", "fewshot", "preact"]
