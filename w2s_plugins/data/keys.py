"""What names a sample on any machine, in any order, and in whatever part of the data it is opened; what identifies a
split; and which samples two parts of the data have in common, however each was opened and cut.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from timm.data.readers.reader import Reader
from torch.utils.data import Dataset, IterableDataset
from torchvision.datasets import DatasetFolder

from ..cli.forms import UNLABELED
from .class_splits import ClassSubset
from .datasets import class_names_of, is_unlabeled, labels_of, num_classes_of
from .readers import Place
from .slices import Subset
from .unreadable import UnreadableSample

PROBES = 64  # samples whose pixels identify the data
PROBED_BYTES = 65_536  # of a file, at its beginning


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


@dataclass(frozen=True)
class DataInfo:
    """What identifies one split: its size, class count where known, and a fingerprint of its samples."""

    name: str
    split: str
    num_samples: int
    num_classes: int | None
    fingerprint: str | None


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


def describe(dataset: Dataset, name: str, split: str) -> DataInfo:
    """Return the identity of a split, for the record of a run.

    Its fingerprint is made of the names, labels and sizes of the samples, and of how `PROBES` of their files begin: to
    read all of them takes too long. Labels count by the names of their classes, so it does not matter in which order a
    run has these.
    """
    labels, unlabeled, num_classes = labels_of(dataset), is_unlabeled(dataset), num_classes_of(dataset)
    class_names = class_names_of(dataset) or []
    known = labels is not None or unlabeled
    samples = _text_of_samples(dataset) if known else ""
    size = 0 if isinstance(dataset, IterableDataset) else len(dataset)
    # where the folder lies says nothing of images without labels
    if unlabeled:
        name = split = UNLABELED
    # labels count by the names of their classes
    if labels and len(set(class_names)) == len(class_names) > max(labels):
        labels = [class_names[label] for label in labels]
    content = f"{name}|{size}|{','.join(map(str, labels or ()))}{samples}"
    digest = hashlib.sha256(os.fsencode(content)).hexdigest()[:16] if known else None
    return DataInfo(name or "folder", split, size, num_classes, digest)


def fingerprint_of_samples(dataset: Dataset, name: str) -> str | None:
    """Return the fingerprint of a part of the data, whatever order its classes were put in, and what they were called.

    Args:
        dataset: a split, or a part of one.
        name: of the dataset, empty for folders.
    """
    whole = whole_split(dataset)
    part = whole if whole is dataset else Subset(whole, positions_in_split(dataset, all_classes=True))
    return describe(part, name, "").fingerprint


def _text_of_samples(dataset: Dataset) -> str:
    """Return samples by name and size where they are files, else by their places in the whole."""
    whole = whole_split(dataset)
    places = None if whole is dataset else positions_in_split(dataset, all_classes=True)
    files = None if hasattr(whole, "identity") else _files_of(whole)
    if files is None:
        return f"{getattr(whole, 'identity', '')} {'' if places is None else places}"
    text = "|".join(files if places is None else [files[place] for place in places])
    return f"{text}|{_bytes_of_some(whole, range(len(files)) if places is None else places)}"


def _bytes_of_some(dataset: Dataset, places: Sequence[int]) -> str:
    """Return a hash of how a few files begin, evenly spread over those at some places; empty if they cannot be read so.
    """
    reader = getattr(dataset, "reader", None)
    owner = reader if hasattr(reader, "samples") else getattr(dataset, "dataset", None)
    if not hasattr(owner, "samples"):
        return ""
    content = hashlib.sha256()
    for number in np.linspace(0, len(places) - 1, min(PROBES, len(places))).astype(int).tolist():
        content.update(_first_bytes(owner, places[number]))
    return content.hexdigest()


def _first_bytes(owner: Reader | DatasetFolder, index: int) -> bytes:
    """Return how the file of a sample begins; nothing if it cannot be read."""
    try:
        if isinstance(owner, DatasetFolder):
            with open(owner.samples[index][0], "rb") as file:
                return file.read(PROBED_BYTES)
        with owner[index][0] as file:
            return file.read(PROBED_BYTES)
    except (OSError, ValueError, tarfile.TarError):
        return b""


def _files_of(dataset: Dataset) -> list[str] | None:
    """Return name and size of the file of every sample; None where samples are not in files."""
    # readers of timm, folders of torchvision, or what names its files itself
    of_torchvision = getattr(dataset, "dataset", None)
    if hasattr(getattr(dataset, "reader", None), "samples"):
        sizes, names = _sizes_of(dataset.reader), dataset.filenames()
    elif isinstance(of_torchvision, DatasetFolder):
        sizes = _sizes_of(of_torchvision)
        names = [os.path.relpath(path, of_torchvision.root) for path, _ in of_torchvision.samples]
    else:
        return dataset.filenames() if hasattr(dataset, "filenames") else None
    return [f"{name} {size}" for name, size in zip(names, sizes)]


@lru_cache(maxsize=8)  # a look at each file takes long on a network disk: once for all parts of a split
def _sizes_of(owner: Reader | DatasetFolder) -> list[int]:
    """Return how many bytes each sample has; -1 where its file is gone."""
    sizes = []
    for sample in owner.samples:
        if isinstance(sample, Place) and sample.size >= 0:
            sizes.append(sample.size)
        elif isinstance(sample[0], tarfile.TarInfo):
            sizes.append(sample[0].size)
        else:
            sizes.append(os.path.getsize(sample[0]) if os.path.exists(sample[0]) else -1)
    return sizes


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
        root, names = os.path.realpath(reader.root), whole.filenames()
        return {os.path.join(root, names[i]) for i in positions}
    # others are known by their split
    fingerprint = describe(whole, "", "").fingerprint
    return None if fingerprint is None else {f"{fingerprint}:{i}" for i in positions}


def count_copies(one: Dataset, other: Dataset) -> int:
    """Return how many samples of a part another one has too, as the same files or as copies of them, which have the
    same names in whatever folder; 0 where that cannot be known.
    """
    shared = count_shared(one, other)
    roots = {os.path.realpath(getattr(getattr(whole_split(part), "reader", None), "root", "")) for part in (one, other)}
    if shared or len(roots) == 1:
        return shared
    # in two folders: names and sizes may be alike by chance, so the bytes decide
    parts = [_by_name_and_size(part) for part in (one, other)]
    for key in sorted(parts[0].keys() & parts[1].keys()):
        copies = {_sha256_of(*sample) for sample in parts[1][key]}
        shared += sum(_sha256_of(*sample) in copies for sample in parts[0][key])
    return shared


def _by_name_and_size(part: Dataset) -> dict[tuple[str, int], list[tuple[Reader, int]]]:
    """Return samples that are files by their names, without folders, and sizes: the reader, and the place in it."""
    whole = whole_split(part)
    reader, names = getattr(whole, "reader", None), file_names(whole)
    samples: dict[tuple[str, int], list[tuple[Reader, int]]] = {}
    sizes = _sizes_of(reader) if names else []
    for place in positions_in_split(part, all_classes=True) if names else ():
        if sizes[place] > 0:  # of a file that is gone it is -1
            samples.setdefault((os.path.basename(names[place]), sizes[place]), []).append((reader, place))
    return samples


def _sha256_of(reader: Reader, place: int) -> str:
    """Return the hash of a sample's file as it lies on the disk."""
    with reader[place][0] as file:
        return hashlib.sha256(file.read()).hexdigest()


def count_shared(one: Dataset, other: Dataset) -> int:
    """Return how many samples two parts of the data share, 0 where that cannot be known."""
    names = sample_names(one), sample_names(other)
    return 0 if None in names else len(names[0] & names[1])
