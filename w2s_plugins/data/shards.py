"""Images without labels in shards: tar files of webdataset, and files of a dataset on the Hub, opened when reached.

Nothing about a single sample is in memory: a dataset knows how many samples each shard has, so a sample is a number;
an index of the shard, a file beside it that is made once of its headers, says where its bytes lie. A process has the
indexes of a few shards open.
"""

import hashlib
import json
import os
import re
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from glob import glob, has_magic
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, Generic, NamedTuple, TypeVar

from timm.data.readers.img_extensions import get_img_extensions
from timm.data.readers.reader import Reader
from torch.utils.data import Dataset

from ..errors import UserError, one_line
from .keys import SampleKeys, positions_in_split, whole_split
from .order import WINDOW
from .readers import NO_LABEL, Place, tar_members
from .unlabeled import FLAG, Unlabeled

T = TypeVar("T")

WDS, HUB = "wds/", "hfids/"
OPEN = 2 * WINDOW  # indexes in memory at a time: two windows meet in a batch
THREADS = 16  # that wait for a file system


class Members(NamedTuple):
    """Where the images of a shard lie in its file: key, first byte and size of each."""

    keys: list[str]
    starts: list[int]
    sizes: list[int]


@dataclass(frozen=True)
class Shard:
    """A tar file of webdataset.

    Args:
        name: names the folder of its labels; relative to the folder that all shards are in, without ``.tar``.
        path: the file.
    """

    name: str
    path: Path

    @property
    def stamp(self) -> str:
        """Changes when the file does."""
        about = os.stat(self.path)
        return f"{about.st_size} {about.st_mtime_ns}"

    def index_files(self, cache: Path) -> list[Path]:
        """Where its index may be: beside it, else, where nothing can be written there, in a cache."""
        name = hashlib.sha256(os.fsencode(os.path.abspath(self.path))).hexdigest()[:24]
        return [self.path.with_name(f"{self.path.name}.index"), cache / "shards" / f"{name}.index"]

    def data(self) -> Path:
        """Return the file that the bytes of its images are in."""
        return self.path

    def scan(self) -> Members:
        """Find the images in the file. Raises `UserError` where it has none, or is damaged."""
        return scan_tar(self.path)


def find_shards(text: str) -> tuple[Path, list[Shard]]:
    """Return the shards that ``wds/PATH`` names and the folder that all of them are in.

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
    # names are relative, so that they are the same on another machine
    paths = list(dict.fromkeys(named))
    top = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    return Path(top), [Shard(os.path.relpath(path, top).removesuffix(".tar"), Path(path)) for path in paths]


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


def scan_tar(path: Path) -> Members:
    """Find the images of a shard by the headers of its members.

    As in webdataset, the key of a sample is its path up to the first dot of the file's name; what follows that is
    ``jpg``, ``png`` or the like for the image, which other members, ``json`` or ``cls`` or ``seg.png``, are not.
    """
    kinds = get_img_extensions(as_set=True)
    found = Members([], [], [])
    for member in tar_members(path, FLAG):
        # KEY.SUFFIX in whatever folder
        folder, _, name = member.name.rpartition("/")
        base, _, suffix = name.partition(".")
        if base and f".{suffix.lower()}" in kinds:
            found.keys.append(f"{folder}/{base}" if folder else base)
            found.starts.append(member.offset_data)
            found.sizes.append(member.size)
    if not found.keys:
        raise UserError(f"{FLAG} {path}: no images in it; expected members such as KEY.jpg")
    return found


# ---------------------------------------------------------------- the index of a shard


def index_file(shard: Shard, cache: Path) -> Path:
    """Return the index of a shard as it is now, which is made where there is none.

    It is a line of what is known of all samples, see `read_about`, and one of their `Members`, in JSON.

    Raises:
        UserError: the shard is damaged, has no image, or a key twice; an index can be written nowhere.
    """
    try:
        stamp = shard.stamp
    except OSError as error:
        raise UserError(f"{FLAG} {shard.path}: cannot be read ({one_line(error)})") from error
    # one that is as old as the shard is taken
    places = shard.index_files(cache)
    for path in places:
        if path.is_file() and read_about(path).get("stamp") == stamp:
            return path

    # made of the headers of the shard
    found = shard.scan()
    if len({*found.keys}) < len(found.keys):
        twice = Counter(found.keys).most_common(1)[0][0]
        raise UserError(f"{FLAG} {shard.path}: the key {twice} is there more than once; expected one image of each")
    about = dict(stamp=stamp, keys=SampleKeys("filename", found.keys).sha256, count=len(found.keys))
    for path in places:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as own:  # others write it, too
                written = Path(own, path.name)
                written.write_text(f"{json.dumps(about)}\n{json.dumps(found)}\n")
                os.replace(written, path)
            return path
        except OSError as error:
            refused = error
    raise UserError(f"{places[-1]}: cannot be written ({one_line(refused)}); choose another --target-cache")


def read_about(index: Path) -> dict[str, object]:
    """Return what an index says of its shard: stamp, hash of the keys, number of samples; nothing where it is damaged.
    """
    try:
        with index.open() as file:
            about = json.loads(file.readline())
        return about if {"stamp", "keys", "count"} <= about.keys() else {}
    except (OSError, ValueError, AttributeError):
        return {}


# ---------------------------------------------------------------- the dataset


class Opened(Generic[T]):
    """What was opened of each of the `OPEN` shards that were used last, by their numbers."""

    def __init__(self, open_one: Callable[[int], T]):
        self.open_one, self.opened = open_one, {}

    def __getitem__(self, number: int) -> T:
        # a dictionary has its keys in the order in which they came: the newest is the last
        found = self.opened.pop(number, None)
        if found is None:
            found = self.open_one(number)
        self.opened[number] = found
        if len(self.opened) > OPEN:
            oldest = next(iter(self.opened))
            del self.opened[oldest]
        return found


class ShardReader(Reader):
    """timm's interface to the images of shards, by their number in all of them.

    Args:
        root: folder of the shards.
        shards: in their order.
        cache: folder of indexes that cannot be beside their shards.
    """

    def __init__(self, root: Path, shards: Sequence[Shard], cache: Path):
        super().__init__()
        self.root = str(root)
        self.shards = list(shards)
        self.cache = cache

        # each process begins with others of the shards that have no index yet, and all of them find the rest made
        first = int(os.environ.get("RANK", "0")) * len(shards) // int(os.environ.get("WORLD_SIZE", "1"))
        order = [*range(first, len(shards)), *range(first)]
        with ThreadPoolExecutor(THREADS) as pool:
            abouts = pool.map(lambda number: read_about(index_file(shards[number], cache)), order)
            found = [about for _, about in sorted(zip(order, abouts), key=lambda pair: pair[0])]
        self.keys = [about["keys"] for about in found]
        self.bounds = [0, *accumulate(about["count"] for about in found)]
        self.indexes = Opened(self._read_index)

    @property
    def identity(self) -> str:
        """Of the samples: names of the shards, and keys."""
        lines = "".join(f"{shard.name} {keys}\n" for shard, keys in zip(self.shards, self.keys))
        return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()

    def __len__(self) -> int:
        return self.bounds[-1]

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        number, row = self._place(index)
        table = self.indexes[number]
        place = Place(str(self.shards[number].data()), table.starts[row], table.sizes[row])
        return place.open(), NO_LABEL

    def _place(self, index: int) -> tuple[int, int]:
        number = bisect_right(self.bounds, index) - 1
        return number, index - self.bounds[number]

    def _read_index(self, number: int) -> Members:
        # the shard may have been replaced meanwhile
        shard = self.shards[number]
        index = index_file(shard, self.cache)
        table = Members(*json.loads(index.read_text().splitlines()[1]))
        if len(table.keys) != self.bounds[number + 1] - self.bounds[number]:
            raise UserError(f"{FLAG} {shard.path}: has changed since it was opened")
        return table

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        number, row = self._place(index)
        key = self.indexes[number].keys[row]
        return key if basename else os.path.join(self.root if absolute else "", self.shards[number].name, key)


def open_shards(root: Path, shards: Sequence[Shard], cache: Path, input_img_mode: str = "RGB") -> Unlabeled:
    """Open shards as one dataset of images without labels. Raises `UserError` as `index_file`."""
    # an identity of all keys takes the place of a list of billions
    reader = ShardReader(root, shards, cache)
    dataset = Unlabeled(str(root), reader=reader, input_img_mode=input_img_mode)
    dataset.identity = reader.identity
    return dataset


def shard_reader(dataset: Dataset) -> ShardReader | None:
    """Return what reads the shards that a dataset, or the one that it is a part of, is made of; None for another."""
    reader = getattr(whole_split(dataset), "reader", None)
    return reader if isinstance(reader, ShardReader) else None


def shard_bounds(dataset: Dataset) -> list[int] | None:
    """Return where the shards of a dataset begin and, last, its size; None where it is not of whole stretches of some.
    """
    reader = shard_reader(dataset)
    # a stretch of all shards in their order, from which whole ones can be read
    places = None if reader is None else positions_in_split(dataset)
    if not isinstance(places, range):
        return None
    return [0, *(bound - places.start for bound in reader.bounds if places.start < bound < places.stop), len(places)]
