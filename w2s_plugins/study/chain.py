"""Several students one after the other (``--stages``): each may label for the next, or hand its weights on.

Every stage is an ordinary run in a folder of its own, with flags of the command line and its own. A file lists them:

    - name: head
      linear_probe: true
    - name: lora
      teacher: given,stage:head      # mean of the command line's and what the student of that stage says, stored
      teacher_targets: cached
      clean_select: entropy:0.8      # trained on the share of which it is most certain
      tune: lora
    - name: all
      initial_checkpoint: stage:lora # goes on from its weights
      lr: 1.0e-05

A stage with ``assign_by: NAME`` has the ``teacher_assign`` that an earlier one speaks for, as `choose_assign` says. One
with ``tune_by: [NAME, NAME]`` trains what one of earlier ones has trained, at its rate (`choose_best`): the one that is
right most often on labelled samples that it holds out, or says most often what weak labels of such samples say. A stage
with ``unless_same: NAME`` is what that later one would be without a choice: it is left out where both turn out to be
trained alike, and the choice by weak labels is for its part unless another one is beyond noise (`best_part`). The last
item may be ``audit: [head, all]``, no stage: images are drawn, about which a person says which of these is best.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas

from ..errors import UserError, logger, quietly
from ..metrics.figures import HEADINGS, allows_advice, figure_of_few, headline_name, no_advice
from ..monitor import format_table
from ..run.record import HELD_OUT, headline_of_record, images_of
from ..settings.concerns.subcommands import LabelsAudit
from ..settings.field import flags_of
from ..settings.forms import OF_PART
from .ahead import settle
from .controls import without
from .planning import LocalPlan, LocalRun
from .scores import (
    draws_of,
    figures_of,
    gather_warnings,
    hits_of,
    is_of_several,
    predictions_of,
    read_answers,
    read_predictions,
)

GAIN = "{value:+.2f} ({low:+.2f} to {high:+.2f})"


def judged_by(figures: Mapping[str, float]) -> str:
    """Return which figure on held-out samples a stage is compared by: ``agreement`` where they have no true labels."""
    headline = headline_name(figures)
    return headline if headline in figures else "agreement"


def right_of(name: str, record: Mapping) -> float:
    """Return how often a stage is right on the samples that it holds out, in percent, or its mAP; of samples without true
    labels, how often it says what its teacher says.

    Raises:
        UserError: it has no such figure.
    """
    try:
        figures = record["held_out"]["student"]
        return figures[judged_by(figures)]
    except (KeyError, TypeError):
        raise UserError(
            f"{name} has not measured itself: it needs select_split, and labelled images or a teacher"
        ) from None


def choose_best(names: Sequence[str], records: Mapping[str, Mapping]) -> str:
    """Return the one of some stages that is right most often on the samples that all of them hold out; of equals the first
    one. Without true labels, it is the one that says most often what the weak labels say.

    Raises:
        UserError: one has no such figure.
    """
    # A stage that needs more labels to be as good, such as one that trains all weights, learns from half of them here.
    # So the first one is not preferred by a margin, which would be against such a stage twice.
    right = {name: right_of(name, records[name]) for name in names}
    return max(names, key=right.__getitem__)


def held_out_by(record: Mapping) -> int:
    """Return how many samples a stage holds out."""
    return record["data"]["splits"]["select"]["num_samples"]


def usual_of(run: LocalRun, plan: LocalPlan) -> LocalRun | None:
    """Return the stage that is left out where a stage (``run``) is trained alike; None without one."""
    return next((stage for stage in plan.runs if stage.unless_same == run.name), None)


def is_same(run: LocalRun, other: LocalRun, part: Mapping[str, Any]) -> bool:
    """Return whether a stage is trained as another one is with the flags of a part (`flags_of_part`)."""
    with_part = replace(other, flags={**other.flags, **part})
    with quietly():
        settle(with_part)
    return without(run.settings.flags, ["experiment"]) == without(
        with_part.settings.flags, ["experiment"]
    )


def best_part(run: LocalRun, plan: LocalPlan) -> str:
    """Return by which one of the stages of its ``tune_by`` a stage is trained: the best one, see `choose_best`. Where weak
    labels choose, it is the one of the stage that is trained without a choice (`usual_of`), unless the best one says what
    they say so much more often that the paired interval over the held-out images leaves out 0.

    Raises:
        UserError: one of the stages has no figure.
    """
    names, records = run.tune_by, plan.records()
    best, usual = choose_best(names, records), usual_of(run, plan)
    if usual is None or judged_by(records[best]["held_out"]["student"]) != "agreement":
        return best
    for name in names:
        if is_same(usual, run, flags_of_part(name, names, plan)):
            return best if says_more(best, name, plan) else name
    return best


def says_more(name: str, other: str, plan: LocalPlan) -> bool:
    """Return whether a stage says what weak labels say more often than another one, beyond noise."""
    files = [plan.folder / stage / HELD_OUT for stage in (name, other)]
    # of an older version there are none
    if not all(file.is_file() for file in files):
        return False
    ours, theirs = (pandas.read_csv(file)["agreement"].to_numpy(float) for file in files)
    gain = figures_of(pandas.DataFrame({"gain": ours - theirs}))["gain"]
    return gain["low"] > 0


def choose_part(run: LocalRun, plan: LocalPlan) -> dict[str, Any]:
    """Return the flags of what the best of the stages in ``tune_by`` has trained, of its rate, and of its epochs, if these
    differ; see `best_part`.

    Raises:
        UserError: one of the stages has no figure.
    """
    names, records = run.tune_by, plan.records()
    best = best_part(run, plan)
    flags = flags_of_part(best, names, plan)
    right = {name: right_of(name, records[name]) for name in names}
    figures = ", ".join(f"{name} {right[name]:.1f} %" for name in names)
    as_good = [name for name in names if right[name] == right[best]]
    level = f"; {', '.join(as_good)} are level, so the first of them" if len(as_good) > 1 else ""
    if right[best] < max(right.values()):
        level = "; none is above it beyond noise"
    rates = "".join(
        f", {name} {flags[name]}" for name in ("lr", "layer_decay", "epochs") if flags.get(name)
    )
    count = held_out_by(records[best])
    said, images = "right", "labelled images"
    if judged_by(records[best]["held_out"]["student"]) == "agreement":
        said, images = "says what the labels say", "images"
    logger.info(
        f"tune: {flags['tune']}, as the stage {best} ({said}: {figures}, of the {count} {images} that they hold "
        f"out{level}){rates}"
    )
    return flags


def flags_of_part(best: str, names: Sequence[str], plan: LocalPlan) -> dict[str, Any]:
    """Return the flags of what a stage (``best`` of some ``names``) trains, as `choose_part` does."""
    settings = {stage.name: stage.settings.flags for stage in plan.runs if stage.name in names}
    flags = {name: settings[best][name] for name in OF_PART}
    # where all have equally many, these are of half of the samples
    if len({settings[name]["epochs"] for name in names}) > 1:
        flags["epochs"] = settings[best]["epochs"]
    # the recipe's values for another network are those of a part of their own
    return {**flags, "for_transformers": {}}


def choose_assign(name: str, record: Mapping) -> str:
    """Return the ``teacher_assign`` that the figures of a stage speak for: the posterior of a last teacher that is right
    as often as this stage is on the labelled images that it holds out.

    Raises:
        UserError: the stage has no such figure.
    """
    right = right_of(name, record)
    # few images can be all right or all wrong, and nobody is
    percent = min(max(round(right), 1), 99)
    logger.info(
        f"teacher_assign: posterior:{percent}, because the stage {name} is right on {right:.1f} % of the "
        f"{held_out_by(record)} labelled images that it holds out"
    )
    return f"posterior:{percent}"


def summary_of_stages(plan: LocalPlan) -> tuple[dict, str]:
    """Return the record of each stage, how far the last one is above the others, and what a reader has to know; and the
    table that ``--stages`` ends with.
    """
    # a stage that was made for its figures, by which another one chooses, is no student to take
    judges = {judge for stage in plan.runs for judge in (*stage.assign_by, *stage.tune_by)}
    students = [stage for stage in plan.runs if stage.name not in judges]
    first, last = students[0] if len(students) > 1 else plan.runs[0], plan.runs[-1]
    # of candidates what is trained without a choice is what others are compared with
    usual = (one for one in plan.runs if one.audited and (one.unless_same or one.stands_for))
    first = next(usual, first)
    above = {}
    for stage in plan.runs[:-1]:
        gain = gain_over(last, stage)
        if gain is not None:
            above[stage.name] = gain
    last_above = {stage.name: above[stage.name] for stage in students if stage.name in above}
    warnings = gather_warnings({f"stage {stage.name}": stage.record for stage in students})
    advice, doubt = advise(plan, above)
    warnings += doubt
    rows = []
    headline = headline_of_record(last.record)
    for stage in plan.runs:
        model, metrics = stage.record["model"], stage.record["metrics"]
        trained = "head" if model["linear_probe"] else model.get("trained", model["params"])
        gain = gain_over(stage, first) if stage is not first else None
        images = images_of(stage.record, "val", "select")
        row = {
            "stage": f"{stage.name}, which is {stage.stands_for}"
            if stage.stands_for
            else stage.name,
            HEADINGS[headline]: figure_of_few(stage.headline, images),
            f"above {first.name} (95 % interval)": gain and GAIN.format(**gain),
            "agreement": metrics.get("agreement"),
            "trained weights": trained,
            "seconds": stage.record["seconds"],
        }
        # without true labels the agreement is that of the same images
        if judges and last.headline is not None:
            row["of its held-out part"] = (
                figure_of_few(right_of(stage.name, stage.record), held_out_by(stage.record))
                if stage.name in judges
                else None
            )
        rows.append(row)
    table = format_table([list(row.values()) for row in rows], list(rows[0]))
    record = dict(stages=plan.records(), last_above=last_above, warnings=warnings)
    return record, f"{table}\n* {advice}"


def advise(plan: LocalPlan, above: Mapping[str, Mapping]) -> tuple[str, list[str]]:
    """Return which student to take, and what a reader has to know of that.

    Args:
        plan: its stages are finished.
        above: how far the last one is above others, from `gain_over`, by their names.
    """
    # of candidates the last one is no better than others until somebody has said so
    audited = [stage for stage in plan.runs if stage.audited]
    last = plan.runs[-1]
    names = ", ".join(stage.name for stage in audited)
    question = (
        f"which of {names} is best? {count_answers(audited)} answers of yours help to tell"
        if audited
        else ""
    )
    images = images_of(last.record, "val")
    if above and not allows_advice(images):
        return f"{no_advice(images)}; {question}" if audited else no_advice(images), []
    if audited and not above:
        first = f"take {last.name}, exported to {last.folder / 'export'}; " if last.tune_by else ""
        return f"{first}{question}", []
    # a reader would take the last one, which an earlier one may be better than
    take, doubt = last, []
    why = "no stage was measured on the same labelled images, so it is simply the last one"
    if above:
        why = "of those that were measured on the same images, none is above it"
        best = min(above, key=lambda name: above[name]["value"])
        if above[best]["value"] < 0:
            doubt.append(
                f"the last stage, {take.name}, is below an earlier one, {best} "
                "({value:+.2f}, 95 % interval {low:+.2f} to {high:+.2f})".format(**above[best])
                + f": the better student is {best}, exported to {plan.folder / best / 'export'}"
            )
            take = next(stage for stage in plan.runs if stage.name == best)
    advice = f"take {take.name}, exported to {take.folder / 'export'} ({why})"
    return f"{advice}; {question}" if audited else advice, doubt


def count_answers(stages: Sequence[LocalRun]) -> int:
    """Return about how many images a person is asked: those that ``labels audit`` draws, if there are so many."""
    drawn = next(flag.default for flag in flags_of(LabelsAudit) if flag.name == "images")
    # of a stream nobody knows how many there are
    seen = [stage.record["data"]["splits"]["train"]["num_samples"] for stage in stages]
    return min([drawn, *filter(None, seen)])


def gain_over(stage: LocalRun, other: LocalRun) -> dict[str, Any] | None:
    """Return how far one stage is above another: ``value`` in percent, ``low`` and ``high`` of its bootstrap interval
    over test samples; None where they were not measured on the same ones.
    """
    ours, theirs = _predictions_of(stage), _predictions_of(other)
    if ours is None or theirs is None or len(ours) != len(theirs):
        return None
    # of equally many samples they may still be others, unless they are of a stream, which has no fingerprint
    splits = {run.record["data"]["splits"]["val"]["fingerprint"] for run in (stage, other)}
    if len(splits) > 1:
        return None
    if is_of_several(ours):
        both = {"student": stage, "other": other}
        answers = read_answers(
            {name: predictions_of(run.folder, run.record) for name, run in both.items()}
        )
        hits = hits_of(answers)
        gains = pandas.DataFrame({"gain": hits["student"] - hits["other"]})
        draws = draws_of(hits, answers)
        gain = figures_of(gains, {"gain": draws["student"] - draws["other"]})["gain"]
        return None if gain["value"] is None else gain
    gains = _hits(ours) - _hits(theirs)
    return figures_of(pandas.DataFrame({"gain": gains}))["gain"]


def _predictions_of(stage: LocalRun) -> pandas.DataFrame | None:
    """Return what a stage says of the test samples; None without ground truth."""
    file = predictions_of(stage.folder, stage.record)
    if not file.is_file():
        return None
    answers = read_predictions(file)
    return answers if "target" in answers else None


def _hits(answers: pandas.DataFrame) -> np.ndarray:
    """Return which test samples a stage has right, (N,), 1 or 0."""
    return (answers["student"] == answers["target"]).to_numpy(float)
