"""Tables of labels, as people and programs write them: read by pandas, and understood in one place.

A row is what one annotator says of one sample. Which column says what is decided by `infer_schema`, what class a label
means by `spelling.understand`; docs/labels.md has the rules for a person, tests/labels/test_rules.py a test for each.
Nothing in a file names code, and numbers are taken for numbers only where they are written as such.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import yaml

from ..errors import LONGEST_NAME, UserError, logger, near_path, nearest, one_line
from ..files import check_regular
from .names import check_class_names, same_word
from .spelling import UNSAID, are_computed, class_numbers, counted, respelt, understand, whole

if TYPE_CHECKING:
    from pandas import DataFrame, Series

ROLES: dict[str, list[str]] = yaml.safe_load(Path(__file__).with_name("columns.yaml").read_text())
NESTED = ("probabilities", "logits")  # what a matrix of an npz or an object of JSON lines is called
SUM_TOLERANCE = 0.02  # of the probabilities of a row: files are rounded to two digits
NO_SHARES = "its values are no probabilities that sum to 1, and no votes"
USUAL_GAP = 0.01  # of the samples or rows may be without a label before that has to be asked for


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
        more: the other files, of a crowd that has answered in several.
    """

    path: Path
    keyed_by: str
    keys: Sequence[str] | Sequence[int]
    kind: str
    answers: np.ndarray
    class_names: list[str] | None = None
    annotators: Sequence[str] | None = None
    confidence: np.ndarray | None = None
    more: Sequence[Path] = ()

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def num_classes(self) -> int:
        """The number of classes that the file knows of."""
        if self.class_names:
            return len(self.class_names)
        return self.answers.shape[1] if self.answers.ndim == 2 else int(self.answers.max()) + 1

    @property
    def names(self) -> Sequence[str]:
        """What the classes are called: by their numbers, if the file has nothing else."""
        return self.class_names or [*map(str, range(self.num_classes))]


def read_label_table(
    path: Path,
    class_names: Sequence[str] | None = None,
    flag: str = "",
    missing: str | None = "error",
    likely: Sequence[str] | None = None,
) -> LabelTable:
    """Read a file of labels.

    Args:
        path: the file, whose suffix says what it is, or ``FILE#COLUMN``, or ``FILE#ANNOTATOR,ANNOTATOR``.
        class_names: names of the classes, in the order of their numbers; None takes those of the file.
        flag: begins the messages, e.g. ``--teacher labels:FILE``.
        missing: how many rows that say nothing that can be understood are left out, see `is_too_many`. Without known
            classes labels that may be misspelt are among these; ``keep`` takes them for classes.
        likely: names of classes by which columns of labels are known where ``class_names`` are not.

    Raises:
        UserError: no such file, of another kind, or one that cannot be understood; a label that is no class.
    """
    flag = flag or str(path)
    file, column = file_of(path)
    frame = read_frame(file, flag)
    if class_names is None:
        class_names = frame.attrs.get("class_names")
    if class_names is not None:
        check_class_names(class_names, flag)
    schema = infer_schema(frame, class_names, flag, column, likely)
    frame.index = [f"row {row}" for row in range(1, len(frame) + 1)]
    if schema.people:  # a row each of what they say, known by its place in the file
        frame = frame.melt([schema.key], schema.people, "annotator", "label", ignore_index=False)
        frame.index += ", column " + frame["annotator"]
    for column in {schema.key, schema.column, schema.annotator} - {None}:
        frame[column] = _texts(frame[column])

    # rows without a label say nothing, however many there are
    if schema.column is not None:
        empty = frame[schema.column] == ""
        if empty.any():
            logger.warning(
                f"WARNING: {flag}: {empty.sum()} of {len(frame)} answers have no {schema.column} and are "
                f"left out, the first of them in {frame.index[empty][0]}"
            )
        frame = frame[~empty]

    # rows whose answer cannot be understood are left out, or an error
    readers = dict(label=_read_labels, top_k=_read_pairs, classes=_read_values)
    answers = readers[schema.answer](frame, schema, class_names, flag, missing == "keep")
    bad, values = answers.bad, answers.values
    if bad.any():
        text = f"{flag}: {frame.index[bad][0]}: {answers.fault}; answers like it: {bad.sum()} of {len(bad)}"
        remedy = "correct them, or leave them out by ?missing=skip after the name of the file"
        if answers.odd:
            near = [*(answers.class_names or ()), *schema.likely]
            hint = counted(
                answers.odd,
                lambda label: nearest(label, () if label.casefold() in UNSAID else near, 1),
            )
            text += f" ({hint})"
        if (
            answers.ask
        ):  # none of them becomes a class, nor is left out, before that was asked about
            missing = missing or "error"
        if answers.odd and class_names is None:
            remedy += ", or list all classes by --class-names"
        if bad.all() or is_too_many(int(bad.sum()), len(bad), missing):
            raise UserError(f"{text}; {remedy}")
        logger.warning(f"WARNING: {text}; left out")
        frame, values = frame[~bad], values[~bad]

    annotators = None if schema.annotator is None else frame[schema.annotator].tolist()
    longest = max(annotators or [""], key=len)
    if len(longest) > LONGEST_NAME:
        raise UserError(
            f"{flag}: its column {schema.annotator} has a name of {len(longest)} characters, "
            f"'{longest[:40]}...'; expected {LONGEST_NAME} at most"
        )
    confidence = None if schema.confidence is None else _floats(frame[schema.confidence], flag)
    if confidence is not None and not ((confidence >= 0) & (confidence <= 1)).all():
        raise UserError(f"{flag}: column {schema.confidence}: expected probabilities from 0 to 1")
    keys = _keys(frame[schema.key], schema.keyed_by, flag)
    return LabelTable(
        path,
        schema.keyed_by,
        keys,
        answers.kind,
        values,
        answers.class_names,
        annotators,
        confidence,
    )


def file_of(path: Path) -> tuple[Path, str]:
    """Return the file of ``FILE`` or ``FILE#COLUMN``, and the columns, empty where none is named."""
    file, _, column = str(path).rpartition("#")
    return (path, "") if not file or os.path.exists(path) else (Path(file), column)


def is_too_many(bad: int, count: int, missing: str | None) -> bool:
    """Say whether ``bad`` of ``count`` samples or rows are an error: any with ``error``, with ``skip`` none, and by
    default more than `USUAL_GAP`.
    """
    if missing is None:
        return bad > USUAL_GAP * count
    return missing != "skip" and bad > 0


# ---------------------------------------------------------------- files


def read_frame(path: Path, flag: str) -> "DataFrame":
    """Read a file of labels. Raises `UserError` for one that is not what its suffix says, or holds nothing."""
    from pandas import option_context

    suffix = path.suffix.lower()
    if not path.exists():
        raise UserError(f"{flag}: no such file{near_path(path)}")
    if suffix not in SUFFIXES:
        raise UserError(
            f"{flag}: of an unknown kind{nearest(suffix, SUFFIXES)}; expected "
            f"{', '.join(SUFFIXES)}; `labels export` writes a folder of stored answers as one"
        )
    try:
        check_regular(path)
        with option_context("mode.string_storage", "python"):  # names of files need not be UTF-8
            frame = SUFFIXES[suffix](path).reset_index(drop=True)
    except ImportError as error:
        raise UserError(
            f"{flag}: {suffix[1:]} needs a package: pip install {PACKAGES[suffix]}"
        ) from error
    except Exception as error:  # readers fail in many ways
        raise UserError(
            f"{flag}: cannot be read as {suffix[1:]}: {one_line(error, 120)}"
        ) from error
    if not len(frame):
        raise UserError(f"{flag}: holds no labels")
    return frame


def _read_text(path: Path) -> "DataFrame":
    from pandas import read_csv

    # as programs write texts, or as Windows does in the west; there is no zero in either
    content = path.read_bytes()
    try:
        text, encoding = content.decode("utf-8-sig"), "UTF-8"
    except UnicodeDecodeError:
        if b"\0" in content:
            raise
        text, encoding = content.decode("cp1252"), "Latin-1 (Windows-1252)"

    # what stands most often between the names of columns
    header = re.sub('"[^"]*"', "", text.lstrip("\r\n").partition("\n")[0])
    separator = max("\t" if path.suffix.lower() == ".tsv" else ",;\t", key=header.count)
    if separator != "," or encoding != "UTF-8":
        logger.info(f"{path.name}: is {encoding}, with {separator!r} between columns")

    # Every cell is a text: 01 is not 1. The header is a row like the others, so that a line with more values than it
    # has is an error.
    rows = _with_header(
        read_csv(StringIO(text), sep=separator, header=None, dtype=str, keep_default_na=False)
    )
    if separator == ";":  # where it separates columns, a comma begins the decimals
        rows = rows.replace(r"^(-?[0-9]+),([0-9]+)$", r"\1.\2", regex=True)
    return rows


def _read_excel(path: Path) -> "DataFrame":
    from pandas import read_excel

    return _with_header(
        read_excel(path, header=None, dtype=str, keep_default_na=False, engine="openpyxl")
    )


def _with_header(rows: "DataFrame") -> "DataFrame":
    """Return rows of texts (R, F), of which the first one that is not empty has the names of the columns."""
    rows = rows.fillna("")  # lines that end early
    rows = rows[(rows != "").any(axis=1)]  # spreadsheets end with lines of separators
    if rows.empty:
        return rows
    return rows[1:].set_axis(rows.iloc[0].str.strip(), axis=1)


def _read_json_lines(path: Path) -> "DataFrame":
    from pandas import json_normalize

    with path.open(encoding="utf-8-sig") as file:
        rows = [json.loads(line, object_pairs_hook=_distinct) for line in file if line.strip()]
    return json_normalize(rows, max_level=1)


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return an object of JSON, of whose keys the json module would take the last one where one stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"a row has the key '{key[:40]}' twice")
    return found


def _read_parquet(path: Path) -> "DataFrame":
    from pyarrow.parquet import read_table

    return read_table(path).to_pandas(ignore_metadata=True)


def _read_arrays(path: Path) -> "DataFrame":
    """Read an npz, whose arrays are columns, or an npy of labels; without a key they are in the order of the samples."""
    from pandas import DataFrame

    content = np.load(path, allow_pickle=False)
    arrays = {"label": content} if isinstance(content, np.ndarray) else dict(content)
    class_names = arrays.pop("class_names", None)
    for kind in NESTED:
        matrix = arrays.pop(kind, None)
        if matrix is not None:
            names = range(matrix.shape[1]) if class_names is None else class_names
            arrays |= {
                f"{kind}.{name}": column for name, column in zip(names, matrix.T, strict=True)
            }
    frame = DataFrame(arrays)
    if not {name.lower() for name in arrays} & {
        *ROLES["filename"],
        *ROLES["image_id"],
        *ROLES["id"],
    }:
        frame["id"] = range(len(frame))
    if class_names is not None:  # classes may be called 0 and 1 in any order
        frame.attrs["class_names"] = [str(name) for name in class_names]
    return frame


# what a file is called, and how it is read
SUFFIXES = {
    ".csv": _read_text,
    ".tsv": _read_text,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
    ".npz": _read_arrays,
    ".npy": _read_arrays,
    ".xlsx": _read_excel,
}
PACKAGES = {".parquet": "pyarrow", ".xlsx": "openpyxl"}  # without which it cannot be read


# ---------------------------------------------------------------- what the columns mean


@dataclass(frozen=True)
class Schema:
    """Which column of a file says what.

    Args:
        keyed_by: what names the samples, ``filename`` or ``id``.
        key: the column with that.
        answer: ``label``, ``top_k`` or ``classes``: of several answers in a row the fullest counts.
        column: that of the answer, None where each class has one.
        classes: the column of each class, by its name.
        annotator: who said it, or None.
        confidence: of the label, or None.
        kind: ``probabilities`` or ``logits`` where the file says so.
        people: the columns of annotators, where each of several has one; they become ``column`` and ``annotator``.
        likely: see `read_label_table`.
    """

    keyed_by: str
    key: str
    answer: str
    column: str | None
    classes: dict[str, str]
    annotator: str | None
    confidence: str | None
    kind: str | None
    people: Sequence[str] = ()
    likely: Sequence[str] = ()


def infer_schema(
    frame: "DataFrame",
    class_names: Sequence[str] | None,
    flag: str,
    chosen: str = "",
    likely: Sequence[str] | None = None,
) -> Schema:
    """Decide which column of a file says what: the one place that does, for all that read labels.

    Args:
        frame: the file.
        class_names: names of the classes, None where nothing but the file says them.
        flag: begins the messages.
        chosen: the column that the labels are taken from, or those of annotators with commas, or empty.
        likely: see `read_label_table`.

    Raises:
        UserError: there is no key or no answer, or more than one that could be meant.
    """
    names = list(frame.columns)
    listed = ", ".join(map(str, names[:8]))
    if not frame.columns.is_unique:
        raise UserError(f"{flag}: it has a column twice; it has {listed}")
    columns = (
        [chosen] if chosen in names else [name.strip() for name in chosen.split(",") if chosen]
    )
    unknown = next((name for name in columns if name not in names), None)
    if unknown is not None:
        raise UserError(
            f"{flag}: has no column '{unknown}'{nearest(unknown, names)}; it has {listed}"
        )

    # columns of classes, where the file or their names say so; a class may be called as another column is
    kind = next(
        (kind for kind in NESTED if any(name.startswith(f"{kind}.") for name in names)), None
    )
    classes = {name.removeprefix(f"{kind}."): name for name in names if name.startswith(f"{kind}.")}
    if kind is None:
        words = {same_word(name) for name in class_names or ()}
        classes = {
            name: name
            for name in names
            if name in (class_names or ())
            or (same_word(name) in words and plain_name(name) not in chain(*ROLES.values()))
        }
        classes = classes if len(classes) > 1 else {}
    others = [name for name in names if name not in classes.values()]
    roles = {role: _column_with(role, others, flag) for role in ROLES}
    named = roles["filename"] or roles["image_id"]
    keyed_by = "id" if named is None else "filename"
    key, label, top_k = named or roles["id"], roles["label"], roles["top_k"]
    if key is None:
        raise UserError(
            f"{flag}: no column says which sample a row is about; expected filename or id"
            f"{nearest('filename', names)}; it has {listed}"
        )

    # or those of annotators, if the classes are known, and more than half of what such a column says is a class
    rest = [name for name in others if name not in roles.values()]
    likely = class_names or likely
    if likely and not (columns or classes or top_k or label):
        words = {*map(same_word, likely)}
        for name in rest:
            said = Counter(_texts(frame[name]))
            if 2 * sum(n for label, n in said.items() if same_word(label) in words) > sum(
                n for label, n in said.items() if label.casefold() not in UNSAID
            ):
                columns.append(name)
        if columns:
            logger.info(f"{flag}: columns that are taken for labels: {', '.join(columns)}")
    chosen = columns[0] if columns else ""
    people = columns if len(columns) > 1 else []

    # or all columns that are nothing else, beside labels only where these are among their names
    if (
        not classes
        and top_k is None
        and len(rest) > 1
        and (label is None or {*_texts(frame[label])} <= {*rest})
    ):
        classes = {name: name for name in rest}

    # of several answers in a row the fullest counts: one column a class, the best classes, the label alone
    column = chosen or (None if classes else top_k or label)
    if column is None and not classes:
        raise UserError(
            f"{flag}: no labels; expected a column label, top_k, one column a class, or the columns of "
            f"labels behind its name, FILE#COLUMN,COLUMN; it has {listed}"
        )
    if column:
        classes = {}
    answer = "classes" if classes else "top_k" if column == top_k and not chosen else "label"
    confidence = roles["confidence"] if label is not None and column == label else None

    # without a class that is misspelt the shares of the others would be too large
    unread = {*names} - {
        key,
        roles["annotator"],
        roles["confidence"],
        label,
        column,
        *classes.values(),
        *people,
    }
    present = {*map(same_word, classes)}
    absent = [name for name in class_names or () if present and same_word(name) not in present]
    misspelt = next((name for name in sorted(unread & {*rest}) if nearest(name, absent)), None)
    if misspelt is not None:
        raise UserError(
            f"{flag}: its column '{misspelt[:40]}' is no class{nearest(misspelt, absent)}; rename it, or "
            "leave it out"
        )
    unread.discard("audit")  # the column of an audit's own sheets says of which draw an answer is
    if unread:
        logger.info(f"{flag}: columns that are not read: {', '.join(sorted(unread)[:8])}")
    annotator = roles["annotator"]
    if people:
        column, annotator, confidence = "label", "annotator", None
    return Schema(
        keyed_by, key, answer, column, classes, annotator, confidence, kind, people, likely or ()
    )


def _column_with(role: str, names: Sequence[str], flag: str) -> str | None:
    """Return the column with a role: that of the plain name, else of one of the others. Raises `UserError` for two."""
    found = [name for name in names if plain_name(name) in ROLES[role]]
    found = [name for name in found if plain_name(name) == role] or found
    if len(found) > 1:
        raise UserError(
            f"{flag}: which column is the {role}, {' or '.join(found)}? Leave out or rename all but one"
        )
    return found[0] if found else None


def plain_name(column: str) -> str:
    """Return the name of a column as `ROLES` have it."""
    return re.sub("[ -]", "_", column.lower())


# ---------------------------------------------------------------- what the rows say


class _Answers(NamedTuple):
    """What rows say.

    Args:
        kind: see `LabelTable`.
        values: (R,) or (R, C).
        class_names: see `LabelTable`.
        bad: (R,) which rows say nothing that can be understood.
        fault: what is wrong with the first of these.
        odd: how often each label is said that is no class.
        ask: whether ``bad`` rows are to be asked about, however few they are.
    """

    kind: str
    values: np.ndarray
    class_names: list[str] | None
    bad: np.ndarray
    fault: str
    odd: Mapping[str, int] = {}
    ask: bool = False


def _read_labels(
    frame: "DataFrame", schema: Schema, class_names: Sequence[str] | None, flag: str, keep: bool
) -> _Answers:
    """Read a column of labels: the answer is the number of a class. Those that may be misspelt are classes if to
    ``keep``, or if a program has written them.
    """
    from pandas import to_numeric

    texts = frame[schema.column]
    counts = Counter(texts)
    if not counts:
        raise UserError(f"{flag}: its column {schema.column} is empty")
    if schema.confidence is not None:
        shares = to_numeric(frame[schema.confidence], errors="coerce").to_numpy(float)
        keep = keep or are_computed(shares)
    classes = understand(counts, class_names, schema.likely, flag, keep)
    found = texts.map(classes.numbers).to_numpy(np.int64)

    # the first of those that are none
    bad = found < 0
    fault = classes.fault(texts.iloc[int(bad.argmax())])
    return _Answers("hard", found, classes.names, bad, fault, classes.odd, classes.ask)


def _read_values(
    frame: "DataFrame", schema: Schema, class_names: Sequence[str] | None, flag: str, keep: bool
) -> _Answers:
    """Read values of classes, one column a class. Numbers of which nothing says whether they are votes are such if to
    ``keep``.
    """
    columns = frame[[*schema.classes.values()]].set_axis([*schema.classes], axis=1)
    meant = respelt(Counter(dict.fromkeys(columns, len(frame))), class_names or (), flag)
    numbers, names = class_numbers([meant.get(name, name) for name in columns], class_names, flag)
    size = len(names) if names else max(numbers.values()) + 1
    people = f"if columns are annotators, name them behind the file, FILE#{','.join(schema.classes.values())[:80]}"
    odd = next((name for name, number in numbers.items() if number < 0), None)
    if odd is not None:
        raise UserError(
            f"{flag}: its class '{odd[:40]}' is none of the {size} classes of the data"
            f"{nearest(odd, names or ())}; {people}"
        )
    places = list(numbers.values())
    if len({*places}) < len(columns.columns):
        raise UserError(
            f"{flag}: it has a class twice, by two names; it has {', '.join(columns)[:80]}"
        )
    values = np.zeros((len(frame), size), dtype=np.float32)
    for name, place in zip(columns, places, strict=True):
        values[:, place] = _floats(columns[name], flag, people)

    # numbers of other things than classes are no probabilities either
    found, values, bad = _classify(values, schema.kind)
    if found != (schema.kind or "probabilities"):
        if class_names is None and found != "votes" and not keep:
            raise UserError(
                f"{flag}: are its columns {', '.join(list(numbers)[:8])} classes? They hold no "
                f"probabilities, but {found}; list the classes by --class-names, leave out other columns "
                f"or, {people}"
            )
        logger.info(f"{flag}: its columns of classes are taken for {found}; {people}")

    # those that the file has no column of are as good as impossible
    kind, fault = "probabilities", NO_SHARES
    if found == "logits":
        kind, fault = found, "its values are not finite"
        values[:, np.setdiff1d(np.arange(size), places)] = values[:, places].min() - 20
    return _Answers(kind, values, names, bad, fault)


def _read_pairs(
    frame: "DataFrame", schema: Schema, class_names: Sequence[str] | None, flag: str, keep: bool
) -> _Answers:
    """Read a column of the best classes with their probabilities; the others share what is left evenly. Those that may
    be misspelt are classes if to ``keep``, or if a program has written them.
    """
    pairs = [_pairs(text, f"{flag}: {row}") for row, text in frame[schema.column].items()]
    counts = Counter(name for row in pairs for name in row)
    if not counts:
        raise UserError(f"{flag}: its column {schema.column} is empty")
    shares = np.array([share for row in pairs for share in row.values()])
    classes = understand(counts, class_names, schema.likely, flag, keep or are_computed(shares))
    names, numbers = classes.names, classes.numbers
    size = len(names) if names else max(numbers.values()) + 1

    # two names of a row may be one class
    values = np.full((len(frame), size), np.nan, np.float32)
    odd = [next((name for name in row if numbers[name] < 0), None) for row in pairs]
    for i, row in enumerate(pairs):
        places = [numbers[name] for name in row]
        if odd[i] is None:
            if len({*places}) < len(places):
                raise UserError(f"{flag}: {frame.index[i]}: {schema.column} has a class twice")
            values[i, places] = [*row.values()]

    # what is left is shared
    others = np.isnan(values)
    left = np.maximum(1 - np.nansum(values, axis=1), 0) / np.maximum(others.sum(axis=1), 1)
    values = np.where(others, left.astype(np.float32)[:, None], values)
    _, values, bad = _classify(values, "probabilities")
    bad |= np.array([name is not None for name in odd])
    first = odd[int(bad.argmax())]
    fault = NO_SHARES if first is None else classes.fault(first)
    return _Answers(
        "probabilities", values, names, bad, fault, classes.odd, classes.ask and any(odd)
    )


def _pairs(text: str, row: str) -> dict[str, float]:
    """Return the pairs of a cell, ``cat:0.9;dog:0.05``."""
    parts = [part.rpartition(":") for part in text.split(";") if part.strip()]
    try:
        pairs = {name.strip(): float(share) for name, _, share in parts}
    except ValueError as error:
        raise UserError(
            f"{row}: top_k is '{text[:40]}'; expected pairs such as cat:0.9;dog:0.05"
        ) from error
    if len(pairs) < len(parts):
        raise UserError(f"{row}: top_k has a class twice")
    return pairs


def _classify(values: np.ndarray, kind: str | None) -> tuple[str, np.ndarray, np.ndarray]:
    """Say what values of classes (R, C) are, ``probabilities``, ``logits`` or ``votes``, or else whole numbers that may
    be votes; return them, votes as their shares, and which rows (R,) are none of these.

    Args:
        values: of classes.
        kind: what the file says that they are, None where it does not.
    """
    finite = np.isfinite(values).all(axis=1)
    values = np.where(finite[:, None], values, np.float32(0))
    sums = values.sum(axis=1, dtype=np.float64)
    positive = (values >= 0).all(axis=1)
    shares = positive & (np.abs(sums - 1) <= SUM_TOLERANCE)

    # whole numbers are counts; where some are negative, and most rows no probabilities, they are logits
    if kind is None and not shares[finite].all():
        if positive.all() and not (values % 1).any():
            # each sample has as many votes if all people have seen it; numbers of classes have no such sum
            kind = "votes" if len(sums) > 1 == len({*sums}) else "votes, or numbers of classes"
            shares = sums > 0
            values = (values / np.maximum(sums, 1)[:, None]).astype(np.float32)
        elif not positive.all() and 2 * shares.sum() <= finite.sum():
            kind = "logits"
    return kind or "probabilities", values, ~(finite if kind == "logits" else shares)


# ---------------------------------------------------------------- cells


def _texts(column: "Series") -> "Series":
    """Return the cells of a column as texts, of empty ones empty texts."""
    from pandas import Series

    texts = [
        "" if empty else str(value).strip() for empty, value in zip(column.isna(), column.tolist())
    ]
    return Series(texts, column.index, dtype=object)


def _floats(column: "Series", flag: str, otherwise: str = "expected numbers") -> np.ndarray:
    """Return a column as numbers. Raises `UserError` if it is none, which ends with what it is ``otherwise``."""
    try:
        return column.to_numpy(dtype=np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f"{flag}: column {column.name} is not all numbers ({one_line(error, 80)}); {otherwise}"
        ) from error


def _keys(texts: "Series", keyed_by: str, flag: str) -> Sequence[str] | Sequence[int]:
    if keyed_by == "filename":
        keys = [text.removeprefix("./") or None for text in texts]
    else:
        keys = [whole(text) for text in texts]
    if None in keys:
        row = keys.index(None)
        raise UserError(
            f"{flag}: {texts.index[row]}: '{texts.iloc[row][:40]}' names no sample; expected paths "
            "in a column filename, whole numbers in a column id"
        )
    return keys
