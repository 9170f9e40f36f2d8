"""Checkpoints of a sharded student."""

import os
import shutil
from pathlib import Path

import torch
import torch.distributed as dist
from timm.task import TrainingTask
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..errors import UserError, write_errors
from ..models.shards import EXTENSION, RUN_FILE, read_shards, replace_folder, write_shards
from . import checkpoint as ckpt

SECTIONS = ("state_dict", "state_dict_ema", "task_state")  # of a checkpoint: tensors by name


class ShardedSaver(ckpt.Saver):
    """The saver of a sharded run: a folder of shards in place of each file. Every rank has one and calls it alike.

    Args:
        primary: this rank renames and deletes.
        **kwargs: arguments of `checkpoint.Saver`.
    """

    def __init__(self, *, primary: bool, **kwargs: object):
        super().__init__(**kwargs)
        self.primary, self.extension = primary, EXTENSION

    def _write(self, state: dict, path: Path) -> None:
        """Write to another name, and rename once every rank is done."""
        temporary = path.with_name(f".{path.name}.tmp")
        if self.primary:
            shutil.rmtree(temporary, ignore_errors=True)
            with write_errors(path):
                temporary.mkdir()
        dist.barrier()
        shards, rest = take_out_shards(state)
        write_shards(temporary, shards)
        if self.primary:
            ckpt.save_state(rest, temporary / RUN_FILE)
            replace_folder(temporary, path)
        dist.barrier()

    def _rename(self, src: str, dst: str) -> None:
        if self.primary:
            replace_folder(Path(src), Path(dst))

    def _rename_aside(self, path: Path, why: str) -> None:
        if self.primary:
            shutil.rmtree(path.with_name(path.name + ckpt.ASIDE), ignore_errors=True)
            super()._rename_aside(path, why)

    def _duplicate(self, src: str, dst: str) -> None:
        if self.primary:
            temporary = Path(dst).with_name(f".{Path(dst).name}.tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            with write_errors(Path(dst)):
                shutil.copytree(src, temporary, copy_function=_link)
            replace_folder(temporary, Path(dst))

    def _cleanup_checkpoints(self, trim: int = 0) -> None:
        keep = max(self.max_history - trim, 0)
        for path, _ in self.checkpoint_files[keep:]:
            self._remove(path)
        self.checkpoint_files = self.checkpoint_files[:keep]

    def _remove(self, path: str | Path) -> None:
        if self.primary:
            shutil.rmtree(path, ignore_errors=True)

    def _remove_temporary(self, folder: Path) -> None:
        if self.primary:
            super()._remove_temporary(folder)
        for path in folder.glob(f".*{EXTENSION}.tmp"):
            self._remove(path)

    def _copy(self, state: dict) -> None:
        """None: shards are never written in the background, since all ranks exchange while they write."""


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
    """Put the tensors of the shards into a checkpoint from `loading.read_checkpoint`, for `checkpoint.restore`.

    Args:
        checkpoint: content of the folder's small file; changed in place.
        folder: of the sharded checkpoint.
        task: sharded already; its tensors are overwritten.
        optimizer: of the task, or None to leave its state out.

    Raises:
        UserError: the shards do not fit the task, or are damaged.
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


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
