"""Label noise on a training split: drawn by rule, or the labels of a table.

The noise of a sample is a function of its position in the whole split, of the split's labels and of a seed, so that
teacher and student, every slice of the split and every process have the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from ..data import AnyDataset, MapDataset
from ..data.datasets import class_names_of, known_labels, labels_of, labels_unknown
from ..data.keys import positions_in_split, sample_keys
from ..errors import UserError
from ..files import file_sha256
from ..no_label import NO_LABEL
from ..settings.forms import parse_noise
from .relabelled import Relabelled
from .samples import labels_of_samples
from .table import TableFile, file_of, open_table

LARGEST_MATRIX = 100  # classes up to which the confusion matrix is written out

# What is taken for what on CIFAR-10 (Patrini et al. 2017, 1609.03683). On CIFAR-100 a class is taken for the next one
# of its superclass, in the order of the class indices, and the last for the first.
CIFAR10_MAP = {
    "truck": "automobile",
    "bird": "airplane",
    "deer": "horse",
    "cat": "dog",
    "dog": "cat",
}
CIFAR100_SUPERCLASSES = Path(__file__).with_name("cifar100_superclasses.txt")
CLEAN_COLUMNS = ("clean", "clean_label")


@dataclass(frozen=True)
class LabelNoise:
    """The labels that a training split was given, beside its own.

    Args:
        kind: what was asked for, e.g. ``symmetric:0.2``.
        labels: label of every sample of the whole split.
        clean: the dataset's own labels.
        num_classes: C.
        source: seed or table that the labels come from.
    """

    kind: str
    labels: list[int]
    clean: list[int]
    num_classes: int
    source: dict[str, object] = field(default_factory=dict)

    def apply(self, dataset: MapDataset) -> Relabelled:
        """Return a part of the split with the given labels."""
        return Relabelled(dataset, [self.labels[i] for i in positions_in_split(dataset)])

    def clean_labels(self, dataset: AnyDataset) -> list[int]:
        """Return the clean labels of a part of the split."""
        return [self.clean[i] for i in positions_in_split(dataset)]

    def record(self, dataset: AnyDataset) -> dict[str, Any]:
        """Return kind, source, rate and confusion of the noise on a part of the split.

        ``rate`` is the share of samples whose given label is not the clean one. ``confusion`` counts samples, a row a
        clean class, a column a given class; None for more than `LARGEST_MATRIX` classes.
        """
        from sklearn.metrics import confusion_matrix

        # of a thousand classes the matrix would be larger than the rest of the record
        clean, given = np.array(self.clean_labels(dataset)), np.array(labels_of(dataset))
        matrix = None
        if self.num_classes <= LARGEST_MATRIX:
            matrix = confusion_matrix(clean, given, labels=range(self.num_classes)).tolist()
        changed = int((clean != given).sum())
        return dict(
            kind=self.kind,
            **self.source,
            samples=len(clean),
            changed=changed,
            rate=changed / len(clean),
            confusion=matrix,
        )

    def to_csv(self) -> str:
        """Return the labels of the whole split as text: index, given, clean."""
        from pandas import DataFrame

        return DataFrame({"given": self.labels, "clean": self.clean}).to_csv(
            index_label="index", lineterminator="\n"
        )


def create_label_noise(text: str, dataset: AnyDataset, *, seed: int = 0) -> LabelNoise:
    """Give the samples of a whole training split the labels that ``--label-noise`` describes.

    - ``symmetric:R``: a random share R of the samples gets a label drawn uniformly from all classes, their own
      included.
    - ``asymmetric:R``: each sample of a class that is mapped to another one gets that class with probability R, on
      CIFAR.
    - ``pairflip:R``: the same, where the map takes every class to the next one and the last to the first (Han et al.
      2018, 1804.06872).
    - ``labels:FILE[#COLUMN]``: those of a table, see `given_labels`.

    With one seed, the samples that noise of a low ratio changes are among those that a higher one does.

    Args:
        text: ``--label-noise``.
        dataset: the whole split, map-style.
        seed: seed of the draws.

    Raises:
        UserError: labels that cannot be known in advance, unknown classes, or a file that does not fit.
    """
    # the labels that the split has
    kind, value = parse_noise(text)
    if isinstance(dataset, IterableDataset):
        raise labels_unknown("--label-noise")
    clean = known_labels(dataset, "--label-noise")
    names = class_names_of(dataset)
    size = len(names) if names else max(clean) + 1

    # those of a table
    if isinstance(value, str):
        given, source = given_labels(value, dataset, clean, names or [*map(str, range(size))])
        return LabelNoise(f"labels:{Path(value).name}", given, clean, size, source)

    # or drawn for the whole split, whatever part of it is trained on
    # the legacy generator: NumPy promises that its stream stays the same
    rng, labels = np.random.RandomState(seed), np.array(clean)
    if kind == "symmetric":
        # as many samples as the ratio says, of which some get their own label again
        order = rng.permutation(len(labels))
        drawn = rng.randint(size, size=len(labels), dtype=np.int64)
        chosen = order[: int(value * len(labels) + 0.5)]
        labels[chosen] = drawn[chosen]
    else:
        mapping = [*range(1, size), 0] if kind == "pairflip" else asymmetric_map(names, size)
        labels = np.where(rng.random_sample(len(labels)) < value, np.array(mapping)[labels], labels)
    return LabelNoise(text, labels.tolist(), clean, size, {"seed": seed})


def asymmetric_map(names: Sequence[str] | None, size: int) -> list[int]:
    """Return the class that each class is taken for, as published for CIFAR-10 and CIFAR-100.

    Raises:
        UserError: no map is known for these classes.
    """
    # CIFAR-10 is known by its classes, in whatever order they are
    names = list(names or ())
    if size == 10 and {*CIFAR10_MAP, *CIFAR10_MAP.values()} <= set(names):
        return [names.index(CIFAR10_MAP.get(name, name)) for name in names]
    groups = [
        group.split() for group in CIFAR100_SUPERCLASSES.read_text(encoding="utf-8").splitlines()
    ]
    published = sorted(name for group in groups for name in group)
    # CIFAR-100 is known by position: copies of the dataset spell single names in their own ways
    if size != 100 or sum(a == b for a, b in zip(names, published)) < 95:
        raise UserError(
            "--label-noise asymmetric: the map of classes is known for CIFAR-10 and CIFAR-100 only; "
            "expected pairflip:R, or labels:FILE with labels that you have drawn"
        )
    follows = {group[i - 1]: group[i] for group in map(sorted, groups) for i in range(len(group))}
    return [published.index(follows[name]) for name in published]


def given_labels(
    path: str, dataset: MapDataset, clean: Sequence[int], names: Sequence[str]
) -> tuple[list[int], dict[str, object]]:
    """Return the label of every sample of a split in a table (`table`), and where they come from.

    Raises:
        UserError: it cannot be read, has no label of some sample, or clean labels that are not those of the data: then
            it is for other data, or another order of the samples.
    """
    flag, keys = f"--label-noise labels:{path}", sample_keys(dataset)
    table_file = open_table(Path(path), flag, may_skip=False)
    file, _ = file_of(table_file.path)

    def labels_in(source: TableFile) -> np.ndarray:
        return labels_of_samples(source.labels(names), keys, names, None, flag).classes()

    # all samples need one
    given = labels_in(table_file)
    absent = given == NO_LABEL
    if absent.any():
        raise UserError(
            f"{flag}: {absent.sum()} of {len(clean)} training samples are missing (first: "
            f"{keys.values[int(absent.argmax())]}); expected one label for each sample of the whole "
            "training split"
        )

    # a file without names of samples may be in another order, which only its clean labels would show
    for name in {*CLEAN_COLUMNS} & {*table_file.frame.columns}:
        odd = labels_in(replace(table_file, path=Path(f"{file}#{name}"))) != clean
        if odd.any():
            raise UserError(
                f"{flag}: its column {name} differs from the dataset's labels in {odd.sum()} of "
                f"{len(clean)} samples (first: {odd.argmax()}); it is for other data or another order"
            )
    return given.tolist(), dict(file=Path(path).name, sha256=file_sha256(file))
