"""timm's interface to images that lie in files, or in stretches of tar files."""

import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, NamedTuple, Protocol

from PIL import Image
from torch import Tensor

from ..files import open_regular
from ..no_label import NO_LABEL


class ImageReader(Protocol):
    """A reader of timm, or of ours, whose images can be read by position."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[IO[bytes], int | Tensor | None]:
        """Return the open file of an image, and its label if there is one."""
        ...

    def filename(self, index: int, basename: bool = False, absolute: bool = False) -> str: ...

    def filenames(self, basename: bool = False, absolute: bool = False) -> list[str]: ...


class FileReader(ImageReader, Protocol):
    """One that has listed its files, as those of folders and tar files.

    Attributes:
        root: what names are relative to.
    """

    root: str

    @property
    def samples(self) -> "Sequence[ImageLocation | tuple[str | tarfile.TarInfo, object]]":
        """One an image; the first item is a path, or a member of a tar file."""
        ...


class StreamReader(Protocol):
    """timm's reader of a stream, which decodes its images."""

    input_img_mode: str

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]: ...


def file_reader(dataset: object) -> FileReader | None:
    """Return the reader of a dataset of listed files; None for another dataset."""
    # timm's readers have no common base that says so
    reader = getattr(dataset, "reader", None)
    return reader if hasattr(reader, "samples") else None


def stream_reader(dataset: object) -> StreamReader | None:
    """Return the reader of a stream whose images can be had as they are; None for another dataset."""
    reader = getattr(dataset, "reader", None)
    return reader if hasattr(reader, "input_img_mode") else None


class ImageLocation(NamedTuple):
    """Where the bytes of an image lie: a file, or from ``start`` on in a tar file."""

    file: str
    start: int = 0
    size: int = -1  # to the end

    def open(self) -> IO[bytes]:
        """Return the bytes as a file. It is opened anew each time: processes share no position in it."""
        # a file of its own, or a stretch of a tar file, which is read at once, so that nothing stays open
        if self.size < 0:
            return open_regular(self.file)
        with open_regular(self.file) as file:
            file.seek(self.start)
            return io.BytesIO(file.read(self.size))


class ReaderOfSeveral:
    """A reader of timm whose labels, lists of classes, are known as rows of 1 and 0.

    Args:
        reader: of images that can be read by position.
        targets: (N, C) in float32.
    """

    def __init__(self, reader: ImageReader, targets: Tensor):
        self.reader = reader
        self.targets = targets
        self.class_to_idx: dict[str, int] | None = getattr(reader, "class_to_idx", None)

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[IO[bytes], Tensor]:
        file, *_ = self.reader[index]
        return file, self.targets[index]

    def filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        """Return the name of an image, see `ImageReader`."""
        return self.reader.filename(index, basename, absolute)

    def filenames(self, basename: bool = False, absolute: bool = False) -> list[str]:
        """Return the names of all images."""
        return self.reader.filenames(basename, absolute)


@dataclass(eq=False)
class LocationReader:
    """A reader of images of which it is known where they lie.

    Args:
        root: what names are relative to.
        names: of the images.
        samples: where each image lies.
        targets: labels, None where there are none; of several classes an image (N, C) in float32, NaN where one is
            unknown.
        class_to_idx: labels by the names of classes.
    """

    root: str
    names: Sequence[str]
    samples: Sequence[ImageLocation]
    targets: Sequence[int] | Tensor | None = None
    class_to_idx: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int | Tensor]:
        label = NO_LABEL if self.targets is None else self.targets[index]
        return self.samples[index].open(), label

    def filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        """Return the name of an image: relative to the root, or without folders, or the whole path."""
        name = self.names[index]
        if basename:
            return os.path.basename(name)
        return os.path.join(self.root, name) if absolute else name

    def filenames(self, basename: bool = False, absolute: bool = False) -> list[str]:
        """Return the names of all images, see `filename`."""
        return [self.filename(index, basename, absolute) for index in range(len(self))]
