"""Datasets of the Hub as shards: each of their parquet or tar files is fetched when it is reached, at one revision.

No code of a dataset is run. The images of a parquet file are written one after the other to a file under the cache, as
which it is read from then on; a tar file is read from where huggingface_hub keeps it.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

from ..data.shards import HUB, Members, Shard, scan_tar
from ..data.unlabeled import FLAG
from ..errors import UserError, nearest, one_line
from ..files import atomic_write
from .errors import check_repo_id, on_hub

KEYS = ("id", "__key__")  # columns that name a sample
SUFFIXES = (".parquet", ".tar")


@dataclass(frozen=True)
class HubShard(Shard):
    """A file of a dataset on the Hub.

    Args:
        repo: ``ORG/NAME``.
        revision: the commit.
        file: its path there.
    """

    repo: str = ""
    revision: str = ""
    file: str = ""

    @property
    def stamp(self) -> str:
        """The commit, at which a file does not change."""
        return self.revision

    def index_files(self, cache: Path) -> list[Path]:
        return [self.path.with_name(f"{self.path.name}.index")]

    def data(self) -> Path:
        """Return the file that the bytes of its images are in, which is fetched where it is not there."""
        if self.file.endswith(".tar"):
            return self._fetch()
        if not self.path.is_file():
            self.scan()
        return self.path

    def scan(self) -> Members:
        """Find the images in the file, which is fetched. Raises `UserError`."""
        if self.file.endswith(".tar"):
            return scan_tar(self._fetch())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock"):  # the workers of one machine want the same file
            return unpack_parquet(self._fetch(), self.path, f"{FLAG} {HUB}{self.repo}: {self.file}")

    def _fetch(self) -> Path:
        where = dict(repo_id=self.repo, filename=self.file, repo_type="dataset", revision=self.revision)
        there = try_to_load_from_cache(**where)  # without a look at the Hub: a commit does not change
        return Path(there if isinstance(there, str) else on_hub(
            f"{FLAG} {HUB}{self.repo}: {self.file}", lambda: hf_hub_download(**where)))


def find_hub_shards(text: str, cache: Path) -> tuple[Path, Sequence[HubShard]]:
    """Return the files of ``hfids/ORG/NAME[:SPLIT][@REVISION]``, and the folder that what is made of them lies in.

    Raises:
        UserError: no such dataset or split, or it has files of neither kind.
    """
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?(?:@([\w./-]+))?", text.removeprefix(HUB))
    if match is None:
        raise UserError(f"{FLAG} {text}: expected {HUB}ORG/NAME, {HUB}ORG/NAME:SPLIT, or with @REVISION behind it")
    repo, split, revision = match.groups()
    check_repo_id(repo)
    about = on_hub(f"{FLAG} {text}", lambda: HfApi().dataset_info(repo, revision=revision))
    files = sorted(entry.rfilename for entry in about.siblings if entry.rfilename.endswith(SUFFIXES))
    # a split is a word in the path of its files
    word = re.compile(rf"(?<![A-Za-z0-9]){re.escape(split or '')}(?![A-Za-z0-9])")
    chosen = [file for file in files if split is None or word.search(file)]
    if not chosen:
        known = {part for file in files for part in re.split(r"[^A-Za-z0-9_]+", file)[:-1] if not part.isdigit()}
        of_split = f" of the split '{split}'{nearest(split, known)}" if split else ""
        raise UserError(f"{FLAG} {text}: the dataset has no {' or '.join(SUFFIXES)} file{of_split}; its builder, if it "
                        "has one, is not run")
    root = cache / "shards" / repo.replace("/", "--") / about.sha
    return root, [HubShard(os.path.splitext(file)[0], root / f"{file}.images", repo, about.sha, file)
                  for file in chosen]


def unpack_parquet(source: Path, target: Path, flag: str) -> Members:
    """Write the images of a parquet file one after the other; return where they lie.

    Raises:
        UserError: pyarrow is absent, the file is damaged, or it has no column of images.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{flag}: parquet files need pyarrow: pip install pyarrow") from error
    found, place = Members([], [], []), 0
    try:
        with parquet.ParquetFile(source) as table, atomic_write(target) as temporary, temporary.open("wb") as file:
            schema = table.schema_arrow
            image = next((field.name for field in schema if _has_images(field.type)), None)
            key = next((name for name in KEYS if name in schema.names), None)
            if image is None:
                raise UserError(f"{flag}: has no column of images; its columns: {', '.join(schema.names)}")
            for batch in table.iter_batches(64, columns=[image, key] if key else [image]):
                names = batch.column(key).to_pylist() if key else range(len(found.keys), len(found.keys) + len(batch))
                for name, value in zip(names, batch.column(image).to_pylist()):
                    content = (value.get("bytes") if isinstance(value, dict) else value) or b""
                    file.write(content)
                    found.keys.append(str(name))
                    found.starts.append(place)
                    found.sizes.append(len(content))
                    place += len(content)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{flag}: cannot be read as parquet: {one_line(error)}") from error
    if not found.keys:
        raise UserError(f"{flag}: has no rows")
    return found


def _has_images(kind: object) -> bool:
    """Say whether a column has encoded images, as `datasets` writes them or as plain bytes."""
    from pyarrow import types

    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return types.is_binary(kind) or types.is_large_binary(kind)
