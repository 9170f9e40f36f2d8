"""What datasets that are made of another one have in common."""

import copy

from torch.utils.data import Dataset


class Wrapper(Dataset):
    """A dataset made of another one; the transform is that one's own, and so are labels, if there are any."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.unlabeled = getattr(dataset, "unlabeled", False)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def transform(self) -> object:
        return self.dataset.transform

    @transform.setter
    def transform(self, transform: object) -> None:
        self.dataset.transform = transform


def without_transform(dataset: Dataset) -> Dataset:
    """Return a shallow copy of a dataset, down to the one that owns the transform, that can be given another one."""
    # down to the dataset that has the transform
    twin = copy.copy(dataset)
    if "transform" not in vars(twin) and hasattr(twin, "dataset"):
        twin.dataset = without_transform(twin.dataset)
    return twin
