"""timm's interface to images that lie in files, or in stretches of tar files."""

import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from timm.data.readers.reader import Reader

from ..errors import UserError, one_line
from ..files import open_regular

NO_LABEL = -1  # stands in a batch where a label would
TAR_BLOCK = 512


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


class PlaceReader(Reader):
    """A reader of images whose places are known.

    Args:
        root: what names are relative to.
        names: of the images.
        places: of the images.
        targets: labels, None where there are none.
        class_to_idx: labels by the names of classes.
    """

    def __init__(
            self,
            root: str,
            names: Sequence[str],
            places: Sequence[Place],
            targets: Sequence[int] | None = None,
            class_to_idx: dict[str, int] | None = None,
    ):
        super().__init__()
        self.root = root
        self.names = names
        self.samples = places
        self.targets = targets
        self.class_to_idx = class_to_idx

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        return self.samples[index].open(), NO_LABEL if self.targets is None else self.targets[index]

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        name = self.names[index]
        if basename:
            return os.path.basename(name)
        return os.path.join(self.root, name) if absolute else name


def tar_members(path: str | Path, flag: str) -> Iterator[tarfile.TarInfo]:
    """Yield the files in a tar file. Raises `UserError`, for ``flag``, where it is compressed, none, or damaged."""
    try:
        # without compression: a member can be read without those before it
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isfile() and not member.issparse():
                    yield member
                archive.members.clear()  # which else keep every header in memory
            archive.fileobj.seek(archive.offset)
            if any(archive.fileobj.read(TAR_BLOCK)):  # tarfile takes what is no header for the end
                raise tarfile.ReadError(f"no header of a member at byte {archive.offset}")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{flag} {path}: not a tar file, compressed, or damaged ({one_line(error)}); expected a folder "
                        "of images, or a tar file without compression") from error
