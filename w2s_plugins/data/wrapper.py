"""What datasets that are made of another one have in common."""

import copy
from typing import TypeVar

from .map_style import AnyDataset, MapDataset, Transform

D = TypeVar("D", bound=AnyDataset)


class Wrapper(MapDataset):
    """A dataset made of another one; the transform is that one's own, and so are labels, if there are any."""

    def __init__(self, dataset: MapDataset):
        self.dataset = dataset
        self.unlabeled: bool = getattr(dataset, "unlabeled", False)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def transform(self) -> Transform | None:
        return self.dataset.transform

    @transform.setter
    def transform(  # pyright: ignore[reportIncompatibleVariableOverride]  # it is kept inside
        self,
        transform: Transform | None,
    ) -> None:
        self.dataset.transform = transform


def innermost(dataset: AnyDataset) -> AnyDataset:
    """Return the dataset that those around it are made of."""
    while isinstance(dataset, Wrapper):
        dataset = dataset.dataset
    return dataset


def without_transform(dataset: D) -> D:
    """Return a shallow copy of a dataset, down to the one that owns the transform, that can be given another one."""
    # down to the dataset that has the transform: a copy of the outermost alone would share it
    twin = copy.copy(dataset)
    if isinstance(twin, Wrapper):
        twin.dataset = without_transform(twin.dataset)
    return twin
