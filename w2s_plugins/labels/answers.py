"""Probabilities of samples as the columns of a table of labels."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import UserError
from .store import LabelReader, read_keys
from .table import ROLES

ROWS = 8192  # of a stored folder that are in memory at a time


@dataclass(frozen=True)
class TableForm:
    """What a table says of a sample beside its label and the probability of that.

    Args:
        top_k: the K most likely classes with their probabilities; None leaves them out.
        every: the probability of every class, in a column of its own.
    """

    top_k: int | None = None
    every: bool = False


def check_form(form: TableForm, class_names: Sequence[str] | None, num_classes: int) -> None:
    """Raise a `UserError` when a table cannot have this form for these classes."""
    if form.top_k is not None and form.top_k > num_classes:
        raise UserError(f"--top-k {form.top_k}: there are {num_classes} classes; expected 1 to {num_classes}")
    odd = next((name for name in class_names or () if name.strip().lower() in ROLES), None)
    if form.every and odd is not None:
        raise UserError(f"--all: the class '{odd}' has the name of another column; take --top-k {num_classes}")


def answer_columns(
        keys: Sequence[str] | Sequence[int],
        keyed_by: str,
        probabilities: np.ndarray,
        class_names: Sequence[str] | None,
        form: TableForm = TableForm(),
) -> dict[str, Sequence]:
    """Return the columns of a table.

    Args:
        keys: (n,) of the samples.
        keyed_by: what they are, see `SampleKeys`.
        probabilities: (n, C) in float32.
        class_names: names of the classes; None for numbers.
        form: which columns there are.
    """
    names = [str(name) for name in class_names or range(probabilities.shape[1])]
    columns = {
        "filename" if keyed_by == "filename" else "id": list(keys),
        "label": [names[i] for i in probabilities.argmax(axis=1)],
        "confidence": probabilities.max(axis=1)}
    if form.top_k is not None:
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :form.top_k]
        columns["top_k"] = [_pairs([names[i] for i in best], row[best]) for best, row in zip(order, probabilities)]
    if form.every:
        columns |= {name: probabilities[:, i] for i, name in enumerate(names)}
    return columns


def _pairs(names: Sequence[str], shares: np.ndarray) -> str:
    """Return pairs as one text, ``cat:0.9;dog:0.05``, or as JSON where that would be unclear."""
    if any(";" in name or name.startswith("[") for name in names):
        return json.dumps([[name, float(str(share))] for name, share in zip(names, shares)], ensure_ascii=False)
    return ";".join(f"{name}:{share!s}" for name, share in zip(names, shares))


def folder_columns(folder: Path, form: TableForm = TableForm()) -> Iterator[dict[str, Sequence]]:
    """Yield the columns of the first view of a folder of labels, some rows at a time. Raises `UserError` for a damaged
    one, or for features.
    """
    reader = LabelReader(folder)
    manifest = reader.manifest
    if manifest.kind == "features":
        raise UserError(f"{folder}: holds features, not labels")
    check_form(form, manifest.class_names, manifest.num_classes)
    all_keys, index = read_keys(folder, manifest), torch.arange(manifest.num_samples)
    for rows in index[reader.has(index)].split(ROWS):
        keys = [all_keys[row] for row in rows.tolist()]
        shares = reader(rows, torch.device("cpu")).softmax(dim=1).numpy()
        yield answer_columns(keys, manifest.keyed_by, shares, manifest.class_names, form)
