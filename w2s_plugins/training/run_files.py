"""The folder of a run and its files, and where the run goes on."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from timm.models import safe_model_name

from ..cli.parser import train_parser
from ..cli.values import split_names
from ..errors import UserError, logger
from ..labels.splits import Data
from ..made_of import Ingredient, absolute_place, find_changed, from_plain, hash_of_place
from ..monitor import Trackers
from ..run.args_file import write_args
from ..run.find import Checkpoint
from ..run.folder import RunFiles
from ..run.history import History
from ..run.location import RunLocation
from ..run.position import Position
from ..run.restore import check_resumable, cut_into_parts, fitting, restore, stored_predictions
from ..settings.composite import TrainSettings
from ..teachers.teacher import Teacher
from .student import Student
from .training_run import Run

# what a run that goes on has to find unchanged; it may be measured on another split
RESUMED = ("train", "labelled", "given", "teacher", "start")


def new_folder_name(model: str, input_size: int) -> str:
    """Return the name of the folder of a run that is given none: the time, the model and the side of its images."""
    now = datetime.now().strftime("%Y%m%d-%H%M%S")
    return "-".join([now, safe_model_name(model), str(input_size)])


def recorded_flags(
    flags: Mapping[str, object], resolved: Mapping[str, object]
) -> dict[str, object]:
    """Return the flags that args.yaml and checkpoints hold; ``resolved`` are those that turned out otherwise."""
    known = train_parser().by_dest()
    return {name: value for name, value in {**flags, **resolved}.items() if name in known}


def resume(run: Run, recorded: dict[str, object], checkpoint: Checkpoint) -> None:
    """Load the checkpoint into the parts of a run, and set the learning rate of the first epoch.

    What is in the checkpoint beside the state of the parts stays in it, all else is released.

    Raises:
        UserError: the checkpoint does not fit the flags, or what the run is made of.
    """
    resuming, scheduler = run.settings.run, run.schedule.scheduler
    if checkpoint.path is not None:
        # The same flags, and the same data and models behind them.
        changed = check_resumable(checkpoint, {**run.settings.flags, **recorded})
        with fitting(checkpoint.path):  # a checkpoint of timm says nothing of them
            before = from_plain(getattr(checkpoint.content.get("args"), "made_of", None))
        gone_on = [one for one in before if one.role in RESUMED]
        changed_since = find_changed(gone_on, run.made_of)
        if changed_since is not None:
            raise UserError(f"--resume {checkpoint.path}: {changed_since.name} changed since it was written: put it "
                            "back as it was, or start a new run")

        # The state of all parts.
        optimizer = None if resuming.no_resume_opt else run.optimizer
        scaler = None if resuming.no_resume_opt else run.precision.scaler
        if run.settings.compute.fsdp:
            cut_into_parts(checkpoint, run.task, optimizer)
        run.position = restore(checkpoint, run.task, optimizer, scaler, scheduler)
        checkpoint.content = {key: checkpoint.content.get(key) for key in ("saver", "w2s")}

        # What the record and the log say of it.
        epoch, update = run.position.epoch, run.updates_in_epoch
        if changed:
            run.position.changes.append(dict(epoch=epoch, update=update, flags=changed))
        logger.info(f"Resumed {checkpoint.path}: goes on with epoch {epoch + 1}, step {update}")
    if resuming.start_epoch is not None:
        run.position = Position(
            epoch=resuming.start_epoch, taken=run.position.taken, changes=run.position.changes)

    # A schedule is a function of the position, but for one of plateaus, whose counters were restored. Inside an epoch
    # the optimizer has its rates.
    has_its_rates = run.position.batch and not resuming.no_resume_opt
    if scheduler is None or run.position.epoch == 0 or has_its_rates:
        return
    if run.settings.optim.sched_on_updates:
        scheduler.step_update(run.updates_done)
    else:
        scheduler.step(run.position.epoch)


def ingredients(
    settings: TrainSettings,
    data: Data,
    student: Student,
    teacher: Teacher | None,
) -> list[Ingredient]:
    """Return what a run is made of: its data, the labels that they were given, and the weights of teacher and student.

    Of the student it is the file that it starts from, which is also that of an encoder whose features are stored.
    """
    made_of = list(data.sources)
    loading, teaching, starting = settings.data, settings.teacher, settings.student
    # Of a file of labels only those of the samples at hand count if the run goes on.
    if data.given:
        samples = (loading.train_slice, loading.slice_seed, loading.select_split)
        content = "+".join(labels.hash for labels in data.given)
        place = hash_of_place(teaching.teacher, teaching.labels_missing, *samples)
        made_of.append(Ingredient("given", f"the labels of --teacher {teaching.shown}", place, content))
    # How a teacher sees the images belongs to what it says of them, and so do its classes.
    if teacher is not None:
        files = [absolute_place(file) for file in split_names(teaching.teacher_checkpoint)]
        seen = (teaching.teacher_img_size, teaching.teacher_kwargs, data.class_names)
        place = hash_of_place(teaching.teacher, files, *seen)
        name = f"the weights of --teacher {teaching.shown}"
        made_of.append(Ingredient("teacher", name, place, teacher.digest))
    # Of the flags that name the student's file the first one counts.
    start = student.source["source"] or {}
    if start.get("sha256"):
        files = {
            "--finetune": starting.finetune,
            "--initial-checkpoint": starting.initial_checkpoint,
            "--pretrained-path": starting.pretrained_path,
        }
        named = [f"{flag} {Path(file).name}" for flag, file in files.items() if file]
        name = f"the weights of {(named or ['--pretrained'])[0]}"
        place = hash_of_place(*map(absolute_place, files.values()), starting.model)
        made_of.append(Ingredient("start", name, place, start["sha256"]))
    return made_of


def open_run_files(
        run: Run, location: RunLocation, recorded: dict[str, object], checkpoint: Checkpoint) -> RunFiles:
    """Write args.yaml, metrics.jsonl and summary.csv as they were where the run goes on; open the trackers.

    Raises:
        UserError: one cannot be written.
    """
    settings, folder = run.settings.run, run.folder
    # args.yaml says where the run lies, also where that was not given.
    if location.name != settings.experiment:  # that of its folder
        recorded = recorded | dict(output=str(location.root), experiment=location.name)
    write_args(folder / "args.yaml", recorded)

    # What the checkpoint carries of earlier epochs is written again, and later lines are gone.
    with fitting(checkpoint.path):
        history = History(folder, checkpoint.extra.get("history", ""), settings.start_epoch)
        predictions = stored_predictions(checkpoint)
        history.save()

    # Trackers go on as the same run only where the folder is the same.
    wandb = None
    if settings.log_wandb:
        wandb = dict(project=settings.wandb_project, config=recorded, tags=settings.wandb_tags)
        if settings.wandb_resume_id:
            wandb |= dict(id=settings.wandb_resume_id, resume="must")
    same_run = checkpoint.path is not None and checkpoint.path.parent.resolve() == folder.resolve()
    tracked = checkpoint.extra.get("tracked") if same_run else None
    trackers = Trackers(folder, settings.log_tensorboard, wandb, id=tracked, step=run.updates_done)
    return RunFiles(history, trackers, predictions)
