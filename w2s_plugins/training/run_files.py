"""The folder of a run and its files, and where the run goes on."""

import argparse
import logging
from datetime import datetime

from timm.models import safe_model_name

from ..cli.declare import option
from ..cli.parser import train_parser
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
from .resolve import label_paths, locate_run
from .student import Student
from .training_run import Run

_logger = logging.getLogger(__name__)


def new_folder_name(args: argparse.Namespace, input_size: int) -> str:
    """Return the name of the folder of a run that is given none."""
    return "-".join([datetime.now().strftime("%Y%m%d-%H%M%S"), safe_model_name(args.model), str(input_size)])


def recorded_flags(args: argparse.Namespace, resolved: dict[str, object]) -> dict[str, object]:
    """Return the flags that args.yaml and checkpoints hold; ``resolved`` are those that turned out otherwise."""
    return {name: value for name, value in {**vars(args), **resolved}.items() if name in train_parser().by_dest()}


def resume(run: Run, recorded: dict[str, object], checkpoint: Checkpoint) -> None:
    """Load the checkpoint into the parts of a run, and set the learning rate of the first epoch.

    What is in the checkpoint beside the state of the parts stays in it, all else is released.

    Raises:
        UserError: the checkpoint does not fit the flags, or what the run is made of.
    """
    args, scheduler = run.args, run.schedule.scheduler
    if checkpoint.path is not None:
        # The same flags, and the same data and models behind them.
        changed = check_resumable(checkpoint, {**vars(args), **recorded})
        check_ingredients(args, run.made_of, checkpoint)

        # The state of all parts.
        optimizer = None if args.no_resume_opt else run.optimizer
        scaler = None if args.no_resume_opt else run.precision.scaler
        if args.fsdp:
            cut_into_parts(checkpoint, run.task, optimizer)
        run.position = restore(checkpoint, run.task, optimizer, scaler, scheduler)
        checkpoint.content = {key: checkpoint.content.get(key) for key in ("saver", "w2s")}

        # What the record and the log say of it.
        epoch, update = run.position.epoch, run.updates_in_epoch
        if changed:
            run.position.changes.append(dict(epoch=epoch, update=update, flags=changed))
        _logger.info(f"Resumed {checkpoint.path}: goes on with epoch {epoch + 1}, step {update}")
    if args.start_epoch is not None:
        run.position = Position(epoch=args.start_epoch, taken=run.position.taken, changes=run.position.changes)

    # A schedule is a function of the position, but for one of plateaus, whose counters were restored. Inside an epoch
    # the optimizer has its rates.
    if scheduler is None or run.position.epoch == 0 or (run.position.batch and not args.no_resume_opt):
        return
    if args.sched_on_updates:
        scheduler.step_update(run.updates_done)
    else:
        scheduler.step(run.position.epoch)


def ingredients(data: Data, student: Student, teacher: Teacher | None) -> dict[str, object]:
    """Return what identifies the samples, labels and models that a run is made of, for its checkpoints.

    Of the student it is the file that it starts from, which is also that of an encoder whose features are stored.
    """
    models = {} if teacher is None else {"teacher": teacher.digest}
    start = student.source["source"] or {}
    if start.get("sha256"):
        models["start"] = start["sha256"]
    return dict(labels=data.hashes, models=models)


def check_ingredients(args: argparse.Namespace, made_of: dict, checkpoint: Checkpoint) -> None:
    """Raise a `UserError` where samples, labels or models are others than when a checkpoint was written.

    A checkpoint of timm says nothing of them.
    """
    saved, labels, models = checkpoint.content.get("args"), made_of["labels"], made_of["models"]
    with fitting(checkpoint.path):
        labels_before, models_before = list(getattr(saved, "labels", labels)), dict(getattr(saved, "models", models))

    # Labels come first in the list, the training split last.
    exchanged = []
    count = len(label_paths(args.teacher))
    if labels_before[:count] != labels[:count]:
        exchanged.append(f"labels of --teacher {args.teacher}")
    elif labels_before != labels and args.unlabeled:
        exchanged.append(f"images of --unlabeled {args.unlabeled}")
    elif labels_before != labels:
        exchanged.append(f"samples of --train-split {args.train_split}, or their labels,")

    # Of each model one flag is named. That of the student is the one that says which weights it starts from.
    starts = [name for name in ("finetune", "initial_checkpoint", "pretrained_path") if getattr(args, name)]
    for model, flag in (("teacher", "teacher"), ("start", [*starts, "pretrained"][0])):
        if model in models and models_before.get(model, models[model]) != models[model]:
            value = getattr(args, flag)
            exchanged.append(f"weights of {option(flag)}" + ("" if value is True else f" {value}"))
    if exchanged:
        raise UserError(f"--resume {checkpoint.path}: the {exchanged[0]} are others than when it was written: put them "
                        "back as they were, or start a new run")


def open_run_files(run: Run, recorded: dict[str, object], checkpoint: Checkpoint) -> RunFiles:
    """Write args.yaml, metrics.jsonl and summary.csv as they were where the run goes on; open the trackers.

    Raises:
        UserError: one cannot be written.
    """
    args, folder = run.args, run.folder
    # args.yaml says where the run lies, also where that was not given.
    location = locate_run(args)
    if location.name != args.experiment:  # that of its folder
        recorded = recorded | dict(output=str(location.root), experiment=location.name)
    write_args(folder / "args.yaml", recorded)

    # What the checkpoint carries of earlier epochs is written again, and later lines are gone.
    with fitting(checkpoint.path):
        history = History(folder, checkpoint.extra.get("history", ""), args.start_epoch)
        predictions = stored_predictions(checkpoint)
        history.save()

    # Trackers go on as the same run only where the folder is the same.
    wandb = None
    if args.log_wandb:
        wandb = dict(project=args.wandb_project, config=recorded, tags=args.wandb_tags)
        if args.wandb_resume_id:
            wandb |= dict(id=args.wandb_resume_id, resume="must")
    same_run = checkpoint.path is not None and checkpoint.path.parent.resolve() == folder.resolve()
    tracked = checkpoint.extra.get("tracked") if same_run else None
    trackers = Trackers(folder, args.log_tensorboard, wandb, id=tracked, step=run.updates_done)
    return RunFiles(history, trackers, predictions)
