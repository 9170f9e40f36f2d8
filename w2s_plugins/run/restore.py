"""A run takes up the state of a checkpoint. What its parts say of a state that is not theirs ends in one line."""

import argparse
import re
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
from .frozen import put_back
from .position import Position


def check_resumable(checkpoint: dict, flags: Mapping[str, object], path: Path) -> dict[str, list[str]]:
    """Refuse what is no training checkpoint, and to continue a run with other flags, as `refuse_other_flags`."""
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
    put_back(checkpoint, task, path)
    with fitting(path):
        check_names(checkpoint.get("saver") or {})
        task.load_checkpoint_state(checkpoint["state_dict"], checkpoint.get("task_state"))
        if task.has_ema():  # one that was not kept until now begins with the weights, as timm's does
            kept = "state_dict" if checkpoint.get("state_dict_ema") is None else "state_dict_ema"
            task.load_checkpoint_state(checkpoint[kept], checkpoint.get("task_state_ema"), ema=True)
        if optimizer is not None:
            optimizer.load_state_dict(checkpoint["optimizer"])
        if scaler is not None and scaler.state_dict_key in checkpoint:
            scaler.load_state_dict(checkpoint[scaler.state_dict_key])
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


def check_names(saver: Mapping[str, object]) -> None:
    """Raise a `ValueError` for names that are not those of checkpoints: the saver writes and deletes files by them."""
    epoch, metric = saver.get("pending", (None, None))
    ranked = [*saver.get("checkpoint_files", ()), (f"checkpoint-{epoch or 0}.pth.tar", metric)]
    for name, metric in [*ranked, ("checkpoint-0.pth.tar", saver.get("best_metric"))]:
        if not re.fullmatch(r"checkpoint-\d+\.(pth\.tar|sharded)", name) or float(metric or 0) != (metric or 0):
            raise ValueError(f"its saver names {name!r} with a metric of {metric!r}")


def stored_predictions(extra: Mapping[str, object]) -> tuple[list[str], Tensor] | None:
    """Return the predictions that a checkpoint carries (`RunFiles`). Whatever is wrong with them is some exception."""
    if extra.get("predictions") is None:
        return None
    columns, rows = extra["predictions"]
    return list(map(str, columns)), rows.reshape(-1, len(columns))


def _position(checkpoint: dict, device: torch.device) -> Position:
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
        own = states[dist.get_rank()]
        for name, model in _buffered(task).items():
            model.load_state_dict(own.get(name, {}), strict=False)
        if position.batch:
            position.meter.load_state_dict(own["meter"], task.device)


def _buffered(task: TrainingTask) -> dict[str, nn.Module]:
    models = {"model": task.get_eval_model(), "ema": task.get_eval_model(ema=True)}
    return {name: unwrap_model(model) for name, model in models.items() if model is not None}
