"""Checkpoints are written in timm's format, each whole or not at all."""

import argparse
import logging
import os
import shutil
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from timm.scheduler import PlateauLRScheduler
from timm.task import TrainingTask
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..distributed.world import count_processes, meet
from ..errors import RESUME, write_errors
from ..files import SHARDED, atomic_write, delete, link_or_copy, remove_temporary_files
from ..models.shards import RUN_FILE, replace_folder, write_shards
from .find import checkpoints, is_checkpoint_name, progress_of, recoveries
from .position import Position

_logger = logging.getLogger(__name__)

SET_ASIDE = ".set-aside"  # added to the names of checkpoints that a run no longer goes on from
SECTIONS = ("state_dict", "state_dict_ema", "task_state")  # of a checkpoint: tensors by name


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
        milestones: numbers of completed epochs that are kept.
        sharded: write a folder of shards in place of each file; every rank has a saver then, and calls it alike.
        primary: this process copies, renames and deletes.
        history: names and metrics of the best epochs, best first.
        best_epoch: the best of all epochs, None before the first one is saved.
        best_metric: its metric.
    """

    folder: Path
    task: TrainingTask
    optimizer: torch.optim.Optimizer
    scaler: object | None
    scheduler: object | None
    position: Position
    flags: Mapping[str, object]
    files: Callable[[], dict[str, object]] = dict
    max_history: int = 10
    decreasing: bool = False
    milestones: Container[int] = ()
    sharded: bool = False
    primary: bool = True
    history: list[tuple[str, float]] = field(default_factory=list)
    best_epoch: int | None = None
    best_metric: float | None = None

    def resume_from(self, path: Path | None, bookkeeping: Mapping[str, object] | None) -> None:
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
        # what a process that was killed while it wrote has left
        remove_temporary_files(self.folder)
        if path is not None and path.parent.resolve() == self.folder.resolve():
            path = self.folder / path.name
            if path != self._path("last"):
                self._set_aside_beyond(path)
            self._take_up(path, bookkeeping or {})
        # older ones would be taken for the furthest once this run has gone another way
        self._delete(file for file in recoveries(self.folder) if file != path)

    def _set_aside_beyond(self, path: Path) -> None:
        """Rename the checkpoints that are damaged or further than the one that the run goes on from."""
        for other in checkpoints(self.folder):
            if progress_of(other) > progress_of(path) and other not in recoveries(self.folder):
                aside = other.with_name(other.name + SET_ASIDE)
                _logger.warning(f"WARNING: {other} is damaged, or further than where the run goes on; it is "
                                f"renamed to {aside.name}")
                delete(aside)
                with write_errors(other, RESUME):
                    os.replace(other, aside)

    def _take_up(self, path: Path, bookkeeping: Mapping[str, object]) -> None:
        # files are deleted by these names, which come from the checkpoint; epochs whose files are gone are forgotten
        self.history = [
            (name, float(metric)) for name, metric in bookkeeping.get("checkpoint_files", ())
            if is_checkpoint_name(name) and (self.folder / name).exists()]
        self.best_epoch, self.best_metric = bookkeeping.get("best_epoch"), bookkeeping.get("best_metric")
        # copies that were not made before the run was killed
        epoch, metric = bookkeeping.get("pending", (None, None))
        if metric is not None:
            last = self._path("last")
            if path != last and path not in recoveries(self.folder):
                self._copy(path, last)
            self._copy_last(int(epoch), float(metric))

    def save_checkpoint(self, epoch: int, metric: float) -> None:
        """Save the state that an epoch ends with as ``last``, with the copies of it that the epoch earns, as timm does.

        Recovery checkpoints are kept until there is one.

        Raises:
            UserError: something cannot be written.
        """
        # the state says that its copies are still to be made, for a run that is killed before they are
        self._write(self._state(epoch, (epoch, metric)) | {"metric": metric}, self._path("last"))
        if self.primary:
            self._copy_last(epoch, metric)
        # an epoch that is saved whole needs no part of it
        self._delete(recoveries(self.folder))

    def _copy_last(self, epoch: int, metric: float) -> None:
        last = self._path("last")
        # the best epochs, best first; of equals the earlier one
        own = (self._path(f"checkpoint-{epoch}").name, metric)
        others = [entry for entry in self.history if entry[0] != own[0]]
        ranked = sorted([*others, own], key=lambda entry: entry[1], reverse=not self.decreasing)
        self.history = ranked[:self.max_history]
        # room is made before copies take it, where they are no links
        self._delete(self.folder / name for name, _ in ranked[self.max_history:])
        if own in self.history:
            self._copy(last, self.folder / own[0])
        if self.best_metric is None or self._is_better(metric):
            self._copy(last, self._path("model_best"))
            self.best_epoch, self.best_metric = epoch, metric
        if epoch + 1 in self.milestones:
            self._copy(last, self._path(f"milestone-{epoch + 1}"))

    def _is_better(self, metric: float) -> bool:
        return metric < self.best_metric if self.decreasing else metric > self.best_metric

    def save_recovery(self, epoch: int, update: int, rank_states: list | None = None) -> None:
        """Save the state inside an epoch; the last two are kept.

        Args:
            epoch: the epoch.
            update: the update in it.
            rank_states: what differs from rank to rank, from `gather_rank_states`.

        Raises:
            UserError: it cannot be written.
        """
        path = self._path(f"recovery-{epoch}-{update}")
        older = [file for file in recoveries(self.folder) if file != path]
        state = self._state(epoch, (None, None))
        state["w2s"]["rank_states"] = rank_states
        self._write(state, path)
        # one goes when the new one is there
        self._delete(older[:-1])

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{SHARDED if self.sharded else '.pth.tar'}"

    def _write(self, state: dict, path: Path) -> None:
        write = save_sharded if self.sharded else save_state
        write(state, path)

    def _copy(self, source: Path, target: Path) -> None:
        copy = copy_sharded if self.sharded else link_or_copy
        copy(source, target)

    def _delete(self, paths: Iterable[Path]) -> None:
        if self.primary:
            for path in paths:
                delete(path)

    def _state(self, epoch: int, pending: tuple[int | None, float | None]) -> dict:
        """Return what a checkpoint holds; ``pending`` are epoch and metric of a ``last`` before its copies are made."""
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
                "pending": pending,
            },
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


def save_sharded(state: dict, path: Path) -> None:
    """Write a checkpoint as a folder of shards; all ranks must call it. It has its name once every rank is done.

    Raises:
        UserError: a rank cannot write.
    """
    primary = dist.get_rank() == 0
    temporary = path.with_name(f".{path.name}.tmp")
    if primary:
        delete(temporary)
        with write_errors(path, RESUME):
            temporary.mkdir()
    meet()
    # each rank writes its part, rank 0 what all have in common
    shards, rest = take_out_shards(state)
    write_shards(temporary, shards)
    if primary:
        save_state(rest, temporary / RUN_FILE)
        replace_folder(temporary, path)
    meet()


def copy_sharded(source: Path, target: Path) -> None:
    """Copy a sharded checkpoint, by hard links where there are any."""
    temporary = target.with_name(f".{target.name}.tmp")
    delete(temporary)
    with write_errors(target, RESUME):
        shutil.copytree(source, temporary, copy_function=lambda *paths: link_or_copy(*map(Path, paths)))
    replace_folder(temporary, target)


def take_out_shards(state: dict) -> tuple[dict[str, Tensor], dict]:
    """Split a checkpoint into the tensors that go into shards, by name, and the rest, with None in their places."""
    shards, rest = {}, dict(state)
    # weights, their average and the memory of the loss
    for section in SECTIONS:
        if state.get(section):
            shards |= {f"{section}.{name}": tensor for name, tensor in state[section].items()}
            rest[section] = dict.fromkeys(state[section])
    # of an optimizer the tensors that are sharded as their parameters are
    rest["optimizer"] = dict(state["optimizer"], state={})
    for index, values in state["optimizer"]["state"].items():
        sharded = {key for key, value in values.items() if isinstance(value, DTensor)}
        shards |= {f"optimizer.{index}.{key}": values[key] for key in sharded}
        rest["optimizer"]["state"][index] = {k: None if k in sharded else v for k, v in values.items()}
    return shards, rest
