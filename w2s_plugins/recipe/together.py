"""Probes of several runs, trained in lockstep by one process: what takes time is done for all of them at once.

Each is an ordinary run with its own data, head, loss, optimizer and folder; only its training steps are taken here. The
heads are one batched product on batches of each run's own, the losses of runs that have the same one are computed at
once, their memory included, and features that runs share are in memory once. A run whose loss or gradient is not finite
is left where its last checkpoint is, for a process of its own.
"""

import contextlib
import copy
import json
import sys
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils._pytree import tree_map

from ..build.resolve import SHARDED_OPTIMIZERS
from ..errors import UserError
from ..losses.undo import Undo
from ..monitor import Console
from ..students.probe import identify
from ..tokens import scrub
from ..train.engine import seed_step
from ..train.heads import HeadsTask, Outcome, StackedMemory
from ..train.task import WeakAnswer, WeakToStrongTask
from .logs import log_update
from .run import Run

APART = ("loss", "loss_kwargs", "kd_temperature", "teacher", "teacher_checkpoint", "teacher_kwargs", "teacher_img_size",
         "ceiling_acc", "seed", "slice_seed", "experiment")  # flags in which runs of one lockstep may differ


@dataclass
class Member:
    """One of the runs.

    Args:
        argv: its flags.
        log: file that its output goes to.
        run: the run, once it is prepared.
        failed: it has come to an end, and the others go on.
    """

    argv: list[str]
    log: Path
    run: Run | None = None
    failed: bool = False

    @contextlib.contextmanager
    def speaking(self) -> Iterator[None]:
        """Be a process of this run: its command line, and its log for what is printed and logged. An error is printed
        there, and ends this run alone.
        """
        sys.argv[1:] = self.argv
        with self.log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file), \
                contextlib.redirect_stderr(file):
            try:
                yield
            except Exception as error:
                known = isinstance(error, UserError)
                print(scrub(f"error: {error}" if known else "".join(traceback.format_exception(error))), flush=True)
                self.failed = True


def share_frozen(run: Run, known: dict[str, torch.nn.Module]) -> None:
    """Let students that differ in their heads alone have the weights that are not trained in memory once.

    Args:
        run: a probe.
        known: the first student of each kind.
    """
    student = run.parts.student.model
    first = known.setdefault(identify(student), student)
    for own, other in zip(student.parameters(), first.parameters()):
        if not own.requires_grad:
            own.data = other.data


def group(members: Iterable[Member]) -> list[list[Member]]:
    """Return the runs that are trained together, and those that are trained alone."""
    found: dict[object, list[Member]] = {}
    for member in members:
        found.setdefault(likeness(member.run) or id(member), []).append(member)
    return list(found.values())


def likeness(run: Run) -> str | None:
    """Return what runs that are trained together have in common; None for one that is trained alone."""
    args, task, position = run.args, run.task, run.position
    trained = [p for p in task.get_trainable_module().parameters() if p.requires_grad]
    alone = (
        not args.linear_probe or isinstance(task, HeadsTask) or len(trained) != 2 or run.world.distributed or args.amp
        or args.grad_accum_steps > 1 or args.clip_grad is not None or args.recovery_interval or args.detect_anomaly
        or args.save_images or args.opt.lower() not in SHARDED_OPTIMIZERS or hasattr(run.optimizer, "sync_lookahead")
        or run.loaders["train"].read.manifest.views > 1 or position.batch or position.bad_steps)
    if isinstance(task, WeakToStrongTask):
        module = task.get_trainable_module()
        alone = alone or not task.cached or task.labelled or module.extractor or module.mix
    if alone:
        return None
    flags = {name: value for name, value in vars(args).items() if name not in APART}
    shapes = [[*p.shape] for p in trained]
    return json.dumps([flags, shapes, len(run.loaders["train"].labels), position.epoch], default=str, sort_keys=True)


class Losses:
    """What the losses of several runs make of their logits; losses are the same but for what they remember.

    Args:
        tasks: of the runs.
        num_samples: size of the training sets.
    """

    def __init__(self, tasks: list, num_samples: int):
        self.members = [Outcome(task) for task in tasks]
        owners = [module for module in tasks[0].loss.modules() if [*module.named_buffers(recurse=False)]] if isinstance(
            tasks[0], WeakToStrongTask) else []
        self.at_once = len(tasks) > 1 and all(isinstance(getattr(owner, "undo", None), Undo) for owner in owners)
        self.memory = StackedMemory(self.members, num_samples).stacks if self.at_once and owners else {}

    def __call__(self, logits: Tensor, said: Tensor | None, target: Tensor, rows: Tensor, seeds: list[tuple]) -> dict:
        """Return ``loss`` and its terms (R,) of R runs.

        Args:
            logits: (R, B, C).
            said: (R, B, C) of the teachers, or None.
            target: (R, B).
            rows: (R, B) positions in the training sets.
            seeds: arguments of `seed_step` of each run.
        """
        if self.at_once:
            def outcome(memory: dict[str, Tensor], own: Tensor, said: Tensor | None, *rest: Tensor) -> dict:
                words = own, said if said is None else WeakAnswer(said), *rest
                first = self.members[0]
                return functional_call(first, memory, words, tie_weights=False) if memory else first(*words)

            before = {name: value.clone() for name, value in self.memory.items()} if self.memory else {}
            try:
                return torch.vmap(outcome, in_dims=(0, 0, None if said is None else 0, 0, 0))(
                    self.memory, logits, said, target, rows)
            except RuntimeError:  # it asks for a value, or draws numbers
                for name, value in before.items():
                    self.memory[name].copy_(value)
                self.at_once = False
        found = []
        for number, member in enumerate(self.members):
            seed_step(*seeds[number])
            found.append(member(logits[number], said if said is None else WeakAnswer(said[number]), target[number],
                                rows[number]))
        return tree_map(lambda *values: torch.stack(values), *found)


class Lockstep:
    """The training of runs that are alike.

    Args:
        members: the runs, of one `likeness`.
    """

    def __init__(self, members: list[Member]):
        self.members = sorted(members, key=lambda member: self.loss_of(member.run))
        runs = [member.run for member in self.members]
        self.device = runs[0].world.device
        self.consoles = [Console(True, run.schedule.updates_per_epoch * run.stop) for run in runs]
        known: dict[str, Tensor] = {}
        for run in runs:
            read = run.loaders["train"].read
            if read.manifest.key not in known:
                known[read.manifest.key] = run.loaders["train"].whole().to(run.precision.dtype)
        self.features = [known[run.loaders["train"].read.manifest.key] for run in runs]
        self.labels = [run.loaders["train"].labels.to(self.device) for run in runs]
        self.answers = [run.parts.targets and run.parts.targets(torch.arange(len(own)))
                        for run, own in zip(runs, self.labels)]
        kinds = [self.loss_of(run) for run in runs]
        self.places = [slice(kinds.index(kind), kinds.index(kind) + kinds.count(kind)) for kind in dict.fromkeys(kinds)]
        self.losses = [Losses([run.task for run in runs[place]], len(self.labels[0])) for place in self.places]
        self.optimizer = self.stack_parameters(runs)

    def left(self) -> list[Member]:
        """Return the runs that have not failed."""
        return [member for member in self.members if not member.failed]

    def goes_on(self) -> bool:
        """True when there is something left to train."""
        return any(member.run.position.epoch < member.run.stop for member in self.left())

    @staticmethod
    def loss_of(run: Run) -> str:
        """Return what is the same for runs whose losses are computed at once."""
        return json.dumps([run.args.loss, run.args.loss_kwargs, isinstance(run.task, WeakToStrongTask)], default=str)

    def stack_parameters(self, runs: list[Run]) -> torch.optim.Optimizer:
        """Let the heads be views of stacked ones, and return their optimizer. It is elementwise, so that its step is
        that of each run's own.
        """
        whole, self.stacks = copy.deepcopy(runs[0].optimizer), {}
        head = runs[0].task.get_eval_model().student.get_classifier()
        whole.state.clear()
        for place, group in enumerate(whole.param_groups):
            for number in range(len(group["params"])):
                own = [run.optimizer.param_groups[place]["params"][number] for run in runs]
                stack = torch.nn.Parameter(torch.stack([p.detach() for p in own]))
                for parameter, view in zip(own, stack.detach()):
                    parameter.data = view
                group["params"][number] = self.stacks["weight" if own[0] is head.weight else "bias"] = stack
                if remembered := [run.optimizer.state[p] for run, p in zip(runs, own) if p in run.optimizer.state]:
                    whole.state[stack] = {
                        key: torch.stack([state[key] for state in remembered]) if value.ndim else value.clone()
                        for key, value in remembered[0].items()}
        return whole

    def share_state(self) -> None:
        """Give the optimizer of each run its part of what the stacked one remembers."""
        for place, group in enumerate(self.optimizer.param_groups):
            for number, stack in enumerate(group["params"]):
                for at, member in enumerate(self.members):
                    own = member.run.optimizer.param_groups[place]["params"][number]
                    member.run.optimizer.state[own] = {
                        key: value[at] if value.ndim else value.clone()
                        for key, value in self.optimizer.state.get(stack, {}).items()}

    def train_epoch(self) -> None:
        """Train for one epoch."""
        first = self.left()[0].run
        epoch, orders = first.position.epoch, []
        size, batches = first.loaders["train"].batch_size, len(first.loaders["train"])
        self.sums: list[dict[str, Tensor]] = [{} for _ in self.places]
        for member in self.members:
            sampler = member.run.loaders["train"].sampler
            sampler.set_epoch(epoch, 0)
            orders.append(torch.tensor([key.index for key in sampler]))
        order = torch.stack(orders)
        for number in range(batches):
            update, rows = epoch * batches + number, order[:, number * size:(number + 1) * size]
            for stacked, own in zip(self.optimizer.param_groups, first.optimizer.param_groups):
                stacked["lr"] = own["lr"]
            self.optimizer.zero_grad()
            found = self.step(rows, epoch, number, update / (first.schedule.num_epochs * batches))
            self.leave_broken(found, update)
            self.optimizer.step()
            logged = number % first.args.log_interval == 0 or number + 1 == batches
            for sums, place, result in zip(self.sums, self.places, found):
                count(sums, result, size)
                for at, member in enumerate(self.members[place]):
                    self.after_update(member, update, tree_map(lambda value, at=at: value[at], result) if (
                        "sample_weights" in result) else {}, self.labels[place.start + at][rows[place.start + at]])
                    if logged and not member.failed:
                        member.run.position.meter.sums = {name: value[at] for name, value in sums.items()}
                        with member.speaking():
                            log_update(member.run, self.consoles[place.start + at], update, None, number)
        self.share_state()

    def after_update(self, member: Member, update: int, result: dict, target: Tensor) -> None:
        """Note an update of a run."""
        run = member.run
        run.position.taken, run.position.batch = run.position.taken + 1, run.position.batch + 1
        run.position.weights.update(result, target)
        run.task.update_ema(step=update + 1)
        if run.schedule.scheduler is not None:
            run.schedule.scheduler.step_update(num_updates=update + 1, metric=None)

    def leave_broken(self, found: list[dict], update: int) -> None:
        """Leave out the runs whose loss or gradient is not finite."""
        norms = [p.grad.flatten(1).norm(dim=1) for p in self.stacks.values()]
        good = torch.stack([*norms, torch.cat([result["loss"].detach() for result in found])]).sum(0).isfinite()
        for member, fine in zip(self.members, good.tolist()) if not good.all() else ():
            if not fine and not member.failed:
                with member.speaking():
                    raise UserError(f"step {update}: loss or gradient is not finite; the run goes on by itself")

    def step(self, rows: Tensor, epoch: int, number: int, done: float) -> list[dict]:
        """Compute losses and gradients of batch ``number`` of all runs, of their samples ``rows`` (R, B); return what
        comes of each loss.
        """
        inputs = torch.stack([own[index] for own, index in zip(self.features, rows)])
        logits = torch.baddbmm(self.stacks["bias"].unsqueeze(1), inputs, self.stacks["weight"].mT)
        results = []
        for place, losses in zip(self.places, self.losses):
            members, index = self.members[place], rows[place]
            target = torch.stack([own[which] for own, which in zip(self.labels[place], index)])
            said = None if self.answers[place.start] is None else torch.stack(
                [own[which] for own, which in zip(self.answers[place], index)])
            for member in members:
                member.run.task.progress = done
            seeds = [(self.device, member.run.args.seed, 0, epoch, number) for member in members]
            found = losses(logits[place], said, target, index.to(self.device), seeds)
            results.append({**found, "output": logits[place].detach()})
        sum(found["loss"].sum() for found in results).backward()
        return results


def count(sums: dict[str, Tensor], result: dict, size: int) -> None:
    """Add up the terms (R,) of several runs, as `TermMeter` does those of one."""
    terms = {name: value.detach() for name, value in result.items() if isinstance(value, Tensor) and value.ndim == 1}
    weight = terms["loss"].isfinite().double() * size
    terms["count"] = torch.ones_like(terms["loss"])
    for name, value in terms.items():
        value = value.double().nan_to_num(0.0, 0.0, 0.0) * weight
        sums[name] = sums[name] + value if name in sums else value
