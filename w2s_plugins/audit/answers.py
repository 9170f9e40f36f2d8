"""What a person has answered about the images of a draw: read from a table, and kept beside the plan."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError, logger, quietly, write_errors
from ..labels.table_writer import write_label_table
from ..no_label import NO_LABEL
from .draw import Step
from .page import UNSURE
from .plan import Plan
from .tables import check_draws

KEPT = "answers.csv"  # the last answers, in the folder of an audit


@dataclass
class Answered:
    """The answers about the first images of a draw.

    Args:
        draw: its name.
        steps: of the draw, up to the last image that has an answer.
        rows: (n,) of the images.
        truth: (n,) classes, `NO_LABEL` where the person could not tell.
        drawn: how many images were drawn.
        unknown: how many answers are about images that are not drawn.
    """

    draw: str
    steps: list[Step]
    rows: np.ndarray
    truth: np.ndarray
    drawn: int
    unknown: int = 0


def read_answered(plan: Plan, file: str, folder: Path) -> Answered:
    """Read the answers about a draw.

    Args:
        plan: has the draw.
        file: the table.
        folder: of the audit.

    Raises:
        UserError: they cannot be read, are of another draw, have a gap, or are about none of the images.
    """
    answers = plan.read(file)
    draws = {plan.id_of(steps): steps for steps in plan.draws}
    named = check_draws(answers.draws, "audit", draws.__contains__, folder, file)
    if len(named) > 1:
        raise UserError(
            f"{file}: has answers of {len(named)} draws; expected those of one, in a file of their own"
        )
    draw = named.pop() if named else [*draws][-1]
    steps = draws[draw]

    # in the order of the draw, without a gap
    labels = dict(zip(answers.rows.tolist(), answers.labels.tolist()))
    drawn = plan.order(steps)[: steps[-1].drawn]
    answered = np.isin(drawn, answers.rows).nonzero()[0]
    _check_order(plan, drawn, answered, file)
    rows = drawn[: len(answered)]
    truth = np.array([labels[row] for row in rows.tolist()], dtype=np.int64)
    if not (truth != NO_LABEL).any():
        raise UserError(f"{file}: says of no {plan.unit} what is on it")
    unknown = answers.total - len(answered)
    return Answered(draw, first_steps(steps, len(rows)), rows, truth, steps[-1].drawn, unknown)


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
    rows, labels = answered.rows.tolist(), answered.truth.tolist()
    table = plan.table(rows, [plan.word(label) for label in labels], answered.draw)
    write_label_table(folder / KEPT, [table])


def kept_answers(plan: Plan, folder: Path) -> Answered | None:
    """Return the answers that are kept beside a plan, None where there are none.

    Raises:
        UserError: they were changed into something else.
    """
    file = folder / KEPT
    if not plan.draws or not file.is_file():
        return None
    with quietly():  # what is logged of a table was said when it was read for the first time
        return read_answered(plan, str(file), folder)


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
