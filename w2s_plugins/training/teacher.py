"""The teacher and its stored targets."""

from collections.abc import Mapping, Sequence

from ..distributed.world import Precision
from ..errors import logger
from ..labels.store import DTYPES
from ..models.inference import inference_dtype
from ..models.loading import TimmModel
from ..settings.composite import TrainSettings
from ..settings.concerns import WeakTeacherSettings
from ..settings.teacher_name import TeacherName
from ..settings.values import split_names
from ..students.probe import create_encoder
from ..students.refine import RefinedTargets
from ..target_kind import ONE_CLASS, TargetKind
from ..teachers.clip import read_prompts
from ..teachers.openers import Opened
from ..teachers.posterior import PosteriorTargets
from ..teachers.stored import AnswerStore, CachedTargets, StudentViews
from ..teachers.teacher import (
    Encoder,
    StudentInput,
    Teacher,
    TeacherSettings,
    open_teacher,
)
from .device import CompileOptions, compile_options
from .splits import Data


def build_teacher(
    settings: TrainSettings,
    student: TimmModel,
    data_config: dict,
    precision: Precision,
    class_names: list[str] | None = None,
    opened: Mapping[TeacherName, Opened] | None = None,
    target_kind: TargetKind = ONE_CLASS,
) -> Teacher | None:
    """Create the frozen teacher on the student's input, or None if no model teaches.

    Args:
        settings: of the run.
        student: has the classes.
        data_config: how the student's images are made.
        precision: of the student.
        class_names: those of the training set.
        opened: models that are open already and taken as they are.
        target_kind: what the labels of the training set are.
    """
    names = settings.teacher.models
    if not names:
        return None
    # It is given the student's batch, and undoes how that was normalised for the student.
    if settings.episodes.episodic:  # episodes need not have the classes of the teacher
        seen = StudentInput.of(data_config)
    else:
        seen = StudentInput.of(data_config, student.num_classes, class_names, target_kind)
    return teacher_from_settings(
        settings.teacher,
        names,
        seen,
        precision,
        compile_options=compile_options(settings.compute),
        opened=opened,
    )


def teacher_from_settings(
    settings: WeakTeacherSettings,
    names: Sequence[TeacherName],
    seen: StudentInput,
    precision: Precision,
    compile_options: CompileOptions | None = None,
    opened: Mapping[TeacherName, Opened] | None = None,
) -> Teacher:
    """Open models, the ``names`` of ``--teacher``, on the student's input, whose normalisation they undo."""
    # Emulated dtypes are slower than float32, so a teacher's follows the device, not the flags alone.
    how = TeacherSettings(
        dtype=inference_dtype(precision),
        img_size=settings.teacher_img_size,
        model_kwargs=settings.teacher_kwargs,
        prompts=read_prompts(settings.prompts),
        compile_options=compile_options,
        opened=opened,
    )
    checkpoints = split_names(settings.teacher_checkpoint)
    return open_teacher(names, checkpoints, seen, precision.device, how)


def cached_targets(
    settings: WeakTeacherSettings,
    teacher: Teacher | None,
    data: Data,
    split: str,
    store: AnswerStore,
    views: StudentViews | None,
) -> CachedTargets | None:
    """Find the teacher's cached targets, or let it make them; None if it is asked in every step.

    Args:
        settings: who labels, and what is kept of it.
        teacher: the models among them.
        data: its training set is labelled, by some perhaps already.
        split: name of the training split.
        store: keeps the answers.
        views: of an image that the teacher is asked about; None is the plain image.
    """
    if not settings.stores_targets:
        return None

    # Each model says once, in order, what it has not said before: of the plain images, or of each view of them.
    readers = [
        store.answers(
            member,
            data.samples,
            split,
            views,
            dtype=DTYPES[settings.teacher_cache_dtype],
        )
        for member in (teacher.members if teacher else ())
    ]
    # Models and files of labels stand in the order in which they were named, and in which a mean adds them up: another
    # order would round otherwise.
    answers = settings.in_order(readers, (labels.train for labels in data.given_labels))
    targets = CachedTargets(answers, store.how.world.device, data.target_kind)
    if settings.weighs_evidence and len(answers) > 1:
        return PosteriorTargets(targets, len(data.samples), settings.last_is_right)
    return targets


def refining_encoder(
    name: str,
    student: TimmModel,
    data_config: dict,
    precision: Precision,
) -> Encoder:
    """Return the frozen student, a model of this ``name``, whose features are to refine labels (``--refine-labels``).

    Raises:
        UserError: its head is not one linear layer on pooled features.
    """
    return create_encoder(
        student,
        data_config,
        precision,
        f"--model {name}",
        what="--refine-labels",
        advice="choose another model, or give --no-refine-labels",
    )


def refined_targets(
    targets: CachedTargets,
    encoder: Encoder,
    data: Data,
    split: str,
    store: AnswerStore,
    views: StudentViews | None,
) -> RefinedTargets:
    """Refine the teacher's stored answers by linear discriminants of the student's features (``--refine-labels``).

    Args:
        targets: the answers.
        encoder: from `refining_encoder`.
        data: its training set has them.
        split: name of the training split.
        store: keeps the features.
        views: of an image that features are computed of; None is the plain image.
    """
    # Features of the student are computed once, of the images or of each of their views.
    features = store.features(encoder, data.samples, split, views)
    refined = RefinedTargets(targets, features, len(data.samples))
    logger.info(
        f"--refine-labels: for {refined.figures['differs']:.1f} % of the images the discriminant says another class "
        "than the teacher"
    )
    return refined
