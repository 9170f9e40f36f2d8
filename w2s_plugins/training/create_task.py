"""The training task."""


from argparse import Namespace

from timm.loss import create_classification_loss, load_class_stats, resolve_class_weights
from timm.task import (
    ClassificationTask,
    FeatureDistillationTask,
    LogitDistillationTask,
    TokenDistillationTask,
    TrainingTask,
)
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from ..cli.declare import option
from ..cli.forms import loss_weights
from ..distributed.world import Precision, World
from ..errors import UserError, logger, one_line
from ..labels.splits import Data
from ..losses import DistillationLoss, create_loss
from ..models.features import FeatureExtractor, create_feature_extractor
from ..models.loading import create_model
from ..settings.resolve import batch_of_episodes, mixes
from ..teachers.mix import nearest_teacher
from ..teachers.stored import CachedTargets
from ..teachers.teacher import Teacher
from .device import compile_options, first_device
from .few_shot import create_episodic_task
from .loaders import labelled_in_batch
from .task import WeakToStrongTask


def build_task(
        args: Namespace,
        student: nn.Module,
        teacher: Teacher | None,
        targets: CachedTargets | None,
        data: Data,
        data_config: dict,
        precision: Precision,
        world: World,
) -> TrainingTask:
    """Create the task: weak-to-strong, one of timm's distillation tasks, or plain classification."""
    # The criterion on ground truth is there in any task, even where its weight is 0.
    criterion = create_criterion(args, student.num_classes).to(world.device)
    shared = dict(
        device=first_device(args.fsdp, world), dtype=precision.dtype, verbose=world.primary)
    episodes = batch_of_episodes(args)[0] if args.episodic else None
    if episodes and teacher is None:
        return create_episodic_task(student, None, None, criterion, episodes, **shared)
    if teacher is None and targets is None:
        if args.kd_model_name:
            return build_timm_distillation(args, student, criterion, shared)
        return ClassificationTask(student, criterion, **shared)

    # The distillation loss, beside the criterion on ground truth where that has a weight.
    task_weight, distill_weight = loss_weights(args.task_loss_weight, args.distill_loss_weight)
    logger.info(f"Loss {task_weight:g} x {args.task_loss} on ground truth + {distill_weight:g} x {args.loss} "
                f"{args.loss_kwargs or ''}")
    loss = create_loss(args.loss, **args.loss_kwargs)
    shared.update(task_loss_weight=task_weight, distill_loss_weight=distill_weight)
    if episodes:
        if loss.needs_features or loss.needs_index:
            raise UserError(f"--loss {args.loss} needs features or memory by sample, which episodes do not give: with "
                            "--episodic use a loss on logits, such as adaptconf")
        return create_episodic_task(student, teacher, loss, criterion, episodes, **shared)

    return WeakToStrongTask(
        student,
        targets or teacher,
        loss,
        criterion,
        extractor=build_extractor(loss, student, data_config, teacher),
        mix=nearest_teacher if args.teacher_assign == "student" else None,  # else the mean of their probabilities
        cached=targets is not None,
        labelled=0 if data.labelled is None else labelled_in_batch(args),
        num_samples=None if isinstance(data.train, IterableDataset) else len(data.train),
        **shared,
    )


def create_criterion(args: Namespace, num_classes: int) -> nn.Module:
    """Create timm's criterion on ground truth.

    Args:
        args: resolved flags.
        num_classes: those of the student.

    Raises:
        UserError: what timm refuses, such as weights of classes for a loss that takes none.
    """
    binary = args.task_loss == "bce"
    try:
        stats, weights = load_class_stats(args.class_stats), {}
        for kind in ("class_weight", "pos_weight"):
            weights[kind] = resolve_class_weights(
                getattr(args, f"loss_{kind}"), kind, stats, power=args.loss_weight_power)
            if isinstance(weights[kind], Tensor) and len(weights[kind]) != num_classes:
                raise ValueError(f"{option(f'loss_{kind}')} has {len(weights[kind])} numbers for {num_classes} classes")
        if binary and weights["pos_weight"] is None:
            weights["pos_weight"] = args.bce_pos_weight
        return create_classification_loss(
            args.task_loss,
            smoothing=args.smoothing,
            soft_targets=mixes(args),
            bce_target_thresh=args.bce_target_thresh if binary else None,
            bce_sum=args.bce_sum if binary else False,
            asl_gamma_pos=args.asl_gamma_pos,
            asl_gamma_neg=args.asl_gamma_neg,
            poly_epsilon=args.poly_epsilon,
            jsd_splits=args.aug_splits,
            **weights,
        )
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"criterion {args.task_loss}: {one_line(error)}") from error


def build_extractor(
        loss: DistillationLoss,
        student: nn.Module,
        data_config: dict,
        teacher: Teacher | None,
) -> FeatureExtractor | None:
    """Choose the feature levels of student and teacher when the loss needs features."""
    if not loss.needs_features:
        return None
    # Teacher and student are compared level by level, from the lowest to the last.
    teacher.choose_stages(loss.teacher_stages)
    return create_feature_extractor(student, data_config["input_size"], loss.student_stages)


def build_timm_distillation(
        args: Namespace,
        student: nn.Module,
        criterion: nn.Module,
        shared: dict,
) -> TrainingTask:
    """Create one of timm's own distillation tasks from timm's own flags."""
    # timm's own distillation asks the teacher itself, on the student's images as they are.
    teacher = create_model("--kd-model-name", args.kd_model_name, pretrained=True, num_classes=student.num_classes,
                           in_chans=student.in_chans, device=shared["device"], dtype=shared["dtype"])
    create, kwargs = {
        "feature": (FeatureDistillationTask, dict(
            student_feature_dim=args.kd_student_feature_dim, teacher_feature_dim=args.kd_teacher_feature_dim)),
        "token": (TokenDistillationTask, dict(
            distill_type=args.kd_token_distill_type, temperature=args.kd_temperature)),
        "logit": (LogitDistillationTask, dict(loss_type=args.kd_loss_type, temperature=args.kd_temperature)),
    }[args.kd_distill_type]
    try:
        return create(
            student_model=student, teacher_model=teacher, criterion=criterion,
            distill_loss_weight=args.distill_loss_weight, task_loss_weight=args.task_loss_weight, **kwargs, **shared)
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise UserError(f"--kd-model-name {args.kd_model_name}, --kd-distill-type {args.kd_distill_type}: "
                        f"{one_line(error)}") from error


def compile_and_distribute(args: Namespace, task: TrainingTask, world: World) -> None:
    """Compile the task, then wrap it in DDP; its weights are in place."""
    # Compiled first: DDP hooks into what runs.
    options = compile_options(args)
    if options:
        task.compile(**options)
        if task.has_ema():
            task.compile_ema(**options)
    if world.distributed:
        device_ids = None if world.device.type == "cpu" else [world.device]  # DDP refuses ids on CPUs
        # Gradients are views into DDP's buckets, which saves a copy of them. See `share_statistics` of buffers.
        task.prepare_distributed(
            device_ids=device_ids, broadcast_buffers=False, gradient_as_bucket_view=True)
