"""What ``python -m w2s_plugins.labels`` does; the arguments are its flags."""

import logging
from pathlib import Path

from ..data.keys import sample_keys
from ..data.unlabeled import open_images
from ..errors import PublicFormatter, say
from .answers import write_arrays
from .names import read_class_names
from .published import local_labels, push_labels
from .samples import check_gaps, labels_of_samples
from .table import read_label_table


def export(folder: Path, output: Path) -> None:
    """Write a folder of labels as a table."""
    manifest = write_arrays(folder, output)
    say(f"{output}: logits of {manifest.num_samples} samples in {manifest.num_classes} classes")


def push(path: Path, repo_id: str, **how: object) -> None:
    """Publish labels on the Hub."""
    say(push_labels(path, repo_id, **how))


def check(file: str, data_dir: str | None, class_names: str | None) -> None:
    """Say what a table holds, and read it as a training on some images would.

    Raises:
        UserError: the training would refuse it.
    """
    logging.basicConfig(level=logging.INFO)  # what the training would log
    for handler in logging.root.handlers:
        handler.setFormatter(PublicFormatter("%(message)s"))

    # what is in it
    names = read_class_names(class_names) if class_names else None
    table = read_label_table(local_labels(file, file).path, names, file, missing=None)
    people = 1 if table.annotators is None else len({*table.annotators})
    say(f"{file}: {len(table)} rows about {len({*table.keys})} samples, known by {table.keyed_by}, of {people} "
        f"annotator(s); {table.kind}")

    # brought to the images, as for training
    if data_dir is not None:
        keys = sample_keys(open_images(data_dir))
        known = names or table.class_names or [str(number) for number in range(table.num_classes)]
        found = labels_of_samples(table, keys, known, None, file)
        check_gaps(found.known, keys, None, file)
        say(f"{file}: can be trained on: labels of {int(found.known.sum())} of the {len(keys.values)} samples in "
            f"{len(known)} classes")
