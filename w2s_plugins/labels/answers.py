"""What a model says of samples as a table of labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import UserError
from ..files import atomic_write
from ..target_kind import ONE_CLASS, TargetKind
from .store import LabelReader, Manifest, read_keys
from .table import NESTED, WITH_ROLE, plain_name
from .table_writer import Columns

TRUTH = "truth"  # the column of true labels beside answers
RESERVED = {TRUTH, *NESTED, *WITH_ROLE}  # a column may be called so, or begin so


@dataclass(frozen=True)
class TableForm:
    """What a table says of a sample beside its label and the probability of that.

    Args:
        top_k: the K most likely classes with their probabilities; None leaves them out.
        every: the probability of every class, in a column of its own.
    """

    top_k: int | None = None
    every: bool = False


def answer_columns(
    keys: Sequence[str | int],
    keyed_by: str,
    probabilities: np.ndarray,
    class_names: Sequence[str] | None,
    form: TableForm = TableForm(),
    target_kind: TargetKind = ONE_CLASS,
) -> Columns:
    """Return the columns of a table.

    Args:
        keys: (n,) of the samples.
        keyed_by: what they are, see `SampleKeys`.
        probabilities: (n, C) in float32.
        class_names: names of the classes; None for numbers.
        form: which columns there are.
        target_kind: what a label is.
    """
    # what every table has, then what was asked for
    names = [str(name) for name in class_names or range(probabilities.shape[1])]
    columns: dict[str, Sequence | np.ndarray] = {
        key_column(keyed_by): list(keys),
        **target_kind.columns(probabilities, names),
    }
    if form.top_k is not None:
        columns["top_k"] = top_pairs(names, probabilities, form.top_k)
    # last, since there may be a thousand of these; a class may be called as another column is
    if form.every:
        clash = any(plain_name(name.strip()).partition(".")[0] in RESERVED for name in names)
        prefix = f"{NESTED[0]}." if clash else ""
        columns |= {f"{prefix}{name}": probabilities[:, i] for i, name in enumerate(names)}
    return columns


def top_pairs(names: Sequence[str], probabilities: np.ndarray, count: int) -> list[str]:
    """Return the most likely classes of each sample with their probabilities (n, C), ``cat:0.9;dog:0.05``; those of
    which nothing is known, NaN, are left out.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :count]
    return [
        ";".join(f"{names[i]}:{row[i]!s}" for i in best if not np.isnan(row[i]))
        for best, row in zip(order, probabilities)
    ]


def key_column(keyed_by: str) -> str:
    """Return what the column is called that has the keys of samples, see `SampleKeys`."""
    return "filename" if keyed_by == "filename" else "id"


def write_arrays(folder: Path, output: Path) -> Manifest:
    """Write what a folder of labels says as a table, an npz that holds the logits to the last bit; return its manifest.

    Raises:
        UserError: it is damaged, or of no use to others.
    """
    # a table is about images, and in terms of classes
    reader = LabelReader(folder)
    manifest = reader.manifest
    if manifest.kind == "features":
        raise UserError(f"{folder}: holds features, not labels")
    # the views of a student are drawn for its seed and its augmentation
    if manifest.views > 1 or manifest.seen.get("student_views"):
        raise UserError(
            f"{folder}: its answers are about the views of one student, which others do not see; expected "
            "answers about images: --teacher-targets cached"
        )

    # samples that nobody could be asked about are left out
    rows = reader.has(torch.arange(manifest.num_samples)).nonzero().flatten()
    keys = np.array(read_keys(folder, manifest))[rows.numpy()]
    arrays = {key_column(manifest.keyed_by): keys, "logits": torch.cat(reader.parts)[rows].numpy()}
    if manifest.class_names is not None:
        arrays["class_names"] = np.array(manifest.class_names)
    with atomic_write(output) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]  # none is called allow_pickle
    return manifest
