"""Tables of labels written: the same that `table` reads, in any of its forms but npz.

What is needed to see that a table can be written is imported when it is: this module loads in no time.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError, nearest
from ..files import atomic_write

if TYPE_CHECKING:
    from pandas import DataFrame

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
    from pandas import DataFrame

    check_writable(path)
    rows = 0
    with atomic_write(path) as temporary, _writer(temporary, path.suffix.lower()) as write:
        for columns in parts:
            frame = DataFrame({name: _cells(values, path.suffix.lower()) for name, values in columns.items()})
            write(frame)
            rows += len(frame)
    return rows


@contextmanager
def _writer(path: Path, kind: str) -> Iterator[Callable[["DataFrame"], None]]:
    """Give a function that writes further rows to a file."""
    if kind == ".parquet":
        import pyarrow
        from pyarrow import parquet

        writers: list[parquet.ParquetWriter] = []

        def write(frame: "DataFrame") -> None:
            table = pyarrow.Table.from_pandas(frame, writers[0].schema if writers else None, preserve_index=False)
            if not writers:
                writers.append(parquet.ParquetWriter(path, table.schema))
            writers[0].write_table(table)
        try:
            yield write
        finally:
            for writer in writers:
                writer.close()
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        def write(frame: "DataFrame") -> None:
            if kind in (".csv", ".tsv"):
                frame.to_csv(file, sep="," if kind == ".csv" else "\t", header=not file.tell(), index=False,
                             lineterminator="\n")
            else:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in frame.to_dict("records"))
        yield write


def _cells(values: Sequence, kind: str) -> Sequence:
    """Return the cells of a column: pairs as one text but in JSON, floats as the shortest that are read back as the
    same float32.
    """
    in_json = kind in (".jsonl", ".ndjson")
    if hasattr(values, "dtype"):
        return [float(str(value)) for value in values] if in_json and values.dtype.kind == "f" else values
    if in_json:
        return values
    return [_pairs(value) if isinstance(value, list) else value for value in values]


def _pairs(value: Sequence) -> str:
    """Return pairs as one text, ``cat:0.9;dog:0.05``, or as JSON where that would be unclear."""
    names = [str(name) for name, _ in value]
    if any(";" in name or name.startswith(("[", "{")) for name in names):
        return json.dumps(value, ensure_ascii=False)
    return ";".join(f"{name}:{share}" for name, share in value)
