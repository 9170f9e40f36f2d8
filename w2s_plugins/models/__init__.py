"""Small networks of the distillation literature, registered in timm's registry when this package is imported."""

from . import cnn, fewshot, mobilenet, preact, resnet, shufflenet, vgg

__all__ = ["cnn", "fewshot", "mobilenet", "preact", "resnet", "shufflenet", "vgg"]
