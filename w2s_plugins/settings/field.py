"""How a flag is declared: as a field of a frozen dataclass, its concern.

    hflip: Share = flag(0.5, "horizontal flips", neutral=0.0)

The annotation is the type and the range, the default is the default. The parser, ``--help``, the check of values from
YAML and Python, the keywords of the API and what ``--resume`` compares are all made from it.
"""

import argparse
import ast
import copy
import enum
import functools
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from enum import auto
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from ..errors import UserError

if TYPE_CHECKING:
    from .terms import Term

AConcern = TypeVar("AConcern", bound="Concern")
HIDDEN = argparse.SUPPRESS  # a help that is not shown


class Role(enum.Flag):
    """What a flag is about. Lists of flags are made from this: what resuming may change, what a stage takes over."""

    WHERE = auto()  # where things lie and work is done, and which of its faults are tolerated
    REPORT = auto()  # what is shown, kept and published of a run
    PROTOCOL = auto()  # of several runs together
    ALIAS = auto()  # comes down to other flags
    RESUMING = auto()  # how a run goes on, and how far it goes
    DATA = auto()  # which samples there are, and how they are read
    SLICE = auto()  # which part of them
    NOISE = auto()  # other labels in place of the true ones
    TEACHER = auto()  # who labels, and what the student takes from it: no meaning without a teacher
    STUDENT = (
        auto()
    )  # of a student alone, not of the teacher and ceiling that are trained beside it
    START = auto()  # how the weights begin
    MODEL = auto()  # the network
    INPUT = auto()  # size and normalisation of its input
    SHAPE = auto()  # on which the shape of the weights depends
    STATE = auto()  # on which the shape of the optimizer's state depends
    OPTIMIZER = auto()
    SCHEDULE = auto()  # of the learning rate
    VIEW = auto()  # how an image is changed before training sees it
    MIXING = auto()  # what joins the images of a batch, or repeats them
    EVALUATION = auto()  # when and how it is measured
    EPISODES = auto()  # of a test on episodes of novel classes
    SELECTION = auto()  # which epoch is kept
    PLACE = auto()  # files, folders, models: an address there is not taken from a run of others
    PER_PROCESS = auto()  # what counts is that of all processes together
    TUNING = auto()  # on which the result depends, but not the amount of work
    TRAINING = auto()  # everything else that changes what is computed


# another value gives the same weights
NEUTRAL = Role.WHERE | Role.REPORT | Role.PROTOCOL | Role.ALIAS
NO_ROLE = Role(0)


# ---------------------------------------------------------------- types with a range


@dataclass(frozen=True)
class Range:
    """Lowest and highest value of a number; None is no limit."""

    low: float
    high: float | None = None


Share = Annotated[float, Range(0, 1)]
ProperShare = Annotated[float, Range(0.000001, 0.999999)]
Percent = Annotated[float, Range(0, 100)]
NonNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(1.0e-06)]
Factor = Annotated[float, Range(1.0e-06, 100)]
Count = Annotated[int, Range(1)]
Whole = Annotated[int, Range(0)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Pixels = Annotated[int, Range(1, 16384)]
Processes = Annotated[int, Range(0, 1024)]


# ---------------------------------------------------------------- a flag


@dataclass(frozen=True, kw_only=True)
class Flag:
    """All that is known of a flag.

    Args:
        name: of its field, and of its value.
        help: what it is for; `HIDDEN` is not shown.
        default: the value if none is given.
        kind: makes a value of one word; ``bool`` is a switch, ``dict`` takes KEY=VALUE.
        nargs, choices, metavar, const, required: argparse's. A choice X:N is X with a number from 1 to 9999.
        low, high: its range.
        role: what it is about.
        names: how it is typed, if not as ``--name``; none is an argument by position.
        parse: makes the value of the field of that of the flag.
        span: it is two numbers, the lower one first.
        needs: flags of which one has to be given, without which it has no effect.
        idle: what it has no effect with: see `terms.in_use`.
        form: how its own value is written, for the messages of flags that need it.
        neutral: the value with which it changes nothing.
        evaluation: the name under which an evaluation of the run takes it over.
        for_teacher: the flag that says the same of a teacher which is taken as it is.
        in_study: what a study has in its place, which sets it itself.
        sets: for each loss that it concerns, the argument that it sets there.
        in_recipes: a file may set it for whoever adds the flag that it needs.
        one_of: a name that flags have in common of which one at most can be given.
    """

    name: str
    help: str
    default: Any
    kind: Callable[[str], object]
    nargs: int | str | None = None
    choices: tuple[str, ...] | None = None
    metavar: str | None = None
    const: str | None = None
    required: bool = False
    low: float | None = None
    high: float | None = None
    role: Role
    names: tuple[str, ...] = ()
    parse: Callable[[Any], object] | None = None
    span: bool = False
    needs: tuple[str, ...] = ()
    idle: "tuple[str | Term, ...]" = ()
    form: str = ""
    neutral: object = None
    evaluation: str | None = None
    for_teacher: str | None = None
    in_study: str | None = None
    sets: Mapping[str, str] | None = None
    in_recipes: bool = False
    one_of: str = ""

    @property
    def is_switch(self) -> bool:
        return self.kind is bool

    @property
    def is_mapping(self) -> bool:
        return self.kind is dict

    @property
    def is_positional(self) -> bool:
        return not self.names[0].startswith("-")

    def take(self, value: object) -> object:
        """Return a value that was not typed but read, from YAML or Python, with the type that the flag has.

        Raises:
            TypeError, ValueError, argparse.ArgumentTypeError: it is no value of this flag.
        """
        # an empty value undoes what files before have set
        is_empty = value is None or (isinstance(value, (list, dict)) and not value)
        if is_empty and not self.default:
            return copy.copy(self.default)
        if self.is_switch:
            if not isinstance(value, bool):
                raise TypeError
            return value
        # a mapping may be written as it is typed, too
        if self.is_mapping:
            if isinstance(value, Mapping):
                return dict(value)
            words = value.split() if isinstance(value, str) else value
            return read_mapping(map(as_word, words if isinstance(words, list) else [words]))
        if self.nargs in (None, "?"):
            return self._take_one(value)
        # several: one alone is a list of one, and none undoes a default
        items = value if isinstance(value, list) else [value]
        if isinstance(self.nargs, int) and len(items) not in (self.nargs, 0):
            raise TypeError
        return [self._take_one(item) for item in items]

    def _take_one(self, value: object) -> object:
        word = as_word(value)
        # A number of YAML stays as it is. A text may be one (1e-3 is a text in YAML 1.1), and a number may be a text
        # (--experiment 7), so everything else is read from its word.
        if type(value) is self.kind:
            read = value
        elif self.kind is int and isinstance(value, float) and value.is_integer():
            read = int(value)
        else:
            read = self.kind(word)
        if self.choices is not None and not is_choice(read, self.choices):
            raise ValueError
        return read

    def expected(self, value: object) -> str:
        """Say what the flag takes, to somebody who gave it a value that `take` refuses."""
        if self.is_switch:
            return "true or false"
        if value is None:
            return "a value"
        if self.is_mapping:
            return "a mapping, or key=value"
        # the number of values comes before their type: a list may have the wrong length alone
        if isinstance(self.nargs, int) and isinstance(value, list) and len(value) != self.nargs:
            return f"{self.nargs} values"
        if self.choices is not None and isinstance(value, str):
            return f"one of {', '.join(filter(None, self.choices))}"
        return getattr(self.kind, "__name__", "a value").replace("_", " ")

    def check_range(self, value: object) -> None:
        """Raise a `UserError` for a number outside of the range."""
        name = option(self.name)
        # a flag with several values is out of range where one of them is; True is no number here
        values = value if isinstance(value, list) else [value]
        numbers = [
            number
            for number in values
            if isinstance(number, (int, float)) and not isinstance(number, bool)
        ]
        for number in numbers:
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{name} {number}: expected a finite number")
            # torch and NumPy have no larger ones
            if isinstance(number, int) and abs(number) >= 2**63:
                raise UserError(
                    f"{name} {str(number)[:20]}...: expected a whole number below 2**63"
                )
            too_low = self.low is not None and number < self.low
            too_high = self.high is not None and number > self.high
            if too_low or too_high:
                limits = (
                    f"at least {self.low}" if self.high is None else f"{self.low} to {self.high}"
                )
                raise UserError(f"{name} {number}: expected {limits}")
        if self.span and numbers and (len(numbers) != 2 or numbers[0] > numbers[1]):
            raise UserError(f"{name}: expected two numbers, lowest and highest")


class Flags(dict[str, Flag]):
    """The flags of a command by name, in the order of its help."""

    def defaults(self) -> dict[str, object]:
        """A copy of all default values."""
        return {name: copy.copy(flag.default) for name, flag in self.items()}

    def names(self, role: Role) -> frozenset[str]:
        """Flags that are about ``role``, or about one of several."""
        return frozenset(name for name, flag in self.items() if flag.role & role)


# ---------------------------------------------------------------- as a field


def flag(default: Any, help: str, **known: Any) -> Any:
    """Declare a field that is a flag.

    Args:
        default: the value if none is given.
        help: what it is for.
        **known: of `Flag`; ``read`` makes a value of one word, if the annotation does not tell how. A tuple of one
            may be written without its brackets.
    """
    facts = {"default": default, "help": help, **known}
    for name in ("names", "needs", "idle"):
        if name in known and not isinstance(known[name], tuple):
            facts[name] = (known[name],)
    return field(default_factory=lambda: copy.copy(default), metadata={"flag": facts})


@dataclass(frozen=True, kw_only=True)
class Concern:
    """The settings of one concern: fields that are flags, and some that follow from these.

    A subclass says which role those of its flags have that name none.
    """

    role: typing.ClassVar[Role] = NO_ROLE

    def __init_subclass__(cls, role: Role = NO_ROLE, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        cls.role = role

    @classmethod
    def take(cls: type[AConcern], values: Mapping[str, Any]) -> AConcern:
        """Make it of all values, by the names of its fields."""
        parsers = {known.name: known.parse for known in flags_of(cls) if known.parse}
        taken = {one.name: values[one.name] for one in fields(cls)}
        return cls(**{n: parsers[n](v) if n in parsers else v for n, v in taken.items()})


@functools.cache
def flags_of(concern: type[Concern]) -> tuple[Flag, ...]:
    """Return the flags among the fields of a concern, in their order."""
    return tuple(_as_flag(one, concern.role) for one in fields(concern) if "flag" in one.metadata)


def _as_flag(declared: Field, role: Role) -> Flag:
    """Return the flag that a field is, with the type that its annotation says."""
    facts = {"role": role, "names": (f"--{declared.name.replace('_', '-')}",)}
    facts |= _facts_of_type(declared.type) | declared.metadata["flag"]
    if "read" in facts:
        facts["kind"] = facts.pop("read")
    return Flag(name=declared.name, **facts)


def _facts_of_type(annotation: Any) -> dict[str, Any]:
    """Return what an annotation says of a flag, by the names of `Flag`."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        # None stands for "not given"
        return _facts_of_type(args[0])
    if origin is Sequence:
        return {**_facts_of_type(args[0]), "nargs": "+"}
    if origin is Annotated:
        return {"kind": args[0], "low": args[1].low, "high": args[1].high}
    if origin is Literal:
        return {"kind": str, "choices": args}
    if origin is Mapping:
        return {"kind": dict, "nargs": "*", "metavar": "K=V"}
    # a value with a class of its own is parsed from text
    return {"kind": annotation if annotation in (bool, int, float, Path) else str}


# ---------------------------------------------------------------- words


def read_mapping(words: Iterable[str]) -> dict[str, object]:
    """Return the mapping that words such as ``key=value`` stand for.

    Values are numbers, lists and the like as Python writes them, and all else is text. Raises `ValueError` for a word
    without a value.
    """
    mapping = {}
    for word in filter(None, words):
        key, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"'{word}' has no value, expected KEY=VALUE")
        if key in mapping:
            raise ValueError(f"{key} is given twice; expected one of them")
        mapping[key] = read_literal(text)
    return mapping


def read_literal(text: str) -> object:
    """Return the number, list or the like that a text is in Python, or the text."""
    # this executes nothing: it reads numbers, texts, lists and the like, and refuses all else
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


def as_word(value: object) -> str:
    """Return a text or a number as it is typed. Raises `TypeError` for anything else, True and False among it."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise TypeError
    return str(value)


def is_choice(value: object, choices: Iterable[object]) -> bool:
    """True for one of the choices. One that ends with :N stands for itself with any number from 1 to 9999."""
    form = re.sub(r":[1-9]\d{0,3}$", ":N", str(value))
    return form in choices and not str(value).endswith(":N")


def option(dest: str) -> str:
    """Return a flag as it is typed."""
    return f"--{dest.replace('_', '-')}"


def dest_of(name: str) -> str:
    """Return the name of the value of a flag, as it is typed or without dashes before it."""
    return name.lstrip("-").replace("-", "_")


def shown_value(value: object) -> str:
    """Return a value of a flag as messages show it."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
