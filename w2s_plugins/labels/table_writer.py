"""Tables of labels written: the same that `table` reads, in any of its forms but npz.

What is needed to see that a table can be written is imported when it is: this module loads in no time.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from ..errors import UserError, nearest
from ..files import atomic_write

WRITABLE = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
Columns = Mapping[str, Sequence]


def check_writable(path: Path, flag: str = "--output") -> None:
    """Raise a `UserError` unless a table can be written to ``path``."""
    if path.suffix.lower() not in WRITABLE:
        raise UserError(f"{flag} {path}: of an unknown kind{nearest(path.suffix, WRITABLE)}; expected a name that ends "
                        f"in {', '.join(WRITABLE)}")
    if path.suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
        raise UserError(f"{flag} {path}: parquet needs a package: pip install pyarrow")
    if path.is_dir():
        raise UserError(f"{flag} {path}: is a folder; expected the name of a file")
    if not path.parent.is_dir():
        raise UserError(f"{flag} {path}: no folder {path.parent} to write to")


def check_new(path: Path, flag: str = "--output") -> None:
    """Raise a `UserError` as `check_writable`, and for a file that is there already."""
    check_writable(path, flag)
    if path.exists():
        raise UserError(f"{flag} {path}: is there already; expected the name of a new file")


def write_label_table(path: Path, parts: Iterable[Columns]) -> int:
    """Write a table, whole or not at all; return the number of its rows.

    Args:
        path: the file; its suffix says what it is.
        parts: columns by name, of some rows at a time; all parts have the same. Texts, whole numbers, NumPy arrays of
            float32, or lists of pairs of class and probability.

    Raises:
        UserError: it cannot be written.
    """
    check_writable(path)
    kind = path.suffix.lower()
    rows = 0
    with atomic_write(path) as temporary, _WRITERS[kind](temporary) as write:
        for columns in parts:
            write(columns)
            rows += len(next(iter(columns.values())))
    return rows


@contextmanager
def _text(path: Path, delimiter: str) -> Iterator[Callable[[Columns], None]]:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")

        def write(columns: Columns) -> None:
            if not file.tell():
                writer.writerow(columns)
            writer.writerows(zip(*(map(_cell, _plain(values)) for values in columns.values())))
        yield write


@contextmanager
def _json_lines(path: Path) -> Iterator[Callable[[Columns], None]]:
    with path.open("w", encoding="utf-8") as file:
        def write(columns: Columns) -> None:
            for row in zip(*map(_plain, columns.values())):
                file.write(json.dumps(dict(zip(columns, row)), ensure_ascii=False) + "\n")
        yield write


@contextmanager
def _parquet(path: Path) -> Iterator[Callable[[Columns], None]]:
    import pyarrow
    from pyarrow import parquet

    writers: list[parquet.ParquetWriter] = []

    def write(columns: Columns) -> None:
        table = pyarrow.table({name: [*map(_cell, values)] if _holds_lists(values) else values
                               for name, values in columns.items()})
        if not writers:
            writers.append(parquet.ParquetWriter(path, table.schema))
        writers[0].write_table(table)
    try:
        yield write
    finally:
        for writer in writers:
            writer.close()


_WRITERS = {
    ".csv": lambda path: _text(path, ","), ".tsv": lambda path: _text(path, "\t"), ".jsonl": _json_lines,
    ".ndjson": _json_lines, ".parquet": _parquet}


def _plain(values: Sequence) -> Sequence:
    """Return values in types of Python; of float32 the shortest numbers that are read back as the same."""
    if not hasattr(values, "dtype"):
        return values
    return [float(str(value)) for value in values] if values.dtype.kind == "f" else values.tolist()


def _holds_lists(values: Sequence) -> bool:
    return not hasattr(values, "dtype") and len(values) > 0 and isinstance(values[0], list)


def _cell(value: object) -> object:
    """Return pairs as one text, ``cat:0.9;dog:0.05``, or as JSON where that would be unclear."""
    if not isinstance(value, list):
        return value
    names = [str(name) for name, _ in value]
    if any(";" in name or name.startswith(("[", "{")) for name in names):
        return json.dumps(value, ensure_ascii=False)
    return ";".join(f"{name}:{share}" for name, share in value)
