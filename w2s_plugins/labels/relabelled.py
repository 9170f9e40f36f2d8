"""A dataset with other labels."""

from collections.abc import Sequence

from ..data import MapDataset, Subset


class Relabelled(Subset):
    """A dataset with other labels.

    Args:
        dataset: a map-style dataset.
        targets: its labels from now on.
    """

    def __init__(self, dataset: MapDataset, targets: Sequence[int]):
        # a part that is all of it, so that positions and files are found through it as through any part
        super().__init__(dataset, range(len(dataset)))
        self.targets = list(targets)
        self.unlabeled = False  # whatever the dataset is

    def __getitem__(self, index: int) -> tuple[object, int]:
        return self.dataset[index][0], self.targets[index]
