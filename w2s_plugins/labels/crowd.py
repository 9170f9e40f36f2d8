"""Several tables as the answers of one crowd."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from ..errors import UserError, quietly
from ..target_kind import ONE_CLASS, SEVERAL_CLASSES, TargetKind
from .samples import shares_of
from .several import AS_WRITTEN, ListForm
from .spelling import warn_of_lists
from .table import LabelRows, TableFile


def read_tables_alike(
    opened: Sequence[TableFile],
    class_names: Sequence[str] | None,
    missing: str | None = None,
    target_kind: TargetKind = ONE_CLASS,
    lists: ListForm = AS_WRITTEN,
) -> dict[str, LabelRows]:
    """Read tables in terms of the same classes: those that are given, else all that any of the tables names. Without
    them columns of annotators are known by the classes of another table. They are returned by their ``flag``.

    Args:
        opened: files of labels.
        class_names: names of the classes, or None.
        missing: see `TableFile.labels`, as of the others.
        target_kind: what a label is.
        lists: how several labels of an image are written.

    Raises:
        UserError: see `TableFile.labels`.
    """
    if class_names is None and len(opened) > 1:
        with quietly():  # what is to be said of them is said when their classes are known
            tables, class_names = _classes_of_all(opened, missing, target_kind, lists)
        # but for what these themselves are
        for table in tables:
            warn_of_lists(table.doubtful, table.path.name)
    return {
        file.flag: file.labels(class_names, missing, target_kind=target_kind, lists=lists)
        for file in opened
    }


def _classes_of_all(
    files: Sequence[TableFile], missing: str | None, target_kind: TargetKind, lists: ListForm
) -> tuple[list[LabelRows], Sequence[str]]:
    """Return some tables, each in terms of its own classes, and the names of all these, numbers where none has names."""
    tables: list[LabelRows] = []
    names: list[str] = []
    unclear: list[TableFile] = []
    # each in its own terms first, and once more those that the classes of others make clear
    for again in (False, True):
        waiting, unclear = unclear if again else files, []
        for file in waiting:
            try:
                table = file.labels(None, missing, names, target_kind, lists)
            except UserError:
                if again:
                    raise
                unclear.append(file)
                continue
            tables.append(table)
            names = [*dict.fromkeys([*names, *(table.class_names or ())])]

    # numbers stand for the places of names where another table has these
    return tables, names or max((table.names for table in tables), key=len)


def join_tables(tables: Sequence[LabelRows], flag: str) -> LabelRows:
    """Return the answers of several tables of the same classes as one; a table that does not say who answered is one
    annotator, called as its file is.

    Raises:
        UserError: some name their samples by files, and some by positions.
    """
    if len(tables) == 1:
        return tables[0]
    # a row is about the same sample as one of another file where both name it alike
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
    parts = [table.is_part for table in tables if table.is_part is not None]
    target_kind = SEVERAL_CLASSES if parts else ONE_CLASS
    answers = [
        table.answers if plain else shares_of(table, table.num_classes, target_kind)
        for table in tables
    ]
    return replace(
        tables[0],
        more=[table.path for table in tables[1:]],
        kind="hard" if plain else "probabilities",
        keys=[*chain.from_iterable(table.keys for table in tables)],
        answers=np.concatenate(answers),
        annotators=[*chain.from_iterable(people)],
        confidence=None,
        draws={*chain.from_iterable(table.draws for table in tables)},
        is_part=np.concatenate(parts) if parts else None,
    )
