"""What measures the logits of a split against ground truth, by what a label is."""

import torch
from timm.task.evaluator import ClassificationEvaluator

from ..target_kind import SeveralClasses, TargetKind
from .several import SeveralEvaluator


def create_evaluator(
    target_kind: TargetKind, device: torch.device, max_samples: int | None
) -> ClassificationEvaluator:
    """Return timm's evaluator: of loss, top-1 and top-5, or of several classes an image of mAP and F1.

    Args:
        target_kind: what a label is.
        device: of the logits.
        max_samples: how many count; what follows is padding.
    """
    if isinstance(target_kind, SeveralClasses):
        threshold = target_kind.threshold
        return SeveralEvaluator(device, max_samples=max_samples, threshold=threshold)
    return ClassificationEvaluator(device, max_samples=max_samples)
