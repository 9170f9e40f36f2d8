"""Checkpoints are written in timm's format, each whole or not at all."""

import argparse
import logging
import operator
import os
from collections.abc import Callable, Container, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from timm.scheduler import PlateauLRScheduler
from timm.task import TrainingTask
from torch.utils._pytree import tree_leaves, tree_map

from ..distributed.world import count_processes
from ..errors import RESUME, UserError, release, write_errors
from ..files import SHARDED, atomic_write, delete, link_or_copy, remove_temporary_files
from ..models.fingerprint import hash_tensors
from ..system import available_memory
from .find import checkpoints, place, recoveries
from .frozen import frozen_parameters, leave_out
from .position import Position
from .sharded import copy_sharded, save_sharded

_logger = logging.getLogger(__name__)

MAX_FAILURES = 3  # saves in a row that may fail, each with a warning
ASIDE = ".set-aside"  # added to the names of checkpoints that a run no longer goes on from


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
        milestones: numbers of completed epochs that are kept.
        max_failures: saves in a row whose failure is a warning.
        sharded: write a folder of shards in place of each file; every rank has a saver then, and calls it alike.
        primary: this process copies, renames and deletes.
    """

    def __init__(
            self,
            folder: Path,
            *,
            task: TrainingTask,
            optimizer: torch.optim.Optimizer,
            scaler: object | None,
            scheduler: object | None,
            position: Position,
            flags: Mapping[str, object],
            files: Callable[[], dict[str, object]] = dict,
            max_history: int = 10,
            decreasing: bool = False,
            milestones: Container[int] = (),
            max_failures: int = 0,
            sharded: bool = False,
            primary: bool = True,
    ):
        self.folder, self.task, self.optimizer, self.scaler, self.scheduler = folder, task, optimizer, scaler, scheduler
        self.position, self.flags, self.files = position, flags, files
        self.max_history, self.decreasing, self.milestones = max_history, decreasing, milestones
        self.max_failures, self.sharded, self.primary = max_failures, sharded, primary
        self.failures = 0  # in a row
        self.history: list[tuple[str, float]] = []  # names and metrics of the best epochs, best first
        self.best_epoch: int | None = None
        self.best_metric: float | None = None
        self.uncopied: tuple[int, float] | None = None  # epoch and metric of `last`, until its copies are made
        self._frozen = ""  # hash of what is not trained
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future | None = None

    def state_dict(self, pending: tuple[int, float] | None) -> dict[str, object]:
        """Return what timm's saver stores of itself.

        Args:
            pending: epoch and metric of a ``last`` whose copies are not all made.
        """
        return dict(checkpoint_files=list(self.history), best_epoch=self.best_epoch, best_metric=self.best_metric,
                    pending=pending or (None, None))

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Put back what `state_dict` returned; epochs whose files are gone are forgotten."""
        self.history = [(n, m) for n, m in state.get("checkpoint_files", ()) if (self.folder / n).exists()]
        self.best_epoch, self.best_metric = state.get("best_epoch"), state.get("best_metric")
        epoch, metric = state.get("pending", (None, None))
        self.uncopied = None if metric is None else (epoch, metric)

    def go_on_from(self, path: Path | None, bookkeeping: Mapping[str, object] | None) -> None:
        """Take up the bookkeeping of a checkpoint, and leave the folder as its save would have.

        A run that was killed after it wrote ``last`` may lack copies of it; they are made. One that goes on from the
        end of another epoch makes that its ``last``. Other recovery checkpoints are deleted, and what is further than
        ``path`` is given another name: a later ``--resume auto`` would take one of another course of the run for the
        furthest.

        Args:
            path: the checkpoint that the run goes on from, or None. In another folder it has no say in what this one
                keeps.
            bookkeeping: what it has of the saver's.
        """
        if not self.primary:
            return
        remove_temporary_files(self.folder)
        here = path is not None and path.parent.resolve() == self.folder.resolve()
        path, last = self.folder / path.name if here else None, self._path("last")
        if here:
            self.load_state_dict(bookkeeping or {})
        if here and path != last:
            self._set_aside_later(path)
            if self.uncopied and path not in recoveries(self.folder):
                self._copy(path, last)
        self._copy_last()
        for file in recoveries(self.folder):
            if file != path:
                delete(file)

    def _set_aside_later(self, path: Path) -> None:
        for other in checkpoints(self.folder):
            there = place(other)
            if other not in (path, *recoveries(self.folder)) and (there is None or there > place(path)):
                aside = other.with_name(other.name + ASIDE)
                _logger.warning(f"WARNING: {other} is damaged, or further than where the run goes on; it is renamed to "
                                f"{aside.name}")
                delete(aside)
                with write_errors(other, RESUME):
                    os.replace(other, aside)

    def save_epoch(self, epoch: int, metric: float) -> None:
        """Save the checkpoint that an epoch ends with; a failure is a warning, up to ``max_failures`` in a row.

        Recovery checkpoints are kept until there is one.

        Raises:
            UserError: it failed, and so did ``max_failures`` saves before it.
        """
        self.wait()
        if self._tolerate(lambda: self.save_checkpoint(epoch, metric), f"the checkpoint of epoch {epoch + 1}"):
            self._delete(recoveries(self.folder))

    def save_checkpoint(self, epoch: int, metric: float) -> None:
        """Save the state as ``last``, with the copies of it that its epoch earns, as timm does.

        ``last`` takes the place of an earlier one only when that has its copies: there may have been no room for them.

        Raises:
            UserError: something cannot be written.
        """
        self._copy_last()
        self._write(self._state(epoch, (epoch, metric)) | {"metric": metric}, self._path("last"))
        self.uncopied = (epoch, metric)
        self._copy_last()

    def _copy_last(self) -> None:
        """Make the copies of ``last`` that are still to be made; those of a failed attempt are made again."""
        last = self._path("last")
        if self.uncopied is not None and self.primary and last.exists():  # it may be gone with its folder
            epoch, metric = self.uncopied
            own = (self._path(f"checkpoint-{epoch}").name, metric)
            ranked = sorted([*(entry for entry in self.history if entry[0] != own[0]), own],
                            key=lambda entry: entry[1], reverse=not self.decreasing)  # the earlier one among equals
            better = operator.lt if self.decreasing else operator.gt
            is_best = self.best_metric is None or better(metric, self.best_metric)
            self._delete(self.folder / name for name, _ in ranked[self.max_history:])
            for name, earned in ((f"checkpoint-{epoch}", own in ranked[:self.max_history]), ("model_best", is_best),
                                 (f"milestone-{epoch + 1}", epoch + 1 in self.milestones)):
                if earned:
                    self._copy(last, self._path(name))
            self.history = ranked[:self.max_history]
            if is_best:
                self.best_epoch, self.best_metric = epoch, metric
        self.uncopied = None

    def save_recovery(
            self,
            epoch: int,
            update: int,
            rank_states: list | None = None,
            background: bool = True,
    ) -> None:
        """Save the state inside an epoch, in the background where memory allows; keeps the last two that were written.

        What is not trained is not in it, but a hash, which is made once.

        A failure is a warning, up to ``max_failures`` in a row; of a save in the background it is seen at the next one.

        Args:
            epoch: the epoch.
            update: the update in it.
            rank_states: what differs from rank to rank, from `gather_rank_states`.
            background: return before the file is written; otherwise no failure is tolerated.

        Raises:
            UserError: this or the last save in the background failed, and so did ``max_failures`` before it.
        """
        self.wait()
        path = self._path(f"recovery-{epoch}-{update}")
        earlier = [file for file in recoveries(self.folder) if file != path]
        state = self._state(epoch, self.uncopied)
        state["w2s"]["rank_states"] = rank_states
        if frozen := frozen_parameters(self.task):
            self._frozen = self._frozen or hash_tensors(frozen)
            leave_out(state, frozen, self._frozen)
        if not background:
            self._write(state, path)
        elif not self.sharded and (copy := copy_state(state)) is not None:  # all ranks exchange while they write shards
            self._writing = self._pool.submit(save_state, copy, path)
        elif not self._tolerate(lambda: self._write(state, path), "this recovery checkpoint"):
            return
        self._delete(earlier[:-1])

    def wait(self) -> None:
        """Wait for a save in the background. Raises `UserError` when it failed, as `save_recovery`."""
        writing, self._writing = self._writing, None
        if writing is not None:
            self._tolerate(writing.result, "this recovery checkpoint")

    def _tolerate(self, save: Callable[[], object], what: str) -> bool:
        """Save; return False after a failure, of which there may be ``max_failures`` in a row."""
        try:
            save()
        except UserError as error:
            self.failures += 1
            if self.failures > self.max_failures:
                raise UserError(f"{error} ({self.failures} saves in a row failed)") from error
            _logger.warning(f"WARNING: {error}; training goes on without {what} ({self.failures} of "
                            f"{self.max_failures} failures in a row)")
            release(error)
            return False
        self.failures = 0
        return True

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{SHARDED if self.sharded else '.pth.tar'}"

    def _write(self, state: dict, path: Path) -> None:
        (save_sharded if self.sharded else save_state)(state, path)

    def _copy(self, source: Path, target: Path) -> None:
        (copy_sharded if self.sharded else link_or_copy)(source, target)

    def _delete(self, paths: Iterable[Path]) -> None:
        for path in paths if self.primary else ():
            delete(path)

    def _state(self, epoch: int, pending: tuple[int, float] | None) -> dict:
        state = {
            "epoch": epoch,
            "arch": self.flags["model"],
            "optimizer": self.optimizer.state_dict(),
            "version": 2,
            "args": argparse.Namespace(**self.flags),  # as in timm's format
            **self.task.get_checkpoint_state(),
            **self.task.get_checkpoint_state(ema=True),
            "saver": self.state_dict(pending),
            "w2s": {
                **self.position.state_dict(),
                "processes": count_processes(),
                "threads": torch.get_num_threads(),
                "plateau": plateau_state(self.scheduler),
                **self.files(),
            },
        }
        if self.scaler is not None:
            state[self.scaler.state_dict_key] = self.scaler.state_dict()
        return state


def plateau_state(scheduler: object | None) -> dict | None:
    """Return the counters of a plateau schedule, not all of which timm keeps; the others are functions of the epoch."""
    if not isinstance(scheduler, PlateauLRScheduler):
        return None
    state = scheduler.lr_scheduler.state_dict()
    counters = {k: state[k] for k in ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")}
    return {**counters, "restore_lr": scheduler.restore_lr}


def save_state(state: dict, path: Path) -> None:
    """Write a checkpoint atomically."""
    with atomic_write(path, RESUME) as temporary:
        torch.save(state, temporary)


def copy_state(state: dict) -> dict | None:
    """Return a copy of a state on the CPU, or None when less than twice its size is available in memory."""
    size = sum(t.numel() * t.element_size() for t in tree_leaves(state) if isinstance(t, torch.Tensor))
    if 2 * size > available_memory():
        return None
    return tree_map(lambda t: t.detach().to("cpu", copy=True) if isinstance(t, torch.Tensor) else t, state)
