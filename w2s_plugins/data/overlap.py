"""Which samples two parts of the data have in common, however each was opened and cut."""

import os

from torch.utils.data import Dataset, IterableDataset

from .datasets import describe
from .keys import positions_in_split, whole_split


def sample_names(dataset: Dataset) -> set[str] | None:
    """Return a name for every sample of a part of the data, or None for a stream.

    Image files are named by their paths, other samples by their split's fingerprint and their position in it, so that
    two names of one split do not make two sets of samples of it.
    """
    # parts of one split share its samples
    whole = whole_split(dataset)
    if isinstance(whole, IterableDataset):
        return None
    # files have names that no other split has
    positions, reader = positions_in_split(dataset, all_classes=True), getattr(whole, "reader", None)
    if hasattr(reader, "samples"):
        root, names = os.path.realpath(getattr(reader, "root", None) or ""), whole.filenames()
        return {os.path.join(root, names[i]) for i in positions}
    # others are known by their split
    fingerprint = describe(whole, "", "").fingerprint
    return None if fingerprint is None else {f"{fingerprint}:{i}" for i in positions}


def count_shared(one: Dataset, other: Dataset) -> int:
    """Return how many samples two parts of the data share, 0 where that cannot be known."""
    names = sample_names(one), sample_names(other)
    return 0 if None in names else len(names[0] & names[1])
