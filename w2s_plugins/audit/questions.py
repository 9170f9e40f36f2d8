"""The plan of an audit of several classes an image: a person is asked about an image and a class, whether it is there.

So what is drawn, answered and counted is a question, one of the N * C of N images and C classes, and its row is the
place of the image times C, plus the place of the class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from ..data.keys import SampleKeys
from ..errors import UserError, nearest, quietly, shorten
from ..labels.samples import NO_SAMPLE, match_rows
from ..labels.spelling import whole
from ..labels.table import LabelRows, open_table, plain_name
from ..labels.table_writer import write_label_table
from ..no_label import NO_LABEL
from .draw import Decisions, Opinions, lots_of_parts
from .plan import Opinion, Plan

NO_OR_YES = ["no", "yes"]  # what is said, by its number
COLUMNS = (
    "class",
    "answer",
    "audit",
)  # of a table of answers, beside the one with the names of the images


@dataclass
class Questions(Plan):
    """What is said of several classes of the images, and which questions about these were drawn; attributes as of `Plan`,
    whose opinions have a row for each question.
    """

    unit: ClassVar[str] = "question"
    opinions_as: ClassVar[type[Opinions]] = Decisions

    @property
    def count(self) -> int:
        return len(self.keys) * len(self.classes)

    @property
    def choices(self) -> list[str]:
        return NO_OR_YES

    @cached_property
    def lots(self) -> np.ndarray:
        return lots_of_parts(self.keys, len(self.classes))

    def about(self, row: int) -> tuple[str | int, str]:
        """Return the key of the image and the class that a question is about."""
        image, place = divmod(int(row), len(self.classes))
        return self.keys[image], self.classes[place]

    def key(self, row: int) -> str | int:
        return int(row)

    def image(self, row: int) -> str | int:
        return self.about(row)[0]

    def words(self, row: int) -> str:
        key, name = self.about(row)
        return f"{key} and '{name}'"

    def sheet(
        self, rows: Sequence[int], answers: Sequence[str], draw: str
    ) -> Mapping[str, Sequence[str | int]]:
        pairs = [self.about(row) for row in rows]
        of_rows = [[name for _, name in pairs], answers, [draw] * len(pairs)]
        return {self.by: [key for key, _ in pairs], **dict(zip(COLUMNS, of_rows))}


def opinion_of(says: np.ndarray, probability: np.ndarray | None = None) -> Opinion:
    """Return what somebody says of each question.

    Args:
        says: (N, C) 1, 0 or `NO_LABEL`.
        probability: (N, C) of yes, None where nobody says it.
    """
    # the second best answer to a question is the other one
    other = np.where(says == NO_LABEL, NO_LABEL, 1 - says)
    sure = np.full(says.shape, np.nan)
    if probability is not None:
        sure = np.where(says == 1, probability, 1 - probability)
    return Opinion(
        says.ravel().astype(np.int32),
        other.ravel().astype(np.int32),
        sure.ravel().astype(np.float32),
    )


# ---------------------------------------------------------------- answers


class Said(NamedTuple):
    """What a table of answers says.

    Args:
        draws: that the table says it is of.
        has_answer: (N * C,) which questions it answers.
        says: (N * C,) 1 for yes, 0 for no, `NO_LABEL` where nobody can tell or several people differ.
        named: how many questions it answers, those of other images among them.
    """

    draws: set[str]
    has_answer: np.ndarray
    says: np.ndarray
    named: int


def read_said(plan: Questions, file: str, unsure: str) -> Said:
    """Read a table of answers, with the columns of `Questions.sheet`.

    Args:
        plan: of the questions.
        file: the table.
        unsure: the answer of who cannot tell.

    Raises:
        UserError: it cannot be read, says something else than yes or no, or is about other images or classes.
    """
    frame = open_table(Path(file), file).frame
    columns = {plain_name(str(name)): name for name in frame.columns}
    needed = [plan.by, *COLUMNS[:2]]
    missing = next((name for name in needed if name not in columns), None)
    if missing is not None:
        raise UserError(
            f"{file}: has no column {missing}{nearest(missing, columns)}; of several classes an image expected "
            f"{', '.join(needed)}"
        )

    # each row that has an answer, as numbers: no is 0, yes is 1, cannot tell is 2
    text = {
        name: frame[column].astype(object).where(frame[column].notna(), "").map(str).tolist()
        for name, column in columns.items()
        if name in {*needed, COLUMNS[-1]}
    }
    draws = {*filter(None, text.get(COLUMNS[-1], ()))}
    words = [*NO_OR_YES, unsure]
    place = {name: number for number, name in enumerate(plan.classes)}
    names: list[str | int] = []
    classes: list[int] = []
    answers: list[int] = []
    for row, (key, name, answer) in enumerate(zip(*(text[column] for column in needed)), start=1):
        answer = answer.strip().lower()
        if not answer:
            continue
        if answer not in words:
            raise UserError(
                f"{file}: row {row}: '{shorten(answer, 40)}' is no answer; expected yes, no or {unsure}"
            )
        if name not in place:
            raise UserError(f"{file}: row {row}: '{name}' is no class{nearest(name, place)}")
        # positions may have become 1.0 in a spreadsheet
        number = whole(key)
        if plan.by == "id" and number is None:
            raise UserError(f"{file}: row {row}: '{shorten(key, 40)}' is no id; expected a number")
        names.append(key if plan.by == "filename" or number is None else number)
        classes.append(place[name])
        answers.append(words.index(answer))
    if not names:
        raise UserError(
            f"{file}: answers no question; expected yes, no or {unsure} in {COLUMNS[1]}"
        )

    # which image each is about
    rows = LabelRows(Path(file), plan.by, names, "hard", np.zeros(len(names), np.int64))
    keys = SampleKeys("filename" if plan.by == "filename" else "index", plan.keys)
    with quietly():  # answers about others are counted below
        images = match_rows(rows, keys, file)
    known = images != NO_SAMPLE
    questions = (images * len(plan.classes) + np.array(classes))[known]

    # what most people say of each; of a tie nobody can tell
    asked, of_row = np.unique(questions, return_inverse=True)
    votes = np.zeros((len(asked), len(words)), dtype=np.int64)
    np.add.at(votes, (of_row, np.array(answers)[known]), 1)
    most = votes == votes.max(axis=1, keepdims=True)
    is_clear = (most.sum(axis=1) == 1) & ~most[:, -1]
    has_answer, says = np.zeros(plan.count, dtype=bool), np.full(plan.count, NO_LABEL)
    has_answer[asked] = True
    says[asked] = np.where(is_clear, most.argmax(axis=1), NO_LABEL)
    return Said(draws, has_answer, says, len({*zip(names, classes)}))


def write_checked(path: Path, plan: Questions, rows: np.ndarray, truth: np.ndarray) -> None:
    """Write answers as a table of true labels: a column of 1, 0 or nothing for each class. It names the draw, by which a
    run that learns from it is known to have seen these answers.

    Args:
        path: of the table.
        plan: of the questions.
        rows: (n,) of those with an answer.
        truth: (n,) 1, 0 or `NO_LABEL`.
    """
    # a row an image, in which most cells stay empty
    known = truth != NO_LABEL
    images, places = np.divmod(rows[known], len(plan.classes))
    named, of_row = np.unique(images, return_inverse=True)
    cells = np.full((len(named), len(plan.classes)), "", dtype=object)
    cells[of_row, places] = truth[known].astype(str)
    # the names of classes say nothing else than that, whatever they are
    columns = {f"probabilities.{name}": cells[:, i] for i, name in enumerate(plan.classes)}
    keys = {plan.by: [plan.keys[image] for image in named]}
    draw = {COLUMNS[-1]: [plan.id_of(plan.draws[-1])] * len(named)}
    write_label_table(path, [{**keys, **columns, **draw}])
