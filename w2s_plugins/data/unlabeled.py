"""Images without labels: folders of any depth and tar files, whose sub-folders mean nothing, and shards of webdataset,
tar files whose samples are groups of members with one key.

The headers of tar files are read when they are opened; from then on an image is a place in one of them, and any order
of them can be read.
"""

import itertools
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import glob, has_magic
from pathlib import Path

from timm.data.readers.img_extensions import get_img_extensions
from timm.utils.misc import natural_key

from ..errors import UserError, logger, one_line
from ..no_label import NO_LABEL
from ..settings.forms import unlabeled_roots
from .datasets import place_of_split
from .decoding import FileDataset, ImageSuffixes
from .map_style import MapDataset
from .readers import ImageLocation, LocationReader
from .wrapper import Wrapper

FLAG = "--unlabeled"
MOST_SHARDS = 200_000  # that braces may stand for
WDS, HUB = "wds/", "hfids/"
# that wait for a file system; a header of a tar file takes a round trip on a network disk, and no CPU
THREADS = 16


class Unlabeled(FileDataset):
    """Images without labels. Its labels are `NO_LABEL`, and `labels_of` says that there are none.

    ``classes`` are the names of what a teacher may say of them, where these are known.
    """

    unlabeled = True  # also of whatever is made of it, see `is_unlabeled`
    classes: list[str] | None = None


class WithoutLabels(Wrapper):
    """A dataset whose labels, if it has any, are not looked at.

    Args:
        dataset: map-style.
        name: what identifies it.
    """

    classes: list[str] | None = None

    def __init__(self, dataset: MapDataset, name: str):
        super().__init__(dataset)
        self.unlabeled = True
        self.identity = name

    def __getitem__(self, index: int) -> tuple[object, int]:
        image, _ = self.dataset[index]
        return image, NO_LABEL


# ---------------------------------------------------------------- folders and tar files


def open_unlabeled(paths: str, input_img_mode: str = "RGB") -> Unlabeled:
    """Open all images below some folders and in some tar files, or those of shards.

    Names, by which samples are known, are relative to the folder, or within the tar file; of several to the folder
    that all of them are in.

    Args:
        paths: separated by commas; or ``wds/PATH``, see `find_shards`.
        input_img_mode: PIL mode that images are converted to.

    Raises:
        UserError: there is no such folder or file, one is in another, or there is no image in it.
    """
    if paths.startswith(WDS) and not os.path.exists(paths):
        return open_shards(find_shards(paths), input_img_mode)
    # names tell samples apart on any machine
    roots = unlabeled_roots(paths)
    top = roots[0] if len(roots) == 1 else _common_folder(roots)
    images: dict[str, ImageLocation] = {}
    for root in roots:
        prefix = "" if len(roots) == 1 else os.path.relpath(root, top)
        for name, location in images_of(root).items():
            images[os.path.join(prefix, name)] = location
    # a single image has its name in its folder
    if list(images.values()) == [ImageLocation(top)]:
        top = os.path.dirname(top) or os.curdir
    logger.info(f"Images without labels: {len(images)} in {paths}")
    # the order of a file system is not that of another
    return _open(top, dict(sorted(images.items())), input_img_mode)


def open_images(paths: str) -> Unlabeled:
    """Open what `open_unlabeled` does where no flag has named it. Raises `UserError` as that."""
    try:
        return open_unlabeled(paths)
    except UserError as error:
        raise UserError(str(error).removeprefix(f"{FLAG} ")) from error


def images_of_split(
    root: str | None, split: str, flag: str
) -> tuple[str, dict[str, ImageLocation]]:
    """Return where a split lies whose labels are in a table, and its images by their names, in the order in which timm
    has those of class folders.

    Args:
        root: the folder or tar file of the data.
        split: its name.
        flag: that named it.

    Raises:
        UserError: as `place_of_split` and `images_of`.
    """
    place = place_of_split(root, split, flag)
    try:
        images = images_of(place)
    except UserError as error:
        raise UserError(f"{flag} {split}: {str(error).removeprefix(f'{FLAG} ')}") from error
    return place, {name: images[name] for name in sorted(images, key=natural_key)}


def _open(top: str, images: dict[str, ImageLocation], input_img_mode: str) -> Unlabeled:
    reader = LocationReader(top, list(images), list(images.values()))
    return Unlabeled(top, reader=reader, input_img_mode=input_img_mode)


def _common_folder(roots: Sequence[str]) -> str:
    """Return the folder that all of ``roots`` are in. Raises `UserError` when one is in another."""
    # an image in two of them would count twice
    real = {root: os.path.realpath(root) for root in roots}
    for one, other in itertools.combinations(roots, 2):
        if os.path.commonpath([real[one], real[other]]) in (real[one], real[other]):
            raise UserError(
                f"{FLAG} {one},{other}: one is in the other, its images would count twice"
            )
    return os.path.commonpath([os.path.abspath(root) for root in roots])


# ---------------------------------------------------------------- shards


def find_shards(text: str) -> list[Path]:
    """Return the shards that ``wds/PATH`` names.

    ``{0000..0019}`` and ``{a,b}`` are expanded as in a shell, and so are ``*`` and ``?``; of a folder it is all tar
    files in it.

    Raises:
        UserError: none or not all of them are there; it is not a path.
    """
    # webdataset would fetch an address, and run what stands behind pipe:
    pattern = text.removeprefix(WDS)
    if re.match(r"[A-Za-z][\w+.-]*:", pattern):
        raise UserError(
            f"{FLAG} {text}: nothing is fetched or run here; expected tar files on a disk, such as "
            f"{WDS}/data/train-{{0000..0019}}.tar, or {HUB}ORG/NAME for a dataset on the Hub"
        )
    # braces, then patterns and folders
    named: list[str] = []
    paths = list(itertools.islice(expand(pattern), MOST_SHARDS + 1))
    if len(paths) > MOST_SHARDS:
        raise UserError(
            f"{FLAG} {text}: its braces stand for more than {MOST_SHARDS} shards; give their folder"
        )
    for path in paths:
        if has_magic(path):
            named += sorted(glob(path))
        elif os.path.isdir(path):
            named += sorted(map(str, Path(path).rglob("*.tar")))
        else:
            named.append(path)
    # all are there, or none is opened
    missing = [path for path in named if not os.path.isfile(path)]
    if missing:
        raise UserError(
            f"{FLAG} {text}: {len(missing)} of {len(named)} shards are not there, "
            f"such as {missing[0]}"
        )
    if not named:
        raise UserError(f"{FLAG} {text}: no tar files in it")
    return [Path(path) for path in dict.fromkeys(named)]


def expand(text: str) -> Iterator[str]:
    """Yield what a text with braces stands for in a shell, in its order; ``{00..12}`` has leading zeros."""
    # one pair of braces after the other, each choice to its end: of what stands for billions a caller takes the first
    waiting = [iter([text])]
    while waiting:
        path = next(waiting[-1], None)
        if path is None:
            waiting.pop()
            continue
        match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{},]*(?:,[^{},]*)+))\}", path)
        if match is None:
            yield path
        else:
            waiting.append(_choices(path, match))


def _choices(path: str, match: re.Match) -> Iterator[str]:
    """Yield a path with each of the texts that a pair of braces in it stands for."""
    first, last, words = match.groups()
    choices: Iterable[str]
    if words:
        choices = words.split(",")
    else:
        # as a shell does: zeros at the front of the first number stand at the front of all
        numbers = range(int(first), int(last) + 1)
        choices = (str(number).zfill(len(first)) for number in numbers)
    for choice in choices:
        yield path[: match.start()] + choice + path[match.end() :]


def open_shards(shards: Sequence[Path], input_img_mode: str = "RGB") -> Unlabeled:
    """Open shards as one dataset of images without labels, named SHARD/KEY in the order in which they lie there.

    Args:
        shards: tar files; their names are relative to the folder that all of them are in.
        input_img_mode: PIL mode that images are converted to.

    Raises:
        UserError: a shard is damaged or compressed, has no image, or a key twice.
    """
    top = os.path.commonpath([shard.absolute().parent for shard in shards])
    images: dict[str, ImageLocation] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        by_shard = pool.map(lambda shard: images_of(str(shard), is_shard=True), shards)
        for shard, of_shard in zip(shards, by_shard):
            prefix = os.path.relpath(shard, top).removesuffix(".tar")
            for key, location in of_shard.items():
                images[f"{prefix}/{key}"] = location
    return _open(top, images, input_img_mode)


# ---------------------------------------------------------------- the images of a folder or a file


def images_of(root: str, is_shard: bool = False) -> dict[str, ImageLocation]:
    """Return the images of a folder or a tar file, or a single one, by their names, or of a shard by their keys.

    What is hidden is left out. Of members of a tar file that have one name the last one counts, as when it is unpacked.
    As in webdataset, the key of a sample is its path up to the first dot of the file's name; what follows that is
    ``jpg``, ``png`` or the like for the image, which other members, ``json`` or ``cls`` or ``seg.png``, are not.

    Raises:
        UserError: there are none, a key is there twice, or a tar file is damaged or compressed.
    """
    suffixes = ImageSuffixes()
    images: dict[str, ImageLocation] = {}
    if os.path.isdir(root):
        files = _in_folder(root)
    elif Path(root).suffix.lower() in get_img_extensions():
        files = [(os.path.basename(root), ImageLocation(root))]
    else:
        files = _in_archive(root)
    for name, location in files:
        # NAME.SUFFIX in whatever folder
        base = os.path.basename(name)
        stem, _, suffix = base.partition(".") if is_shard else base.rpartition(".")
        is_hidden = not stem or stem.startswith(".")
        if is_hidden or f".{suffix.lower()}" not in suffixes:
            continue
        key = name.removesuffix(f".{suffix}") if is_shard else os.path.normpath(name).lstrip("/")
        if is_shard and key in images:
            raise UserError(
                f"{FLAG} {root}: the key {key} is there more than once; expected one image of each"
            )
        images[key] = location
    # the other members of a sample are no files of a user, unless there is nothing else
    text = "" if is_shard and images else suffixes.log_others(root)
    if not images:
        raise UserError(
            f"{FLAG} {root}: no images in it; expected files named .jpg, .png and the like, at any "
            f"depth; name tar files themselves, separated by commas{text}"
        )
    return images


def _in_folder(root: str) -> Iterator[tuple[str, ImageLocation]]:
    """Yield the files below a folder, through links as timm's reader, but for a link to a folder that it is in."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{FLAG} {root}: cannot be read ({one_line(error)})") from error

    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=refuse):
        # links are followed, but not in circles
        here = Path(folder).resolve()
        visible = [name for name in subfolders if not name.startswith(".")]
        subfolders[:] = [
            name for name in visible if not here.is_relative_to(Path(folder, name).resolve())
        ]
        for name in names:
            path = os.path.join(folder, name)
            yield os.path.relpath(path, root), ImageLocation(path)


def _in_archive(path: str) -> Iterator[tuple[str, ImageLocation]]:
    """Yield the files in a tar file. Raises `UserError` where it is compressed, none, or damaged."""
    try:
        # without compression: a member can be read without those before it
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isfile() and not member.issparse():
                    location = ImageLocation(path, member.offset_data, member.size)
                    yield member.name, location
                # which else keep every header in memory
                archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # not in typeshed
            # tarfile takes what is no header for the end
            file = archive.fileobj
            if file is not None:
                file.seek(archive.offset)
                if any(file.read(tarfile.BLOCKSIZE)):
                    raise tarfile.ReadError(f"no header of a member at byte {archive.offset}")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(
            f"{FLAG} {path}: not a tar file, compressed, or damaged ({one_line(error)}); expected "
            "an image, a folder of images, or a tar file without compression"
        ) from error
