"""Tables of labels, as people and programs write them: read by pandas, and understood in one place.

A row is what one annotator says of one sample. Which column says what is decided by `infer_schema`, what a class is
called by `class_places`; docs/labels.md has the rules for a person, tests/labels/test_rules.py a test for each.
Nothing in a file names code, and numbers are taken for numbers only where they are written as such.
"""

import json
import logging
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import UserError, near_path, nearest, one_line
from ..files import INFLATION, check_archive, check_count, check_extent, check_regular
from .names import check_class_names

if TYPE_CHECKING:
    from pandas import DataFrame

_logger = logging.getLogger(__name__)

# what a column may be called, by what it says; the first name of each is the plain one
ROLES = {
    "filename": ("filename", "file_name", "file", "path", "file_path", "filepath", "image", "image_path", "img"),
    "id": ("id", "index"),
    "label": ("label", "class", "given", "noisy_label"),
    "top_k": ("top_k", "topk"),
    "annotator": ("annotator",),
    "confidence": ("confidence",),
}
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".npz", ".npy", ".pt")
SUM_TOLERANCE = 0.02  # of the probabilities of a row: files are rounded to two digits
LARGEST_CLASS = 1_000_000  # number of a class that has no name
MOST_CELLS = 2 ** 32  # of a table with all classes
USUAL_GAP = 0.01  # of the samples or rows may be without a label before that has to be asked for
_WHOLE = re.compile(r"(-?[0-9]{1,11})(\.0+)?")


@dataclass(frozen=True)
class LabelTable:
    """What a file says, row by row.

    Args:
        path: the file.
        keyed_by: ``filename`` or ``id``.
        keys: (R,) the sample of each row.
        kind: ``hard``, ``probabilities`` or ``logits``.
        answers: (R,) class numbers, or (R, C) values in float32.
        class_names: names of the classes, in the order of their numbers; None where the file has numbers only.
        annotators: (R,) who said it, or None.
        confidence: (R,) probability of the label, or None.
        positions: (R,) of the samples, where the file has these beside their names.
    """

    path: Path
    keyed_by: str
    keys: Sequence[str] | Sequence[int]
    kind: str
    answers: np.ndarray
    class_names: list[str] | None = None
    annotators: Sequence[str] | None = None
    confidence: np.ndarray | None = None
    positions: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def num_classes(self) -> int:
        """The number of classes that the file knows of."""
        if self.class_names:
            return len(self.class_names)
        return self.answers.shape[1] if self.answers.ndim == 2 else int(self.answers.max()) + 1


def read_label_table(
        path: Path, class_names: Sequence[str] | None = None, flag: str = "", columns: "Columns | None" = None,
        missing: str | None = "error",
) -> LabelTable:
    """Read a file of labels.

    Args:
        path: the file, whose suffix says what it is, or ``FILE#COLUMN``.
        class_names: names of the classes, in the order of their numbers; None takes those of the file.
        flag: begins the messages, e.g. ``--teacher labels:FILE``.
        columns: what `open_columns` has made of the file before.
        missing: how many rows that say nothing that can be understood are left out, see `is_too_many`.

    Raises:
        UserError: no such file, of another kind, or one that cannot be understood; a label that is no class.
    """
    flag = flag or str(path)
    if class_names is not None:
        check_class_names(class_names, flag)
    file, chosen = file_of(path)
    columns = columns or open_columns(file, flag)
    if chosen:
        columns = columns.with_labels_of(chosen, flag)
    elif file.suffix == ".pt" and not {*ROLES["label"]} & {*columns.names}:  # its columns are no probabilities
        raise UserError(
            f"{flag}: say which labels are meant, {file.name}#COLUMN; it has {', '.join(columns.names)}")
    schema = infer_schema(columns, class_names, flag)
    rows = _Rows(columns.read(schema.used), schema, class_names, flag)
    return rows.table(path, missing)


def file_of(path: Path) -> tuple[Path, str]:
    """Return the file of ``FILE`` or ``FILE#COLUMN``, and the column, empty where none is named."""
    file, _, column = str(path).rpartition("#")
    return (path, "") if not file or path.exists() else (Path(file), column)


def is_too_many(bad: int, count: int, missing: str | None) -> bool:
    """Say whether ``bad`` of ``count`` samples or rows are an error: any with ``error``, with ``skip`` none, and by
    default more than `USUAL_GAP`.
    """
    if missing is None:
        return bad > USUAL_GAP * count
    return missing == "error" and bad > 0


# ---------------------------------------------------------------- files


class Columns:
    """The columns of a file.

    Args:
        names: of all of them.
        read: returns some as a frame; of parquet only these are read.
        classes: those that the file itself calls probabilities or logits of classes, by class; None where it does not.
        logits: it calls them logits.
    """

    def __init__(self, names: Sequence[str], read: Callable[[list[str]], "DataFrame"],
                 classes: Mapping[str, str] | None = None, logits: bool = False):
        _check_distinct(names, "it has the column")
        self.names, self.read, self.classes, self.logits = list(names), read, classes, logits

    def with_labels_of(self, chosen: str, flag: str) -> "Columns":
        """Return keys and labels: those of the column ``chosen``, in capitals or not, or, where there is none, of all
        that are called so but for a number at the end, which are those of as many annotators. ``worker1`` is one of
        them and stands for no others.
        """
        import pandas

        found = [name for name in self.names if name == chosen]
        if not found:
            found = [name for name in self.names if name.lower() == chosen.lower()]
        if not found and not chosen[-1:].isdecimal():
            beginning = len(chosen)
            found = [name for name in self.names
                     if name[:beginning].lower() == chosen.lower() and name[beginning:].isdecimal()]
        if not found:
            listed = ", ".join(self.names[:12])
            raise UserError(f"{flag}: has no such column{nearest(chosen, self.names)}; it has {listed}")
        keys = [name for name in self.names if name.lower() in (*ROLES["filename"], *ROLES["id"])]
        frame = self.read(list(dict.fromkeys([*keys, *found])))
        whole = pandas.concat(
            [frame[keys].assign(label=frame[name], annotator=name) for name in found], ignore_index=True)
        return _frame_columns(whole.drop(columns="annotator") if len(found) == 1 else whole)


def _check_distinct(names: Sequence[str], what: str) -> None:
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"{what} '{twice[:40]}' twice")


def _frame_columns(frame: "DataFrame", **about: object) -> Columns:
    return Columns([str(name) for name in frame.columns], lambda names: frame[names], **about)


def open_columns(path: Path, flag: str) -> Columns:
    """Open a file of labels. Raises `UserError` for one that is not what its suffix says, or holds nothing."""
    readers: dict[str, Callable[[Path], Columns]] = {
        ".csv": _open_text, ".tsv": _open_text, ".jsonl": _open_json_lines, ".ndjson": _open_json_lines,
        ".parquet": _open_parquet, ".npz": _open_npz, ".npy": _open_npy, ".pt": _open_pt}
    suffix = path.suffix.lower()
    if not path.exists():
        raise UserError(f"{flag}: no such file{near_path(path)}")
    if path.is_dir():
        raise UserError(f"{flag}: is a folder; expected a file of labels")
    if suffix not in readers:
        raise UserError(f"{flag}: of an unknown kind{nearest(suffix, SUFFIXES)}; expected {', '.join(SUFFIXES)} or a "
                        "folder of labels")
    with _read_errors(path, flag):
        check_regular(path)
        columns = readers[suffix](path)
        if not columns.names or not len(columns.read(columns.names[:1])):
            raise UserError(f"{flag}: holds no labels")
        return columns


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


def _open_text(path: Path) -> Columns:
    import pandas

    try:
        # every cell is a text: NA is a name, 01 is not 1; and the header is a row like the others, so that a line with
        # more values than it has is an error
        rows = pandas.read_csv(path, sep="\t" if path.suffix.lower() == ".tsv" else ",", header=None, dtype=str,
                               keep_default_na=False, encoding="utf-8-sig")
    except pandas.errors.EmptyDataError:
        return _frame_columns(pandas.DataFrame())
    begins = rows[0].str.strip() != ""
    separators = [not "".join(row).strip() for row in rows[~begins].itertuples(index=False)]  # lines of nothing else
    rows = rows.drop(index=rows.index[~begins][separators])
    if not len(rows):
        return _frame_columns(pandas.DataFrame())
    frame = rows.iloc[1:]
    frame.columns = [name.strip() for name in rows.iloc[0]]
    return _frame_columns(frame)


def _open_json_lines(path: Path) -> Columns:
    import pandas

    rows: list[dict] = []
    names: dict[str, None] = {}
    classes: dict[str, str] = {}
    most = 1000 + 10 * path.stat().st_size  # cells; rows with ever other names would need any amount of memory
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            row = json.loads(line, object_pairs_hook=_distinct)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is no object")
            shares = row.pop("probabilities", None)
            if isinstance(shares, dict):  # its names are those of classes, whatever they are
                classes.update((name, f"probabilities.{name}") for name in shares)
                row.update((f"probabilities.{name}", share) for name, share in shares.items())
            rows.append(row)
            names.update(dict.fromkeys(row))
            if len(rows) * len(names) > most:
                raise ValueError(f"line {number}: its rows have too many different names")
    return _frame_columns(pandas.DataFrame(rows, columns=list(names), dtype=object), classes=classes or None)


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        _check_distinct([name for name, _ in pairs], "a row has the key")
    return found


def _open_parquet(path: Path) -> Columns:
    import pyarrow.parquet as parquet

    file = parquet.ParquetFile(path)

    def read(names: list[str]) -> "DataFrame":
        with _read_errors(path, str(path)):
            return file.read(columns=names).to_pandas(ignore_metadata=True)
    return Columns(file.schema_arrow.names, read)


def _open_npz(path: Path) -> Columns:
    import pandas

    with zipfile.ZipFile(path) as archive:
        unpacked, size = sum(record.file_size for record in archive.infolist()), path.stat().st_size
    if unpacked > size + INFLATION:
        raise ValueError(f"its {size / 1e6:.1f} MB would unpack to {unpacked / 1e6:.1f} MB; write it by numpy.savez, "
                         "without compression")
    with np.load(path, allow_pickle=False) as content:
        arrays = {name: content[name] for name in content.files}
    heads = arrays.pop("class_names", None)
    columns = {name: array for name, array in arrays.items() if array.ndim == 1}
    classes: dict[str, str] = {}
    kind = next((name for name in ("probabilities", "logits") if name in arrays and arrays[name].ndim == 2), None)
    if kind is not None:
        values = arrays[kind].astype(np.float32)
        own = range(values.shape[1]) if heads is None else np.atleast_1d(heads)
        classes = {str(head): f"{kind}.{head}" for head in own}
        if not len(own) == len(classes) == values.shape[1]:
            raise ValueError(f"{len(classes)} different class_names, but {kind} has {values.shape[1]} columns")
        columns |= dict(zip(classes.values(), values.T))
    return _frame_columns(pandas.DataFrame(columns), classes=classes or None, logits=kind == "logits")


def _open_npy(path: Path) -> Columns:
    return _in_order({"label": np.load(path, allow_pickle=False)})


def _open_pt(path: Path) -> Columns:
    arrays = load_arrays(path)
    return _in_order(arrays if isinstance(arrays, dict) else {})


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


def _in_order(arrays: Mapping[str, object]) -> Columns:
    """Return the arrays of class numbers of a file, with the positions of the rows where none of them is a key."""
    import pandas

    found = {str(name): np.asarray(values) for name, values in arrays.items()}
    found = {name: values for name, values in found.items() if values.ndim == 1 and values.dtype.kind in "iuU"}
    if len({len(values) for values in found.values()}) != 1:
        raise ValueError("expected one-dimensional arrays of class numbers, all of one length")
    frame = pandas.DataFrame(found)
    if not {name.lower() for name in found} & {*ROLES["filename"], *ROLES["id"]}:
        frame["id"] = range(len(frame))
    return _frame_columns(frame)


# ---------------------------------------------------------------- what the columns mean


@dataclass(frozen=True)
class Schema:
    """Which column of a file says what.

    Args:
        keys: the name of the sample, its position, or both, by role.
        answer: ``label``, ``top_k`` or ``classes``: of several answers in a row the fullest counts.
        classes: the column of each class, where there is one a class; else, under "", that of the answer.
        annotator: who said it, or None.
        confidence: of the label, or None.
        guessed: nothing but the numbers says that the columns are those of classes.
        logits: the file says that they are logits.
    """

    keys: dict[str, str]
    answer: str
    classes: dict[str, str]
    annotator: str | None
    confidence: str | None
    guessed: bool = False
    logits: bool = False

    @property
    def used(self) -> list[str]:
        others = [name for name in (self.annotator, self.confidence) if name is not None]
        return [*self.keys.values(), *self.classes.values(), *others]


def infer_schema(columns: Columns, class_names: Sequence[str] | None, flag: str) -> Schema:
    """Decide which column of a file says what: the one place that does, for all that read labels.

    Args:
        columns: of the file.
        class_names: names of the classes, None where nothing but the file says them.
        flag: begins the messages.

    Raises:
        UserError: there is no key or no answer, or more than one that could be meant.
    """
    listed = ", ".join(columns.names[:8])
    named = [name for name in columns.names if name in {*(class_names or ())}]
    if columns.classes is not None or len(named) < 2:
        named = []  # the file says itself which columns are those of classes, or it is not one column a class
    roles = {role: _column_with(role, columns.names, flag) for role in ROLES}

    # a class may have the name of another column: it is one where its column can be nothing else
    for role, name in roles.items():
        if name not in named:
            continue
        if role == "confidence" and roles["label"] not in (None, *named):
            raise UserError(f"{flag}: is the column '{name}' the class of that name, or the {role} of the label? "
                            "Leave out the label, or rename one of them")
        if role not in ("filename", "id") or any(
                roles[other] not in (None, *named) for other in ("filename", "id")):
            roles[role] = None
        else:
            named.remove(name)
    keys = {role: roles[role] for role in ("filename", "id") if roles[role] is not None}
    if not keys:
        raise UserError(f"{flag}: no column says which sample a row is about; expected filename or id"
                        f"{nearest('filename', columns.names)}; it has {listed}")

    # of several answers in a row the fullest counts: one column a class, the best classes, the label alone
    rest = [name for name in columns.names if name not in roles.values()]
    label, confidence = roles["label"], roles["confidence"]
    classes, guessed = columns.classes or {}, False
    if len(named) > 1:
        classes = {name: name for name in named}
    elif not classes and len(rest) > 1:
        guessed = roles["top_k"] is None
        if label is not None:  # else they are columns of other things, beside the label
            guessed = {_text(value) for value in columns.read([label])[label]} <= {*rest}
        classes = {name: name for name in rest} if guessed else {}
    answer = "classes"
    if not classes:
        answer = "top_k" if roles["top_k"] else "label"
        if roles[answer] is None:
            raise UserError(f"{flag}: no labels; expected a column label, top_k, or one column a class; it has "
                            f"{listed}")
        classes = {"": roles[answer]}
    elif guessed and confidence is not None and label is None:
        raise UserError(f"{flag}: is the column '{confidence}' a class? It stands beside columns of classes and no "
                        "label; say what the classes are by --class-names, or leave it out")
    schema = Schema(keys, answer, classes, roles["annotator"], confidence if answer == "label" else None, guessed,
                    columns.logits)

    # what is not read is said, but for what may be a class
    unread = [name for name in columns.names if name not in (*schema.used, label, confidence)]
    absent = [name for name in class_names or () if name not in classes] if answer == "classes" else []
    misspelt = next((name for name in unread if nearest(name, absent)), None)
    if misspelt is not None:
        raise UserError(f"{flag}: its column '{misspelt[:40]}' is no class{nearest(misspelt, absent)}; rename it, or "
                        "leave it out")
    if unread:
        _logger.info(f"{flag}: further columns, which are not read: {', '.join(unread[:8])}")
    return schema


def _column_with(role: str, names: Sequence[str], flag: str) -> str | None:
    """Return the column with a role: that of the plain name, else of one of the others. Raises `UserError` for two."""
    for wanted in (ROLES[role][:1], ROLES[role][1:]):
        found = [name for name in names if name.lower() in wanted]
        if len(found) > 1:
            raise UserError(f"{flag}: which column is the {role}, {' or '.join(found[:3])}? Leave out or rename all "
                            "but one")
        if found:
            return found[0]
    return None


# ---------------------------------------------------------------- classes


def class_places(
        said: Collection[str], class_names: Sequence[str] | None, flag: str,
) -> tuple[dict[str, int | None], list[str] | None]:
    """Return the number of each class that a file says, None for what is no class, and the names by number.

    Names are matched as they are written. Numbers stand for positions where no class has a number for its name; where
    all classes have one, 1 is the class 01, and never the second one.

    Args:
        said: names or numbers of classes.
        class_names: names of the classes in order, None where nothing but the file says them.
        flag: begins the messages.
    """
    numbers = {text: _whole(text) for text in said}
    all_numbers = None not in numbers.values()
    if class_names is None:
        padded = any(len(text) > 1 and text[0] == "0" and text.isdecimal() for text in said)
        if all_numbers and not padded:  # nobody writes the number of a class as 01
            return {text: n if 0 <= n <= LARGEST_CLASS else None for text, n in numbers.items()}, None
        class_names = sorted(said)
    names = list(class_names)
    places: dict[str, int | None] = {name: i for i, name in enumerate(names)}
    if all(name.isdecimal() for name in names):
        values = Counter(map(int, names))
        by_value = {int(name): i for name, i in places.items() if values[int(name)] == 1}
        return {text: places.get(text, by_value.get(number)) for text, number in numbers.items()}, names
    if all_numbers and not places.keys() & {*said}:
        _logger.info(f"{flag}: has numbers for classes, which are taken for those of the data in its order")
        return {text: n if 0 <= n < len(names) else None for text, n in numbers.items()}, names
    return {text: places.get(text) for text in said}, names


def _text(value: object) -> str:
    if value is None or (isinstance(value, (float, np.floating)) and value != value):
        return ""
    return str(value).strip()


def _whole(value: object) -> int | None:
    """Return a whole number that is written as such, else None. Others turn it into 3.0 when a cell is empty."""
    if isinstance(value, (bool, np.bool_)):
        return None
    match = _WHOLE.fullmatch(str(value).strip())
    return int(match[1]) if match else None


# ---------------------------------------------------------------- what the rows say


@dataclass
class _Answers:
    """What rows (R,) say, which of them say nothing that can be understood, and the line about these."""

    kind: str
    values: np.ndarray
    class_names: list[str] | None
    bad: np.ndarray
    message: str = ""


class _Rows:
    """The rows of a file, of which some say nothing and are left out.

    Args:
        frame: the columns that are used.
        schema: what they are.
        class_names: names of the classes, None for those of the file.
        flag: begins the messages.
    """

    def __init__(self, frame: "DataFrame", schema: Schema, class_names: Sequence[str] | None, flag: str):
        self.frame, self.schema, self.class_names, self.flag = frame, schema, class_names, flag
        self.numbers = np.arange(1, len(frame) + 1)  # of the rows in the file

    def table(self, path: Path, missing: str | None) -> LabelTable:
        """Return what the rows say. Raises `UserError` for more bad ones than ``missing`` allows."""
        schema, flag = self.schema, self.flag
        if schema.answer != "classes":  # rows without a label say nothing, however many there are
            column = schema.classes[""]
            said = np.array([_text(value) != "" for value in self.frame[column]], dtype=bool)
            if not said.any():
                raise UserError(f"{flag}: its column {column} is empty")
            if not said.all():
                _logger.warning(f"WARNING: {flag}: {(~said).sum()} of {len(said)} rows have no {column} and are left "
                                f"out, the first of them row {self._first(~said)}")
            self._keep(said)

        # rows whose answer cannot be understood are left out, or an error
        answers = {"classes": self._by_class, "top_k": self._top, "label": self._hard}[schema.answer]()
        bad, values = answers.bad, answers.values
        if bad.any():
            if bad.all() or is_too_many(int(bad.sum()), len(bad), missing):
                raise UserError(f"{flag}: {answers.message}")
            _logger.warning(f"WARNING: {flag}: {answers.message}; left out")
            self._keep(~bad)
            values = values[~bad]

        keys = {role: self._keys(column, role == "id") for role, column in schema.keys.items()}
        keyed_by = next(iter(keys))
        annotators = None if schema.annotator is None else [_text(who) for who in self.frame[schema.annotator]]
        return LabelTable(
            path, keyed_by, keys[keyed_by], answers.kind, values, answers.class_names, annotators, self._confidence(),
            keys.get("id") if keyed_by == "filename" else None)

    def _keep(self, rows: np.ndarray) -> None:
        self.frame, self.numbers = self.frame[rows], self.numbers[rows]

    def _first(self, rows: np.ndarray) -> int:
        """Return the number of the first of some rows in the file."""
        return int(self.numbers[rows.argmax()])

    def _keys(self, column: str, positions: bool) -> list:
        texts = [_text(value) for value in self.frame[column]]
        if "" in texts:
            raise UserError(f"{self.flag}: row {self.numbers[texts.index('')]} has no {column}")
        if not positions:
            return [text.removeprefix("./") for text in texts]
        keys = [_whole(value) for value in self.frame[column]]
        odd = np.array([key is None or key < 0 for key in keys])
        if odd.any():
            raise UserError(f"{self.flag}: column {column}, row {self._first(odd)}: '{texts[odd.argmax()][:40]}' is no "
                            "position; expected whole numbers from 0")
        return keys

    def _confidence(self) -> np.ndarray | None:
        if self.schema.confidence is None:
            return None
        shares = self._floats(self.schema.confidence)
        if not ((shares >= 0) & (shares <= 1)).all():
            raise UserError(f"{self.flag}: column confidence: expected probabilities from 0 to 1")
        return shares

    def _floats(self, column: str) -> np.ndarray:
        try:
            return np.asarray(self.frame[column].tolist(), dtype=np.float32)
        except (ValueError, TypeError, OverflowError) as error:
            raise UserError(f"{self.flag}: column {column} is not all numbers ({one_line(error, 80)}); leave it "
                            "out, or name the labels' column label") from error

    def _hard(self) -> _Answers:
        """One label a row."""
        values = self.frame[self.schema.classes[""]].tolist()
        odd = next((i for i, value in enumerate(values) if isinstance(value, (bool, list, dict))), None)
        if odd is not None:
            raise UserError(f"{self.flag}: row {self.numbers[odd]}: {str(values[odd])[:40]} is no class; expected a "
                            "name or a number")
        texts = [_text(value) for value in values]
        places, names = class_places({*texts}, self.class_names, self.flag)
        found = np.array([-1 if places[text] is None else places[text] for text in texts], dtype=np.int64)
        if names is None:  # a number alone does not make a million classes
            check_count(int(found.max()) + 1, len({*found}), f"{self.flag}: its classes, by the highest number")
        answers = _Answers("hard", found, names, found < 0)
        if answers.bad.any():
            text = texts[int(answers.bad.argmax())][:40]
            whose, size = ("a", LARGEST_CLASS + 1) if names is None else (
                "the name of one, or in all rows its", len(names))
            answers.message = (
                f"row {self._first(answers.bad)}: '{text}' is no class{nearest(text, names or ())}; expected {whose} "
                f"number from 0 to {size - 1}; rows like it: {answers.bad.sum()}")
        return answers

    def _top(self) -> _Answers:
        """Pairs of class and probability; the classes that are left share what is left evenly."""
        flag = self.flag
        rows = [self._pairs(value, number) for number, value in zip(self.numbers, self.frame[self.schema.classes[""]])]
        said = {name for row in rows for name, _ in row}
        places, names = class_places(said, self.class_names, flag)
        size = len(names) if names else max((place for place in places.values() if place is not None), default=-1) + 1
        if names is None:
            check_count(size, len(said), f"{flag}: its classes, by the highest number")
        if not size or len(rows) * size > MOST_CELLS:
            raise UserError(f"{flag}: top_k of {len(rows)} rows and {size} classes are more than can be believed of "
                            "this file, or none")
        answers = np.zeros((len(rows), size), dtype=np.float32)
        for i, row in enumerate(rows):
            others = np.ones(size, dtype=bool)
            for name, share in row:
                place = places[name]
                if place is None:
                    raise UserError(f"{flag}: row {self.numbers[i]}: '{name[:40]}' is no class"
                                    f"{nearest(name, names or ())}")
                if not others[place]:
                    raise UserError(f"{flag}: row {self.numbers[i]}: top_k has the class '{name[:40]}' twice")
                answers[i, place] = share
                others[place] = False
            left = 1 - answers[i].sum()
            if others.any() and left > 0:
                answers[i, others] = left / others.sum()
        return self._kind_of(answers, names)

    def _pairs(self, value: object, number: int) -> list[tuple[str, float]]:
        try:
            if isinstance(value, str) and not value.lstrip().startswith(("[", "{")):
                pairs = [part.rpartition(":")[::2] for part in value.split(";") if part.strip()]
            else:
                content = json.loads(value) if isinstance(value, str) else value
                pairs = content.items() if isinstance(content, dict) else content
            return [(str(name).strip(), float(share)) for name, share in pairs]
        except (ValueError, TypeError, OverflowError) as error:
            raise UserError(f"{self.flag}: row {number}: top_k is '{str(value)[:40]}'; expected pairs such as "
                            "cat:0.9;dog:0.05") from error

    def _by_class(self) -> _Answers:
        """One column a class: probabilities, votes or logits."""
        own, flag = list(self.schema.classes), self.flag
        values = np.empty((len(self.frame), len(own)), dtype=np.float32)
        for place, column in enumerate(self.schema.classes.values()):
            values[:, place] = self._floats(column)
        found = self._kind_of(values, None if own == [*map(str, range(len(own)))] else own)
        if found.kind == "logits" and self.schema.guessed:
            self._refuse_other_things(values)
        if self.class_names is None:
            return found

        # into the order of the classes of the data; those that the file does not know are as good as impossible
        places, names = class_places(own, self.class_names, flag)
        odd = [name for name in own if places[name] is None]
        if odd:
            raise UserError(f"{flag}: its class '{odd[0][:40]}' is none of the {len(names)} classes of the data"
                            f"{nearest(odd[0], names)}")
        if len({*places.values()}) < len(own):
            raise UserError(f"{flag}: two of its columns are one class of the data")
        low = 0.0 if found.kind == "probabilities" else float(found.values.min()) - 20
        wide = np.full((len(values), len(names)), low, dtype=np.float32)
        wide[:, [places[name] for name in own]] = found.values
        return _Answers(found.kind, wide, names, found.bad, found.message)

    def _kind_of(self, values: np.ndarray, names: list[str] | None) -> _Answers:
        """Say what values of classes (R, C) are: probabilities as they are or of votes, or logits."""
        infinite = ~np.isfinite(values).all(axis=1)
        finite = values[~infinite]
        sums = finite.sum(axis=1, dtype=np.float64)
        off = (np.abs(sums - 1) > SUM_TOLERANCE) | (finite < 0).any(axis=1) | (finite > 1 + SUM_TOLERANCE).any(axis=1)
        positive, inside = (finite >= 0).all(), ((finite >= 0) & (finite <= 1)).all()
        pairs = self.schema.answer == "top_k"
        found = _Answers("probabilities", values, names, infinite.copy())
        bad = found.bad
        if off.any() and positive and (finite == np.floor(finite)).all() and not (pairs or self.schema.logits):
            _logger.info(f"{self.flag}: its columns of classes are whole numbers: counts of votes, whose shares are "
                         "taken")
            bad[~infinite] = sums == 0
            found.values = values.copy()
            found.values[~bad] /= values[~bad].sum(axis=1, keepdims=True)
            found.message = f"{bad.sum()} of {len(bad)} rows have no vote"
        elif off.any() and positive and not pairs and (np.abs(sums / 100 - 1) < SUM_TOLERANCE).all():
            raise UserError(f"{self.flag}: each row sums to 100: its values are percent; expected probabilities from 0 "
                            "to 1")
        elif off.any() and (pairs or inside or 2 * off.sum() < len(off)):
            bad[~infinite] = off
            found.message = (f"{off.sum()} of {len(off)} rows are no probabilities that sum to 1, the first of them "
                             f"row {self._first(bad)} ({sums[int(off.argmax())]:.4g})")
        elif off.any():
            found.kind = "logits"
            _logger.info(f"{self.flag}: its columns of classes are logits, since their values are not probabilities")
        if infinite.any():
            found.message = (f"{infinite.sum()} row(s) with values that are not finite, the first of them row "
                             f"{self._first(infinite)}")
        return found

    def _refuse_other_things(self, values: np.ndarray) -> None:
        """Refuse what would be logits by the numbers, where some columns are of another sort than the others: those in
        whole numbers, and those beside columns that are probabilities.
        """
        whole = np.array([all(re.fullmatch("-?[0-9]+", _text(value)) for value in self.frame[column])
                          for column in self.schema.classes.values()])
        outside = ((values < 0) | (values > 1)).any(axis=0)
        sums = values[:, ~outside].sum(axis=1, dtype=np.float64)
        odd = np.zeros(len(whole), dtype=bool)
        if whole.any() and not whole.all():
            odd = whole
        elif (~outside).sum() > 1 and (np.abs(sums - 1) <= SUM_TOLERANCE).all():
            odd = outside
        if odd.any():
            names = list(self.schema.classes)
            raise UserError(f"{self.flag}: is column {names[odd.argmax()]} a class? It is unlike "
                            f"{names[odd.argmin()]}, and the values of all columns are no probabilities; say what the "
                            "classes are by --class-names, or leave it out")
