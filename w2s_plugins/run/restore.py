"""A run takes up the state of a checkpoint. What its parts say of a state that is not theirs ends in one line."""

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.distributed as dist
from timm.scheduler.plateau_lr import PlateauLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.task import TrainingTask
from timm.utils.cuda import NativeScaler
from timm.utils.model import unwrap_model
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ..cli.outcome import check_other_flags
from ..distributed.world import count_processes, gather_objects
from ..models.loading import check_kinds, kinds_of
from .checkpoint import Checkpoint, fitting
from .position import Position, TermMeter


def check_resumable(checkpoint: Checkpoint, flags: Mapping[str, object]) -> dict[str, list[str]]:
    """Refuse to continue a run with other flags, as `check_other_flags` does, whose result this returns."""
    now = count_processes()
    before = now if checkpoint.processes is None else checkpoint.processes
    where = f"--resume {checkpoint.path}"
    # flags that a file holds may be of any kind, and are compared as they are
    with fitting(checkpoint.path):
        return check_other_flags(
            checkpoint.flags, flags, where, processes=(before, now), of_timm=checkpoint.of_timm
        )


def restore(
    checkpoint: Checkpoint,
    task: TrainingTask,
    optimizer: torch.optim.Optimizer | None,
    scaler: NativeScaler | None,
    scheduler: Scheduler | None,
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
    states = checkpoint.states
    with fitting(checkpoint.path):
        # torch would round whole numbers into the weights without a word
        kinds = kinds_of(states["state_dict"])
        check_kinds(unwrap_model(task.get_eval_model()), kinds, str(checkpoint.path), "--resume")
        # student, loss and average; an average that was not kept until now begins with the weights, as timm's does
        task.load_checkpoint_state(states["state_dict"], states.get("task_state"))
        if task.has_ema():
            average = states.get("state_dict_ema", states["state_dict"])
            task.load_checkpoint_state(average, states.get("task_state_ema"), ema=True)
        if optimizer is not None:
            optimizer.load_state_dict(states["optimizer"])
        if scaler is not None and scaler.state_dict_key in states:
            scaler.load_state_dict(states[scaler.state_dict_key])

        # a schedule of plateaus has counters, all others follow from the position
        if isinstance(scheduler, PlateauLRScheduler) and checkpoint.plateau:
            counters = dict(checkpoint.plateau)
            scheduler.restore_lr = counters.pop("restore_lr")
            scheduler.lr_scheduler.load_state_dict(counters)

        # the checkpoint keeps its own; the run counts on from here, on its device
        saved = checkpoint.position
        position = replace(saved, meter=TermMeter(), changes=list(saved.changes))
        position.meter.load_state_dict(saved.meter.state_dict(), task.device)
        return position


def cut_into_parts(
    checkpoint: Checkpoint, task: TrainingTask, optimizer: torch.optim.Optimizer | None
) -> Checkpoint:
    """Return a checkpoint with the parts that this rank has of its tensors, for `restore`.

    Args:
        checkpoint: as it was read, with whole tensors.
        task: sharded already.
        optimizer: of the task, or None to leave its state whole.

    Raises:
        UserError: the checkpoint does not fit.
    """

    def part_here(whole: object, like: object) -> object:
        # every rank has read the file, so that nothing is sent
        if isinstance(whole, Tensor) and isinstance(like, DTensor) and whole.shape == like.shape:
            return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
        return whole

    states = dict(checkpoint.states)
    with fitting(checkpoint.path):
        # weights, their average and what a loss remembers
        sharded = {**task.get_checkpoint_state(), **task.get_checkpoint_state(ema=True)}
        for section in states.keys() & sharded.keys():
            like = sharded[section]
            states[section] = {
                name: part_here(whole, like.get(name)) for name, whole in states[section].items()
            }
        # of the optimizer what is as large as its parameter
        if optimizer is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            saved = states["optimizer"]
            state = {
                index: {key: part_here(value, parameters[index]) for key, value in values.items()}
                for index, values in saved["state"].items()
            }
            states["optimizer"] = {**saved, "state": state}
    return replace(checkpoint, states=states)


def gather_rank_states(
    task: TrainingTask, position: Position
) -> list[dict[str, dict[str, Tensor]]]:
    """Return the buffers of the student and its average, and the sums of terms, on every rank. All ranks must call it.

    Inside an epoch the statistics of batch norm and the sums differ from rank to rank; a checkpoint of rank 0 alone
    could not be continued exactly.
    """
    # buffers alone: parameters are the same on all ranks
    buffers = {
        name: {k: b.cpu() for k, b in model.named_buffers()}
        for name, model in _models_of(task).items()
    }
    return gather_objects({**buffers, "meter": position.meter.state_dict()})


def restore_rank_state(
    checkpoint: Checkpoint | None, task: TrainingTask, position: Position
) -> None:
    """Put back what `gather_rank_states` returned, once DDP is made: that copies the buffers of rank 0 to all.

    Raises:
        UserError: the checkpoint has something else in its place.
    """
    states = None if checkpoint is None else checkpoint.rank_states
    if checkpoint is None or states is None or not dist.is_initialized():
        return
    with fitting(checkpoint.path):
        # of another number of processes nobody knows whose they were
        if len(states) != dist.get_world_size():
            return
        state = states[dist.get_rank()]
        for name, model in _models_of(task).items():
            model.load_state_dict(state.get(name, {}), strict=False)
        if position.batch:
            position.meter.load_state_dict(state["meter"], task.device)


def _models_of(task: TrainingTask) -> dict[str, nn.Module]:
    models = {"model": task.get_eval_model(), "ema": task.get_eval_model(ema=True)}
    return {name: unwrap_model(model) for name, model in models.items() if model is not None}
