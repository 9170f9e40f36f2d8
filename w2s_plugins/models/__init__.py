"""Small networks of the distillation literature, registered in timm's registry when this package is imported."""

from . import cnn

__all__ = ["cnn"]
