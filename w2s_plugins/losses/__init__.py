"""Distillation losses: pure functions of tensors, one family a file, found by name."""

# importing them registers the losses
from . import confidence, features, logits, relations, robust, several  # noqa: F401
from .arguments import Count, NonNegative, Positive, PositiveShare, ProperShare, Share
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
