"""Optimizer and schedule."""

import argparse
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, optimizer_kwargs
from timm.optim._optim_factory import default_registry
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.scheduler.scheduler import Scheduler
from timm.task import TrainingTask
from torch import nn

from ..errors import UserError, one_line
from ..students.tuning import matching
from .resolve import average_hint

_logger = logging.getLogger(__name__)


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
    module = task.get_trainable_module()
    take_bitsandbytes(args.opt)
    try:
        optimizer = create_optimizer_v2(module, **optimizer_kwargs(cfg=args), **args.opt_kwargs)
    except (TypeError, ValueError, IndexError, AssertionError, ImportError) as error:
        raise UserError(f"--opt {args.opt}: cannot be created: {one_line(error)}") from error
    if args.fsdp and task.device.type == "cuda":  # of sharded parameters torch would take one after the other
        for group in optimizer.param_groups:
            if "fused" in group:
                group["fused"] = True
    if args.lr_scale:
        scale_rates(optimizer, module, args.lr_scale, constant=args.sched == "none")
    return optimizer


def take_bitsandbytes(opt: str) -> None:
    """Let timm make an optimizer of bitsandbytes where there is no CUDA, which timm asks for and that package does not.

    Raises:
        UserError: the package is not there.
    """
    info = get_optimizer_info(opt.lower().removeprefix("lookahead_"))
    if not str(info.opt_class).startswith("bitsandbytes."):
        return
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError(f"--opt {opt} needs a package ({one_line(error)}): pip install bitsandbytes") from error
    own = getattr(bitsandbytes.optim, info.opt_class.rpartition(".")[2])
    default_registry._optimizers[info.name] = replace(info, opt_class=own)  # `register` would warn


def scale_rates(optimizer: torch.optim.Optimizer, module: nn.Module, scales: Sequence[str], constant: bool) -> None:
    """Part the groups of an optimizer where ``--lr-scale`` says something else of some parameters, in place.

    Args:
        optimizer: new, without state.
        module: what it trains.
        scales: texts ``PATTERN=X``; of those that fit a parameter the last one counts.
        constant: there is no schedule, which would apply ``lr_scale``.

    Raises:
        UserError: a pattern fits nothing that is trained, or X is no factor.
    """
    names = {id(p): name.removeprefix("student.") for name, p in module.named_parameters() if p.requires_grad}
    factors: dict[str, float] = {}
    for text in scales:
        pattern, _, number = text.rpartition("=")
        if not pattern or not re.fullmatch(r"\d{1,9}(\.\d*)?(e-\d{1,3})?", number):
            raise UserError(f"--lr-scale {text}: expected PATTERN=FACTOR, such as 'blocks.*=0.1'")
        factors |= dict.fromkeys(matching([*names.values()], [pattern], "--lr-scale"), float(number))
    parted: list[dict] = []
    for group in optimizer.param_groups:
        by_factor: dict[float, list] = {}
        for parameter in group["params"]:
            by_factor.setdefault(factors.get(names[id(parameter)], 1.0), []).append(parameter)
        for factor, own in by_factor.items():
            rate = {"lr": group["lr"] * factor} if constant else {"lr_scale": group.get("lr_scale", 1.0) * factor}
            parted.append({**group, "params": own, **rate})
    optimizer.param_groups[:] = parted


def create_schedule(args: argparse.Namespace, optimizer: torch.optim.Optimizer, updates_per_epoch: int) -> Schedule:
    """Create timm's learning-rate schedule."""
    try:
        scheduler, num_epochs = create_scheduler_v2(
            optimizer, **scheduler_kwargs(args, decreasing_metric=args.eval_metric == "loss"),
            updates_per_epoch=updates_per_epoch)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"--sched {args.sched}: cannot be created: {one_line(error)}") from error
    epochs = min(num_epochs, args.stop_epoch or num_epochs)
    if hint := average_hint(args, epochs * updates_per_epoch):
        _logger.warning(f"WARNING: {hint}")
    return Schedule(scheduler, num_epochs, updates_per_epoch)
