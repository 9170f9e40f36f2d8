"""Tables of labels written: the same that `table` reads, in any of its forms but those of NumPy.

What is needed to see that a table can be written is imported when it is: this module loads in no time.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ..errors import UserError, nearest
from ..files import atomic_write, check_replaceable, note_written

if TYPE_CHECKING:
    import numpy as np

Columns: TypeAlias = "Mapping[str, Sequence | np.ndarray]"  # by name, of equal length
WRITABLE = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


def check_writable(
    path: Path,
    inputs: Iterable[Path] = (),
    flag: str = "--output",
    kinds: Sequence[str] = WRITABLE,
) -> None:
    """Raise a `UserError` unless ``flag`` can name ``path`` for a file of these kinds that is none of the ``inputs``."""
    # of which kind, whether by this installation, and where
    kind = path.suffix.lower()
    if kind not in kinds:
        raise UserError(
            f"{flag} {path}: of an unknown kind{nearest(kind, kinds)}; expected a name that ends in "
            f"{', '.join(kinds)}"
        )
    if kind == ".parquet" and find_spec("pyarrow") is None:
        raise UserError(f"{flag} {path}: parquet needs a package: pip install pyarrow")
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(
            f"{flag} {path}: is a folder, or in none that is there; expected the name of a file"
        )
    # what a person has written is not replaced, nor is what is read at the same time
    check_replaceable(path, flag, inputs)


def write_label_table(path: Path, parts: Iterable[Columns]) -> int:
    """Write a table, whole or not at all; return the number of its rows.

    Args:
        path: the file; its suffix says what it is.
        parts: columns by name, of some rows at a time. Texts, whole numbers, or NumPy arrays of float32, which are
            written with as many digits as give the same number again.

    Raises:
        UserError: it cannot be written.
    """
    from pandas import DataFrame, concat

    kind = path.suffix.lower()
    # the shortest text that gives the same float32 again is what pandas writes of one
    frame = concat([DataFrame(dict(columns)) for columns in parts], ignore_index=True)
    with atomic_write(path) as temporary:
        if kind == ".parquet":
            frame.to_parquet(temporary, index=False)
        elif kind in (".csv", ".tsv"):
            frame.to_csv(
                temporary, sep="," if kind == ".csv" else "\t", index=False, lineterminator="\n"
            )
        else:
            # JSON has no word for what is unknown but this
            if frame.isna().to_numpy().any():
                frame = frame.astype(object).where(frame.notna(), None)
            lines = [json.dumps(row, ensure_ascii=False) for row in frame.to_dict("records")]
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        # so that it can be written again: it is of this program
        note_written(path, temporary)
    return len(frame)
