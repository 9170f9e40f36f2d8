"""``--protocol w2s``, ``--stages`` and ``--folds``: their runs, one after the other in this process, and what comes of
them. Each is an ordinary run in a folder of its own; one that is there already is taken as it is.
"""

from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml

from ..cli.outcome import list_changes, other_values
from ..distributed.world import barrier, count_processes
from ..errors import UserError, kept_warnings, logger, near_folder, quietly, say
from ..files import write_json
from ..made_of import Ingredient, check_same
from ..run.args_file import read_run_args
from ..run.find import delete_older
from ..run.record import PREDICTIONS, with_warnings
from ..training.device import join_group
from . import chain, folds, scores, w2s
from .ahead import look_ahead, settle, sources_now
from .controls import Flags, without
from .executor import Executor
from .layout import made_of_record, read_record
from .plan import RESULT
from .planning import LocalPlan, LocalRun, plan_runs

Record = dict[str, Any]
Train = Callable[[dict[str, Any]], Record]  # trains one model with the flags that it is given
# draws so many images of some runs, about which a person says which run is best; last the plugins of the runs
Audit = Callable[[Sequence[str], int, Sequence[str]], None]
# what comes of the runs: the record of all, and the table that the command ends with
SUMMARIES = {
    "--protocol w2s": scores.summary_of_protocol,
    "--stages": chain.summary_of_stages,
    "--folds": folds.summary_of_folds,
}


def carry_out(explicit_flags: Flags, typed: Set[str], train: Train, audit: Audit) -> Record | None:
    """Make the runs that the flags ask for, write ``result.json`` beside them, and return what is in it, on the first
    rank only.

    Args:
        explicit_flags: flags that were set by hand.
        typed: names of those that are on the command line.
        train: trains one model with the flags that it is given, and returns its record.
        audit: see `Audit`; stages may end with it.

    Raises:
        UserError: flags that do not go together, or runs that cannot be compared.
    """
    # flags, data and finished runs of all are checked before the first one is made: after hours it is too late
    plan = plan_runs(explicit_flags, typed)
    for run in plan.runs:
        with plan.about(run), quietly():  # what is logged of them is logged when a run is made
            # by what it may turn out to train, too, of which it will be told once others are trained
            for judge in run.tune_by:
                part = chain.flags_of_part(judge, run.tune_by, plan)
                settle(replace(run, flags={**run.flags, **part}))
            settle(run)
        if run.kind == "ceiling" and plan.flags["ceiling_checkpoint"]:
            run.folder = Path(plan.flags["ceiling_checkpoint"])
            run.record = take_finished(run, plan, "--ceiling-checkpoint")
    look_ahead(plan, typed)
    with kept_warnings() as kept:
        if plan.flag == "--protocol w2s":
            w2s.prepare(plan)
    # what could not be checked is told again at the end, where it is read
    unsure = [warning.getMessage().removeprefix("WARNING: ") for warning in kept]
    check_finished(plan)

    InThisProcess(plan, train).work()
    plan.runs = [run for run in plan.runs if run.record]

    # of several ranks the others take part where models are asked, which --folds does
    secondary = is_secondary()
    record = None
    if not secondary or plan.flag == "--folds":
        record, table = SUMMARIES[plan.flag](plan)
        if not secondary:
            record["warnings"] = [*unsure, *record["warnings"]]
            write_json(plan.folder / RESULT, record)
            say(*with_warnings(table, record["warnings"]))

    # one process draws images for a person, and the others wait here, where a signal ends them as well
    audited = [run for run in plan.runs if run.audited]
    if audited and not secondary:
        folders = [str(run.folder) for run in audited]
        audit(folders, chain.count_answers(audited), plan.flags["plugins"])
    if audited and count_processes() > 1:
        barrier()
    return None if secondary else record


def is_secondary() -> bool:
    """Return whether this is another rank than the first one, which writes."""
    return dist.is_initialized() and dist.get_rank() > 0


class InThisProcess(Executor[LocalRun]):
    """Makes each run in this process, which may be one of several ranks: all of them make the same runs.

    Args:
        plan: the runs, with their settings.
        train: see `carry_out`.
    """

    def __init__(self, plan: LocalPlan, train: Train):
        super().__init__(plan)
        self.train = train

    def begin(self, run: LocalRun) -> bool:
        """Make a run, or take it if it is there.

        Raises:
            UserError: a run that is there has other flags, or is of other data or other models than would be made.
        """
        plan = self.plan
        with plan.about(run):
            if run.unless_same and self.leave_out(run):
                return True
            # what is trained, and who labels what, may follow from what earlier stages have measured
            if run.tune_by:
                run.flags = {**run.flags, **chain.choose_part(run, plan)}
                with quietly():
                    settle(run)
            if run.assign_by:
                records = plan.records()
                judge = chain.choose_best(run.assign_by, records)
                assign = chain.choose_assign(judge, records[judge])
                run.flags = {**run.flags, "teacher_assign": assign}
                run.settings = run.settings.with_flags(teacher_assign=assign)
            if is_there(run, plan):
                run.record = take_finished(run, plan, "--resume auto")
            else:
                run.record = self.make(run)
            # within the message of this run, which is the one that differs from those before
            self.note_finished()
        return True

    def leave_out(self, run: LocalRun) -> bool:
        """Leave out a stage that a later one is trained like, and return whether that is so."""
        plan = self.plan
        later = next(stage for stage in plan.runs if stage.name == run.unless_same)
        part = {}
        if later.tune_by:
            part = chain.flags_of_part(chain.best_part(later, plan), later.tune_by, plan)
        if not chain.is_same(run, later, part):
            return False
        logger.info(
            f"{plan.flag}: without the stage {run.name}, because {later.name} is trained alike"
        )
        self.lost.add(run.name)
        later.stands_for = run.name
        return True

    def make(self, run: LocalRun) -> Record:
        """Train a run, and return its record."""
        # the first one is not read twice: there is nothing to compare it with
        if self.made_of:
            self.check_before(run, sources_of(run))
        # a student that knows its ceiling's accuracy reports its PGR by itself
        flags = run.flags
        ceiling_acc = self.plan.ceiling_acc(run)
        if ceiling_acc is not None:
            flags = {**flags, "ceiling_acc": ceiling_acc}
        part = flags.get("train_slice") or "all"
        held_out = flags.get("select_split")
        but = f", of which it holds out {held_out}" if held_out else ""
        logger.info(f"{self.plan.flag}: {run.name} begins, on {part} of its training split{but}")
        record = self.train(flags)
        # others need its export alone; with the last checkpoint it goes on, and --select best takes the best one
        if "checkpoint_hist" not in run.flags and not is_secondary():
            delete_older(run.folder, keeps_best=run.settings.evaluation.select == "best")
        return record


# ---------------------------------------------------------------- runs that are there


def check_finished(plan: LocalPlan) -> None:
    """Check the runs that are there and will be taken.

    Raises:
        UserError: see `take_finished`.
    """
    there = {run.name for run in plan.runs if run.record or is_there(run, plan)}
    for run in plan.runs:
        # some stages wait for the figures that decide on their flags
        if run.record or run.assign_by or run.tune_by or run.name not in there:
            continue
        with plan.about(run), quietly():
            # what is made of a run that is not there yet is compared with that later
            if there >= set(run.needs):
                take_finished(run, plan, "--resume auto")
            else:
                read_finished(run, "--resume auto")


def is_there(run: LocalRun, plan: LocalPlan) -> bool:
    """Return whether a run has ended before, and is to be taken."""
    # without --resume auto a run of this name is not ours: the training refuses its folder
    return bool(plan.flags["resume"]) and run.finished


def take_finished(run: LocalRun, plan: LocalPlan, flag: str) -> Record:
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
    before, now = made_of_record(record), sources_of(run)
    check_same({run.name: before, "the same run now": now}, f"{flag} {run.folder}", key="role")
    logger.info(f"{plan.flag}: {run.name} is complete: {run.folder}")
    return record


def read_finished(run: LocalRun, flag: str) -> Record:
    """Return the record of a run that is there. Raises `UserError` if it is not complete, or has other flags."""
    # flags that may change, such as workers, are left out by `other_values`
    record = read_result(run.folder, flag)
    # compared as they are written down; what is left open to data, published weights or device is not compared
    ours = yaml.safe_load(yaml.safe_dump(dict(run.settings.flags)))
    left_open = {name for name in ("num_classes", "gp", "channels_last") if ours[name] is None}
    changed = other_values(read_run_args(run.folder, flag), without(ours, left_open))
    if changed:
        raise UserError(
            f"{flag} {run.folder}: that run had other flags: {list_changes(changed)}; repeat them, or have "
            "it trained anew in another folder"
        )
    return record


def read_result(folder: Path, flag: str) -> Record:
    """Read the result.json of a complete run that ``flag`` named. Raises `UserError` for anything else."""
    # what later runs and the closing table take of it; other versions may have written less
    record = read_record(folder / RESULT) or {}
    selected = record.get("selected")
    rule = selected.get("rule") if isinstance(selected, dict) else None
    has_chosen = rule in list(PREDICTIONS)  # what was read may not be hashable
    if not has_chosen or not {"metrics", "data", "export"} <= record.keys():
        raise UserError(
            f"{flag} {folder}: no {RESULT} of a complete run there{near_folder(folder, RESULT)}"
        )
    return record


def sources_of(run: LocalRun) -> list[Ingredient]:
    """Return what a run would be made of now. All ranks take part."""
    return sources_now(run.settings, join_group(run.settings.compute.device))
