"""The folder of a run and its files, and where the run goes on."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
from timm.models import safe_model_name

from ..data.keys import positions_in_split
from ..errors import UserError, logger
from ..files import write_text
from ..made_of import (
    Ingredient,
    absolute_place,
    find_changed,
    hash_of_place,
    keep_recorded,
)
from ..metrics.long_tail import CLASS_COUNTS, counts_to_json
from ..models.class_names import write_class_names
from ..monitor import Trackers
from ..run.args_file import write_args
from ..run.checkpoint import Checkpoint, fitting
from ..run.folder import RunFiles
from ..run.history import History
from ..run.location import RunLocation
from ..run.position import Position
from ..run.record import LABELS_FILE, SELECTED
from ..run.restore import check_resumable, cut_into_parts, restore
from ..settings.composite import TrainSettings
from ..settings.programs import train_program
from ..settings.values import split_names
from ..teachers.teacher import Teacher
from .splits import Data
from .student import Student
from .training_run import Run
from .weights import weights_of

# What has to be unchanged. Of files of labels and of teachers it is what they say of the samples at hand.
COMPARED = (
    "train",
    "labelled",
    "val",
    "few_shot",
    "noise",
    "given",
    "selected",
    "teacher",
    "start",
)


def new_folder_name(model: str, input_size: int) -> str:
    """Return the name of the folder of a run that is given none: the time, the model and the side of its images."""
    now = datetime.now().strftime("%Y%m%d-%H%M%S")
    return "-".join([now, safe_model_name(model), str(input_size)])


def recorded_flags(
    flags: Mapping[str, object], resolved: Mapping[str, object]
) -> dict[str, object]:
    """Return the flags that args.yaml and checkpoints hold; ``resolved`` are those that turned out otherwise."""
    known = train_program().flags
    return {name: value for name, value in {**flags, **resolved}.items() if name in known}


def in_layout_of(settings: TrainSettings, checkpoint: Checkpoint | None) -> TrainSettings:
    """Return settings with the memory layout that a run was begun in, if it goes on and no flag asks for one."""
    layout = None if checkpoint is None else checkpoint.flags.get("channels_last")
    if settings.compute.channels_last is not None or not isinstance(layout, bool):
        return settings
    return replace(settings, compute=replace(settings.compute, channels_last=layout))


def write_labels(folder: Path, data: Data, split: str) -> None:
    """Write class names, noisy labels, class counts and selected samples into the folder of a run, as far as it has them."""
    # each file is there only where the run has what it tells
    write_class_names(folder, data.class_names)
    if data.groups is not None:
        write_text(folder / CLASS_COUNTS, counts_to_json(split, data.groups.counts))
    if data.noise is not None:
        write_text(folder / LABELS_FILE, data.noise.to_csv())
    if data.selection is not None:
        write_text(folder / SELECTED, data.selection.to_text())


def resume(run: Run, recorded: dict[str, object], checkpoint: Checkpoint | None) -> None:
    """Load the checkpoint into the parts of a run, and set the learning rate of the first epoch.

    Raises:
        UserError: the checkpoint does not fit the flags, or what the run is made of.
    """
    resuming, scheduler = run.settings.run, run.schedule.scheduler
    if checkpoint is not None:
        # The same flags, and the same data and models behind them.
        changed = check_resumable(checkpoint, {**run.settings.flags, **recorded})
        check_unchanged(
            checkpoint.made_of, run.made_of, f"--resume {checkpoint.path}", "start a new run"
        )
        run.made_of = keep_recorded(checkpoint.made_of, run.made_of)

        # The state of all parts.
        optimizer = None if resuming.no_resume_opt else run.optimizer
        scaler = None if resuming.no_resume_opt else run.precision.scaler
        if run.settings.compute.fsdp:
            checkpoint = cut_into_parts(checkpoint, run.task, optimizer)
        run.position = restore(checkpoint, run.task, optimizer, scaler, scheduler)

        # What the record and the log say of it.
        epoch, update = run.position.epoch, run.updates_in_epoch
        if changed:
            run.position.changes.append(dict(epoch=epoch, update=update, flags=changed))
        logger.info(f"Resumed {checkpoint.path}: goes on with epoch {epoch + 1}, step {update}")
    if resuming.start_epoch is not None:
        run.position = Position(
            epoch=resuming.start_epoch, taken=run.position.taken, changes=run.position.changes
        )

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
    student: Student | None = None,
    teacher: Teacher | None = None,
) -> list[Ingredient]:
    """Return what a run is made of: its data, the labels that they were given, which of them were selected, and the
    weights of teacher and student.

    Of the student it is the file that it starts from, which is also that of an encoder whose features are stored.
    """
    made_of = list(data.sources)
    loading, teaching = settings.data, settings.teacher
    # Which labels came of noise, and which samples are left, is drawn or read from files.
    if data.noise:
        name = f"the labels of --label-noise {data.noise.kind}"
        made_of.append(_of_numbers("noise", name, data.noise.labels))
    if settings.labels.clean_select:
        selected = positions_in_split(data.train)
        made_of.append(_of_numbers("selected", "the selection of --clean-select", selected))
    # Of a file of labels only those of the samples at hand count if the run goes on.
    if data.given_labels:
        samples = (loading.train_slice, loading.slice_seed, loading.select_split)
        content = "+".join(labels.hash for labels in data.given_labels)
        place = hash_of_place(teaching.teacher, teaching.labels_missing, *samples)
        made_of.append(
            Ingredient("given", f"the labels of --teacher {teaching.shown}", place, content)
        )
    # How a teacher sees the images belongs to what it says of them, and so do its classes.
    if teacher is not None:
        files = [absolute_place(file) for file in split_names(teaching.teacher_checkpoint)]
        size = student.data_config["input_size"] if student else None
        seen = (teaching.teacher_img_size, teaching.teacher_kwargs, teaching.prompts, size)
        place = hash_of_place(teaching.teacher, files, *seen, data.class_names)
        name = f"the weights of --teacher {teaching.shown}"
        made_of.append(Ingredient("teacher", name, place, teacher.digest))
    # Files of weights by what they are on this disk; what came from the Hub by what was brought.
    made_of += weights_of(teaching, settings.student, settings.labels)
    start = (student.source["source"] if student else None) or {}
    if start.get("sha256") and "start" not in [one.role for one in made_of]:
        place = hash_of_place(settings.student.model)
        made_of.append(Ingredient("start", "the weights of --pretrained", place, start["sha256"]))
    return made_of


def _of_numbers(role: str, name: str, numbers: Sequence[int]) -> Ingredient:
    """Return an ingredient that is numbers. Runs may differ in it, so where it lies is its content."""
    content = hashlib.sha256(np.array(numbers, dtype=np.int64).tobytes()).hexdigest()[:16]
    return Ingredient(role, name, hash_of_place(role, content), content)


def check_unchanged(
    before: Sequence[Ingredient],
    now: Sequence[Ingredient],
    where: str,
    remedy: str,
) -> None:
    """Raise a `UserError` if what a run has learned from, or was measured on, has another content now; moved data are the
    same.
    """
    changed = find_changed([one for one in before if one.role in COMPARED], now)
    if changed is not None:
        raise UserError(
            f"{where}: {changed.name} changed since it was written: put it back as it was, or {remedy}"
        )


def open_run_files(
    run: Run, location: RunLocation, recorded: dict[str, object], checkpoint: Checkpoint | None
) -> RunFiles:
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
    predictions, held_out, tracked = None, None, None
    if checkpoint is None:
        history = History(folder)
        history.save()
    else:
        with fitting(checkpoint.path):
            history = History(folder, checkpoint.history, settings.start_epoch)
            history.save()
        predictions, held_out = checkpoint.predictions, checkpoint.held_out
        # Trackers go on as the same run only where the folder is the same.
        if checkpoint.path.parent.resolve() == folder.resolve():
            tracked = checkpoint.tracked

    wandb = None
    if settings.log_wandb:
        wandb = dict(project=settings.wandb_project, config=recorded, tags=settings.wandb_tags)
        if settings.wandb_resume_id:
            wandb |= dict(id=settings.wandb_resume_id, resume="must")
    trackers = Trackers(folder, settings.log_tensorboard, wandb, id=tracked, step=run.updates_done)
    return RunFiles(history, trackers, predictions, held_out)
