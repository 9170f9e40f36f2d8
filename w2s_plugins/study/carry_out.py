"""``--protocol w2s``, ``--stages`` and ``--folds``: their runs, one after the other in this process, and what comes of
them. Each is an ordinary run in a folder of its own; one that is there already is taken as it is.
"""

import argparse
import json
import logging
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
import yaml

from ..cli.outcome import list_changes, other_values
from ..cli.parser import fill, train_parser
from ..errors import UserError, nearest, quietly, said_of, say
from ..files import write_json
from ..run.args_file import read_run_args
from ..run.record import PREDICTIONS
from ..training.data import open_splits, sources_of
from ..training.device import join_group
from ..training.flags import resolve_train_args
from ..training.labels import find_labels
from ..training.resolve import check_paths
from . import chain, folds, w2s
from .controls import Flags
from .layout import RESULT, read_record
from .planning import Plan, Run, make_plan
from .same_data import check_same_data, made_of

_logger = logging.getLogger(__name__)

# what comes of the runs: the record of all, and the table that the command ends with
FINISH = {"--protocol w2s": w2s.finish, "--stages": chain.finish, "--folds": folds.finish}


def carry_out(explicit_flags: Flags, train: Callable[[dict[str, object]], dict]) -> dict | None:
    """Make the runs that the flags ask for, write ``result.json`` beside them, and return what is in it, on the first
    rank only.

    Args:
        explicit_flags: flags that were set by hand.
        train: trains one model with the flags that it is given, and returns its record.

    Raises:
        UserError: flags that do not go together, or runs that cannot be compared.
    """
    # which runs there are is known from the flags alone
    plan = make_plan(explicit_flags)
    # the flags of all are checked before the first one is made
    for run in plan.runs:
        with said_of(f"{plan.flag}, {run.name}: "), quietly():  # what is logged of them is logged when a run is made
            args, names = fill(train_parser(), run.flags)
            resolve_train_args(args, names)
            check_paths(args)
            plan.settings[run.name] = vars(args)
    if plan.flag == "--protocol w2s":
        ceiling = plan.flags["ceiling_checkpoint"]
        if ceiling:
            plan.folders["ceiling"] = Path(ceiling)
            plan.done["ceiling"] = take_finished(plan, "ceiling", "--ceiling-checkpoint")
        w2s.prepare(plan)

    for run in plan.runs:
        if run.name not in plan.done:
            with said_of(f"{plan.flag}, {run.name}: "):
                _make(run, plan, train)

    # of several ranks the others take part where models are asked, which --folds does
    secondary = dist.is_initialized() and dist.get_rank() > 0
    if secondary and plan.flag != "--folds":
        return None
    record, table = FINISH[plan.flag](plan)
    if secondary:
        return None
    write_json(plan.folder / RESULT, record)
    if record.get("controls"):
        w2s.show_controls(plan, record["controls"])
    for warning in record.get("warnings", ()):
        _logger.warning(f"WARNING: {warning}")
    say(*table.splitlines())
    return record


def _make(run: Run, plan: Plan, train: Callable[[dict[str, object]], dict]) -> None:
    """Make a run, unless it is there.

    Raises:
        UserError: a run that is there has other flags, or is of other data or other models than would be made.
    """
    flags = run.flags
    if plan.flag == "--protocol w2s" and run.name == "student":
        flags = {**flags, "ceiling_acc": plan.done["ceiling"]["metrics"]["top1"]}
    folder = plan.folders[run.name] = plan.folder / run.name

    # one that is complete is taken
    record = None
    if plan.flags["resume"] and (folder / RESULT).is_file():
        record = take_finished(plan, run.name, "--resume auto")
        check_origin(run, plan, record)
    if record is None:
        if plan.done:  # the data may have changed since the runs before
            check_same_data({**plan.done, run.name: sources_now(plan.settings[run.name])}, plan.flag)
        _logger.info(f"{plan.flag}: {run.name}, --train-slice {flags.get('train_slice') or ':'}")
        record = train(flags)
    plan.done[run.name] = record
    check_same_data(plan.done, plan.flag)


def take_finished(plan: Plan, name: str, flag: str) -> dict:
    """Return the record of a run that is there, in place of one that would be made.

    Args:
        plan: with the folder of the run.
        name: of the run.
        flag: that asks for it.

    Raises:
        UserError: it is not complete, or has other flags or data than the one that would be made.
    """
    folder, wanted = plan.folders[name], plan.settings[name]
    record = read_result(folder, flag)
    # compared as they are written down; what is left open to the data is not compared
    ours = yaml.safe_load(yaml.safe_dump(wanted))
    for open_flag in ("num_classes", "gp"):
        if ours[open_flag] is None:  # that of the data, of published weights
            del ours[open_flag]
    changed = other_values(read_run_args(folder, flag), ours)
    if changed:
        raise UserError(f"{flag} {folder}: that run had other flags: {list_changes(changed)}; repeat them, or have it "
                        "trained anew in another folder")
    # --data-dir is no flag that has to stay, so that the data may lie elsewhere
    check_same_data({name: record, "the same run now": sources_now(wanted)}, f"{flag} {folder}", key="role")
    _logger.info(f"{plan.flag}: {name} is complete: {folder}")
    return record


def read_result(folder: Path, flag: str) -> dict:
    """Read the result.json of a complete run that ``flag`` named. Raises `UserError` for anything else."""
    record = read_record(folder / RESULT)
    try:
        # without a validation split there is no accuracy
        parts = [record["metrics"].get("top1"), record["data"]["label_noise"], record["data"]["splits"]["train"]]
        kinds = [(int, float, type(None)), (dict, type(None)), dict]
        right = all(map(isinstance, parts, kinds)) and record["selected"]["rule"] in PREDICTIONS
    except (AttributeError, TypeError, KeyError):
        right = False
    if not right:
        near = nearest(folder.name, [path.parent.name for path in folder.parent.glob(f"*/{RESULT}")])
        raise UserError(f"{flag} {folder}: no {RESULT} of a complete run there{near}")
    return record


def sources_now(wanted: Flags) -> dict[str, object]:
    """Return what a run with these settings would be made of now, as `check_same_data` takes it."""
    args = argparse.Namespace(**wanted)
    with quietly():
        labels = find_labels(args, join_group(args.device, args.dist_timeout))
        return made_of(sources_of(args, open_splits(args), labels))


def check_origin(run: Run, plan: Plan, record: dict) -> None:
    """Raise a `UserError` where a run was made of what one that it needs was before that was trained again."""
    for other in run.needs:
        made = str(plan.folder / other)
        named = any(made in str(value) for value in run.flags.values())
        weights = plan.done[other]["export"]["model.safetensors"]
        if named and weights not in json.dumps(record):
            raise UserError(f"--resume auto: {plan.folders[run.name]} is complete, but made from another {other} than "
                            f"that in {made}: delete the folders of {run.name} and of what comes after it")
