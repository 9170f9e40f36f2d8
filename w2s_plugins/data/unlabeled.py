"""Images without labels: folders of any depth and tar files, whose sub-folders mean nothing."""

import io
import logging
import os
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from timm.data.readers.img_extensions import get_img_extensions
from timm.data.readers.reader import Reader
from torch.utils.data import Dataset

from ..cli.forms import unlabeled_roots
from ..errors import UserError, one_line
from .decoding import FileDataset
from .wrapper import Wrapper

_logger = logging.getLogger(__name__)

NO_LABEL = -1  # stands in a batch where a label would
FLAG = "--unlabeled"


class Unlabeled(FileDataset):
    """Images without labels. Its labels are `NO_LABEL`, and `labels_of` says that there are none.

    ``classes`` are the names of what a teacher may say of them, where these are known.
    """

    classes: list[str] | None = None


class WithoutLabels(Wrapper):
    """A dataset whose labels, if it has any, are not looked at.

    Args:
        dataset: map-style.
        name: what identifies it.
    """

    classes: list[str] | None = None

    def __init__(self, dataset: Dataset, name: str):
        super().__init__(dataset)
        self.identity = name

    def __getitem__(self, index: int) -> tuple[object, int]:
        return self.dataset[index][0], NO_LABEL


class Place(NamedTuple):
    """Where the bytes of an image lie: a file, or from ``start`` on in a tar file."""

    file: str
    start: int = 0
    size: int = -1  # to the end


class UnlabeledReader(Reader):
    """timm's interface to files and members of tar files.

    A member is read by its place in the file that is opened anew: processes share no position in it.

    Args:
        root: what names are relative to.
        images: name and place of each.
    """

    def __init__(self, root: str, images: dict[str, Place]):
        super().__init__()
        self.root, self.names, self.samples = root, sorted(images), []
        self.samples = [images[name] for name in self.names]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        path, start, size = self.samples[index]
        if size < 0:
            return Path(path).open("rb"), NO_LABEL
        with Path(path).open("rb") as file:
            file.seek(start)
            return io.BytesIO(file.read(size)), NO_LABEL

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        name = self.names[index]
        return os.path.basename(name) if basename else os.path.join(self.root, name) if absolute else name


def is_unlabeled(dataset: Dataset | None) -> bool:
    """True for images without labels, and for a part of them."""
    while isinstance(dataset, Wrapper) and not hasattr(dataset, "targets") and not isinstance(dataset, WithoutLabels):
        dataset = dataset.dataset
    return isinstance(dataset, (Unlabeled, WithoutLabels))


def open_unlabeled(paths: str, input_img_mode: str = "RGB") -> Unlabeled:
    """Open all images below some folders and in some tar files.

    Names, by which samples are known, are relative to the folder, or within the tar file; of several to the folder
    that all of them are in.

    Args:
        paths: separated by commas.
        input_img_mode: PIL mode that images are converted to.

    Raises:
        UserError: there is no such folder or file, one is in another, or there is no image in it.
    """
    roots = unlabeled_roots(paths)
    top = roots[0] if len(roots) == 1 else _common_folder(roots)
    images: dict[str, Place] = {}
    for root in roots:
        found = images_of(root)
        prefix = "" if len(roots) == 1 else os.path.relpath(root, top)
        images.update((os.path.join(prefix, name), place) for name, place in found.items())
    _logger.info(f"Images without labels: {len(images)} in {paths}")
    return Unlabeled(top, reader=UnlabeledReader(top, images), input_img_mode=input_img_mode)


def open_images(path: Path) -> Unlabeled:
    """Open the images of a folder or a tar file that is named by no flag. Raises `UserError` as `open_unlabeled`."""
    try:
        return open_unlabeled(str(path))
    except UserError as error:
        raise UserError(str(error).removeprefix(f"{FLAG} ")) from error


def images_of(root: str) -> dict[str, Place]:
    """Return the images of a folder or a tar file. Raises `UserError` where there are none."""
    images, others = _in_folder(root) if os.path.isdir(root) else _in_archive(root)
    if images:
        return images
    if others[".tar"]:
        raise UserError(f"{FLAG} {root}: no images in it, but {others['.tar']} tar file(s): name these themselves, "
                        "separated by commas")
    kinds = ", ".join(f"{count} {kind or 'without a suffix'}" for kind, count in others.most_common(3))
    raise UserError(f"{FLAG} {root}: no images in it (found: {kinds or 'nothing'}); expected files named .jpg, .png "
                    "and the like, at any depth")


def _in_folder(root: str) -> tuple[dict[str, Place], Counter]:
    """Return the images below a folder, through links as timm's reader, and how many files of other kinds there are.

    What is hidden is left out; so is a link to a folder that it is in.
    """
    kinds, others = get_img_extensions(as_set=True), Counter()
    images: dict[str, Place] = {}

    def look(folder: str, prefix: str, above: frozenset) -> None:
        about = os.stat(folder)
        if (about.st_dev, about.st_ino) in above:
            return
        inside = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    inside.append(entry)
                    continue
                suffix = os.path.splitext(entry.name)[1].lower()
                if suffix in kinds:
                    images[prefix + entry.name] = Place(entry.path)
                else:
                    others[suffix] += 1
        for entry in inside:
            look(entry.path, f"{prefix}{entry.name}/", above | {(about.st_dev, about.st_ino)})

    try:
        look(root, "", frozenset())
    except OSError as error:
        raise UserError(f"{FLAG} {root}: cannot be read ({one_line(error)})") from error
    return images, others


def _in_archive(path: str) -> tuple[dict[str, Place], Counter]:
    """Return the images in a tar file; of members of one name the last one counts, as where it is unpacked."""
    kinds, others = get_img_extensions(as_set=True), Counter()
    images: dict[str, Place] = {}
    try:
        with tarfile.open(path, "r:") as archive:  # places in a compressed one cannot be gone to
            for member in archive:
                suffix = Path(member.name).suffix.lower()
                if not member.isfile() or member.issparse() or Path(member.name).name.startswith("."):
                    continue
                if suffix in kinds:
                    images[os.path.normpath(member.name).lstrip("/")] = Place(path, member.offset_data, member.size)
                else:
                    others[suffix] += 1
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{FLAG} {path}: not a tar file, compressed, or damaged ({one_line(error)}); expected a folder "
                        "of images, or a tar file without compression") from error
    return images, others


def _common_folder(roots: Sequence[str]) -> str:
    """Return the folder that all of ``roots`` are in. Raises `UserError` when one is in another."""
    real = {root: os.path.realpath(root) for root in roots}
    for i, one in enumerate(roots):
        for other in roots[i + 1:]:
            if os.path.commonpath([real[one], real[other]]) in (real[one], real[other]):
                raise UserError(f"{FLAG} {one},{other}: one is in the other, its images would count twice")
    return os.path.commonpath([os.path.abspath(root) for root in roots])
