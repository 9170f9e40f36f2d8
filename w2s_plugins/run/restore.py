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

from ..cli.outcome import refuse_other_flags
from ..distributed.world import count_processes, gather_objects
from ..errors import UserError, one_line
from ..models.shards import read_shards
from .find import check_name
from .position import Position
from .saver import SECTIONS


def check_resumable(checkpoint: dict, flags: Mapping[str, object], path: Path) -> dict[str, list[str]]:
    """Refuse what is no training checkpoint, and to continue a run with other flags, as `refuse_other_flags`."""
    # weights alone are no state of a run
    absent = [k for k in ("epoch", "state_dict", "optimizer") if k not in checkpoint]
    if absent:
        raise UserError(f"--resume {path}: not a training checkpoint, it has no {', '.join(absent)}; to start from its "
                        "weights use --initial-checkpoint")
    with fitting(path):
        args, extra, now = checkpoint.get("args"), checkpoint.get("w2s") or {}, count_processes()
        saved = vars(args) if isinstance(args, argparse.Namespace) else {}
        processes = (int(extra.get("processes", now)), now)
        finished = is_finished(checkpoint)
    return refuse_other_flags(saved, flags, f"--resume {path}", processes, finished, of_timm=not extra)


def is_finished(checkpoint: dict) -> bool:
    """Whether a checkpoint is of the end of an epoch."""
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
        # names that files are written and deleted by come first
        _check_saver(checkpoint.get("saver") or {})
        # student, loss and average
        task.load_checkpoint_state(checkpoint["state_dict"], checkpoint.get("task_state"))
        if task.has_ema():  # one that was not kept until now begins with the weights, as timm's does
            kept = "state_dict" if checkpoint.get("state_dict_ema") is None else "state_dict_ema"
            task.load_checkpoint_state(checkpoint[kept], checkpoint.get("task_state_ema"), ema=True)
        if optimizer is not None:
            optimizer.load_state_dict(checkpoint["optimizer"])
        if scaler is not None and scaler.state_dict_key in checkpoint:
            scaler.load_state_dict(checkpoint[scaler.state_dict_key])
        # a schedule of plateaus has counters, all others follow from the position
        plateau = (checkpoint.get("w2s") or {}).get("plateau")
        if isinstance(scheduler, PlateauLRScheduler) and plateau is not None:
            scheduler.restore_lr = plateau["restore_lr"]
            scheduler.lr_scheduler.load_state_dict({k: v for k, v in plateau.items() if k != "restore_lr"})
        return _position(checkpoint, task.device)


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Turn whatever the parts of a run say of a strange state into a `UserError`."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # each of them checks its state in its own way, or not at all
        raise UserError(f"--resume {path}: does not fit this run: {type(error).__name__}: {one_line(error)}") from error


def _check_saver(saver: Mapping[str, object]) -> None:
    """Raise some exception for what is not a saver's: it writes and deletes files by these names."""
    for name, metric in saver.get("checkpoint_files", ()):
        check_name(name)
        float(metric)
    epoch, metric = saver.get("pending", (None, None))
    if metric is not None:
        check_name(f"checkpoint-{epoch}.pth.tar")
        float(metric)
    float(saver.get("best_metric") or 0)


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
    # the tensors of the task itself stand in for those of the shards, which are read into them
    own = {**task.get_checkpoint_state(), **task.get_checkpoint_state(ema=True)}
    shards: dict[str, Tensor] = {}
    with fitting(folder):
        for section in SECTIONS:
            if checkpoint.get(section) and section in own:
                checkpoint[section] = {name: own[section][name] for name in checkpoint[section]}
                shards |= {f"{section}.{name}": tensor for name, tensor in checkpoint[section].items()}
        # the state of an optimizer is made at its first step: here it is made to be read into
        parameters = [p for group in optimizer.param_groups for p in group["params"]] if optimizer else []
        for index, values in checkpoint["optimizer"]["state"].items():
            for key in [k for k, value in values.items() if value is None and index < len(parameters)]:
                values[key] = shards[f"optimizer.{index}.{key}"] = torch.empty_like(parameters[index].detach())
    read_shards(folder, shards, "--resume")


def stored_predictions(extra: Mapping[str, object]) -> tuple[list[str], Tensor] | None:
    """Return the predictions that a checkpoint carries (`RunFiles`). Whatever is wrong with them is some exception."""
    if extra.get("predictions") is None:
        return None
    columns, rows = extra["predictions"]
    return list(map(str, columns)), rows.reshape(-1, len(columns))


def _position(checkpoint: dict, device: torch.device) -> Position:
    # a checkpoint of timm has none of this project's
    extra = checkpoint.get("w2s") or {}
    finished = is_finished(checkpoint)
    position = Position(
        epoch=int(checkpoint["epoch"]) + finished,
        batch=0 if finished else int(extra["batch"]),
        bad_steps=int(extra.get("bad_steps", 0)),
        taken=int(extra.get("taken", 0)),
        unreadable=[str(message) for message in extra.get("unreadable", ())],
        changes=[dict(change) for change in extra.get("changes", ())],
    )
    if not finished:
        position.statistics_shared = extra.get("statistics_shared", False)
        position.meter.load_state_dict(extra["meter"], device)
    return position


def gather_rank_states(task: TrainingTask, position: Position) -> list[dict[str, dict[str, Tensor]]]:
    """Return the buffers of the student and its average, and the sums of terms, on every rank. All ranks must call it.

    Inside an epoch the statistics of batch norm and the sums differ from rank to rank; a checkpoint of rank 0 alone
    could not be continued exactly.
    """
    # buffers alone: parameters are the same on all ranks
    own = {name: {k: b.cpu() for k, b in model.named_buffers()} for name, model in _buffered(task).items()}
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
        # each rank has its own statistics and sums
        own = states[dist.get_rank()]
        for name, model in _buffered(task).items():
            model.load_state_dict(own.get(name, {}), strict=False)
        if position.batch:
            position.meter.load_state_dict(own["meter"], task.device)


def _buffered(task: TrainingTask) -> dict[str, nn.Module]:
    models = {"model": task.get_eval_model(), "ema": task.get_eval_model(ema=True)}
    return {name: unwrap_model(model) for name, model in models.items() if model is not None}
