"""Several tables as the answers of one crowd."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from ..errors import UserError, quietly
from .samples import shares_of
from .table import LabelTable, read_label_table


def read_whole_table(
    path: Path, class_names: Sequence[str] | None, flag: str, missing: str | None = "error"
) -> LabelTable:
    """Read a table for a use that takes no ``?missing=skip``, which is then not advised; see `read_label_table`."""
    try:
        return read_label_table(path, class_names, flag, missing)
    except UserError as error:
        raise UserError(
            re.sub(r",? or leave them out by \?missing=skip[^,;]*", "", str(error))
        ) from error


def read_alike(
    files: Mapping[str, Path],
    class_names: Sequence[str] | None,
    missing: str | None = None,
) -> dict[str, LabelTable]:
    """Read tables in terms of the same classes: those that are given, else all that any of the tables names. Without
    them columns of annotators are known by the classes of another table.

    Args:
        files: of labels, by what begins the messages about them.
        class_names: names of the classes, or None.
        missing: see `read_label_table`.

    Raises:
        UserError: see `read_label_table`.
    """
    if class_names is not None or len(files) == 1:
        return {
            flag: read_label_table(path, class_names, flag, missing) for flag, path in files.items()
        }

    # each in its own terms first, and once more those that the classes of others make clear
    tables: dict[str, LabelTable] = {}
    named: list[str] = []
    for refused in (UserError, ()):
        for flag in [flag for flag in files if flag not in tables]:
            with quietly(), suppress(refused):
                tables[flag] = read_label_table(files[flag], None, flag, missing, named)
                named = [*dict.fromkeys([*named, *(tables[flag].class_names or ())])]

    # numbers stand for the places of names where another table has these
    return read_alike(
        files, named or max((table.names for table in tables.values()), key=len), missing
    )


def join_tables(tables: Sequence[LabelTable], flag: str) -> LabelTable:
    """Return the answers of several tables of the same classes as one; a table that does not say who answered is one
    annotator, called as its file is.

    Raises:
        UserError: some name their samples by files, and some by positions.
    """
    if len(tables) == 1:
        return tables[0]
    keyed_by = {table.keyed_by for table in tables}
    if len(keyed_by) > 1:
        raise UserError(
            f"{flag}: one crowd names its samples in one way, but of these files some have a column "
            "filename and some a column id; expected the same of all"
        )
    # two files of one name are two annotators
    names = [table.path.name for table in tables]
    names = [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names, 1)]
    people = [table.annotators or [name] * len(table) for name, table in zip(names, tables)]

    # labels stay labels, but beside probabilities they become such
    plain = all(table.kind == "hard" and table.confidence is None for table in tables)
    answers = [table.answers if plain else shares_of(table, table.num_classes) for table in tables]
    return replace(
        tables[0],
        more=[table.path for table in tables[1:]],
        kind="hard" if plain else "probabilities",
        keys=[*chain.from_iterable(table.keys for table in tables)],
        answers=np.concatenate(answers),
        annotators=[*chain.from_iterable(people)],
        confidence=None,
    )
