"""Checkpoints of a sharded student."""

import shutil
from pathlib import Path

import torch
import torch.distributed as dist
from timm.task import TrainingTask
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..distributed.world import meet
from ..errors import RESUME, UserError, write_errors
from ..files import atomic_write, delete, link_or_copy
from ..models.shards import RUN_FILE, read_shards, replace_folder, write_shards

SECTIONS = ("state_dict", "state_dict_ema", "task_state")  # of a checkpoint: tensors by name


def save_sharded(state: dict, path: Path) -> None:
    """Write a checkpoint as a folder of shards; all ranks must call it. It has its name once every rank is done.

    Raises:
        UserError: a rank cannot write.
    """
    primary, temporary = dist.get_rank() == 0, path.with_name(f".{path.name}.tmp")
    if primary:
        delete(temporary)
        with write_errors(path, RESUME):
            temporary.mkdir()
    meet()
    shards, rest = take_out_shards(state)
    write_shards(temporary, shards)
    if primary:
        with atomic_write(temporary / RUN_FILE, RESUME) as file:
            torch.save(rest, file)
        replace_folder(temporary, path)
    meet()


def copy_sharded(source: Path, target: Path) -> None:
    """Copy a sharded checkpoint, by hard links where there are any."""
    temporary = target.with_name(f".{target.name}.tmp")
    delete(temporary)
    with write_errors(target, RESUME):
        shutil.copytree(source, temporary, copy_function=lambda *paths: link_or_copy(*map(Path, paths)))
    replace_folder(temporary, target)


def take_out_shards(state: dict) -> tuple[dict[str, Tensor], dict]:
    """Split a checkpoint into the tensors that go into shards, by name, and the rest, with None in their places."""
    shards, rest = {}, dict(state)
    for section in SECTIONS:
        if state.get(section):
            shards |= {f"{section}.{name}": tensor for name, tensor in state[section].items()}
            rest[section] = dict.fromkeys(state[section])
    rest["optimizer"] = dict(state["optimizer"], state={})
    for index, values in state["optimizer"]["state"].items():
        sharded = {key for key, value in values.items() if isinstance(value, DTensor)}
        shards |= {f"optimizer.{index}.{key}": values[key] for key in sharded}
        rest["optimizer"]["state"][index] = {k: None if k in sharded else v for k, v in values.items()}
    return shards, rest


def put_in_shards(
        checkpoint: dict,
        folder: Path,
        task: TrainingTask,
        optimizer: torch.optim.Optimizer | None,
) -> None:
    """Put the tensors of the shards into a checkpoint from `loading.read_checkpoint`, for `restore`.

    Args:
        checkpoint: content of the folder's small file; changed in place.
        folder: of the sharded checkpoint.
        task: sharded already; its tensors are overwritten.
        optimizer: of the task, or None to leave its state out.

    Raises:
        UserError: the shards do not fit the task.
    """
    own = {**task.get_checkpoint_state(), **task.get_checkpoint_state(ema=True)}
    shards: dict[str, Tensor] = {}
    for section in SECTIONS:
        if checkpoint.get(section) and section in own:
            checkpoint[section] = {name: own[section].get(name) for name in checkpoint[section]}
            shards |= {f"{section}.{name}": tensor for name, tensor in checkpoint[section].items()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]] if optimizer else []
    for index, values in checkpoint["optimizer"]["state"].items():
        for key in [k for k, value in values.items() if value is None and index < len(parameters)]:
            values[key] = shards[f"optimizer.{index}.{key}"] = torch.empty_like(parameters[index].detach())
    unknown = next((name for name, tensor in shards.items() if tensor is None), None)
    if unknown:
        raise UserError(f"--resume {folder}: does not fit this run: it has {unknown}, the run has not")
    read_shards(folder, shards, "--resume")

