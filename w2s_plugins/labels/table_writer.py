"""Tables of labels written: the same that `table` reads, in any of its forms but npz.

What is needed to see that a table can be written is imported when it is: this module loads in no time.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from ..errors import UserError, nearest
from ..files import atomic_write

WRITABLE = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
Columns = Mapping[str, Sequence]


def check_writable(path: Path, flag: str = "--output") -> None:
    """Raise a `UserError` unless a table can be written to ``path``."""
    kind = path.suffix.lower()
    if kind not in WRITABLE:
        raise UserError(f"{flag} {path}: of an unknown kind{nearest(path.suffix, WRITABLE)}; expected a name that ends "
                        f"in {', '.join(WRITABLE)}")
    if kind == ".parquet" and find_spec("pyarrow") is None:
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
    kind = path.suffix.lower()
    in_json = kind in (".jsonl", ".ndjson")
    rows, parquet = 0, None
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        for columns in parts:
            frame = DataFrame({name: _cells(values, in_json) for name, values in columns.items()})
            if kind == ".parquet":
                import pyarrow.parquet

                table = pyarrow.Table.from_pandas(frame, preserve_index=False)
                parquet = parquet or pyarrow.parquet.ParquetWriter(file, table.schema)
                parquet.write_table(table)
            elif in_json:
                lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in frame.to_dict("records")]
                file.write("".join(lines).encode())
            else:
                frame.to_csv(file, sep="," if kind == ".csv" else "\t", header=not rows, index=False,
                             lineterminator="\n")
            rows += len(frame)
        if parquet is not None:
            parquet.close()
    return rows


def _cells(values: Sequence, in_json: bool) -> Sequence:
    """Return the cells of a column: pairs as one text but in JSON, floats as the shortest that are read back as the
    same float32.
    """
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
