"""Images without labels: all of a folder, at any depth, or of a tar file."""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from timm.data.readers.img_extensions import get_img_extensions
from timm.data.readers.reader import Reader

from ..errors import UserError, nearest, one_line
from .decoding import FileDataset

NO_LABEL = -1


class FolderReader(Reader):
    """The images below a folder, sorted by their path relative to it."""

    def __init__(self, root: Path):
        super().__init__()
        self.root = str(root)
        self.samples = [(os.path.join(root, name), NO_LABEL) for name in sorted(_walk(str(root)))]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        return open(self.samples[index][0], "rb"), NO_LABEL

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        path = self.samples[index][0]
        return os.path.basename(path) if basename else path if absolute else path[len(self.root.rstrip("/")) + 1:]


class TarReader(Reader):
    """The images in a tar file, sorted by name. No file is held open, so that data workers can share the reader."""

    def __init__(self, path: Path):
        super().__init__()
        self.root = str(path)
        try:
            with tarfile.open(path, "r:") as archive:
                found = {m.name.removeprefix("./"): (m.offset_data, m.size) for m in archive if m.isreg()}
        except (tarfile.TarError, OSError, EOFError) as error:
            raise UserError(f"{path}: cannot be read as a tar file without compression ({one_line(error)})") from error
        names = sorted(filter(_is_image, found))
        self.samples, self.places = [(name, NO_LABEL) for name in names], [found[name] for name in names]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        first, size = self.places[index]
        with open(self.root, "rb") as archive:
            archive.seek(first)
            return io.BytesIO(archive.read(size)), NO_LABEL

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        name = self.samples[index][0]
        return os.path.basename(name) if basename else name


def open_images(path: Path, input_img_mode: str = "RGB") -> FileDataset:
    """Return the images of a folder, at any depth, or of a tar file, as a dataset whose labels are all -1.

    Raises:
        UserError: no such folder or tar file, or no images in it.
    """
    if not path.exists():
        near = nearest(path.name, os.listdir(path.parent)) if path.parent.is_dir() else ""
        raise UserError(f"{path}: no such folder or tar file{near}")
    if not path.is_dir() and (path.suffix.lower() != ".tar" or not path.is_file()):
        raise UserError(f"{path}: expected a folder of images or a tar file")
    reader = FolderReader(path) if path.is_dir() else TarReader(path)
    if not len(reader):
        raise UserError(f"{path}: no images in it; expected files such as .jpg and .png, "
                        "at any depth")
    return FileDataset(str(path), reader=reader, input_img_mode=input_img_mode)


def _walk(root: str, below: str = "") -> Iterator[str]:
    """Yield the images of a folder relative to ``root``, through links but for those that lead back; none hidden."""
    try:
        entries = list(os.scandir(os.path.join(root, below)))
    except OSError as error:
        raise UserError(f"{os.path.join(root, below)}: cannot be listed ({one_line(error)})") from error
    for entry in entries:
        name = f"{below}/{entry.name}" if below else entry.name
        if entry.name.startswith("."):
            continue
        if _is_image(entry.name):
            if not entry.is_dir():
                yield name
        elif entry.is_dir() and not (entry.is_symlink() and _leads_back(entry.path)):
            yield from _walk(root, name)


def _leads_back(path: str) -> bool:
    target, here = os.path.realpath(path), os.path.realpath(os.path.dirname(path))
    return os.path.commonpath([target, here]) == target


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in _EXTENSIONS and not os.path.basename(name).startswith(".")


_EXTENSIONS = get_img_extensions(as_set=True)
