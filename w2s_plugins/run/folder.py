"""The folder of a run: where it is, who may write there, and from which checkpoint the run goes on."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import torch

from ..distributed.world import World, agree
from ..errors import UserError
from ..models.shards import is_sharded
from ..monitor import Trackers
from .find import LAST, Checkpoint, check_checkpoint, checkpoints, find_resume
from .history import History
from .lock import hold
from .place import HUB, Place
from .published import pull_checkpoint


def hold_existing_run(place: Place, world: World) -> Checkpoint | None:
    """Keep others out of a run folder that is there already; return the checkpoint that the run goes on from.

    Rank 0 chooses it for all: what is damaged for one may not be for another.

    Raises:
        UserError: another process trains in it, or it is not to be continued; on every rank, so that none waits for
            one that has ended.
    """
    checkpoint = answer = None
    if world.primary:
        try:
            # the lock comes first: from here on nobody else writes what is looked at
            if place.name and place.folder.is_dir():
                hold(place.folder)
            refuse_existing_run(place)
            checkpoint = _choose_checkpoint(place)
            answer = None if checkpoint is None else checkpoint.path
        except UserError as error:
            answer = error
    # an error of rank 0 is raised on all, and they end alike
    answer = agree(answer, world.distributed)
    if isinstance(answer, UserError):
        raise answer
    return checkpoint if world.primary or answer is None else Checkpoint(answer)


def refuse_existing_run(place: Place) -> None:
    """Raise a `UserError` when the named run folder holds a run and is not to be continued, or not that one."""
    if place.resume.startswith(HUB) and (place.folder / "args.yaml").is_file():
        raise UserError(f"--resume {place.resume}: {place.folder} holds a run already: --resume auto goes on with that "
                        "one; give another --experiment")
    if place.name and not place.resume:
        if checkpoints(place.folder):
            raise UserError(f"the run folder {place.folder} exists already: continue it with --resume auto, or give "
                            "another --experiment")
        _refuse_what_is_left(place.folder)


def _refuse_what_is_left(folder: Path) -> None:
    """Raise a `UserError` for a folder without checkpoints whose run has had some: another would write over the rest.

    The evaluation of an epoch is written before its checkpoint, so that the last one proves nothing.
    """
    left = None
    # what a finished run, or one of several epochs, leaves beside its checkpoints
    history = folder / "metrics.jsonl"
    if (folder / "result.json").is_file():
        left = "result.json"
    elif history.is_file() and history.read_bytes().count(b'{"event": "eval"') > 1:
        left = history.name
    if left:
        raise UserError(f"the run folder {folder} has lost its checkpoints, and a run that starts anew in it would "
                        f"write over its {left}: give another --experiment, or delete the folder")


def _choose_checkpoint(place: Place) -> Checkpoint | None:
    if not place.resume:
        return None
    # the furthest whole one of the folder of this run
    if place.resume == "auto":
        found = find_resume(place.folder)
        if found is None:
            _refuse_what_is_left(place.folder)
        return found
    # one that was published
    if place.resume.startswith(HUB):
        return Checkpoint(pull_checkpoint(place.resume.removeprefix(HUB), place.folder))
    # a checkpoint or a run folder by its name
    path = Path(place.resume)
    if not path.exists():
        raise UserError(f"--resume {path}: no such file; expected a checkpoint, a run folder, {HUB}ORG/NAME, or auto")
    if not path.is_dir() or is_sharded(path):
        return Checkpoint(path, check_checkpoint(path))
    found = find_resume(path)
    if found is None:
        raise UserError(f"--resume {path}: the folder has no checkpoint (expected {LAST})")
    return found


def _make_new(folder: Path) -> Path:
    """Create a folder, with a number behind its name where it exists: two runs may start in one second."""
    for number in itertools.count():
        made = folder.with_name(f"{folder.name}-{number}") if number else folder
        try:
            made.mkdir()
            return made
        except FileExistsError:
            continue


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
            # the folder of runs may be new, too
            folder.parent.mkdir(parents=True, exist_ok=True)
            if place.name:
                folder.mkdir(exist_ok=True)
            else:
                folder = _make_new(folder)
        except OSError as error:
            raise UserError(f"--output {folder}: cannot be written to ({error.strerror}); choose another folder "
                            "with --output") from error
        # the lock is new here where the folder was made since `hold_existing_run`
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
