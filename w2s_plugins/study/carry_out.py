"""``--protocol w2s``, ``--stages`` and ``--folds``: their runs, one after the other in this process, and what comes of
them. Each is an ordinary run in a folder of its own; one that is there already is taken as it is.
"""

from collections.abc import Callable, Set
from pathlib import Path

import torch.distributed as dist
import yaml

from ..cli.outcome import list_changes, other_values
from ..errors import UserError, kept_warnings, logger, near_folder, quietly, said_of, say
from ..files import write_json
from ..made_of import Ingredient, check_same
from ..run.args_file import read_run_args
from ..run.record import PREDICTIONS, with_warnings
from ..settings.composite import TrainSettings
from ..training.data import open_splits, sources_of
from ..training.device import join_group
from ..training.labels import find_labels
from ..training.weights import weights_of
from . import chain, folds, outcome, w2s
from .ahead import look_ahead, settle
from .controls import Flags, without
from .layout import RESULT, made_of_record, read_record
from .planning import Plan, Run, make_plan

# what comes of the runs: the record of all, and the table that the command ends with
FINISH = {"--protocol w2s": outcome.finish, "--stages": chain.finish, "--folds": folds.finish}


def carry_out(
    explicit_flags: Flags,
    typed: Set[str],
    train: Callable[[dict[str, object]], dict],
) -> dict | None:
    """Make the runs that the flags ask for, write ``result.json`` beside them, and return what is in it, on the first
    rank only.

    Args:
        explicit_flags: flags that were set by hand.
        typed: names of those that are on the command line.
        train: trains one model with the flags that it is given, and returns its record.

    Raises:
        UserError: flags that do not go together, or runs that cannot be compared.
    """
    # which runs there are is known from the flags alone
    plan = make_plan(explicit_flags, typed)
    # flags and data of all are checked before the first one is made
    for run in plan.runs:
        with (
            said_of(f"{plan.flag}, {run.name}: "),
            quietly(),
        ):  # what is logged of them is logged when a run is made
            settle(run)
        if run.name == "ceiling" and plan.flags["ceiling_checkpoint"]:
            run.folder = Path(plan.flags["ceiling_checkpoint"])
            run.record = take_finished(run, plan, "--ceiling-checkpoint")
    look_ahead(plan, typed)
    with kept_warnings() as kept:
        if plan.flag == "--protocol w2s":
            w2s.prepare(plan)
    unsure = [warning.getMessage().removeprefix("WARNING: ") for warning in kept]
    # so is what is there; a stage with ``assign_by`` waits for the figures that decide on its flags, and what is made
    # of a run that is not there yet is compared with that later
    there = {run.name for run in plan.runs if run.record or is_there(run, plan)}
    for run in plan.runs:
        if run.record or run.assign_by or run.name not in there:
            continue
        with said_of(f"{plan.flag}, {run.name}: "), quietly():
            if there >= set(run.needs):
                take_finished(run, plan, "--resume auto")
            else:
                read_finished(run, "--resume auto")

    for run in plan.runs:
        if not run.record:
            with said_of(f"{plan.flag}, {run.name}: "):
                _make(run, plan, train)

    # of several ranks the others take part where models are asked, which --folds does
    secondary = dist.is_initialized() and dist.get_rank() > 0
    if secondary and plan.flag != "--folds":
        return None
    record, table = FINISH[plan.flag](plan)
    if secondary:
        return None
    record["warnings"] = [*unsure, *record["warnings"]]
    write_json(plan.folder / RESULT, record)
    say(*with_warnings(table, record["warnings"]))
    return record


def _make(run: Run, plan: Plan, train: Callable[[dict[str, object]], dict]) -> None:
    """Make a run, unless it is there.

    Raises:
        UserError: a run that is there has other flags, or is of other data or other models than would be made.
    """
    # who labels what may follow from what an earlier stage has measured
    if run.assign_by:
        assign = {
            "teacher_assign": chain.choose_assign(run.assign_by, plan.records()[run.assign_by])
        }
        run.flags, run.settings = {**run.flags, **assign}, {**run.settings, **assign}
    # one that is complete is taken
    if is_there(run, plan):
        run.record = take_finished(run, plan, "--resume auto")
    else:
        flags, done = run.flags, plan.records()
        if done:  # data and weights may have changed since the runs before
            check_same({**plan.made_of(), run.name: sources_now(run.settings)}, plan.flag)
        if plan.flag == "--protocol w2s" and run.name == "student":
            flags = {**flags, "ceiling_acc": done["ceiling"]["metrics"]["top1"]}
        logger.info(
            f"{plan.flag}: {run.name} begins, on {flags.get('train_slice') or 'all'} of its training split"
        )
        run.record = train(flags)
    check_same(plan.made_of(), plan.flag)


def is_there(run: Run, plan: Plan) -> bool:
    """True if a run has ended before, and is to be taken."""
    return bool(plan.flags["resume"]) and (run.folder / RESULT).is_file()


def take_finished(run: Run, plan: Plan, flag: str) -> dict:
    """Return the record of a run that is there, in place of one that would be made.

    Args:
        run: in its folder.
        plan: that it is of.
        flag: that asks for it.

    Raises:
        UserError: it is not complete, or has other flags, data or weights than the one that would be made.
    """
    record = read_finished(run, flag)
    # --data-dir is no flag that has to stay, so that the data may lie elsewhere
    before, now = made_of_record(record), sources_now(run.settings)
    check_same({run.name: before, "the same run now": now}, f"{flag} {run.folder}", key="role")
    logger.info(f"{plan.flag}: {run.name} is complete: {run.folder}")
    return record


def read_finished(run: Run, flag: str) -> dict:
    """Return the record of a run that is there. Raises `UserError` if it is not complete, or has other flags."""
    record = read_result(run.folder, flag)
    # compared as they are written down; what is left open to the data, or to published weights, is not compared
    ours = yaml.safe_load(yaml.safe_dump(run.settings))
    left_open = {name for name in ("num_classes", "gp") if ours[name] is None}
    changed = other_values(read_run_args(run.folder, flag), without(ours, left_open))
    if changed:
        raise UserError(
            f"{flag} {run.folder}: that run had other flags: {list_changes(changed)}; repeat them, or have "
            "it trained anew in another folder"
        )
    return record


def read_result(folder: Path, flag: str) -> dict:
    """Read the result.json of a complete run that ``flag`` named. Raises `UserError` for anything else."""
    record = read_record(folder / RESULT)
    selected = (
        record.get("selected")
        if record and {"metrics", "data", "export"} <= record.keys()
        else None
    )
    is_complete = isinstance(selected, dict) and selected.get("rule") in PREDICTIONS
    if not is_complete:
        raise UserError(
            f"{flag} {folder}: no {RESULT} of a complete run there{near_folder(folder, RESULT)}"
        )
    return record


def sources_now(wanted: Flags) -> list[Ingredient]:
    """Return the data and the files of weights that a run with these settings would be made of now."""
    settings = TrainSettings.from_flags(wanted)
    loading, labelling = settings.data, settings.labels
    with quietly():
        labels = find_labels(settings.teacher, join_group(settings.compute.device))
        splits = open_splits(loading, settings.input.channels, settings.run.seed)
        sources = sources_of(loading, labelling, splits, labels)
        return sources + weights_of(settings.teacher, settings.student, labelling)
