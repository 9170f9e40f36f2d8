"""Small networks of the distillation literature, registered in timm's registry when this package is imported."""

from . import cifar_mobilenet, cifar_resnet, cifar_shufflenet, cifar_vgg, cnn, fewshot, preact

__all__ = ["cifar_mobilenet", "cifar_resnet", "cifar_shufflenet", "cifar_vgg", "cnn", "fewshot", "preact"]
