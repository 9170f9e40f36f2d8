"""The folder of a run: where it is, how it is continued, and the files in it that grow."""

import argparse
import logging
import shutil
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import torch.distributed as dist
from timm.models import safe_model_name
from timm.optim import get_optimizer_info
from timm.task import TrainingTask

from ..cli.declare import Role
from ..cli.parser import train_parser
from ..distributed.world import Precision, World, agree
from ..errors import UserError
from ..models.shards import EXTENSION, is_sharded
from ..monitor import MetricsFile, Trackers
from . import checkpoint as ckpt
from .lock import hold
from .position import Position
from .record import read_history
from .sharded import put_in_shards

_logger = logging.getLogger(__name__)


@dataclass
class Resumed:
    """What a run continues from.

    Args:
        position: where it goes on.
        path: the checkpoint.
        saver: bookkeeping of the checkpoint saver.
        metrics_bytes: length of metrics.jsonl at that point.
        waiting: what could not be written to the growing files until then.
        rank_states: what differed from rank to rank, for `restore_rank_state`.
    """

    position: Position = field(default_factory=Position)
    path: Path | None = None
    saver: dict | None = None
    metrics_bytes: int = 0
    waiting: dict = field(default_factory=dict)
    rank_states: list | None = None


def find_run_to_resume(args: argparse.Namespace, world: World) -> Path | None:
    """Return the checkpoint that ``--resume`` stands for, or None.

    Rank 0 chooses for all: what is damaged for one may not be for another.
    """
    if not args.resume:
        return None
    try:
        chosen = _choose_checkpoint(args) if world.primary else None
    except UserError as error:
        chosen = error
    path = agree(chosen, world.distributed)
    if isinstance(path, UserError):
        raise path  # on every rank, so that none waits for one that has ended
    return path


def _choose_checkpoint(args: argparse.Namespace) -> Path | None:
    if args.resume == "auto":
        folder = run_root(args) / args.experiment
        found = ckpt.find_resume(folder)
        if found is None:
            _refuse_what_is_left(folder)
        return found
    path = Path(args.resume)
    if path.is_dir() and not is_sharded(path):
        found = ckpt.find_resume(path)
        if found is None:
            raise UserError(f"--resume {path}: the folder has no checkpoint (expected {ckpt.LAST})")
        return found
    try:
        if not path.exists():
            raise UserError(f"--resume {path}: no such file; expected a checkpoint, a run folder, or auto")
        ckpt.check_checkpoint(path)
    except UserError as error:
        other, _ = ckpt.find_whole(path.parent) if (path.parent / "args.yaml").is_file() else (None, ())
        if other is None:
            raise
        raise UserError(f"{error}; {other} is whole: --resume {path.parent} goes on from there") from error
    return path


def run_root(args: argparse.Namespace) -> Path:
    """Return the folder that runs are made in."""
    return Path(args.output or "./output/train")


def refuse_existing_run(args: argparse.Namespace) -> None:
    """Raise a `UserError` when the named run folder holds a run and is not to be continued."""
    folder = run_root(args) / args.experiment
    if not args.experiment or args.resume:
        return
    if any((*folder.glob("*.pth.tar"), *folder.glob(f"*{EXTENSION}"))):
        raise UserError(f"the run folder {folder} exists already: continue it with --resume auto, or give another "
                        "--experiment")
    _refuse_what_is_left(folder)


def _refuse_what_is_left(folder: Path) -> None:
    """Raise a `UserError` for a folder without checkpoints whose run has had some: another would write over the rest.

    The evaluation of an epoch is written before its checkpoint, so that the last one proves nothing.
    """
    history = folder / "metrics.jsonl"
    left = "result.json" if (folder / "result.json").is_file() else history.name if history.is_file() and any(
        not event.get("unsaved") for event in read_history(history)[:-1]) else None
    if left:
        raise UserError(f"the run folder {folder} has lost its checkpoints, and a run that starts anew in it would "
                        f"write over its {left}: give another --experiment, or delete the folder")


def go_on_in_folder(args: argparse.Namespace) -> None:
    """Let a run go on in the folder of the checkpoint that ``--resume`` names, unless another one is given."""
    if args.experiment or args.resume in ("", "auto"):
        return
    path = Path(args.resume)
    folder = path if path.is_dir() and not is_sharded(path) else path.parent
    if (folder / "args.yaml").is_file():
        args.output, args.experiment = str(folder.parent), folder.name


def hold_existing_run(args: argparse.Namespace, world: World) -> Path | None:
    """Keep others out of a run folder that is there already; return the checkpoint in it that the run goes on from.

    Raises:
        UserError: another process trains in it, or it is not to be continued.
    """
    go_on_in_folder(args)
    folder = run_root(args) / args.experiment
    if world.primary and args.experiment and folder.is_dir():
        hold(folder)
    agree(None, world.distributed)  # from here on nobody else writes, so that all ranks see the same
    refuse_existing_run(args)
    return find_run_to_resume(args, world)


def make_run_folder(args: argparse.Namespace, data_config: dict, world: World) -> Path:
    """Create the run folder on rank 0, keep others out of it, and tell the other ranks where it is.

    Raises:
        UserError: the folder cannot be written to, or another process trains in it.
    """
    name = args.experiment or "-".join([
        datetime.now().strftime("%Y%m%d-%H%M%S"),
        safe_model_name(args.model_name or args.model),
        str(data_config["input_size"][-1]),
    ])
    folder = run_root(args) / name
    if world.primary:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output {folder}: cannot be written to ({error.strerror}); choose another folder "
                            "with --output") from error
        if hold(folder) and ckpt.find_resume(folder) is not None:
            raise UserError(f"another process has trained in {folder} meanwhile: repeat the command with --resume "
                            "auto, or give another --experiment")
    if world.distributed:
        shared = [str(folder)]
        dist.broadcast_object_list(shared, src=0)
        folder = Path(shared[0])
    return folder


def resume(
        args: argparse.Namespace,
        path: Path | None,
        task: TrainingTask,
        optimizer: object,
        precision: Precision,
        scheduler: object,
        updates_per_epoch: int,
) -> Resumed:
    """Load the checkpoint at ``path``, if there is one, and set the learning rate of the first epoch.

    Raises:
        UserError: the checkpoint does not fit the flags.
    """
    resumed, new_rates = Resumed(), False
    if path is not None:
        if is_sharded(path) != args.fsdp:
            raise UserError(f"--resume {path}: written {'with' if is_sharded(path) else 'without'} --fsdp: continue it "
                            "likewise, or start a new run from its weights with --initial-checkpoint")
        saved = ckpt.read_checkpoint(path, "--resume")
        changed = ckpt.check_resumable(saved, args, path)
        weights_only = args.no_resume_opt
        if args.fsdp:
            put_in_shards(saved, path, task, None if weights_only else optimizer)
        rates = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        position = ckpt.restore(
            saved, path, task, None if weights_only else optimizer, None if weights_only else precision.scaler,
            scheduler)
        extra = saved.get("w2s") or {}
        resumed = Resumed(position, path, saved.get("saver"), extra.get("metrics_bytes", 0),
                          extra.get("waiting") or {}, extra.get("rank_states"))
        new_rates = bool(changed.keys() & train_parser().names(Role.OPTIMIZER | Role.SCHEDULE))
        for group, own in zip(optimizer.param_groups, rates if new_rates else ()):
            group.update(own)  # in place of those that came with its state
        update = position.batch // args.grad_accum_steps
        if changed:
            position.changes.append(ckpt.change_of(position, update, changed))
        _logger.info(f"Resumed {path}: goes on with epoch {position.epoch + 1}, step {update}")
    if args.start_epoch is not None:
        resumed.position = Position(
            epoch=args.start_epoch, taken=resumed.position.taken, unreadable=resumed.position.unreadable,
            changes=resumed.position.changes)
    epoch, batch = resumed.position.epoch, resumed.position.batch
    if scheduler is not None and epoch > 0 and (not batch or args.no_resume_opt or new_rates):
        updates = epoch * updates_per_epoch + batch // args.grad_accum_steps
        scheduler.step_update(updates) if args.sched_on_updates else scheduler.step(epoch)
    return resumed


def look_for_room(folder: Path, args: argparse.Namespace, task: TrainingTask, epochs: int) -> None:
    """Estimate what the checkpoints of a run take, and say so when the disk has less.

    A checkpoint has the weights, their average, and up to two states of the optimizer for each. ``last``, the best and
    the history share files. Two recovery checkpoints, one that is being written and the export come on top.

    Raises:
        UserError: not even one checkpoint can take the place of another.
    """
    model = task.get_trainable_module()
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    info = get_optimizer_info(args.opt.removeprefix("lookahead_"))
    states = info.num_betas if info.has_betas else int(info.has_momentum)
    one = weights * (2 if task.has_ema() else 1) + trained * (states + args.opt.startswith("lookahead_"))
    kept = min(args.checkpoint_hist, max(1, epochs // args.val_interval)) + len(args.save_epochs)
    needed = one * (kept + 1 + (2 if args.recovery_interval else 0)) + weights
    free = shutil.disk_usage(folder).free
    if free < 2 * one:
        raise UserError(f"--output {folder}: no room on the disk: a checkpoint takes about {one / 1e6:.1f} MB, two are "
                        f"needed to replace one by another, {free / 1e6:.1f} MB are free; make room, or choose another "
                        "disk with --output")
    if free < needed:
        _logger.warning(f"WARNING: {folder}: the checkpoints of this run take about {needed / 1e6:.1f} MB, the disk "
                        f"has {free / 1e6:.1f} MB free; make room meanwhile, or keep fewer with --checkpoint-hist")


@dataclass
class RunFiles:
    """The files of a run that grow, and its trackers. Rank 0 has them."""

    metrics: MetricsFile
    summary: ckpt.SummaryFile
    trackers: Trackers

    def state(self) -> dict[str, object]:
        """Return what a checkpoint needs for the files to be continued exactly."""
        self.metrics.sync()
        waiting = dict(metrics=self.metrics.waiting, summary=list(self.summary.waiting))
        return dict(metrics_bytes=self.metrics.size, waiting=waiting)

    def flush(self) -> None:
        """Write what waits. Raises `UserError` when that fails."""
        self.metrics.flush()
        self.summary.flush()


def open_run_files(args: argparse.Namespace, flags: set[str], folder: Path, resumed: Resumed) -> RunFiles:
    """Open metrics.jsonl, summary.csv and the trackers, cut back to where the run goes on; write args.yaml.

    Raises:
        UserError: metrics.jsonl is shorter than it was there: the figures of earlier epochs, which choose the best one,
            are lost.
    """
    metrics = folder / "metrics.jsonl"
    size = metrics.stat().st_size if metrics.exists() else 0
    if resumed.path and resumed.path.parent.resolve() == folder.resolve() and size < resumed.metrics_bytes:
        raise UserError(f"{metrics}: lost or cut off: {size} bytes, and {resumed.metrics_bytes} when "
                        f"{resumed.path.name} was written, so figures of earlier epochs are missing: put it back, or "
                        "go on in another folder, where history and best begin anew: "
                        f"--resume {resumed.path} --experiment NAME")
    files = RunFiles(
        MetricsFile(folder / "metrics.jsonl", resumed.metrics_bytes, resumed.waiting.get("metrics", "")),
        ckpt.SummaryFile(folder / "summary.csv", resumed.waiting.get("summary", ())),
        Trackers(args, folder, {k: v for k, v in vars(args).items() if k in flags}),
    )
    ckpt.trim_summary(files.summary.path, resumed.position.epoch)
    files.flush()
    ckpt.write_args(folder / "args.yaml", args, flags)
    return files
