"""Flags that say how another one is followed: without that one they would have no effect, and are refused."""

import argparse
from collections.abc import Iterable

from ..errors import UserError
from .declare import Parser, is_reversible, option, shown_value


def refuse_idle(parser: Parser, args: argparse.Namespace, filed: Iterable[str], typed: Iterable[str]) -> None:
    """Raise a `UserError` for the first flag that has no effect since the one that it belongs to is not given.

    The default value is no such flag in a file, where it may be that of a run, nor typed to undo what a file says.

    Args:
        parser: knows the flags.
        args: all flags.
        filed: names of those that were set in files.
        typed: names of those that were set on the command line.
    """
    known, defaults = parser.facts(), parser.defaults()
    for name, facts in known.items():
        value, masters = getattr(args, name), [n for n in facts.needs if n in known]  # a script may have none of them
        alone = name in typed and name not in filed
        if value is False or value in (None, "", []) or not masters or not (alone or value != defaults[name]):
            continue
        if facts.in_recipes and name not in typed:
            continue
        if getattr(args, "stages", None) and "teacher" in masters:  # each stage may have one, or none
            continue
        if not any(getattr(args, master) for master in masters):
            shown = "" if value is True else f" {shown_value(value)}"
            needed = " or ".join(f"{option(m)} {known[m].form}".rstrip() for m in masters)
            undone = name not in typed and is_reversible(parser.by_dest()[name])
            without = f"give {option('no_' + name)}" if undone else f"leave {option(name)} out"
            raise UserError(f"{option(name)}{shown} has no effect without {needed}: add it, or {without}")
