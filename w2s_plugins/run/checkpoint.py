"""What a run goes on from: a checkpoint, read once and handed to all that take something up from it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.optimizer import StateDict

from ..errors import UserError, one_line
from ..made_of import Ingredient, from_plain
from ..models.loading import read_checkpoint
from .position import Position

# what `Saver` and `RunFiles` note beside the state of the parts, which has timm's names
_NOTES = ("saver", "w2s")


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Turn whatever the parts of a run say of a state that is not theirs into a `UserError`."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each part checks its state in its own way
        raise UserError(
            f"--resume {path}: does not fit this run: {type(error).__name__}: {one_line(error)}"
        ) from error


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint, of this program or of timm's own script, which notes only flags and states.

    Args:
        path: the file.
        flags: of the run that wrote it.
        made_of: what that run was made of.
        of_timm: it is one of timm's own script.
        states: of student, loss, their averages, optimizer and scaler, by timm's names.
        position: where the run stood; the sums of terms are on the CPU.
        plateau: counters of a schedule of plateaus.
        processes: how many the run had.
        best_epochs: names and metrics of the best epochs, best first.
        best_epoch: the best of all.
        best_metric: its metric.
        history: all events, as `History.text`.
        predictions: as in `RunFiles`, like ``held_out``.
        tracked: id of the run in Weights & Biases.
        rank_states: what differed from rank to rank inside an epoch, from `gather_rank_states`.
    """

    path: Path
    flags: Mapping[str, object]
    made_of: list[Ingredient]
    of_timm: bool
    states: Mapping[str, StateDict]
    position: Position
    plateau: StateDict
    processes: int | None
    best_epochs: list[tuple[str, float]]
    best_epoch: int | None
    best_metric: float | None
    history: str
    predictions: tuple[list[str], Tensor] | None
    held_out: Tensor | None
    tracked: str | None
    rank_states: list[dict[str, dict[str, Tensor]]] | None

    @classmethod
    def from_content(cls, path: Path, content: Mapping[str, object]) -> Checkpoint:
        """Read what a file holds; older versions of this program, and timm, have noted less.

        Raises:
            UserError: something is of another kind than it has to be.
        """
        # what is a mapping is a state of a part, under the name that timm gives it
        states = {name: part for name, part in content.items() if isinstance(part, dict)}
        saver, notes = (states.pop(name, {}) for name in _NOTES)
        # timm stores flags as they came from its parser
        args = content.get("args")
        flags = vars(args) if isinstance(args, argparse.Namespace) else {}
        # the file may come from others: whatever a value of a wrong kind raises is told in one line
        with fitting(path):
            predictions = None
            if notes.get("predictions") is not None:
                columns, rows = notes["predictions"]
                predictions = list(map(str, columns)), rows.reshape(-1, len(columns))
            return cls(
                path=path,
                flags=flags,
                made_of=from_plain(flags.get("made_of")),
                of_timm=not notes,
                states=states,
                position=Position.from_notes(content, notes),
                plateau=dict(notes.get("plateau") or {}),
                processes=int(notes["processes"]) if "processes" in notes else None,
                best_epochs=[(n, float(metric)) for n, metric in saver.get("checkpoint_files", ())],
                best_epoch=saver.get("best_epoch"),
                best_metric=saver.get("best_metric"),
                history=notes.get("history", ""),
                predictions=predictions,
                held_out=None
                if notes.get("held_out") is None
                else notes["held_out"].reshape(-1, 1),
                tracked=notes.get("tracked"),
                rank_states=notes.get("rank_states"),
            )


def read_whole(path: Path) -> dict[str, object]:
    """Return what is in a checkpoint of a run, once the file has been compared with the checksums in it.

    Raises:
        UserError: it is damaged, or no checkpoint of a run.
    """
    content = read_checkpoint(path, "--resume")
    if not isinstance(content.get("epoch"), int):
        raise UserError(
            f"--resume {path}: not a training checkpoint, it has no epoch; to start from its weights use "
            "--initial-checkpoint"
        )
    return content
