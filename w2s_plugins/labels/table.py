"""Tables of labels, as people and programs write them: read, understood, and brought to one answer a sample.

CSV, TSV and JSON lines by the standard library, parquet by pyarrow (optional), ``.npz`` and ``.npy`` by NumPy, ``.pt``
by PyTorch. A row is what one annotator says of one sample. Columns, in any order:

- ``filename``, relative to the folder of the images or its base name, or ``id``, the position of the sample;
- ``label``, a class name or number; or one column a class, probabilities or logits; or ``top_k``, pairs of class and
  probability, best first (JSON, or ``cat:0.9;dog:0.05``);
- ``annotator`` and ``confidence``, where there are such.

``FILE#COLUMN`` takes the labels from a column of another name; where several are called so but for a number behind it,
they are those of as many annotators. Arrays in ``.npy`` and ``.pt`` without a key are in the order of the samples.

Nothing in a file names code, and numbers are taken for numbers only where they are written as such.
"""

import csv
import json
import logging
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import UserError, near_path, nearest, one_line
from ..files import INFLATION, check_archive, check_count, check_extent, check_regular
from .names import check_class_names

_logger = logging.getLogger(__name__)

FILE_COLUMNS = ("filename", "file_name", "file", "path", "file_path", "filepath", "image", "image_path", "img")
ID_COLUMNS = ("id", "index")
LABEL_COLUMNS = ("label", "class", "given", "noisy_label")
TOP_COLUMNS = ("top_k", "topk")
OTHER_COLUMNS = ("annotator", "confidence")
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".npz", ".npy", ".pt")
SUM_TOLERANCE = 0.02  # of the probabilities of a row: files are rounded to two digits
LARGEST_CLASS = 1_000_000  # number of a class that has no name
MOST_VALUES = 2 ** 32  # of a table with all classes
_WHOLE = re.compile(r"(-?[0-9]{1,11})(\.0+)?")
_INTEGER = re.compile(r"-?[0-9]+")


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


def read_label_table(
        path: Path, class_names: Sequence[str] | None = None, flag: str = "",
        columns: Mapping[str, Sequence] | None = None,
) -> LabelTable:
    """Read a file of labels.

    Args:
        path: the file, whose suffix says what it is, or ``FILE#COLUMN``.
        class_names: names that labels may be, in the order of their numbers; None takes those of the file.
        flag: begins the messages, e.g. ``--teacher labels:FILE``.
        columns: what `read_columns` has read of the file before.

    Raises:
        UserError: no such file, of another kind, or without a column that is needed; a label that is no class.
    """
    flag = flag or str(path)
    if class_names is not None:
        check_class_names(class_names, flag)
    file, column = file_of(path)
    columns = read_columns(file, flag) if columns is None else columns
    if column:
        columns = _with_labels_of(columns, column, flag)
    elif file.suffix == ".pt" and not {*LABEL_COLUMNS} & {*columns}:  # its columns are no probabilities
        raise UserError(f"{flag}: say which labels are meant, {file.name}#COLUMN; it has {', '.join(columns)}")
    return understand(path, columns, class_names, flag)


def file_of(path: Path) -> tuple[Path, str]:
    """Return the file of ``FILE`` or ``FILE#COLUMN``, and the column, empty where none is named."""
    file, _, column = str(path).rpartition("#")
    return (path, "") if not file or path.exists() else (Path(file), column)


def read_columns(path: Path, flag: str) -> Mapping[str, Sequence]:
    """Return the columns of a file by name. Raises `UserError` for a file that is not what its suffix says."""
    readers: dict[str, Callable[[Path], Mapping[str, Sequence]]] = {
        ".csv": lambda p: _read_text(p, ","), ".tsv": lambda p: _read_text(p, "\t"), ".jsonl": _read_json_lines,
        ".ndjson": _read_json_lines, ".parquet": lambda p: _ParquetColumns(p, flag), ".npz": _read_npz,
        ".npy": lambda p: _numbered({"label": np.load(p, allow_pickle=False)}),
        ".pt": lambda p: _numbered(load_arrays(p))}
    suffix = path.suffix.lower()
    if path.is_dir() or not path.exists():
        raise UserError(f"{flag}: " + (
            "is a folder; expected a file of labels" if path.is_dir() else f"no such file{near_path(path)}"))
    if suffix not in readers:
        raise UserError(f"{flag}: of an unknown kind{nearest(suffix, SUFFIXES)}; expected {', '.join(SUFFIXES)} or a "
                        "folder of labels")
    with _read_errors(path, flag):
        check_regular(path)
        columns = readers[suffix](path)
        if not columns or not (columns.rows if isinstance(columns, _ParquetColumns) else len(next(iter(
                columns.values())))):
            raise UserError(f"{flag}: holds no labels")
    return columns


def _with_labels_of(columns: Mapping[str, Sequence], column: str, flag: str) -> dict[str, Sequence]:
    """Return keys and labels, where these stand in ``column``, or in columns of this name and a number."""
    chosen = [name for name in columns if name == column or (
        name.startswith(column) and name.removeprefix(column).isdecimal())]
    if not chosen:
        raise UserError(f"{flag}: has no such column{nearest(column, columns)}; it has {', '.join(list(columns)[:12])}")
    table = {name: [*columns[name]] * len(chosen) for name in columns if name.lower() in FILE_COLUMNS + ID_COLUMNS}
    table["label"] = [label for name in chosen for label in columns[name]]
    if len(chosen) > 1:
        table["annotator"] = [name for name in chosen for _ in columns[name]]
    return table


@contextmanager
def _read_errors(path: Path, flag: str) -> Iterator[None]:
    """Turn what readers say of a damaged file into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{flag}: parquet needs a package: pip install pyarrow") from error
    except Exception as error:  # they fail in many ways
        raise UserError(f"{flag}: cannot be read as {path.suffix[1:]}: {one_line(error, 120)}") from error


def _read_text(path: Path, delimiter: str) -> dict[str, Sequence]:
    with path.open(encoding="utf-8-sig", newline="") as file:  # with or without a byte order mark
        rows = csv.reader(file, delimiter=delimiter, strict=True)
        header = next((row for row in rows if any(map(str.strip, row))), [])
        names = [cell.strip() for cell in header]
        _refuse_twice(names)
        columns: list[list[str]] = [[] for _ in names]
        for row in rows:
            if not any(map(str.strip, row)):
                continue
            if len(row) != len(names):
                raise ValueError(f"line {rows.line_num} has {len(row)} values, the header {len(names)}")
            for column, cell in zip(columns, row):
                column.append(cell)
    return dict(zip(names, columns))


def _refuse_twice(names: Sequence[str]) -> None:
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"it has the column '{twice[:40]}' twice")


def _read_json_lines(path: Path) -> dict[str, Sequence]:
    columns: dict[str, list] = {}
    most = 1000 + 10 * path.stat().st_size  # cells; rows with ever other names would need any amount of memory
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
            for name in row:
                if name not in columns:
                    columns[name] = [None] * count
            count += 1
            if count * len(columns) > most:
                raise ValueError(f"line {number}: its rows have too many different names")
            for name, column in columns.items():
                column.append(row.get(name))
    return columns


class _ParquetColumns(Mapping):
    """The columns of a parquet file, each read when it is asked for: those that nobody needs may be large."""

    def __init__(self, path: Path, flag: str):
        import pyarrow.parquet as parquet

        self.path, self.flag, self.file = path, flag, parquet.ParquetFile(path)
        self.names, self.rows = self.file.schema_arrow.names, self.file.metadata.num_rows
        check_count(self.rows, INFLATION + path.stat().st_size, f"{flag}: its rows")
        _refuse_twice(self.names)

    def __getitem__(self, name: str) -> Sequence:
        if name not in self.names:
            raise KeyError(name)
        with _read_errors(self.path, self.flag):
            column = self.file.read(columns=[name]).column(0)
            kind = str(column.type)
            if kind in ("float", "double", "halffloat") and not column.null_count:
                return column.to_numpy()
            if kind not in ("string", "large_string"):
                return column.to_pylist()
            coded = column.combine_chunks().dictionary_encode()  # so that each label is one text in memory, not R
            words = [*coded.dictionary.to_pylist(), None]
            return [words[place] for place in coded.indices.fill_null(len(words) - 1).to_numpy()]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _read_npz(path: Path) -> dict[str, Sequence]:
    with zipfile.ZipFile(path) as archive:
        unpacked, size = sum(record.file_size for record in archive.infolist()), path.stat().st_size
    if unpacked > size + INFLATION:
        raise ValueError(f"its {size / 1e6:.1f} MB would unpack to {unpacked / 1e6:.1f} MB; write it by numpy.savez, "
                         "without compression")
    with np.load(path, allow_pickle=False) as content:
        arrays = {name: content[name] for name in content.files}
    names = arrays.pop("class_names", None)
    columns: dict[str, Sequence] = {}
    for name, array in arrays.items():
        if name in ("probabilities", "logits") and array.ndim == 2:
            heads = [str(n) for n in np.atleast_1d(names)] if names is not None else [*map(str, range(array.shape[1]))]
            if len(heads) != array.shape[1]:
                raise ValueError(f"{len(heads)} class_names, but {name} has {array.shape[1]} columns")
            _refuse_twice(heads)
            columns |= dict(zip(heads, array.astype(np.float32).T))
        elif array.ndim == 1:
            columns[name] = array.tolist()
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"its arrays are not of one length: {dict(list(lengths.items())[:4])}")
    return columns


def load_arrays(path: Path) -> object:
    """Load a file of `torch.save` that may hold NumPy arrays; anything that would run code is refused."""
    reconstruct = np.empty(0).__reduce__()[0]
    allowed = [np.ndarray, np.dtype, *{type(np.dtype(kind)) for kind in ("i1", "i2", "i4", "i8", "u1", "f4", "f8")},
               *((reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core"))]
    check_archive(path)
    with torch.serialization.safe_globals(allowed):
        arrays = torch.load(path, map_location="cpu", weights_only=True)
    check_extent(arrays.values() if isinstance(arrays, dict) else [arrays], path)
    return arrays


def _numbered(arrays: object) -> dict[str, Sequence]:
    """Return the arrays of a file as columns, with the positions of the rows where none of them is a key."""
    columns = {str(name): values.tolist() for name, values in (
        (name, np.asarray(values)) for name, values in (arrays.items() if isinstance(arrays, dict) else ()))
        if values.ndim == 1 and values.dtype.kind in "iuU"}
    lengths = {len(values) for values in columns.values()}
    if len(lengths) > 1 or not columns:
        raise ValueError("expected one-dimensional arrays of class numbers, all of one length")
    if not {name.lower() for name in columns} & {*FILE_COLUMNS, *ID_COLUMNS}:
        columns["id"] = range(*lengths)
    return columns


# ---------------------------------------------------------------- what the columns mean


def understand(
        path: Path, columns: Mapping[str, Sequence], class_names: Sequence[str] | None, flag: str) -> LabelTable:
    """Return what the columns of a file say. Raises `UserError` where that is not clear.

    Of several answers the fullest counts: the probabilities of all classes, then the best of them, then the label.
    """
    folded = {name.lower(): name for name in columns}

    def first(names: Sequence[str]) -> str | None:
        return next((folded[name] for name in names if name in folded), None)

    file, place = first(FILE_COLUMNS), first(ID_COLUMNS)
    label, top = first(LABEL_COLUMNS), first(TOP_COLUMNS)
    who, sure = (first([name]) for name in OTHER_COLUMNS)
    listed = ", ".join(list(columns)[:8])
    if file is None and place is None:
        raise UserError(f"{flag}: no column says which sample a row is about; expected filename or id"
                        f"{nearest('filename', columns)}; it has {listed}")
    key = file or place
    by_class = [name for name in columns if name not in {key, place, label, top, who, sure}]
    if class_names is not None and label is None and top is None:
        by_class = [name for name in by_class if name in set(class_names)] or by_class
    if label is not None and len(by_class) > 1 and not {_text(value) for value in columns[label]} <= set(by_class):
        by_class = []  # columns of other things, beside the label
    elif label is None and top is not None:
        by_class = []
    if len(by_class) > 1:
        answer = None
        kind, answers, names = _by_class(columns, by_class, flag)
        if kind == "logits" and not set(by_class) <= {*(class_names or ())}:
            _refuse_other_things(columns, by_class, answers, flag)
    elif (answer := top or label) is None:
        raise UserError(f"{flag}: no labels; expected a column label, top_k, or one column a class; it has {listed}")
    used = {name: columns[name] for name in (key, answer, who, sure) if name is not None}
    if answer is not None:
        empty = _empty_rows(used[answer])
        used = _with_answer(used, answer, flag)
        try:
            kind, answers, names = (_top if answer == top else _hard)(used[answer], class_names, flag)
        except BadRows as error:  # it counts those that are left
            rows = np.zeros(len(empty), dtype=bool)
            rows[~empty] = error.rows
            raise BadRows(str(error), rows) from error
    return LabelTable(
        path, "filename" if file else "id", _keys(used[key], file is None, key, flag), kind, answers, names,
        None if who is None else [_text(name) for name in used[who]],
        None if sure is None or kind != "hard" else _shares(used[sure], flag))


def _text(value: object) -> str:
    return "" if _is_empty(value) else str(value).strip()


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or (
        isinstance(value, (float, np.floating)) and value != value)


class BadRows(UserError):
    """Some rows of a table that say nothing that can be understood; the others could be read without them.

    Args:
        message: see `UserError`.
        rows: (R,) which.
    """

    def __init__(self, message: str, rows: np.ndarray):
        super().__init__(message)
        self.rows = rows


class WithoutRows(Mapping):
    """The columns of a file without some rows, each made when it is asked for."""

    def __init__(self, columns: Mapping[str, Sequence], rows: np.ndarray):
        self.columns, self.rows = columns, rows

    def __getitem__(self, name: str) -> Sequence:
        return [value for value, left_out in zip(self.columns[name], self.rows) if not left_out]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)


def _with_answer(columns: dict[str, Sequence], answer: str, flag: str) -> dict[str, Sequence]:
    """Return the rows that say something. Raises `UserError` when there are none."""
    kept = ~_empty_rows(columns[answer])
    if kept.all():
        return columns
    if not kept.any():
        raise UserError(f"{flag}: its column {answer} is empty")
    _logger.warning(f"WARNING: {flag}: {(~kept).sum()} of {len(kept)} rows have no {answer} and are left out, the "
                    f"first of them row {int(kept.argmin()) + 1}")
    return {name: [value for value, keep in zip(values, kept) if keep] for name, values in columns.items()}


def _empty_rows(values: Sequence) -> np.ndarray:
    return np.array([_is_empty(value) for value in values], dtype=bool)


def _keys(values: Sequence, numbers: bool, column: str, flag: str) -> list:
    empty = next((i for i, value in enumerate(values) if _is_empty(value)), None)
    if empty is not None:
        raise UserError(f"{flag}: row {empty + 1} has no {column}")
    if not numbers:
        return [str(value).strip().removeprefix("./") for value in values]
    keys = [_whole(value) for value in values]
    odd = next((i for i, key in enumerate(keys) if key is None or key < 0), None)
    if odd is not None:
        raise UserError(f"{flag}: column {column}, row {odd + 1}: '{str(values[odd])[:40]}' is no position; expected "
                        "whole numbers from 0")
    return keys


def _whole(value: object) -> int | None:
    """Return a whole number that is written as such, else None. Others turn it into 3.0 when a cell is empty."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    match = _WHOLE.fullmatch(str(value).strip())
    return int(match[1]) if match and not isinstance(value, bool) else None


def _are_names(texts: Sequence[str]) -> bool:
    """Whether digits are names: nobody writes the number of a class as 01."""
    return any(len(text) > 1 and text[0] == "0" and text.isdecimal() for text in texts)


def _hard(values: Sequence, class_names: Sequence[str] | None, flag: str) -> tuple[str, np.ndarray, list[str] | None]:
    """Numbers where no label is the name of a class, which may be a number itself; else names."""
    odd = next((i for i, value in enumerate(values) if isinstance(value, (bool, list, dict))), None)
    if odd is not None:
        raise UserError(f"{flag}: row {odd + 1}: {str(values[odd])[:40]} is no class; expected a name or a number")
    texts, numbers = [_text(value) for value in values], [_whole(value) for value in values]
    if class_names is None:
        names = None if None not in numbers and not _are_names(texts) else sorted(set(texts))
    else:
        names = list(class_names)
    places = {name: i for i, name in enumerate(names or ())}
    size = len(names) if names else LARGEST_CLASS + 1
    found = [places.get(text) for text in texts]
    by_number = None not in numbers and not any(text in places for text in texts)
    if by_number:
        found = [number if 0 <= number < size else None for number in numbers]
    odd = np.array([number is None for number in found], dtype=bool)
    if odd.any():
        text, more = texts[int(odd.argmax())][:40], f"; so are {odd.sum() - 1} more" if odd.sum() > 1 else ""
        expected = f"{'the name of one, or in all rows its' if names else 'a'} number from 0 to {size - 1}"
        raise BadRows(f"{flag}: row {int(odd.argmax()) + 1}: '{text}' is no class{nearest(text, names or ())}; "
                      f"expected {expected}{more}", odd)
    if not names:
        check_count(max(found) + 1, len(set(found)), f"{flag}: its classes, by the highest number")
    if names and by_number:
        _logger.info(f"{flag}: has numbers for classes, which are taken for those of the data in its order")
    return "hard", np.array(found, dtype=np.int64), names


def _top(values: Sequence, class_names: Sequence[str] | None, flag: str) -> tuple[str, np.ndarray, list[str] | None]:
    """Pairs of class and probability; the classes that are left share what is left evenly."""
    rows = [list(_pairs(value, i, flag)) for i, value in enumerate(values, start=1)]
    said = [name for row in rows for name, _ in row]
    numbers = all(_whole(name) is not None for name in said) and not _are_names(said)
    names = list(class_names) if class_names is not None else None if numbers else sorted(set(said))
    places = {name: i for i, name in enumerate(names or ())}
    if names and numbers and not set(said) <= set(names):
        names, size = None, len(names)  # by number, where names are numbers as well
    else:
        size = len(names) if names else max(map(_whole, said), default=-1) + 1
        check_count(size, len(set(said)), f"{flag}: its classes, by the highest number")
    if not 0 < size <= LARGEST_CLASS + 1 or len(rows) * size > MOST_VALUES:
        raise UserError(f"{flag}: top_k of {len(rows)} rows and {size} classes, up to '{max(said, default='')[:40]}', "
                        f"are more than {MOST_VALUES} values, or none")
    answers = np.zeros((len(rows), size), dtype=np.float32)
    for i, row in enumerate(rows):
        others = np.ones(size, dtype=bool)
        for name, share in row:
            place = places.get(name) if names else _whole(name)
            if place is None or not 0 <= place < size:
                raise UserError(f"{flag}: row {i + 1}: '{name[:40]}' is no class{nearest(name, names or ())}")
            if not others[place]:
                raise UserError(f"{flag}: row {i + 1}: top_k has the class '{name[:40]}' twice")
            answers[i, place], others[place] = share, False
        left = 1 - answers[i].sum()
        if others.any() and left > 0:
            answers[i, others] = left / others.sum()
    return _checked("probabilities", answers, flag), answers, (class_names and list(class_names)) or names


def _pairs(value: object, row: int, flag: str) -> Iterator[tuple[str, float]]:
    try:
        if isinstance(value, str) and not value.lstrip().startswith(("[", "{")):
            pairs = [part.rpartition(":")[::2] for part in value.split(";") if part.strip()]
        else:
            content = json.loads(value) if isinstance(value, str) else value
            pairs = content.items() if isinstance(content, dict) else content
        for name, share in pairs:
            yield str(name).strip(), float(share)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{flag}: row {row}: top_k is '{str(value)[:40]}'; expected pairs such as cat:0.9;dog:0.05"
                        ) from error


def _by_class(columns: dict[str, Sequence], names: list[str], flag: str) -> tuple[str, np.ndarray, list[str] | None]:
    answers = np.empty((len(columns[names[0]]), len(names)), dtype=np.float32)
    for place, name in enumerate(names):
        try:
            answers[:, place] = np.asarray(columns[name], dtype=np.float32)
        except (ValueError, TypeError, OverflowError) as error:
            raise UserError(f"{flag}: column {name} is taken for a class, but is not all numbers "
                            f"({one_line(error, 80)}); leave it out, or name the labels' column label") from error
    numbered = names == [str(i) for i in range(len(names))]
    return _checked(None, answers, flag), answers, None if numbered else names


def _refuse_other_things(
        columns: Mapping[str, Sequence], names: list[str], answers: np.ndarray, flag: str) -> None:
    """Refuse what would be logits by the numbers, where some columns are of another sort than the others: those in
    whole numbers, and those beside columns that are probabilities.
    """
    whole = np.array([all(_INTEGER.fullmatch(str(value).strip()) for value in columns[name]) for name in names])
    outside = ((answers < 0) | (answers > 1)).any(axis=0)
    sums = answers[:, ~outside].sum(axis=1, dtype=np.float64)
    beside = (~outside).sum() > 1 and (np.abs(sums - 1) <= SUM_TOLERANCE).all()
    odd = whole if whole.any() and not whole.all() else outside if beside else []
    if any(odd):
        raise UserError(f"{flag}: is column {names[int(np.argmax(odd))]} a class? It is unlike "
                        f"{names[int(np.argmin(odd))]}, and the values of all columns are no probabilities; say what "
                        "the classes are by --class-names, or leave it out")


def _checked(kind: str | None, answers: np.ndarray, flag: str) -> str:
    """Return the kind of the values of classes, by what they are. Raises `UserError` for none of the kinds."""
    bad = ~np.isfinite(answers).all(axis=1)
    if bad.any():
        raise BadRows(f"{flag}: {bad.sum()} row(s) with values that are not finite, the first of them row "
                      f"{int(bad.argmax()) + 1}", bad)
    sums = answers.sum(axis=1, dtype=np.float64)
    off = (np.abs(sums - 1) > SUM_TOLERANCE) | (answers < 0).any(axis=1) | (answers > 1 + SUM_TOLERANCE).any(axis=1)
    if not off.any():
        return "probabilities"
    row = int(off.argmax())
    if kind is None and (answers >= 0).all() and (np.abs(sums / 100 - 1) < SUM_TOLERANCE).all():
        raise UserError(f"{flag}: each row sums to 100: its values are percent; expected probabilities from 0 to 1")
    inside = bool(((answers >= 0) & (answers <= 1)).all())
    if kind == "probabilities" or inside or 2 * off.sum() < len(off):
        hint = "" if inside else "; the others do" if kind is None else "; of logits expected is one column a class"
        raise BadRows(f"{flag}: {off.sum()} of {len(off)} rows are no probabilities that sum to 1, the first of them "
                      f"row {row + 1} ({sums[row]:.4g}){hint}", off)
    _logger.info(f"{flag}: its columns of classes are logits, since their values are not probabilities")
    return "logits"


def _shares(values: Sequence, flag: str) -> np.ndarray:
    try:
        shares = np.asarray(values, dtype=np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{flag}: column confidence is not all numbers ({one_line(error, 80)})") from error
    if not ((shares >= 0) & (shares <= 1)).all():
        raise UserError(f"{flag}: column confidence: expected probabilities from 0 to 1")
    return shares


