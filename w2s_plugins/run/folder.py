"""The folder of a run: where it is, who may write there, and from which checkpoint the run goes on."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import torch

from ..distributed.world import World, agree
from ..errors import UserError
from ..models.shards import is_sharded
from ..monitor import Trackers
from .find import LAST, Checkpoint, check_checkpoint, checkpoints, find_resume, find_whole
from .history import History
from .lock import hold
from .place import HUB, Place, refuse_existing_run, refuse_what_is_left
from .published import pull_checkpoint


def hold_existing_run(place: Place, world: World) -> Checkpoint | None:
    """Keep others out of a run folder that is there already; return the checkpoint that the run goes on from.

    Rank 0 chooses it for all: what is damaged for one may not be for another.

    Raises:
        UserError: another process trains in it, or it is not to be continued; on every rank, so that none waits for
            one that has ended.
    """
    if world.primary and place.name and place.folder.is_dir():
        hold(place.folder)
    agree(None, world.distributed)  # from here on nobody else writes, so that all ranks see the same
    refuse_existing_run(place)
    checkpoint = answer = None
    if world.primary and place.resume:
        try:
            checkpoint = _choose_checkpoint(place)
            answer = None if checkpoint is None else checkpoint.path
        except UserError as error:
            answer = error
    answer = agree(answer, world.distributed)
    if isinstance(answer, UserError):
        raise answer
    return checkpoint if world.primary or answer is None else Checkpoint(answer)


def _choose_checkpoint(place: Place) -> Checkpoint | None:
    if place.resume == "auto":
        found = find_resume(place.folder)
        if found is None:
            refuse_what_is_left(place.folder)
        return found
    if place.resume.startswith(HUB):
        return Checkpoint(pull_checkpoint(place.resume.removeprefix(HUB), place.folder))
    path = Path(place.resume)
    if path.is_dir() and not is_sharded(path):
        found = find_resume(path)
        if found is None:
            raise UserError(f"--resume {path}: the folder has no checkpoint (expected {LAST})")
        return found
    try:
        if not path.exists():
            raise UserError(f"--resume {path}: no such file; expected a checkpoint, a run folder, "
                            f"{HUB}ORG/NAME, or auto")
        return Checkpoint(path, check_checkpoint(path))
    except UserError as error:
        other, _ = find_whole(path.parent) if (path.parent / "args.yaml").is_file() else (None, ())
        if other is None:
            raise
        raise UserError(f"{error}; {other.path} is whole: --resume {path.parent} goes on from there") from error


def _make(folder: Path, exist_ok: bool) -> Path:
    """Create a folder; where it is not to exist, one with a number behind its name: two runs may start in a second."""
    for number in itertools.count():
        made = folder.with_name(f"{folder.name}-{number}") if number else folder
        try:
            made.mkdir(parents=True, exist_ok=exist_ok)
            return made
        except FileExistsError:
            if exist_ok:
                raise


def make_run_folder(place: Place, new_name: str, world: World) -> Path:
    """Create the run folder on rank 0, keep others out of it, and tell the other ranks where it is.

    Args:
        place: where the run is to be.
        new_name: of the folder when the flags give none.
        world: the processes.

    Raises:
        UserError: the folder cannot be written to, or another process trains in it.
    """
    folder = place.root / (place.name or new_name)
    if world.primary:
        try:
            folder = _make(folder, exist_ok=bool(place.name))
        except OSError as error:
            raise UserError(f"--output {folder}: cannot be written to ({error.strerror}); choose another folder "
                            "with --output") from error
        if hold(folder) and checkpoints(folder):
            raise UserError(f"another process has trained in {folder} meanwhile: repeat the command with --resume "
                            "auto, or give another --experiment")
    return agree(folder, world.distributed)


@dataclass
class RunFiles:
    """What a run writes as it goes on, beside its checkpoints. Rank 0 has it.

    Args:
        metrics: the events.
        trackers: TensorBoard, Weights & Biases, trackio.
        predictions: names of columns and (N, columns) classes: what the student said of each sample of the validation
            split at the newest evaluation.
        best: the same at the best one, where that was made by this process.
    """

    metrics: History
    trackers: Trackers
    predictions: tuple[list[str], torch.Tensor] | None = None
    best: tuple[list[str], torch.Tensor] | None = None

    def state(self) -> dict[str, object]:
        """Return what a checkpoint carries of it."""
        tracked = {} if self.trackers.id is None else dict(tracked=self.trackers.id)
        return dict(history=self.metrics.text, predictions=self.predictions, **tracked)
