"""The plan of an audit of several classes an image: a person is asked about an image and a class, whether it is there.

So what is drawn, answered and counted is a question, one of the N * C of N images and C classes, and its row is the
place of the image times C, plus the place of the class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..errors import UserError, nearest, quietly, shorten
from ..labels.samples import NO_SAMPLE, match_rows
from ..labels.spelling import whole
from ..labels.table import LabelRows, open_table, plain_name
from ..labels.table_writer import Columns, write_label_table
from ..no_label import NO_LABEL
from .draw import Decisions, Opinions, lots_of_parts
from .page import UNSURE
from .plan import Opinion, Plan
from .tables import Answers, keys_of, warn_of_ties

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

    def table(self, rows: Sequence[int], answers: Sequence[str], draw: str) -> Columns:
        pairs = [self.about(row) for row in rows]
        of_rows = [[name for _, name in pairs], answers, [draw] * len(pairs)]
        return {self.by: [key for key, _ in pairs], **dict(zip(COLUMNS, of_rows))}

    def read(self, file: str) -> Answers:
        text = _read_columns(file, [self.by, *COLUMNS[:2]])
        # each row that has an answer, as numbers: no is 0, yes is 1, cannot tell is 2
        words = [*NO_OR_YES, UNSURE]
        place = {name: number for number, name in enumerate(self.classes)}
        names: list[str | int] = []
        classes: list[int] = []
        answers: list[int] = []
        for row, (key, name, answer) in enumerate(zip(*text[:3]), start=1):
            answer = answer.strip().lower()
            if not answer:
                continue
            if answer not in words:
                raise UserError(
                    f"{file}: row {row}: '{shorten(answer, 40)}' is no answer; expected yes, no or {UNSURE}"
                )
            if name not in place:
                raise UserError(f"{file}: row {row}: '{name}' is no class{nearest(name, place)}")
            # positions may have become 1.0 in a spreadsheet
            number = whole(key)
            if self.by == "id" and number is None:
                raise UserError(
                    f"{file}: row {row}: '{shorten(key, 40)}' is no id; expected a number"
                )
            names.append(key if self.by == "filename" or number is None else number)
            classes.append(place[name])
            answers.append(words.index(answer))
        if not names:
            raise UserError(
                f"{file}: answers no question; expected yes, no or {UNSURE} in {COLUMNS[1]}"
            )

        # which image each is about
        rows = LabelRows(Path(file), self.by, names, "hard", np.zeros(len(names), np.int64))
        with quietly():  # answers about others are counted below
            images = match_rows(rows, keys_of(self.by, self.keys), file)
        known = images != NO_SAMPLE
        questions = (images * len(self.classes) + np.array(classes))[known]

        # what most people say of each; of a tie nobody can tell
        asked, of_row = np.unique(questions, return_inverse=True)
        votes = np.zeros((len(asked), len(words)), dtype=np.int64)
        np.add.at(votes, (of_row, np.array(answers)[known]), 1)
        most = votes == votes.max(axis=1, keepdims=True)
        is_tie = most.sum(axis=1) > 1
        warn_of_ties(int(is_tie.sum()), file)
        labels = np.where(is_tie | most[:, -1], NO_LABEL, most.argmax(axis=1))
        draws = {*filter(None, text[3])}
        return Answers(draws, asked, labels, len({*zip(names, classes)}))


def _read_columns(file: str, needed: Sequence[str]) -> list[list[str]]:
    """Read columns of a table as text, and the one that names draws, empty where there is none."""
    frame = open_table(Path(file), file).frame
    columns = {plain_name(str(name)): name for name in frame.columns}
    missing = next((name for name in needed if name not in columns), None)
    if missing is not None:
        raise UserError(
            f"{file}: has no column {missing}{nearest(missing, columns)}; of several classes an image expected "
            f"{', '.join(needed)}"
        )
    chosen = [frame[columns[name]] for name in [*needed, COLUMNS[-1]] if name in columns]
    text = [one.astype(object).where(one.notna(), "").map(str).tolist() for one in chosen]
    return [*text, []][: len(needed) + 1]


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
