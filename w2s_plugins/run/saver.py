"""Checkpoints are written in timm's format, each whole or not at all."""

import argparse
import os
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from timm.scheduler.plateau_lr import PlateauLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.task import TrainingTask
from timm.utils.cuda import NativeScaler
from torch.distributed.tensor import DTensor

from ..distributed.world import count_processes
from ..errors import RESUME, logger, write_errors
from ..files import atomic_write, delete, link_or_copy, remove_temporary_files
from ..private_names import tree_map
from .checkpoint import Checkpoint
from .find import BEST, LAST, checkpoints, is_checkpoint_name, progress_of, recoveries
from .position import Position

SET_ASIDE = ".set-aside"  # added to the names of checkpoints that a run no longer goes on from


@dataclass
class Saver:
    """Writes ``last``, its copies (the best epochs, the best one, milestones), and checkpoints inside an epoch.

    Args:
        folder: of the run.
        task: student, loss and average.
        optimizer: its state is stored.
        scaler: loss scaler, or None.
        scheduler: timm scheduler; of plateaus the state is stored.
        position: where the run stands; stored with every checkpoint.
        flags: those of the run.
        files: returns what else a checkpoint carries (`RunFiles.state`).
        max_history: how many of the best epochs are kept.
        decreasing: a lower metric is better.
        milestones: numbers of epochs after which a checkpoint is kept, however good it is.
        primary: this process writes, copies, renames and deletes. Of a sharded student every rank has a saver and calls
            it alike, since parts of tensors are on all of them.
        history: names and metrics of the best epochs, best first.
        best_epoch: the best of all epochs, None before the first one is saved.
        best_metric: its metric.
    """

    folder: Path
    task: TrainingTask
    optimizer: torch.optim.Optimizer
    scaler: NativeScaler | None
    scheduler: Scheduler | None
    position: Position
    flags: Mapping[str, object]
    files: Callable[[], dict[str, object]] = dict
    max_history: int = 10
    decreasing: bool = False
    milestones: Container[int] = ()
    primary: bool = True
    history: list[tuple[str, float]] = field(default_factory=list)
    best_epoch: int | None = None
    best_metric: float | None = None

    def resume_from(self, checkpoint: Checkpoint | None) -> None:
        """Take up the bookkeeping of a checkpoint, and leave the folder as its save would have.

        A run that was killed after it wrote ``last`` may lack copies of it; they are made. One that goes on from the
        end of another epoch makes that its ``last``. Other recovery checkpoints are deleted, and what is further than
        the checkpoint is given another name: a later ``--resume auto`` would take one of another course of the run for
        the furthest.

        Args:
            checkpoint: what the run goes on from, or None. In another folder it has no say in what this one keeps.
        """
        if not self.primary:
            return
        # what a process that was killed while it wrote has left
        remove_temporary_files(self.folder)
        path = None
        if checkpoint is not None and checkpoint.path.parent.resolve() == self.folder.resolve():
            path = self.folder / checkpoint.path.name
            reached = progress_of(path)
            # what is damaged, or further than where the run goes on
            for other in checkpoints(self.folder):
                if progress_of(other) > reached and other not in recoveries(self.folder):
                    logger.warning(
                        f"WARNING: {other} is damaged, or further than where the run goes on; it is "
                        f"renamed to {other.name}{SET_ASIDE}"
                    )
                    with write_errors(other, RESUME):
                        os.replace(other, f"{other}{SET_ASIDE}")
            # files are deleted by these names, which come from the checkpoint
            self.history = [
                (name, metric)
                for name, metric in checkpoint.best_epochs
                if is_checkpoint_name(name)
            ]
            self.best_epoch, self.best_metric = checkpoint.best_epoch, checkpoint.best_metric
            # the end of an epoch is the last one, with the copies that were not made before the run was killed
            if path not in recoveries(self.folder):
                link_or_copy(path, self.folder / LAST)
                self._copy_last(reached[0] - 1)
            # epochs whose files are gone are forgotten
            self.history = [entry for entry in self.history if (self.folder / entry[0]).exists()]
        # older ones would be taken for the furthest once this run has gone another way
        self._delete(file for file in recoveries(self.folder) if file != path)

    def save_checkpoint(self, epoch: int, metric: float) -> None:
        """Save the state that an epoch ends with as ``last``, with the copies of it that the epoch earns, as timm does.

        Recovery checkpoints are kept until there is one.

        Raises:
            UserError: something cannot be written.
        """
        # the best epochs, best first; of equals the earlier one
        name = f"checkpoint-{epoch}.pth.tar"
        others = [entry for entry in self.history if entry[0] != name]
        sign = 1 if self.decreasing else -1
        ranked = sorted([*others, (name, metric)], key=lambda entry: sign * entry[1])
        self.history = ranked[: self.max_history]
        if self.best_metric is None or sign * metric < sign * self.best_metric:
            self.best_epoch, self.best_metric = epoch, metric
        # room is made first; the file says which copies of it there are to be, for a run that is killed before they are
        self._delete(self.folder / name for name, _ in ranked[self.max_history :])
        self._write(self._state(epoch) | {"metric": metric}, LAST)
        if self.primary:
            self._copy_last(epoch)
        # an epoch that is saved whole needs no part of it
        self._delete(recoveries(self.folder))

    def _copy_last(self, epoch: int) -> None:
        name = f"checkpoint-{epoch}.pth.tar"
        if name in dict(self.history):
            link_or_copy(self.folder / LAST, self.folder / name)
        if epoch == self.best_epoch:
            link_or_copy(self.folder / LAST, self.folder / BEST)
        if epoch + 1 in self.milestones:
            link_or_copy(self.folder / LAST, self.folder / f"milestone-{epoch + 1}.pth.tar")

    def save_recovery(self, epoch: int, update: int, rank_states: list | None = None) -> None:
        """Save the state inside an epoch; the last two are kept.

        Args:
            epoch: the epoch.
            update: the update in it.
            rank_states: what differs from rank to rank, from `gather_rank_states`.

        Raises:
            UserError: it cannot be written.
        """
        name = f"recovery-{epoch}-{update}.pth.tar"
        older = [file for file in recoveries(self.folder) if file.name != name]
        state = self._state(epoch)
        state["w2s"]["rank_states"] = rank_states
        self._write(state, name)
        # one goes when the new one is there, so that two are whole whenever the process is killed
        self._delete(older[:-1])

    def _write(self, state: dict, name: str) -> None:
        # all ranks gather the parts of tensors, one writes them; torch.save of a sharded tensor would hold one part
        state = tree_map(self._whole, state)
        if self.primary:
            with atomic_write(self.folder / name, RESUME) as temporary:
                torch.save(state, temporary)

    def _whole(self, value: object) -> object:
        """Return a tensor whose parts are on several ranks whole, on the rank that writes it."""
        if not isinstance(value, DTensor):
            return value
        whole = value.full_tensor()
        return whole.cpu() if self.primary else None

    def _delete(self, paths: Iterable[Path]) -> None:
        if self.primary:
            for path in paths:
                delete(path)

    def _state(self, epoch: int) -> dict:
        """Return what a checkpoint holds."""
        # a schedule of plateaus has counters, not all of which timm keeps; others are functions of the epoch
        plateau = None
        if isinstance(self.scheduler, PlateauLRScheduler):
            counters = self.scheduler.lr_scheduler.state_dict()
            plateau = {
                k: counters[k] for k in ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")
            }
            plateau["restore_lr"] = self.scheduler.restore_lr
        # timm's own keys, as its loaders expect them, then ours
        state = {
            "epoch": epoch,
            "arch": self.flags["model"],
            "optimizer": self.optimizer.state_dict(),
            "version": 2,
            "args": argparse.Namespace(**self.flags),  # as in timm's format
            **self.task.get_checkpoint_state(),
            **self.task.get_checkpoint_state(ema=True),
            "saver": {
                "checkpoint_files": list(self.history),
                "best_epoch": self.best_epoch,
                "best_metric": self.best_metric,
            },
            "w2s": {
                **self.position.state_dict(),
                "processes": count_processes(),
                "threads": torch.get_num_threads(),
                "plateau": plateau,
                **self.files(),
            },
        }
        if self.scaler is not None:
            state[self.scaler.state_dict_key] = self.scaler.state_dict()
        return state
