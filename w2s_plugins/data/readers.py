"""timm's interface to images that lie in files, or in stretches of tar files."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from timm.data.readers.reader import Reader

from ..files import open_regular

NO_LABEL = -1  # stands in a batch where a label would


class Place(NamedTuple):
    """Where the bytes of an image lie: a file, or from ``start`` on in a tar file."""

    file: str
    start: int = 0
    size: int = -1  # to the end

    def open(self) -> BinaryIO:
        """Return the bytes as a file. It is opened anew each time: processes share no position in it."""
        # a file of its own, or a stretch of a tar file
        if self.size < 0:
            return open_regular(self.file, "rb")
        with open_regular(self.file, "rb") as file:
            file.seek(self.start)
            return io.BytesIO(file.read(self.size))


@dataclass(eq=False)
class PlaceReader(Reader):
    """A reader of images whose places are known.

    Args:
        root: what names are relative to.
        names: of the images.
        samples: places of the images.
        targets: labels, None where there are none.
        class_to_idx: labels by the names of classes.
    """

    root: str
    names: Sequence[str]
    samples: Sequence[Place]
    targets: Sequence[int] | None = None
    class_to_idx: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        return self.samples[index].open(), NO_LABEL if self.targets is None else self.targets[index]

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        name = self.names[index]
        if basename:
            return os.path.basename(name)
        return os.path.join(self.root, name) if absolute else name
