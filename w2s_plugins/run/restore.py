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
from ..models.loading import check_kinds, kinds_of
from .find import Checkpoint
from .position import Position


@contextmanager
def fitting(path: Path | None) -> Iterator[None]:
    """Turn whatever the parts of a run say of a state that is not theirs into a `UserError`."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each part checks its state in its own way
        raise UserError(
            f"--resume {path}: does not fit this run: {type(error).__name__}: {one_line(error)}"
        ) from error


def check_resumable(checkpoint: Checkpoint, flags: Mapping[str, object]) -> dict[str, list[str]]:
    """Refuse to continue a run with other flags, as `check_other_flags` does, whose result this returns."""
    with fitting(checkpoint.path):
        saved, now = checkpoint.content.get("args"), count_processes()
        return check_other_flags(
            vars(saved) if isinstance(saved, argparse.Namespace) else {},
            flags,
            f"--resume {checkpoint.path}",
            processes=(int(checkpoint.extra.get("processes", now)), now),
            of_timm=not checkpoint.extra,
        )


def restore(
    checkpoint: Checkpoint,
    task: TrainingTask,
    optimizer: torch.optim.Optimizer | None,
    scaler: object | None,
    scheduler: object | None,
) -> Position:
    """Load a training checkpoint into its parts.

    Args:
        checkpoint: the file and its content.
        task: its student, loss state and average of weights.
        optimizer: None leaves it as it is.
        scaler: loss scaler, or None.
        scheduler: timm scheduler, or None.

    Returns:
        The position to continue from.

    Raises:
        UserError: the checkpoint does not fit.
    """
    content, extra = checkpoint.content, checkpoint.extra
    with fitting(checkpoint.path):
        kinds = kinds_of(content["state_dict"])
        check_kinds(unwrap_model(task.get_eval_model()), kinds, str(checkpoint.path), "--resume")
        # student, loss and average; an average that was not kept until now begins with the weights, as timm's does
        task.load_checkpoint_state(content["state_dict"], content.get("task_state"))
        if task.has_ema():
            kept = "state_dict" if content.get("state_dict_ema") is None else "state_dict_ema"
            task.load_checkpoint_state(content[kept], content.get("task_state_ema"), ema=True)
        if optimizer is not None:
            optimizer.load_state_dict(content["optimizer"])
        if scaler is not None and scaler.state_dict_key in content:
            scaler.load_state_dict(content[scaler.state_dict_key])

        # a schedule of plateaus has counters, all others follow from the position
        plateau = dict(extra.get("plateau") or {})
        if isinstance(scheduler, PlateauLRScheduler) and plateau:
            scheduler.restore_lr = plateau.pop("restore_lr")
            scheduler.lr_scheduler.load_state_dict(plateau)

        position = Position(
            epoch=int(content["epoch"]),
            bad_steps=int(extra.get("bad_steps", 0)),
            taken=int(extra.get("taken", 0)),
            changes=[dict(change) for change in extra.get("changes", ())],
        )
        # one with a metric, and any of timm, is of the end of an epoch; the batch, the sums of terms and shared
        # statistics belong to an epoch that is not finished
        if "metric" in content or "batch" not in extra:
            position.epoch += 1
        else:
            position.batch = int(extra["batch"])
            position.statistics_shared = extra.get("statistics_shared", False)
            position.meter.load_state_dict(extra["meter"], task.device)
        return position


def cut_into_parts(
    checkpoint: Checkpoint, task: TrainingTask, optimizer: torch.optim.Optimizer | None
) -> None:
    """Cut the whole tensors of a checkpoint into the parts that this rank has of them, in place, for `restore`.

    Args:
        checkpoint: as `restore` takes it.
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

    with fitting(checkpoint.path):
        # weights, their average and what a loss remembers
        own = {**task.get_checkpoint_state(), **task.get_checkpoint_state(ema=True)}
        for section, tensors in own.items():
            saved = checkpoint.content.get(section) or {}
            for name in saved.keys() & tensors.keys():
                saved[name] = own_part(saved[name], tensors[name])
        # of the optimizer what is as large as its parameter
        if optimizer is None:
            return
        parameters = [
            parameter for group in optimizer.param_groups for parameter in group["params"]
        ]
        for index, values in checkpoint.content["optimizer"]["state"].items():
            for key, value in values.items():
                values[key] = own_part(value, parameters[index])


def stored_predictions(checkpoint: Checkpoint) -> tuple[list[str], Tensor] | None:
    """Return the predictions that a checkpoint carries (`RunFiles`)."""
    if checkpoint.extra.get("predictions") is None:
        return None
    columns, rows = checkpoint.extra["predictions"]
    return list(map(str, columns)), rows.reshape(-1, len(columns))


def gather_rank_states(
    task: TrainingTask, position: Position
) -> list[dict[str, dict[str, Tensor]]]:
    """Return the buffers of the student and its average, and the sums of terms, on every rank. All ranks must call it.

    Inside an epoch the statistics of batch norm and the sums differ from rank to rank; a checkpoint of rank 0 alone
    could not be continued exactly.
    """
    # buffers alone: parameters are the same on all ranks
    own = {
        name: {k: b.cpu() for k, b in model.named_buffers()}
        for name, model in _models_of(task).items()
    }
    return gather_objects({**own, "meter": position.meter.state_dict()})


def restore_rank_state(checkpoint: Checkpoint, task: TrainingTask, position: Position) -> None:
    """Put back what `gather_rank_states` returned, once DDP is made: that copies the buffers of rank 0 to all.

    Raises:
        UserError: the checkpoint has something else in its place.
    """
    states = checkpoint.extra.get("rank_states")
    if states is None or not dist.is_initialized():
        return
    with fitting(checkpoint.path):
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
