"""Which checkpoint of a run folder is the one to go on from, and which the one to export."""

import contextlib
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from ..files import SHARDED
from ..models.loading import read_checkpoint
from ..models.shards import check_shards, is_sharded

_logger = logging.getLogger(__name__)

LAST, BEST = "last.pth.tar", "model_best.pth.tar"
SHARDED_LAST, SHARDED_BEST = f"last{SHARDED}", f"model_best{SHARDED}"  # of --fsdp: folders
_NAME = re.compile(r"(?:(?P<unnamed>last|model_best|\.last-old)|recovery-(?P<epoch>\d+)-(?P<update>\d+)"
                   r"|checkpoint-(?P<after>\d+)|milestone-(?P<done>\d+))\.(?:pth\.tar|sharded)")


@dataclass
class Checkpoint:
    """A checkpoint that a run goes on from. It is read once, when it is looked at, and handed on.

    Args:
        path: the file, or the folder of a sharded one.
        content: what `check_checkpoint` has read, None where another rank has looked at it.
    """

    path: Path
    content: dict[str, object] | None = field(default=None, repr=False)

    def take(self) -> dict[str, object]:
        """Return the content, and let go of it."""
        content = self.content
        self.content = None
        return read_checkpoint(self.path, "--resume") if content is None else content


def find_resume(folder: Path) -> Checkpoint | None:
    """Return the checkpoint of a run folder that is furthest of those that are whole, None where there are none at all.

    Of several of the same place, ``last`` comes first and the best one last.

    Raises:
        UserError: none is whole.
    """
    # the furthest first; what cannot be read is looked into, so that it is named
    places = {path: place(path) or (2 ** 63, 0) for path in checkpoints(folder)}
    damaged = []
    for path in sorted(places, key=lambda p: (places[p], "last" in p.name, "best" not in p.name), reverse=True):
        try:
            content = check_checkpoint(path)
            if type(content.get("epoch")) is not int:
                raise UserError(f"--resume {path}: not a training checkpoint, it has no epoch")
        except UserError as error:
            damaged.append(str(error))
            continue
        if damaged:
            _logger.warning(f"WARNING: passed over: {'; '.join(damaged)}; the run goes on from {path.name}")
        elif path.name.startswith(("checkpoint", "milestone", "model_best")):
            _logger.warning(f"WARNING: {folder} has no last checkpoint: the run goes on from {path.name}, and what "
                            "was trained after it is trained again")
        return Checkpoint(path, content)
    if damaged:
        raise UserError(f"{damaged[0]}; no other checkpoint in {folder} is whole: start anew in another folder")
    return None


def check_checkpoint(path: Path) -> dict[str, object]:
    """Return what is in a checkpoint of a run, as `read_checkpoint` does; shards are compared with their checksums.

    Raises:
        UserError: it is damaged.
    """
    # reading compares the checksums of the archive, so that a damaged one is noticed here
    content = read_checkpoint(path, "--resume")
    if is_sharded(path):
        check_shards(path, "--resume")
    return content


def find_best(folder: Path, epoch: int, sharded: bool) -> tuple[Path, dict[str, object]]:
    """Return a whole checkpoint of the epoch that ranked first, and its content.

    It is the best one, or another where that is lost or damaged.

    Raises:
        UserError: there is none.
    """
    # an epoch that ranked first has several names, all of the same content
    extension = SHARDED if sharded else ".pth.tar"
    damaged = []
    for name in ("model_best", f"checkpoint-{epoch}", f"milestone-{epoch + 1}", "last"):
        path = folder / f"{name}{extension}"
        if not path.exists():
            continue
        try:
            content = check_checkpoint(path)
        except UserError as error:
            damaged.append(f"; {error}".replace("--resume ", ""))
            continue
        if content.get("epoch") == epoch:
            return path, content
    raise UserError(f"{folder} has no whole checkpoint of epoch {epoch + 1}, the best one{''.join(damaged)}")


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run folder, whole or not; links that lead nowhere are none.

    Raises:
        OSError: nobody may look into the folder, of which `Path.glob` says nothing.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.exists())
    return []


def check_name(name: str) -> str:
    """Return the name of a checkpoint that came from outside. Raises `ValueError` where it is none."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name[:80]!r} in place of the name of a checkpoint")
    return name


def recoveries(folder: Path) -> list[Path]:
    """The recovery checkpoints in a run folder, the newest last."""
    return sorted((path for path in checkpoints(folder) if path.name.startswith("recovery")), key=place)


def place(path: Path) -> tuple[int, int] | None:
    """How far a checkpoint is, as epochs and then updates that are done; None when it cannot be read."""
    name = _NAME.fullmatch(path.name)
    # names of recovery checkpoints and of numbered epochs tell their place, without a look into the file
    if name and name["epoch"]:
        return int(name["epoch"]), int(name["update"]) + 1
    if name and name["after"]:
        return int(name["after"]) + 1, 0
    if name and name["done"]:
        return int(name["done"]), 0
    try:
        # last and best do not: what they hold does, of which the tensors stay on the disk
        epoch = read_checkpoint(path, "--resume", peek=True).get("epoch")
    except UserError:
        return None
    return (epoch + 1, 0) if type(epoch) is int else None
