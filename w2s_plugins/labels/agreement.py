"""Two opinions of the samples of a data set compared: what a table says, and another one or the names of folders."""

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from ..data.keys import SampleKeys
from ..errors import UserError
from .samples import TableLabels, most_likely
from .table import LabelTable

if TYPE_CHECKING:
    from pandas import DataFrame, Series


def label_names(table: LabelTable) -> tuple[list[str], np.ndarray]:
    """Return the most likely class of each row, by name, and its probability, which is 1 where nothing says it."""
    if table.kind == "hard":
        best = table.answers
        sure = np.ones(len(table), np.float32) if table.confidence is None else table.confidence
    else:
        shares = table.answers
        if table.kind == "logits":
            shares = np.exp(shares - shares.max(axis=1, keepdims=True))
            shares /= shares.sum(axis=1, keepdims=True)
        best = most_likely(shares)[0]
        sure = shares[np.arange(len(best)), best]
    names = table.class_names
    return [names[i] if names else str(i) for i in best], sure


def opinions(labels: TableLabels) -> "Series":
    """Return what a table says of each sample that it has a label of, by name; the index has the positions."""
    from pandas import Series

    samples = labels.known.numpy().nonzero()[0]
    names = labels.manifest.class_names
    return Series([names[i] for i in labels.classes()[samples]], samples, dtype=object)


def folder_labels(keys: SampleKeys) -> "Series":
    """Return the name of the folder of each sample. Raises `UserError` where images are in none."""
    from pandas import Series

    folders = [PurePosixPath(name).parent.name for name in keys.values]
    if not all(folders):
        raise UserError(f"--against folders: {keys.values[folders.index('')]} is in no folder of a class")
    return Series(folders, dtype=object)


def compare(ours: "Series", theirs: "Series", called: tuple[str, str]) -> tuple["DataFrame", float]:
    """Compare two opinions on the samples that both are about.

    Returns:
        The number of samples by what the other says (rows) and what is compared with it says (columns), over the
        classes that either says; and Cohen's kappa.

    Raises:
        UserError: there are none, or one has names for classes and the other numbers.
    """
    from pandas import concat, crosstab
    from sklearn.metrics import cohen_kappa_score

    said = concat([ours, theirs], axis=1, join="inner", keys=[0, 1])
    if not len(said):
        raise UserError(f"{called[0]} and {called[1]} have no sample in common")
    names = sorted({*said[0], *said[1]})
    for one, other in ((0, 1), (1, 0)):
        if said[one].str.isdigit().all() and not {*said[one]} & {*said[other]}:
            raise UserError(f"{called[one]} has numbers for classes, {called[other]} names such as "
                            f"'{said[other].iloc[0]}'; expected the same of both")
    counts = crosstab(said[1], said[0]).reindex(index=names, columns=names, fill_value=0)
    kappa = 1.0 if len(names) == 1 else float(cohen_kappa_score(said[1], said[0]))  # of one class it divides by 0
    return counts, kappa
