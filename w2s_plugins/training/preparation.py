"""What a run is made of, in the order in which it is made: workspace, data, models, and the run itself.

The data is made by `data.build_data`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..distributed.world import Precision, World
from ..hub.client import check_login
from ..labels.samples import SampleLabels
from ..resolve.fill_in import locate_run
from ..run.checkpoint import Checkpoint
from ..run.folder import lock_existing_run, make_run_folder
from ..run.location import RunLocation
from ..run.restore import restore_rank_state
from ..settings.composite import TrainSettings
from ..settings.teacher_name import TeacherName
from ..students.probe import Probe
from ..target_kind import SEVERAL_CLASSES
from ..teachers.openers import Opened
from ..teachers.stored import CachedTargets
from ..teachers.teacher import Encoder, Teacher
from . import fsdp
from .create_task import build_task, compile_and_distribute
from .data import draw_few_shot_test
from .device import compile_options, create_precision, setup_device
from .frozen_part import run_frozen_part_once
from .labels import LabelSource, match_labels
from .loaders import answer_store, build_feature_loaders, build_loaders, student_views
from .optimisation import create_optimizer, create_schedule
from .run_files import (
    ingredients,
    new_folder_name,
    open_run_files,
    recorded_flags,
    resume,
    write_labels,
)
from .saving import create_saver
from .splits import Data
from .student import Student, begin_with_shares, build_student
from .teacher import build_teacher, cached_targets, refined_targets, refining_encoder
from .training_run import Run


@dataclass(frozen=True)
class Workspace:
    """Where a run works.

    Args:
        location: of its folder, which is locked if it exists.
        world: its processes.
        checkpoint: what an earlier process has left; None at the start.
    """

    location: RunLocation
    world: World
    checkpoint: Checkpoint | None


@dataclass(frozen=True)
class Models:
    """The models of a run.

    Args:
        student: the one that is trained.
        precision: in which it is.
        teacher: None if labels alone teach, or nobody.
        labels: in place of a teacher, matched with the samples.
    """

    student: Student
    precision: Precision
    teacher: Teacher | None
    labels: list[SampleLabels]


def open_workspace(settings: TrainSettings) -> Workspace:
    """Lock the folder, so that no other process trains the same run, and join the other processes."""
    # the place is known from the flags; who works there is known from the launcher
    location = locate_run(settings.run)
    world = setup_device(settings.compute, settings.run.seed)
    if settings.run.push_to_hub and world.primary:
        check_login(settings.run.push_to_hub)  # else nobody would notice it before the end
    return Workspace(location, world, lock_existing_run(location, world))


def build_models(
    settings: TrainSettings,
    world: World,
    data: Data,
    labels: Sequence[LabelSource],
    opened: Mapping[TeacherName, Opened],
) -> Models:
    """Create the student, and then the teacher, which is shown the images as they are prepared for the student.

    Args:
        settings: of the run.
        world: its processes.
        data: gets the number of classes of the student; loses samples that no label is about, if labels alone teach.
        labels: in place of a teacher.
        opened: teachers that are open already.
    """
    # the student says how many classes there are, if the data does not, and labels are matched by class
    student = build_student(settings, world, data.num_classes)
    model, data_config = student.model, student.data_config
    data.num_classes = model.num_classes  # the data may not know it, if it is a stream
    matched = match_labels(settings.teacher, data, labels, data.class_names)
    precision = create_precision(settings.compute, world, student.layout)
    # models that were opened to ask them for their classes are taken as they are
    names, kind = data.class_names, data.target_kind
    teacher = build_teacher(settings, model, data_config, precision, names, opened, kind)
    return Models(student, precision, teacher, matched)


def build_run(settings: TrainSettings, workspace: Workspace, data: Data, models: Models) -> Run:
    """Create loaders, stored answers, task and optimizer, and go back to where an earlier process stopped.

    Args:
        settings: of the run.
        workspace: where it works.
        data: its samples, all of which are trained on.
        models: student and teacher.
    """
    world, checkpoint = workspace.world, workspace.checkpoint
    student, precision, teacher = models.student, models.precision, models.teacher
    model, data_config = student.model, student.data_config

    # Batches hold images. For a linear probe they hold features instead: the student is frozen, so its features are
    # computed once.
    if settings.student.linear_probe:
        loaders = build_feature_loaders(
            settings, data, model, teacher, data_config, precision, world
        )
        model = Probe(model)
    else:
        loaders = build_loaders(settings, data, data_config, precision, world)

    # Episodes of few-shot tests are drawn once, so that teacher and student are measured on the same ones.
    few_shot, episodes = None, settings.episodes
    if episodes.few_shot_eval and data.few_shot is not None:
        few_shot = draw_few_shot_test(
            data.few_shot, episodes.few_shot_eval, episodes.queries, "--few-shot-eval"
        )

    # Whether the student has features that can refine labels is checked before the teacher is asked, which takes long.
    # A stage may have no teacher, and then nothing is refined.
    refining = None
    if settings.teacher.refine_labels and settings.teacher.teacher:
        refining = refining_encoder(settings.student.model, student.model, data_config, precision)
    folder_name = new_folder_name(settings.student.model, data_config["input_size"][-1])
    folder = make_run_folder(workspace.location, folder_name, world)
    targets = store_targets(settings, data, models, refining, world)

    # A new head of several classes an image begins with how many have each, as far as the labels say.
    if data.target_kind.name == SEVERAL_CLASSES.name:
        begin_with_shares(settings.student, student.model, data, targets)

    # Student and loss become one module, so that DDP, optimizer and clipping see the parameters of both. The optimizer
    # is made after FSDP, because sharding replaces the parameters by new objects.
    task = build_task(settings, model, teacher, targets, data, data_config, precision, world)
    # Blocks that stay as they are give the same for an image in every epoch, so they run once, and the others see what
    # they have given.
    loaders = run_frozen_part_once(settings, data, student, precision, world) or loaders
    optim, sharded = settings.optim, settings.compute.fsdp
    # The average of the weights begins with those of now, so it is made before they are sharded.
    if optim.model_ema:
        average_device = torch.device("cpu") if optim.model_ema_force_cpu else None
        task.setup_ema(optim.model_ema_decay, optim.model_ema_warmup, average_device)
    if sharded:
        fsdp.shard(task, precision, world, compile_options(settings.compute))
    optimizer = create_optimizer(optim, task, sharded)
    updates_per_epoch = math.ceil(len(loaders["train"]) / optim.grad_accum_steps)
    metric_falls = settings.evaluation.eval_metric == "loss"
    schedule = create_schedule(
        optim, optimizer, updates_per_epoch, seed=settings.run.seed, metric_falls=metric_falls
    )
    run = Run(
        settings=settings,
        world=world,
        precision=precision,
        task=task,
        loaders=loaders,
        optimizer=optimizer,
        schedule=schedule,
        data=data,
        student=student,
        made_of=ingredients(settings, data, student, teacher),
        teacher=teacher,
        targets=targets,
        few_shot=few_shot,
        folder=folder,
    )

    # If the run goes on, load its weights before modules are compiled and wrapped, because wrappers rename them.
    recorded = recorded_flags(settings.flags, student.resolved)
    resume(run, recorded, checkpoint)
    if not sharded:
        compile_and_distribute(settings.compute, task, world)
    restore_rank_state(checkpoint, task, run.position)

    # Open the files of the run last, cut back to the moment at which it goes on.
    if world.primary:
        write_labels(folder, data, settings.data.train_split)
        run.files = open_run_files(run, workspace.location, recorded, checkpoint)
    if world.primary or sharded:
        run.saver = create_saver(run, recorded, checkpoint)
    return run


def store_targets(
    settings: TrainSettings, data: Data, models: Models, refining: Encoder | None, world: World
) -> CachedTargets | None:
    """Ask the teacher about every image now and store its answers; None if it is to be asked in every step.

    ``refining`` is the frozen student if its features are to refine the answers.
    """
    # the same views, split and store for answers and features, so that both are of the same images
    views = student_views(settings, models.student.data_config, models.precision, world)
    store = answer_store(settings.data, settings.teacher.target_cache, world)
    split = settings.data.train_split
    targets = cached_targets(settings.teacher, models.teacher, data, split, store, views)
    if refining and targets:
        targets = refined_targets(targets, refining, data, split, store, views)
    return targets
