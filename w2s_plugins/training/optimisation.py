"""Optimizer and schedule."""

import argparse
from typing import NamedTuple

import torch
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.scheduler.scheduler import Scheduler
from timm.task import TrainingTask

from ..errors import UserError, one_line


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


def create_optimizer(args: argparse.Namespace, task: TrainingTask) -> torch.optim.Optimizer:
    """Create timm's optimizer of everything in the task that is trained."""
    try:
        optimizer = create_optimizer_v2(
            task.get_trainable_module(), **optimizer_kwargs(cfg=args), **args.opt_kwargs)
    except (TypeError, ValueError, IndexError, AssertionError, ImportError) as error:
        raise UserError(f"--opt {args.opt}: cannot be created: {one_line(error)}") from error
    if args.fsdp and task.device.type == "cuda":  # of sharded parameters torch would take one after the other
        for group in optimizer.param_groups:
            if "fused" in group:
                group["fused"] = True
    return optimizer


def create_schedule(args: argparse.Namespace, optimizer: torch.optim.Optimizer, updates_per_epoch: int) -> Schedule:
    """Create timm's learning-rate schedule."""
    try:
        scheduler, num_epochs = create_scheduler_v2(
            optimizer, **scheduler_kwargs(args, decreasing_metric=args.eval_metric == "loss"),
            updates_per_epoch=updates_per_epoch)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"--sched {args.sched}: cannot be created: {one_line(error)}") from error
    return Schedule(scheduler, num_epochs, updates_per_epoch)
