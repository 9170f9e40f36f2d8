"""Optimizer and schedule."""

from argparse import Namespace
from typing import Any, NamedTuple

import torch
from timm.optim import (
    create_optimizer_v2,  # pyright: ignore[reportPrivateImportUsage]  # as documented
    optimizer_kwargs,  # pyright: ignore[reportPrivateImportUsage]  # as documented
)
from timm.scheduler.scheduler import Scheduler
from timm.scheduler.scheduler_factory import create_scheduler_v2, scheduler_kwargs
from timm.task import TrainingTask

from ..errors import UserError, one_line
from ..settings.concerns import OptimSettings
from .task import trained_module


class Schedule(NamedTuple):
    """How the learning rate changes.

    Args:
        scheduler: timm's, None for a constant rate.
        num_epochs: length of the training, cool-down included.
        updates_per_epoch: updates in an epoch.
    """

    scheduler: Scheduler | None
    num_epochs: int
    updates_per_epoch: int


def create_optimizer(
    settings: OptimSettings,
    task: TrainingTask,
    sharded: bool = False,
) -> torch.optim.Optimizer:
    """Create timm's optimizer of everything in the task that is trained, which may be ``sharded`` by FSDP."""
    # timm reads the fields that it knows by their names, which are those of its flags.
    kwargs: dict[str, Any] = optimizer_kwargs(cfg=settings)
    try:
        optimizer = create_optimizer_v2(trained_module(task), **kwargs, **settings.opt_kwargs)
    except (TypeError, ValueError, IndexError, AssertionError, ImportError) as error:
        raise UserError(f"--opt {settings.opt}: cannot be created: {one_line(error)}") from error
    # Of sharded parameters torch would take one after the other, where it has a step of all at once.
    if sharded and task.device.type == "cuda":
        for group in optimizer.param_groups:
            if "fused" in group:
                group["fused"] = True
    return optimizer


def create_schedule(
    settings: OptimSettings,
    optimizer: torch.optim.Optimizer,
    updates_per_epoch: int,
    *,
    seed: int,
    metric_falls: bool = False,
) -> Schedule:
    """Create timm's learning-rate schedule.

    Args:
        settings: its shape and length.
        optimizer: has the rates.
        updates_per_epoch: updates in an epoch.
        seed: of noise on the rate.
        metric_falls: a lower metric is better, for ``plateau``.
    """
    # timm reads the seed of the noise beside the rest
    with_seed = Namespace(**vars(settings), seed=seed)
    kwargs: dict[str, Any] = scheduler_kwargs(with_seed, decreasing_metric=metric_falls)
    try:
        scheduler, num_epochs = create_scheduler_v2(
            optimizer, **kwargs, updates_per_epoch=updates_per_epoch
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(
            f"--sched {settings.sched}: cannot be created: {one_line(error)}"
        ) from error
    return Schedule(scheduler, num_epochs, updates_per_epoch)
