"""Which flags decide what comes out of a run: all of them, but for those that are known not to."""

from collections.abc import Mapping, Sequence

from ..errors import UserError, logger
from ..settings.field import NEUTRAL, Role, option
from ..settings.programs import train_program

# no flag, but named like one
PROCESSES = "processes"


def other_values(
    theirs: Mapping[str, object], ours: Mapping[str, object]
) -> dict[str, tuple[object, object]]:
    """Return old and new value of the flags that differ, for what changes the outcome of a run.

    Args:
        theirs: resolved flags of the earlier run.
        ours: resolved flags.
    """
    # without a teacher, mixed precision or a loss of ours, what belongs to it changes nothing
    ignored = set(train_program().flags.names(NEUTRAL))
    if not ours.get("teacher"):
        ignored |= train_program().flags.names(Role.TEACHER) - {"teacher", "loss"}
        # a probe stores features as targets are stored
        if ours.get("linear_probe"):
            ignored.discard("teacher_targets")
    # its default is that of the device
    if not ours.get("amp"):
        ignored.add("amp_dtype")
    # stands in --loss-kwargs
    if ours.get("loss"):
        ignored.add("kd_temperature")
    compared = sorted((theirs.keys() & ours.keys()) - ignored)
    return {name: (theirs[name], ours[name]) for name in compared if theirs[name] != ours[name]}


def check_other_flags(
    theirs: Mapping[str, object],
    ours: Mapping[str, object],
    where: str,
    processes: tuple[int, int],
    of_timm: bool,
) -> dict[str, list[str]]:
    """Refuse to continue a run with other flags of a kind that changes its outcome, but for those of `Role.RESUMING`.

    The optimizer may be another one with ``--no-resume-opt``, and the number of processes where the size of all their
    batches together stays. Flags of `Role.REPORT`, such as ``--recovery-interval``, may change. That is logged, and is
    no change of the run: its weights, and so the figures in its record, are those of an undisturbed one.

    Args:
        theirs: resolved flags of the run that is continued.
        ours: resolved flags.
        where: begins the messages.
        processes: their number and ours.
        of_timm: it is one of timm's own script: compared is what decides the shape of what a checkpoint holds.

    Returns:
        Old and new value of what is changed, by name.

    Raises:
        UserError: naming the flags.
    """
    # what decides the outcome; of timm's own runs only the shapes can be compared
    known = train_program().flags
    compared = set(known) - known.names(Role.RESUMING)
    if of_timm:
        compared = known.names(Role.SHAPE | Role.STATE)
    changed = {
        name: [_shown(value) for value in values]
        for name, values in other_values(theirs, ours).items()
        if name in compared
    }
    # what of it may change
    may_change = {PROCESSES}
    if ours["no_resume_opt"]:
        may_change |= known.names(Role.OPTIMIZER) | {"lr"}
    before, now = processes
    if before != now:
        # what counts is the batch of all processes together
        for name in sorted(known.names(Role.PER_PROCESS)):
            old, new = theirs.get(name), ours[name]
            changed.pop(name, None)
            if of_all_processes(old, before) != of_all_processes(new, now):
                changed[name] = [f"{_shown(old)} x {before}", f"{_shown(new)} x {now}"]
        changed[PROCESSES] = [str(before), str(now)]
    refused = {name: values for name, values in changed.items() if name not in may_change}
    if refused:
        raise UserError(
            f"{where}: that run had other settings: {list_changes(refused)}; repeat them, begin a new run, "
            "or start one from its weights by --initial-checkpoint"
        )
    if changed:
        logger.warning(f"WARNING: {where}: goes on with other settings: {list_changes(changed)}")
    # what is shown and saved
    reported = known.names(Role.REPORT) & theirs.keys() & ours.keys()
    others = {
        name: [_shown(theirs[name]), _shown(ours[name])]
        for name in sorted(reported)
        if theirs[name] != ours[name]
    }
    if others and not of_timm:
        logger.info(
            f"{where}: shows or saves something else, which changes no weights: {list_changes(others)}"
        )
    return changed


def _shown(value: object) -> str:
    return " ".join(str(value).split())[:80]


def list_changes(changed: Mapping[str, Sequence[object]]) -> str:
    """Return the text of what `check_other_flags` returned."""
    texts = []
    for name, (old, new) in changed.items():
        is_flag = name != PROCESSES
        texts.append(f"{option(name)} {old} -> {new}" if is_flag else f"{old} -> {new} processes")
    return "; ".join(texts)


def of_all_processes(value: object, processes: int) -> object:
    """Return a flag of `Role.PER_PROCESS`, a number or a list of them, for all processes together."""
    if isinstance(value, list):
        return [of_all_processes(part, processes) for part in value]
    return value * processes if isinstance(value, int) else value
