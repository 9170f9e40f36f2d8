"""Labels written to a folder: by all ranks together, by one run at a time, and gone on with after an interruption.

Ranks take parts in turn and a part is whole or absent, so the files depend neither on the number of ranks nor on
interruptions, as long as whoever labels says the same of a part at any time.
"""

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist
from filelock import FileLock, Timeout
from torch import Tensor

from ..data.keys import SampleKeys
from ..distributed.world import agree, meet
from ..errors import UserError, one_line
from ..files import read_plain, write_json, write_text
from .format import KEYS, MANIFEST, Manifest, Part, write_part

_logger = logging.getLogger(__name__)

LOG_SECONDS = 20


class Answers(NamedTuple):
    """What was said about the samples of a part, (n, ...), and the rows that nobody could be asked about."""

    values: Tensor
    missing: Sequence[int] = ()


Labeller = Callable[[Sequence[Part]], Iterator[Answers]]  # yields the answers of each part
Progress = Callable[[Sequence], Sequence]


def ensure_labels(
        folder: Path,
        manifest: Manifest,
        keys: SampleKeys,
        labeller: Labeller,
        *,
        distributed: bool = False,
        progress: Progress | None = None,
        title: str | None = None,
) -> Path:
    """Return a complete folder of labels; what is missing of it is written, by all ranks together.

    Only one run at a time writes to a folder; another one that wants the same waits for it.

    Args:
        folder: of the labels.
        manifest: what it is to hold.
        keys: of the samples, in the order of the labels.
        labeller: asked about the parts that are missing.
        distributed: divide the work among the ranks; all of them call this.
        progress: wraps the sequence of this rank's parts to show progress.
        title: what they are called in messages, in place of `Manifest.title`.

    Raises:
        UserError: other labels are in the folder; no room on the disk; it cannot be written to.
    """
    primary, title = not distributed or dist.get_rank() == 0, title or manifest.title
    if not agree(primary and missing_parts(folder, manifest), distributed):
        _logger.info(f"{title.capitalize()} found in {folder}: the {title.split()[0]} need not run")
        return folder
    with _one_writer(folder, title, primary, distributed):
        missing = agree(primary and _prepare(folder, manifest, keys), distributed)
        parts = missing[dist.get_rank()::dist.get_world_size()] if distributed else missing
        started = said = time.monotonic()
        for done, (part, answers) in enumerate(zip(
                progress(parts) if progress and parts else parts, labeller(parts) if parts else ()), start=1):
            write_part(folder, manifest, part, *answers)
            now = time.monotonic()
            if now - said > LOG_SECONDS:
                said = now
                _logger.info(f"{title.capitalize()}: part {done} of {len(parts)}, "
                             f"{(now - started) / done * (len(parts) - done):.0f} s left")
        if distributed:
            meet()
    return folder


def missing_parts(folder: Path, manifest: Manifest) -> list[Part]:
    """Return the parts that are not there yet. Raises `UserError` for other labels, or too little room."""
    check_content(folder, manifest)
    present = {path.name for path in folder.glob("*.safetensors")}
    # before all parts are listed, of which there may be too many to list
    check_room(folder, (manifest.num_samples * manifest.views - len(present) * manifest.rows) * manifest.row_bytes)
    return [part for view in range(manifest.views) for part in manifest.parts(view) if part.file not in present]


def check_content(folder: Path, manifest: Manifest) -> None:
    """Raise a `UserError` that names the first thing in which the labels in ``folder`` are not those wanted."""
    path = folder / MANIFEST
    if not path.exists():
        return
    try:
        content = read_plain(path)
        if not isinstance(content, dict):
            raise ValueError("no manifest")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)}); delete its folder, and the next run makes it "
                        "anew") from error
    found, wanted = (dict(_leaves(part)) for part in (content, manifest.content))
    for name in sorted(wanted.keys() | found.keys()):
        if found.get(name) != wanted.get(name):
            raise UserError(f"{folder}: these labels were made for {name} {found.get(name)}, this run has "
                            f"{wanted.get(name)}; delete the folder or give another --target-cache")


def _leaves(content: object, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(content, dict):
        for name, value in content.items():
            yield from _leaves(value, f"{path}.{name}" if path else name)
    else:
        yield path, content


def _prepare(folder: Path, manifest: Manifest, keys: SampleKeys) -> list[Part]:
    """Look again with the lock held, say what will be written, and see that there is room for it."""
    missing, title = missing_parts(folder, manifest), manifest.title.capitalize()
    if not missing:
        _logger.info(f"{title} found in {folder}: another run has made them meanwhile")
        return missing
    if not (folder / MANIFEST).exists():
        if keys.text is not None:
            write_text(folder / KEYS, keys.text)
        write_json(folder / MANIFEST, manifest.content)
    size = sum(part.stop - part.first for part in missing) * manifest.row_bytes
    total, free = manifest.num_samples * manifest.views * manifest.row_bytes, shutil.disk_usage(folder).free
    views = f" x {manifest.views} views" if manifest.views > 1 else ""
    kept = f"; {readable(total - size)} are there from an earlier run" if size < total else ""
    _logger.info(
        f"{title}: {manifest.num_samples} images{views}, {manifest.num_classes} "
        f"{'columns' if manifest.kind == 'features' else 'classes'}"
        f"{f', top {manifest.topk}' if manifest.topk else ''}, {manifest.content['dtype']}: {readable(size)} to write "
        f"to {folder} ({readable(free)} free{kept})")
    return missing


def check_room(folder: Path, size: int) -> None:
    """Raise a `UserError` when fewer than ``size`` bytes are free on the disk of a folder, which need not exist yet."""
    free = shutil.disk_usage(next(place for place in (folder.absolute(), *folder.absolute().parents)
                                  if place.exists())).free
    if size > free:
        raise UserError(f"--target-cache {folder}: {readable(size)} are needed, {readable(free)} are free; choose "
                        "another disk, or store less with --teacher-topk K, --teacher-cache-dtype float16 or fewer "
                        "views")


@contextlib.contextmanager
def _one_writer(folder: Path, title: str, primary: bool, distributed: bool) -> Iterator[None]:
    """Hold the lock of a folder, on rank 0 for all ranks. It is free again when its holder dies."""
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    waiting = False
    # All ranks ask again and again, so that none is left in a collective until it times out.
    while not agree(primary and _acquire(lock, folder), distributed):
        if not waiting:
            _logger.info(f"Another run is writing the {title} {folder}: waiting for it")
        waiting = True
        time.sleep(1)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        return False
    except (OSError, NotImplementedError) as error:
        raise UserError(f"--target-cache {folder.parent}: cannot be written to ({one_line(error)}); choose another "
                        "folder") from error
    return True


def readable(size: float) -> str:
    """Return a number of bytes as a short text."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
