"""Learning rate, optimizer and schedule."""

import argparse
import logging

import torch
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import TrainingTask

from ..errors import UserError, one_line

_logger = logging.getLogger(__name__)


def settle_learning_rate(args: argparse.Namespace, world_size: int) -> None:
    """Scale ``--lr-base`` by the batch size of all processes when ``--lr`` is not given, by timm's rule."""
    if args.lr:
        return
    sizes = args.train_batch_sizes or [args.batch_size]
    probs = args.train_size_probs or [1.0] * len(sizes)
    average = sum(s * p for s, p in zip(sizes, probs)) / sum(probs)
    ratio = average * world_size * args.grad_accum_steps / args.lr_base_size
    if not args.lr_base_scale:
        args.lr_base_scale = "sqrt" if any(o in args.opt.lower() for o in ("ada", "lamb")) else "linear"
    args.lr = args.lr_base * (ratio ** 0.5 if args.lr_base_scale == "sqrt" else ratio)
    _logger.info(f"Learning rate {args.lr:.4g} from --lr-base {args.lr_base:g}, {args.lr_base_scale} in the batch size")


def create_optimizer(args: argparse.Namespace, task: TrainingTask) -> torch.optim.Optimizer:
    """Create timm's optimizer of everything in the task that is trained."""
    try:
        return create_optimizer_v2(task.get_trainable_module(), **optimizer_kwargs(cfg=args), **args.opt_kwargs)
    except (TypeError, ValueError, IndexError, AssertionError, ImportError) as error:
        raise UserError(f"--opt {args.opt}: cannot be created: {one_line(error)}") from error


def create_schedule(
        args: argparse.Namespace,
        optimizer: torch.optim.Optimizer,
        updates_per_epoch: int,
) -> tuple[object | None, int]:
    """Create timm's learning-rate schedule; return it, None for a constant rate, and the number of epochs."""
    try:
        return create_scheduler_v2(
            optimizer, **scheduler_kwargs(args, decreasing_metric=args.eval_metric == "loss"),
            updates_per_epoch=updates_per_epoch)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"--sched {args.sched}: cannot be created: {one_line(error)}") from error
