"""What ``python -m w2s_plugins.labels`` does; the arguments are its flags."""

import dataclasses
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..data.keys import SampleKeys, sample_keys
from ..data.unlabeled import open_images
from ..errors import UserError, write_errors
from ..files import apply_umask
from ..tokens import say
from .agreement import Fit, Opinions, compare, draw_confusion, fit_to_data, folder_labels, label_names, opinions
from .answers import KEY_COLUMNS, TableForm, check_form, folder_columns
from .combine import agreement_of_annotators
from .format import read_manifest
from .imported import ImportSettings, import_labels
from .names import read_class_names
from .published import local_labels, push_labels
from .table import LabelTable, read_label_table
from .table_writer import Columns, write_label_table

SHOWN_CLASSES = 30


# ---------------------------------------------------------------- conversions


def import_table(file: Path, output: Path, class_names: str | None, combine: str) -> None:
    """Write a table as a folder of labels of the samples that it names."""
    if output.exists():
        raise UserError(f"--output {output}: is there already; expected the name of a new folder")
    names = read_class_names(class_names) if class_names else None
    table = read_label_table(file, names)
    keys = sorted(set(table.keys))
    own = names or table.class_names or [*map(str, range(table.num_classes))]
    with write_errors(output, "try again"):
        place = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        folder = import_labels(
            table, SampleKeys("filename" if table.keyed_by == "filename" else "index", keys), own, place,
            ImportSettings(combine), str(file))
        apply_umask(folder)
        folder.rename(output)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    say(f"{output}: labels of {len(keys)} samples in {len(own)} classes, from {len(table)} rows")


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
    """Print whether a table fits a folder of images, and how it compares; exit code 1 when it does not fit."""
    if figure is not None and (against is None or figure.suffix.lower() != ".png" or not figure.parent.is_dir()):
        raise UserError(f"--figure {figure}: expected a .png file in a folder that exists, and --against")
    names = read_class_names(class_names) if class_names else None
    keys = sample_keys(open_images(data_dir))
    table = _table(file)
    if names and table.class_names is None and table.num_classes <= len(names):
        table = dataclasses.replace(table, class_names=names)
    fit = fit_to_data(table, keys, names)
    say(*_fit_lines(file, fit))
    if against is not None and fit.matched:
        ours = opinions(table, keys)
        theirs = folder_labels(keys) if against == "folders" else opinions(_table(against), keys)
        _print_comparison(ours, theirs, (Path(file).stem, Path(against).stem), figure)
    if fit.errors:
        sys.exit(1)


def _fit_lines(file: str, fit: Fit) -> Iterator[str]:
    yield f"{file}: {fit.rows} rows, {fit.matched} of them about {fit.labelled} of the {fit.samples} samples"
    for text, found in (*fit.errors.items(), *fit.notes.items()):
        kind = "error" if text in fit.errors else "note"
        yield f"{kind}: {len(found)} {text}, such as {', '.join(found[:2])}"


def _print_comparison(ours: Opinions, theirs: Opinions, called: tuple[str, str], figure: Path | None) -> None:
    found = compare(ours, theirs, called)
    say(f"{called[0]} and {called[1]}: {found.samples} samples in common, they agree in {100 * found.agreement:.1f} %"
        f" (Cohen's kappa {found.kappa:.3f})")
    for ours_said, theirs_said, count in found.confused(5):
        say(f"  {count} x '{theirs_said}' in {called[1]} is '{ours_said}' in {called[0]}")
    say(*_shares({called[0]: found.ours, called[1]: found.theirs}))
    if figure is not None:
        draw_confusion(found, called, figure)
        say(f"{figure}: the confusion, drawn")
