"""The folder of a run and its files, and where the run goes on."""

import argparse
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import torch
from timm.models import safe_model_name
from timm.task import TrainingTask

from ..cli.declare import Role, option
from ..cli.parser import train_parser
from ..distributed.world import Precision
from ..errors import UserError
from ..labels.splits import Data
from ..monitor import Trackers
from ..run.args_file import write_args
from ..run.find import Checkpoint
from ..run.folder import RunFiles
from ..run.history import History
from ..run.position import Position
from ..run.restore import check_resumable, cut_into_parts, fitting, restore, stored_predictions
from ..teachers.teacher import Teacher
from .optimisation import Schedule
from .resolve import locate_run
from .student import Student

_logger = logging.getLogger(__name__)

# flags that say which weights the student starts from, the one that counts first; which model the teacher is
_STARTS = ("finetune", "initial_checkpoint", "pretrained_path", "pretrained")
_OPENS_TEACHER = ("teacher", "teacher_checkpoint", "teacher_kwargs", "teacher_img_size",
                  "prompts")


def new_folder_name(args: argparse.Namespace, input_size: int) -> str:
    """Return the name of the folder of a run that is given none."""
    return "-".join([datetime.now().strftime("%Y%m%d-%H%M%S"), safe_model_name(args.model), str(input_size)])


def recorded_flags(args: argparse.Namespace, resolved: dict[str, object]) -> dict[str, object]:
    """Return the flags that args.yaml and checkpoints hold; ``resolved`` are those that turned out otherwise."""
    return {name: value for name, value in {**vars(args), **resolved}.items() if name in train_parser().by_dest()}


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
        saved = checkpoint.content
        changed = check_resumable(saved, {**vars(args), **recorded}, path)
        if made_of is not None:
            check_ingredients(args, saved, made_of, path)

        # The state of all parts; the learning rates that came with it make room for new ones that were asked for.
        kept_optimizer = None if args.no_resume_opt else optimizer
        if args.fsdp:
            cut_into_parts(saved, path, task, kept_optimizer)
        own_rates = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        scaler = None if args.no_resume_opt else precision.scaler
        position = restore(saved, path, task, kept_optimizer, scaler, scheduler)
        resumed = Resumed(position, path, {k: saved.get(k) for k in ("saver", "w2s")})
        new_rates = bool(changed.keys() & train_parser().names(Role.OPTIMIZER | Role.SCHEDULE))
        if new_rates:
            for group, own in zip(optimizer.param_groups, own_rates):
                group.update(own)

        # What the record and the log say of it.
        update = position.batch // args.grad_accum_steps
        if changed:
            position.changes.append(dict(epoch=position.epoch, update=update, flags=changed))
        _logger.info(f"Resumed {path}: goes on with epoch {position.epoch + 1}, step {update}")
    if args.start_epoch is not None:
        resumed.position = Position(
            epoch=args.start_epoch, taken=resumed.position.taken, changes=resumed.position.changes)

    # A schedule is a function of the position, but for one of plateaus, whose counters were restored.
    epoch, batch = resumed.position.epoch, resumed.position.batch
    update, per_epoch = batch // args.grad_accum_steps, schedule.updates_per_epoch
    if scheduler is not None and epoch > 0 and (not batch or args.no_resume_opt or new_rates):
        updates = epoch * per_epoch + update
        scheduler.step_update(updates) if args.sched_on_updates else scheduler.step(epoch)
    return resumed


def ingredients(data: Data, student: Student, teacher: Teacher | None) -> dict[str, object]:
    """Return what identifies the samples, labels and models that a run is made of, for its checkpoints.

    Of the student it is the file that it starts from, which is also that of an encoder whose features are stored.
    """
    models = {} if teacher is None else {"teacher": teacher.digest}
    start = student.source["source"] or {}
    if start.get("sha256"):
        models["start"] = start["sha256"]
    return dict(labels=data.hashes, models=models)


def check_ingredients(args: argparse.Namespace, saved: dict, now: Mapping[str, object], path: Path) -> None:
    """Raise a `UserError` where samples, labels or models are others than when a checkpoint was written.

    Flags that are allowed to change may name other ones. One that was written before these were compared says nothing
    of them.
    """
    flags, may_change = saved.get("args"), {*args.resume_changes}
    with fitting(path):
        before, models = list(getattr(flags, "labels", now["labels"])), dict(getattr(flags, "models", now["models"]))

    # Labels come first in the list, the training split last. A stream has no hash of its own.
    labels = now["labels"]
    same_labels = before[:len(labels) - 1] == labels[:-1]
    other_split = same_labels and (len(before) < len(labels) or may_change & train_parser().names(Role.DATA))
    exchanged = None
    if before != labels and not other_split:
        exchanged = f"labels of --teacher {args.teacher}"
        if same_labels and args.unlabeled:
            exchanged = f"images of --unlabeled {args.unlabeled}"
        elif same_labels:
            exchanged = f"samples of --train-split {args.train_split}, or their labels,"

    # Of each model one flag is named: the one that says which weights it has.
    starts = [name for name in _STARTS if getattr(args, name)]
    remedy = ""
    for key, names in (("teacher", _OPENS_TEACHER), ("start", starts)):
        is_same = key not in models or models[key] == now["models"].get(key, models[key])
        if not is_same and not may_change & {*names}:
            flag = option(names[0])
            value = getattr(args, names[0])
            exchanged = f"weights of {flag if value is True else f'{flag} {value}'}"
            remedy = f", or go on with these by --resume-changes {flag[2:]}"
    if exchanged:
        raise UserError(f"--resume {path}: the {exchanged} are others than when it was written: put them back as they "
                        f"were, start a new run{remedy}")


def open_run_files(
        args: argparse.Namespace, recorded: dict[str, object], folder: Path, resumed: Resumed, step: int) -> RunFiles:
    """Write args.yaml, metrics.jsonl and summary.csv as they were where the run goes on; open the trackers.

    ``step`` is the update that it goes on from.

    Raises:
        UserError: one cannot be written.
    """
    # args.yaml says where the run lies, also where that was not given.
    location = locate_run(args)
    if location.name != args.experiment:  # that of its folder
        recorded = recorded | dict(output=str(location.root), experiment=location.name)
    # What the checkpoint carries of earlier epochs is written again, and later lines are gone.
    with fitting(resumed.path):
        history = History(folder, resumed.extra.get("history", ""), args.start_epoch)
        predictions = stored_predictions(resumed.extra)
        history.save()
    write_args(folder / "args.yaml", recorded)
    # Trackers go on as the same run only where the folder is the same.
    wandb = None
    if args.log_wandb:
        wandb = dict(project=args.wandb_project, config=recorded, tags=args.wandb_tags)
        if args.wandb_resume_id:
            wandb |= dict(id=args.wandb_resume_id, resume="must")
    same_run = resumed.path is not None and resumed.path.parent.resolve() == folder.resolve()
    trackers = Trackers(
        folder, args.log_tensorboard, wandb, id=resumed.extra.get("tracked") if same_run else None, step=step)
    return RunFiles(history, trackers, predictions)
