"""What every distillation loss is given, and how losses are registered, created and checked.

A loss is a pure function of tensors. The simplest form is a function with keyword-only hyper-parameters::

    @register_loss("mse", summary="mean squared error of the logits")
    def mse(inputs: LossInputs, *, scale: float = 1.0) -> dict[str, Tensor]:
        return {"mse": scale * (inputs.student_logits - inputs.teacher_logits).square().mean()}

A loss with parameters or memory is a `DistillationLoss` subclass registered the same way. Several losses are summed by
joining their names with ``+``, see `create_loss`.
"""

import dataclasses
import inspect
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, get_args

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..registry import Registry
from ..settings.forms import STAGES
from ..settings.values import as_number
from ..target_kind import KINDS, ONE_CLASS, SEVERAL_CLASSES, TargetKind
from .arguments import check_argument, check_kwarg, hyper_parameters

T = TypeVar("T")


@dataclass(frozen=True)
class LossInputs:
    """The tensors a loss may use.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C), without gradient. Of several classes an image NaN means that a label is unknown.
        target: ground truth as class indices (B,) or soft labels (B, C); None when there is none.
        student_features: feature maps (B, C, H, W), shallow to deep, then the pooled pre-logits (B, D) as the last
            entry, as `w2s_plugins.models.feature_extraction` returns them; None when the loss did not ask for them.
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

    def each(self, change: Callable[[Tensor], Tensor]) -> "LossInputs":
        """Return a copy with a change made to every tensor that is there."""
        changed: dict[str, object] = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                changed[name] = change(value)
            elif isinstance(value, list):
                changed[name] = [change(stage) for stage in value]
        return self.replace(**changed)

    def rows(self, keep: Tensor | slice) -> "LossInputs":
        """Return the samples that ``keep``, indices (K,) or a slice, selects."""
        return self.each(lambda tensor: tensor[keep])

    def in_float32(self) -> "LossInputs":
        """Return the same inputs with half-precision tensors raised to float32; the teacher's logits become as the
        student's, wider ones else stay as they are."""
        raised = self.each(_raise)
        # a frozen teacher learns nothing: without its graph nothing of its forward pass is kept in memory
        teacher_features = raised.teacher_features
        if teacher_features is not None:
            teacher_features = [stage.detach() for stage in teacher_features]
        return raised.replace(
            teacher_logits=raised.teacher_logits.detach().to(raised.student_logits.dtype),
            teacher_features=teacher_features,
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
    """

    num_classes: int
    num_samples: int | None = None
    student_feature_shapes: list[tuple[int, ...]] | None = None
    teacher_feature_shapes: list[tuple[int, ...]] | None = None


class DistillationLoss(nn.Module):
    """Base of losses with parameters or memory. Calling it returns named scalar terms; their sum is the loss.

    Subclasses implement `compute` and say with the class attributes what they need. Terms are computed in float32
    or wider, whatever autocast is on.
    """

    needs_features = False  # student and teacher features
    needs_index = False  # the sample index, for memory by sample
    needs_target = False  # ground truth; without it `compute` is given the teacher's argmax
    target_kinds: Collection[str] = (
        ONE_CLASS.name,
    )  # names of the kinds of labels that it can learn
    target_kind: TargetKind = ONE_CLASS  # what labels are, see `take_kind`

    name = ""  # under which it is registered; set by `create_loss`, as what follows
    # feature levels that are compared; None for the usual ones
    student_stages: Sequence[int] | None = None
    teacher_stages: Sequence[int] | None = None

    def setup(self, context: LossContext) -> None:
        """Allocate parameters and buffers once shapes are known. Called before the loss is moved to its device and the
        optimizer is made.
        """

    def take_kind(self, target_kind: TargetKind) -> None:
        """Learn labels of a kind. Raises `UserError` for one that the loss has not been registered for."""
        if target_kind.name not in self.target_kinds:
            known = [
                name for name in list_losses() if target_kind.name in LOSSES.get(name).target_kinds
            ]
            raise UserError(
                f"loss '{self.name}' cannot learn labels of {target_kind.words}; losses that can: "
                f"{', '.join(known) or 'none'}"
            )
        self.target_kind = target_kind

    def forward(self, inputs: LossInputs) -> dict[str, Tensor]:
        """Return the terms, each a scalar."""
        if self.needs_index and inputs.index is None:
            raise UserError(
                f"loss '{self.name}' keeps a memory by sample, but the batch has no sample index "
                "(LossInputs.index)"
            )
        # labels of somebody else are all there is
        if self.needs_target and inputs.target is None:
            inputs = inputs.replace(target=self.target_kind.decide(inputs.teacher_logits))
        # half precision loses the small differences that losses are about
        with torch.autocast(inputs.student_logits.device.type, enabled=False):
            return self.compute(inputs.in_float32())

    def compute(self, inputs: LossInputs) -> dict[str, Tensor]:
        """Return the terms for inputs that are float32 or wider."""
        raise NotImplementedError


LossFunction = Callable[..., dict[str, Tensor]]
LossFactory = type[DistillationLoss] | LossFunction
Factory = TypeVar("Factory", bound=LossFactory)


class FunctionLoss(DistillationLoss):
    """A loss function with its hyper-parameters bound."""

    several: LossFunction | None = None  # its form for several classes an image

    def __init__(self, function: LossFunction, **kwargs: object):
        super().__init__()
        self.function = function
        self.kwargs = kwargs
        self.bound = partial(function, **kwargs)

    def take_kind(self, target_kind: TargetKind) -> None:
        super().take_kind(target_kind)
        self.bound = partial(self.function, **self.kwargs)
        if self.several is None or target_kind.name != SEVERAL_CLASSES.name:
            return
        # what means nothing for this kind may be given with its default, which changes nothing
        takes, defaults = hyper_parameters(self.several), hyper_parameters(self.function)
        for name, value in self.kwargs.items():
            if name not in takes and value != defaults[name].default:
                raise UserError(
                    f"loss '{self.name}': {name} has no meaning for labels of {target_kind.words}; "
                    "leave it out"
                )
        kwargs = {name: value for name, value in self.kwargs.items() if name in takes}
        self.bound = partial(self.several, **kwargs)

    def compute(self, inputs: LossInputs) -> dict[str, Tensor]:
        return self.bound(inputs)


@dataclass(frozen=True)
class LossEntry:
    """A registered loss: how to build it and what to say about it."""

    name: str
    factory: LossFactory
    summary: str
    paper: str
    needs_target: bool
    needs_features: bool
    target_kinds: Collection[str]
    several: LossFunction | None

    @property
    def defaults(self) -> dict[str, inspect.Parameter]:
        """The hyper-parameters, by name."""
        return hyper_parameters(self.factory)

    def build(self, **kwargs: object) -> DistillationLoss:
        # arguments are checked by the signature of the loss
        known = {name: parameter.annotation for name, parameter in self.defaults.items()}
        kwargs = {name: as_number(value) for name, value in kwargs.items()}
        for name, value in kwargs.items():
            check_kwarg(self.name, name, value, known)
            # who types 1 for a temperature means 1.0, which the record of the run then says
            if type(value) is int and float in (known[name], *get_args(known[name])):
                kwargs[name] = float(value)
        # a class builds itself and says what it needs, a function is bound to its arguments
        if isinstance(self.factory, type):
            loss = self.factory(**kwargs)
        else:
            loss = FunctionLoss(self.factory, **kwargs)
            loss.needs_target = self.needs_target
            loss.needs_features = self.needs_features
            loss.several = self.several
        loss.name = self.name
        loss.target_kinds = self.target_kinds
        return loss


LOSSES: Registry[LossEntry] = Registry("loss")


def register_loss(
    name: str,
    *,
    summary: str = "",
    paper: str = "",
    needs_target: bool = False,
    needs_features: bool = False,
    target_kinds: Collection[str] = (ONE_CLASS.name,),
    several: LossFunction | None = None,
) -> Callable[[Factory], Factory]:
    """Register a loss function, or a `DistillationLoss` class, under ``name``.

    Args:
        name: what ``--loss`` and `create_loss` take.
        summary: one line for ``--list-losses``.
        paper: short reference with its arXiv id.
        needs_target: the loss is defined on ground truth; the teacher's argmax stands in when there is none.
        needs_features: a function that uses features; a class says so with its attribute.
        target_kinds: names of the kinds of labels (`TargetKind`) that it can learn.
        several: a function that takes the place of this one if an image has several classes. It has the same keywords,
            but for those that have no meaning then, which are refused. A class looks at its ``target_kind`` instead.
    """
    if not isinstance(name, str) or not name or "+" in name:
        raise UserError(f"loss {name!r:.60}: expected a name, without '+', which joins names")

    def decorate(factory: Factory) -> Factory:
        check_argument(f"loss '{name}'", "factory", factory, Callable)
        kinds = target_kinds if several is None else (*target_kinds, SEVERAL_CLASSES.name)
        entry = LossEntry(
            name, factory, summary, paper, needs_target, needs_features, kinds, several
        )
        LOSSES.register(name, entry)
        return factory

    return decorate


def create_loss(
    name: str,
    *,
    student_stages: Sequence[int] | None = None,
    teacher_stages: Sequence[int] | None = None,
    **kwargs: object,
) -> DistillationLoss:
    """Create a registered loss, or a sum of several.

    A sum is written ``"adaptconf+rkd"``. Its kwargs carry the name of the part they are for, and every part also takes
    a weight: ``{"adaptconf.temperature": 0.5, "rkd.weight": 0.1}``.

    Args:
        name: a registered name, or several joined by ``+``.
        student_stages: feature levels of the student, for losses on features; None for the usual ones.
        teacher_stages: those of the teacher.
        **kwargs: hyper-parameters, checked against the signature.

    Raises:
        UserError: unknown loss or kwarg, or a value of the wrong type or range; the message has the nearest names.
    """
    check_argument("w2s.create_loss", "name", name, str)
    for key, stages in zip(STAGES, (student_stages, teacher_stages)):
        check_kwarg(name, key, stages, {key: list[int] | tuple[int, ...] | None})
    # one loss, or several that are added up
    loss = _create_sum(name, kwargs) if "+" in name else LOSSES.get(name).build(**kwargs)
    # levels that nobody compares would be forgotten in silence
    if not loss.needs_features and (student_stages or teacher_stages):
        raise UserError(
            f"loss '{name}' compares no features: leave out student_stages and teacher_stages"
        )
    loss.student_stages, loss.teacher_stages = student_stages, teacher_stages
    return loss


class SumLoss(DistillationLoss):
    """Weighted sum of losses. Its terms are those of the parts, named ``part.term``.

    Args:
        parts: losses by name.
        weights: factor of each part.
    """

    def __init__(self, parts: dict[str, DistillationLoss], weights: dict[str, float]):
        super().__init__()
        self.name = "+".join(parts)
        self.losses = parts
        self.parts = nn.ModuleDict(parts)  # the same ones, for their parameters and buffers
        self.weights = weights
        self.needs_features = any(part.needs_features for part in parts.values())
        self.needs_index = any(part.needs_index for part in parts.values())
        self.needs_target = any(part.needs_target for part in parts.values())

    def setup(self, context: LossContext) -> None:
        for loss in self.losses.values():
            loss.setup(context)

    def take_kind(self, target_kind: TargetKind) -> None:
        for loss in self.losses.values():
            loss.take_kind(target_kind)

    def forward(self, inputs: LossInputs) -> dict[str, Tensor]:
        # terms are weighted before they are logged: what a log shows of them adds up to its loss
        terms: dict[str, Tensor] = {}
        for name, loss in self.losses.items():
            for term, value in loss(inputs).items():
                terms[f"{name}.{term}"] = self.weights[name] * value
        return terms


def _create_sum(name: str, kwargs: dict[str, object]) -> SumLoss:
    names = [part.strip() for part in name.split("+")]
    for part in names:
        if names.count(part) > 1:
            raise UserError(f"loss '{name}' has '{part}' twice; set {part}.weight instead")
    # each part is a registered loss
    entries = {part: LOSSES.get(part) for part in names}

    # what may be given: a weight for each part, which the sum applies, and what the part itself checks
    known: dict[str, type] = {}
    for part, entry in entries.items():
        known[f"{part}.weight"] = float
        known |= {f"{part}.{kwarg}": object for kwarg in entry.defaults if kwarg != "weight"}

    # what is given, part by part
    weights = dict.fromkeys(names, 1.0)
    kwargs_of: dict[str, dict[str, object]] = {part: {} for part in names}
    for key, value in kwargs.items():
        value = as_number(value)
        check_kwarg(name, key, value, known)
        part, _, kwarg = key.partition(".")
        if kwarg == "weight" and isinstance(value, (int, float)):
            weights[part] = value
        else:
            kwargs_of[part][kwarg] = value
    parts = {part: entry.build(**kwargs_of[part]) for part, entry in entries.items()}
    return SumLoss(parts, weights)


def list_losses() -> list[str]:
    """Names of all registered losses, plugins included."""
    return LOSSES.names()


def describe_losses() -> str:
    """Two lines for each loss: name, hyper-parameters with defaults; summary, paper, the kinds of labels that it knows
    if these are not just one class an image.
    """
    words = {kind.name: kind.words for kind in KINDS.values()}
    lines = []
    for name in list_losses():
        entry = LOSSES.get(name)
        # as one would type them
        kwargs = ", ".join(f"{p.name}={p.default}" for p in entry.defaults.values())
        paper = f" [{entry.paper}]" if entry.paper else ""
        kinds = [words.get(kind, kind) for kind in entry.target_kinds]
        known = "" if kinds == [ONE_CLASS.words] else f" ({' or '.join(kinds)})"
        lines.append(f"{name}({kwargs})\n    {entry.summary}{paper}{known}")
    return "\n".join(lines)


def ramped(progress: float, ramp: float) -> float:
    """Return the factor min(1, progress / ramp) of a linear ramp over the first ``ramp`` of training; 1 without one."""
    # a student that has learned nothing yet has no opinion to weigh against its teacher's
    return min(1.0, progress / ramp) if ramp > 0 else 1.0


def promised(value: T | None, name: str) -> T:
    """Return what a loss is given because it has said that it needs it.

    Args:
        value: a field of `LossInputs` or `LossContext`.
        name: of the field.

    Raises:
        TypeError: it is None: the loss has not said so.
    """
    if value is None:
        raise TypeError(
            f"{name} is None: a loss that uses it says so with needs_target, "
            "needs_index or needs_features"
        )
    return value


def add_up(terms: Iterable[Tensor]) -> Tensor:
    """Return the sum of one or more tensors, added from left to right."""
    # sum() would begin with the number 0, and a stacked sum adds in another order: its last bits differ
    total, *others = terms
    for term in others:
        total = total + term
    return total


def label_of(target: Tensor) -> Tensor:
    """Return class indices (B,): the target itself, or the likeliest class of soft targets (B, C)."""
    return target.argmax(dim=1) if target.ndim == 2 else target.long()


def _raise(tensor: Tensor) -> Tensor:
    # class indices stay whole numbers, and float64 stays what it is, for checks of gradients
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
