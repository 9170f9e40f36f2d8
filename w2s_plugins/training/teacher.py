"""The teacher and its stored targets."""

from argparse import Namespace
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ..cli.values import split_names
from ..distributed.world import Precision, World
from ..errors import logger
from ..labels.splits import Data
from ..models.inference import inference_dtype
from ..settings.resolve import in_order, stores_targets, teacher_models
from ..students.probe import create_encoder
from ..students.refine import RefinedTargets
from ..teachers.clip import read_prompts
from ..teachers.name import TeacherName
from ..teachers.openers import Opened
from ..teachers.stored import CachedTargets
from ..teachers.teacher import StudentInput, Teacher, TeacherModel, TeacherSettings, create_teacher
from .device import compile_options
from .loaders import answer_store, student_views


def build_teacher(
        args: Namespace,
        student: nn.Module,
        data_config: dict,
        precision: Precision,
        class_names: list[str] | None = None,
        opened: Mapping[TeacherName, Opened] | None = None,
) -> Teacher | None:
    """Create the frozen teacher on the student's input, or None; ``class_names`` are those of the training set, and
    models that are ``opened`` already are taken as they are.
    """
    names = teacher_models(args.teacher)
    if not names:
        return None
    # Episodes need not have the classes of the teacher.
    classes = (None, None) if args.episodic else (student.num_classes, class_names)
    return open_teacher(
        args, names, data_config, *classes, precision, compile_options=compile_options(args), opened=opened)


def open_teacher(
        args: Namespace,
        names: Sequence[TeacherName],
        data_config: dict,
        num_classes: int | None,
        class_names: list[str] | None,
        precision: Precision,
        **settings: object,
) -> Teacher:
    """Open models, the ``names`` of ``--teacher``, on the student's input, whose normalisation they undo; ``settings``
    are further ones of `TeacherSettings`.
    """
    student = StudentInput.of(data_config, num_classes, class_names)
    all_settings = TeacherSettings(
        dtype=inference_dtype(precision),
        img_size=args.teacher_img_size,
        model_kwargs=args.teacher_kwargs,
        prompts=read_prompts(args.prompts),
        **settings,
    )
    return create_teacher(names, split_names(args.teacher_checkpoint), student, precision.device, all_settings)


def cached_targets(
        args: Namespace,
        teacher: Teacher | None,
        data: Data,
        data_config: dict,
        precision: Precision,
        world: World,
) -> CachedTargets | None:
    """Find the teacher's cached targets, or let it make them; None where it is asked in every step."""
    if not stores_targets(args):
        return None

    # Each model says once, in order, what it has not said before: of the plain images, or of each view of them.
    views, store = student_views(args, data_config, precision, world), answer_store(args, world)
    readers = [
        store.answers(member, data.train, args.train_split, views, channels_last=args.channels_last, kind="logits",
                      dtype=getattr(torch, args.teacher_cache_dtype))
        for member in (teacher.members if teacher else ())]
    return CachedTargets(
        in_order(args.teacher, readers, (labels.train for labels in data.given)), world.device)


def refining_encoder(
        args: Namespace,
        student: nn.Module,
        data_config: dict,
        precision: Precision,
) -> TeacherModel:
    """Return the frozen student whose features are to refine labels (``--refine-labels``).

    Raises:
        UserError: its head is not one linear layer on pooled features.
    """
    return create_encoder(student, data_config, precision, f"--model {args.model}", what="--refine-labels",
                          advice="choose another model, or give --no-refine-labels")


def refined_targets(
        args: Namespace,
        targets: CachedTargets,
        encoder: TeacherModel,
        data: Data,
        data_config: dict,
        precision: Precision,
        world: World,
) -> RefinedTargets:
    """Refine the teacher's stored answers by linear discriminants of the student's features (``--refine-labels``)."""
    # Features of the student are computed once, of the images or of each of their views.
    views = student_views(args, data_config, precision, world)
    features = answer_store(args, world).exact(
        encoder, data.train, args.train_split, "features", views)
    refined = RefinedTargets(targets, features, len(data.train))
    logger.info(f"--refine-labels: for {refined.figures['differs']:.1f} % of the images the discriminant says "
                "another class than the teacher")
    return refined
