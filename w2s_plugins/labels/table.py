"""Tables of labels, as people and programs write them: read, understood, and brought to one answer a sample.

CSV, TSV and JSON lines by the standard library, parquet by pyarrow (optional), ``.npz`` by NumPy. A row is what one
annotator says of one sample. Columns, in any order:

- ``filename``, relative to the folder of the images or its base name, or ``id``, the position of the sample;
- ``label``, a class name or number; or one column a class, probabilities or logits; or ``top_k``, pairs of class and
  probability, best first (JSON, or ``cat:0.9;dog:0.05``);
- ``annotator`` and ``confidence``, where there are such.

Nothing in a file names code, and numbers are taken for numbers only where they are written as such.
"""

import csv
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError, nearest, one_line
from ..files import check_archive

FILE_COLUMNS = ("filename", "file_name", "file", "path", "file_path", "filepath", "image", "image_path", "img")
ID_COLUMNS = ("id", "index")
LABEL_COLUMNS = ("label", "class", "given", "noisy_label")
TOP_COLUMNS = ("top_k", "topk")
OTHER_COLUMNS = ("annotator", "confidence")
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".npz")
SUM_TOLERANCE = 0.02  # of the probabilities of a row: files are rounded to two digits


@dataclass(frozen=True)
class LabelTable:
    """What a file says, row by row.

    Args:
        path: the file.
        keyed_by: ``filename`` or ``id``.
        keys: (R,) the sample of each row.
        kind: ``hard``, ``probabilities`` or ``logits``.
        answers: (R,) class numbers, or (R, C) values in float32.
        class_names: names of the classes; None where the file has numbers only.
        annotators: (R,) who said it, or None.
        confidence: (R,) probability of the label, or None.
    """

    path: Path
    keyed_by: str
    keys: Sequence[str] | Sequence[int]
    kind: str
    answers: np.ndarray
    class_names: list[str] | None = None
    annotators: Sequence[str] | None = None
    confidence: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def num_classes(self) -> int:
        """The number of classes that the file knows of."""
        if self.class_names:
            return len(self.class_names)
        return self.answers.shape[1] if self.answers.ndim == 2 else int(self.answers.max()) + 1


def read_label_table(path: Path, class_names: Sequence[str] | None = None, flag: str = "") -> LabelTable:
    """Read a file of labels.

    Args:
        path: the file; its suffix says what it is.
        class_names: names that labels may be, in the order of their numbers; None takes those of the file.
        flag: begins the messages, e.g. ``--teacher labels:FILE``.

    Raises:
        UserError: no such file, of another kind, or without a column that is needed; a label that is no class.
    """
    flag = flag or str(path)
    columns = read_columns(path, flag)
    return understand(path, columns, class_names, flag)


def read_columns(path: Path, flag: str) -> dict[str, Sequence]:
    """Return the columns of a file by name. Raises `UserError` for a file that is not what its suffix says."""
    readers: dict[str, Callable[[Path], dict[str, Sequence]]] = {
        ".csv": lambda p: _read_text(p, ","), ".tsv": lambda p: _read_text(p, "\t"), ".jsonl": _read_json_lines,
        ".ndjson": _read_json_lines, ".parquet": _read_parquet, ".npz": _read_npz}
    if not path.is_file():
        raise UserError(f"{flag}: no such file")
    if path.suffix.lower() not in readers:
        raise UserError(f"{flag}: of an unknown kind; expected {', '.join(SUFFIXES)} or a folder of labels")
    try:
        columns = readers[path.suffix.lower()](path)
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{flag}: parquet needs a package: pip install pyarrow") from error
    except Exception as error:  # damaged files fail in many ways
        raise UserError(f"{flag}: cannot be read as {path.suffix[1:]}: {one_line(error, 120)}") from error
    if not columns or not len(next(iter(columns.values()))):
        raise UserError(f"{flag}: holds no labels")
    return columns


def _read_text(path: Path, delimiter: str) -> dict[str, Sequence]:
    with path.open(encoding="utf-8-sig", newline="") as file:  # with or without a byte order mark
        rows = csv.reader(file, delimiter=delimiter, strict=True)
        header = next((row for row in rows if row), [])
        names = [cell.strip() for cell in header]
        if len(set(names)) < len(names):
            raise ValueError("its header has a name twice")
        columns: list[list[str]] = [[] for _ in names]
        for row in rows:
            if not row:
                continue
            if len(row) != len(names):
                raise ValueError(f"line {rows.line_num} has {len(row)} values, the header {len(names)}")
            for column, cell in zip(columns, row):
                column.append(cell.strip())
    return dict(zip(names, columns))


def _read_json_lines(path: Path) -> dict[str, Sequence]:
    columns: dict[str, list] = {}
    with path.open(encoding="utf-8-sig") as file:
        count = 0
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is no object")
            if isinstance(row.get("probabilities"), dict):
                row |= row.pop("probabilities")
            for name in row.keys() - columns.keys():
                columns[str(name)] = [None] * count
            count += 1
            for name, column in columns.items():
                column.append(row.get(name))
    return columns


def _read_parquet(path: Path) -> dict[str, Sequence]:
    import pyarrow.parquet as parquet

    file = parquet.ParquetFile(path)
    columns = {}
    for name in file.schema_arrow.names:  # one after the other, so that only one of text is in memory twice
        column = file.read(columns=[name]).column(0)
        numbers = str(column.type) in ("float", "double", "halffloat") and not column.null_count
        columns[name] = column.to_numpy() if numbers else column.to_pylist()
    return columns


def _read_npz(path: Path) -> dict[str, Sequence]:
    check_archive(path)
    with zipfile.ZipFile(path):
        pass
    with np.load(path, allow_pickle=False) as content:
        arrays = {name: content[name] for name in content.files}
    names = arrays.pop("class_names", None)
    columns: dict[str, Sequence] = {}
    for name, array in arrays.items():
        if name in ("probabilities", "logits") and array.ndim == 2:
            heads = [str(n) for n in names] if names is not None else [str(i) for i in range(array.shape[1])]
            columns |= dict(zip(heads, array.astype(np.float32).T))
        elif array.ndim == 1:
            columns[name] = array.tolist()
    return columns


# ---------------------------------------------------------------- what the columns mean


def understand(
        path: Path, columns: dict[str, Sequence], class_names: Sequence[str] | None, flag: str) -> LabelTable:
    """Return what the columns of a file say. Raises `UserError` where that is not clear."""
    folded = {name.lower(): name for name in columns}

    def first(names: Sequence[str]) -> str | None:
        return next((folded[name] for name in names if name in folded), None)

    file, place = first(FILE_COLUMNS), first(ID_COLUMNS)
    label, top = first(LABEL_COLUMNS), first(TOP_COLUMNS)
    if file is None and place is None:
        raise UserError(f"{flag}: no column says which sample a row is about; expected filename or id"
                        f"{nearest('filename', columns)}; it has {', '.join(list(columns)[:8])}")
    key = file or place
    taken = {key, place, label, top, *(first([name]) for name in OTHER_COLUMNS)}
    by_class = [name for name in columns if name not in taken]
    if class_names is not None and label is None and top is None:
        by_class = [name for name in by_class if name in set(class_names)] or by_class
    if label is not None:
        kind, answers, names = _hard(columns[label], class_names, flag)
    elif top is not None:
        kind, answers, names = _top(columns[top], class_names, flag)
    elif len(by_class) > 1:
        kind, answers, names = _by_class(columns, by_class, flag)
    else:
        raise UserError(f"{flag}: no labels; expected a column label, top_k, or one column a class; it has "
                        f"{', '.join(list(columns)[:8])}")
    who, sure = (first([name]) for name in OTHER_COLUMNS)
    return LabelTable(
        path, "filename" if file else "id", _keys(columns[key], file is None, key, flag), kind, answers, names,
        None if who is None else [str(name) for name in columns[who]],
        None if sure is None else _shares(columns[sure], flag))


def _keys(values: Sequence, numbers: bool, column: str, flag: str) -> list:
    if not numbers:
        return [str(value).strip().removeprefix("./") for value in values]
    keys = [_whole(value) for value in values]
    odd = next((i for i, key in enumerate(keys) if key is None or key < 0), None)
    if odd is not None:
        raise UserError(f"{flag}: column {column}, row {odd + 1}: '{str(values[odd])[:40]}' is no position; expected "
                        "whole numbers from 0")
    return keys


def _whole(value: object) -> int | None:
    """Return a whole number that is written as such, else None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, np.integer)):
        return int(value)
    text = str(value).strip()
    return int(text) if text.removeprefix("-").isascii() and text.removeprefix("-").isdigit() and len(text) < 12 else (
        None)


def _hard(values: Sequence, class_names: Sequence[str] | None, flag: str) -> tuple[str, np.ndarray, list[str] | None]:
    numbers = [_whole(value) for value in values]
    if class_names is None and None not in numbers:
        names = None
    else:
        names = list(class_names) if class_names is not None else sorted({str(value).strip() for value in values})
    places = {name: i for i, name in enumerate(names or ())}
    found = [places.get(str(value).strip(), number) for value, number in zip(values, numbers)]
    size = len(names) if names else 2 ** 31
    odd = next((i for i, number in enumerate(found) if number is None or not 0 <= number < size), None)
    if odd is not None:
        text = str(values[odd]).strip()[:40]
        raise UserError(f"{flag}: row {odd + 1}: '{text}' is no class{nearest(text, names or ())}; expected a "
                        f"{'name or a ' if names else ''}number from 0{f' to {size - 1}' if names else ''}")
    return "hard", np.array(found, dtype=np.int64), names


def _top(values: Sequence, class_names: Sequence[str] | None, flag: str) -> tuple[str, np.ndarray, list[str] | None]:
    """Pairs of class and probability; the classes that are left share what is left evenly."""
    rows = [list(_pairs(value, i, flag)) for i, value in enumerate(values, start=1)]
    said = [name for row in rows for name, _ in row]
    numbers = all(_whole(name) is not None for name in said)
    names = list(class_names) if class_names is not None else None if numbers else sorted(set(said))
    places = {name: i for i, name in enumerate(names or ())}
    size = len(names) if names else max(map(int, said)) + 1
    answers = np.zeros((len(rows), size), dtype=np.float32)
    for i, row in enumerate(rows):
        for name, share in row:
            place = places.get(name, _whole(name))
            if place is None or not 0 <= place < size:
                raise UserError(f"{flag}: row {i + 1}: '{name[:40]}' is no class{nearest(name, names or ())}")
            answers[i, place] = share
        left, others = 1 - answers[i].sum(), size - len(row)
        if others and left > 0:
            answers[i, answers[i] == 0] += left / others
    return _checked("probabilities", answers, flag), answers, names


def _pairs(value: object, row: int, flag: str) -> Iterator[tuple[str, float]]:
    try:
        if isinstance(value, str) and not value.lstrip().startswith(("[", "{")):
            pairs = [part.rpartition(":")[::2] for part in value.split(";") if part.strip()]
        else:
            content = json.loads(value) if isinstance(value, str) else value
            pairs = content.items() if isinstance(content, dict) else content
        for name, share in pairs:
            yield str(name).strip(), float(share)
    except (ValueError, TypeError) as error:
        raise UserError(f"{flag}: row {row}: top_k is '{str(value)[:40]}'; expected pairs such as cat:0.9;dog:0.05"
                        ) from error


def _by_class(columns: dict[str, Sequence], names: list[str], flag: str) -> tuple[str, np.ndarray, list[str] | None]:
    answers = np.empty((len(columns[names[0]]), len(names)), dtype=np.float32)
    for place, name in enumerate(names):
        try:
            answers[:, place] = np.asarray(columns[name], dtype=np.float32)
        except (ValueError, TypeError) as error:
            raise UserError(f"{flag}: column {name} is taken for a class, but is not all numbers "
                            f"({one_line(error, 80)}); leave it out, or name the labels' column label") from error
    numbered = names == [str(i) for i in range(len(names))]
    return _checked(None, answers, flag), answers, None if numbered else names


def _checked(kind: str | None, answers: np.ndarray, flag: str) -> str:
    """Return the kind of the values of classes, by what they are. Raises `UserError` for none of the kinds."""
    bad = ~np.isfinite(answers).all(axis=1)
    if bad.any():
        raise UserError(f"{flag}: {bad.sum()} row(s) with values that are not finite, the first of them row "
                        f"{int(bad.argmax()) + 1}")
    off = np.abs(answers.sum(axis=1) - 1) > SUM_TOLERANCE
    shares = (answers >= 0).all() and (answers <= 1).all()
    if kind is None and not shares:
        return "logits"
    if off.any() or not shares:
        row = int(off.argmax()) if off.any() else int((answers < 0).any(axis=1).argmax())
        raise UserError(f"{flag}: {max(1, off.sum())} row(s) of probabilities do not sum to 1, the first of them row "
                        f"{row + 1} ({answers[row].sum():.4g})")
    return "probabilities"


def _shares(values: Sequence, flag: str) -> np.ndarray:
    try:
        shares = np.asarray(values, dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise UserError(f"{flag}: column confidence is not all numbers ({one_line(error, 80)})") from error
    if not ((shares >= 0) & (shares <= 1)).all():
        raise UserError(f"{flag}: column confidence: expected probabilities from 0 to 1")
    return shares


