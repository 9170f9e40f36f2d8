"""What every distillation loss is given, and how losses are registered, created and checked.

A loss is a pure function of tensors. The simplest form is a function with keyword-only hyper-parameters::

    @register_loss("mse", summary="mean squared error of the logits")
    def mse(inputs: LossInputs, *, scale: float = 1.0) -> dict[str, Tensor]:
        return {"mse": scale * (inputs.student_logits - inputs.teacher_logits).square().mean()}

A loss with parameters or memory is a `DistillationLoss` subclass registered the same way.
"""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UserError, nearest
from ..registry import Registry


@dataclass(frozen=True)
class LossInputs:
    """The tensors a loss may use.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C), without gradient.
        target: ground truth as class indices (B,) or soft labels (B, C); None when there is none.
        student_features: feature maps (B, C, H, W), shallow to deep, then the pooled pre-logits (B, D) as the last
            entry, as `w2s_plugins.features` returns them; None when the loss did not ask for them.
        teacher_features: as above, without gradient.
        index: (B,) positions of the samples in the training set, or None.
        progress: share of training done, in [0, 1].
    """

    student_logits: Tensor
    teacher_logits: Tensor
    target: Tensor | None = None
    student_features: list[Tensor] | None = None
    teacher_features: list[Tensor] | None = None
    index: Tensor | None = None
    progress: float = 0.0

    def replace(self, **changes: object) -> "LossInputs":
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def in_float32(self) -> "LossInputs":
        """Return the same inputs with half-precision tensors raised to float32; wider ones stay as they are."""
        return self.replace(
            student_logits=_raise(self.student_logits),
            teacher_logits=_raise(self.teacher_logits.detach()),
            target=self.target if self.target is None else _raise(self.target),
            student_features=self.student_features and [_raise(f) for f in self.student_features],
            teacher_features=self.teacher_features and [_raise(f.detach()) for f in self.teacher_features],
        )


@dataclass(frozen=True)
class LossContext:
    """What is known about the run when training starts, for losses that keep parameters or memory.

    Args:
        num_classes: classes of the student.
        num_samples: size of the training set, None when it is not known (iterable datasets).
        student_feature_shapes: shape without batch dimension of each student feature: (C, H, W) for the maps,
            shallow to deep, (D,) for the pooled pre-logits, which are last.
        teacher_feature_shapes: the same for the teacher.
        device: where parameters and buffers are to live.
    """

    num_classes: int
    num_samples: int | None = None
    student_feature_shapes: list[tuple[int, ...]] | None = None
    teacher_feature_shapes: list[tuple[int, ...]] | None = None
    device: torch.device | str = "cpu"


class DistillationLoss(nn.Module):
    """Base of losses with parameters or memory. Calling it returns named scalar terms; their sum is the loss.

    Subclasses implement `compute` and say with the class attributes what they need. Terms are computed in float32
    or wider, whatever autocast is on.
    """

    needs_features = False  # student and teacher features
    needs_index = False  # the sample index, for memory by sample
    needs_target = False  # ground truth; without it the teacher's argmax is used

    def setup(self, context: LossContext) -> None:
        """Allocate parameters and buffers once shapes are known. Called before the optimizer is made."""

    def forward(self, inputs: LossInputs) -> dict[str, Tensor]:
        """Return the terms, each a scalar."""
        with torch.autocast(inputs.student_logits.device.type, enabled=False):
            return self.compute(inputs.in_float32())

    def compute(self, inputs: LossInputs) -> dict[str, Tensor]:
        """Return the terms for inputs that are float32 or wider."""
        raise NotImplementedError


class FunctionLoss(DistillationLoss):
    """A loss function with its hyper-parameters bound."""

    def __init__(
            self,
            function: Callable[..., dict[str, Tensor]],
            needs_target: bool,
            needs_features: bool,
            **kwargs: object,
    ):
        super().__init__()
        self.function = function
        self.needs_target = needs_target
        self.needs_features = needs_features
        self.kwargs = kwargs

    def compute(self, inputs: LossInputs) -> dict[str, Tensor]:
        return self.function(inputs, **self.kwargs)

    def extra_repr(self) -> str:
        return ", ".join([self.function.__name__, *(f"{k}={v}" for k, v in self.kwargs.items())])


@dataclass(frozen=True)
class LossEntry:
    """A registered loss: how to build it and what to say about it."""

    name: str
    factory: Callable[..., object]
    summary: str
    paper: str
    needs_target: bool
    needs_features: bool

    @property
    def defaults(self) -> dict[str, inspect.Parameter]:
        """The hyper-parameters, by name."""
        parameters = inspect.signature(self.factory).parameters.values()
        return {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY or p.default is not p.empty}

    def build(self, **kwargs: object) -> DistillationLoss:
        kwargs = {name: self._check(name, value) for name, value in kwargs.items()}
        if inspect.isclass(self.factory):
            return self.factory(**kwargs)
        return FunctionLoss(self.factory, self.needs_target, self.needs_features, **kwargs)

    def _check(self, name: str, value: object) -> object:
        if name not in self.defaults:
            known = ", ".join(self.defaults) or "none"
            raise UserError(
                f"loss '{self.name}' has no kwarg '{name}'{nearest(name, self.defaults)}; it takes: {known}")
        annotation = typing.get_type_hints(
            self.factory.__init__ if inspect.isclass(self.factory) else self.factory).get(name, object)
        if annotation is float and type(value) is int:
            value = float(value)
        if not _is_instance(value, annotation):
            expected = getattr(annotation, "__name__", str(annotation))
            raise UserError(f"loss '{self.name}': {name}={value!r} is a {type(value).__name__}, expected {expected}")
        return value


LOSSES: Registry[LossEntry] = Registry("loss")


def register_loss(
        name: str,
        *,
        summary: str = "",
        paper: str = "",
        needs_target: bool = False,
        needs_features: bool = False,
) -> Callable[[Callable], Callable]:
    """Register a loss function, or a `DistillationLoss` class, under ``name``.

    Args:
        name: what ``--loss`` and `create_loss` take.
        summary: one line for ``--list-losses``.
        paper: short reference with its arXiv id.
        needs_target: the loss is defined on ground truth; the teacher's argmax stands in when there is none.
        needs_features: a function that uses features; a class says so with its attribute.
    """
    def decorate(factory: Callable) -> Callable:
        LOSSES.register(name, LossEntry(name, factory, summary, paper, needs_target, needs_features))
        return factory
    return decorate


def create_loss(name: str, **kwargs: object) -> DistillationLoss:
    """Create a registered loss.

    Args:
        name: a registered name.
        **kwargs: its hyper-parameters, checked against the signature.

    Raises:
        UserError: unknown loss or kwarg, or a value of the wrong type; the message has the nearest names.
    """
    return LOSSES.get(name).build(**kwargs)


def list_losses() -> list[str]:
    """Names of all registered losses, plugins included."""
    return LOSSES.names()


def describe_losses() -> str:
    """One line for each loss: name, hyper-parameters with defaults, summary, paper."""
    lines = []
    for name in list_losses():
        entry = LOSSES.get(name)
        kwargs = ", ".join(f"{p.name}={p.default}" for p in entry.defaults.values())
        lines.append(f"{name}({kwargs})\n    {entry.summary}{f' [{entry.paper}]' if entry.paper else ''}")
    return "\n".join(lines)


def _raise(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _is_instance(value: object, annotation: object) -> bool:
    if annotation is object:
        return True
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_is_instance(value, option) for option in typing.get_args(annotation))
    if annotation in (float, int) and isinstance(value, bool):
        return False
    if annotation is float and isinstance(value, int):
        return True
    return isinstance(value, origin or annotation)
