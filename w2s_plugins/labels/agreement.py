"""Two opinions of the samples of a data set compared: what a table says, and another one or the names of folders."""

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from ..data.keys import SampleKeys
from ..errors import UserError
from ..files import atomic_write
from .samples import TableLabels, most_likely
from .table import LabelTable

if TYPE_CHECKING:
    from pandas import DataFrame

MOST_NAMED = 40  # classes whose names a figure shows

Opinions = dict[int, str]  # position of a sample -> name of its class


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


def opinions(labels: TableLabels) -> Opinions:
    """Return what a table says of each sample that it has a label of, by name."""
    samples = labels.known.numpy().nonzero()[0]
    answers = labels.answers.numpy()[samples]
    classes = answers if answers.ndim == 1 else most_likely(answers)[0]
    return {int(sample): labels.manifest.class_names[place] for sample, place in zip(samples, classes)}


def folder_labels(keys: SampleKeys) -> Opinions:
    """Return the name of the folder of each sample. Raises `UserError` where images are in none."""
    folders = [PurePosixPath(name).parent.name for name in keys.values]
    if not all(folders):
        raise UserError(f"--against folders: {keys.values[folders.index('')]} is in no folder of a class")
    return dict(enumerate(folders))


def compare(ours: Opinions, theirs: Opinions, called: tuple[str, str]) -> tuple["DataFrame", float]:
    """Compare two opinions on the samples that both are about.

    Returns:
        The number of samples by what the other says (rows) and what is compared with it says (columns), over the
        classes that either says; and Cohen's kappa.

    Raises:
        UserError: there are none, or one has names for classes and the other numbers.
    """
    from pandas import DataFrame, crosstab
    from sklearn.metrics import cohen_kappa_score

    common = sorted(ours.keys() & theirs.keys())
    if not common:
        raise UserError(f"{called[0]} and {called[1]} have no sample in common")
    said = DataFrame({0: [ours[i] for i in common], 1: [theirs[i] for i in common]})
    names = sorted({*said[0], *said[1]}, key=lambda name: (len(name), name) if name.isdigit() else (0, name))
    for one, other in ((0, 1), (1, 0)):
        if said[one].str.isdigit().all() and not {*said[one]} & {*said[other]}:
            raise UserError(f"{called[one]} has numbers for classes, {called[other]} names such as "
                            f"'{said[other][0]}'; expected the same of both")
    counts = crosstab(said[1], said[0]).reindex(index=names, columns=names, fill_value=0)
    kappa = 1.0 if len(names) == 1 else float(cohen_kappa_score(said[1], said[0]))  # of one class it divides by 0
    return counts, kappa


def draw_confusion(counts: "DataFrame", kappa: float, called: tuple[str, str], path: Path) -> None:
    """Draw what one says where the other says something, as shares of the rows."""
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay

    side = min(14.0, 3.5 + 0.3 * len(counts))
    figure = Figure(figsize=(side + 1, side), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    shares = 100 * counts.to_numpy() / counts.sum(axis=1).clip(lower=1).to_numpy()[:, None]
    ConfusionMatrixDisplay(shares).plot(
        cmap="Blues", ax=axes, include_values=len(counts) <= 20, values_format=".0f", im_kw=dict(vmin=0, vmax=100))
    shown = [name if len(name) <= 24 else f"{name[:23]}…" for name in counts.index]
    shown = shown if len(shown) <= MOST_NAMED else []
    axes.set_xticks(range(len(shown)), shown, rotation=90, parse_math=False)
    axes.set_yticks(range(len(shown)), shown, parse_math=False)
    axes.set(xlabel=f"label by {called[0]}", ylabel=f"label by {called[1]}, % of the row",
             title=f"{counts.to_numpy().sum()} samples, kappa {kappa:.2f}")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")
