"""Probes of several runs, trained in lockstep by one process: what takes time is done for all of them at once.

Each is an ordinary run with its own data, head, loss, optimizer and folder; only its training steps are taken here. The
heads are one batched product on batches of each run's own, losses that are the same are computed for all their runs at
once where they have neither parameters nor memory, and features that runs share are in memory once.
"""

import copy
import json
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..build.resolve import SHARDED_OPTIMIZERS
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
    optimizer = json.dumps([{**group, "params": [p.shape for p in group["params"]]}
                            for group in run.optimizer.param_groups], default=str)
    alone = alone or args.opt.lower() not in SHARDED_OPTIMIZERS or args.clip_grad is not None
    return None if alone else (shape, loader.batch_size, len(loader), run.schedule.num_epochs, position.epoch, run.stop,
                               args.opt, str(args.sched), args.epochs, args.log_interval, optimizer)


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
        self.optimizer = self.stack_parameters()

    def stack_parameters(self) -> torch.optim.Optimizer:
        """Let the parameters of all heads, and what the optimizers remember of them, be views of stacked ones; return
        the optimizer of these. It is elementwise, so that its step is that of each run's own.
        """
        whole = copy.deepcopy(self.runs[0].optimizer)
        self.stacks = {}
        for place, group in enumerate(whole.param_groups):
            for number, _ in enumerate(group["params"]):
                own = [run.optimizer.param_groups[place]["params"][number] for run in self.runs]
                stack = torch.nn.Parameter(torch.stack([p.detach() for p in own]))
                for parameter, view in zip(own, stack.detach()):
                    parameter.data = view
                group["params"][number] = stack
                name = "weight" if own[0] is self.heads[0].weight else "bias"
                self.stacks[name] = stack
                remembered = [run.optimizer.state.get(p, {}) for run, p in zip(self.runs, own)]
                whole.state[stack] = {
                    key: torch.stack([m[key] for m in remembered]) if value.ndim else value.clone()
                    for key, value in remembered[0].items()}
        whole.state = type(whole.state)(whole.state.default_factory, {
            p: s for p, s in whole.state.items() if any(p is q for q in self.stacks.values()) and s})
        return whole

    def share_state(self) -> None:
        """Give each run's optimizer its part of what the stacked one remembers."""
        for place, group in enumerate(self.optimizer.param_groups):
            for number, stack in enumerate(group["params"]):
                for at, run in enumerate(self.runs):
                    own = run.optimizer.param_groups[place]["params"][number]
                    run.optimizer.state[own] = {
                        key: value[at] if value.ndim else value.clone()
                        for key, value in self.optimizer.state[stack].items()}

    def train_epoch(self, consoles: list[Console]) -> list[dict[str, float]]:
        """Train for one epoch; return for each run the averages of the loss and of its terms."""
        epoch, first = self.runs[0].position.epoch, self.runs[0]
        orders, batches = [], len(first.loaders["train"])
        self.sums: list[dict[str, Tensor]] = [{} for _ in self.groups]
        for run in self.runs:
            sampler = run.loaders["train"].sampler
            sampler.set_epoch(epoch, 0)
            orders.append(torch.tensor([key.index for key in sampler]))
            run.task.get_trainable_module().train()
        size = first.loaders["train"].batch_size
        for number in range(batches):
            index = [order[number * size:(number + 1) * size] for order in orders]
            done = (epoch * batches + number) / (first.schedule.num_epochs * batches)
            for group, own in zip(self.optimizer.param_groups, first.optimizer.param_groups):
                group["lr"] = own["lr"]
            self.optimizer.zero_grad()
            found = self.step(index, done)
            self.optimizer.step()
            update = epoch * batches + number
            logged = number % first.args.log_interval == 0 or number + 1 == batches
            for at, (group, result) in enumerate(zip(self.groups, found)):
                self.count(at, result, size)
                for place, n in enumerate(group):
                    run = self.runs[n]
                    if "sample_weights" in result:
                        run.position.weights.update(
                            tree_map(lambda value, place=place: value[place], result), self.labels[n][index[n]])
                    if logged:
                        run.position.meter.sums = {name: sums[place] for name, sums in self.sums[at].items()}
            for run, console in zip(self.runs, consoles):
                run.position.taken, run.position.batch = run.position.taken + 1, number + 1
                run.task.update_ema(step=update + 1)
                if logged:
                    log_update(run, console, update, None, number)
                if run.schedule.scheduler is not None:
                    run.schedule.scheduler.step_update(num_updates=update + 1, metric=None)
        self.share_state()
        return [run.position.meter.average() for run in self.runs]

    def count(self, at: int, result: dict, size: int) -> None:
        """Add up the terms of the runs of a group, as `TermMeter` does of one."""
        terms = {k: v.detach() for k, v in result.items() if isinstance(v, Tensor) and v.ndim == 1}
        weight = terms["loss"].isfinite().double() * size
        terms["count"] = torch.ones_like(terms["loss"])
        for name, value in terms.items():
            value = value.double().nan_to_num(0.0, 0.0, 0.0) * weight
            self.sums[at][name] = self.sums[at][name] + value if name in self.sums[at] else value

    def step(self, index: list[Tensor], done: float) -> list[dict]:
        """Compute losses and gradients of one batch of each run; return what comes of each group, stacked."""
        device = self.labels[0].device
        inputs = torch.stack([own[rows] for own, rows in zip(self.features, index)])
        logits = torch.bmm(self.stacks["weight"], inputs.mT).mT + self.stacks["bias"].unsqueeze(1)
        results = []
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
            else:
                found = tree_map(lambda value: value.unsqueeze(0), outcome(
                    logits[group[0]], said[0], target[0], rows[0]))
            results.append({**found, "output": logits[group].detach()})
        sum(found["loss"].sum() for found in results).backward()
        return results


def group(runs: Iterable[Run]) -> list[list[Run]]:
    """Return the runs that are trained together."""
    found: dict[object, list[Run]] = {}
    for run in runs:
        found.setdefault(fits(run) or id(run), []).append(run)
    return list(found.values())
