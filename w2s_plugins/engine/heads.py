"""Linear heads that are trained side by side on the same batches: one product gives the logits of all of them.

Each head has an ordinary task of its own, with its own copy of the loss, of its parameters and of its memory, and its
own groups in the optimizer; so each is what a run of its own would make of it, but for rounding. A loss without
parameters and memory is computed for all heads at once, others head by head. A head whose gradient is not finite skips
that step alone.
"""

import copy
import itertools
import logging
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

from ..losses.undo import Undo
from ..students.probe import Probe
from .step import BufferUndo
from .task import AverageOfTrained, WeakAnswer, WeakToStrongTask

_logger = logging.getLogger(__name__)


def product(features: Tensor, heads: Iterable[nn.Linear], probe: Probe) -> Tensor:
    """Return the logits (G, B, C) of G heads for features (B, D), of which those of each ``pool`` see their own."""
    logits = []
    for pool, group in itertools.groupby(heads, key=lambda head: head.pool):
        alike = [*group]
        weight, bias = torch.cat([head.weight for head in alike]), torch.cat([head.bias for head in alike])
        seen = probe.seen(features, pool)
        logits.append(F.linear(seen, weight, bias).unflatten(1, (len(alike), -1)).transpose(0, 1))
    return torch.cat(logits) if len(logits) > 1 else logits[0]


class Outcome(nn.Module):
    """What the task of a head makes of the head's logits; with the task's parameters and the memory of its loss.

    Args:
        task: of the head.
    """

    def __init__(self, task: TrainingTask):
        super().__init__()
        vars(self)["task"] = task  # not a second registration of its parameters
        self.module = task.get_trainable_module()

    def forward(self, logits: Tensor, said: Tensor | None, target: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Return ``loss`` and its terms, scalars; see `Outcomes`."""
        task = self.task
        if not isinstance(task, WeakToStrongTask):
            return {"loss": task.criterion(logits, target)}
        strong = self.module.compare(
            logits, None, WeakAnswer(said), target if task.task_loss_weight != 0 else None, index, task.progress)
        return {name: value for name, value in task.add_up(strong, target).items() if name != "output"}

    def beside(self) -> dict[str, nn.Module]:
        """Return what the task has beside the student, by name."""
        parts = [*self.module.named_children()] if isinstance(self.task, WeakToStrongTask) else []
        return {f"module.{name}": part for name, part in parts if name != "student"}

    def kept(self) -> list[tuple[str, nn.Module, str]]:
        """Return full name, owner and own name of each buffer in there."""
        return [(f"{name}.{own}", owner, own) for place, part in self.beside().items()
                for name, owner in part.named_modules(prefix=place) for own, _ in owner.named_buffers(recurse=False)]


class MeanOfSum(torch.autograd.Function):
    """The mean of values (G,) that are finite, with the gradient of the sum of all: each head has that of its own."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        ctx.count = len(values)
        return values.where(values.isfinite(), torch.nan).nanmean()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient.expand(ctx.count)


class NotedElsewhere(Undo):
    """Of the loss of a head, whose memory is part of a `StackedMemory`, which notes what changes."""

    def keep(self) -> None:
        pass


class StackedMemory(Undo):
    """The memory of the losses of all heads, stacked; that of a head are views of it.

    Args:
        members: one for each head, alike.
        num_samples: size of the training set: a memory of so many rows changes in those of the batch.
    """

    def __init__(self, members: Sequence[Outcome], num_samples: int):
        super().__init__()
        self.num_samples = num_samples
        self.stacks: dict[str, Tensor] = {}
        for buffers in zip(*(member.kept() for member in members)):
            name = buffers[0][0]
            self.stacks[name] = torch.stack([owner.get_buffer(own) for _, owner, own in buffers])
            for (_, owner, own), view in zip(buffers, self.stacks[name]):
                setattr(owner, own, view)
                owner.undo = NotedElsewhere()

    def note_batch(self, index: Tensor) -> None:
        """Note what the samples ``index`` (B,) of a batch, or (G, B) of batches of their own, may change."""
        for stack in self.stacks.values():
            heads = torch.arange(len(stack), device=index.device)[:, None]
            self.note(stack, (heads, index.expand(len(stack), -1)) if stack.shape[1] == self.num_samples else None)

    def put_back_head(self, number: int) -> None:
        """Put back what a head has noted: it skips the step."""
        for stack, index, before in reversed(self._noted or ()):
            stack[number][... if index is None else index[1][number]] = before[number]


class Outcomes:
    """What the tasks of heads make of the heads' logits.

    A loss without parameters is computed for all heads at once where its memory can be put back (`Undo`), unless it
    asks for the value of a tensor or draws random numbers.

    Args:
        members: one for each head, alike but for the memory of their losses.
        num_samples: size of the training set.
    """

    def __init__(self, members: Sequence[Outcome], num_samples: int):
        self.members, kept = members, members[0].kept()
        self.labelled = getattr(members[0].task, "labelled", 0)  # so many at the start of a batch are not for the loss
        trained = [p for part in members[0].beside().values() for p in part.parameters()]
        self.at_once = not trained and not (kept and dist.is_initialized()) and all(
            hasattr(owner, "undo") for _, owner, _ in kept)
        self.undo = StackedMemory(members, num_samples) if self.at_once else None

    def __call__(self, logits: Tensor, said: Tensor | None, target: Tensor, index: Tensor,
                 begin: Callable[[int], object] = lambda number: None) -> dict[str, Tensor]:
        """Return ``loss`` and its terms of each head, (G,).

        Args:
            logits: (G, B, C).
            said: (B, C) of the teacher, or None.
            target: (B,) ground truth.
            index: (B,) positions in the training set. Where it is (G, B), ``said`` and ``target`` are of each head.
            begin: called with the number of each head before it is computed by itself.
        """
        each = index.ndim == 2
        if self.undo is not None:
            self.undo.note_batch(index[..., self.labelled:])
        if self.at_once:
            place = 0 if each else None
            try:
                return torch.vmap(
                    lambda memory, *words: functional_call(self.members[0], memory, words, tie_weights=False),
                    in_dims=(0, 0, place if said is not None else None, place, place),
                )(self.undo.stacks, logits, said, target, index)
            except RuntimeError as error:
                _logger.debug(f"the loss is computed head by head: {error}")
                self.undo.put_back()
                self.at_once = False
        found = []
        for number, member in enumerate(self.members):
            begin(number)
            found.append(member(logits[number], *(
                words[number] if each and words is not None else words for words in (said, target, index))))
        return tree_map(lambda *values: torch.stack(values), *found)


class Heads(nn.Module):
    """The heads with their losses, so that DDP, optimizer and clipping see the parameters of all.

    Args:
        probe: knows what each head sees.
        tasks: one for each head.
        num_samples: size of the training set.
    """

    def __init__(self, probe: Probe, tasks: Sequence[TrainingTask], num_samples: int):
        super().__init__()
        vars(self)["probe"] = probe  # it is no part of this module
        self.register_buffer("taken", torch.zeros((), dtype=torch.long))  # number of the student's head
        self.members = nn.ModuleList(map(Outcome, tasks))
        self.outcomes = Outcomes(self.members, num_samples)
        self.undo = self.outcomes.undo

    @property
    def heads(self) -> list[nn.Linear]:
        """The heads."""
        return [member.task.get_eval_model() for member in self.members]

    def forward(self, features: Tensor, said: Tensor | None, target: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Return ``loss`` and its terms of each head, (G,), for features (B, D); see `Outcomes`."""
        return self.outcomes(product(features, self.heads, self.probe), said, target, index)


class HeadsTask(TrainingTask):
    """Trains heads side by side. The student that is evaluated and saved is the model with one of them, see `take`.

    Args:
        student: the model; its classifier is the one that was taken last. A head knows its ``pool``.
        tasks: one for each head.
        names: of the heads, for messages.
        num_samples: size of the training set.
    """

    def __init__(self, student: Probe, tasks: Sequence[TrainingTask], names: Sequence[str], num_samples: int):
        super().__init__(device=tasks[0].device, dtype=tasks[0].dtype)
        self.eval_model = student
        vars(self)["tasks"], self.names = tasks, names
        self.trainable_module = Heads(student, tasks, num_samples)
        self.broken: set[int] = set()
        self.skipping: set[int] = set()  # in this step
        self.takeable = [number for number, head in enumerate(self.heads)
                         if head.pool is None or student.candidates[head.pool].exportable]
        self.take(self.takeable[0])

    @property
    def heads(self) -> list[nn.Linear]:
        """The heads."""
        return unwrap_model(self.trainable_module).heads

    @property
    def teacher_logits(self) -> Tensor | None:
        """What the teacher has said of the last batch."""
        return getattr(self.tasks[0], "teacher_logits", None)

    def set_progress(self, progress: float) -> None:
        """Tell the losses which share of training, in [0, 1], is done."""
        for task in self.tasks:
            task.progress = progress

    def set_epoch(self, epoch: int) -> None:
        """Tell stored targets which epoch follows."""
        if isinstance(self.tasks[0], WeakToStrongTask):
            self.tasks[0].set_epoch(epoch)

    def forward(self, input: Tensor, target: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Return ``loss`` and its terms over all heads, see `MeanOfSum`."""
        first, said = self.tasks[0], None
        if isinstance(first, WeakToStrongTask):
            said = first.teacher_logits = first.ask_teacher(input, index).logits
        found = self.trainable_module(input, said, target, index.to(input.device, non_blocking=True))
        return {name: MeanOfSum.apply(values) for name, values in found.items()}

    @torch.no_grad()
    def leave_out_broken(self, buffers: BufferUndo) -> None:
        """Let heads whose gradient is not finite skip this step, unless these are all of them.

        Args:
            buffers: has noted the memory of the losses before the step.
        """
        all_of_them = unwrap_model(self.trainable_module)
        members = all_of_them.members
        parameters = [[p for p in member.parameters() if p.grad is not None] for member in members]
        norms = torch._foreach_norm([p.grad for own in parameters for p in own])
        parts = torch.stack(norms).isfinite().split([len(own) for own in parameters])
        broken = {number for number, part in enumerate(parts) if not part.all()}
        self.skipping = broken if len(broken) < len(members) else set()
        for number in self.skipping:
            for parameter in parameters[number]:
                parameter.grad = None
            buffers.put_back(members[number])
            if all_of_them.undo is not None:
                all_of_them.undo.put_back_head(number)
            if number not in self.broken:
                _logger.warning(f"head {self.names[number]}: its gradient is not finite; it skips such steps")
        self.broken |= broken

    def logits(self, features: Tensor, ema: bool = False) -> Tensor:
        """Return the logits (G, B, C) of all heads, or of their averages."""
        return product(features, self.trainable_module_ema.module if ema else self.heads, self.eval_model)

    def take(self, number: int) -> None:
        """Make one of the heads the student's classifier, and its average that of the student's average."""
        head = self.heads[number]
        unwrap_model(self.trainable_module).taken.fill_(number)
        self.eval_model.take(head, head.pool)
        if self.has_ema():
            self.eval_model_ema.take(self.trainable_module_ema.module[number], head.pool)

    def setup_ema(self, decay: float = 0.9999, use_warmup: bool = False, device: torch.device | None = None,
                  **kwargs: object) -> nn.Module:
        """Keep an average of each head, and a student with one of these."""
        self.eval_model_ema = AverageOfTrained(self.eval_model, device=device).module
        self.trainable_module_ema = AverageOfTrained(
            nn.ModuleList(self.heads), decay=decay, use_warmup=use_warmup, device=device, **kwargs)
        return self.trainable_module_ema

    def update_ema(self, step: int | None = None) -> None:
        if not self.has_ema():
            return
        averages = self.trainable_module_ema.module
        kept = {number: copy.deepcopy(averages[number].state_dict()) for number in self.skipping}
        self.trainable_module_ema.update(nn.ModuleList(self.heads), step=step)
        for number, state in kept.items():
            averages[number].load_state_dict(state)

    def prepare_distributed(self, device_ids: list | None = None, **ddp_kwargs: object) -> "HeadsTask":
        """Wrap heads and losses in DDP; the memory of losses is the same on all ranks."""
        self.trainable_module = DistributedDataParallel(
            self.trainable_module, device_ids=device_ids, **{**ddp_kwargs, "broadcast_buffers": False})
        return self

    def load_checkpoint_state(self, state_dict: dict, task_state: dict | None = None, ema: bool = False,
                              strict: bool = True) -> None:
        """Load a student, which has the head that was taken, and all heads."""
        self.load_task_state(task_state, strict, ema=ema)
        self.take(int(unwrap_model(self.trainable_module).taken))  # for its pooling: it has learned since
        super().load_checkpoint_state(state_dict, task_state, ema, strict)

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Tensor]:
        """All heads with the parameters and memory of their losses, or their averages."""
        return (self.trainable_module_ema.module if ema else unwrap_model(self.trainable_module)).state_dict()

    def load_task_state(self, state: dict | None, strict: bool = True, module: nn.Module | None = None,
                        ema: bool = False) -> None:
        (self.trainable_module_ema.module if ema else unwrap_model(self.trainable_module)).load_state_dict(
            state or {}, strict=strict)
