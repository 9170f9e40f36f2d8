"""The folder of a run and its files, and where the run goes on."""

import argparse
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import torch
from timm.models import safe_model_name
from timm.optim import get_optimizer_info
from timm.task import TrainingTask
from torch.utils._pytree import tree_leaves

from ..cli.declare import Role
from ..cli.parser import train_parser
from ..distributed.world import Precision
from ..errors import UserError
from ..labels.splits import Data
from ..models.shards import is_sharded
from ..monitor import Trackers
from ..run.args_file import write_args
from ..run.find import Checkpoint
from ..run.folder import RunFiles
from ..run.history import History
from ..run.position import Position
from ..run.restore import check_resumable, fitting, put_in_shards, restore, stored_predictions
from ..teachers.teacher import Teacher
from .optimisation import Schedule
from .resolve import run_place
from .student import Student

_logger = logging.getLogger(__name__)

# flags that say which weights the student starts from, the one that counts first; which model the teacher is
_STARTS = ("finetune", "initial_checkpoint", "pretrained_path", "pretrained")
_OPENS_TEACHER = ("teacher", "teacher_checkpoint", "teacher_kwargs", "teacher_class_map", "teacher_img_size",
                  "use_ema_teacher", "prompts")
WORTH_SAYING = 100e6  # bytes of checkpoints, below which nobody asks where the room has gone
MOST_KEPT, ROOM_OF_KEPT = 10, 500e6  # checkpoints of the best epochs, and bytes of them all, unless a number is given


def new_folder_name(args: argparse.Namespace, input_size: int) -> str:
    """Return the name of the folder of a run that is given none."""
    return "-".join([datetime.now().strftime("%Y%m%d-%H%M%S"), safe_model_name(args.model), str(input_size)])


def recorded_flags(args: argparse.Namespace, found: dict[str, object]) -> dict[str, object]:
    """Return the flags that args.yaml and checkpoints hold; ``found`` are those that turned out otherwise."""
    return {name: value for name, value in {**vars(args), **found}.items() if name in train_parser().by_dest()}


@dataclass
class Resumed:
    """What a run continues from.

    Args:
        position: where it goes on.
        path: the checkpoint.
        content: what is in it, beside the state of the parts.
    """

    position: Position = field(default_factory=Position)
    path: Path | None = None
    content: dict = field(default_factory=dict)

    @property
    def extra(self) -> dict:
        """What a checkpoint has beside what one of timm has."""
        return self.content.get("w2s") or {}


def resume(
        args: argparse.Namespace,
        recorded: dict[str, object],
        checkpoint: Checkpoint | None,
        task: TrainingTask,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        schedule: Schedule,
        made_of: Mapping[str, object] | None = None,
) -> Resumed:
    """Load the checkpoint, if there is one, and set the learning rate of the first epoch.

    ``made_of`` are the `ingredients` of this run.

    Raises:
        UserError: the checkpoint does not fit the flags.
    """
    resumed, new_rates, scheduler = Resumed(), False, schedule.scheduler
    path = None if checkpoint is None else checkpoint.path
    if checkpoint is not None:
        if is_sharded(path) != args.fsdp:
            raise UserError(f"--resume {path}: written {'with' if is_sharded(path) else 'without'} --fsdp: continue it "
                            "likewise, or start a new run from its weights with --initial-checkpoint")
        saved = checkpoint.take()
        changed = check_resumable(saved, {**vars(args), **recorded}, path)
        if made_of is not None:
            _check_ingredients(args, saved, made_of, path)
        # the state of all parts; the learning rates that came with it make room for new ones that were asked for
        weights_only = args.no_resume_opt
        if args.fsdp:
            put_in_shards(saved, path, task, None if weights_only else optimizer)
        rates = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        position = restore(
            saved, path, task, None if weights_only else optimizer, None if weights_only else precision.scaler,
            scheduler)
        resumed = Resumed(position, path, {k: saved.get(k) for k in ("saver", "w2s")})
        new_rates = bool(changed.keys() & train_parser().names(Role.OPTIMIZER | Role.SCHEDULE))
        for group, own in zip(optimizer.param_groups, rates if new_rates else ()):
            group.update(own)
        # what the record and the log say of it
        update = position.batch // args.grad_accum_steps
        if changed:
            position.changes.append(dict(epoch=position.epoch, update=update, flags=changed))
        _logger.info(f"Resumed {path}: goes on with epoch {position.epoch + 1}, step {update}")
        before, now = resumed.extra.get("threads"), torch.get_num_threads()
        if type(before) is int and before != now and precision.device.type == "cpu":
            _logger.warning(f"WARNING: {now} threads, {before} until here (OMP_NUM_THREADS): sums are taken in another "
                            "order, and the last bits may differ from those of a run without a break")
    if args.start_epoch is not None:
        resumed.position = Position(
            epoch=args.start_epoch, taken=resumed.position.taken, unreadable=resumed.position.unreadable,
            changes=resumed.position.changes)
    # a schedule is a function of the position, but for one of plateaus, whose counters were restored
    epoch, batch = resumed.position.epoch, resumed.position.batch
    update, per_epoch = batch // args.grad_accum_steps, schedule.updates_per_epoch
    if update > per_epoch or epoch * per_epoch + update > schedule.num_epochs * per_epoch:
        raise UserError(f"--resume {path}: stands at epoch {epoch + 1}, step {update}, which training has not: "
                        f"{schedule.num_epochs} epochs of {per_epoch} steps; take an earlier checkpoint, or more "
                        "--epochs with --resume-changes epochs")
    if scheduler is not None and epoch > 0 and (not batch or args.no_resume_opt or new_rates):
        updates = epoch * per_epoch + update
        scheduler.step_update(updates) if args.sched_on_updates else scheduler.step(epoch)
    return resumed


def _check_ingredients(args: argparse.Namespace, saved: dict, now: Mapping[str, object], path: Path) -> None:
    """Raise a `UserError` where samples, labels or models are others than when a checkpoint was written.

    One that was written before these were compared says nothing of them.
    """
    flags = saved.get("args")
    with fitting(path):
        labels, models = list(getattr(flags, "labels", now["labels"])), dict(getattr(flags, "models", now["models"]))
    _refuse_other_data(args, labels, now["labels"], path)
    _refuse_other_models(args, models, now["models"], path)


def _refuse_other_data(args: argparse.Namespace, before: list[str], now: list[str], path: Path) -> None:
    """Raise a `UserError` for labels or training samples that are not those of the checkpoint; flags that are allowed
    to change may name other samples, and one that was written before these were compared says nothing of them.
    """
    split, allowed = before[:len(now) - 1] == now[:-1], {*args.resume_changes} & train_parser().names(Role.DATA)
    if before == now or (split and (len(before) < len(now) or allowed)):
        return
    samples = f"images of --unlabeled {args.unlabeled}" if args.unlabeled else (
        f"samples of --train-split {args.train_split}, or their labels,")
    what = samples if split else f"labels of --teacher {args.teacher}"
    commit = next((old.partition("@")[2] for old, new in zip(before, now) if "@" in old and old != new), "")
    remedy = f"name the commit of then, @{commit}, with --resume-changes teacher" if commit else (
        f"put the {'folder' if split else 'file'} back as it was")
    raise UserError(f"--resume {path}: the {what} are others than when it was written: {remedy}, or start a new run")


def ingredients(data: Data, student: Student, teacher: Teacher | None) -> dict[str, object]:
    """Return what identifies the samples, labels and models that a run is made of, for its checkpoints.

    Of the student it is the file that it starts from, which is also that of an encoder whose features are stored.
    """
    models = {} if teacher is None else {"teacher": teacher.digest}
    start = student.source["source"] or {}
    if start.get("sha256"):
        models["start"] = start["sha256"]
    return dict(labels=data.hashes, models=models)


def _refuse_other_models(
        args: argparse.Namespace, before: Mapping[str, str], now: Mapping[str, str], path: Path) -> None:
    """Raise a `UserError` for a teacher, or weights to start from, that are not those of the checkpoint, unless they
    are allowed to change.
    """
    starts = [name for name in _STARTS if getattr(args, name)]
    for key, names in (("teacher", _OPENS_TEACHER), ("start", starts)):
        same = key not in before or key not in now or before[key] == now[key]
        if same or {*names} & {*args.resume_changes}:
            continue
        flag = names[0].replace("_", "-")
        value = "" if getattr(args, names[0]) is True else f" {getattr(args, names[0])}"
        raise UserError(f"--resume {path}: the weights of --{flag}{value} are others than when it was written: put "
                        f"them back as they were, start a new run, or go on with these by --resume-changes {flag}")


def open_run_files(
        args: argparse.Namespace, recorded: dict[str, object], folder: Path, resumed: Resumed, step: int) -> RunFiles:
    """Write args.yaml, metrics.jsonl and summary.csv as they were where the run goes on; open the trackers.

    ``step`` is the update that it goes on from.

    Raises:
        UserError: one cannot be written.
    """
    place = run_place(args)
    if place.name != args.experiment:  # that of its folder
        recorded = recorded | dict(output=str(place.root), experiment=place.name)
    with fitting(resumed.path):
        history = History(folder, resumed.extra.get("history", ""), args.start_epoch)
        predictions = stored_predictions(resumed.extra)
    history.save()
    write_args(folder / "args.yaml", recorded)
    wandb = dict(project=args.wandb_project, config=recorded, tags=args.wandb_tags) | (
        dict(id=args.wandb_resume_id, resume="must") if args.wandb_resume_id else {})
    trackio = dict(project=args.log_trackio, config=recorded)
    here = resumed.path is not None and resumed.path.parent.resolve() == folder.resolve()  # else it is another run
    trackers = Trackers(
        folder, args.log_tensorboard, wandb if args.log_wandb else None, trackio if args.log_trackio else None,
        id=resumed.extra.get("tracked") if here else None, step=step)
    return RunFiles(history, trackers, predictions)


def look_for_room(args: argparse.Namespace, folder: Path, task: TrainingTask, epochs: int) -> int:
    """Estimate what the checkpoints of a run take, say so when it is much, and return how many of the best are kept.

    A checkpoint has the weights, their average, and up to two states of the optimizer for each. ``last``, the best and
    the history share files. Two recovery checkpoints, one that is being written and the export come on top.

    Raises:
        UserError: not even one checkpoint can take the place of another.
    """
    model = task.get_trainable_module()
    weights = sum(t.numel() * t.element_size() for t in tree_leaves(model.state_dict()))
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    info = get_optimizer_info(args.opt.removeprefix("lookahead_"))
    states = info.num_betas if info.has_betas else int(info.has_momentum)
    one = weights * (2 if task.has_ema() else 1) + trained * (states + args.opt.startswith("lookahead_"))
    most = args.checkpoint_hist or max(1, min(MOST_KEPT, int(ROOM_OF_KEPT // one)))
    kept = min(most, max(1, epochs // args.val_interval)) + len(args.save_epochs)
    needed = one * (kept + 1 + (2 if args.recovery_interval else 0)) + weights
    free = shutil.disk_usage(folder).free
    if free < 2 * one:
        raise UserError(f"--output {folder}: no room on the disk: a checkpoint takes about {one / 1e6:.1f} MB, two are "
                        f"needed to replace one by another, {free / 1e6:.1f} MB are free; make room, or choose another "
                        "disk with --output")
    if free < needed:
        _logger.warning(f"WARNING: {folder}: the checkpoints of this run take about {needed / 1e6:.1f} MB, the disk "
                        f"has {free / 1e6:.1f} MB free; make room meanwhile, or keep fewer with --checkpoint-hist")
    elif needed >= WORTH_SAYING:
        _logger.info(f"Checkpoints: about {one / 1e6:.0f} MB each, {needed / 1e9:.1f} GB in the end; of the best "
                     f"epochs {most} are kept (--checkpoint-hist)")
    return most
