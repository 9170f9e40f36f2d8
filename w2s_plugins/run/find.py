"""Which checkpoint of a run folder is the one to go on from, and which the one to export."""

import re
from pathlib import Path

from ..errors import UserError, logger
from ..files import delete
from ..models.loading import read_checkpoint
from .checkpoint import Checkpoint, read_whole

LAST, BEST = "last.pth.tar", "model_best.pth.tar"
_NAME = re.compile(
    r"(last|model_best|recovery-(?P<epoch>\d+)-(?P<update>\d+)|checkpoint-(?P<saved>\d+)"
    r"|milestone-(?P<epochs>\d+))\.pth\.tar"
)


def find_resume(folder: Path) -> Checkpoint | None:
    """Return the whole checkpoint of a run folder that is furthest, None if there are none at all.

    Of several that are equally far, ``last`` comes first and the best one last.

    Raises:
        UserError: none is whole.
    """
    # the furthest first, however it is called; a whole one that is less far is better than none
    progress = {path: progress_of(path) for path in checkpoints(folder)}
    damaged = []
    for path in sorted(
        progress, key=lambda p: (progress[p], "last" in p.name, "best" not in p.name), reverse=True
    ):
        try:
            content = read_whole(path)
        except UserError as error:
            damaged.append(str(error))
            continue
        if damaged:
            logger.warning(
                f"WARNING: passed over: {'; '.join(damaged)}; the run goes on from {path.name}"
            )
        return Checkpoint.from_content(path, content)
    if damaged:
        raise UserError(
            f"{damaged[0]}; no other checkpoint in {folder} is whole: start anew in another folder"
        )
    return None


def find_best(folder: Path, epoch: int) -> Checkpoint:
    """Return the best checkpoint. Raises `UserError` unless it is whole and of this epoch."""
    path = folder / BEST
    # a copy of `last` that could not be made has left an older one here
    content = read_whole(path)
    if content["epoch"] != epoch:
        raise UserError(f"{path} is not that of epoch {epoch + 1}, which was the best one")
    return Checkpoint.from_content(path, content)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run folder, whole or not; links that lead nowhere are none.

    Raises:
        OSError: nobody may look into the folder, of which `Path.glob` says nothing.
    """
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if is_checkpoint_name(path.name) and path.exists()
    )


def delete_older(folder: Path, keeps_best: bool) -> None:
    """Delete the checkpoints of a run that is finished, but for the last one, milestones and perhaps the best one."""
    # milestones were asked for by name, and the last one is what a repeated command finds
    for path in checkpoints(folder):
        if path.name.startswith("checkpoint-") or (path.name == BEST and not keeps_best):
            delete(path)


def is_checkpoint_name(name: object) -> bool:
    """Whether a name, which may come from outside, is that of a checkpoint in a run folder."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def recoveries(folder: Path) -> list[Path]:
    """The recovery checkpoints in a run folder, the newest last."""
    return sorted(
        (path for path in checkpoints(folder) if path.name.startswith("recovery")), key=progress_of
    )


def progress_of(path: Path) -> tuple[int, int]:
    """How far a checkpoint is, as epochs and then updates that are done; beyond all others if it cannot be read."""
    name = _NAME.fullmatch(path.name)
    if name is None:
        raise UserError(
            f"--resume {path}: does not fit this run: its name is none that a run gives to its checkpoints"
        )
    # most names say it
    if name["epoch"]:
        return int(name["epoch"]), int(name["update"]) + 1
    if name["saved"]:
        return int(name["saved"]) + 1, 0
    if name["epochs"]:
        return int(name["epochs"]), 0
    # of the last and the best one the file does, of which the tensors stay on the disk
    try:
        epoch = read_checkpoint(path, "--resume", peek=True).get("epoch")
    except UserError:
        epoch = None
    return (epoch + 1, 0) if isinstance(epoch, int) else (2**63, 0)
