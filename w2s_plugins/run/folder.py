"""The folder of a run: who may write there, and from which checkpoint the run goes on."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ..distributed.world import World, broadcast_from_rank0
from ..errors import UserError
from ..monitor import Trackers
from .checkpoint import Checkpoint, read_whole
from .find import LAST, checkpoints, find_resume
from .history import History
from .location import RunLocation
from .lock import lock_run


def lock_existing_run(location: RunLocation, world: World) -> Checkpoint | None:
    """Keep others out of a run folder that is there already; return the checkpoint that the run goes on from, None for
    one that starts anew.

    Rank 0 chooses it for all: what is damaged for one may not be for another.

    Raises:
        UserError: another process trains in it, or it is not to be continued; on every rank, so that none waits for
            one that has ended.
    """
    checkpoint: Checkpoint | None = None
    refusal: UserError | None = None
    if world.primary:
        try:
            folder = location.folder
            # the lock comes first: from here on nobody else writes what is looked at
            if location.name and folder.is_dir():
                lock_run(folder)
                # a run that starts anew may not write over another one in its folder
                there = checkpoints(folder)
                if there and not location.resume:
                    raise UserError(
                        f"the run folder {folder} exists already: continue it with --resume auto, or give "
                        "another --experiment"
                    )
                if (folder / "result.json").is_file() and not there:
                    raise UserError(
                        f"the run folder {folder} has lost its checkpoints, and a run that starts anew in "
                        "it would write over the rest: give another --experiment, or delete the folder"
                    )
            checkpoint = _choose_checkpoint(location)
        except UserError as error:
            refusal = error
    # an error of rank 0 is raised on all, and they end alike
    path = None if checkpoint is None else checkpoint.path
    path, refusal = broadcast_from_rank0((path, refusal), world.distributed)
    if refusal is not None:
        raise refusal
    if path is not None and checkpoint is None:
        checkpoint = Checkpoint.from_content(path, read_whole(path))
    return checkpoint


def _choose_checkpoint(location: RunLocation) -> Checkpoint | None:
    if not location.resume:
        return None
    # the furthest whole one of the folder of this run, which may be a new one
    if location.resume == "auto":
        return find_resume(location.folder)
    # a checkpoint or a run folder by its name
    path = Path(location.resume)
    if not path.exists():
        raise UserError(
            f"--resume {path}: no such file; expected a checkpoint, a run folder, or auto"
        )
    if not path.is_dir():
        return Checkpoint.from_content(path, read_whole(path))
    checkpoint = find_resume(path)
    if checkpoint is None:
        raise UserError(f"--resume {path}: the folder has no checkpoint (expected {LAST})")
    return checkpoint


def make_run_folder(location: RunLocation, new_name: str, world: World) -> Path:
    """Create the run folder on rank 0, keep others out of it, and tell the other ranks where it is.

    Args:
        location: where the run is to be.
        new_name: of the folder if the flags give none; a number is added where two runs start in one second.
        world: the processes.

    Raises:
        UserError: the folder cannot be written to, or another process trains in it.
    """
    folder = location.root / (location.name or new_name)
    if world.primary:
        try:
            location.root.mkdir(parents=True, exist_ok=True)
            if location.name:
                folder.mkdir(exist_ok=True)
            else:
                folder = _make_new_folder(folder)
        except OSError as error:
            raise UserError(
                f"--output {folder}: cannot be written to ({error.strerror}); choose another folder "
                "with --output"
            ) from error
        # the lock is new if the folder was made since `lock_existing_run`
        if lock_run(folder) and checkpoints(folder):
            raise UserError(
                f"another process has trained in {folder} meanwhile: repeat the command with --resume "
                "auto, or give another --experiment"
            )
    return broadcast_from_rank0(folder, world.distributed)


def _make_new_folder(folder: Path) -> Path:
    number = 0
    numbered = folder
    # to make it is to ask whether it is there: another process may want the same name at this moment
    while True:
        try:
            numbered.mkdir()
            return numbered
        except FileExistsError:
            number += 1
            numbered = folder.with_name(f"{folder.name}-{number}")


@dataclass
class RunFiles:
    """What a run writes as it goes on, beside its checkpoints. Rank 0 has it.

    Args:
        metrics: the events.
        trackers: TensorBoard, Weights & Biases.
        predictions: names of columns and (N, columns) classes, and logits: what the student said of each sample of the
            validation split at the newest evaluation.
        held_out: (N, 1) how far it agreed with its teacher on each sample of the held-out part.
    """

    metrics: History
    trackers: Trackers
    predictions: tuple[list[str], torch.Tensor] | None = None
    held_out: torch.Tensor | None = None

    def state(self) -> dict[str, object]:
        """Return what a checkpoint carries of it."""
        state: dict[str, object] = dict(history=self.metrics.text, predictions=self.predictions)
        if self.held_out is not None:
            state["held_out"] = self.held_out
        if self.trackers.id is not None:
            state["tracked"] = self.trackers.id
        return state
