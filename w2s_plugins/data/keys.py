"""Keys of samples: what names one on any machine, in any order, and in whatever part of the data it is opened."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch.utils.data import Dataset

from .class_splits import ClassSubset
from .slices import Subset
from .unreadable import UnreadableSample

PROBES = 64  # samples whose pixels identify the data


@dataclass(frozen=True)
class SampleKeys:
    """The keys of the samples of a dataset, in its order.

    Args:
        by: ``filename``, relative to the folder of the split or within its archive, or ``index``, the position in the
            whole split.
        values: one key a sample.
        positions: of samples that are known by files, in the whole split, for those who count them; or None.
    """

    by: str
    values: Sequence[str] | Sequence[int]
    positions: Sequence[int] | None = None

    @cached_property
    def text(self) -> str | None:
        """The keys as JSON; None where they count the samples. File names that are not UTF-8 come through it too."""
        plain = self.by == "index" and all(i == key for i, key in enumerate(self.values))
        return None if plain else json.dumps(list(self.values), indent=0)

    @cached_property
    def sha256(self) -> str | None:
        """Hash of `text`."""
        return None if self.text is None else hashlib.sha256(self.text.encode()).hexdigest()


def sample_keys(dataset: Dataset) -> SampleKeys:
    """Return the keys of a dataset, or of a part of one."""
    # a file keeps its name in whatever part it is opened; other samples have a place only
    names, positions = file_names(dataset), positions_in_split(dataset, all_classes=True)
    return SampleKeys("filename", names, positions) if names else SampleKeys("index", positions)


def whole_split(dataset: Dataset) -> Dataset:
    """Return the split that a dataset is a part of."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset


def file_names(dataset: Dataset) -> list[str]:
    """Return the file of every sample, relative to the folder of the split; none where samples are not in files."""
    return dataset.filenames() if hasattr(getattr(whole_split(dataset), "reader", None), "samples") else []


def positions_in_split(dataset: Dataset, all_classes: bool = False) -> Sequence[int]:
    """Return where the samples of a part, however it was cut, are in the whole split.

    With ``--class-list`` that is the split of the listed classes or, with ``all_classes``, that of all.
    """
    if not isinstance(dataset, Subset) or (isinstance(dataset, ClassSubset) and not all_classes):
        return range(len(dataset))
    # a part of a part: through all of them to the whole
    outer, indices = positions_in_split(dataset.dataset, all_classes), dataset.indices
    return [outer[i] for i in indices]


def data_identity(dataset: Dataset, fingerprint: str | None) -> dict[str, str | None]:
    """Identify a training set: names and labels of its samples (``fingerprint``), pixels of some of them.

    Args:
        dataset: map-style; its transform is put back afterwards.
        fingerprint: that of `describe`, None where the dataset does not tell its labels.
    """
    # the stored pixels of a few, evenly spread
    transform, dataset.transform = dataset.transform, None
    pixels = hashlib.sha256()
    try:
        for index in np.linspace(0, len(dataset) - 1, min(PROBES, len(dataset))).astype(int).tolist():
            try:
                image = np.asarray(dataset[index][0])
            except UnreadableSample:  # whoever needs its pixels says so
                image = np.empty(0)
            pixels.update(f"{image.shape}".encode() + image.tobytes())
    finally:
        dataset.transform = transform
    return dict(fingerprint=fingerprint, pixels=pixels.hexdigest())
