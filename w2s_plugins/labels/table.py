"""Tables of labels, as people and programs write them: read by pandas, and understood in one place.

A row is what one annotator says of one sample. Which column says what is decided by `TableFile.schema`, what class a
label means by `spelling.understand`; docs/labels.md has the rules for a person, tests/labels/test_rules.py a test for
each. Nothing in a file names code, and numbers are taken for numbers only where they are written as such.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import yaml

from ..errors import LONGEST_NAME, UserError, logger, near_path, nearest, one_line
from ..files import check_regular
from ..no_label import NO_LABEL
from .exports import distinct, read_json, read_xml
from .names import check_class_names, same_word, visible
from .several import (
    AS_WRITTEN,
    ListForm,
    are_several,
    list_values,
    natural_order,
    read_flags,
    split_cells,
)
from .spelling import (
    UNSAID,
    are_computed,
    class_numbers,
    counted,
    respelt,
    understand,
    warn_of_lists,
    whole,
)

if TYPE_CHECKING:
    from pandas import DataFrame, Series

    from ..target_kind import TargetKind
    from .ahead import Task

ROLES: dict[str, list[str]] = yaml.safe_load(Path(__file__).with_name("columns.yaml").read_text())
LISTS = ROLES.pop("labels")  # a role where an image may have several classes
WITH_ROLE = {*LISTS, *chain(*ROLES.values())}
Names: TypeAlias = Sequence[str] | None  # of classes, None where nothing says them
# what a matrix of an npz or an object of JSON lines is called, and what stands before the names of columns of classes
NESTED = ("probabilities", "logits", "votes")
SUM_TOLERANCE = 0.02  # of the probabilities of a row: files are rounded to two digits
NO_SHARES = "its values are no probabilities that sum to 1, and no votes"
NO_VOTES = "its values are no votes, which are whole numbers, one of them at least 1"
NO_ANSWERS = "its values are not from 0 to 1; expected 0, 1 or empty, probabilities, or logits in columns called logits.CLASS"
IF_SEVERAL = "take --task multilabel if an image has several"
_NAMELESS = re.compile(r"(Unnamed: [0-9]+)?")  # the numbers of the rows, as pandas writes them
USUAL_GAP = 0.01  # of the samples or rows may be without a label before that has to be asked for


class NoLabels(UserError):
    """No column is known to have labels, if nothing says which classes there are."""


@dataclass(frozen=True)
class LabelRows:
    """What a file says, row by row.

    Args:
        path: the file.
        keyed_by: ``filename`` or ``id``.
        keys: (R,) the sample of each row.
        kind: ``hard``, ``probabilities`` or ``logits``.
        answers: (R,) class numbers, or (R, C) values in float32. Of several classes an image they are (R, C)
            ``probabilities`` or ``logits``, NaN where a row says nothing of a class.
        class_names: names of the classes, in the order of their numbers; None where the file has numbers only.
        annotators: (R,) who said it, or None.
        confidence: (R,) probability of the label, or None.
        draws: of the audits that the file says it belongs to, whether their rows have a label or not.
        more: the other files, of a crowd that has answered in several.
        is_part: (R,) which rows name one class of several, so that other rows of the same annotator go on; None where
            an image has one class.
        doubtful: names of classes that may be several, see `warn_of_lists`. Who reads a table once more in terms of
            its own classes hears of them here.
    """

    path: Path
    keyed_by: str
    keys: Sequence[str | int]
    kind: str
    answers: np.ndarray
    class_names: list[str] | None = None
    annotators: Sequence[str] | None = None
    confidence: np.ndarray | None = None
    draws: Set[str] = frozenset()
    more: Sequence[Path] = ()
    is_part: np.ndarray | None = None
    doubtful: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: Sequence[int]) -> "LabelRows":
        """Return some of the rows."""
        return replace(
            self,
            keys=[self.keys[row] for row in rows],
            answers=self.answers[rows],
            annotators=None if self.annotators is None else [self.annotators[row] for row in rows],
            confidence=None if self.confidence is None else self.confidence[rows],
            is_part=None if self.is_part is None else self.is_part[rows],
        )

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


@dataclass(frozen=True)
class TableFile:
    """A file of labels that has been read. What it means depends on the classes of whoever asks, see `labels`.

    Args:
        path: the file, or ``FILE#COLUMN``, or ``FILE#ANNOTATOR,ANNOTATOR``.
        frame: its content.
        flag: begins the messages, e.g. ``--teacher labels:FILE``.
        may_skip: whether ``?missing=skip`` can be given for it, which messages then advise.
        may_name: whether ``--class-names`` can list more classes than those that are known.
    """

    path: Path
    frame: "DataFrame"
    flag: str
    may_skip: bool = True
    may_name: bool = False

    def labels(
        self,
        class_names: Names = None,
        missing: str | None = "error",
        likely: Names = None,
        target_kind: "TargetKind | Task | None" = None,
        lists: ListForm = AS_WRITTEN,
    ) -> LabelRows:
        """Return what the file says.

        Args:
            class_names: names of the classes, in the order of their numbers; None takes those of the file.
            missing: how many rows that say nothing that can be understood are left out, see `is_too_many`. Without
                known classes labels that may be misspelt are among these; ``keep`` takes them for classes.
            likely: names of classes by which columns of labels are known where ``class_names`` are not.
            target_kind: what a label is; None is one class an image.
            lists: how several labels of an image are written.

        Raises:
            UserError: it cannot be understood; a label is no class.
        """
        several = are_several(target_kind)
        if not several and lists != AS_WRITTEN:
            setting = "?unlisted=" if lists.unlisted else "?delimiter="
            raise UserError(
                f"{self.flag}: {setting} is about several labels an image; leave it out, or take --task multilabel"
            )
        if self.frame.attrs.get("apart"):
            lists = replace(lists, delimiter="none")
        # an npz may name its classes itself; who asks for others knows better
        flag = self.flag
        if class_names is None:
            class_names = self.frame.attrs.get("class_names")
        if class_names is not None:
            check_class_names(class_names, flag)
        schema = self.schema(class_names, likely, several)
        rows = self._labelled_rows(schema, several)

        # rows whose answer cannot be understood are left out, or an error
        readers = dict(label=_read_labels, top_k=_read_pairs, classes=_read_values)
        keep = missing == "keep"
        if not several:
            answers = readers[schema.answer](rows, schema, class_names, flag, keep)
        elif schema.answer == "classes":
            answers = _read_flags(rows, schema, class_names, flag)
        else:
            answers = _read_lists(rows, schema, class_names, flag, keep, lists)
        values = answers.values
        warn_of_lists(answers.doubtful, flag)
        if answers.bad.any():
            self._leave_out(rows, answers, class_names, schema.likely, missing)
            rows, values = rows.loc[~answers.bad], values[~answers.bad]
        is_part = None if answers.is_part is None else answers.is_part[~answers.bad]
        if several:
            rows, values, is_part = self._without_silent(rows, values, is_part)

        # what else the columns say of the rows that are left
        annotators = None
        if schema.annotator is not None:
            annotators = rows[schema.annotator].tolist()
            longest = max(annotators, key=len)
            if len(longest) > LONGEST_NAME:
                raise UserError(
                    f"{flag}: its column {schema.annotator} has a name of {len(longest)} characters, "
                    f"'{longest[:40]}...'; expected {LONGEST_NAME} at most"
                )
        confidence = None
        if schema.confidence is not None:
            confidence = _floats(rows, schema.confidence, flag)
            if not ((confidence >= 0) & (confidence <= 1)).all():
                raise UserError(
                    f"{flag}: column {schema.confidence}: expected probabilities from 0 to 1"
                )
        draws = set() if schema.audit is None else {*_texts(self.frame, schema.audit)}
        table = LabelRows(
            self.path,
            schema.keyed_by,
            _keys(rows, schema, flag),
            answers.kind,
            values,
            answers.class_names,
            annotators,
            confidence,
            draws,
            doubtful=answers.doubtful,
        )
        if not several:
            return table

        # who lists classes is as sure of each
        if confidence is not None:
            values = np.where(values == 1, confidence[:, None], values)
        if class_names is None and answers.class_names:
            order = natural_order(answers.class_names)
            names = [answers.class_names[place] for place in order]
            table, values = replace(table, class_names=names), values[:, order]
        return replace(table, answers=values, confidence=None, is_part=is_part)

    def schema(
        self, class_names: Names = None, likely: Names = None, several: bool = False
    ) -> "Schema":
        """Decide which column says what: the one place that does, for all that read labels; arguments as of `labels`.

        Raises:
            UserError: there is no key or no answer, or more than one that could be meant.
        """
        frame, flag = self.frame, self.flag
        _, chosen = file_of(self.path)
        names: list[str] = list(frame.columns)
        listed = ", ".join(map(str, names[:8]))
        if not frame.columns.is_unique:
            raise UserError(f"{flag}: it has a column twice; it has {listed}")

        # those that the user names, of which one may have a comma in its name
        columns = [visible(name) for name in chosen.split(",") if chosen]
        if chosen and chosen in names:
            columns = [chosen]
        unknown = next((name for name in columns if name not in names), None)
        if unknown is not None:
            raise UserError(
                f"{flag}: has no column '{unknown}'{nearest(unknown, names)}; it has {listed}"
            )

        # columns of classes come before those with a role: a class may be called as another column is
        kind, classes = _named_classes(names, class_names or ())
        others = [name for name in names if name not in classes.values()]
        roles = {role: _column_with(role, words, others, flag) for role, words in ROLES.items()}
        if several:
            listed_in = _column_with("labels", LISTS, others, flag)
            roles["label"] = listed_in or roles["label"]
        named = roles["filename"] or roles["image_id"]
        key, label, top_k = named or roles["id"], roles["label"], roles["top_k"]
        if key is None:
            raise UserError(
                f"{flag}: no column says which sample a row is about; expected filename or id"
                f"{nearest('filename', names)}; it has {listed}"
            )

        # or those of annotators, if the classes are known
        taken = {*roles.values()}
        rest = [name for name in others if name not in taken and not _NAMELESS.fullmatch(name)]
        likely = class_names or likely or ()
        if likely and not (columns or classes or top_k or label):
            columns = [name for name in rest if _says_classes(frame, name, likely)]
            if columns:
                logger.info(f"{flag}: columns that are taken for labels: {', '.join(columns)}")

        # or all columns that are nothing else, beside labels only where these are among their names
        # where an image may have several, one column may be a question of its own
        enough = len(rest) > 1 or (several and label is None and bool(rest))
        unsaid = not classes and top_k is None and not columns and enough
        if unsaid and (label is None or _labels_in(frame, label, rest, several) <= {*rest}):
            classes = {name: name for name in rest}

        # of several answers in a row the fullest counts: one column a class, the best classes, the label alone
        annotator, confidence = roles["annotator"], None
        people = columns if len(columns) > 1 else []
        column, answer = None, "classes"
        if columns:
            column, answer = columns[0], "label"
        elif not classes and top_k is not None:
            column, answer = top_k, "top_k"
        elif not classes:
            column, answer = label, "label"
        if column is None and not classes:
            lists = next((name for name in names if plain_name(name) in LISTS), None)
            if lists:
                raise NoLabels(
                    f"{flag}: column {lists} may have several labels of an image; add --task multilabel or, if it has "
                    f"one, name it: FILE#{lists}"
                )
            raise NoLabels(
                f"{flag}: no labels; expected a column label, top_k, one column a class, or the columns of "
                f"labels behind its name, FILE#COLUMN,COLUMN; it has {listed}"
            )
        if column is not None:
            classes = {}
            confidence = roles["confidence"] if column == label else None

        # what is not read may be a mistake
        read = {key, column, label, *classes.values(), *people}
        read |= {roles[role] for role in ("annotator", "confidence", "audit")}
        unread = [name for name in names if name not in read]
        _refuse_misspelt(sorted({*unread} & {*rest}), classes, class_names or (), flag)
        if unread:
            texts = [name or "one without a name" for name in sorted(unread)[:8]]
            logger.info(f"{flag}: columns that are not read: {', '.join(texts)}")
        if people:
            column, annotator, confidence = "label", "annotator", None
        return Schema(
            "id" if named is None else "filename",
            key,
            answer,
            column,
            classes,
            annotator,
            confidence,
            roles["audit"],
            kind,
            people,
            likely,
        )

    def _labelled_rows(self, schema: "Schema", several: bool) -> "DataFrame":
        """Return the rows of a file that say something, a row for each annotator, known by their places in the file."""
        # a frame of its own: the file may be asked once more, in terms of other classes
        names = [f"row {row}" for row in range(1, len(self.frame) + 1)]
        rows = self.frame.set_axis(names, axis=0)
        if schema.people:
            rows = rows.melt([schema.key], schema.people, "annotator", "label", ignore_index=False)
            rows.index += ", column " + rows["annotator"]
        for name in filter(None, (schema.key, schema.column, schema.annotator)):
            rows[name] = _texts(rows, name, several and name == schema.column)
        if self.frame.attrs.get("decimal") == ",":
            _replace_decimal_commas(rows, schema, several)
        if schema.column is None:
            return rows

        # rows without a label say nothing, however many there are
        empty = np.array([text == "" for text in rows[schema.column]])
        if empty.any():
            logger.warning(
                f"WARNING: {self.flag}: {empty.sum()} of {len(rows)} answers have no {schema.column} and are "
                f"left out, the first of them in {rows.index[int(empty.argmax())]}"
                f"{'; if such an image has none of the classes, write []' if several else ''}"
            )
        return rows.loc[~empty]

    def _without_silent(
        self, rows: "DataFrame", values: np.ndarray, is_part: np.ndarray | None
    ) -> "tuple[DataFrame, np.ndarray, np.ndarray]":
        """Return rows, what they say of several classes (R, C), and which of them name one of these, without those that
        say nothing of any class, however many there are.
        """
        # a person who could not tell leaves all cells empty
        silent = np.isnan(values).all(axis=1)
        if silent.all():
            raise UserError(f"{self.flag}: says nothing of any class")
        if silent.any():
            logger.warning(
                f"WARNING: {self.flag}: {silent.sum()} of {len(rows)} answers say nothing of any class and are left "
                f"out, the first of them in {rows.index[int(silent.argmax())]}"
            )
        if is_part is None:
            is_part = np.zeros(len(rows), bool)
        return rows.loc[~silent], values[~silent], is_part[~silent]

    def _leave_out(
        self,
        rows: "DataFrame",
        answers: "_Answers",
        class_names: Names,
        likely: Sequence[str],
        missing: str | None,
    ) -> None:
        """Warn of rows whose answer cannot be understood. Raises `UserError` where these are too many."""
        count, bad = len(answers.bad), int(answers.bad.sum())
        first = rows.index[int(answers.bad.argmax())]
        text = f"{self.flag}: {first}: {answers.fault}; answers like it: {bad} of {count}"
        if answers.odd:
            # what says that nobody knew is no slip
            near = [*(answers.class_names or ()), *likely]
            hint = counted(
                answers.odd,
                lambda label: nearest(label, () if label.casefold() in UNSAID else near, 1),
            )
            # an answer may hold several labels
            labels = sum(answers.odd.values())
            text += f" ({f'{labels} labels in them: ' if labels > bad else ''}{hint})"

        # none of them becomes a class, nor is left out, before that was asked about
        if answers.ask:
            missing = missing or "error"
        if bad == count or is_too_many(bad, count, missing):
            remedies = ["correct them"]
            if self.may_skip:
                remedies.append("leave them out by ?missing=skip after the name of the file")
            if answers.odd and class_names is None:
                remedies.append("list all classes by --class-names")
            elif answers.odd and self.may_name:
                remedies.append("if these are further classes, list all by --class-names")
            raise UserError(f"{text}; {', or '.join(remedies)}")
        logger.warning(f"WARNING: {text}; left out")


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


def open_table(
    path: Path, flag: str = "", may_skip: bool = True, may_name: bool = False
) -> TableFile:
    """Read a file of labels; arguments as of `TableFile`.

    Raises:
        UserError: there is none, it is not what its suffix says, or it holds nothing.
    """
    from pandas import option_context

    # what can be wrong with a name, before any reader says it in its own words
    flag = flag or str(path)
    file, _ = file_of(path)
    suffix = file.suffix.lower()
    if not file.exists():
        raise UserError(f"{flag}: no such file{near_path(file)}")
    if suffix not in SUFFIXES:
        raise UserError(
            f"{flag}: of an unknown kind{nearest(suffix, SUFFIXES)}; expected "
            f"{', '.join(SUFFIXES)}; `labels export` writes a folder of stored answers as one"
        )
    try:
        check_regular(file)
        with option_context("mode.string_storage", "python"):  # names of files need not be UTF-8
            frame = SUFFIXES[suffix](file).reset_index(drop=True)
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
    frame.columns = [visible(str(name)) for name in frame.columns]
    return TableFile(path, frame, flag, may_skip, may_name)


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
    # where a semicolon separates columns, a comma begins the decimals
    rows.attrs["decimal"] = "," if separator == ";" else "."
    return rows


def _read_excel(path: Path) -> "DataFrame":
    from pandas import read_excel

    return _with_header(
        read_excel(path, header=None, dtype=str, keep_default_na=False, engine="openpyxl")
    )


def _with_header(rows: "DataFrame") -> "DataFrame":
    """Return rows of texts (R, F), of which the first one that is not empty has the names of the columns."""
    # lines may end early, and spreadsheets end with lines of separators
    rows = rows.fillna("")
    rows = rows.loc[(rows != "").any(axis=1)]
    if rows.empty:
        return rows
    named = rows.iloc[1:].set_axis(rows.iloc[0], axis=1)
    # spreadsheets end lines with separators as well
    in_use = (rows != "").any(axis=0)
    return named.loc[:, in_use.to_numpy()]


def _read_json_lines(path: Path) -> "DataFrame":
    from pandas import json_normalize

    # objects of a row become columns with a point, probabilities.cat
    with path.open(encoding="utf-8-sig") as file:
        rows = [json.loads(line, object_pairs_hook=distinct) for line in file if line.strip()]
    return json_normalize(rows, max_level=1)


def _read_parquet(path: Path) -> "DataFrame":
    from pyarrow.parquet import read_table

    return read_table(path).to_pandas(ignore_metadata=True)


def _read_arrays(path: Path) -> "DataFrame":
    """Read an npz, whose arrays are columns, or an npy of labels; without a key they are in the order of the samples."""
    from pandas import DataFrame

    # a matrix has a column for each class
    content = np.load(path, allow_pickle=False)
    arrays = {"label": content} if isinstance(content, np.ndarray) else dict(content)
    class_names = arrays.pop("class_names", None)
    for kind in NESTED:
        matrix = arrays.get(kind)
        if matrix is not None and (kind != "votes" or matrix.ndim == 2):
            del arrays[kind]
            names = range(matrix.shape[1]) if class_names is None else class_names
            columns = zip(names, matrix.T, strict=True)
            arrays |= {f"{kind}.{name}": column for name, column in columns}
    frame = DataFrame(arrays)

    # the names of the classes go beside the columns, where they may be called 0 and 1 in any order
    keys = {*ROLES["filename"], *ROLES["image_id"], *ROLES["id"]}
    if not keys & {name.lower() for name in arrays}:
        frame["id"] = range(len(frame))
    if class_names is not None:
        frame.attrs["class_names"] = [str(name) for name in class_names]
    return frame


# what a file is called, and how it is read
SUFFIXES = {
    ".csv": _read_text,
    ".tsv": _read_text,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": read_json,
    ".xml": read_xml,
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
        audit: of which draw of an audit the answer is, or None.
        kind: ``probabilities`` or ``logits`` where the file says so.
        people: the columns of annotators, where each of several has one; they become ``column`` and ``annotator``.
        likely: see `TableFile.labels`.
    """

    keyed_by: str
    key: str
    answer: str
    column: str | None
    classes: dict[str, str]
    annotator: str | None
    confidence: str | None
    audit: str | None
    kind: str | None
    people: Sequence[str]
    likely: Sequence[str]


def _named_classes(
    names: Sequence[str], class_names: Sequence[str]
) -> tuple[str | None, dict[str, str]]:
    """Return what the values of classes are and the column of each class, where the file or the names of the columns
    say so.
    """
    labels = {*ROLES["label"], *ROLES["top_k"]}
    for kind in NESTED:
        # beside a label they may be votes for anything
        if kind == "votes" and any(plain_name(name) in labels for name in names):
            continue
        prefix = f"{kind}."
        classes = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
        if classes:
            return kind, classes

    # one column alone may be called as a class by chance, and those of which each has a role are these
    words = {same_word(name) for name in class_names}
    without_role = {name for name in names if plain_name(name) not in WITH_ROLE}
    classes = {
        name: name
        for name in names
        if name in class_names or (same_word(name) in words and name in without_role)
    }
    return None, classes if len(classes) > 1 and without_role & {*classes} else {}


def _says_classes(frame: "DataFrame", name: str, likely: Sequence[str]) -> bool:
    """Say whether more than half of what a column says, where it says something, is one of the ``likely`` classes."""
    # each text once: a column of a million rows has few
    words = {*map(same_word, likely)}
    counts = Counter(_texts(frame, name))
    known = sum(count for text, count in counts.items() if same_word(text) in words)
    # cells of who did not know say nothing about what the column is
    answered = sum(count for text, count in counts.items() if text.casefold() not in UNSAID)
    return 2 * known > answered


def _refuse_misspelt(
    columns: Sequence[str], classes: Mapping[str, str], class_names: Sequence[str], flag: str
) -> None:
    """Raise a `UserError` for one of some unread ``columns`` that is nearly called as a class without a column: without
    it the shares of the others would be too large.
    """
    present = {*map(same_word, classes)}
    absent = [name for name in class_names if present and same_word(name) not in present]
    for name in columns:
        hint = nearest(name, absent)
        if hint:
            raise UserError(
                f"{flag}: its column '{name[:40]}' is no class{hint}; rename it, or leave it out"
            )


def _column_with(role: str, words: Sequence[str], names: Sequence[str], flag: str) -> str | None:
    """Return the column with a role: that of the plain name, else of one of the other ``words``. Raises `UserError` for
    two.
    """
    # a column label beside one called class is the label
    columns = [name for name in names if plain_name(name) in words]
    columns = [name for name in columns if plain_name(name) == role] or columns
    if len(columns) > 1:
        raise UserError(
            f"{flag}: which column is the {role}, {' or '.join(columns)}? Leave out or rename all but one"
        )
    return columns[0] if columns else None


def plain_name(column: str) -> str:
    """Return the name of a column as `ROLES` have it."""
    return re.sub("[ -]", "_", column.lower())


# ---------------------------------------------------------------- what the rows say


class _Answers(NamedTuple):
    """What rows say.

    Args:
        kind: see `LabelRows`.
        values: (R,) or (R, C).
        class_names: see `LabelRows`.
        bad: (R,) which rows say nothing that can be understood.
        fault: what is wrong with the first of these.
        odd: how often each label is said that is no class.
        ask: whether ``bad`` rows are to be asked about, however few they are.
        is_part: see `LabelRows`.
        doubtful: see `LabelRows`.
    """

    kind: str
    values: np.ndarray
    class_names: list[str] | None
    bad: np.ndarray
    fault: str
    odd: Mapping[str, int] = {}
    ask: bool = False
    is_part: np.ndarray | None = None
    doubtful: Sequence[str] = ()


def _read_labels(
    rows: "DataFrame", schema: Schema, class_names: Names, flag: str, keep: bool
) -> _Answers:
    """Read a column of labels: the answer is the number of a class. Those that may be misspelt are classes if to
    ``keep``, and those that may be lists as well if a program has written them.
    """
    from pandas import to_numeric

    texts = [] if schema.column is None else rows[schema.column].tolist()
    counts = Counter(texts)
    if not counts:
        raise UserError(f"{flag}: its column {schema.column} is empty")
    # who is sure in many digits is a program, which does not misspell
    trusted = False
    if schema.confidence is not None:
        shares = to_numeric(rows.loc[:, schema.confidence], errors="coerce")
        trusted = are_computed(np.asarray(shares, dtype=float))
    classes = understand(counts, class_names, schema.likely, flag, trusted, keep)
    numbers = np.array([classes.numbers[text] for text in texts], dtype=np.int64)

    # the first of those that are none
    bad = numbers == NO_LABEL
    fault = classes.fault(texts[int(bad.argmax())])
    return _Answers(
        "hard",
        numbers,
        classes.names,
        bad,
        fault,
        classes.odd,
        classes.ask,
        doubtful=classes.doubtful,
    )


def _read_values(
    rows: "DataFrame", schema: Schema, class_names: Names, flag: str, keep: bool
) -> _Answers:
    """Read values of classes, one column a class. Numbers of which nothing says whether they are votes are such if to
    ``keep``.
    """
    columns = rows.loc[:, [*schema.classes.values()]].set_axis([*schema.classes], axis=1)
    present, names = _class_columns(rows, schema, class_names, flag)
    size = len(names) if names else max(present) + 1
    people = _if_people(schema)
    values = np.zeros((len(rows), size), dtype=np.float32)
    for number, name in zip(present, schema.classes, strict=True):
        try:
            values[:, number] = _floats(columns, name, flag, people)
        except UserError:
            if not _are_flags(columns):
                raise
            raise UserError(
                f"{flag}: its columns {', '.join([*schema.classes][:8])} have cells that are empty, or yes and no; "
                f"{IF_SEVERAL} or, {people}"
            ) from None

    # numbers of other things than classes are no probabilities either, but those of several classes need not sum to 1
    may_be_several = not ((values < 0) | (values > 1)).any()
    yes_or_no = may_be_several and _say_yes_or_no(values, schema, class_names, flag)
    kind, values, bad = _classify(values, schema.kind)
    if kind != (schema.kind or "probabilities"):
        if may_be_several:
            people = f"{IF_SEVERAL} or, {people}"
        if class_names is None and kind != "votes" and not keep:
            raise UserError(
                f"{flag}: are its columns {', '.join([*schema.classes][:8])} classes? They hold no "
                f"probabilities, but {kind}; list the classes by --class-names, leave out other columns"
                f"{', ' if may_be_several else ' or, '}{people}"
            )
        logger.info(f"{flag}: its columns of classes are taken for {kind}; {people}")
    if kind != "logits":
        fault = NO_VOTES if schema.kind == "votes" else NO_SHARES
        if may_be_several and schema.kind != "votes":
            fault = f"{NO_SHARES} ({IF_SEVERAL})"
        return _Answers("probabilities", values, names, bad, fault, ask=yes_or_no)

    # logits of classes that the file has no column of are such that these are as good as impossible
    values[:, np.setdiff1d(np.arange(size), present)] = values[:, present].min() - 20
    return _Answers(kind, values, names, bad, "its values are not finite")


def _say_yes_or_no(values: np.ndarray, schema: Schema, class_names: Names, flag: str) -> bool:
    """Say whether values of classes (R, C) are 0 and 1 alone, and so may be of several classes an image, where nothing
    says what they are: then a row without a 1 may be an image without any of them.

    Raises:
        UserError: a row has several 1s, so that these are votes for one class, or classes of an image.
    """
    if schema.kind is not None:
        return False
    finite = values[np.isfinite(values).all(axis=1)]
    if ((finite != 0) & (finite != 1)).any():
        return False
    # one 1 in each row is the same class, whichever they are
    several = finite.sum(axis=1) > 1
    if several.any():
        first = next(iter(schema.classes))
        people = f" or, {_if_people(schema)}" if class_names is None else ""
        raise UserError(
            f"{flag}: are its columns {', '.join([*schema.classes][:8])} classes of an image, or votes for one"
            f"{', or numbers of classes' if people else ''}? They hold 0 and 1, and {several.sum()} of {len(values)} rows "
            f"more than one 1; {IF_SEVERAL} or, if they are votes, call them votes.{first[:40]} and so on{people}"
        )
    return True


def _if_people(schema: Schema) -> str:
    """Return what to do where columns of classes are those of annotators."""
    columns = ",".join(schema.classes.values())[:80]
    return f"if columns are annotators, name them behind the file, FILE#{columns}"


def _are_flags(columns: "DataFrame") -> bool:
    """Say whether all cells of columns of classes can be what is said of several classes an image: from 0 to 1, yes, no,
    or nothing.
    """

    def fault(i: int) -> UserError:
        return UserError(f"cell {i} is none of these")

    with suppress(UserError):
        values = [read_flags(_texts(columns, name).tolist(), fault) for name in columns]
        return not any(((column < 0) | (column > 1)).any() for column in values)
    return False


def _class_columns(
    rows: "DataFrame", schema: Schema, class_names: Names, flag: str
) -> tuple[list[int], list[str] | None]:
    """Return which class each column of a class is, and the names of all classes, None for numbers.

    Raises:
        UserError: one is no class, or two are the same.
    """
    meant = respelt(Counter(dict.fromkeys(schema.classes, len(rows))), class_names or (), flag)
    written = [meant.get(name, name) for name in schema.classes]
    numbers, names = class_numbers(written, class_names, flag)
    size = len(names) if names else max(numbers.values()) + 1
    # a column that is no class may be an annotator's, whose answers are not probabilities
    odd = next((name for name, number in numbers.items() if number == NO_LABEL), None)
    if odd is not None:
        raise UserError(
            f"{flag}: its class '{odd[:40]}' is none of the {size} classes of the data"
            f"{nearest(odd, names or ())}; {_if_people(schema)}"
        )
    if len({*numbers.values()}) < len(schema.classes):
        raise UserError(
            f"{flag}: it has a class twice, by two names; it has {', '.join(schema.classes)[:80]}"
        )
    return [*numbers.values()], names


def _read_pairs(
    rows: "DataFrame", schema: Schema, class_names: Names, flag: str, keep: bool
) -> _Answers:
    """Read a column of the best classes with their probabilities; the others share what is left evenly. Those that may
    be misspelt are classes if to ``keep``, and those that may be lists as well if a program has written them.
    """
    cells = {} if schema.column is None else rows[schema.column].to_dict()
    pairs = {row: _pairs(text, f"{flag}: {row}") for row, text in cells.items()}
    counts = Counter(name for of_row in pairs.values() for name in of_row)
    if not counts:
        raise UserError(f"{flag}: its column {schema.column} is empty")
    shares = np.array([share for of_row in pairs.values() for share in of_row.values()])
    classes = understand(counts, class_names, schema.likely, flag, are_computed(shares), keep)
    size = len(classes.names) if classes.names else max(classes.numbers.values()) + 1

    # a row with what is no class says nothing at all; two names of a row may be one class
    values = np.full((len(rows), size), np.nan, np.float32)
    odd: list[str | None] = []
    for i, (row, of_row) in enumerate(pairs.items()):
        numbers = [classes.numbers[name] for name in of_row]
        odd.append(next((name for name, n in zip(of_row, numbers) if n == NO_LABEL), None))
        if odd[i] is not None:
            continue
        if len({*numbers}) < len(numbers):
            raise UserError(f"{flag}: {row}: {schema.column} has a class twice")
        values[i, numbers] = [*of_row.values()]

    # what is left is shared
    others = np.isnan(values)
    left = np.maximum(1 - np.nansum(values, axis=1), 0) / np.maximum(others.sum(axis=1), 1)
    values = np.where(others, left.astype(np.float32)[:, None], values)
    _, values, bad = _classify(values, "probabilities")
    bad = bad | np.array([name is not None for name in odd])
    first = odd[int(bad.argmax())]
    fault = NO_SHARES if first is None else classes.fault(first)
    ask = classes.ask and any(odd)
    return _Answers(
        "probabilities",
        values,
        classes.names,
        bad,
        fault,
        classes.odd,
        ask,
        doubtful=classes.doubtful,
    )


# ---------------------------------------------------------------- what rows say of several classes


def _read_lists(
    rows: "DataFrame",
    schema: Schema,
    class_names: Names,
    flag: str,
    keep: bool,
    form: ListForm,
) -> _Answers:
    """Read a column of lists of labels, or of the best classes with their probabilities; other arguments as of
    `_read_labels`.
    """
    texts: list[str] = [] if schema.column is None else rows[schema.column].tolist()
    if not texts:
        raise UserError(f"{flag}: its column {schema.column} is empty")
    # what each cell names, with probabilities or without
    shares: list[dict[str, float]] = []
    is_part = np.zeros(len(texts), bool)
    trusted = False
    if schema.answer == "top_k":
        shares = [_pairs(text, f"{flag}: {row}") for row, text in zip(rows.index, texts)]
        listed = [[*pairs] for pairs in shares]
        trusted = are_computed(np.array([share for of_row in shares for share in of_row.values()]))
    else:
        cells = split_cells(texts, [*(class_names or ()), *schema.likely], form, flag)
        listed = [cell.labels for cell in cells]
        is_part = np.array([not cell.is_list for cell in cells])

    # which class each of these labels means
    counts = Counter(label for labels in listed for label in labels)
    if not counts and class_names is None:
        raise UserError(f"{flag}: its column {schema.column} names no class")
    classes = understand(counts, class_names, schema.likely, flag, trusted, keep, alone=True)
    size = len(classes.names or class_names or ()) or max(classes.numbers.values()) + 1
    odd = [
        next((name for name in labels if classes.numbers[name] == NO_LABEL), None)
        for labels in listed
    ]
    # a cell of delimiters alone is no list, but one in brackets may have nothing in it
    blank = np.array([part and not labels for part, labels in zip(is_part, listed)])
    bad = blank | np.array([name is not None for name in odd])
    first = int(bad.argmax())
    fault = f"'{texts[first][:40]}' names no class; expected [] for none"
    if odd[first] is not None:
        fault = classes.fault(str(odd[first]))
    understood = [() if wrong else labels for labels, wrong in zip(listed, bad.tolist())]
    values = list_values(understood, classes.numbers, size, form.others)
    for row, pairs in enumerate(shares):
        for name, share in pairs.items() if not bad[row] else ():
            values[row, classes.numbers[name]] = share
    wrong = ((values < 0) | (values > 1)).any(axis=1)
    if wrong.any() and not bad[: int(wrong.argmax())].any():
        fault = NO_ANSWERS
    bad |= wrong

    # what they say of all other classes is the user's to know
    others = "unknown" if form.unlisted == "unknown" else "no"
    hint = "; ?unlisted=unknown behind the name of the file takes them for unknown"
    logger.info(
        f"{flag}: {len(texts)} rows name {sum(map(len, listed)) / len(texts):.2f} classes each, of {size}; those that "
        f"an image is not said to have are taken for {others}{hint if others == 'no' else ''}"
    )
    ask = classes.ask and any(odd)
    return _Answers("probabilities", values, classes.names, bad, fault, classes.odd, ask, is_part)


def _read_flags(rows: "DataFrame", schema: Schema, class_names: Names, flag: str) -> _Answers:
    """Read a column for each class, with 0, 1 or nothing, probabilities, or logits. Raises `UserError` for votes."""
    if schema.kind == "votes":
        raise UserError(
            f"{flag}: has votes for one class an image; of several expected columns with 0, 1 or nothing, or the answers "
            "of each annotator in rows of their own"
        )
    numbers, names = _class_columns(rows, schema, class_names, flag)
    size = len(names) if names else max(numbers) + 1
    column = next(iter(schema.classes.values()))
    people = (
        f"or, if a column has lists or is an annotator's, name it behind the file, FILE#{column}"
    )
    # classes without a column are unknown
    values = np.full((len(rows), size), np.nan, np.float32)
    for number, name in zip(numbers, schema.classes.values(), strict=True):
        texts = _texts(rows, name).tolist()

        def fault(i: int, name: str = name, texts: Sequence[str] = texts) -> UserError:
            return UserError(
                f"{flag}: {rows.index[i]}: column {name[:40]} is '{texts[i][:40]}'; expected 0, 1, yes, no, empty or a "
                f"probability, {people}"
            )

        values[:, number] = read_flags(texts, fault)

    # only a file that says so has logits: a probability of 2 is a mistake
    kind = schema.kind or "probabilities"
    wrong = (values < 0) | (values > 1)
    if kind == "logits":
        wrong = np.isinf(values)
    odd = "its values are not finite" if kind == "logits" else NO_ANSWERS
    return _Answers(kind, values, names, np.any(wrong, axis=1), odd)


def _pairs(text: str, row: str) -> dict[str, float]:
    """Return the pairs of a cell, ``cat:0.9;dog:0.05``."""
    # the last colon: a class may have one in its name
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
    # rows that are not finite decide nothing about the others
    finite = np.all(np.isfinite(values), axis=1)
    values = np.where(finite[:, None], values, np.float32(0))
    sums = values.sum(axis=1, dtype=np.float64)
    positive = np.all(values >= 0, axis=1)
    is_share = positive & (np.abs(sums - 1) <= SUM_TOLERANCE)

    # whole numbers are counts; where some are negative, and most rows no probabilities, they are logits
    are_counts = positive & ~(values % 1).any(axis=1)
    if kind is None and not is_share[finite].all():
        if are_counts.all():
            # each sample has as many votes if all people have seen it; numbers of classes have no such sum
            kind = "votes" if len(sums) > 1 == len({*sums}) else "votes, or numbers of classes"
        elif not positive.all() and 2 * is_share.sum() <= finite.sum():
            kind = "logits"
    if kind and kind.startswith("votes"):
        is_share = finite & are_counts & (sums > 0)
        values = (values / np.maximum(sums, 1)[:, None]).astype(np.float32)
    return kind or "probabilities", values, ~(finite if kind == "logits" else is_share)


# ---------------------------------------------------------------- cells


def _texts(frame: "DataFrame", name: str, lists: bool = False) -> "Series":
    """Return the cells of a column as texts, of empty ones empty texts; ``lists`` as JSON."""
    from pandas import Series

    column: Series = frame.loc[:, name]
    if lists:
        column = column.map(_list_text)
    cells = zip(column.isna().tolist(), column.tolist())
    texts = ["" if empty else visible(str(value)) for empty, value in cells]
    return Series(texts, column.index, dtype=object)


def _replace_decimal_commas(rows: "DataFrame", schema: Schema, several: bool) -> None:
    """Write points in place of decimal commas, in columns of numbers: among labels 0,1 is a list, unless all are 3,0."""
    numbers = [schema.confidence, *schema.classes.values()]
    if schema.keyed_by == "id":
        numbers.append(schema.key)
    if schema.column and not several and rows[schema.column].str.fullmatch("(-?[0-9]+,0+)?").all():
        numbers.append(schema.column)
    for name in filter(None, numbers):
        rows[name] = rows[name].str.replace(r"^\s*(-?[0-9]+),([0-9]+)\s*$", r"\1.\2", regex=True)


def _list_text(cell: object) -> object:
    """Return a list of JSON or parquet as a text; another cell as it is."""
    if isinstance(cell, np.ndarray):
        cell = cell.tolist()
    # what is neither text nor number in it is no name
    return json.dumps(cell, default=str) if isinstance(cell, list) else cell


def _labels_in(frame: "DataFrame", name: str, known: Sequence[str], several: bool) -> set[str]:
    """Return the labels that a column has; ``several`` in a cell, between commas or in brackets."""
    texts = _texts(frame, name, several)
    if not several:
        return {*texts}
    cells = split_cells([text for text in texts if text], known, ListForm(delimiter="comma"), "")
    return {label for cell in cells for label in cell.labels}


def _floats(
    frame: "DataFrame", name: str, flag: str, otherwise: str = "expected numbers"
) -> np.ndarray:
    """Return a column as numbers. Raises `UserError` if it is none, which ends with what it is ``otherwise``."""
    try:
        return frame[name].to_numpy(dtype=np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f"{flag}: column {name} is not all numbers ({one_line(error, 80)}); {otherwise}"
        ) from error


def _keys(rows: "DataFrame", schema: Schema, flag: str) -> list[str | int]:
    """Return the samples that rows are about. Raises `UserError` for what can be the name of none."""
    keys: list[str | int] = []
    for row, text in zip(rows.index, rows[schema.key].tolist()):
        key = text.removeprefix("./") if schema.keyed_by == "filename" else whole(text)
        if key is None or key == "":
            raise UserError(
                f"{flag}: {row}: '{text[:40]}' names no sample; expected paths in a column filename, whole "
                "numbers in a column id"
            )
        keys.append(key)
    return keys
