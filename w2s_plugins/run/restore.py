"""A run takes up the state of a checkpoint. What its parts say of a state that is not theirs ends in one line."""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from timm.scheduler import PlateauLRScheduler
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ..cli.outcome import check_other_flags
from ..distributed.world import count_processes, gather_objects
from ..errors import UserError, one_line
from .position import Position


@contextmanager
def fitting(path: Path | None) -> Iterator[None]:
    """Turn whatever the parts of a run say of a state that is not theirs into a `UserError`."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each part checks its state in its own way
        raise UserError(f"--resume {path}: does not fit this run: {type(error).__name__}: {one_line(error)}") from error


def check_resumable(checkpoint: dict, flags: Mapping[str, object], path: Path) -> dict[str, list[str]]:
    """Refuse to continue a run with other flags, as `check_other_flags` does, whose result this returns."""
    with fitting(path):
        saved, extra, now = checkpoint.get("args"), checkpoint.get("w2s"), count_processes()
        return check_other_flags(
            vars(saved) if isinstance(saved, argparse.Namespace) else {},
            flags,
            f"--resume {path}",
            processes=(int(extra.get("processes", now)) if extra else now, now),
            finished=is_finished(checkpoint),
            of_timm=not extra,
        )


def is_finished(checkpoint: dict) -> bool:
    """Whether a checkpoint is of the end of an epoch, as those of timm's own script are."""
    return "metric" in checkpoint or "batch" not in (checkpoint.get("w2s") or {})


def restore(
        checkpoint: dict,
        path: Path,
        task: TrainingTask,
        optimizer: torch.optim.Optimizer | None,
        scaler: object | None,
        scheduler: object | None,
) -> Position:
    """Load a training checkpoint into its parts.

    Args:
        checkpoint: content of the file, from `read_checkpoint`.
        path: the file, for messages.
        task: its student, loss state and average of weights.
        optimizer: None leaves it as it is.
        scaler: loss scaler, or None.
        scheduler: timm scheduler, or None.

    Returns:
        The position to continue from.

    Raises:
        UserError: the checkpoint does not fit.
    """
    with fitting(path):
        # student, loss and average; an average that was not kept until now begins with the weights, as timm's does
        task.load_checkpoint_state(checkpoint["state_dict"], checkpoint.get("task_state"))
        if task.has_ema():
            kept = "state_dict" if checkpoint.get("state_dict_ema") is None else "state_dict_ema"
            task.load_checkpoint_state(checkpoint[kept], checkpoint.get("task_state_ema"), ema=True)
        if optimizer is not None:
            optimizer.load_state_dict(checkpoint["optimizer"])
        if scaler is not None and scaler.state_dict_key in checkpoint:
            scaler.load_state_dict(checkpoint[scaler.state_dict_key])

        # a schedule of plateaus has counters, all others follow from the position
        extra = checkpoint.get("w2s") or {}
        plateau = dict(extra.get("plateau") or {})
        if isinstance(scheduler, PlateauLRScheduler) and plateau:
            scheduler.restore_lr = plateau.pop("restore_lr")
            scheduler.lr_scheduler.load_state_dict(plateau)

        # the batch, the sums of terms and shared statistics belong to an epoch that is not finished
        position = Position(
            epoch=int(checkpoint["epoch"]),
            bad_steps=int(extra.get("bad_steps", 0)),
            taken=int(extra.get("taken", 0)),
            changes=[dict(change) for change in extra.get("changes", ())],
        )
        if is_finished(checkpoint):
            position.epoch += 1
        else:
            position.batch = int(extra["batch"])
            position.statistics_shared = extra.get("statistics_shared", False)
            position.meter.load_state_dict(extra["meter"], task.device)
        return position


def cut_into_parts(
        checkpoint: dict,
        path: Path,
        task: TrainingTask,
        optimizer: torch.optim.Optimizer | None,
) -> None:
    """Cut the whole tensors of a checkpoint into the parts that this rank has of them, in place, for `restore`.

    Args:
        checkpoint: as `restore` takes it.
        path: the file, for messages.
        task: sharded already.
        optimizer: of the task, or None to leave its state whole.

    Raises:
        UserError: the checkpoint does not fit.
    """
    def own_part(whole: object, like: object) -> object:
        # every rank has read the file, so that nothing is sent
        if isinstance(whole, Tensor) and isinstance(like, DTensor) and whole.shape == like.shape:
            return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
        return whole

    with fitting(path):
        # weights, their average and what a loss remembers
        own = {**task.get_checkpoint_state(), **task.get_checkpoint_state(ema=True)}
        for section, tensors in own.items():
            saved = checkpoint.get(section) or {}
            for name in saved.keys() & tensors.keys():
                saved[name] = own_part(saved[name], tensors[name])
        # of the optimizer what is as large as its parameter
        if optimizer is None:
            return
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for index, values in checkpoint["optimizer"]["state"].items():
            for key, value in values.items():
                values[key] = own_part(value, parameters[index])


def stored_predictions(extra: Mapping[str, object]) -> tuple[list[str], Tensor] | None:
    """Return the predictions that a checkpoint carries (`RunFiles`)."""
    if extra.get("predictions") is None:
        return None
    columns, rows = extra["predictions"]
    return list(map(str, columns)), rows.reshape(-1, len(columns))


def gather_rank_states(task: TrainingTask, position: Position) -> list[dict[str, dict[str, Tensor]]]:
    """Return the buffers of the student and its average, and the sums of terms, on every rank. All ranks must call it.

    Inside an epoch the statistics of batch norm and the sums differ from rank to rank; a checkpoint of rank 0 alone
    could not be continued exactly.
    """
    # buffers alone: parameters are the same on all ranks
    own = {name: {k: b.cpu() for k, b in model.named_buffers()} for name, model in _models_of(task).items()}
    return gather_objects({**own, "meter": position.meter.state_dict()})


def restore_rank_state(states: list[dict] | None, task: TrainingTask, position: Position, path: Path | None) -> None:
    """Put back what `gather_rank_states` returned, once DDP is made: that copies the buffers of rank 0 to all.

    Raises:
        UserError: they are not what a run writes to ``path``.
    """
    if states is None or not dist.is_initialized():
        return
    with fitting(path):
        if len(states) != dist.get_world_size():
            return
        own = states[dist.get_rank()]
        for name, model in _models_of(task).items():
            model.load_state_dict(own.get(name, {}), strict=False)
        if position.batch:
            position.meter.load_state_dict(own["meter"], task.device)


def _models_of(task: TrainingTask) -> dict[str, nn.Module]:
    models = {"model": task.get_eval_model(), "ema": task.get_eval_model(ema=True)}
    return {name: unwrap_model(model) for name, model in models.items() if model is not None}
