"""Learning from labels that may be wrong: the teacher is an annotator, its argmax the label."""

import torch.nn.functional as F
from torch import Tensor

from .base import LossInputs, register_loss


@register_loss("hard", summary="cross-entropy on the teacher's argmax, the naive weak-to-strong baseline")
def hard(inputs: LossInputs) -> dict[str, Tensor]:
    """Cross-entropy on the teacher's hardened prediction."""
    return {"hard": F.cross_entropy(inputs.student_logits, inputs.teacher_logits.argmax(dim=1))}
