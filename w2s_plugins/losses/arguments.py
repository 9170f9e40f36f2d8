"""The arguments of the losses: which there are, and what they take, by the annotations of their functions."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from ..errors import UserError, nearest

Parameters = Mapping[str, inspect.Parameter]


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


def check_sum_kwargs(names: Sequence[str], kwargs: Mapping[str, object], losses: Mapping[str, Parameters]) -> None:
    """Raise a `UserError` for arguments that a sum of losses does not take.

    Args:
        names: of its parts.
        kwargs: its arguments; they begin with the name of the part and a dot.
        losses: the hyper-parameters of each part.
    """
    whole = "+".join(names)
    if twice := next((part for part in names if names.count(part) > 1), None):
        raise UserError(f"loss '{whole}' has '{twice}' twice; set {twice}.weight instead")
    known = [f"{part}.{kwarg}" for part in names for kwarg in ["weight", *losses[part]]]
    for key, value in kwargs.items():
        if key not in known:
            raise UserError(
                f"loss '{whole}' has no kwarg '{key}'{nearest(key, known)}; it takes: {', '.join(known)}")
        part, _, kwarg = key.partition(".")
        if kwarg != "weight":
            check_kwarg(part, kwarg, value, losses[part])
        elif mismatch(value, float):
            raise UserError(f"loss '{whole}': {part}.weight={value!r} is a {type(value).__name__}, expected float")


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
