"""Probabilities of samples as the columns of a table of labels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from .store import Manifest, read_keys, read_part
from .table import ROLES

KEY_COLUMNS = {"filename": "filename", "index": "id"}


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
    taken = {name for names in ROLES.values() for name in names}
    odd = [name for name in class_names or () if name.strip().lower() in taken]
    if form.every and odd:
        raise UserError(f"--all: the class '{odd[0]}' has the name of another column; take --top-k {num_classes}")


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
    names: Sequence = class_names or range(probabilities.shape[1])
    best = probabilities.argmax(axis=1)
    columns = {
        KEY_COLUMNS[keyed_by]: list(keys),
        "label": [names[i] for i in best],
        "confidence": probabilities.max(axis=1)}
    if form.top_k is not None:
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :form.top_k]
        columns["top_k"] = [[[names[i], float(str(row[i]))] for i in places]
                            for places, row in zip(order, probabilities)]
    if form.every:
        columns |= {str(name): probabilities[:, i] for i, name in enumerate(names)}
    return columns


def folder_columns(folder: Path, manifest: Manifest, form: TableForm = TableForm()) -> Iterator[dict[str, Sequence]]:
    """Yield the columns of the first view of each part of a folder of labels. Raises `UserError` for a damaged one."""
    keys = read_keys(folder, manifest)
    for part in manifest.parts(0):
        tensors, about = read_part(folder, manifest, part)
        missing = set(about.get("missing", ()))
        rows = [row for row in range(part.first, part.stop) if row not in missing]
        if not rows:
            continue
        if manifest.kind == "probabilities":  # as they are, not by their logarithms
            shares = tensors["probabilities"].float()
        else:
            shares = manifest.decode(tensors).softmax(dim=1)
        own = shares[[row - part.first for row in rows]].numpy()
        yield answer_columns([keys[row] for row in rows], manifest.keyed_by, own, manifest.class_names, form)
