"""The folder of a run and its files, and where the run goes on."""

from argparse import Namespace
from datetime import datetime

from timm.models import safe_model_name

from ..cli.declare import option
from ..cli.parser import train_parser
from ..errors import UserError, logger
from ..labels.splits import Data
from ..monitor import Trackers
from ..run.args_file import write_args
from ..run.find import Checkpoint
from ..run.folder import RunFiles
from ..run.history import History
from ..run.location import RunLocation
from ..run.position import Position
from ..run.restore import check_resumable, cut_into_parts, fitting, restore, stored_predictions
from ..teachers.teacher import Teacher
from .student import Student
from .training_run import Run


def new_folder_name(args: Namespace, input_size: int) -> str:
    """Return the name of the folder of a run that is given none."""
    return "-".join(
        [datetime.now().strftime("%Y%m%d-%H%M%S"), safe_model_name(args.model), str(input_size)])


def recorded_flags(args: Namespace, resolved: dict[str, object]) -> dict[str, object]:
    """Return the flags that args.yaml and checkpoints hold; ``resolved`` are those that turned out otherwise."""
    return {
        name: value
        for name, value in {**vars(args), **resolved}.items()
        if name in train_parser().by_dest()
    }


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
        with fitting(checkpoint.path):  # a checkpoint of timm says nothing of them
            before = dict(getattr(checkpoint.content.get("args"), "made_of", run.made_of))
        for what, digest in run.made_of.items():
            if before.get(what, digest) != digest:
                raise UserError(f"--resume {checkpoint.path}: the {what.format(**vars(args))} are others than when it "
                                "was written: put them back as they were, or start a new run")

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
        logger.info(f"Resumed {checkpoint.path}: goes on with epoch {epoch + 1}, step {update}")
    if args.start_epoch is not None:
        run.position = Position(
            epoch=args.start_epoch, taken=run.position.taken, changes=run.position.changes)

    # A schedule is a function of the position, but for one of plateaus, whose counters were restored. Inside an epoch
    # the optimizer has its rates.
    if scheduler is None or run.position.epoch == 0 or (run.position.batch and not args.no_resume_opt):
        return
    if args.sched_on_updates:
        scheduler.step_update(run.updates_done)
    else:
        scheduler.step(run.position.epoch)


def ingredients(args: Namespace, data: Data, student: Student, teacher: Teacher | None) -> dict[str, str]:
    """Return hashes of the samples, labels and models that a run is made of, by the text that names them to the user.

    A stream has none. Of the student it is the file that it starts from, which is also that of an encoder whose
    features are stored.
    """
    found = {"labels of --teacher {teacher}": "+".join(given.hash for given in data.given)}
    splits = [
        source["fingerprint"]
        for source in data.sources
        if source["role"] in ("train", "labelled")
    ]
    if all(splits):
        samples = "samples of --train-split {train_split}, or their labels,"
        found["images of --unlabeled {unlabeled}" if args.unlabeled else samples] = "+".join(splits)
    if teacher is not None:
        found["weights of --teacher {teacher}"] = teacher.digest
    # Of the flags that name the file the first one counts.
    start = student.source["source"] or {}
    if start.get("sha256"):
        named = [f"{option(name)} {{{name}}}" for name in ("finetune", "initial_checkpoint", "pretrained_path")
                 if getattr(args, name)]
        found[f"weights of {[*named, '--pretrained'][0]}"] = start["sha256"]
    return found


def open_run_files(
        run: Run, location: RunLocation, recorded: dict[str, object], checkpoint: Checkpoint) -> RunFiles:
    """Write args.yaml, metrics.jsonl and summary.csv as they were where the run goes on; open the trackers.

    Raises:
        UserError: one cannot be written.
    """
    args, folder = run.args, run.folder
    # args.yaml says where the run lies, also where that was not given.
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
