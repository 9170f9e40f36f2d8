"""Two opinions of the samples of a data set compared: what a table says, and another one or the names of folders."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from ..data.keys import SampleKeys
from ..errors import UserError
from ..files import atomic_write
from .samples import TableLabels, most_likely
from .table import LabelTable

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


@dataclass(frozen=True)
class Comparison:
    """Two opinions of the same samples.

    Args:
        names: the classes that either says.
        confusion: (C, C) samples by what the other says (rows) and what is compared with it says (columns).
        kappa: Cohen's.
    """

    names: list[str]
    confusion: np.ndarray
    kappa: float

    @property
    def samples(self) -> int:
        return int(self.confusion.sum())

    @property
    def agreement(self) -> float:
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def ours(self) -> Counter:
        return Counter(dict(zip(self.names, self.confusion.sum(axis=0).tolist())))

    @property
    def theirs(self) -> Counter:
        return Counter(dict(zip(self.names, self.confusion.sum(axis=1).tolist())))

    def confused(self, count: int) -> Iterator[tuple[str, str, int]]:
        """Yield the most frequent disagreements: what we say, what they say, how often."""
        others = self.confusion - np.diag(np.diag(self.confusion))
        for place in np.argsort(-others, axis=None, kind="stable")[:count]:
            row, column = np.unravel_index(place, others.shape)
            if others[row, column]:
                yield self.names[column], self.names[row], int(others[row, column])


def compare(ours: Opinions, theirs: Opinions, called: tuple[str, str]) -> Comparison:
    """Compare two opinions on the samples that both are about.

    Raises:
        UserError: there are none, or one has names for classes and the other numbers.
    """
    from sklearn.metrics import cohen_kappa_score, confusion_matrix

    common = sorted(ours.keys() & theirs.keys())
    if not common:
        raise UserError(f"{called[0]} and {called[1]} have no sample in common")
    pairs = [theirs[i] for i in common], [ours[i] for i in common]
    names = sorted({*pairs[0], *pairs[1]}, key=lambda name: (len(name), name) if name.isdigit() else (0, name))
    for one, other in ((0, 1), (1, 0)):
        if all(name.isdigit() for name in pairs[one]) and not {*pairs[one]} & {*pairs[other]}:
            raise UserError(f"{called[1 - one]} has numbers for classes, {called[1 - other]} names such as "
                            f"'{pairs[other][0]}'; expected the same of both")
    if len(names) == 1:
        return Comparison(names, np.array([[len(common)]]), 1.0)  # scikit-learn divides by 0
    return Comparison(names, confusion_matrix(*pairs, labels=names), float(cohen_kappa_score(*pairs, labels=names)))


def draw_confusion(found: Comparison, called: tuple[str, str], path: Path) -> None:
    """Draw what one says where the other says something, as shares of the rows."""
    from matplotlib.figure import Figure

    count = len(found.names)
    side = min(14.0, 3.5 + 0.3 * count)
    figure = Figure(figsize=(side + 1, side), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    shares = found.confusion / np.maximum(found.confusion.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    axes.set(xlabel=f"label by {called[0]}", ylabel=f"label by {called[1]}", title=f"{found.samples} samples, "
             f"agreement {100 * found.agreement:.1f} %, kappa {found.kappa:.2f}")
    if count <= MOST_NAMED:
        shown = [name if len(name) <= 24 else f"{name[:23]}…" for name in found.names]
        axes.set_xticks(range(count), shown, rotation=90 if max(map(len, shown)) > 2 else 0, parse_math=False)
        axes.set_yticks(range(count), shown, parse_math=False)
        for row, column in np.argwhere(found.confusion if count <= 20 else np.zeros((1, 1))):
            axes.text(column, row, f"{found.confusion[row, column]}", ha="center", va="center", fontsize=7,
                      color="white" if shares[row, column] > 0.5 else "black")
    figure.colorbar(image, label="% of the row", shrink=0.8)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")
