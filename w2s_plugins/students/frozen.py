"""The frozen beginning of a student: what it gives is computed once, and the rest of the student is trained on that.

With ``--tune last:N`` the blocks below the first trained one give the same output for the same image in every epoch, since
their batch norms are frozen too. The output of the last of them is stored as the features of a linear probe are. The
modules before it are passed over: each returns zeros of the right shape, so that whatever the model does between its
modules works as ever, and the last one returns what is stored. Nothing of a model is known for that. A pass on random images
shows in which order its modules are called, and passes with what was stored have to give, in every later module, the same
output to the last bit.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from ..distributed.world import Precision
from ..models.fingerprint import fingerprint, hash_tensors
from ..models.loading import TimmModel
from .tuning import freeze_batchnorm

_IMAGES = 2  # that a model is tried on


class _Call(NamedTuple):
    """A call of a frozen module by one that is not; ``drew`` says whether random numbers were drawn by then."""

    module: nn.Module
    output: object
    drew: bool


@dataclass
class _Rows:
    """The forward of the last frozen module: it returns the stored outputs of the batch, in their own shape."""

    shape: torch.Size
    dtype: torch.dtype
    layout: torch.memory_format
    batch: Tensor = field(default_factory=lambda: torch.empty(0))

    def take(self, rows: Tensor) -> None:
        """Note the stored outputs (B, D, 1, 1) of a batch."""
        batch = rows.flatten(1).unflatten(1, self.shape).to(self.dtype)
        self.batch = batch.contiguous(memory_format=self.layout)

    def zeros(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return zeros of this shape for each sample, which take no memory."""
        return self.batch.new_zeros(1, dtype=dtype).expand(len(self.batch), *shape)

    def __call__(self, *args: object, **kwargs: object) -> Tensor:
        return self.batch


@dataclass
class _Nothing:
    """The forward of a frozen module before the last one: nobody needs what it returns."""

    rows: _Rows
    shape: torch.Size
    dtype: torch.dtype

    def __call__(self, *args: object, **kwargs: object) -> Tensor:
        return self.rows.zeros(self.shape, self.dtype)


@dataclass
class _FromRows:
    """The forward of a student on stored outputs (B, D, 1, 1), which stand where images did."""

    student: nn.Module
    rows: _Rows
    images: torch.Size

    def __call__(self, rows: Tensor) -> Any:
        self.rows.take(rows)
        return type(self.student).forward(self.student, self.rows.zeros(self.images, rows.dtype))


class _Reached(Exception):
    """The last frozen module has returned an output."""


class FrozenPart:
    """The frozen beginning of a student, whose outputs can be stored. `student` runs as ever until `pass_over` is called.

    Args:
        student: a timm model of which a part is trained.
        calls: its frozen modules that the others call, in order, with their outputs for some images; the last one ends
            the part.
        images: these (B, C, H, W).
        precision: device, dtype, layout and autocast.
    """

    stores: torch.dtype
    fills_batches = True  # another number of images may round otherwise

    def __init__(
        self,
        student: TimmModel,
        calls: list[tuple[nn.Module, Tensor]],
        images: Tensor,
        precision: Precision,
    ):
        # What is stored of an image: the output of the last module, in its own dtype.
        self.student, self.precision = student, precision
        self.last, output = calls[-1]
        self.stores, self.width = output.dtype, output[0].numel()
        # A layout that the rest would change rounds otherwise.
        layout = torch.contiguous_format
        if output.ndim == 4 and not output.is_contiguous():
            layout = torch.channels_last
        self.rows = _Rows(output.shape[1:], output.dtype, layout)
        # The student takes what is stored, the last module returns it, and those before it have nothing to do.
        self.forwards: dict[nn.Module, Callable] = {
            student: _FromRows(student, self.rows, images.shape[1:]),
            **{m: _Nothing(self.rows, out.shape[1:], out.dtype) for m, out in calls},
            self.last: self.rows,
        }
        self.name = next(name for name, module in student.named_modules() if module is self.last)

    def identify(self, data_config: dict[str, Any], batch_size: int, name: str) -> None:
        """Note what images are made by and how many are seen at a time, and who the part is: by what its outputs are found
        again. ``name`` is timm's of the model.
        """
        # The trained weights do not change what is stored.
        trained = {n for n, p in self.student.named_parameters() if p.requires_grad}
        state = {n: t for n, t in self.student.state_dict().items() if n not in trained}
        precision = self.precision
        self.data_config = data_config
        self.fingerprint: dict[str, object] = dict(
            {**fingerprint(self.student, name), "sha256": hash_tensors(state)},
            until=self.name,
            dtype=str(precision.dtype).removeprefix("torch."),
            amp_dtype=str(precision.amp_dtype).removeprefix("torch."),
            layout=str(precision.layout).removeprefix("torch."),
            device=precision.device.type,
            batch_size=batch_size,
        )

    def adapt(self, images: Tensor) -> Tensor:
        """Return the student's images as they are."""
        return images

    def encode(self, images: Tensor) -> Tensor:
        """Return the outputs (B, D) of the last frozen module, in the precision of training."""
        # The student ends where the last frozen module has returned.
        found: list[Tensor] = []

        def end(module: nn.Module, args: object, output: Tensor) -> None:
            found.append(output)
            raise _Reached

        hook = self.last.register_forward_hook(end)
        try:
            with self.precision.autocast():
                self.student.eval()(images.contiguous(memory_format=self.precision.layout))
        except _Reached:
            pass
        finally:
            hook.remove()
        return found[0].flatten(1)

    def pass_over(self) -> None:
        """Let the student, in place, take outputs of this part (B, D, 1, 1) for images."""
        for module, forward in self.forwards.items():
            vars(module)["forward"] = forward


def run_whole(student: nn.Module) -> None:
    """Let a student run as a whole again, in place; of one that is whole nothing changes."""
    for module in student.modules():
        if isinstance(vars(module).get("forward"), (_Rows, _Nothing, _FromRows)):
            del vars(module)["forward"]


def find_frozen_part(
    student: TimmModel,
    input_size: tuple[int, int, int],
    precision: Precision,
) -> FrozenPart | None:
    """Return the frozen beginning of a student if its output is the same in every epoch, and all that the rest needs, else
    None, as with dropout in it.

    Args:
        student: a timm model of which a part is trained; only its mode may be another one afterwards.
        input_size: (C, H, W) of its images.
        precision: device, dtype, layout and autocast.
    """
    # Random images show which modules are called, in evaluations and in training.
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(_IMAGES, *input_size, generator=generator)
    images = images.to(device=precision.device, dtype=precision.dtype)
    images = images.contiguous(memory_format=precision.layout)
    watch = partial(_watch, student, precision)
    calls, later = watch(images, training=False)
    of_training, later_of_training = watch(images, training=True)
    # It ends with the last frozen module, or before those without weights that a trained block begins with.
    for count in range(len(calls), 0, -1):
        module, output, _ = calls[count - 1]
        is_fixed = (
            all(map(_is_same, calls[:count], of_training)) and not of_training[count - 1].drew
        )
        if is_fixed and _has_rows(output):
            kept = [(call.module, call.output) for call in calls[:count] if _has_rows(call.output)]
            part = FrozenPart(student, kept, images, precision)
            with torch.inference_mode():
                rows = part.encode(images)
            # The rest has to give the same on what is stored, in evaluations and in training.
            part.pass_over()
            stored = rows.clone().to(precision.dtype)[..., None, None]
            again, again_in_training = (watch(stored, training=how)[1] for how in (False, True))
            run_whole(student)
            if _are_equal([*later, *later_of_training], [*again, *again_in_training]):
                return part
        if any(True for _ in module.parameters()):
            break
    return None


@torch.no_grad()
def _watch(
    student: nn.Module, precision: Precision, images: Tensor, training: bool
) -> tuple[list[_Call], list[Tensor]]:
    """Run a student; return the calls of frozen modules, as long as no module with a trained weight was called, and the
    outputs of all modules from there on.
    """
    # A module with a trained weight of its own ends what is frozen; one is frozen if no weight below it is trained.
    trained = {m for m in student.modules() if any(p.requires_grad for p in m.parameters(False))}
    frozen = {m for m in student.modules() if not any(p.requires_grad for p in m.parameters())}
    # How often each was called, what was called before the first trained one, and what came out from there on.
    counts: Counter[nn.Module] = Counter()
    calls: list[_Call] = []
    later: list[Tensor] = []
    within, reached = 0, False

    def before(module: nn.Module, args: tuple) -> None:
        nonlocal within, reached
        counts[module] += 1
        within += module in frozen
        reached |= module in trained

    def after(module: nn.Module, args: tuple, output: object) -> None:
        nonlocal within
        within -= module in frozen
        if reached and isinstance(output, Tensor):
            later.append(output.clone())
        elif not reached and module in frozen and not within:
            kept = output.clone() if isinstance(output, Tensor) else output
            calls.append(_Call(module, kept, not _are_equal(start, _generators(precision))))

    # As in training, with generators that are put back.
    student.train(training)
    freeze_batchnorm(student)
    devices = [precision.device] if precision.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        start = _generators(precision)
        with (
            register_module_forward_pre_hook(before),
            register_module_forward_hook(after),
            precision.autocast(),
        ):
            student(images)
    # What is called again later cannot be passed over.
    calls = [call if counts[call.module] == 1 else call._replace(output=None) for call in calls]
    return calls, later


def _generators(precision: Precision) -> list[Tensor]:
    """Return the states of the generators that random layers draw from."""
    states = [torch.get_rng_state()]
    if precision.device.type == "cuda":
        states.append(torch.cuda.get_rng_state(precision.device))
    return states


def _has_rows(output: object) -> TypeGuard[Tensor]:
    """Return whether an output of a module has one row for each image."""
    return isinstance(output, Tensor) and output.shape[:1] == (_IMAGES,)


def _is_same(call: _Call, other: _Call) -> bool:
    """Return whether two calls are of one module and gave the same, if that is a tensor."""
    if call.module is not other.module:
        return False
    a, b = call.output, other.output
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return type(a) is type(b)


def _are_equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(map(torch.equal, some, others))
