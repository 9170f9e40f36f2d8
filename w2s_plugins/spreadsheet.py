"""CSV for spreadsheets, which take a text that begins like a formula for one and compute it."""

import csv
import io
import re
from collections.abc import Mapping, Sequence

_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")  # the last four are full-width


def to_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows with a header; names of classes, files, runs and flags may hold anything.

    A text that begins like a formula gets an apostrophe before it, which spreadsheets take for "this is text".
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer.writerow(map(_cell, names))
    writer.writerows([_cell(row.get(name)) for name in names] for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, (int, float, type(None))):
        return value
    text = str(value)
    try:
        float(text)
    except ValueError:
        text = ("'" if text.startswith(_FORMULA) else "") + re.sub(r"[\r\n]", " ", text)  # \r is not quoted by `csv`
    return text
