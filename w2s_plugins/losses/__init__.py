"""Distillation losses: pure functions of tensors, one family a file, found by name."""

from . import confidence, features, logits, relations, robust  # noqa: F401  (importing registers them)
from .base import (
    DistillationLoss,
    LossContext,
    LossInputs,
    create_loss,
    describe_losses,
    label_of,
    list_losses,
    register_loss,
)

__all__ = [
    "DistillationLoss",
    "LossContext",
    "LossInputs",
    "create_loss",
    "describe_losses",
    "label_of",
    "list_losses",
    "register_loss",
]
