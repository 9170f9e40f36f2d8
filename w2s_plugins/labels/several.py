"""Several labels an image in a table: cells that are lists, and columns with 0, 1 or nothing for each class.

A list says of the classes that it names that the image has them and, if nothing else is asked for, of all others that it
has not. A column of a class says it of that class alone, and an empty cell of it says nothing: NaN.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError, logger
from ..settings.forms import DELIMITERS, MULTILABEL
from .names import same_word, visible
from .spelling import LISTED, UNSAID, divided_by

if TYPE_CHECKING:
    from ..target_kind import TargetKind
    from .ahead import Task

LIKELY_DELIMITERS = ",;|"  # which need not be named
IN_NAMES = " /"  # more often part of a name
YES, NO = ("yes", "y", "true", "t"), ("no", "n", "false", "f")
# a list as Python writes it, ['beach', 'dog']
_QUOTED = r"""\s*(?:'([^']*)'|"([^"]*)")\s*"""
_PYTHON_LIST = re.compile(rf"\[{_QUOTED}(?:,{_QUOTED})*,?\s*\]")


@dataclass(frozen=True)
class ListForm:
    """What is said of lists behind the name of a table.

    Args:
        unlisted: what a list says of the classes that it does not name: ``no``, or ``unknown``. None is ``no``.
        delimiter: between the labels of a cell, one of `settings.forms.DELIMITERS` by its name or itself; ``none`` where a
            cell is one label. None finds it out.
    """

    unlisted: str | None = None
    delimiter: str | None = None

    @classmethod
    def of(cls, settings: Mapping[str, str | None]) -> "ListForm":
        """Return what settings as of `settings.forms.parse_labels` say."""
        return cls(settings.get("unlisted"), settings.get("delimiter"))

    @property
    def others(self) -> float:
        """The probability of a class that a list does not name."""
        return np.nan if self.unlisted == "unknown" else 0.0


AS_WRITTEN = ListForm()


def are_several(target_kind: "TargetKind | Task | None") -> bool:
    """Say whether an image may have several classes; None is one class. Tables are read where no torch is loaded."""
    return target_kind is not None and target_kind.task == MULTILABEL


# ---------------------------------------------------------------- lists


@dataclass(frozen=True)
class Cell:
    """The labels that a cell names.

    Args:
        labels: as they are written.
        is_list: whether it was written as a list, in brackets, or has several; one label by itself may be continued
            by other rows.
    """

    labels: Sequence[str]
    is_list: bool


def split_cells(
    texts: Sequence[str], known: Collection[str], form: ListForm, flag: str
) -> list[Cell]:
    """Return the labels of each cell: JSON, a list as Python writes it, or names with a delimiter between them.

    Args:
        texts: the cells, none of them empty.
        known: names of classes, in which the delimiter may be.
        form: what the user says of the lists.
        flag: begins the messages.

    Raises:
        UserError: nothing says which of several characters is the delimiter.
    """
    words = {same_word(name) for name in known}
    # each text once: a column of a million rows has few
    cells: dict[str, Cell] = {}
    plain: list[str] = []
    for text in dict.fromkeys(texts):
        labels = None if words and same_word(text) in words else _bracketed(text, flag)
        if labels is None:
            plain.append(text)
        else:
            cells[text] = Cell(labels, is_list=True)
    # one delimiter for the whole column, because a name may have another one in it
    delimiter = _find_delimiter(plain, words, form, flag)
    for text in plain:
        labels = [text] if delimiter is None else _split(text, delimiter, words)
        cells[text] = Cell(labels, is_list=len(labels) > 1)
    return [cells[text] for text in texts]


def _bracketed(text: str, flag: str) -> list[str] | None:
    """Return the items of a list that is written in brackets; None for another text. Raises `UserError` for a list of
    something else than names.
    """
    if not text.startswith(("[", "{")):
        return None
    # Label Studio has several choices as an object
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        items = None
    if isinstance(items, dict):
        items = items.get("choices")
    if isinstance(items, list):
        odd = next((item for item in items if not _is_name(item)), None)
        if odd is not None or None in items:
            raise UserError(f"{flag}: '{text[:40]}' is a list of other things than names")
        return [name for name in map(as_text, items) if name]

    # as Python writes it, or without quotes
    if _PYTHON_LIST.fullmatch(text):
        return [(one or other).strip() for one, other in re.findall(_QUOTED, text)]
    if text.startswith("[") and text.endswith("]") and not re.search("[\\[{]", text[1:]):
        return [part.strip() for part in text[1:-1].split(",") if part.strip()]
    if LISTED.fullmatch(text):
        raise UserError(f"{flag}: '{text[:40]}' begins like a list, and is none; correct it")
    return None


def _is_name(item: object) -> bool:
    return isinstance(item, (str, int, float)) and not isinstance(item, bool)


def as_text(item: object) -> str:
    """Return an item of a list as a cell would have it."""
    return visible(item) if isinstance(item, str) else str(item)


def _find_delimiter(
    texts: Sequence[str], words: Collection[str], form: ListForm, flag: str
) -> str | None:
    """Return what stands between the labels of cells, None where each is one label."""
    if form.delimiter is not None:
        return DELIMITERS.get(form.delimiter, form.delimiter) or None
    # known names may have any mark in them
    lists = [text for text in texts if not words or same_word(text) not in words]
    found = [mark for mark in LIKELY_DELIMITERS if any(mark in text for text in lists)]
    if not found:
        _ask_about_names(lists, words, flag)
        return None

    # of several it is that which leaves names of classes in most cells
    if len(found) > 1:
        fits = Counter(
            {
                mark: sum(
                    all(same_word(part) in words for part in _split(text, mark, words))
                    for text in lists
                )
                for mark in found
            }
        )
        (best, most), (_, next_most) = fits.most_common(2)
        if most == next_most:
            names = [name for name, mark in DELIMITERS.items() if mark in found]
            raise UserError(
                f"{flag}: what stands between the labels of a cell, {' or '.join(found)}? It has "
                f"'{lists[0][:40]}'; say it behind the name of the file, ?delimiter={' or ?delimiter='.join(names)}"
            )
        found = [best]
    logger.info(
        f"{flag}: labels of a cell are taken to be separated by '{found[0]}'; with ?delimiter=none behind the name "
        "of the file a cell is one label"
    )
    return found[0]


def _ask_about_names(texts: Sequence[str], words: Collection[str], flag: str) -> None:
    """Raise a `UserError` for cells that may be one name, or several with a space or slash between them.

    Args:
        texts: cells that are none of the known names.
        words: the known names.
        flag: begins the message.
    """
    for mark in IN_NAMES:
        odd = divided_by(mark, texts)
        if words:
            parts = ((text, _split(text, mark, words)) for text in texts if mark in text)
            odd = next(
                (text for text, labels in parts if {*map(same_word, labels)} <= {*words}), None
            )
        if odd is not None:
            name = next(name for name, other in DELIMITERS.items() if other == mark)
            raise UserError(
                f"{flag}: is '{odd[:40]}' one label, or several? Say it behind the name of the file, ?delimiter=none or "
                f"?delimiter={name}"
            )


def _split(text: str, delimiter: str, words: Collection[str]) -> list[str]:
    """Return the labels of a cell; of parts that together are a known name the longest one is taken."""
    if words and same_word(text) in words:
        return [text]
    parts = text.split(delimiter)
    labels: list[str] = []
    start = 0
    while start < len(parts):
        # without known names, and mostly with them, a part is a label
        ends = range(len(parts), start + 1, -1) if words else ()
        end = next(
            (end for end in ends if same_word(delimiter.join(parts[start:end])) in words), start + 1
        )
        labels.append(delimiter.join(parts[start:end]).strip())
        start = end
    return [label for label in labels if label]


def list_values(
    cells: Sequence[Sequence[str]], numbers: Mapping[str, int], size: int, others: float
) -> np.ndarray:
    """Return (R, C) of lists: 1 for the classes that each names, and the ``others``."""
    # all cells at once: a table may have a million
    values = np.full((len(cells), size), others, np.float32)
    rows = np.repeat(np.arange(len(cells)), [len(labels) for labels in cells])
    columns = [numbers[label] for labels in cells for label in labels]
    values[rows, np.array(columns, dtype=np.int64)] = 1
    return values


# ---------------------------------------------------------------- a column for each class


def read_flags(texts: Sequence[str], fault: Callable[[int], UserError]) -> np.ndarray:
    """Return a column of a class (R,) in float32: 1 and 0, also as yes and no, or numbers; NaN for a cell that says
    nothing.

    Args:
        texts: its cells.
        fault: makes the error of a cell that is none of these, by its place.
    """
    # each text once
    values: dict[str, float] = {}
    for i, text in enumerate(texts):
        word = text.casefold()
        if text in values:
            continue
        if word in UNSAID:
            values[text] = np.nan
        elif word in YES or word in NO:
            values[text] = float(word in YES)
        else:
            try:
                values[text] = float(text)
            except ValueError as error:
                raise fault(i) from error
            if np.isnan(values[text]):
                raise fault(i)
    with np.errstate(over="ignore"):  # infinite, which is refused
        return np.array([values[text] for text in texts]).astype(np.float32)


def natural_order(names: Sequence[str]) -> list[int]:
    """Return the places of names in the order in which people sort them, ``class 2`` before ``class 10``."""

    def key(place: int) -> tuple[list[tuple[bool, int, str]], str]:
        parts = re.split("([0-9]+)", names[place].lower())
        # numbers come before texts, and are never compared with them
        return [
            (not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts
        ], names[place]

    return sorted(range(len(names)), key=key)
