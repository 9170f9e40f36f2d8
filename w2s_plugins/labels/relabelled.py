"""A dataset with other labels."""

from collections.abc import Sequence

from torch.utils.data import Dataset

from ..data.slices import Subset


class Relabelled(Subset):
    """A dataset with other labels.

    Args:
        dataset: a map-style dataset.
        targets: its labels from now on.
    """

    def __init__(self, dataset: Dataset, targets: Sequence[int]):
        super().__init__(dataset, range(len(dataset)))
        self.targets, self.unlabeled = list(targets), False

    def __getitem__(self, index: int) -> tuple:
        return self.dataset[index][0], self.targets[index]
