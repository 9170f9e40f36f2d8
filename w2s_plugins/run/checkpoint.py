"""What a run writes and how it is read back: checkpoints in timm's format, and small files, all written atomically."""

import argparse
import csv
import logging
import os
import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import torch.distributed as dist
import yaml
from timm.scheduler import PlateauLRScheduler
from timm.task import TrainingTask
from timm.utils import CheckpointSaver, unwrap_model, update_summary
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..cli.declare import Role
from ..cli.outcome import PROCESSES, of_all_processes, other_values
from ..cli.parser import train_parser
from ..errors import UserError, let_go, one_line, write_errors
from ..files import atomic_write, read_plain, remove_temporary_files, write_text
from ..models.foreign import typed_flags
from ..models.loading import read_checkpoint
from ..models.shards import check_shards, is_sharded
from .position import Position

_logger = logging.getLogger(__name__)

LAST, BEST = "last.pth.tar", "model_best.pth.tar"
SHARDED_LAST, SHARDED_BEST = "last.sharded", "model_best.sharded"  # of --fsdp: folders
ASIDE = ".set-aside"  # added to the names of checkpoints that a run no longer goes on from
_NAME = re.compile(r"(?:(?P<unnamed>last|model_best|\.last-old)|recovery-(?P<epoch>\d+)-(?P<update>\d+)"
                   r"|checkpoint-(?P<after>\d+)|milestone-(?P<done>\d+))\.(?:pth\.tar|sharded)")


class Saver(CheckpointSaver):
    """timm's saver with atomic files and the position inside an epoch.

    Args:
        position: where the run stands; stored with every checkpoint.
        scheduler: timm scheduler, whose state is stored.
        files: returns what the run's growing files need to be continued exactly (`RunFiles.state`).
        max_failures: saves in a row whose failure is a warning.
        milestones: numbers of completed epochs that are kept.
        **kwargs: arguments of timm's saver.
    """

    def __init__(
            self,
            *,
            position: Position,
            scheduler: object | None,
            files: Callable[[], dict[str, object]] = dict,
            max_failures: int = 0,
            milestones: Container[int] = (),
            **kwargs: object,
    ):
        super().__init__(**kwargs)
        self.max_failures, self.failures = max_failures, 0
        self.position, self.scheduler, self.files, self.milestones = position, scheduler, files, milestones
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future | None = None
        self._last_is_written = False
        self._pending: dict = {}  # bookkeeping of the checkpoint that is being saved
        self._uncopied: dict | None = None  # that of `last`, while not all its copies are made

    def go_on_from(self, path: Path | None, bookkeeping: dict | None) -> None:
        """Take up the bookkeeping of a checkpoint, and leave the folder as its save would have.

        A run that was killed after it wrote ``last`` may lack the copies of it that earned a place in the history;
        they are made. One that goes on from the end of another epoch makes that its ``last``. Recovery checkpoints of
        anything but ``path`` are deleted, and what is further than ``path`` is given another name: a later ``--resume
        auto`` would take one of another course of the run for the furthest.

        Args:
            path: the checkpoint that the run goes on from, or None. In another folder it has no say in what this one
                keeps.
            bookkeeping: what it has of the saver's.
        """
        folder = Path(self.checkpoint_dir)
        here = path is not None and path.parent.resolve() == folder.resolve()
        _, metric = (bookkeeping or {}).get("pending", (None, None))
        last = folder / f"last{self.extension}"
        if here and path.resolve() != last.resolve():
            self._set_aside_later(path)
        if here and metric is not None:
            if path.resolve() != last.resolve():
                self._duplicate(str(path), str(last))
            self._uncopied = bookkeeping
            self._copy_last()
        elif here and bookkeeping:
            self.load_state_dict(bookkeeping)
        self._remove_temporary(folder)
        for file in self._recovery_files():
            if path is not None and file.resolve() == path.resolve():
                self.curr_recovery_file = str(file)
            else:
                self._remove(file)

    def _set_aside_later(self, path: Path) -> None:
        """Rename what is further than a checkpoint, or cannot be read."""
        place = _place(path)
        for other in _checkpoints(path.parent):
            if other != path and not other.name.startswith(self.recovery_prefix):
                there = _place(other)
                if there is None or (place is not None and there > place):
                    damaged = _error_of(lambda path=other: check_checkpoint(path)) is not None
                    self._rename_aside(other, "damaged" if damaged else "further than where the run goes on")

    def _rename_aside(self, path: Path, why: str) -> None:
        _logger.warning(f"WARNING: {path} is {why}; it is renamed to {path.name}{ASIDE}")
        with write_errors(path):
            os.replace(path, path.with_name(path.name + ASIDE))

    def _recovery_files(self) -> Iterable[Path]:
        return Path(self.recovery_dir).glob(f"{self.recovery_prefix}-*{self.extension}")

    def _remove(self, path: Path) -> None:
        with suppress(OSError):  # on a disk that is read-only now; the next one to be written says so
            path.unlink(missing_ok=True)

    def _remove_temporary(self, folder: Path) -> None:
        remove_temporary_files(folder)

    def save_checkpoint(self, epoch: int, metric: float | None = None) -> tuple[float | None, int | None]:
        """Save the state as ``last``, with the copies of it that its epoch earns, as timm does.

        ``last`` takes the place of an earlier one only when that has its copies: they may have failed to be written.

        Raises:
            UserError: something cannot be written.
        """
        self._copy_last()
        self._pending = self.state_dict(epoch, metric)
        return self._save_with_copies(epoch, metric)

    def _copy_last(self) -> None:
        """Make the copies of ``last`` again that were cut short."""
        if self._uncopied is None:
            return
        epoch, metric = self._uncopied["pending"]
        self.load_state_dict({**self._uncopied, "pending": (None, None)})
        self._last_is_written = True
        try:
            self._save_with_copies(epoch, metric)
        finally:
            self._last_is_written = False

    def _save_with_copies(self, epoch: int, metric: float | None) -> tuple[float | None, int | None]:
        best = super().save_checkpoint(epoch, metric)
        if epoch + 1 in self.milestones:
            self.save_milestone(epoch + 1)
        self._uncopied = None
        return best

    def _replace(self, src: str, dst: str) -> None:
        if not self._last_is_written:
            self._rename(src, dst)
            self._uncopied = self._pending

    def _rename(self, src: str, dst: str) -> None:
        with write_errors(Path(dst)):
            os.replace(src, dst)

    def _duplicate(self, src: str, dst: str) -> None:
        with atomic_write(Path(dst)) as temporary:
            temporary.unlink(missing_ok=True)
            try:
                os.link(src, temporary)
            except OSError:  # a file system without hard links
                temporary.write_bytes(Path(src).read_bytes())

    def _state(self, epoch: int, metric: float | None = None) -> dict:
        state = {
            "epoch": epoch,
            "arch": self.args.model,
            "optimizer": self.optimizer.state_dict(),
            "version": 2,
            "args": self.args,
            **self.task.get_checkpoint_state(unwrap_fn=self.unwrap_fn),
            **self.task.get_checkpoint_state(ema=True, unwrap_fn=self.unwrap_fn),
            "saver": self.state_dict(epoch, metric),
            "w2s": {
                "batch": self.position.batch,
                "bad_steps": self.position.bad_steps,
                "taken": self.position.taken,
                "statistics_shared": self.position.statistics_shared,
                "meter": self.position.meter.state_dict(),
                "weights": self.position.weights.state_dict(),
                "unreadable": self.position.unreadable,
                "changes": self.position.changes,
                "processes": count_processes(),
                "plateau": plateau_state(self.scheduler),
                **self.files(),
            },
        }
        if self.amp_scaler is not None:
            state[self.amp_scaler.state_dict_key] = self.amp_scaler.state_dict()
        if metric is not None:
            state["metric"] = metric
        return state

    def _save(self, save_path: str, epoch: int, metric: float | None = None) -> None:
        self._succeeds(self.wait)
        if not self._last_is_written:
            self._write(self._state(epoch, metric), Path(save_path))

    def _write(self, state: dict, path: Path) -> None:
        save_state(state, path)

    def _copy(self, state: dict) -> dict | None:
        return copy_state(state)

    def save_epoch(self, epoch: int, metric: float | None, others: Sequence[Callable[[], None]] = ()) -> bool:
        """Save what an epoch ends with; a failure is a warning, up to ``max_failures`` in a row.

        Args:
            epoch: the epoch.
            metric: ranks it.
            others: write other files first, each whether or not the one before failed.

        Returns:
            False when there is no checkpoint of this epoch; earlier ones, recovery checkpoints as well, are kept then.

        Raises:
            UserError: something failed, and so did ``max_failures`` saves before it.
        """
        self.finish()
        errors = [error for write in others if (error := _error_of(write))]
        failed = _error_of(lambda: self.save_checkpoint(epoch, metric))
        if failed or errors:
            self._bear(failed or errors[0], f"the checkpoint of epoch {epoch + 1}" if failed else "it")
        else:
            self.failures = 0
        if not failed:
            self.remove_recovery()
        return not failed

    def save_recovery(
            self,
            epoch: int,
            batch_idx: int = 0,
            rank_states: list | None = None,
            background: bool = True,
    ) -> None:
        """Save the state inside an epoch, in the background where memory allows; keeps the last two that were written.

        A failure is a warning, up to ``max_failures`` in a row; of a save in the background it is seen at the next one.

        Args:
            epoch: the epoch.
            batch_idx: the update in it.
            rank_states: what differs from rank to rank, from `gather_rank_states`.
            background: return before the file is written.

        Raises:
            UserError: this or the last save in the background failed, and so did ``max_failures`` before it.
        """
        if not self._succeeds(self.wait):
            self.curr_recovery_file, self.prev_recovery_file = self.prev_recovery_file, ""
        path = Path(self.recovery_dir) / f"{self.recovery_prefix}-{epoch}-{batch_idx}{self.extension}"
        state = self._state(epoch)
        state["w2s"]["rank_states"] = rank_states
        if background and (copy := self._copy(state)) is not None:
            self._writing = self._pool.submit(save_state, copy, path)
        elif not self._succeeds(lambda: self._write(state, path), final=not background):
            return
        else:
            self.failures = 0
        if self.prev_recovery_file and self.prev_recovery_file != str(path):
            self._remove(Path(self.prev_recovery_file))
        self.prev_recovery_file, self.curr_recovery_file = self.curr_recovery_file, str(path)

    def _succeeds(self, save: Callable[[], None], final: bool = False) -> bool:
        """Save, and return False for a failure that is to be borne; ``final`` saves are not."""
        try:
            save()
        except UserError as error:
            if final:
                raise
            self._bear(error, "this recovery checkpoint")
            return False
        return True

    def _bear(self, error: UserError, what: str) -> None:
        """Count a failure, and go on without ``what`` unless it is one too many."""
        self.failures += 1
        if self.failures > self.max_failures:
            raise UserError(f"{error} ({self.failures} save(s) in a row failed, --max-save-failures "
                            f"{self.max_failures})") from error
        _logger.warning(f"WARNING: {error}; training goes on without {what} ({self.failures} of {self.max_failures} "
                        "failures in a row)")
        let_go(error)

    def finish(self) -> None:
        """Wait for a save in the background; ``last`` is further by now, so that a failure is borne."""
        self._succeeds(self.wait)

    def wait(self) -> None:
        """Wait for a save in the background. Raises `UserError` when it failed."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()
            self.failures = 0

    def remove_recovery(self) -> None:
        """Delete recovery checkpoints: a complete epoch has been saved after them."""
        self._succeeds(self.wait)
        for file in self._recovery_files():
            self._remove(file)
        self.curr_recovery_file = self.prev_recovery_file = ""


def _error_of(write: Callable[[], object]) -> UserError | None:
    try:
        write()
    except UserError as error:
        return error
    return None


def gather_rank_states(task: TrainingTask, position: Position) -> list[dict[str, dict[str, Tensor]]]:
    """Return the buffers of the student and its average, and the sums of terms, on every rank. All ranks must call it.

    Inside an epoch the statistics of batch norm and the sums differ from rank to rank; a checkpoint of rank 0 alone
    could not be continued exactly.
    """
    own = {name: {k: b.cpu() for k, b in model.named_buffers()} for name, model in _buffered(task).items()}
    own["meter"], own["weights"] = position.meter.state_dict(), position.weights.state_dict()
    gathered: list = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    return gathered


def restore_rank_state(states: list[dict] | None, task: TrainingTask, position: Position, path: Path | None) -> None:
    """Put back what `gather_rank_states` returned, once DDP is made: that copies the buffers of rank 0 to all.

    Raises:
        UserError: they are not what a run writes to ``path``.
    """
    if states is None or not dist.is_initialized():
        return
    with _fitting(path):
        if len(states) != dist.get_world_size():
            return
        own = states[dist.get_rank()]
        for name, model in _buffered(task).items():
            model.load_state_dict(own.get(name, {}), strict=False)
        if position.batch:
            position.meter.load_state_dict(own["meter"], task.device)
            position.weights.load_state_dict(own.get("weights", {}), task.device)


def _buffered(task: TrainingTask) -> dict[str, nn.Module]:
    models = {"model": task.get_eval_model(), "ema": task.get_eval_model(ema=True)}
    return {name: unwrap_model(model) for name, model in models.items() if model is not None}


def save_state(state: dict, path: Path) -> None:
    """Write a checkpoint atomically."""
    with atomic_write(path) as temporary:
        torch.save(state, temporary)


def copy_state(state: dict) -> dict | None:
    """Return a copy of a state on the CPU, or None when less than twice its size is available in memory."""
    size = sum(t.numel() * t.element_size() for t in tree_leaves(state) if isinstance(t, torch.Tensor))
    if 2 * size > available_memory():
        return None
    return tree_map(lambda t: t.detach().to("cpu", copy=True) if isinstance(t, torch.Tensor) else t, state)


def available_memory() -> int:
    """Return the bytes that this machine, and on Linux this container, can still give; 0 where it does not say."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        available = 1024 * int(fields["MemAvailable"].split()[0])  # counts the cache of files, which gives way
    except (OSError, KeyError, ValueError):
        return 0
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return available
    return min(available, limit - used + int(statistics.get("inactive_file", 0)))


def plateau_state(scheduler: object | None) -> dict | None:
    """Return the counters of a plateau schedule, not all of which timm keeps; the others are functions of the epoch."""
    if not isinstance(scheduler, PlateauLRScheduler):
        return None
    state = scheduler.lr_scheduler.state_dict()
    counters = {k: state[k] for k in ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")}
    return {**counters, "restore_lr": scheduler.restore_lr}


def load_plateau_state(scheduler: object | None, state: dict | None) -> None:
    """Put back what `plateau_state` returned; without effect on other schedules."""
    if isinstance(scheduler, PlateauLRScheduler) and state is not None:
        scheduler.restore_lr = state["restore_lr"]
        scheduler.lr_scheduler.load_state_dict({k: v for k, v in state.items() if k != "restore_lr"})


def find_resume(folder: Path) -> Path | None:
    """Return the checkpoint of a run folder that is furthest of those that are whole, None where there are none at all.

    Raises:
        UserError: none is whole.
    """
    found, damaged = find_whole(folder)
    if damaged and found is None:
        raise UserError(f"{damaged[0]}; no other checkpoint in {folder} is whole: start anew in another folder")
    if damaged:
        _logger.warning(f"WARNING: passed over: {'; '.join(damaged)}; the run goes on from {found.name}")
    _warn_of_lost_last(folder, found)
    return found


def _warn_of_lost_last(folder: Path, found: Path | None) -> None:
    """Say that ``last`` is missing where it has been: what is saved of an epoch is a copy of it."""
    names = [_NAME.fullmatch(path.name) for path in _checkpoints(folder)]
    copies = any(name["after"] or name["done"] or name["unnamed"] == "model_best" for name in names)
    if found is None or not copies or any("last" in (name["unnamed"] or "") for name in names):
        return
    last = folder / (SHARDED_LAST if is_sharded(found) else LAST)
    how = "a link that leads nowhere" if last.is_symlink() else "missing"
    _logger.warning(f"WARNING: {last} is {how}: the run goes on from {found.name}, and what was trained after it is "
                    "trained again")


def find_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the whole checkpoint of a run folder that is furthest, and what is wrong with those that are further.

    ``last`` has no place in its name, and comes before others of the same place; the best one is asked only where
    ``last`` is lost.
    """
    places: dict[Path, tuple[int, int]] = {}
    whole, damaged = set(), []

    def look_into(path: Path) -> bool:
        try:
            epoch = check_checkpoint(path).get("epoch")
            if type(epoch) is not int:
                raise UserError(f"--resume {path}: not a training checkpoint, it has no epoch")
            places.setdefault(path, (epoch + 1, 0))
            whole.add(path)
        except UserError as error:
            damaged.append(str(error))
        return path in whole

    paths = _checkpoints(folder)
    unnamed = [p for p in paths if _NAME.fullmatch(p.name)["unnamed"]]
    last = [p for p in unnamed if "last" in p.name]
    for path in last:
        look_into(path)
    for path in () if whole else set(unnamed).difference(last):
        look_into(path)
    places |= {p: place for p in paths if p not in unnamed and (place := _place(p))}
    for path in sorted(places, key=lambda p: (places[p], p in last), reverse=True):
        if path in whole or look_into(path):
            return path, damaged
    return None, damaged


def check_checkpoint(path: Path) -> dict[str, object]:
    """Return what is in a checkpoint of a run, as `read_checkpoint` does; shards are compared with their checksums.

    Raises:
        UserError: it is damaged.
    """
    content = read_checkpoint(path, "--resume")
    if is_sharded(path):
        check_shards(path, "--resume")
    return content


def find_best(folder: Path, epoch: int, sharded: bool) -> Path:
    """Return a whole checkpoint of the epoch that ranked first: the best one, or another where that is lost or damaged.

    Raises:
        UserError: there is none.
    """
    extension, wrong = SHARDED_BEST.removeprefix("model_best") if sharded else BEST.removeprefix("model_best"), []
    for name in ("model_best", f"checkpoint-{epoch}", f"milestone-{epoch + 1}", "last"):
        path = folder / f"{name}{extension}"
        try:
            if path.exists() and check_checkpoint(path).get("epoch") == epoch:
                return path
        except UserError as error:
            wrong.append(str(error).removeprefix("--resume "))
    raise UserError(f"--select best: {folder} has no whole checkpoint of epoch {epoch + 1}, the best one by its "
                    f"metrics.jsonl{''.join(f'; {w}' for w in wrong)}; --select last exports the last epoch")


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run folder, whole or not; links that lead nowhere are none."""
    return sorted(path for path in folder.glob("*") if _NAME.fullmatch(path.name) and path.exists())


def _place(path: Path) -> tuple[int, int] | None:
    """How far a checkpoint is, as epochs and then updates that are done; None when it cannot be read."""
    name = _NAME.fullmatch(path.name)
    if name and name["epoch"]:
        return int(name["epoch"]), int(name["update"]) + 1
    if name and (name["after"] or name["done"]):
        return (int(name["after"]) + 1 if name["after"] else int(name["done"])), 0
    try:
        epoch = read_checkpoint(path, "--resume", peek=True).get("epoch")
    except UserError:
        return None
    return (epoch + 1, 0) if type(epoch) is int else None


def check_resumable(checkpoint: dict, args: argparse.Namespace, path: Path) -> dict[str, list[str]]:
    """Refuse to continue a run with other flags of a kind that changes its outcome, but for ``--resume-changes``.

    One of timm's own script is compared in what decides the shape of its content.

    Returns:
        Old and new value of what is changed, by name.

    Raises:
        UserError: naming the flags, or not the checkpoint of a run.
    """
    absent = [k for k in ("epoch", "state_dict", "optimizer") if k not in checkpoint]
    if absent:
        raise UserError(f"--resume {path}: not a training checkpoint, it has no {', '.join(absent)}; to start from its "
                        "weights use --initial-checkpoint")
    check_bookkeeping(checkpoint, path)
    saved = checkpoint.get("args")
    saved = vars(saved) if isinstance(saved, argparse.Namespace) else {}
    known = train_parser()
    shaping = known.names(Role.SHAPE)
    compared = set(known.by_dest()) - known.names(Role.RESUMING) if checkpoint.get("w2s") else (
        known.names(Role.SHAPE | Role.STATE))
    changed = {name: [_shown(value) for value in values] for name, values in other_values(saved, vars(args)).items()
               if name in compared}
    allowed = {*args.resume_changes, *(known.names(Role.OPTIMIZER) | {"lr"} if args.no_resume_opt else ())}
    now = count_processes()
    before = (checkpoint.get("w2s") or {}).get("processes", now)
    if before != now:
        _compare_processes(changed, saved, args, before, now)
        if is_finished(checkpoint) or args.start_epoch is not None:
            allowed.add(PROCESSES)  # an epoch on other processes is another one, but a whole one
    stateful = set() if args.no_resume_opt else known.names(Role.STATE)
    refused = {name: values for name, values in changed.items() if name not in allowed or name in shaping | stateful}
    if refused.keys() & shaping:
        raise UserError(f"--resume {path}: that run had other settings: {_listed(refused)}; repeat them, or start a "
                        "new run with --initial-checkpoint")
    if refused.keys() & stateful:
        raise UserError(f"--resume {path}: that run had other settings: {_listed(refused)}; repeat them, or begin the "
                        "optimizer's state anew with --no-resume-opt")
    if refused:
        inside = "; it was stopped inside an epoch, which goes on exactly on as many" if PROCESSES in refused else ""
        raise UserError(f"--resume {path}: that run had other settings: {_listed(refused)}{inside}; repeat them, or go "
                        "on with the new ones by --resume-changes "
                        f"{' '.join(name.replace('_', '-') for name in refused)}")
    if changed:
        _logger.warning(f"WARNING: --resume {path}: goes on with other settings: {_listed(changed)}")
    return changed


def _compare_processes(
        changed: dict[str, list[str]],
        saved: dict[str, object],
        args: argparse.Namespace,
        before: int,
        now: int,
) -> None:
    """Note another number of processes among what is changed, with the batches of all of them together, in place."""
    changed.pop("episodes_per_batch", None)  # stand in the size of the batch
    for name in sorted(train_parser().names(Role.PER_PROCESS)):
        old, new = saved.get(name), getattr(args, name)
        changed.pop(name, None)
        if of_all_processes(old, before) != of_all_processes(new, now):
            changed[name] = [f"{_shown(old)} x {before}", f"{_shown(new)} x {now}"]
    changed[PROCESSES] = [str(before), str(now)]


def _shown(value: object) -> str:
    return " ".join(str(value).split())[:80]


def _listed(changed: dict[str, list[str]]) -> str:
    return "; ".join(f"--{name.replace('_', '-')} {old} -> {new}" if name != PROCESSES else f"{old} -> {new} processes"
                     for name, (old, new) in changed.items())


def count_processes() -> int:
    """Return the number of processes of this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_finished(checkpoint: dict) -> bool:
    """Whether a checkpoint is of the end of an epoch."""
    return "metric" in checkpoint or "batch" not in (checkpoint.get("w2s") or {})


def change_of(position: Position, update: int, changed: dict[str, list[str]]) -> dict[str, object]:
    """Return the note of flags that a run goes on with in place of others, for its record."""
    return dict(epoch=position.epoch, update=update, flags=changed)


def describe_change(change: dict) -> str:
    """Return the text of what `change_of` returned."""
    return f"from epoch {change['epoch'] + 1}, step {change['update']} on: {_listed(change['flags'])}"


def check_bookkeeping(checkpoint: dict, path: Path) -> None:
    """Refuse a checkpoint whose counts are none, or whose names are not those of checkpoints in the run's own folder.

    The saver writes and deletes files by these names.

    Raises:
        UserError: naming the part that is wrong.
    """
    def is_count(value: object) -> bool:
        return type(value) is int and 0 <= value < 2 ** 62

    def is_pair(value: object, is_first: Callable[[object], bool]) -> bool:
        return isinstance(value, (list, tuple)) and len(value) == 2 and is_first(value[0])

    def is_name(value: object) -> bool:
        return isinstance(value, str) and re.fullmatch(r"checkpoint-\d+\.(pth\.tar|sharded)", value) is not None

    saver, extra = ({} if part is None else part for part in map(checkpoint.get, ("saver", "w2s")))
    if not isinstance(saver, dict) or not isinstance(extra, dict):
        raise UserError(f"--resume {path}: not a checkpoint of this program: its bookkeeping is no mapping")
    files = saver.get("checkpoint_files", [])
    fits = {
        "epoch": is_count(checkpoint["epoch"]),
        "saver.checkpoint_files": isinstance(files, list) and all(is_pair(file, is_name) for file in files),
        "saver.pending": is_pair(saver.get("pending", (None, None)), lambda epoch: epoch is None or is_count(epoch)),
        **{f"w2s.{key}": is_count(extra.get(key, 0)) for key in ("batch", "bad_steps", "taken", "metrics_bytes")},
        "w2s.processes": is_count(extra.get("processes", 1)),
    }
    for name, good in fits.items():
        if not good:
            raise UserError(f"--resume {path}: not a checkpoint of this program: its {name} is not what a run writes")


def restore(
        checkpoint: dict,
        path: Path,
        task: TrainingTask,
        optimizer: torch.optim.Optimizer | None,
        scaler: object | None,
        scheduler: object | None,
) -> Position:
    """Load a training checkpoint into its parts.

    Args:
        checkpoint: content of the file, from `read_checkpoint`.
        path: the file, for messages.
        task: its student, loss state and average of weights.
        optimizer: None leaves it as it is.
        scaler: loss scaler, or None.
        scheduler: timm scheduler, or None.

    Returns:
        The position to continue from.

    Raises:
        UserError: the checkpoint does not fit.
    """
    check_bookkeeping(checkpoint, path)
    with _fitting(path):
        task.load_checkpoint_state(checkpoint["state_dict"], checkpoint.get("task_state"))
        if task.has_ema() and checkpoint.get("state_dict_ema") is not None:
            task.load_checkpoint_state(checkpoint["state_dict_ema"], ema=True)
        if optimizer is not None:
            optimizer.load_state_dict(checkpoint["optimizer"])
        if scaler is not None and scaler.state_dict_key in checkpoint:
            scaler.load_state_dict(checkpoint[scaler.state_dict_key])
        load_plateau_state(scheduler, (checkpoint.get("w2s") or {}).get("plateau"))
        return _position(checkpoint, task.device)


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    """Turn whatever the parts of a run say of a strange state into a `UserError`."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # each of them checks its state in its own way, or not at all
        raise UserError(f"--resume {path}: does not fit this run: {type(error).__name__}: {one_line(error)}") from error


def _position(checkpoint: dict, device: torch.device) -> Position:
    extra = checkpoint.get("w2s") or {}
    finished = is_finished(checkpoint)
    position = Position(
        epoch=checkpoint["epoch"] + 1 if finished else checkpoint["epoch"],
        batch=0 if finished else extra["batch"],
        bad_steps=extra.get("bad_steps", 0),
        taken=extra.get("taken", 0),
        unreadable=list(extra.get("unreadable", ())),
        changes=list(extra.get("changes", ())),
    )
    if not finished:
        position.statistics_shared = extra.get("statistics_shared", False)
        position.meter.load_state_dict(extra["meter"], device)
        position.weights.load_state_dict(extra.get("weights", {}), device)
    return position


class SummaryFile:
    """summary.csv, timm's. Rows wait in memory while it cannot be written.

    Args:
        path: the file.
        waiting: rows that wait: epoch, figures of training, of the validation split or None, and learning rate.
    """

    def __init__(self, path: Path, waiting: Iterable[Sequence] = ()):
        self.path, self.waiting = path, list(waiting)

    def flush(self) -> None:
        """Write the rows that wait. Raises `UserError` when that fails."""
        while self.waiting:
            *figures, lr = self.waiting[0]
            append_summary(self.path, *figures, lr=lr)
            del self.waiting[0]


def append_summary(path: Path, *args: object, **kwargs: object) -> None:
    """Add a row to summary.csv as timm does, atomically."""
    with atomic_write(path) as temporary:
        if path.exists():
            temporary.write_bytes(path.read_bytes())
        update_summary(*args, filename=str(temporary), **kwargs)


def trim_summary(path: Path, epoch: int) -> None:
    """Drop the rows of summary.csv from ``epoch`` on, which a resumed run writes again."""
    if not path.exists():
        return
    with path.open(newline="") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    kept = [row for row in rows if row and int(row[0]) < epoch]
    with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
        if kept:
            csv.writer(file).writerows([header, *kept])


def write_args(path: Path, args: argparse.Namespace, names: set[str]) -> None:
    """Write args.yaml: the flags, and nothing that was derived from them."""
    content = {k: v for k, v in sorted(vars(args).items()) if k in names}
    content["resume"] = ""  # repeating the run starts it anew
    content.pop("resume_changes", None)
    write_text(path, yaml.safe_dump(content, default_flow_style=False))


def read_run_args(folder: Path, flag: str) -> dict[str, object]:
    """Read the args.yaml of a run folder, as `typed_flags`. Raises `UserError` when it cannot be read."""
    path = folder / "args.yaml"
    try:
        content = read_plain(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{flag} {folder}: its args.yaml cannot be read: {one_line(error)}") from error
    return typed_flags(content, f"{flag} {folder}: its args.yaml")
