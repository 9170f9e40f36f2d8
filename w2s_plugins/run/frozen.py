"""Checkpoints inside an epoch without what is not trained: a run that goes on has made it again before."""

from collections.abc import Mapping
from pathlib import Path

from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import Tensor

from ..errors import UserError
from ..models.fingerprint import hash_tensors

SECTIONS = ("state_dict", "state_dict_ema")


def frozen_parameters(task: TrainingTask) -> dict[str, Tensor]:
    """Return the parameters of the student that are not trained, by name."""
    model = unwrap_model(task.get_eval_model())
    return {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}


def leave_out(state: dict, frozen: Mapping[str, Tensor], digest: str) -> None:
    """Take what is not trained out of a checkpoint, in place; ``digest``, its hash, stays."""
    for section in SECTIONS:
        if section in state:
            state[section] = {name: value for name, value in state[section].items() if name not in frozen}
    state["w2s"]["frozen"] = digest


def put_back(checkpoint: dict, task: TrainingTask, path: Path) -> None:
    """Add to a checkpoint what `leave_out` took out of it, in place.

    Raises:
        UserError: the run has begun with other weights.
    """
    said = (checkpoint.get("w2s") or {}).get("frozen")
    if said is None:
        return
    frozen = frozen_parameters(task)
    if hash_tensors(frozen) != said:
        raise UserError(f"--resume {path}: the weights that are not trained are others than when it was written; start "
                        "from the same --pretrained, --initial-checkpoint or --finetune")
    for section in SECTIONS:
        if isinstance(checkpoint.get(section), dict):
            checkpoint[section] = {**frozen, **checkpoint[section]}
