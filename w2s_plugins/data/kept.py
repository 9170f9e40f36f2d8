"""Views that the runs of a study share: the first that needs one makes it, the others read it.

A view is a pure function of data, transform and key (`views`), so it is the same for all losses of a seed. `study run`
names a folder to its processes, which is gone when it ends; without that nothing is kept.
"""

import hashlib
import json
import os
import shutil
import struct
import weakref
import zlib
from collections.abc import Sequence
from contextlib import suppress
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from . import KEPT_VIEWS
from .datasets import describe
from .keys import data_identity, positions_in_split, whole_split
from .slices import Subset
from .wrapper import Wrapper

SPACE = 4 << 30  # bytes of all views, and at most a quarter of what is free
_LOOK = 256  # views between looks at what is used
_CHECK, _LABEL = struct.Struct("<I"), struct.Struct("<q")


class KeptViews:
    """A file of views of one kind, which processes read and write at once.

    A record holds a checksum, a label and an image. One that nobody has written, or of which a process that was killed
    has written a part, fails its checksum; two processes that write the same one write the same bytes.

    Args:
        path: the file, which need not be there.
        shape: (C, H, W) of an image; pixels are 8-bit.
        space: bytes that all files of its folder may take.
    """

    def __init__(self, path: Path, shape: Sequence[int], space: int):
        self.path, self.shape, self.space = path, tuple(shape), space
        self.size, self.until_look = _CHECK.size + _LABEL.size + prod(shape), 0
        self.file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        weakref.finalize(self, os.close, self.file)

    def __reduce__(self) -> tuple:  # for workers that are not forked
        return KeptViews, (self.path, self.shape, self.space)

    def read(self, numbers: Sequence[int]) -> list[tuple[Tensor, int] | None]:
        """Return image and label of each, None where they are not kept."""
        records = np.zeros((len(numbers), self.size), dtype=np.uint8)
        with suppress(OSError):
            for number, record in zip(numbers, records):
                os.preadv(self.file, [record], number * self.size)
        contents = records[:, _CHECK.size:]
        images = torch.from_numpy(contents)[:, _LABEL.size:].unflatten(1, self.shape)
        return [(image, *_LABEL.unpack_from(content)) if zlib.crc32(content) == check else None
                for image, content, (check,) in zip(images, contents, map(_CHECK.unpack_from, records))]

    def keep(self, number: int, image: object, label: object) -> None:
        """Keep a view for others, if it is an 8-bit image of the right size and there is space."""
        if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.shape != self.shape or (
                not isinstance(label, int)):
            return
        content = _LABEL.pack(label) + image.numpy().tobytes()
        with suppress(OSError):  # a full disk, or a folder that is gone
            if not self.until_look:
                self.until_look = _LOOK if used(self.path.parent) < self.space else -1
            if self.until_look > 0:
                self.until_look -= 1
                os.pwrite(self.file, _CHECK.pack(zlib.crc32(content)) + content, number * self.size)


class KeptSplit(Wrapper):
    """A dataset whose samples, transformed, are kept."""

    def __init__(self, dataset: Dataset, kept: KeptViews):
        super().__init__(dataset)
        self.kept = kept

    def __getitem__(self, index: int) -> tuple:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple]:
        """Return a batch, as PyTorch's loader asks for it."""
        return [found or self._make(index) for index, found in zip(indices, self.kept.read(indices))]

    def _make(self, index: int) -> tuple:
        made = self.dataset[index]
        self.kept.keep(index, *made)
        return made


def used(folder: Path) -> int:
    """Return how many bytes the files of a folder take on the disk."""
    with os.scandir(folder) as files:
        return sum(file.stat().st_blocks * 512 for file in files)


def origin(dataset: Dataset) -> list[tuple[str, int, int]] | None:
    """Return what samples are read from: files, or else a folder, each with its size and the time of its last change in
    nanoseconds; None where it is not known.
    """
    while isinstance(dataset, Wrapper) and not isinstance(dataset, Subset):
        dataset = dataset.dataset
    whole = whole_split(dataset)
    sources = [whole, getattr(whole, "reader", None), getattr(whole, "dataset", None)]  # timm's own, and torchvision's
    paths = {source.root for source in sources if isinstance(getattr(source, "root", None), (str, Path))}
    for source in sources:
        samples = getattr(source, "samples", ())
        named = {samples[i][0] for i in positions_in_split(dataset, all_classes=True)} if len(samples) else set()
        if named and all(isinstance(path, str) for path in named):  # those of a tar file are no paths
            paths = named
    stats = [(str(path), Path(path).stat()) for path in sorted(paths, key=str)]
    return [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats] or None


def keep_views(datasets: Sequence[Dataset], form: dict[str, object], shape: Sequence[int]) -> KeptViews | None:
    """Return the views that runs of this study share, None where they share none.

    The oldest files make way where half of the space is used; a run that reads one has it until it ends.

    Args:
        datasets: whose samples they are, numbered through.
        form: all else that decides what a view is.
        shape: (C, H, W) of an image.
    """
    if not os.environ.get(KEPT_VIEWS):
        return None
    folder = Path(os.environ[KEPT_VIEWS])
    with suppress(OSError):  # the folder is gone, or its disk full
        space = min(SPACE, (used(folder) + shutil.disk_usage(folder).free) // 4)
        if sum(map(len, datasets)) * prod(shape) > space:  # what was kept of an epoch would be of little use
            return None
        data = [(describe(dataset, "", "").fingerprint, origin(dataset)) for dataset in datasets]
        if any(None in known for known in data):  # they do not tell their labels, or nobody knows where they come from
            return None
        pixels = [data_identity(dataset, None) for dataset in datasets]  # they may be corrupted, or of another mode
        about = json.dumps([data, pixels, form, list(shape)], sort_keys=True, default=str)
        path = folder / hashlib.sha256(about.encode()).hexdigest()[:24]
        for old in sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime):
            if old != path and used(folder) > space / 2:
                old.unlink(missing_ok=True)
        return KeptViews(path, shape, space)
    return None
