"""How a flag is declared: once, with all that is known of it. Needs neither torch nor timm."""

import argparse
import ast
import collections
import copy
import functools
import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Flag, auto
from pathlib import Path
from typing import Any

import yaml

from .. import __version__
from ..errors import UserError, nearest, said_of
from ..files import recipe_path
from . import forms


class Role(Flag):
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
    )  # of a student alone, not of the teacher and the ceiling that are trained beside it
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
    PLACE = (
        auto()
    )  # names files, folders or models: an address there is not taken from a run of others
    PER_PROCESS = auto()  # what counts is that of all processes together
    TUNING = auto()  # on which the result depends, but not the amount of work
    TRAINING = auto()  # everything else that changes what is computed


NEUTRAL = (
    Role.WHERE | Role.REPORT | Role.PROTOCOL | Role.ALIAS
)  # another value gives the same weights


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
    """

    role: Role | None = None
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


# types of flags.yaml and commands.yaml
TYPES = {
    "int": int,
    "float": float,
    "path": Path,
    "recipe_path": recipe_path,
    "share_or_count": forms.share_or_count,
    "teacher_names": forms.teacher_names,
}
FACTS = tuple(Facts.__dataclass_fields__)
METAVARS = {int: "N", float: "X", str: "NAME"}  # unless a flag has its own
SWITCHES = argparse._StoreTrueAction, argparse.BooleanOptionalAction  # flags without a value


class HelpFormatter(argparse.HelpFormatter):
    """Wider help with defaults where they say something."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=110)

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", getattr(action, "own_default", None)
        shown = default not in (None, False, "") and default not in ([], {})
        value = " ".join(map(str, default)) if isinstance(default, list) else str(default)
        return (
            f"{text} (default: {value.replace('%', '%%')})"
            if shown and "default" not in text
            else text
        )


class HelpAll(argparse._HelpAction):
    """Shows all flags."""

    def __call__(self, parser: "Parser", *how: object) -> None:
        parser.first_help = ""
        super().__call__(parser, *how)


@functools.cache
def read_table(name: str) -> dict[str, Any]:
    """Return the content of flags.yaml or commands.yaml."""
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    # libyaml takes a sixth of the time, and PyYAML need not be built with it
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _keywords_of(entry: Mapping[str, object]) -> dict[str, object]:
    """Return argparse's keywords for what the table says of a flag."""
    # what argparse takes as it stands
    keywords = {
        name: value for name, value in entry.items() if name not in (*FACTS, "type", "one_of")
    }
    if entry["help"] == "hidden":
        keywords["help"] = argparse.SUPPRESS
    default = entry.get("default")
    # flags without a value of text or a number
    if default is False:
        return {**keywords, "action": "store_true"}
    if default == {}:
        return {**keywords, "action": ParseKwargs, "nargs": "*", "metavar": "K=V"}
    if entry.get("type") == "on_off":
        return {**keywords, "action": argparse.BooleanOptionalAction}
    # the default tells the type of most; what has neither is text
    values = default if isinstance(default, list) else [default]
    kind = str if default in (None, []) else type(values[0])
    if "type" in entry:
        kind = TYPES[entry["type"]]
    if isinstance(default, list):
        keywords.setdefault("nargs", "+")
    metavar = {} if "choices" in entry or kind not in METAVARS else {"metavar": METAVARS[kind]}
    return {**metavar, **keywords, "type": kind}


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations whose errors are `UserError`s with the nearest choice.

    Args:
        first_help: what ``--help`` shows, in place of all flags, which ``--help-all`` then does.
        **kwargs: argparse's.
    """

    def __init__(self, first_help: str = "", **kwargs: object):
        super().__init__(allow_abbrev=False, formatter_class=HelpFormatter, **kwargs)
        self.first_help = first_help
        # argparse takes -1e-05 for a flag
        self._negative_number_matcher = re.compile(r"-(\d+(\.\d+)?|\.\d+)(e[-+]?\d+)?$")
        self.add_argument("--version", action="version", version=f"w2s-plugins {__version__}")
        if first_help:
            self.add_argument("--help-all", action=HelpAll, help="show all flags and exit")

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
            # what only this project knows of it
            facts = {name: entry[name] for name in FACTS if name in entry}
            roles = (Role[name] for name in entry.get("role", table.get("role", "")).split())
            action.facts = Facts(**facts | {"role": functools.reduce(operator.or_, roles, Role(0))})
            # a namespace holds what was typed, and nothing else
            action.own_default, action.default = action.default, argparse.SUPPRESS

    def format_help(self) -> str:
        return self.first_help.format(prog=self.prog) if self.first_help else super().format_help()

    def error(self, message: str) -> None:
        raise UserError(message.removeprefix("argument "))

    def _check_value(self, action: argparse.Action, value: object) -> None:
        # a choice that ends with :N stands for one with any number from 1 to 9999
        choice = re.sub(r":[1-9]\d{0,3}$", ":N", str(value))
        if action.choices is not None and (
            choice not in action.choices or str(value).endswith(":N")
        ):
            known = [str(choice) for choice in action.choices if choice != ""]
            listed = f"; one of {', '.join(known)}" if len(known) <= 12 else ""
            raise argparse.ArgumentError(
                action, f"unknown choice {value!r}{nearest(value, known)}{listed}"
            )

    def flags(self) -> list[str]:
        return [
            option
            for action in self._actions
            for option in action.option_strings
            if option.startswith("--")
        ]

    def by_dest(self) -> dict[str, argparse.Action]:
        """All flags by the name of their value."""
        return {
            a.dest: a
            for a in self._actions
            if a.dest not in ("help", "help_all", "version", "config")
        }

    def defaults(self) -> dict[str, object]:
        """A copy of all default values."""
        return {dest: copy.copy(action.own_default) for dest, action in self.by_dest().items()}

    def facts(self) -> dict[str, Facts]:
        return {dest: action.facts for dest, action in self.by_dest().items()}

    @functools.cache  # noqa: B019  there are two parsers with roles, for as long as the process
    def names(self, role: Role) -> frozenset[str]:
        """Flags that are about ``role``, or about one of several."""
        return frozenset(dest for dest, facts in self.facts().items() if facts.role & role)

    def take(self, words: Iterable[str]) -> dict[str, object]:
        """Return the values of the words of a command line. Raises `UserError` for the first that is wrong."""
        typed, unknown = self.parse_known_args(list(words))
        self.check(vars(typed), unknown)
        return vars(typed)

    def check(self, typed: Mapping[str, object], unknown: Sequence[str]) -> None:
        """Raise a `UserError` for the first word that is no flag, or a value out of range: argparse names neither the
        nearest flag nor a range.
        """
        if unknown:
            flag = unknown[0].split("=")[0]
            kind, hint = (
                ("flag", nearest(flag, self.flags())) if flag.startswith("-") else ("argument", "")
            )
            raise UserError(f"unknown {kind} '{flag}'{hint}; see --help")
        for dest, facts in self.facts().items():
            if dest in typed:
                check_range(dest, typed[dest], facts)

    def typed(self, action: argparse.Action, value: object, where: str) -> object:
        """Return a value of YAML with the type that it has when it is typed.

        Args:
            action: the flag.
            value: of it.
            where: begins messages.

        Raises:
            UserError: it is of another type, none of the choices, or out of range.
        """
        # an empty value undoes what files before have set
        is_empty = value is None or (isinstance(value, (list, dict)) and not value)
        if is_empty and not action.own_default:
            return copy.copy(action.own_default)
        # YAML has its own booleans and mappings
        if isinstance(action, SWITCHES) and isinstance(value, bool):
            return value
        if isinstance(action, ParseKwargs) and isinstance(value, Mapping):
            return dict(value)
        # everything else is read as if it were typed
        try:
            strings = strings_of(action, value)
            found = (
                action.read(strings)
                if isinstance(action, ParseKwargs)
                else self._get_values(action, strings)
            )
        except (TypeError, argparse.ArgumentError) as error:
            raise UserError(
                f"{where}: {action.dest}: {value!r:.60} is a {type(value).__name__}, expected "
                f"{_expected(action, value)}"
            ) from error
        # argparse knows types and choices, but no ranges
        with said_of(f"{where}: "):
            check_range(action.dest, found, action.facts)
        return found


class ParseKwargs(argparse.Action):
    """``key=value ...``, as timm reads it: numbers, lists and the like as Python writes them, all else as text."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: list[str],
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, self.read(values))

    def read(self, words: Iterable[str]) -> dict[str, object]:
        """Return the mapping that words stand for."""
        found = {}
        for word in filter(None, words):
            key, equals, text = word.partition("=")
            if not equals:
                raise argparse.ArgumentError(self, f"'{word}' has no value, expected KEY=VALUE")
            found[key] = _literal(text)
        return found


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


def _expected(action: argparse.Action, value: object) -> str:
    """Say what a flag takes."""
    if isinstance(action, SWITCHES):
        return "true or false"
    if value is None:
        return "a value"
    if isinstance(action, ParseKwargs):
        return "a mapping, or key=value"
    # the number of values comes before their type: a list may have the wrong length alone
    if isinstance(action.nargs, int) and isinstance(value, list) and len(value) != action.nargs:
        return f"{action.nargs} values"
    if action.choices is not None and isinstance(value, str):
        return f"one of {', '.join(map(str, filter(None, action.choices)))}"
    return getattr(action.type or str, "__name__", "a value").replace("_", " ")


def check_range(dest: str, value: object, facts: Facts) -> None:
    """Raise a `UserError` for a number outside of the range of its flag."""
    name = option(dest)
    # a flag with several values is out of range where one of them is
    numbers = [
        v for v in (value if isinstance(value, list) else [value]) if type(v) in (int, float)
    ]
    for number in numbers:
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f"{name} {number}: expected a finite number")
        if isinstance(number, int) and abs(number) >= 2**63:
            raise UserError(f"{name} {str(number)[:20]}...: expected a whole number below 2**63")
        if (facts.low is not None and number < facts.low) or (
            facts.high is not None and number > facts.high
        ):
            expected = (
                f"at least {facts.low}" if facts.high is None else f"{facts.low} to {facts.high}"
            )
            raise UserError(f"{name} {number}: expected {expected}")
    if facts.span and numbers and (len(numbers) != 2 or numbers[0] > numbers[1]):
        raise UserError(f"{name}: expected two numbers, lowest and highest")


def option(dest: str) -> str:
    """Return a flag as it is typed."""
    return f"--{dest.replace('_', '-')}"


def dest_of(name: str) -> str:
    """Return the name of the value of a flag, as it is typed or without dashes before it."""
    return name.lstrip("-").replace("-", "_")


def shown_value(value: object) -> str:
    """Return a value of a flag as messages show it."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def strings_of(action: argparse.Action, value: object) -> list[str]:
    """Return a value as what is typed after its flag.

    Raises:
        TypeError: there are no such words.
    """
    if isinstance(action, SWITCHES):
        raise TypeError
    if isinstance(action, ParseKwargs):
        if isinstance(value, Mapping):
            return [f"{key}={_as_literal(item)}" for key, item in sorted(value.items())]
        value = value.split() if isinstance(value, str) else value
    items = value if isinstance(value, list) and action.nargs not in (None, "?") else [value]
    if not all(type(item) in (str, int, float) for item in items):
        raise TypeError
    if isinstance(action.nargs, int) and len(items) not in (action.nargs, 0):
        raise TypeError
    # a whole number may be written as 3.0
    whole = action.type is int
    return [
        str(int(item) if whole and isinstance(item, float) and item.is_integer() else item)
        for item in items
    ]


def words_of(action: argparse.Action, value: object) -> list[str]:
    """Return a value as the words of a command line that give it; what is given by leaving it out has none.

    Raises:
        TypeError: there are no such words.
    """
    # the long name of the flag; an argument by position has none
    flag = next((text for text in action.option_strings if text.startswith("--")), None)
    if isinstance(action, SWITCHES) and isinstance(value, bool):
        return [flag] if value else action.option_strings[1:]  # --no-flag, of one that has it
    # a value that begins with a dash would be taken for a flag
    strings = strings_of(action, value)
    if len(strings) == 1 and flag and strings[0].startswith("-"):
        return [f"{flag}={strings[0]}"]
    return [*filter(None, [flag]), *strings] if strings else []


def _as_literal(value: object) -> str:
    return value if isinstance(value, str) and _literal(value) == value else repr(value)
