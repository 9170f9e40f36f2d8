"""What a person has answered about the images of a draw: read from a table, and kept beside the plan."""

import itertools
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.keys import SampleKeys
from ..errors import UserError, logger, quietly, typed, write_errors
from ..labels.commands import read_tables
from ..labels.samples import labels_of_samples
from ..labels.table import LabelRows
from ..labels.table_writer import write_label_table
from ..no_label import NO_LABEL
from .draw import Step
from .plan import Plan, is_draw, is_round
from .questions import Questions, read_said

UNSURE = "?"  # the answer of who cannot tell
KEPT = "answers.csv"  # the last answers, in the folder of an audit


@dataclass
class Answered:
    """The answers about the first images of a draw.

    Args:
        steps: of the draw, up to the last image that has an answer.
        rows: (n,) of the images.
        truth: (n,) classes, `NO_LABEL` where the person could not tell.
        drawn: how many images were drawn.
        unknown: how many answers are about images that are not drawn.
    """

    steps: list[Step]
    rows: np.ndarray
    truth: np.ndarray
    drawn: int
    unknown: int = 0


def read_answers(plan: Plan, file: str, folder: Path) -> Answered:
    """Read the answers about a draw.

    Args:
        plan: has the draw.
        file: the table.
        folder: of the audit.

    Raises:
        UserError: they cannot be read, are of another draw, have a gap, or are about none of the images.
    """
    if isinstance(plan, Questions):
        draws, has_answer, classes, count = read_said(plan, file, UNSURE)
        steps = find_draw(plan, draws, folder, file)
    else:
        table, combine = open_answers(file, plan.classes)
        steps = find_draw(plan, table.draws, folder, file)
        has_answer, classes = answers_by_image(
            table, combine, plan.by, plan.keys, plan.classes, file
        )
        count = len({*table.keys})

    # in the order of the draw, without a gap
    drawn = plan.order(steps)[: steps[-1].drawn]
    answered = has_answer[drawn].nonzero()[0]
    _check_order(plan, drawn, answered, file)
    rows = drawn[: len(answered)]
    truth = classes[rows]
    if not (truth != NO_LABEL).any():
        raise UserError(f"{file}: says of no {plan.unit} what is on it")
    unknown = count - len(answered)
    return Answered(first_steps(steps, len(rows)), rows, truth, steps[-1].drawn, unknown)


def open_answers(file: str, classes: Sequence[str]) -> tuple[LabelRows, str | None]:
    """Read answers as any table; return it, and how its name says to combine several people.

    Raises:
        UserError: it cannot be read, or says what is no class.
    """
    # who cannot tell has a class of its own; a person can correct what is no class
    (table,), _, how = read_tables([[file]], [*dict.fromkeys([*classes, UNSURE])], "error")
    return table, how["combine"]


def answers_by_image(
    table: LabelRows,
    combine: str | None,
    by: str,
    keys: Sequence[str | int],
    classes: Sequence[str],
    file: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Return which images a table has an answer about (N,), and the classes (N,), `NO_LABEL` where nobody can tell or
    several people differ.

    Args:
        table: from `open_answers`, as ``combine``.
        combine: how to combine several people.
        by: what the keys are, ``filename`` or ``id``.
        keys: (N,) of the images.
        classes: their names.
        file: name of the table, for messages.

    Raises:
        UserError: it is about none of the images, or contradicts itself.
    """
    names, unsure = [*dict.fromkeys([*classes, UNSURE])], len(classes)
    sample_keys = SampleKeys("filename" if by == "filename" else "index", keys)
    with quietly():  # names are to be those of one image of all
        answers = labels_of_samples(table, sample_keys, names, combine, file)
    said = answers.classes()
    known = answers.known.nonzero().flatten()
    said[known[answers.best(known).sum(dim=1) > 1]] = unsure
    return answers.known.numpy(), np.where(said == unsure, NO_LABEL, said)


def find_draw(plan: Plan, named_by: Collection[str], folder: Path, file: str) -> list[Step]:
    """Return the draw that answers say they are of, or else the last one. Raises `UserError` if it is another one."""
    # other tables may have a column of that name with anything in it
    ids = [*map(str.lower, named_by)]
    if any(map(is_round, ids)):
        raise UserError(
            f"{file}: is of images to label next, which are no random sample; expected {typed('labels')} next RUN "
            f"--answers {file}"
        )
    named = {*filter(is_draw, ids)}
    draws = {plan.id_of(steps): steps for steps in plan.draws}
    if len(named) > 1:
        raise UserError(
            f"{file}: has answers of {len(named)} draws; expected those of one, in a file of their own"
        )
    if named - {*draws}:
        other = run_of_sheet(min(named - {*draws}), folder)
        other = other or "of another student, or of other images or labels"
        raise UserError(
            f"{file}: is of another draw than {folder.parent}'s: {other}; expected answers to {folder / 'index.html'}"
        )
    return draws[named.pop()] if named else plan.draws[-1]


def run_of_sheet(draw: str, folder: Path) -> str:
    """Return whose answers those of a draw are, if that is a run beside this one; else nothing.

    Args:
        draw: its name, as sheets have it in a column and, shortened, in their names.
        folder: where this run has such sheets.
    """
    run = folder.resolve().parent
    # stages are in the folder of a run, beside which others are
    is_stage = (run.parent / "result.json").is_file()
    top = run.parent.parent if is_stage else run.parent
    # the names of sheets begin with that of their draw
    for depth in ("*/*", "*/*/*"):
        for sheet in top.glob(f"{depth}/answers-{draw[:7]}*.csv"):
            return f"of RUN {os.path.relpath(sheet.parent.parent)}"
    return ""


def first_steps(steps: Sequence[Step], count: int) -> list[Step]:
    """Return the steps by which the first images of a draw were drawn."""
    first: list[Step] = []
    for step in steps:
        if not first or first[-1].drawn < count:
            first.append(step._replace(drawn=min(step.drawn, count)))
    return first


def _check_order(plan: Plan, drawn: np.ndarray, answered: np.ndarray, file: str) -> None:
    """Raise a `UserError` if an image has no answer, but one that is drawn after it has.

    The first images of the draw are a random sample of each stratum, however many they are. Any others are not: not
    those that a person found easy, nor those that were drawn for another student.

    Args:
        plan: the draw.
        drawn: (n,) rows of the images in the order of the draw.
        answered: the numbers of the drawn images with an answer, in order.
        file: of the answers.
    """
    first, last = find_gap(answered)
    if first < last:
        raise UserError(
            f"{file}: has no answer about {plan.words(drawn[first])}, {plan.unit} {first + 1} of the draw, but about "
            f"others after it: answers count in the order of the draw; expected one about each of the "
            f"first {last}, '{UNSURE}' if nobody can tell"
        )


def find_gap(answered: np.ndarray) -> tuple[int, int]:
    """Return how many of the first images have an answer, and up to which there are any: the same without a gap."""
    in_order = answered == np.arange(len(answered))
    return int(in_order.sum()), int(answered[-1]) + 1 if len(answered) else 0


# ---------------------------------------------------------------- kept


def keep_answers(plan: Plan, answered: Answered, folder: Path) -> None:
    """Write the answers beside the plan, so that they count when more images are drawn, or for other students."""
    # those that are replaced by fewer are not lost
    try:
        before = kept_answers(plan, folder)
        gone = 0 if before is None else len(np.setdiff1d(before.rows, answered.rows))
    except UserError:
        gone = 1
    if gone:
        _set_aside(folder, "because there are fewer now")
    steps = next(steps for steps in plan.draws if _is_first_of(answered.steps, steps))
    write_sheet(folder / KEPT, plan, plan.id_of(steps), answered.rows, answered)


def _is_first_of(first: Sequence[Step], steps: Sequence[Step]) -> bool:
    return first_steps(steps, first[-1].drawn) == [*first]


def kept_answers(plan: Plan, folder: Path) -> Answered | None:
    """Return the answers that are kept beside a plan, None where there are none.

    Raises:
        UserError: they were changed into something else.
    """
    file = folder / KEPT
    if not plan.draws or not file.is_file():
        return None
    with quietly():  # what is logged of a table was said when it was read for the first time
        return read_answers(plan, str(file), folder)


def set_aside_others(plan: Plan, folder: Path) -> None:
    """Give answers that are kept beside a plan, but are of no draw of it, another name: they cannot count any more."""
    try:
        kept_answers(plan, folder)
    except UserError:
        _set_aside(folder, "because they are of another draw")


def _set_aside(folder: Path, reason: str) -> None:
    """Give the kept answers another name, which no file has, and say so."""
    names = (folder / f"earlier-{number}-{KEPT}" for number in itertools.count(1))
    aside = next(path for path in names if not path.exists())
    with write_errors(folder):
        (folder / KEPT).rename(aside)
    logger.warning(f"WARNING: the answers before do not count, {reason}; they are kept as {aside}")


def write_sheet(
    path: Path, plan: Plan, draw: str, rows: np.ndarray, answered: Answered | None
) -> None:
    """Write a table for the answers about some images, with those that there are."""
    given = labels_given(plan, answered)
    labels = [given.get(plan.key(row), "") for row in rows]
    write_label_table(path, [plan.sheet(rows.tolist(), labels, draw)])


def labels_given(plan: Plan, answered: Answered | None) -> dict[str | int, str]:
    """Return what a person has answered, by what it is called on the page."""
    if answered is None:
        return {}
    return {
        plan.key(row): UNSURE if label == NO_LABEL else plan.choices[label]
        for row, label in zip(answered.rows, answered.truth)
    }
