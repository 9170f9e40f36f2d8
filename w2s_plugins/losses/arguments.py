"""The arguments of the losses: which there are, and what they take, by the annotations of their functions."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from ..errors import UserError, nearest, one_line


# The range stands in the signature of a loss, where its author and its reader look, and `--list-losses`, the check of
# `--loss-kwargs` and the message about a wrong value all read it there.
@dataclass(frozen=True)
class Bounds:
    """Range of a hyper-parameter, checked when the loss is created: ``Annotated[float, Bounds("> 0", ...)]``."""

    text: str
    allows: Callable[[float], bool]


WORDS = {
    float: "a finite number",
    int: "a whole number",
    str: "a text",
    types.NoneType: "None",
    Callable: "a function",
}
LARGEST = 1e300  # of a number; NaN is not below it either
Positive = Annotated[float, Bounds("> 0", lambda x: x > 0)]
NonNegative = Annotated[float, Bounds(">= 0", lambda x: x >= 0)]
Share = Annotated[float, Bounds("in [0, 1]", lambda x: 0 <= x <= 1)]
ProperShare = Annotated[float, Bounds("in (0, 1)", lambda x: 0 < x < 1)]
PositiveShare = Annotated[float, Bounds("in (0, 1]", lambda x: 0 < x <= 1)]
Count = Annotated[int, Bounds(">= 1", lambda x: x >= 1)]
Seed = Annotated[int, Bounds("from 0 to 2**63 - 1", lambda x: 0 <= x < 2**63)]
Decay = Annotated[float, Bounds("in [0, 1)", lambda x: 0 <= x < 1)]
# of a series whose terms vanish sooner
Order = Annotated[int, Bounds("from 0 to 50", lambda x: 0 <= x <= 50)]


def hyper_parameters(factory: Callable) -> dict[str, inspect.Parameter]:
    """Return the arguments of a loss function or class that may be given, by name."""
    # annotations may be texts (from __future__ import annotations)
    parameters = inspect.signature(factory, eval_str=True).parameters.values()
    return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY or p.default is not p.empty}


def check_kwarg(loss: str, name: str, value: object, known: Mapping[str, object]) -> None:
    """Raise a `UserError` unless a loss takes an argument of this name and value; ``known`` are its annotations."""
    if name not in known:
        raise UserError(
            f"loss '{loss}' has no kwarg '{name}'{nearest(name, known)}; it takes: "
            f"{', '.join(known) or 'none'}"
        )
    check_argument(f"loss '{loss}'", name, value, known[name])


def check_argument(where: str, name: str, value: object, annotation: object) -> None:
    """Raise a `UserError` that begins with ``where`` unless a value is what an annotation asks for."""
    if not fits(value, annotation):
        text = one_line(ValueError(repr(value)), 80)
        raise UserError(f"{where}: {name}={text}: expected {in_words(annotation)}")


def fits(value: object, annotation: object) -> bool:
    """True where a value is what an annotation asks for; an argument without one takes anything."""
    origin = typing.get_origin(annotation)
    args = typing.get_args(annotation)
    if origin is Annotated:
        return fits(value, args[0]) and args[1].allows(value)
    if origin is typing.Literal:
        return isinstance(value, str) and value in args
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in args)
    if origin in (list, tuple):
        return (
            isinstance(value, origin)
            and len(value) > 0
            and all(fits(item, args[0]) for item in value)
        )
    # True is an int to Python, but no number to a person
    if annotation is int or annotation is float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and isinstance(value, (int, annotation)) and -LARGEST < value < LARGEST
    if annotation is inspect.Parameter.empty:
        return True
    kind = origin or annotation
    if not isinstance(kind, type):
        raise TypeError(
            f"an argument of a loss has the annotation {annotation!r}, which is no type"
        )
    return isinstance(value, kind)


def in_words(annotation: object) -> str:
    """Return in words what an annotation asks for."""
    origin = typing.get_origin(annotation)
    args = typing.get_args(annotation)
    if origin is Annotated:
        return f"a number {args[1].text}"
    if origin is typing.Literal:
        return f"one of {', '.join(args)}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(in_words, args))
    if origin in (list, tuple):
        return f"a {origin.__name__}, each {in_words(args[0])}"
    if annotation is types.NoneType:
        return "None"
    return WORDS.get(annotation) or (
        annotation.__name__ if isinstance(annotation, type) else str(annotation)
    )
