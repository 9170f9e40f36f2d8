"""What ``python -m w2s_plugins.labels`` does; the arguments are its flags."""

import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data.keys import SampleKeys, sample_keys
from ..data.unlabeled import open_images
from ..errors import UserError, say
from .agreement import compare, folder_labels, label_names, opinions
from .answers import TableForm, check_form, folder_columns
from .combine import agreement_of_annotators
from .names import read_class_names
from .published import local_labels, push_labels
from .samples import TableLabels, check_gaps, labels_of_samples
from .store import read_manifest
from .table import LabelTable, read_label_table
from .table_writer import Columns, write_label_table

if TYPE_CHECKING:
    from pandas import DataFrame, Series

SHOWN_CLASSES = 30


def export_folder(folder: str, output: Path, top_k: int | None, every: bool) -> None:
    """Write a folder of labels as a table."""
    place = local_labels(folder, folder).path
    if not place.is_dir():
        raise UserError(f"{folder}: no such folder of labels")
    manifest = read_manifest(place)
    if manifest.kind == "features":
        raise UserError(f"{folder}: holds features, not labels")
    form = TableForm(top_k, every)
    check_form(form, manifest.class_names, manifest.num_classes)
    rows = write_label_table(output, folder_columns(place, manifest, form))
    views = f", of the first of {manifest.views} views" if manifest.views > 1 else ""
    say(f"{output}: labels of {rows} samples in {manifest.num_classes} classes{views}")


def merge_tables(files: Sequence[Path], output: Path) -> None:
    """Join the tables of several annotators."""
    twice = [stem for stem, count in Counter(file.stem for file in files).items() if count > 1]
    if twice:
        raise UserError(f"{twice[0]}: two of the files have this name, by which their annotators are called; rename "
                        "one")
    tables = [read_label_table(file) for file in files]
    first = tables[0]
    for table in tables[1:]:
        if table.keyed_by != first.keyed_by:
            raise UserError(f"{table.path}: names its samples by {table.keyed_by}, {first.path} by {first.keyed_by}")
        if (table.class_names is None) != (first.class_names is None):
            raise UserError(f"{table.path}, {first.path}: one has numbers for classes, the other names; expected the "
                            "same in all files")
    sure = any(table.kind != "hard" or table.confidence is not None for table in tables)
    rows = write_label_table(output, (_opinion_columns(table, sure) for table in tables))
    say(f"{output}: {rows} rows of {len(tables)} files about {len({key for table in tables for key in table.keys})} "
        "samples")


def _opinion_columns(table: LabelTable, with_confidence: bool) -> Columns:
    labels, sure = label_names(table)
    columns = {"filename" if table.keyed_by == "filename" else "id": list(table.keys), "label": labels}
    if with_confidence:
        columns["confidence"] = sure
    said_by = table.path.stem
    annotators = table.annotators or [""] * len(table)
    columns["annotator"] = [f"{said_by}/{who}" if who else said_by for who in annotators]
    return columns


def push(
        path: Path, repo_id: str, license: str | None, private: bool | None, revision: str | None,
        commit_message: str | None) -> None:
    """Publish labels on the Hub."""
    say(push_labels(path, repo_id, license=license, private=private, revision=revision,
                    commit_message=commit_message))


def print_stats(file: str) -> None:
    """Print what a table holds."""
    from pandas import Series

    table = read_label_table(local_labels(file, file).path, flag=file)
    labels, sure = label_names(table)
    samples = np.unique(np.array(table.keys, dtype=object).astype(str), return_inverse=True)[1]
    say(f"{file}: {len(table)} rows about {samples.max() + 1} samples, known by {table.keyed_by}; {table.kind}")
    if table.annotators is not None:
        agreement = agreement_of_annotators(samples, np.unique(labels, return_inverse=True)[1])
        agree = "" if agreement is None else f"; two of one sample agree in {100 * agreement:.1f} %"
        say(f"annotators: {len({*table.annotators})}{agree}")
    if table.kind != "hard" or table.confidence is not None:
        say(f"confidence: {sure.mean():.3f} in the mean")
    _print_shares(Series(labels).value_counts().to_frame("labels"))


def _print_shares(counts: "DataFrame") -> None:
    """Print counts and percentages of the classes (rows), the most frequent ones."""
    more = f", of which the {SHOWN_CLASSES} most frequent" if len(counts) > SHOWN_CLASSES else ""
    say(f"{len(counts)} classes{more}:")
    shares = (100 * counts / counts.sum()).round(1).add_suffix(" %")
    say(*counts.join(shares).head(SHOWN_CLASSES).to_string().splitlines())


def print_check(file: str, data_dir: Path, against: str | None, class_names: str | None) -> None:
    """Read a table as a training on these images would, and print what that says of it; exit code 1 when it refuses."""
    names = read_class_names(class_names) if class_names else None
    keys = sample_keys(open_images(data_dir))
    with _said_aloud():
        try:
            labels = _labels_of(file, keys, names)
        except UserError as error:
            say(f"error: {error}")
            sys.exit(1)
    rows, known = labels.manifest.who["rows"], int(labels.known.sum())
    say(f"{file}: can be trained on: {rows} rows, labels of {known} of the {len(keys.values)} samples in "
        f"{labels.manifest.num_classes} classes")
    if against == "folders":
        _print_comparison(labels, folder_labels(keys), (Path(file).stem, "folders"))
    elif against is not None:
        other = opinions(_labels_of(against, keys, names, partial=True))
        _print_comparison(labels, other, (Path(file).stem, Path(against).stem))


def _labels_of(file: str, keys: SampleKeys, names: list[str] | None, partial: bool = False) -> TableLabels:
    """Return the labels of a table for some samples, as training gets them. Raises `UserError`."""
    missing = "skip" if partial else None
    table = read_label_table(local_labels(file, file).path, names, file, missing=missing)
    known = names or table.class_names or [*map(str, range(table.num_classes))]
    labels = labels_of_samples(table, keys, known, None, file)
    check_gaps(labels.known, keys, missing, file)
    return labels


@contextmanager
def _said_aloud() -> Iterator[None]:
    """Print what is logged of labels in the block, a line each."""
    logger, handler = logging.getLogger("w2s_plugins.labels"), logging.Handler()
    handler.emit = lambda record: say(f"note: {record.getMessage().removeprefix('WARNING: ')}")
    level, logger.propagate = logger.level, False
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = True


def _print_comparison(labels: TableLabels, theirs: "Series", called: tuple[str, str]) -> None:
    counts, kappa = compare(opinions(labels), theirs, called)
    table = counts.to_numpy()
    say(f"{called[0]} and {called[1]}: {table.sum()} samples in common, they agree in "
        f"{100 * np.trace(table) / table.sum():.1f} % (Cohen's kappa {kappa:.3f})")
    confused = counts.stack().sort_values(ascending=False, kind="stable")
    others = [(pair, count) for pair, count in confused.items() if pair[0] != pair[1] and count]
    for (theirs_said, ours_said), count in others[:5]:
        say(f"  {count} x '{theirs_said}' in {called[1]} is '{ours_said}' in {called[0]}")
    shares = counts.sum(axis=0).to_frame(called[0])
    shares[called[1]] = counts.sum(axis=1)
    _print_shares(shares.loc[shares.sum(axis=1).sort_values(ascending=False, kind="stable").index])
