"""``w2s-labels import``: read a table of anyone, show how it was understood, and write it in the project's form.

Where a table can be read in several ways, it is read in each of them, and those that succeed are printed as commands.
"""

import json
import logging
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import UserError, logger, quietly, say, shorten, typed
from ...settings.forms import DELIMITERS, MULTILABEL, parse_labels
from ...target_kind import ONE_CLASS, TargetKind, kind_of_task
from ..crowd import join_tables, read_tables_alike
from ..names import names_to_type, read_class_names, same_word
from ..samples import most_likely
from ..several import ListForm, are_several
from ..spelling import check_from_0
from ..table import (
    NESTED,
    ROLES,
    WITH_ROLE,
    LabelRows,
    Schema,
    TableFile,
    file_of,
    open_table,
    plain_name,
)
from ..table_writer import Columns, check_writable, write_label_table

if TYPE_CHECKING:
    from pandas import DataFrame

FORMS = (".csv", ".parquet")
MOST_READINGS = 6  # commands that are offered
MOST_LISTED = 20  # classes and annotators that are shown, the most frequent first
EXAMPLES = 3  # rows before and after
MOST_CLASSES = 200  # different texts of a column that may be labels
FORMULA = ("=", "+", "@")  # what begins a formula of a spreadsheet


@dataclass(frozen=True)
class Request:
    """What is typed after ``import``; attributes as of `settings.concerns.subcommands.LabelsImport`."""

    files: Sequence[str]
    output: Path
    label: str | None = None
    annotators: str | None = None
    filename: str | None = None
    delimiter: str | None = None
    class_names: str | None = None
    task: str = ONE_CLASS.task

    @property
    def command(self) -> str:
        """The command line that says all this."""
        flags = {
            "--filename": self.filename,
            "--label": self.label,
            "--annotators": self.annotators,
            "--delimiter": self.delimiter,
            "--class-names": self.class_names,
            "--task": None if self.task == ONE_CLASS.task else self.task,
            "--output": str(self.output),
        }
        words = [word for flag, value in flags.items() if value for word in (flag, value)]
        return f"{typed('labels')} import {shlex.join([*self.files, *words])}"


def import_labels(
    files: Sequence[str],
    output: Path,
    label: str | None,
    annotators: str | None,
    filename: str | None,
    delimiter: str | None,
    class_names: str | None,
    task: str,
) -> None:
    """Import tables; arguments as of `Request`. Raises `UserError` for what cannot be understood, or in several ways."""
    request = Request(files, output, label, annotators, filename, delimiter, class_names, task)
    if output.suffix.lower() not in FORMS:
        raise UserError(f"--output {output}: expected a name that ends in {' or '.join(FORMS)}")
    if label and annotators:
        raise UserError("--label and --annotators exclude each other: give one of them")
    if delimiter and DELIMITERS.get(delimiter, delimiter) not in DELIMITERS.values():
        raise UserError(f"--delimiter {delimiter[:40]}: expected one of {', '.join(DELIMITERS)}")
    check_writable(output, [file_of(Path(name))[0] for name in files])

    opened = _open(request)
    try:
        with _collected() as notes:
            table, schemas = _read(request, opened)
    except UserError as error:
        # the same table in other ways, each as a command to be typed
        lines = _other_readings(request, opened, str(error))
        if lines:
            say("It can be read in these ways; type the one that is meant:", *lines)
        raise

    # how it was understood, and what is left of it
    target_kind = kind_of_task(task)
    columns = _written(table, target_kind)
    for line in _columns_of(opened, schemas):
        say(line)
    _say_content(table, target_kind, notes)
    _say_examples(opened[0].frame, columns)
    count = write_label_table(output, [columns])
    say(f"{output}: {count} rows; the same again:", _repeated(request, schemas).command)


# ---------------------------------------------------------------- read


def _open(request: Request) -> list[TableFile]:
    """Read the files, with the column of names that the user named called ``filename``."""
    opened: list[TableFile] = []
    for name in parse_labels(",".join(f"labels:{name}" for name in request.files))[0]:
        file = open_table(Path(name), name, may_name=True)
        if request.filename:
            frame = file.frame
            if request.filename not in frame.columns:
                listed = ", ".join(map(str, [*frame.columns][:8]))
                raise UserError(f"{name}: has no column '{request.filename}'; it has {listed}")
            others = [column for column in frame.columns if column.lower() == "filename"]
            frame = frame.drop(columns=[one for one in others if one != request.filename])
            frame = frame.rename(columns={request.filename: "filename"})
            file = replace(file, frame=frame)
        opened.append(file)
    return opened


def _read(
    request: Request, opened: Sequence[TableFile]
) -> tuple[LabelRows, list[tuple[TableFile, Schema]]]:
    """Read opened tables as one crowd, as a request says; return it, and what the columns of each file are.

    Raises:
        UserError: they cannot be understood so.
    """
    how = parse_labels(",".join(f"labels:{name}" for name in request.files))[1]
    # columns are named as behind the name of a file
    chosen = request.annotators or request.label
    if chosen:
        opened = [replace(file, path=Path(f"{file.path}#{chosen}")) for file in opened]
    names = read_class_names(request.class_names) if request.class_names else None
    target_kind = kind_of_task(request.task)
    lists = ListForm(how["unlisted"], request.delimiter or how["delimiter"])
    read = read_tables_alike(opened, names, how["missing"], target_kind, lists)
    table = join_tables([*read.values()], request.files[0])

    # positions are counted from 0, of samples and of classes
    if table.keyed_by == "id":
        check_from_0({*map(int, table.keys)}, (), f"{request.files[0]}: its ids")
    if table.kind == "hard" and not table.class_names:
        check_from_0({*table.answers.tolist()}, (), f"{request.files[0]}: its classes")
    outside = next((key for key in table.keys if ".." in Path(str(key)).parts), None)
    if outside is not None:
        raise UserError(
            f"{request.files[0]}: '{str(outside)[:40]}' leads out of the folder of the images; expected names below it"
        )
    with quietly():
        several = are_several(target_kind)
        schemas = [
            (file, file.schema(names or table.class_names, None, several)) for file in opened
        ]
    return table, schemas


@contextmanager
def _collected() -> Iterator[list[str]]:
    """Collect what is logged of the labels, to be shown in its place."""
    notes: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: notes.append(record.getMessage())
    level, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield notes
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates


# ---------------------------------------------------------------- other readings


def _other_readings(request: Request, opened: Sequence[TableFile], fault: str) -> list[str]:
    """Return a command for each other way in which tables can be read, and what it finds then; ``fault`` is what was
    wrong with the one that was typed.
    """
    lines: dict[str, str] = {}
    for other, meaning in _alternatives(request, opened[0], fault):
        with quietly(), suppress(UserError):
            # only those that succeed are worth typing
            tables = opened if other.filename == request.filename else _open(other)
            table, _ = _read(other, tables)
            people = f", {len({*table.annotators})} annotators" if table.annotators else ""
            found = f"{len(table)} answers, {table.num_classes} classes{people}"
            lines.setdefault(f"  {other.command}", f"    {meaning}: {found}")
        if len(lines) == MOST_READINGS:
            break
    return [line for pair in lines.items() for line in pair]


def _alternatives(request: Request, file: TableFile, fault: str) -> Iterator[tuple[Request, str]]:
    """Yield requests that say one thing more, and what each takes the table for."""
    frame = file.frame
    columns = [str(name) for name in frame.columns if name]
    texts = {name: frame.loc[:, name].astype(str).tolist() for name in columns}
    keys = {*ROLES["filename"], *ROLES["image_id"], *ROLES["id"]}
    # nothing else can be asked before the images are known
    if "which sample a row is about" in fault or "which column is the filename" in fault:
        for name in columns:
            if plain_name(name) in keys or plain_name(name) not in WITH_ROLE:
                yield replace(request, filename=name), f"column {name} names the images"
        return
    if request.task == ONE_CLASS.task:
        yield replace(request, task=MULTILABEL), "an image may have several classes"
    elif request.delimiter is None:
        for name, mark in DELIMITERS.items():
            meaning = f"labels of a cell are separated by {name}" if mark else "a cell is one label"
            yield replace(request, delimiter=name), meaning
    if request.label or request.annotators:
        return

    # columns with few different texts may be labels: of a person each, or one of them
    named = [name for name in columns if plain_name(name) not in keys and "," not in name]
    named = [name for name in named if len({*texts[name]}) <= MOST_CLASSES]
    alike = [name for name in named if _shares_words(name, named, texts)]
    if len(alike) > 1:
        people = replace(request, annotators=",".join(alike))
        yield people, "each of these columns is a person's"
        # as people write them, if some of it is misspelt
        written = Counter(text for name in alike for text in texts[name] if text.strip())
        listed = names_to_type(written)
        if listed and not request.class_names:
            yield replace(people, class_names=listed), "each is a person's, of these classes"
    else:
        for name in named:
            yield replace(request, label=name), f"column {name} has the labels"


def _shares_words(name: str, others: Sequence[str], texts: Mapping[str, Sequence[str]]) -> bool:
    """Say whether a column shares half of its different labels with other columns, or more."""
    words = {*map(same_word, texts[name])} - {""}
    rest = {same_word(text) for other in others if other != name for text in texts[other]}
    return bool(words) and 2 * len(words & rest) >= len(words)


def _repeated(request: Request, schemas: Sequence[tuple[TableFile, Schema]]) -> Request:
    """Return a request that says what was decided of its columns, if all files have the same."""
    people = {",".join(schema.people) for _, schema in schemas}
    columns = {schema.column for _, schema in schemas if not schema.people}
    if len(people) == 1 and "" not in people:
        return replace(request, annotators=people.pop())
    column = columns.pop() if len(columns) == 1 else None
    is_label = all(schema.answer == "label" for _, schema in schemas) and people == {""}
    return replace(request, label=column) if column and is_label else request


# ---------------------------------------------------------------- written


def _written(table: LabelRows, target_kind: TargetKind) -> Columns:
    """Return the columns of a table in the project's form."""
    if are_several(target_kind) and table.is_part is not None and table.is_part.any():
        table = _with_whole_lists(table)
    names = [*map(str, table.names)]
    columns: dict[str, Sequence | np.ndarray] = {table.keyed_by: list(table.keys)}
    is_plain = np.isin(table.answers, (0, 1)).all()
    if table.kind == "hard":
        columns["label"] = [names[number] for number in table.answers.tolist()]
    elif are_several(target_kind) and table.kind == "probabilities" and is_plain:
        rows = [[names[i] for i in row.nonzero()[0]] for row in table.answers]
        columns["label"] = [json.dumps(row, ensure_ascii=False) for row in rows]
    else:
        # a prefix says what the numbers are, and keeps names apart from those of other columns
        prefix = NESTED[1] if table.kind == "logits" else NESTED[0]
        columns |= {f"{prefix}.{name}": table.answers[:, i] for i, name in enumerate(names)}
    if table.annotators is not None:
        columns["annotator"] = list(table.annotators)
    if table.confidence is not None:
        columns["confidence"] = table.confidence
    return columns


def _with_whole_lists(table: LabelRows) -> LabelRows:
    """Return a table of several classes an image with the rows of an annotator about a sample as one."""
    who = table.annotators or [""] * len(table)
    first: dict[tuple[str | int, str], int] = {}
    for row, pair in enumerate(zip(table.keys, who, strict=True)):
        first.setdefault(pair, row)
    # rows with one class each say no of no other one
    group = [first[pair] for pair in zip(table.keys, who, strict=True)]
    answers = table.answers.copy()
    np.fmax.at(answers, group, table.answers)
    rows = [*first.values()]
    return replace(replace(table, answers=answers).take(rows), is_part=None)


# ---------------------------------------------------------------- shown


def _columns_of(
    opened: Sequence[TableFile], schemas: Sequence[tuple[TableFile, Schema]]
) -> Iterator[str]:
    """Yield a line for each column that is read, with its role, and one for those that are not."""
    for file, (_, schema) in zip(opened, schemas, strict=True):
        yield f"{file.path}: {len(file.frame)} rows"
        roles = {schema.key: "names of images" if schema.keyed_by == "filename" else "positions"}
        roles |= dict.fromkeys(schema.people, "labels of a person")
        if schema.column and not schema.people:
            roles[schema.column] = "labels" if schema.answer == "label" else "best classes"
        roles |= {column: f"class {name}" for name, column in schema.classes.items()}
        for column, role in ((schema.annotator, "person"), (schema.confidence, "confidence")):
            if column in file.frame.columns:
                roles[str(column)] = role
        width = max(map(len, roles))
        shown = [*roles.items()][:MOST_LISTED]
        yield from (f"  {shorten(column).ljust(width)}  {role}" for column, role in shown)
        if len(roles) > len(shown):
            yield f"  and {len(roles) - len(shown)} more"


def _say_content(table: LabelRows, target_kind: TargetKind, notes: Sequence[str]) -> None:
    """Say which classes and people there are, and what was respelt or left out."""
    names = table.names
    if are_several(target_kind):
        decided = np.nan_to_num(table.answers) > (0 if table.kind == "logits" else 0.5)
        counts = decided.sum(axis=0)
    else:
        counts = np.bincount(most_likely(table.answers), minlength=len(names))
    classes = Counter(dict(zip(names, counts.tolist(), strict=True)))
    say(f"{len(names)} classes: {_listed(classes)}")
    if table.annotators is not None:
        people = Counter(table.annotators)
        say(f"{len(people)} people: {_listed(people)}")
    for note in dict.fromkeys(notes):
        say(note)
    texts = [*names, *(table.annotators or ()), *map(str, table.keys)]
    formulas = [text for text in dict.fromkeys(texts) if text.startswith(FORMULA)]
    if formulas:
        say(
            f"WARNING: {len(formulas)} names begin as formulas of a spreadsheet do, such as '{formulas[0][:40]}': open "
            "the table as text"
        )


def _listed(counts: Counter[str]) -> str:
    """Return names with their counts, the most frequent first."""
    shown = [f"{shorten(name)} ({count})" for name, count in counts.most_common(MOST_LISTED)]
    rest = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def _say_examples(before: "DataFrame", after: Columns) -> None:
    """Say what the first rows were and are."""
    from pandas import DataFrame

    rows = DataFrame({name: cells[:EXAMPLES] for name, cells in after.items()})
    for title, frame in (("before", before.head(EXAMPLES)), ("after", rows)):
        text = frame.iloc[:, :8].to_string(index=False, max_colwidth=30, na_rep="")
        say(f"{title}:", *(f"  {line}" for line in text.split("\n")))
