"""What ``python -m w2s_plugins.labels`` does; the arguments are its flags."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pandas import Series, concat

from ..data.keys import sample_keys
from ..data.unlabeled import open_images
from ..errors import PublicFormatter, say
from .answers import TableForm, folder_columns
from .combine import agreement_of_annotators
from .names import read_class_names
from .published import local_labels, push_labels
from .samples import check_gaps, label_names, labels_of_samples
from .table import infer_schema, read_frame, read_label_table
from .table_writer import write_label_table

SHOWN_CLASSES = 30


def export(folder: str, output: Path, top_k: int | None, every: bool) -> None:
    """Write a folder of labels as a table."""
    path = local_labels(folder, folder).path
    rows = write_label_table(output, folder_columns(path, TableForm(top_k, every)))
    say(f"{output}: labels of {rows} samples")


def merge(files: Sequence[Path], output: Path) -> None:
    """Join the tables of several annotators, each of whom is called as the file."""
    frames = []
    for file in files:
        frame, annotator = read_frame(file, str(file)), file.stem
        schema = infer_schema(frame, None, str(file))
        if schema.annotator is not None:
            annotator = f"{annotator}/" + frame.pop(schema.annotator).astype(str)
        frames.append(frame.rename(columns={schema.key: schema.keyed_by}).assign(annotator=annotator))
    rows = write_label_table(output, frames)
    say(f"{output}: {rows} rows of {len(files)} files")


def push(path: Path, repo_id: str, **how: object) -> None:
    """Publish labels on the Hub."""
    say(push_labels(path, repo_id, **how))


def check(file: str, data_dir: Path | None, class_names: str | None) -> None:
    """Say what a table holds, and read it as a training on some images would.

    Raises:
        UserError: the training would refuse it.
    """
    logging.basicConfig(level=logging.INFO)  # what the training would log
    for handler in logging.root.handlers:
        handler.setFormatter(PublicFormatter("%(message)s"))
    names = read_class_names(class_names) if class_names else None
    table = read_label_table(local_labels(file, file).path, names, file, missing=None)
    labels = label_names(table)
    samples = np.unique(np.array(table.keys, dtype=object).astype(str), return_inverse=True)[1]
    say(f"{file}: {len(table)} rows about {samples.max() + 1} samples, known by {table.keyed_by}; {table.kind}")
    if table.annotators is not None:
        agreement = agreement_of_annotators(samples, np.unique(labels, return_inverse=True)[1])
        agree = "" if agreement is None else f"; two of one sample agree in {100 * agreement:.1f} %"
        say(f"annotators: {len({*table.annotators})}{agree}")
    counts = Series(labels).value_counts()
    shares = (100 * counts / len(labels)).round(1)
    say(*concat([counts, shares], axis=1, keys=["labels", "%"]).head(SHOWN_CLASSES).to_string().splitlines())

    # brought to the images, as for training
    if data_dir is not None:
        keys = sample_keys(open_images(data_dir))
        known = names or table.class_names or [str(number) for number in range(table.num_classes)]
        found = labels_of_samples(table, keys, known, None, file)
        check_gaps(found.known, keys, None, file)
        say(f"{file}: can be trained on: labels of {int(found.known.sum())} of the {len(keys.values)} samples in "
            f"{len(known)} classes")
