"""A dataset with other labels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data import MapDataset, Subset


class WithUnknownLabels(Subset):
    """Images without labels as samples whose classes are all unknown, for batches with samples of several classes.

    Args:
        dataset: images without labels.
        num_classes: C, of the labelled samples.
    """

    def __init__(self, dataset: MapDataset, num_classes: int):
        super().__init__(dataset, range(len(dataset)))
        self.row = torch.full((num_classes,), torch.nan)

    def __getitem__(self, index: int) -> tuple[object, Tensor]:
        return self.dataset[index][0], self.row


class Relabelled(Subset):
    """A dataset with other labels.

    Args:
        dataset: a map-style dataset.
        targets: its labels from now on, of several classes an image (N, C).
    """

    def __init__(self, dataset: MapDataset, targets: Sequence[int] | Tensor):
        # a part that is all of it, so that positions and files are found through it as through any part
        super().__init__(dataset, range(len(dataset)))
        self.targets = targets if isinstance(targets, Tensor) else list(targets)
        self.unlabeled = False  # whatever the dataset is

    def __getitem__(self, index: int) -> tuple[object, int | Tensor]:
        return self.dataset[index][0], self.targets[index]
