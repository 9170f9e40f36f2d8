"""What datasets that are made of another one have in common."""

from torch.utils.data import Dataset


class Wrapper(Dataset):
    """A dataset made of another one; the transform is that one's own.

    Args:
        dataset: map-style.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def transform(self) -> object:
        return self.dataset.transform

    @transform.setter
    def transform(self, transform: object) -> None:
        self.dataset.transform = transform
