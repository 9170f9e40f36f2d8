"""The parser of a command, made of its flags. Needs neither torch nor timm."""

import argparse
import collections
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from ..errors import UserError, nearest
from ..settings.field import (
    HIDDEN,
    Flag,
    Flags,
    Role,
    as_word,
    is_choice,
    read_literal,
    read_mapping,
)
from ..version import __version__

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


def _keywords_of(flag: Flag) -> dict[str, Any]:
    """Return argparse's keywords for a flag."""
    keywords: dict[str, Any] = {"help": _help_of(flag.help, flag.default)}
    # flags without a value of text or a number
    if flag.is_switch:
        is_on_off = flag.default is None  # --x and --no-x
        return {**keywords, "action": argparse.BooleanOptionalAction if is_on_off else "store_true"}
    keywords |= {"nargs": flag.nargs, "metavar": flag.metavar}
    if flag.is_mapping:
        return {**keywords, "action": ParseKwargs}
    if flag.metavar is None and flag.choices is None:
        keywords["metavar"] = METAVARS.get(flag.kind)
    if flag.required:
        keywords["required"] = True
    return {**keywords, "type": flag.kind, "choices": flag.choices, "const": flag.const}


def _help_of(text: str, default: object) -> str:
    """Return the help of a flag with its default, if that says something."""
    if text == HIDDEN or not default or "default" in text:
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
        self._flags = Flags()
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

    def add_flags(self, flags: Iterable[Flag], title: str | None = None) -> None:
        """Add flags to a group of their own, of this title."""
        group = self.add_argument_group(title)
        exclusive = collections.defaultdict(group.add_mutually_exclusive_group)
        for flag in flags:
            container = exclusive[flag.one_of] if flag.one_of else group
            action = container.add_argument(*flag.names, **_keywords_of(flag))
            # a namespace holds what was typed, and nothing else
            action.default = argparse.SUPPRESS
            self._flags[flag.name] = flag

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

    def by_dest(self) -> Flags:
        """All flags of this project by the name of their value."""
        return self._flags

    def defaults(self) -> dict[str, object]:
        """A copy of all default values."""
        return self._flags.defaults()

    def names(self, role: Role) -> frozenset[str]:
        """Flags that are about ``role``, or about one of several."""
        return self._flags.names(role)

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
        for dest, flag in self._flags.items():
            if dest in typed:
                flag.check_range(typed[dest])


# ---------------------------------------------------------------- as it is typed


def words_of(flag: Flag, value: object) -> list[str]:
    """Return a value of a flag as the words of a command line that give it; None, and what is given by leaving the flag
    out, has none.

    Raises:
        TypeError: there are no such words.
    """
    if value is None:
        return []
    # the long name of the flag; an argument by position has none
    name = next((text for text in flag.names if text.startswith("--")), "")
    if flag.is_switch:
        off = [f"--no-{name.removeprefix('--')}"] if flag.default is None else []
        return [name] if value else off
    if isinstance(value, Mapping):
        words = [f"{key}={_as_literal(item)}" for key, item in sorted(value.items())]
    else:
        words = [as_word(item) for item in (value if isinstance(value, list) else [value])]
    # a value that begins with a dash would be taken for a flag
    if len(words) == 1 and name and words[0].startswith("-"):
        return [f"{name}={words[0]}"]
    return [name, *words] if words and name else words


def _as_literal(value: object) -> str:
    return value if isinstance(value, str) and read_literal(value) == value else repr(value)
