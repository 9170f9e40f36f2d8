"""Distillation losses: pure functions of tensors, one family a file, found by name."""

from ..cli.kwargs import Count, NonNegative, Positive, PositiveShare, ProperShare, Share
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
    "Count",
    "DistillationLoss",
    "LossContext",
    "LossInputs",
    "NonNegative",
    "Positive",
    "PositiveShare",
    "ProperShare",
    "Share",
    "create_loss",
    "describe_losses",
    "label_of",
    "list_losses",
    "register_loss",
]
