"""Which flags decide what comes out of a run: all of them, but for those that are known not to."""

import os
import re
from collections.abc import Mapping

from .declare import NEUTRAL, Role
from .parser import train_parser

PROCESSES = "processes"  # no flag, but named like one


def other_values(theirs: Mapping[str, object], ours: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    """Return old and new value of the flags that differ, for what changes the outcome of a run.

    Args:
        theirs: resolved flags of the earlier run.
        ours: resolved flags.
    """
    ignored = train_parser().names(NEUTRAL)
    if not ours.get("teacher"):
        ignored = ignored | (train_parser().names(Role.TEACHER) - {"teacher", "loss"})
    if not ours.get("amp"):
        ignored = ignored | {"amp_dtype"}  # its default is that of the device
    if ours.get("loss"):
        ignored = ignored | {"kd_temperature"}  # stands in --loss-kwargs
    return {name: (theirs[name], ours[name]) for name in sorted(theirs.keys() & ours.keys())
            if name not in ignored and _differ(theirs[name], ours[name])}


def of_all_processes(value: object, processes: int) -> object:
    """Return a flag of `Role.PER_PROCESS`, a number or a list of them, for all processes together."""
    if isinstance(value, list):
        return [of_all_processes(part, processes) for part in value]
    return value * processes if isinstance(value, int) else value


def _differ(one: object, other: object) -> bool:
    try:
        return bool(_same_places(one) != _same_places(other))
    except (RuntimeError, ValueError):  # tensors, in the place of what a flag may be
        return True


def _same_places(value: object) -> object:
    """Return a value in which paths to the same place are spelt alike, also in lists and after a kind: ``file:./a``."""
    if isinstance(value, list):
        return [_same_places(part) for part in value]
    return re.sub(r"[^,:]*/[^,:]*", lambda path: os.path.normpath(path[0]), value) if isinstance(value, str) else value
