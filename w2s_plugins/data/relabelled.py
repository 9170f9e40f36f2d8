"""A dataset with other labels, and where its samples stand in the whole split."""

from collections.abc import Sequence

from torch.utils.data import Dataset

from .class_splits import ClassSubset
from .slices import Subset


class Relabelled(Subset):
    """A dataset with other labels.

    Args:
        dataset: a map-style dataset.
        targets: its labels from now on.
    """

    def __init__(self, dataset: Dataset, targets: Sequence[int]):
        super().__init__(dataset, range(len(dataset)))
        self.targets = list(targets)

    def __getitem__(self, index: int) -> tuple:
        return self.dataset[index][0], self.targets[index]


def positions_in_split(dataset: Dataset, all_classes: bool = False) -> Sequence[int]:
    """Return where the samples of a part, however it was cut, are in the whole split.

    With ``--class-list`` that is the split of the listed classes or, with ``all_classes``, that of all.
    """
    if not isinstance(dataset, Subset) or (isinstance(dataset, ClassSubset) and not all_classes):
        return range(len(dataset))
    outer = positions_in_split(dataset.dataset, all_classes)
    return [outer[i] for i in dataset.indices]
