"""Probes of several runs, trained in lockstep by one process: what takes time is done for all of them at once.

Each is an ordinary run with its own data, head, loss, optimizer and folder; only its training steps are taken here. The
heads are one batched product on batches of each run's own, losses that are the same are computed for all their runs at
once where they have neither parameters nor memory, and features that runs share are in memory once.
"""

import json
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..monitor import Console
from ..train.heads import Outcome
from ..train.task import WeakAnswer, WeakToStrongTask
from .logs import log_update
from .run import Run


def fits(run: Run) -> tuple | None:
    """Return what runs that are trained together have in common; None for one that trains alone."""
    args, position = run.args, run.position
    alone = (not args.linear_probe or run.world.distributed or run.precision.scaler is not None or position.batch
             or args.grad_accum_steps > 1 or args.amp or args.recovery_interval or args.detect_anomaly
             or run.loaders["train"].read.manifest.views > 1 or len(run.loaders["train"].candidates) > 1
             or hasattr(run.task, "tasks") or position.bad_steps)
    loader = run.loaders["train"]
    shape = tuple(run.task.get_eval_model().student.get_classifier().weight.shape)
    return None if alone else (shape, loader.batch_size, len(loader), run.schedule.num_epochs, position.epoch, run.stop)


class Together:
    """The training steps of runs that fit.

    Args:
        runs: of one `fits`.
    """

    def __init__(self, runs: list[Run]):
        self.runs, device = runs, runs[0].world.device
        self.heads = [run.task.get_eval_model().student.get_classifier() for run in runs]
        known: dict[str, Tensor] = {}
        self.features, self.labels, self.answers = [], [], []
        for run in runs:
            loader = run.loaders["train"]
            key = loader.read.manifest.key
            if key not in known:
                known[key] = loader.whole()
            self.features.append(known[key])
            self.labels.append(loader.labels.to(device))
            targets = run.parts.targets
            self.answers.append(targets and targets(torch.arange(len(loader.labels))))
        self.members = [Outcome(run.task) for run in runs]
        groups: dict[str, list[int]] = {}
        for number, run in enumerate(runs):
            alike = [getattr(run.args, name) for name in (
                "loss", "loss_kwargs", "task_loss", "task_loss_weight", "distill_loss_weight", "smoothing", "log_beta")]
            state = [*run.task.get_trainable_module().buffers()] if not isinstance(run.task, WeakToStrongTask) else [
                *run.task.loss.buffers(), *run.task.loss.parameters()]
            stateful = isinstance(run.task, WeakToStrongTask) and bool(state)
            groups.setdefault(json.dumps([alike, number if stateful else None], default=str), []).append(number)
        self.groups = list(groups.values())

    def train_epoch(self, consoles: list[Console]) -> list[dict[str, float]]:
        """Train for one epoch; return for each run the averages of the loss and of its terms."""
        epoch, first = self.runs[0].position.epoch, self.runs[0]
        orders, batches = [], len(first.loaders["train"])
        for run in self.runs:
            sampler = run.loaders["train"].sampler
            sampler.set_epoch(epoch, 0)
            orders.append(torch.tensor([key.index for key in sampler]))
            run.task.get_trainable_module().train()
            run.optimizer.zero_grad()
        size = first.loaders["train"].batch_size
        for number in range(batches):
            index = [order[number * size:(number + 1) * size] for order in orders]
            done = (epoch * batches + number) / (first.schedule.num_epochs * batches)
            results = self.step(index, done)
            update = epoch * batches + number
            targets = [own[rows] for own, rows in zip(self.labels, index)]
            for run, console, result, target in zip(self.runs, consoles, results, targets):
                run.optimizer.step()
                run.position.taken += 1
                run.task.update_ema(step=update + 1)
                run.optimizer.zero_grad()
                run.position.count(result, target, number)
                if number % run.args.log_interval == 0 or number + 1 == batches:
                    log_update(run, console, update, None, number)
                if run.schedule.scheduler is not None:
                    run.schedule.scheduler.step_update(num_updates=update + 1, metric=None)
        return [run.position.meter.average() for run in self.runs]

    def step(self, index: list[Tensor], done: float) -> list[dict[str, Tensor]]:
        """Compute losses and gradients of one batch of each run; return what the task of each makes of it."""
        device = self.labels[0].device
        inputs = torch.stack([own[rows] for own, rows in zip(self.features, index)])
        weight, bias = torch.stack([h.weight for h in self.heads]), torch.stack([h.bias for h in self.heads])
        logits = torch.bmm(weight, inputs.mT).mT + bias.unsqueeze(1)
        losses, results = [], [{} for _ in self.runs]
        for run in self.runs:
            run.task.progress = done
        for group in self.groups:
            member, taught = self.members[group[0]], self.answers[group[0]] is not None
            target = torch.stack([self.labels[n][index[n]] for n in group])
            said = torch.stack([self.answers[n][index[n]] for n in group]) if taught else target
            rows = torch.stack([index[n] for n in group]).to(device)

            def outcome(own: Tensor, said: Tensor, target: Tensor, rows: Tensor, member: Outcome = member,
                        taught: bool = taught) -> dict:
                return member(own, WeakAnswer(said) if taught else None, target, rows)

            if len(group) > 1:
                found = torch.vmap(outcome)(logits[group], said, target, rows)
                own = [tree_map(lambda value, place=place: value[place], found) for place in range(len(group))]
            else:
                own = [outcome(logits[group[0]], said[0], target[0], rows[0])]
            for number, result in zip(group, own):
                results[number] = {**result, "output": logits[number].detach()}
                losses.append(result["loss"])
        torch.stack(losses).sum().backward()
        return results


def group(runs: Iterable[Run]) -> list[list[Run]]:
    """Return the runs that are trained together."""
    found: dict[object, list[Run]] = {}
    for run in runs:
        found.setdefault(fits(run) or id(run), []).append(run)
    return list(found.values())
