"""Images without labels in shards of webdataset: tar files whose samples are groups of members with one key.

The headers of all shards are read when they are opened; from then on an image is a place in one of the files, as of any
other tar file, and any order of them can be read.
"""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import glob, has_magic
from pathlib import Path

from timm.data.readers.img_extensions import get_img_extensions

from ..errors import UserError
from .readers import Place, PlaceReader, tar_members
from .unlabeled import FLAG, Unlabeled

WDS, HUB = "wds/", "hfids/"
THREADS = 16  # that wait for a file system


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
        raise UserError(f"{FLAG} {text}: nothing is fetched or run here; expected tar files on a disk, such as "
                        f"{WDS}/data/train-{{0000..0019}}.tar, or {HUB}ORG/NAME for a dataset on the Hub")
    # braces, then patterns and folders
    named: list[str] = []
    for path in expand(pattern):
        if has_magic(path):
            named += sorted(glob(path))
        elif os.path.isdir(path):
            named += sorted(map(str, Path(path).rglob("*.tar")))
        else:
            named.append(path)
    # all are there, or none is opened
    missing = [path for path in named if not os.path.isfile(path)]
    if missing:
        raise UserError(f"{FLAG} {text}: {len(missing)} of {len(named)} shards are not there, such as {missing[0]}")
    if not named:
        raise UserError(f"{FLAG} {text}: no tar files in it")
    return [Path(path) for path in dict.fromkeys(named)]


def expand(text: str) -> list[str]:
    """Expand braces as a shell does, ``{00..12}`` with leading zeros."""
    # the first pair of braces, and whatever the rest expands to
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", text)
    if match is None:
        return [text]
    first, last, words = match.groups()
    choices = words.split(",") if words else [
        str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return [full for choice in choices for full in expand(text[:match.start()] + choice + text[match.end():])]


def open_shards(shards: Sequence[Path], input_img_mode: str = "RGB") -> Unlabeled:
    """Open shards as one dataset of images without labels, named SHARD/KEY in the order in which they lie there.

    Args:
        shards: tar files; their names are relative to the folder that all of them are in.
        input_img_mode: PIL mode that images are converted to.

    Raises:
        UserError: a shard is damaged or compressed, has no image, or a key twice.
    """
    top = os.path.commonpath([shard.absolute().parent for shard in shards])
    names: list[str] = []
    places: list[Place] = []
    with ThreadPoolExecutor(THREADS) as pool:
        for shard, images in zip(shards, pool.map(images_of_shard, shards)):
            prefix = os.path.relpath(shard, top).removesuffix(".tar")
            names += [f"{prefix}/{key}" for key in images]
            places += images.values()
    return Unlabeled(top, reader=PlaceReader(top, names, places), input_img_mode=input_img_mode)


def images_of_shard(path: Path) -> dict[str, Place]:
    """Return where the image of each key of a shard lies, by the headers of its members.

    As in webdataset, the key of a sample is its path up to the first dot of the file's name; what follows that is
    ``jpg``, ``png`` or the like for the image, which other members, ``json`` or ``cls`` or ``seg.png``, are not.

    Raises:
        UserError: as `open_shards`.
    """
    image_suffixes = get_img_extensions(as_set=True)
    images: dict[str, Place] = {}
    for member in tar_members(path, FLAG):
        # KEY.SUFFIX in whatever folder
        folder, _, name = member.name.rpartition("/")
        base, _, suffix = name.partition(".")
        if not base or f".{suffix.lower()}" not in image_suffixes:
            continue
        key = f"{folder}/{base}" if folder else base
        if key in images:
            raise UserError(f"{FLAG} {path}: the key {key} is there more than once; expected one image of each")
        images[key] = Place(str(path), member.offset_data, member.size)
    if not images:
        raise UserError(f"{FLAG} {path}: no images in it; expected members such as KEY.jpg")
    return images
