"""How a flag is declared: once, with all that is known of it. Needs neither torch nor timm."""

import argparse
import ast
import collections
import copy
import enum
import functools
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import auto
from pathlib import Path
from typing import Any, NoReturn

import yaml

from .. import __version__
from ..errors import UserError, nearest
from ..files import recipe_path
from . import forms


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


@dataclass(frozen=True)
class Facts:
    """What is known of a flag beside what argparse knows.

    Args:
        role: what it is about.
        low, high: its range.
        span: it is two numbers, the lower one first.
        needs: flags, by blanks, of which one has to be given, without which it has no effect.
        idle: flags, values of flags or names in `settings.rules.TERMS`, with any of which it has no effect.
        form: how its own value is written, for the messages of flags that need it.
        neutral: the value with which it changes nothing.
        evaluation: the name under which an evaluation of the run takes it over.
        for_teacher: the flag that says the same of a teacher which is taken as it is.
        in_study: what a study has in its place, which sets it itself.
        sets: for each loss that it concerns, the argument that it sets there.
        in_recipes: a file may set it for whoever adds the flag that it needs.
        one_of: a name that flags have in common of which one at most can be given.
    """

    role: Role
    low: float | None = None
    high: float | None = None
    span: bool = False
    needs: str = ""
    idle: Iterable[str] = ()
    form: str = ""
    neutral: object = None
    evaluation: str | None = None
    for_teacher: str | None = None
    in_study: str | None = None
    sets: Mapping[str, str] | None = None
    in_recipes: bool = False
    one_of: str = ""


@dataclass(frozen=True)
class Flag:
    """A flag as it was declared.

    Args:
        action: what argparse does with its words.
        kind: makes a value of one word.
        default: the value if none is given. argparse knows of no default, so that a namespace holds what was typed.
        facts: what only this project knows of it.
    """

    action: argparse.Action
    kind: Callable[[str], object]
    default: object
    facts: Facts

    @property
    def choices(self) -> Iterable[Any] | None:
        return self.action.choices

    @property
    def is_switch(self) -> bool:
        return self.action.nargs == 0

    @property
    def is_mapping(self) -> bool:
        return isinstance(self.action, ParseKwargs)

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
            return read_mapping(map(_as_word, words if isinstance(words, list) else [words]))
        if self.action.nargs in (None, "?"):
            return self._take_one(value)
        # several: one alone is a list of one, and none undoes a default
        items = value if isinstance(value, list) else [value]
        if isinstance(self.action.nargs, int) and len(items) not in (self.action.nargs, 0):
            raise TypeError
        return [self._take_one(item) for item in items]

    def _take_one(self, value: object) -> object:
        word = _as_word(value)
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
        count = self.action.nargs
        if isinstance(count, int) and isinstance(value, list) and len(value) != count:
            return f"{count} values"
        if self.choices is not None and isinstance(value, str):
            return f"one of {', '.join(map(str, filter(None, self.choices)))}"
        return getattr(self.kind, "__name__", "a value").replace("_", " ")


# the types that flags.yaml and commands.yaml may name
TYPES: dict[str, Callable[[str], object]] = {
    "int": int,
    "float": float,
    "on_off": bool,  # --x and --no-x
    "path": Path,
    "recipe_path": recipe_path,
    "share_or_count": forms.share_or_count,
    "augmentation_policy": forms.augmentation_policy,
    "teacher_names": forms.teacher_names,
}
FACTS = tuple(Facts.__dataclass_fields__)
# what the help shows for a value, unless a flag has its own
METAVARS: dict[object, str] = {int: "N", float: "X", str: "NAME"}


class HelpAll(argparse.Action):
    """Shows all flags, where ``--help`` shows those of a first run."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        # `Parser.format_help` gives the flags of a first run
        print(argparse.ArgumentParser.format_help(parser), end="")
        parser.exit()


class ParseKwargs(argparse.Action):
    """``key=value ...``, as timm reads it."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        try:
            setattr(namespace, self.dest, read_mapping(values or ()))
        except ValueError as error:
            raise argparse.ArgumentError(self, str(error)) from error


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
        mapping[key] = _literal(text)
    return mapping


def _literal(text: str) -> object:
    # this executes nothing: it reads numbers, texts, lists and the like, and refuses all else
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


def is_choice(value: object, choices: Iterable[object]) -> bool:
    """True for one of the choices. One that ends with :N stands for itself with any number from 1 to 9999."""
    form = re.sub(r":[1-9]\d{0,3}$", ":N", str(value))
    return form in choices and not str(value).endswith(":N")


# ---------------------------------------------------------------- the table of flags


@functools.cache
def read_table(name: str) -> dict[str, Any]:
    """Return the content of flags.yaml or commands.yaml."""
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    # libyaml takes a sixth of the time, and PyYAML need not be built with it
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _keywords_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return argparse's keywords for what the table says of a flag."""
    # what argparse takes as it stands
    keywords = {
        name: value for name, value in entry.items() if name not in FACTS and name != "type"
    }
    default, kind = entry.get("default"), _kind_of(entry)
    keywords["help"] = _help_of(entry["help"], default)
    # flags without a value of text or a number
    if default is False:
        return {**keywords, "action": "store_true"}
    if default == {}:
        return {**keywords, "action": ParseKwargs, "nargs": "*", "metavar": "K=V"}
    if entry.get("type") == "on_off":
        return {**keywords, "action": argparse.BooleanOptionalAction}
    # what has several values by default takes several
    if isinstance(default, list):
        keywords.setdefault("nargs", "+")
    if "choices" not in entry and kind in METAVARS:
        keywords.setdefault("metavar", METAVARS[kind])
    return {**keywords, "type": kind}


def _kind_of(entry: Mapping[str, Any]) -> Callable[[str], object]:
    """Return what makes a value of a word. The default tells it, and what has neither default nor type is text."""
    if "type" in entry:
        return TYPES[entry["type"]]
    default = entry.get("default")
    first = next(iter(default), None) if isinstance(default, list) else default
    return str if first is None else type(first)


def _help_of(text: str, default: object) -> str:
    """Return the help of a flag with its default, if that says something."""
    if text == "hidden":
        return argparse.SUPPRESS
    if not default or "default" in text:
        return text
    value = " ".join(map(str, default)) if isinstance(default, list) else str(default)
    return f"{text} (default: {value.replace('%', '%%')})"  # argparse fills in what follows a %


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations whose errors are `UserError`s with the nearest choice.

    Args:
        first_help: what ``--help`` shows, in place of all flags, which ``--help-all`` then does.
        **kwargs: argparse's.
    """

    def __init__(self, first_help: str = "", **kwargs: Any):
        wide = functools.partial(argparse.HelpFormatter, max_help_position=34, width=110)
        super().__init__(allow_abbrev=False, formatter_class=wide, **kwargs)
        self.first_help = first_help
        self._flags: dict[str, Flag] = {}
        # argparse takes -1e-05 for a flag
        self._negative_number_matcher = re.compile(r"-(\d+(\.\d+)?|\.\d+)(e[-+]?\d+)?$")
        self.add_argument("--version", action="version", version=f"w2s-plugins {__version__}")
        if first_help:
            self.add_argument(
                "--help-all",
                action=HelpAll,
                nargs=0,
                default=argparse.SUPPRESS,
                help="show all flags and exit",
            )

    def add_flags(self, table: Mapping[str, Any], title: str | None = None) -> None:
        """Add flags to a group of their own.

        Args:
            table: what flags.yaml or commands.yaml says of each, by its names, and the role of those without their own.
            title: of the group in the help.
        """
        group = self.add_argument_group(title)
        exclusive = collections.defaultdict(group.add_mutually_exclusive_group)
        flags = {names: entry for names, entry in table.items() if names not in ("role", "help")}
        for names, entry in flags.items():
            container = exclusive[entry["one_of"]] if "one_of" in entry else group
            action = container.add_argument(*names.split(", "), **_keywords_of(entry))
            # a namespace holds what was typed, and nothing else
            action.default = argparse.SUPPRESS
            # what only this project knows of it
            roles = [Role[name] for name in entry.get("role", table.get("role", "")).split()]
            facts = {name: entry[name] for name in FACTS if name in entry}
            facts["role"] = functools.reduce(operator.or_, roles, Role(0))
            self._flags[action.dest] = Flag(
                action, _kind_of(entry), entry.get("default"), Facts(**facts)
            )

    def format_help(self) -> str:
        return self.first_help.format(prog=self.prog) if self.first_help else super().format_help()

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))

    def _check_value(self, action: argparse.Action, value: object) -> None:
        # argparse calls this for each value, and for the name of a sub-command
        if action.choices is None or is_choice(value, action.choices):
            return
        known = [str(choice) for choice in action.choices if choice != ""]
        listed = f"; one of {', '.join(known)}" if len(known) <= 12 else ""
        near = nearest(str(value), known)
        raise argparse.ArgumentError(action, f"unknown choice {value!r}{near}{listed}")

    def flags(self) -> list[str]:
        """All flags as they are typed, those of argparse among them."""
        return [
            option
            for action in self._actions
            for option in action.option_strings
            if option.startswith("--")
        ]

    def by_dest(self) -> dict[str, Flag]:
        """All flags of the table by the name of their value."""
        return self._flags

    def defaults(self) -> dict[str, object]:
        """A copy of all default values."""
        return {dest: copy.copy(flag.default) for dest, flag in self._flags.items()}

    def facts(self) -> dict[str, Facts]:
        return {dest: flag.facts for dest, flag in self._flags.items()}

    @functools.cache  # noqa: B019  there are two parsers with roles, for as long as the process
    def names(self, role: Role) -> frozenset[str]:
        """Flags that are about ``role``, or about one of several."""
        return frozenset(dest for dest, flag in self._flags.items() if flag.facts.role & role)

    def take(self, words: Iterable[str]) -> dict[str, Any]:
        """Return the values of the words of a command line. Raises `UserError` for the first that is wrong."""
        typed, unknown = self.parse_known_args(list(words))
        self.check(vars(typed), unknown)
        return vars(typed)

    def check(self, typed: Mapping[str, object], unknown: Sequence[str]) -> None:
        """Raise a `UserError` for the first word that is no flag, or a value out of range: argparse names neither the
        nearest flag nor a range.
        """
        if unknown:
            word = unknown[0].split("=")[0]
            is_flag = word.startswith("-")
            hint = nearest(word, self.flags()) if is_flag else ""
            kind = "flag" if is_flag else "argument"
            raise UserError(f"unknown {kind} '{word}'{hint}; see --help")
        # in the order of the help, so that the first message is the same every time
        for dest, facts in self.facts().items():
            if dest in typed:
                check_range(dest, typed[dest], facts)


def check_range(dest: str, value: object, facts: Facts) -> None:
    """Raise a `UserError` for a number outside of the range of its flag."""
    name = option(dest)
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
            raise UserError(f"{name} {str(number)[:20]}...: expected a whole number below 2**63")
        too_low = facts.low is not None and number < facts.low
        too_high = facts.high is not None and number > facts.high
        if too_low or too_high:
            expected = (
                f"at least {facts.low}" if facts.high is None else f"{facts.low} to {facts.high}"
            )
            raise UserError(f"{name} {number}: expected {expected}")
    if facts.span and numbers and (len(numbers) != 2 or numbers[0] > numbers[1]):
        raise UserError(f"{name}: expected two numbers, lowest and highest")


# ---------------------------------------------------------------- as it is typed


def option(dest: str) -> str:
    """Return a flag as it is typed."""
    return f"--{dest.replace('_', '-')}"


def dest_of(name: str) -> str:
    """Return the name of the value of a flag, as it is typed or without dashes before it."""
    return name.lstrip("-").replace("-", "_")


def shown_value(value: object) -> str:
    """Return a value of a flag as messages show it."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def words_of(flag: Flag, value: object) -> list[str]:
    """Return a value of a flag as the words of a command line that give it; None, and what is given by leaving the flag
    out, has none.

    Raises:
        TypeError: there are no such words.
    """
    if value is None:
        return []
    # the long name of the flag; an argument by position has none
    options = flag.action.option_strings
    name = next((text for text in options if text.startswith("--")), "")
    if flag.is_switch:
        off = [text for text in options[1:] if text.startswith("--no-")]
        return [name] if value else off
    if isinstance(value, Mapping):
        words = [f"{key}={_as_literal(item)}" for key, item in sorted(value.items())]
    else:
        words = [_as_word(item) for item in (value if isinstance(value, list) else [value])]
    # a value that begins with a dash would be taken for a flag
    if len(words) == 1 and name and words[0].startswith("-"):
        return [f"{name}={words[0]}"]
    return [name, *words] if words and name else words


def _as_word(value: object) -> str:
    """Return a text or a number as it is typed. Raises `TypeError` for anything else, True and False among it."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise TypeError
    return str(value)


def _as_literal(value: object) -> str:
    return value if isinstance(value, str) and _literal(value) == value else repr(value)
