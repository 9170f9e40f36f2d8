"""Images without labels: folders of any depth and tar files, whose sub-folders mean nothing."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from timm.data.readers.img_extensions import get_img_extensions
from torch.utils.data import Dataset

from ..cli.forms import unlabeled_roots
from ..errors import UserError, one_line
from .decoding import FileDataset
from .readers import NO_LABEL, Place, PlaceReader, tar_members
from .wrapper import Wrapper

_logger = logging.getLogger(__name__)

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
    # names tell samples apart on any machine
    roots = unlabeled_roots(paths)
    top = roots[0] if len(roots) == 1 else _common_folder(roots)
    images: dict[str, Place] = {}
    for root in roots:
        found = images_of(root)
        prefix = "" if len(roots) == 1 else os.path.relpath(root, top)
        images.update((os.path.join(prefix, name), place) for name, place in found.items())
    _logger.info(f"Images without labels: {len(images)} in {paths}")
    # the order of a file system is not that of another
    names = sorted(images)
    reader = PlaceReader(top, names, [images[name] for name in names])
    return Unlabeled(top, reader=reader, input_img_mode=input_img_mode)


def open_images(path: Path) -> Unlabeled:
    """Open the images of a folder or a tar file that is named by no flag. Raises `UserError` as `open_unlabeled`."""
    try:
        return open_unlabeled(str(path))
    except UserError as error:
        raise UserError(str(error).removeprefix(f"{FLAG} ")) from error


def images_of(root: str) -> dict[str, Place]:
    """Return the images of a folder or a tar file; of members of one name the last one counts, as where it is unpacked.

    What is hidden is left out. Raises `UserError` where there are none.
    """
    image_suffixes = get_img_extensions(as_set=True)
    images: dict[str, Place] = {}
    for name, place in _in_folder(root) if os.path.isdir(root) else _in_archive(root):
        base = os.path.basename(name)
        if os.path.splitext(base)[1].lower() in image_suffixes and not base.startswith("."):
            images[name] = place
    if not images:
        raise UserError(f"{FLAG} {root}: no images in it; expected files named .jpg, .png and the like, at any depth; "
                        "name tar files themselves, separated by commas")
    return images


def _in_folder(root: str) -> Iterator[tuple[str, Place]]:
    """Yield the files below a folder, through links as timm's reader, but for a link to a folder that it is in."""
    def refuse(error: OSError) -> None:
        raise UserError(f"{FLAG} {root}: cannot be read ({one_line(error)})") from error

    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=refuse):
        # links are followed, but not in circles
        here = Path(folder).resolve()
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and not (
            here.is_relative_to(Path(folder, name).resolve()))]
        for name in names:
            path = os.path.join(folder, name)
            yield os.path.relpath(path, root), Place(path)


def _in_archive(path: str) -> Iterator[tuple[str, Place]]:
    """Yield the files in a tar file."""
    for member in tar_members(path, FLAG):
        yield os.path.normpath(member.name).lstrip("/"), Place(path, member.offset_data, member.size)


def _common_folder(roots: Sequence[str]) -> str:
    """Return the folder that all of ``roots`` are in. Raises `UserError` when one is in another."""
    # an image in two of them would count twice
    real = {root: os.path.realpath(root) for root in roots}
    for i, one in enumerate(roots):
        for other in roots[i + 1:]:
            if os.path.commonpath([real[one], real[other]]) in (real[one], real[other]):
                raise UserError(f"{FLAG} {one},{other}: one is in the other, its images would count twice")
    return os.path.commonpath([os.path.abspath(root) for root in roots])
