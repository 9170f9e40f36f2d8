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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..build.resolve_probe import grid
from ..build.rules import SHARDED_OPTIMIZERS
from ..build.student import Student
from ..cli.declare import Settings
from ..engine.evaluation import Evaluation
from ..engine.heads import HeadsTask, Outcome, Outcomes
from ..engine.step import seed_step
from ..engine.task import WeakToStrongTask
from ..errors import UserError
from ..labels.splits import Data
from ..metrics.sample_weights import WeightMeter
from ..monitor import Console
from ..run.position import TermMeter
from ..students.probe import Encoder, identify
from ..tokens import scrub
from .logs import log_update
from .run import Run

TEACHER = "teacher", "teacher_checkpoint", "teacher_kwargs", "teacher_img_size"
# flags in which runs of one lockstep may differ
APART = "loss", "loss_kwargs", "kd_temperature", *TEACHER, "ceiling_acc", "seed", "slice_seed", "experiment"


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


class Passes:
    """What passes over test sets have given in one process: the inputs of the heads of a frozen student, and answers of
    teachers. The next head on that student is given these, and the next run with that teacher its answers.
    """

    def __init__(self) -> None:
        self.seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.answers: dict[str, list[Tensor]] = {}

    def measure(
            self,
            run: Run,
            model: torch.nn.Module,
            name: str,
            images: Callable[[], Iterable],
            answers: Callable[[], Callable[[Tensor], Tensor]] | None,
            evaluated: Callable[..., Evaluation],
    ) -> Evaluation:
        """Evaluate the student of a linear probe and its teacher on a test set; see `evaluate_test_sets`."""
        head, inputs, labels, said = model.get_classifier(), [], [], []
        trained, flags = {*map(id, head.parameters())}, (alike_flags(run.args), run.args.slice_seed)
        frozen = [t.data_ptr() for t in (*model.parameters(), *model.buffers()) if id(t) not in trained]
        of_student = f"{name} {frozen} {flags}"
        of_teacher = f"{name} {[getattr(run.args, flag) for flag in TEACHER]} {flags}"

        def passing() -> Iterator[tuple[Tensor, Tensor]]:
            for batch, label in images():
                labels.append(label)
                yield batch, label

        def listening() -> Callable[[Tensor], Tensor]:
            answer = answers()

            def listen(batch: Tensor) -> Tensor:
                said.append(answer(batch))
                return said[-1]
            return listen

        known = iter(self.answers.get(of_teacher, ()))
        teacher = answers and (listening() if of_teacher not in self.answers else lambda _: next(known))
        if of_student in self.seen:
            found = evaluated(head, self.seen[of_student], teacher=teacher)
        else:
            listener = head.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
            try:
                found = evaluated(model, passing(), teacher=teacher)
            finally:
                listener.remove()
            self.seen[of_student] = [*zip(inputs, labels)]
        if said:
            self.answers[of_teacher] = said
        return found


class Shared:
    """What runs of one process have once: what is not trained of their students, how that is run, what an export of one
    is compared with, and passes over test sets.
    """

    def __init__(self) -> None:
        self.students: dict[str, tuple[Student, torch.Tensor, str]] = {}
        self.first: dict[str, torch.nn.Module] = {}
        self.encoders: dict[str, dict[str, Encoder]] = {}
        self.exports: dict[str, torch.nn.Module] = {}
        self.passes = Passes()

    def student(self, args: Settings, data: Data, make: Callable[[], Student]) -> tuple[Student, dict[str, Encoder]]:
        """Return the student that ``make`` would, with a head of its own, and the encoders of what is not trained.
        Random numbers go on as behind ``make``.
        """
        if grid(args):
            return make(), {}  # its pooling changes
        key = json.dumps([alike_flags(args), args.seed, data.num_classes, data.class_names], default=str)
        if key not in self.students:
            student = make()
            identity, head = identify(student.model), {*map(id, student.model.get_classifier().parameters())}
            first = self.first.setdefault(identity, student.model)
            for own, other in zip(student.model.parameters(), first.parameters()):
                if id(own) not in head:
                    own.data = other.data
            self.students[key] = student, torch.get_rng_state(), identity
        student, random_state, identity = self.students[key]
        torch.set_rng_state(random_state)
        head = student.model.get_classifier()
        known = {id(part): part for part in student.model.children() if head not in {*part.modules()}}
        return student._replace(model=copy.deepcopy(student.model, known)), self.encoders.setdefault(identity, {})


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
        or args.save_images or args.sched == "plateau" or args.opt.lower() not in SHARDED_OPTIMIZERS
        or hasattr(run.optimizer, "sync_lookahead") or run.loaders["train"].read.manifest.views > 1
        or position.batch or position.bad_steps)
    if isinstance(task, WeakToStrongTask):
        module = task.get_trainable_module()
        alone = alone or not task.cached or task.labelled or module.extractor or module.mix
    if alone:
        return None
    others = [*(p.shape for p in trained)], type(task).__name__, len(run.loaders["train"].labels), position.epoch
    return json.dumps([alike_flags(args), others], default=str, sort_keys=True)


def alike_flags(args: Settings) -> dict[str, object]:
    """Return the flags that runs which are trained together have in common."""
    return {name: value for name, value in vars(args).items() if name not in APART}


class Lockstep:
    """The training of runs that are alike.

    Args:
        members: the runs, of one `likeness`.
    """

    def __init__(self, members: list[Member]):
        self.members = sorted(members, key=lambda member: loss_of(member.run))
        runs = [member.run for member in self.members]
        self.device = runs[0].world.device
        self.consoles = [Console(True, run.schedule.updates_per_epoch * run.stop) for run in runs]
        self.labels = torch.stack([run.loaders["train"].labels for run in runs]).to(self.device)
        samples = [run.loaders["train"].read.manifest.key for run in runs]
        said = [f"{key} {run.parts.targets and run.parts.targets.record}" for key, run in zip(samples, runs)]
        everyone = torch.arange(self.labels.shape[1])
        self.features = once(samples, lambda at: runs[at].loaders["train"].whole().to(runs[at].precision.dtype))
        self.answers = runs[0].parts.targets and once(said, lambda at: runs[at].parts.targets(everyone))
        kinds = [loss_of(run) for run in runs]
        self.places = [slice(kinds.index(kind), kinds.index(kind) + kinds.count(kind)) for kind in dict.fromkeys(kinds)]
        self.outcomes = [Outcomes([Outcome(run.task) for run in runs[place]], len(everyone)) for place in self.places]
        self.optimizer = self.stack_parameters(runs)

    def left(self) -> list[Member]:
        """Return the runs that have not failed."""
        return [member for member in self.members if not member.failed]

    def goes_on(self) -> bool:
        """True when there is something left to train."""
        return any(member.run.position.epoch < member.run.stop for member in self.left())

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
        epoch, loader = first.position.epoch, first.loaders["train"]
        batches, size = len(loader), loader.batch_size
        order = torch.stack([member.run.loaders["train"].order(epoch) for member in self.members])
        meters = [(TermMeter(), WeightMeter()) for _ in self.places]
        for number, rows in enumerate(order[:, :batches * size].split(size, dim=1)):
            update = epoch * batches + number
            for stacked, own in zip(self.optimizer.param_groups, first.optimizer.param_groups):
                stacked["lr"] = own["lr"]
            self.optimizer.zero_grad()
            results = self.step(rows, epoch, number, update / (first.schedule.num_epochs * batches), meters)
            self.leave_broken(results, update)
            self.optimizer.step()
            if number % first.args.log_interval == 0 or number + 1 == batches:
                self.log(meters, update, number)
            for member in self.left():
                member.run.position.taken += 1
                member.run.task.update_ema(step=update + 1)
                if member.run.schedule.scheduler is not None:
                    member.run.schedule.scheduler.step_update(num_updates=update + 1, metric=None)
        self.share_state()

    def step(self, rows: Tensor, epoch: int, number: int, done: float,
             meters: list[tuple[TermMeter, WeightMeter]]) -> list[dict]:
        """Compute losses and gradients of batch ``number`` of all runs, of their samples ``rows`` (R, B), and count
        them; return what comes of each loss.
        """
        inputs, said, results = self.features(rows), self.answers and self.answers(rows), []
        logits = torch.baddbmm(self.stacks["bias"].unsqueeze(1), inputs, self.stacks["weight"].mT)
        index = rows.to(self.device)
        target = self.labels.gather(1, index)
        for place, outcomes, (terms, weights) in zip(self.places, self.outcomes, meters):
            runs = [member.run for member in self.members[place]]
            for run in runs:
                run.task.progress = done
            if outcomes.undo is not None:
                outcomes.undo.keep()
            found = outcomes(
                logits[place], said if said is None else said[place], target[place], index[place],
                lambda at, runs=runs: seed_step(self.device, runs[at].args.seed, 0, epoch, number))
            results.append(found)
            terms.update(found, rows.shape[1])
            weights.update({**found, "output": logits[place]}, target[place])
        sum(found["loss"].sum() for found in results).backward()
        return results

    def leave_broken(self, results: list[dict], update: int) -> None:
        """Leave out the runs whose loss or gradient is not finite."""
        norms = [p.grad.flatten(1).norm(dim=1) for p in self.stacks.values()]
        good = torch.stack([*norms, torch.cat([found["loss"].detach() for found in results])]).sum(0).isfinite()
        for member, fine in zip(self.members, good.tolist()) if not good.all() else ():
            if not fine and not member.failed:
                with member.speaking():
                    raise UserError(f"step {update}: loss or gradient is not finite; the run goes on by itself")

    def log(self, meters: list[tuple[TermMeter, WeightMeter]], update: int, number: int) -> None:
        """Let each run have what was counted of it, and log it."""
        for place, (terms, weights) in zip(self.places, meters):
            for at, (member, console) in enumerate(zip(self.members[place], self.consoles[place])):
                position = member.run.position
                position.meter.sums = {name: value[at] for name, value in terms.sums.items()}
                position.weights.counts = {name: value[at] for name, value in weights.counts.items()}
                if not member.failed:
                    with member.speaking():
                        log_update(member.run, console, update, None, number)


def loss_of(run: Run) -> str:
    """Return what is the same for runs whose losses are computed at once."""
    return json.dumps([run.args.loss, run.args.loss_kwargs], default=str)


def once(keys: list[str], load: Callable[[int], Tensor]) -> Callable[[Tensor], Tensor]:
    """Keep what several runs read in memory, once for those with the same key.

    Args:
        keys: of each run.
        load: returns all rows (N, D) of the run with a number.

    Returns:
        What gives the rows (R, B, D) of samples (R, B).
    """
    first = list(dict.fromkeys(keys))
    whole = torch.stack([load(keys.index(key)) for key in first])
    which = torch.tensor([[first.index(key)] for key in keys], device=whole.device)
    return lambda rows: whole[which, rows.to(whole.device)]
