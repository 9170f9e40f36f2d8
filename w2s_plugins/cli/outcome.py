"""Which flags decide what comes out of a run: all of them, but for those that are known not to."""

import logging
from collections.abc import Mapping

from ..errors import UserError
from .declare import NEUTRAL, Role, option
from .parser import train_parser

_logger = logging.getLogger(__name__)

PROCESSES = "processes"  # no flag, but named like one


def other_values(theirs: Mapping[str, object], ours: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    """Return old and new value of the flags that differ, for what changes the outcome of a run.

    Args:
        theirs: resolved flags of the earlier run.
        ours: resolved flags.
    """
    ignored = set(train_parser().names(NEUTRAL))
    if not ours.get("teacher"):
        ignored |= train_parser().names(Role.TEACHER) - {"teacher", "loss"}
        if ours.get("linear_probe"):  # features are stored as targets are
            ignored.discard("teacher_targets")
    if not ours.get("amp"):
        ignored.add("amp_dtype")  # its default is that of the device
    if ours.get("loss"):
        ignored.add("kd_temperature")  # stands in --loss-kwargs
    compared = sorted((theirs.keys() & ours.keys()) - ignored)
    return {name: (theirs[name], ours[name]) for name in compared if theirs[name] != ours[name]}


def check_other_flags(
        theirs: Mapping[str, object],
        ours: Mapping[str, object],
        where: str,
        processes: tuple[int, int],
        finished: bool,
        of_timm: bool,
) -> dict[str, list[str]]:
    """Refuse to continue a run with other flags of a kind that changes its outcome, but for ``--resume-changes``.

    Args:
        theirs: resolved flags of the run that is continued.
        ours: resolved flags.
        where: begins the messages.
        processes: their number and ours.
        finished: it is continued at the end of an epoch.
        of_timm: it is one of timm's own script: compared is what decides the shape of what a checkpoint holds.

    Returns:
        Old and new value of what is changed, by name.

    Raises:
        UserError: naming the flags.
    """
    # What changes the outcome, and what of that may change.
    known = train_parser()
    shaping, state = known.names(Role.SHAPE), known.names(Role.STATE)
    compared = shaping | state if of_timm else set(known.by_dest()) - known.names(Role.RESUMING)
    changed = {name: [_shown(value) for value in values] for name, values in other_values(theirs, ours).items()
               if name in compared}
    allowed, fixed = set(ours["resume_changes"]), shaping | state
    if ours["no_resume_opt"]:
        allowed |= known.names(Role.OPTIMIZER) | {"lr"}
        fixed = shaping
    if processes[0] != processes[1]:
        _compare_processes(changed, theirs, ours, processes)
        if finished or ours["start_epoch"] is not None:
            allowed.add(PROCESSES)  # an epoch on other processes is another one, but a whole one

    # What is to be done about the rest.
    refused = {name: values for name, values in changed.items() if name not in allowed or name in fixed}
    if refused.keys() & shaping:
        remedy = "repeat them, or start a new run with --initial-checkpoint"
    elif refused.keys() & fixed:
        remedy = "repeat them, or begin the optimizer's state anew with --no-resume-opt"
    else:
        inside = "it was stopped inside an epoch, which goes on exactly on as many; " if PROCESSES in refused else ""
        names = " ".join(option(name)[2:] for name in refused)
        remedy = f"{inside}repeat them, or go on with the new ones by --resume-changes {names}"
    if refused:
        raise UserError(f"{where}: that run had other settings: {list_changes(refused)}; {remedy}")
    if changed:
        _logger.warning(f"WARNING: {where}: goes on with other settings: {list_changes(changed)}")
    return changed


def _compare_processes(
        changed: dict[str, list[str]],
        theirs: Mapping[str, object],
        ours: Mapping[str, object],
        processes: tuple[int, int],
) -> None:
    """Note another number of processes among what is changed, with the batches of all of them together, in place."""
    before, now = processes
    shapes = {str(flags.get("episodic")).partition(":")[0] for flags in (theirs, ours)}
    if len(shapes) == 1:
        changed.pop("episodic", None)  # the number of episodes stands in the size of the batch
    for name in sorted(train_parser().names(Role.PER_PROCESS)):
        old, new = theirs.get(name), ours[name]
        changed.pop(name, None)
        if of_all_processes(old, before) != of_all_processes(new, now):
            changed[name] = [f"{_shown(old)} x {before}", f"{_shown(new)} x {now}"]
    changed[PROCESSES] = [str(before), str(now)]


def _shown(value: object) -> str:
    return " ".join(str(value).split())[:80]


def list_changes(changed: Mapping[str, list[str]]) -> str:
    """Return the text of what `check_other_flags` returned."""
    return "; ".join(f"{option(name)} {old} -> {new}" if name != PROCESSES else f"{old} -> {new} processes"
                     for name, (old, new) in changed.items())


def of_all_processes(value: object, processes: int) -> object:
    """Return a flag of `Role.PER_PROCESS`, a number or a list of them, for all processes together."""
    if isinstance(value, list):
        return [of_all_processes(part, processes) for part in value]
    return value * processes if isinstance(value, int) else value
