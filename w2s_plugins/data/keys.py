"""What names a sample on any machine, in any order, and in whatever part of the data it is opened; what identifies a
split; and which samples two parts of the data have in common, however each was opened and cut.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from torchvision.datasets import DatasetFolder

from ..no_label import NAME_OF_UNLABELED
from .class_splits import ClassSubset
from .datasets import (
    NamesFiles,
    class_names_of,
    is_unlabeled,
    labels_of,
    num_classes_of,
)
from .map_style import AnyDataset, MapDataset, classes_of_samples
from .readers import FileReader, ImageLocation, LocationReader, file_reader
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
    values: Sequence[str | int]
    positions: Sequence[int] | None = None

    @cached_property
    def text(self) -> str | None:
        """The keys as JSON; None where they count the samples. File names that are not UTF-8 come through it too."""
        # keys that count the samples say nothing, and would be a large text for every split of a run
        counts_them = self.by == "index" and all(i == key for i, key in enumerate(self.values))
        return None if counts_them else json.dumps(list(self.values), indent=0)

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


def sample_keys(dataset: MapDataset) -> SampleKeys:
    """Return the keys of a dataset, or of a part of one."""
    # a file keeps its name in whatever part it is opened; other samples have a position only
    names = file_names(dataset)
    positions = positions_in_split(dataset, all_classes=True)
    return SampleKeys("filename", names, positions) if names else SampleKeys("index", positions)


def whole_split(dataset: AnyDataset) -> AnyDataset:
    """Return the split that a dataset is a part of."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset


def file_names(dataset: MapDataset) -> list[str]:
    """Return the file of every sample, relative to the folder of the split; none where samples are not in files."""
    has_files = file_reader(whole_split(dataset)) is not None
    return dataset.filenames() if has_files and isinstance(dataset, NamesFiles) else []


def positions_in_split(dataset: AnyDataset, all_classes: bool = False) -> Sequence[int]:
    """Return where the samples of a part, however it was cut, are in the whole split.

    With ``--class-list`` that is the split of the listed classes or, with ``all_classes``, that of all.
    """
    is_whole = not isinstance(dataset, Subset)
    if is_whole or (isinstance(dataset, ClassSubset) and not all_classes):
        return range(len(dataset))
    # a part of a part: through all of them to the whole
    outer = positions_in_split(dataset.dataset, all_classes)
    return [outer[i] for i in dataset.indices]


def data_identity(dataset: MapDataset, fingerprint: str | None) -> dict[str, str | None]:
    """Identify a training set: names and labels of its samples (``fingerprint``), pixels of some of them.

    Args:
        dataset: map-style; its transform is put back afterwards.
        fingerprint: that of `describe`, None where the dataset does not tell its labels.
    """
    # the stored pixels of a few, evenly spread: without the transform, which draws anew at each look
    transform = dataset.transform
    dataset.transform = None
    pixels = hashlib.sha256()
    try:
        for index in _probes(len(dataset)):
            try:
                image = np.asarray(dataset[index][0])
            except UnreadableSample:  # whoever needs its pixels says so
                image = np.empty(0)
            pixels.update(f"{image.shape}".encode() + image.tobytes())
    finally:
        dataset.transform = transform
    return dict(fingerprint=fingerprint, pixels=pixels.hexdigest())


def _probes(count: int) -> list[int]:
    """Return which of ``count`` samples stand for all of them, evenly spread."""
    return np.linspace(0, count - 1, min(PROBES, count)).astype(int).tolist()


def describe(dataset: AnyDataset, name: str, split: str) -> DataInfo:
    """Return the identity of a split, for the record of a run.

    Its fingerprint is made of the names, labels and sizes of the samples, and of how `PROBES` of their files begin: to
    read all of them takes too long. Labels count by the names of their classes, so it does not matter in which order a
    run has these.
    """
    labels = labels_of(dataset)
    unlabeled = is_unlabeled(dataset)
    class_names = class_names_of(dataset) or []
    size = 0 if isinstance(dataset, IterableDataset) else len(dataset)
    # where the folder lies says nothing of images without labels
    if unlabeled:
        name = split = NAME_OF_UNLABELED
    # labels count by the names of their classes
    texts = [str(label) for label in labels or ()]
    if labels and len(set(class_names)) == len(class_names) > max(labels):
        texts = [class_names[label] for label in labels]
    several = classes_of_samples(dataset)
    if several is not None:
        texts = [_text_of_classes(several, class_names)]
    # without labels, and not known to have none, a split cannot be told from another of its size
    digest = None
    if labels is not None or several is not None or unlabeled:
        content = f"{name}|{size}|{','.join(texts)}{_text_of_samples(dataset)}"
        digest = hashlib.sha256(os.fsencode(content)).hexdigest()[:16]
    return DataInfo(name or "folder", split, size, num_classes_of(dataset), digest)


def _text_of_classes(classes: Tensor, names: Sequence[str]) -> str:
    """Return a hash of which samples have which classes (N, C), by their names: in whatever order a run has these, and
    whatever others it has of which nothing is known.
    """
    known: list[int] = (~classes.isnan()).any(dim=0).nonzero().flatten().tolist()
    texts = {number: names[number] if names else f"{number:09}" for number in known}
    order = sorted(known, key=lambda number: texts[number])
    digest = hashlib.sha256(repr([texts[number] for number in order]).encode())
    # 1, 0, and -1 for unknown
    digest.update(classes[:, order].nan_to_num(nan=-1).to(torch.int8).numpy().tobytes())
    return digest.hexdigest()


def fingerprint_of_samples(dataset: AnyDataset, name: str) -> str | None:
    """Return the fingerprint of a part of the data, whatever order its classes were put in, and what they were called.

    Args:
        dataset: a split, or a part of one.
        name: of the dataset, empty for folders.
    """
    # a list of classes numbers them anew, but the samples and their names stay those of the whole
    whole = whole_split(dataset)
    if whole is dataset or isinstance(whole, IterableDataset):
        return describe(whole, name, "").fingerprint
    part = Subset(whole, positions_in_split(dataset, all_classes=True))
    return describe(part, name, "").fingerprint


def _text_of_samples(dataset: AnyDataset) -> str:
    """Return samples by name and size where they are files, else by their positions in the whole."""
    whole = whole_split(dataset)
    positions = None if whole is dataset else positions_in_split(dataset, all_classes=True)
    files = None if hasattr(whole, "identity") else _files_of(whole)
    if files is None:
        return f"{getattr(whole, 'identity', '')} {'' if positions is None else positions}"
    # a part that was cut to the whole, in its order, has the fingerprint of the whole
    if positions is None:
        positions = range(len(files))
    text = "|".join(files[position] for position in positions)
    return f"{text}|{_bytes_of_some(whole, positions)}"


def _bytes_of_some(dataset: AnyDataset, positions: Sequence[int]) -> str:
    """Return a hash of how a few files begin, evenly spread over those at some positions; empty if they cannot be
    read so.
    """
    reader = _reader_of(dataset)
    if reader is None:
        return ""
    # names and sizes survive when someone writes other pixels into the files; how they begin does not
    content = hashlib.sha256()
    for number in _probes(len(positions)):
        # what cannot be read adds nothing: whoever needs the image says so
        with suppress(OSError, ValueError, tarfile.TarError), reader[positions[number]][0] as file:
            content.update(file.read(PROBED_BYTES))
    return content.hexdigest()


def _files_of(dataset: AnyDataset) -> list[str] | None:
    """Return name and size of the file of every sample; None where samples are not in files."""
    # who lists files, or names them itself
    reader = _reader_of(dataset)
    if reader is not None:
        return [f"{name} {size}" for name, size in zip(reader.filenames(), _sizes_of(reader))]
    if not isinstance(dataset, IterableDataset) and isinstance(dataset, NamesFiles):
        return dataset.filenames()
    return None


def _reader_of(dataset: AnyDataset) -> FileReader | None:
    """Return what lists the files of a dataset, also of a folder of torchvision, whose samples are no files to others:
    stored answers know them by position.
    """
    folder = getattr(dataset, "dataset", None)
    return _reader_of_folder(folder) if isinstance(folder, DatasetFolder) else file_reader(dataset)


@lru_cache(maxsize=8)
def _reader_of_folder(folder: DatasetFolder) -> LocationReader:
    paths = [path for path, _ in folder.samples]
    names = [os.path.relpath(path, folder.root) for path in paths]
    return LocationReader(str(folder.root), names, [ImageLocation(path) for path in paths])


# a look at each file takes long on a network disk: once for all parts of a split
@lru_cache(maxsize=8)
def _sizes_of(reader: FileReader) -> list[int]:
    """Return how many bytes each sample has; -1 where its file is gone."""
    return [_size_of(sample) for sample in reader.samples]


def _size_of(sample: ImageLocation | tuple[str | tarfile.TarInfo, object]) -> int:
    if isinstance(sample, ImageLocation) and sample.size >= 0:
        return sample.size
    file = sample[0]
    if isinstance(file, tarfile.TarInfo):
        return file.size
    return os.path.getsize(file) if os.path.exists(file) else -1


def sample_names(dataset: AnyDataset) -> set[str] | None:
    """Return a name for every sample of a part of the data, or None for a stream.

    Image files are named by their paths, other samples by their split's fingerprint and their position in it, so that
    two names of one split do not make two sets of samples of it.
    """
    # parts of one split share its samples
    whole = whole_split(dataset)
    if isinstance(whole, IterableDataset):
        return None
    # files have names that no other split has
    positions = positions_in_split(dataset, all_classes=True)
    reader = file_reader(whole)
    if reader is not None:
        root = os.path.realpath(reader.root)
        names = reader.filenames()
        return {os.path.join(root, names[i]) for i in positions}
    # others are known by their split
    fingerprint = describe(whole, "", "").fingerprint
    return None if fingerprint is None else {f"{fingerprint}:{i}" for i in positions}


def count_copies(one: AnyDataset, other: AnyDataset) -> int:
    """Return how many samples of a part another one has too, as the same files or as copies of them, which have the
    same names in whatever folder; 0 where that cannot be known.
    """
    shared = count_shared(one, other)
    roots = {
        os.path.realpath(getattr(getattr(whole_split(part), "reader", None), "root", ""))
        for part in (one, other)
    }
    if shared or len(roots) == 1:
        return shared
    # in two folders: names and sizes may be alike by chance, so the bytes decide
    parts = [_by_name_and_size(part) for part in (one, other)]
    for key in sorted(parts[0].keys() & parts[1].keys()):
        copies = {_sha256_of(*sample) for sample in parts[1][key]}
        shared += sum(_sha256_of(*sample) in copies for sample in parts[0][key])
    return shared


def _by_name_and_size(part: AnyDataset) -> dict[tuple[str, int], list[tuple[FileReader, int]]]:
    """Return samples that are files by their names, without folders, and sizes: the reader, and the position in it."""
    whole = whole_split(part)
    samples: dict[tuple[str, int], list[tuple[FileReader, int]]] = {}
    reader = file_reader(whole)
    if reader is None or isinstance(whole, IterableDataset):
        return samples
    names = file_names(whole)
    sizes = _sizes_of(reader)
    for position in positions_in_split(part, all_classes=True):
        # a file that is gone has the size -1, and an empty one is a copy of any other
        if sizes[position] > 0:
            name = os.path.basename(names[position])
            samples.setdefault((name, sizes[position]), []).append((reader, position))
    return samples


def _sha256_of(reader: FileReader, position: int) -> str:
    """Return the hash of a sample's file as it lies on the disk."""
    with reader[position][0] as file:
        return hashlib.sha256(file.read()).hexdigest()


def count_shared(one: AnyDataset, other: AnyDataset) -> int:
    """Return how many samples two parts of the data share, 0 where that cannot be known."""
    names = sample_names(one)
    others = sample_names(other)
    return 0 if names is None or others is None else len(names & others)
