"""Tables of a person's answers: to which draw they belong, and what they say of which image."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..data.keys import SampleKeys
from ..errors import UserError, logger, quietly, typed
from ..labels.commands import read_tables
from ..labels.samples import labels_of_samples
from ..labels.table import LabelRows
from ..no_label import NO_LABEL
from .page import UNSURE

COMMANDS = {
    "a": "audit",
    "n": "next",
    "r": "review",
}  # by the first letter of the names of their draws
# It begins with a letter, so that no spreadsheet takes it for a number.
is_draw = re.compile(f"[{''.join(COMMANDS)}][0-9a-f]{{15}}").fullmatch


class Answers(NamedTuple):
    """What a table says.

    Args:
        draws: that the table names.
        rows: (A,) of what it answers, in the order of the table as far as it names images as they are.
        labels: (A,) numbers of the answers, `NO_LABEL` where nobody can tell or several people differ.
        total: how many answers it has, those about other images among them.
    """

    draws: set[str]
    rows: np.ndarray
    labels: np.ndarray
    total: int


def open_answers(file: str, classes: Sequence[str]) -> tuple[LabelRows, str | None]:
    """Read answers as any table; return it, and how its name says to combine several people.

    Raises:
        UserError: it cannot be read, or says what is no class.
    """
    # who cannot tell has a class of its own; a person can correct what is no class
    (table,), _, how = read_tables([[file]], [*dict.fromkeys([*classes, UNSURE])], "error")
    return table, how["combine"]


def read_answers(file: str, by: str, keys: Sequence[str | int], classes: Sequence[str]) -> Answers:
    """Read answers about the classes of images.

    Args:
        file: the table.
        by: what the keys are, ``filename`` or ``id``.
        keys: (N,) of the images.
        classes: their names.

    Raises:
        UserError: it cannot be read, is about none of the images, or contradicts itself.
    """
    table, combine = open_answers(file, classes)
    names, unsure = [*dict.fromkeys([*classes, UNSURE])], len(classes)
    with quietly():  # names are to be those of one image of all
        answers = labels_of_samples(table, keys_of(by, keys), names, combine, file)
    labels = answers.classes()
    known = answers.known.nonzero().flatten()
    is_tie = answers.best(known).sum(dim=1) > 1
    labels[known[is_tie]] = unsure
    warn_of_ties(int(is_tie.sum()), file)
    order = {key: number for number, key in enumerate(table.keys)}
    rows = known.numpy()
    rows = rows[np.argsort([order.get(keys[row], len(order)) for row in rows], kind="stable")]
    labels = np.where(labels == unsure, NO_LABEL, labels)
    return Answers({*table.draws}, rows, labels[rows], len({*table.keys}))


def keys_of(by: str, keys: Sequence[str | int]) -> SampleKeys:
    """Return the keys (N,) of images as they are found by the rows of a table."""
    return SampleKeys("filename" if by == "filename" else "index", keys)


def warn_of_ties(count: int, file: str) -> None:
    """Say about how many images as many people say one thing as another."""
    if count:
        logger.warning(
            f"WARNING: {file}: people differ about {count} of these, which count as '{UNSURE}'"
        )


def check_draws(
    named: Iterable[str],
    command: str,
    is_known: Callable[[str], bool],
    folder: Path,
    file: str,
) -> set[str]:
    """Return the draws that answers name.

    Args:
        named: what they have in the column for it.
        command: that reads them.
        is_known: whether a draw is one of this folder.
        folder: of the command in a run.
        file: of the answers.

    Raises:
        UserError: one is of another command, run or student.
    """
    # other tables may have a column of that name with anything in it
    draws = {*filter(is_draw, map(str.lower, named))}
    for draw in sorted(draws):
        other = COMMANDS[draw[0]]
        if other != command:
            why = "whose images are no random sample" if command == "audit" else "which has its own"
            raise UserError(
                f"{file}: has answers to `{other}`, {why}; expected {typed('labels')} {other} RUN --answers {file}"
            )
        if not is_known(draw):
            whose = run_of_sheet(draw, folder)
            whose = whose or "of another student, or of other images, classes or labels"
            raise UserError(
                f"{file}: is of another draw than {folder.parent}'s: {whose}; expected answers to "
                f"{folder / 'index.html'}"
            )
    return draws


def run_of_sheet(draw: str, folder: Path) -> str:
    """Return whose answers those of a draw are, if that is a run beside this one; else nothing.

    Args:
        draw: its name, as sheets have it in a column and in their names.
        folder: where this run has such sheets.
    """
    run = folder.resolve().parent
    # stages are in the folder of a run, beside which others are
    is_stage = (run.parent / "result.json").is_file()
    top = run.parent.parent if is_stage else run.parent
    # older versions shortened the name of the draw
    for depth in ("*/*", "*/*/*"):
        for sheet in top.glob(f"{depth}/answers-{draw[:7]}*.csv"):
            return f"of RUN {os.path.relpath(sheet.parent.parent)}"
    return ""
