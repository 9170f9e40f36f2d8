"""The training task."""

from functools import partial
from typing import TypedDict

import torch
from timm.loss import BinaryCrossEntropy, create_classification_loss  # pyright: ignore[reportPrivateImportUsage]  # where timm documents it
from timm.loss.class_weights import load_class_stats, resolve_class_weights
from timm.task import (
    ClassificationTask,
    FeatureDistillationTask,
    LogitDistillationTask,
    TokenDistillationTask,
    TrainingTask,
)
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from ..data.map_style import classes_of_samples
from ..distributed.world import Precision, World
from ..errors import UserError, logger, one_line
from ..losses import DistillationLoss, create_loss
from ..models.feature_extraction import FeatureExtractor, create_feature_extractor
from ..models.loading import TimmModel, create_model
from ..settings.composite import TrainSettings
from ..settings.concerns import ComputeSettings, LossSettings, ViewSettings
from ..settings.field import option
from ..target_kind import ONE_CLASS, TargetKind
from ..teachers.mix import nearest_teacher
from ..teachers.stored import CachedTargets
from ..teachers.teacher import Teacher
from .device import compile_options, first_device
from .few_shot import create_episodic_task
from .splits import Data
from .task import WeakToStrongTask


class OfTask(TypedDict):
    """What all tasks are made with.

    Args:
        device: where the task's own tensors are.
        dtype: dtype of the model.
        verbose: whether timm logs.
    """

    device: torch.device
    dtype: torch.dtype
    verbose: bool


class Weights(TypedDict):
    """Weights of a loss as they were given; timm fills in what is None."""

    distill_loss_weight: float | None
    task_loss_weight: float | None


def build_task(
    settings: TrainSettings,
    student: TimmModel,
    teacher: Teacher | None,
    targets: CachedTargets | None,
    data: Data,
    data_config: dict,
    precision: Precision,
    world: World,
) -> TrainingTask:
    """Create the task: weak-to-strong, one of timm's distillation tasks, or plain classification."""
    # The criterion on ground truth is there in any task, even where its weight is 0.
    losses = settings.loss
    criterion = create_criterion(losses, settings.views, student.num_classes, data.target_kind)
    # Said before the first step, and not in the batch that has an unknown label.
    uses_truth = losses.weights[0] != 0 or (teacher is None and targets is None)
    truth = classes_of_samples(data.train if data.labelled_set is None else data.labelled_set)
    if isinstance(criterion, OnKnownLabels) and uses_truth and truth is not None:
        criterion.check(int(truth.isnan().sum()))
    criterion = criterion.to(world.device)
    device = first_device(settings.compute.fsdp, world)
    shared = OfTask(device=device, dtype=precision.dtype, verbose=world.primary)
    episodes = settings.episodes.in_batch
    if episodes and teacher is None:
        return create_episodic_task(student, None, None, criterion, episodes[0], **shared)
    # Answers that are stored stand in the place of the teacher, which is then not asked again.
    asked = teacher if targets is None else targets
    if asked is None:
        if losses.kd_model_name:
            return build_timm_distillation(losses, student, criterion, shared)
        return ClassificationTask(student, criterion, **shared)

    # From here on somebody teaches. The log says both weights, because either may follow from the other.
    task_weight, distill_weight = losses.weights
    logger.info(
        f"Loss {task_weight:g} x {losses.task_loss} on ground truth + {distill_weight:g} x {losses.loss} "
        f"{losses.loss_kwargs or ''}"
    )
    if settings.views.strong_views is not None:
        logger.info(
            f"--strong-views {settings.views.strong_views}: of a second view the student learns, by {distill_weight:g} x "
            "cross-entropy, what it says of the first one"
        )
    if losses.loss is None:
        raise UserError("--teacher needs a --loss")  # `resolve` has chosen one
    loss = create_loss(losses.loss, **losses.loss_kwargs)
    loss.take_kind(data.target_kind)
    if episodes:
        if loss.needs_features or loss.needs_index:
            raise UserError(
                f"--loss {losses.loss} needs features or memory by sample, which episodes do not give: with "
                "--episodic use a loss on logits, such as adaptconf"
            )
        return create_episodic_task(
            student,
            teacher,
            loss,
            criterion,
            episodes[0],
            task_loss_weight=task_weight,
            distill_loss_weight=distill_weight,
            **shared,
        )

    # Several teachers give the mean of their probabilities, or each sample has the one that is nearest to the student.
    by_student = settings.teacher.teacher_assign == "student"
    return WeakToStrongTask(
        student,
        asked,
        loss,
        criterion,
        task_loss_weight=task_weight,
        distill_loss_weight=distill_weight,
        extractor=build_extractor(loss, student, data_config, teacher),
        mix=partial(nearest_teacher, target_kind=data.target_kind) if by_student else None,
        cached=targets is not None,
        labelled=settings.data.labelled_in_batch,
        strong_views=settings.views.strong_views is not None,
        num_samples=None if isinstance(data.train, IterableDataset) else len(data.train),
        **shared,
    )


class OnKnownLabels(nn.Module):
    """A criterion for several classes an image, of which some may be unknown, NaN: binary cross-entropy leaves these out.

    Where nothing is unknown it is timm's criterion itself.

    Args:
        criterion: timm's, called with logits (B, C) and targets (B, C).
    """

    def __init__(self, criterion: nn.Module):
        super().__init__()
        self.criterion = criterion

    def check(self, unknown: int) -> None:
        """Raise a `UserError` for so many unknown labels where the criterion is none that can leave them out."""
        criterion = self.criterion
        by_element = isinstance(criterion, BinaryCrossEntropy) and not criterion.sum_classes
        by_class = getattr(criterion, "weight", None), getattr(criterion, "pos_weight", None)
        if unknown and (
            not by_element or any(isinstance(w, Tensor) and w.numel() > 1 for w in by_class)
        ):
            raise UserError(
                f"--task-loss: {unknown} of the true labels are unknown; expected --task-loss bce without --bce-sum and "
                "weights of classes, which leaves these out"
            )

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss. Raises `UserError` as `check` does."""
        known = ~target.isnan()
        if known.all():
            return self.criterion(logits, target)
        self.check(int((~known).sum()))
        # Of nothing known there is nothing to learn.
        if not known.any():
            return 0 * logits.sum()
        return self.criterion(logits[known], target[known])


def create_criterion(
    losses: LossSettings,
    views: ViewSettings,
    num_classes: int,
    target_kind: TargetKind = ONE_CLASS,
) -> nn.Module:
    """Create timm's criterion on ground truth.

    Args:
        losses: which one, and its arguments.
        views: whether images are mixed or split.
        num_classes: those of the student.
        target_kind: what a label is.

    Raises:
        UserError: what timm refuses, such as weights of classes for a loss that takes none.
    """
    binary = losses.task_loss == "bce"
    several = target_kind.name != ONE_CLASS.name
    try:
        # Weights of classes are numbers, a file of them, or a rule on the counts of the classes, which timm works out;
        # a list of another length would fail in the first step only.
        stats = load_class_stats(losses.class_stats)
        weights = {}
        for kind, text in (
            ("class_weight", losses.loss_class_weight),
            ("pos_weight", losses.loss_pos_weight),
        ):
            weights[kind] = resolve_class_weights(text, kind, stats, power=losses.loss_weight_power)
            if isinstance(weights[kind], Tensor) and len(weights[kind]) != num_classes:
                raise ValueError(
                    f"{option(f'loss_{kind}')} has {len(weights[kind])} numbers for {num_classes} classes"
                )
        # The older flag of the same weight, which is for binary cross-entropy alone.
        if binary and weights["pos_weight"] is None:
            weights["pos_weight"] = losses.bce_pos_weight
        criterion = create_classification_loss(
            losses.task_loss,
            multi_label=several,
            smoothing=losses.smoothing,
            soft_targets=views.mixes,
            bce_target_thresh=losses.bce_target_thresh if binary else None,
            bce_sum=losses.bce_sum if binary else False,
            asl_gamma_pos=losses.asl_gamma_pos,
            asl_gamma_neg=losses.asl_gamma_neg,
            poly_epsilon=losses.poly_epsilon,
            jsd_splits=views.aug_splits,
            **weights,
        )
        return OnKnownLabels(criterion) if several else criterion
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"criterion {losses.task_loss}: {one_line(error)}") from error


def build_extractor(
    loss: DistillationLoss,
    student: nn.Module,
    data_config: dict,
    teacher: Teacher | None,
) -> FeatureExtractor | None:
    """Choose the feature levels of student and teacher when the loss needs features."""
    if not loss.needs_features:
        return None
    if teacher is None:
        raise UserError(f"loss '{loss.name}' compares features, and stored answers have none")
    # Teacher and student are compared level by level, from the lowest to the last.
    teacher.choose_stages(loss.teacher_stages)
    return create_feature_extractor(student, data_config["input_size"], loss.student_stages)


def build_timm_distillation(
    settings: LossSettings,
    student: TimmModel,
    criterion: nn.Module,
    shared: OfTask,
) -> TrainingTask:
    """Create one of timm's own distillation tasks from timm's own flags."""
    # timm's own distillation asks the teacher itself, on the student's images as they are.
    name = settings.kd_model_name or ""
    teacher = create_model(
        "--kd-model-name",
        name,
        pretrained=True,
        num_classes=student.num_classes,
        in_chans=student.in_chans,
        device=shared["device"],
        dtype=shared["dtype"],
    )
    weights = Weights(
        distill_loss_weight=settings.distill_loss_weight, task_loss_weight=settings.task_loss_weight
    )
    try:
        if settings.kd_distill_type == "feature":
            return FeatureDistillationTask(
                student,
                teacher,
                criterion,
                student_feature_dim=settings.kd_student_feature_dim,
                teacher_feature_dim=settings.kd_teacher_feature_dim,
                **weights,
                **shared,
            )
        if settings.kd_distill_type == "token":
            return TokenDistillationTask(
                student,
                teacher,
                criterion,
                distill_type=settings.kd_token_distill_type,
                temperature=settings.kd_temperature,
                **weights,
                **shared,
            )
        return LogitDistillationTask(
            student,
            teacher,
            criterion,
            loss_type=settings.kd_loss_type,
            temperature=settings.kd_temperature,
            **weights,
            **shared,
        )
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"--kd-model-name {name}, --kd-distill-type {settings.kd_distill_type}: {one_line(error)}"
        ) from error


def compile_and_distribute(settings: ComputeSettings, task: TrainingTask, world: World) -> None:
    """Compile the task, then wrap it in DDP; its weights are in place."""
    # Compiled first: DDP hooks into what runs. The average has other weights, and so a graph of its own.
    options = compile_options(settings)
    if options:
        task.compile(**options)
        if task.has_ema():
            task.compile_ema(**options)
    if world.distributed:
        # DDP refuses ids on CPUs.
        device_ids = None if world.device.type == "cpu" else [world.device]
        # Gradients are views into DDP's buckets, which saves a copy of them. See `share_statistics` of buffers.
        task.prepare_distributed(
            device_ids=device_ids, broadcast_buffers=False, gradient_as_bucket_view=True
        )
