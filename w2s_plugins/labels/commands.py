"""What ``python -m w2s_plugins.labels`` does; the arguments are its flags."""

import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..data.keys import SampleKeys, sample_keys
from ..data.unlabeled import open_images
from ..errors import UserError
from ..tokens import say
from .agreement import Opinions, compare, draw_confusion, folder_labels, label_names, opinions
from .answers import KEY_COLUMNS, TableForm, check_form, folder_columns
from .combine import agreement_of_annotators
from .format import read_manifest
from .names import read_class_names
from .published import local_labels, push_labels
from .samples import TableLabels, check_gaps, labels_of_samples
from .table import LabelTable, read_label_table
from .table_writer import Columns, write_label_table

SHOWN_CLASSES = 30


# ---------------------------------------------------------------- conversions


def export_folder(folder: str, output: Path, top_k: int | None, every: bool) -> None:
    """Write a folder of labels as a table."""
    place = local_labels(folder, folder).path
    if not place.is_dir():
        raise UserError(f"{folder}: no such folder of labels")
    manifest, form = read_manifest(place), TableForm(top_k, every)
    if manifest.kind == "features":
        raise UserError(f"{folder}: holds features, not labels")
    check_form(form, manifest.class_names, manifest.num_classes)
    rows = write_label_table(output, folder_columns(place, manifest, form))
    views = f", of the first of {manifest.views} views" if manifest.views > 1 else ""
    say(f"{output}: labels of {rows} samples in {manifest.num_classes} classes{views}")


def merge_tables(files: Sequence[Path], output: Path) -> None:
    """Join the tables of several annotators."""
    stems = Counter(file.stem for file in files)
    twice = next((stem for stem, count in stems.items() if count > 1), None)
    if twice is not None:
        raise UserError(f"{twice}: two of the files have this name, by which their annotators are called; rename "
                        "one")
    tables = [read_label_table(file) for file in files]
    first = tables[0]
    for table in tables[1:]:
        if table.keyed_by != first.keyed_by:
            raise UserError(f"{table.path}: names its samples by {table.keyed_by}, {first.path} by {first.keyed_by}")
        if (table.class_names is None) != (first.class_names is None):
            numbered, named = sorted((table, first), key=lambda t: t.class_names is not None)
            raise UserError(f"{numbered.path}: has numbers for classes, {named.path} has names; expected the same in "
                            "all files")
    sure = any(table.kind != "hard" or table.confidence is not None for table in tables)
    rows = write_label_table(output, (_opinion_columns(table, sure) for table in tables))
    annotators = {who for table in tables for who in _annotators(table)}
    say(f"{output}: {rows} rows of {len(annotators)} annotators about "
        f"{len({key for table in tables for key in table.keys})} samples")


def push(
        path: Path, repo_id: str, license: str | None, private: bool | None, revision: str | None,
        commit_message: str | None) -> None:
    """Publish labels on the Hub."""
    say(push_labels(path, repo_id, license=license, private=private, revision=revision,
                    commit_message=commit_message))


def _table(name: str) -> LabelTable:
    return read_label_table(local_labels(name, name).path, flag=name)


def _annotators(table: LabelTable) -> list[str]:
    """Return who said each row: the file, and who it names itself."""
    if table.annotators is None:
        return [table.path.stem] * len(table)
    return [f"{table.path.stem}/{who}" for who in table.annotators]


def _opinion_columns(table: LabelTable, with_confidence: bool) -> Columns:
    labels, sure = label_names(table)
    key = KEY_COLUMNS["filename" if table.keyed_by == "filename" else "index"]
    return {key: list(table.keys), "label": labels, **({"confidence": sure} if with_confidence else {}),
            "annotator": _annotators(table)}


# ---------------------------------------------------------------- questions


def print_stats(file: str) -> None:
    """Print what a table holds."""
    table = _table(file)
    labels, sure = label_names(table)
    samples = np.unique(np.array(table.keys, dtype=object).astype(str), return_inverse=True)[1]
    say(f"{file}: {len(table)} rows about {samples.max() + 1} samples, known by {table.keyed_by}; {table.kind}"
        f"{' labels' if table.kind == 'hard' else ''}")
    if table.annotators is not None:
        by = Counter(table.annotators)
        shown = ", ".join(f"{who} {count}" for who, count in by.most_common(8))
        agreement = agreement_of_annotators(samples, np.unique(labels, return_inverse=True)[1])
        say(f"annotators: {len(by)} ({shown}{', ...' if len(by) > 8 else ''})"
            + ("" if agreement is None else f"; two of one sample agree in {100 * agreement:.1f} %"))
    if table.kind != "hard" or table.confidence is not None:
        low, middle, high = np.quantile(sure, (0.1, 0.5, 0.9))
        say(f"confidence: {sure.mean():.3f} in the mean; a tenth are below {low:.3f}, half below {middle:.3f}, a "
            f"tenth above {high:.3f}")
    say(*_shares({"": Counter(labels)}))


def _shares(columns: dict[str, Counter]) -> Iterator[str]:
    """Yield lines with the share of each class, the most frequent of the first column first."""
    totals = {name: max(1, counts.total()) for name, counts in columns.items()}
    every = Counter()
    for counts in columns.values():
        every.update(counts)
    names = [name for name, _ in every.most_common()]
    width = max((len(name) for name in names[:SHOWN_CLASSES]), default=0)
    yield f"{len(names)} classes" + (f", of which the {SHOWN_CLASSES} most frequent" if len(names) > SHOWN_CLASSES
                                     else "") + f":{''.join(f'{name:>19}' for name in columns if name)}"
    for name in names[:SHOWN_CLASSES]:
        yield f"  {name:{width}}" + "".join(
            f"  {counts[name]:8d}  {100 * counts[name] / totals[column]:5.1f} %" for column, counts in columns.items())


def print_check(
        file: str, data_dir: Path, against: str | None, class_names: str | None, figure: Path | None) -> None:
    """Read a table as a training on these images would, and print what that says of it; exit code 1 when it refuses."""
    if figure is not None and (against is None or figure.suffix.lower() != ".png" or not figure.parent.is_dir()):
        raise UserError(f"--figure {figure}: expected a .png file in a folder that exists, and --against")
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
    if against is None:
        return
    if against == "folders":
        theirs = folder_labels(keys)
    else:
        theirs = opinions(_labels_of(against, keys, names, partial=True))
    _print_comparison(opinions(labels), theirs, (Path(file).stem, Path(against).stem), figure)


def _labels_of(file: str, keys: SampleKeys, names: list[str] | None, partial: bool = False) -> TableLabels:
    """Return the labels of a table for some samples, as training gets them. Raises `UserError`."""
    path, missing = local_labels(file, file).path, "skip" if partial else None
    table = read_label_table(path, names, file, missing=missing)
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


def _print_comparison(ours: Opinions, theirs: Opinions, called: tuple[str, str], figure: Path | None) -> None:
    counts, kappa = compare(ours, theirs, called)
    table = counts.to_numpy()
    say(f"{called[0]} and {called[1]}: {table.sum()} samples in common, they agree in "
          f"{100 * np.trace(table) / table.sum():.1f} % (Cohen's kappa {kappa:.3f})")
    confused = counts.stack().sort_values(ascending=False, kind="stable")
    others = [(pair, count) for pair, count in confused.items() if pair[0] != pair[1] and count]
    for (theirs_said, ours_said), count in others[:5]:
        say(f"  {count} x '{theirs_said}' in {called[1]} is '{ours_said}' in {called[0]}")
    shares = {called[0]: Counter(counts.sum(axis=0).to_dict()), called[1]: Counter(counts.sum(axis=1).to_dict())}
    say(*_shares(shares))
    if figure is not None:
        draw_confusion(counts, kappa, called, figure)
        say(f"{figure}: the confusion, drawn")
