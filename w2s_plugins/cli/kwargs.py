"""The arguments of the losses: which there are, and what they take. Needs no torch: they stand in source files."""

import ast
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..errors import UserError, nearest

LOSSES = Path(__file__).parents[1] / "losses"
Parameters = Mapping[str, inspect.Parameter]
STAGES = ("student_stages", "teacher_stages")  # feature levels: of every loss on features, of a sum as a whole


@dataclass(frozen=True)
class Bounds:
    """Range of a hyper-parameter, checked when the loss is created: ``Annotated[float, Bounds("> 0", ...)]``."""

    text: str
    allows: Callable[[float], bool]


Positive = Annotated[float, Bounds("> 0", lambda x: x > 0)]
NonNegative = Annotated[float, Bounds(">= 0", lambda x: x >= 0)]
Share = Annotated[float, Bounds("in [0, 1]", lambda x: 0 <= x <= 1)]
ProperShare = Annotated[float, Bounds("in (0, 1)", lambda x: 0 < x < 1)]
PositiveShare = Annotated[float, Bounds("in (0, 1]", lambda x: 0 < x <= 1)]
Count = Annotated[int, Bounds(">= 1", lambda x: x >= 1)]
Seed = Annotated[int, Bounds("from 0 to 2**63 - 1", lambda x: 0 <= x < 2 ** 63)]
Decay = Annotated[float, Bounds("in [0, 1)", lambda x: 0 <= x < 1)]
Order = Annotated[int, Bounds("from 0 to 50", lambda x: 0 <= x <= 50)]  # of a series whose terms vanish sooner


def hyper_parameters(factory: Callable) -> dict[str, inspect.Parameter]:
    """Return the arguments of a loss function or class that may be given, by name."""
    try:
        signature = inspect.signature(factory, eval_str=True)
    except NameError:  # an annotation that is there for the checker of types alone
        signature = inspect.signature(factory)
    return {p.name: p for p in signature.parameters.values()
            if p.kind is inspect.Parameter.KEYWORD_ONLY or p.default is not p.empty}


class SourceParameters(Mapping[str, Parameters]):
    """The hyper-parameters of each loss of this package, by its name, read from the source when they are asked for."""

    def __init__(self):
        self.nodes: dict[str, ast.stmt] = {}
        self.texts = {name: text for path in sorted(LOSSES.glob("*.py"))
                      for text in [path.read_text(encoding="utf-8")]
                      for name in re.findall(r'^@register_loss\(\s*"(\w+)"', text, re.MULTILINE)}

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.texts))

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, name: str) -> Parameters:
        if name not in self.nodes:
            for node in ast.parse(self.texts[name]).body:
                for call in getattr(node, "decorator_list", ()):
                    if isinstance(call, ast.Call) and ast.unparse(call.func) == "register_loss":
                        self.nodes[ast.literal_eval(call.args[0])] = node
        return _parameters(self.nodes[name], {**globals(), "Literal": typing.Literal})


@functools.cache
def loss_parameters() -> SourceParameters:
    """Return the hyper-parameters of the losses, as they stand in the source."""
    return SourceParameters()


def _parameters(loss: ast.stmt, known: dict[str, object]) -> dict[str, inspect.Parameter]:
    """Return the hyper-parameters of a loss: those of its function, or of its class's constructor."""
    functions = loss.body if isinstance(loss, ast.ClassDef) else [loss]
    own = next((f for f in functions if isinstance(f, ast.FunctionDef) and f.name in ("__init__", loss.name)), None)
    if own is None:
        return {}
    for parameter in (*own.args.posonlyargs, *own.args.args[:len(own.args.args) - len(own.args.defaults)]):
        parameter.annotation = None  # inputs, or self
    made: dict[str, Callable] = {}
    exec(f"def {own.name}({ast.unparse(own.args)}): pass", known, made)
    return hyper_parameters(made[own.name])


def check_loss_kwargs(name: str, kwargs: Mapping[str, object], losses: Mapping[str, Parameters]) -> None:
    """Raise a `UserError` for arguments that a loss, or a sum of several, does not take.

    Args:
        name: of the loss, or several joined by ``+``.
        kwargs: its arguments; those of a sum begin with the name of the part and a dot.
        losses: the hyper-parameters of each loss.
    """
    for key in kwargs.keys() & set(STAGES):
        if expected := mismatch(kwargs[key], list[int]):
            raise UserError(f"loss '{name}': {key}={kwargs[key]!r} is a {type(kwargs[key]).__name__}, expected "
                            f"{expected}")
    kwargs = {key: value for key, value in kwargs.items() if key not in STAGES}
    if "+" not in name:
        for key, value in kwargs.items():
            check_kwarg(name, key, value, losses[name])
        return
    names = [part.strip() for part in name.split("+")]
    if twice := next((part for part in names if names.count(part) > 1), None):
        raise UserError(f"loss '{name}' has '{twice}' twice; set {twice}.weight instead")
    known = [f"{part}.{kwarg}" for part in names for kwarg in ["weight", *losses[part]]]
    for key, value in kwargs.items():
        if key not in known:
            raise UserError(
                f"loss '{name}' has no kwarg '{key}'{nearest(key, known)}; it takes: {', '.join(known)}")
        part, _, kwarg = key.partition(".")
        if kwarg != "weight":
            check_kwarg(part, kwarg, value, losses[part])
        elif mismatch(value, float):
            raise UserError(f"loss '{name}': {part}.weight={value!r} is a {type(value).__name__}, expected float")


def check_kwarg(loss: str, name: str, value: object, known: Parameters) -> None:
    """Raise a `UserError` unless a loss with the hyper-parameters ``known`` takes one of this name and value."""
    if name not in known:
        raise UserError(f"loss '{loss}' has no kwarg '{name}'{nearest(name, known)}; it takes: "
                        f"{', '.join(known) or 'none'}")
    annotation = known[name].annotation
    unchecked = annotation is inspect.Parameter.empty or isinstance(annotation, str)
    if expected := None if unchecked else mismatch(value, annotation):
        raise UserError(f"loss '{loss}': {name}={value!r} is a {type(value).__name__}, expected {expected}")


def without_bounds(annotation: object) -> object:
    """Return the type of a number, whatever its range."""
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is Annotated else annotation


def mismatch(value: object, annotation: object) -> str | None:
    """Return what ``annotation`` asks for when ``value`` is something else, None when it fits."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is object:
        return None
    if origin is Annotated:
        return mismatch(value, args[0]) or (None if args[1].allows(value) else f"a number {args[1].text}")
    if origin is typing.Literal:
        return None if value in args else f"one of {', '.join(map(str, args))}{nearest(str(value), args)}"
    if origin in (typing.Union, types.UnionType):
        options = [mismatch(value, option) for option in args]
        return None if None in options else " or ".join(dict.fromkeys(options))
    if origin in (list, tuple):
        wrong = [text for item in value if (text := mismatch(item, args[0]))] if isinstance(value, origin) else []
        return None if isinstance(value, origin) and value and not wrong else f"a {origin.__name__} of {_text(args[0])}"
    if annotation is float:
        fits = isinstance(value, (float, int)) and not isinstance(value, bool)
    elif annotation is int:
        fits = isinstance(value, int) and not isinstance(value, bool)
    else:
        fits = isinstance(value, origin or annotation)
    return None if fits else _text(annotation)


def _text(annotation: object) -> str:
    if typing.get_origin(annotation) is Annotated:
        return f"numbers {typing.get_args(annotation)[1].text}"
    return "None" if annotation is types.NoneType else getattr(annotation, "__name__", str(annotation))
