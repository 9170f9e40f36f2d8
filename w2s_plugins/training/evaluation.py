"""Evaluation: one pass over a split, and the figures of a run before its first step, after an epoch and at its end."""

import argparse
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from timm.task.evaluator import ClassificationEvaluator, evaluation_sample_limit
from timm.utils import distribute_bn, unwrap_model
from torch import Tensor, nn

from ..data.unlabeled import is_unlabeled
from ..distributed.signals import SignalWatch
from ..distributed.world import Precision, gather_in_dataset_order
from ..errors import UserError
from ..metrics.long_tail import ShotGroups
from ..metrics.pgr import no_gap_hint
from ..models.features import pooled_features
from ..monitor import Console
from ..teachers.stored import answers_to, own_features
from .loaders import eval_loader_settings
from .resolve import is_scored_by_teacher
from .task import first_output
from .training_run import Predictions, Run

_logger = logging.getLogger(__name__)

Progress = Callable[[Iterable], Iterable]  # wraps a loader, to show progress or to stop at a signal

# ---------------------------------------------------------------- one pass


@dataclass
class Evaluation:
    """The outcome of one pass over a split.

    Args:
        metrics: ``loss``, ``top1``, ``top5`` in percent, and those of `ShotGroups` where there are such; ``confidence``
            in place of the first three without ground truth. Where there is a teacher also ``agreement`` in percent,
            ``copied``, the share of the teacher's errors that the student makes as well, in percent, and ``misfit``,
            the mean KL divergence of the student's probabilities from the teacher's, in nats.
        teacher_metrics: the same of the teacher, where it was evaluated.
        predictions: this rank's predicted classes, in order.
        teacher: what the teacher predicts on this rank, None without one.
        targets: this rank's labels.
    """

    metrics: dict[str, float]
    teacher_metrics: dict[str, float] | None
    predictions: Tensor
    teacher: Predictions | None
    targets: Tensor

    def columns(self) -> tuple[list[str], Tensor]:
        """Return labels and predicted classes of this rank, as names of columns and rows."""
        names, columns = ["target", "student"], [self.targets, self.predictions]
        if self.teacher is not None:
            names.append("teacher")
            columns.append(self.teacher.classes)
        return names, torch.stack(columns, dim=1).int()


@dataclass(frozen=True)
class EvaluationSettings:
    """How a split is evaluated.

    Args:
        distributed: sum over all ranks.
        channels_last: memory layout of the images.
        tta: consecutive views of a sample whose logits are averaged.
        valid_labels: classes that count, for a model with more.
        groups: also measure the accuracy on these classes.
        labelled: False for images without ground truth: of them ``confidence`` and ``agreement`` are measured.
    """

    distributed: bool = False
    channels_last: bool = False
    tta: int = 0
    valid_labels: Sequence[int] | None = None
    groups: ShotGroups | None = None
    labelled: bool = True

    def of_samples(self, logits: Tensor) -> Tensor:
        """Return logits with one row a sample and one column a class that counts."""
        if self.tta > 1:
            if len(logits) % self.tta:
                raise UserError(f"--tta {self.tta}: a batch of {len(logits)} does not consist of groups of so many "
                                "views; choose --validation-batch-size, and a split, that do")
            logits = logits.unfold(0, self.tta, self.tta).mean(dim=2)
        return logits if self.valid_labels is None else logits[:, self.valid_labels]


class Meter:
    """What one model predicts in a pass: timm's metrics or, without ground truth, its mean confidence.

    Args:
        settings: of the evaluation.
        device: of the logits.
        limit: rows of this rank that count; the others are padding. None for all.
    """

    def __init__(self, settings: EvaluationSettings, device: torch.device, limit: int | None):
        self.settings, self.device, self.limit = settings, device, limit
        self.evaluator = ClassificationEvaluator(device, max_samples=limit)
        self.rows: dict[str, list[Tensor]] = defaultdict(list)

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count a batch."""
        self.rows["classes"].append(logits.argmax(dim=1))
        if self.settings.labelled:
            self.evaluator.update(logits, target)
        else:
            self.rows["confidence"].append(logits.float().softmax(dim=1).amax(dim=1))

    def cat(self, name: str) -> Tensor:
        """Return the rows of this name in one tensor, without padding."""
        return torch.cat(self.rows[name])[:self.limit]

    def mean(self, values: Tensor, scale: float = 1.0) -> float:
        """Return ``scale`` times the mean of values over all ranks, each of which must call it."""
        sums = torch.tensor([float(values.double().sum()), len(values)], dtype=torch.float64, device=self.device)
        if self.settings.distributed:
            dist.all_reduce(sums)
        total, count = sums.tolist()
        return scale * total / max(1.0, count)

    def compute(self, classes: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the metrics over all ranks; ``classes`` and ``targets`` are this rank's, on the CPU."""
        distributed, groups = self.settings.distributed, self.settings.groups
        if self.settings.labelled:
            metrics = dict(self.evaluator.compute(distributed=distributed))
        else:
            metrics = {"confidence": self.mean(self.cat("confidence"), 100.0)}
        if groups is not None:
            metrics.update(groups.evaluate(classes, targets, self.device, distributed))
        return metrics


@torch.no_grad()  # not inference mode: CUDA graphs that begin in it cannot be trained on (pytorch#135892)
def evaluate(
        model: Callable[[Tensor], Tensor],
        loader: Iterable,
        precision: Precision,
        settings: EvaluationSettings = EvaluationSettings(),
        *,
        teacher: Callable[[Tensor], Tensor] | None = None,
        known: Predictions | None = None,
        on_output: Callable[[Tensor, Tensor], None] | None = None,
        progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a model, counting every sample once on any number of ranks.

    Args:
        model: maps images to logits.
        loader: timm's evaluation loader.
        precision: autocast.
        settings: what is averaged, counted and shared.
        teacher: is evaluated as well: gives logits for each batch, in the order of the loader.
        known: what the teacher has predicted in an earlier pass.
        on_output: called with each batch of logits and labels.
        progress: wraps the loader.

    Raises:
        UserError: the teacher gives values that are not finite, or ``--tta`` does not divide a batch.
    """
    if isinstance(model, nn.Module):
        model.eval()
    limit = evaluation_sample_limit(loader)
    student, weak = (Meter(settings, precision.device, limit) for _ in range(2))
    seen = 0
    for images, target in batches(loader, precision, settings.channels_last, progress):
        # The student. With several views of a sample there is one row for all of them.
        with precision.autocast():
            logits = settings.of_samples(first_output(model(images)))
        target = target[::max(1, settings.tta)][:len(logits)]
        student.update(logits, target)
        student.rows["targets"].append(target)

        # The teacher: asked now, or its predictions of an earlier pass, which came in the same order.
        log_probs = None
        if teacher is not None:
            teacher_logits = settings.of_samples(teacher(images))
            weak.update(teacher_logits, target)
            weak.rows["broken"].append(~teacher_logits.isfinite().all(dim=1))
            log_probs = teacher_logits.float().log_softmax(dim=1).half().cpu()
            weak.rows["log_probs"].append(log_probs)
        elif known is not None and known.log_probs is not None:
            log_probs = known.log_probs[seen:seen + len(logits)]
        if log_probs is not None:
            student.rows["misfit"].append(misfit(logits[:len(log_probs)], log_probs))  # what is more is padding
        seen += len(logits)
        if on_output:
            on_output(logits, target)

    # Each model against ground truth.
    classes, targets = student.cat("classes").cpu(), student.cat("targets").cpu()
    metrics, teacher_metrics = student.compute(classes, targets), None
    if teacher is not None:
        if broken := weak.mean(weak.cat("broken"), 100.0):
            raise UserError(f"--teacher: it gives values that are not finite for {broken:.3g} % of the samples; take "
                            "other weights or, where it runs in half precision, leave out --amp")
        known = Predictions(weak.cat("classes").cpu(), weak.cat("log_probs"))
        teacher_metrics = weak.compute(known.classes, targets)

    # How the student stands to its teacher, whatever the ground truth is.
    if known is not None and len(known.classes) == len(classes):
        agrees = classes == known.classes
        metrics["agreement"] = student.mean(agrees, 100.0)
        if settings.labelled:
            metrics["copied"] = student.mean(agrees[known.classes != targets], 100.0)
    if "misfit" in student.rows:
        metrics["misfit"] = student.mean(student.cat("misfit"))
    return Evaluation(metrics, teacher_metrics, classes, known, targets)


@torch.inference_mode()
def extract_features(
        encode: Callable[[Tensor], Tensor],
        loader: Iterable,
        precision: Precision,
        settings: EvaluationSettings = EvaluationSettings(),
        progress: Progress | None = None,
) -> Tensor:
    """Return the features (N, D) of all samples in float32, in the order of the dataset, on every rank.

    Args:
        encode: maps a normalised batch (B, 3, H, W) to features (B, D).
        loader: timm's evaluation loader.
        precision: device, dtype and autocast.
        settings: of them the layout of the images, and whether each rank computes its share.
        progress: wraps the loader.
    """
    rows = []
    for images, _ in batches(loader, precision, settings.channels_last, progress):
        with precision.autocast():
            rows.append(encode(images).float().cpu())
    return gather_in_dataset_order(torch.cat(rows)[:evaluation_sample_limit(loader)], settings.distributed)


def batches(
        loader: Iterable,
        precision: Precision,
        channels_last: bool,
        progress: Progress | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images and labels on the device, the images in its dtype and layout."""
    for images, target in (progress(loader) if progress else loader):
        if isinstance(images, Tensor):  # NaFlex patches come as a dictionary, on the device already
            images = images.to(device=precision.device, dtype=precision.dtype)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        yield images, target.to(precision.device)


def misfit(logits: Tensor, of_teacher: Tensor) -> Tensor:
    """Return the KL divergence (B,) of a student's probabilities, by its logits (B, C), from its teacher's logs (B, C).
    """
    own = logits.float().log_softmax(dim=1)
    return (own.exp() * (own - of_teacher.to(device=own.device, dtype=own.dtype))).sum(dim=1)


# ---------------------------------------------------------------- before the first step


def first_evaluation(run: Run) -> None:
    """Measure teacher and student before the first step, each through its own evaluation transform."""
    args, data, teacher = run.args, run.data, run.teacher
    # Labels in place of a teacher: a held-out part is scored by them, of each sample by the first who says something.
    if data.given and run.loaders["select"] is not None:
        classes = torch.full((len(data.select),), -1)
        for labels in data.given:
            classes = torch.where(classes < 0, labels.predictions(labels.select, len(classes)), classes)
        run.teacher_predictions["select"] = Predictions(classes[run.world.rank::run.world.size])
    if args.no_teacher_eval:
        return
    if run.few_shot is not None:
        first_few_shot(run)
    if teacher is None:
        return

    # A teacher is asked once about each split, and its predictions are compared with the student's after every epoch.
    settings = eval_loader_settings(args, run.precision, run.world)
    progress = Console(run.world.primary, 0).wrap("before training")
    for split in ("val", "select"):
        loader = run.loaders[split]
        if loader is None:
            continue
        # Beside stored features lie the teacher's stored logits; else it sees the images in its own form.
        logits = loader.teacher if args.linear_probe else answers_to(teacher, getattr(data, split), settings)
        found = evaluate_split(run, split, run.task.get_eval_model(), teacher=logits, progress=progress)
        run.teacher_metrics[split] = found.teacher_metrics
        run.teacher_predictions[split] = found.teacher
        log_start(run, split, teacher=found.teacher_metrics, student=found.metrics)
    for hint in teacher_hints(args, run.teacher_metrics):
        _logger.warning(f"WARNING: {hint}")


def first_few_shot(run: Run) -> None:
    """Test student and teacher, where it is a single one with features, on the same episodes."""
    student = unwrap_model(run.task.get_eval_model()).eval()
    found = {"student": evaluate_few_shot(run, lambda images: pooled_features(student, images))}
    members = run.teacher.members if run.teacher is not None else ()
    if len(members) == 1 and members[0].embeds:
        settings = eval_loader_settings(run.args, run.precision, run.world)
        found["teacher"] = evaluate_few_shot(run, *own_features(members[0], run.data.few_shot, settings))
        run.teacher_metrics["few_shot"] = found["teacher"]
    log_start(run, "few_shot", **found)


def log_start(run: Run, split: str, **figures: dict[str, float]) -> None:
    """Show figures of before the first step by model, and write them to metrics.jsonl once."""
    _logger.info(f"Before training, {split}: {format_metrics(figures)}")
    if run.files and run.position.epoch == 0 and run.position.batch == 0:
        run.files.metrics.write("start", split=split, **figures)


def format_metrics(figures: dict[str, dict[str, float]]) -> str:
    """Return the figures of several models or splits as a line of the log."""
    return " | ".join(
        " ".join([title, *(f"{name} {value:.2f}" for name, value in metrics.items())])
        for title, metrics in figures.items())


def teacher_hints(args: argparse.Namespace, teacher: dict[str, dict]) -> list[str]:
    """Return what is to be said of a teacher, by its metrics, that is not below the ceiling."""
    if args.ceiling_acc is None or "top1" not in teacher.get("val", ()):
        return []
    return [*filter(None, [no_gap_hint(teacher["val"]["top1"], args.ceiling_acc)])]


# ---------------------------------------------------------------- after an epoch


@dataclass(frozen=True)
class EpochFigures:
    """What an evaluation after an epoch has found.

    Args:
        figures: by split: ``val``, ``select``, ``few_shot``.
        metric: ranks the epoch; infinite where it is not a number.
        predictions: columns and rows of what is said of each sample of the validation split, or None.
    """

    figures: dict[str, dict[str, float]]
    metric: float
    predictions: tuple[list[str], Tensor] | None


def evaluation_due(args: argparse.Namespace, epoch: int, stop: int) -> bool:
    """True when an evaluation and a checkpoint follow this epoch."""
    return (epoch + 1) % args.val_interval == 0 or epoch + 1 == stop


def average_batch_norm(run: Run, due: bool) -> None:
    """Average the statistics of batch norm over all ranks as ``--dist-bn`` says; those of the average of the weights
    where an evaluation is due.
    """
    if run.world.distributed and run.args.dist_bn in ("broadcast", "reduce") and not run.position.statistics_shared:
        modules = [run.task.get_trainable_module()]
        if due and run.evaluates_average:
            modules.append(run.task.get_trainable_module(ema=True))
        for module in modules:
            distribute_bn(module, run.world.size, run.args.dist_bn == "reduce")
    run.position.statistics_shared = True


def evaluate_epoch(run: Run, terms: dict[str, float], watch: SignalWatch) -> EpochFigures:
    """Evaluate the student, or the average of its weights, on all splits; all ranks take part.

    Args:
        run: the run.
        terms: averages of the loss and its terms over the epoch, which rank it where there is no split.
        watch: stops at a signal.
    """
    # What is evaluated is what would be exported.
    model = run.task.get_eval_model(ema=run.evaluates_average)
    progress = None if run.args.fsdp else watch.guard  # a sharded model runs on all ranks or on none
    figures, predictions = {}, None
    for split in ("val", "select"):
        if run.loaders[split] is None:
            continue
        found = evaluate_split(run, split, model, known=run.teacher_predictions.get(split), progress=progress)
        figures[split] = found.metrics
        if split == "val":
            columns, rows = found.columns()
            predictions = columns, gather_in_dataset_order(rows, run.world.distributed)
    if run.few_shot is not None:
        encoder = unwrap_model(model).eval()
        figures["few_shot"] = evaluate_few_shot(
            run, lambda images: pooled_features(encoder, images), progress=watch.guard)
    return EpochFigures(figures, selection_metric(run.args, figures, terms), predictions)


def evaluate_split(run: Run, split: str, model: object, **kwargs: object) -> Evaluation:
    """Evaluate on ``val`` or ``select`` as the flags say."""
    settings = EvaluationSettings(
        run.world.distributed,
        run.args.channels_last,
        run.args.tta,
        groups=run.data.groups,
        labelled=not is_unlabeled(getattr(run.data, split)),
    )
    return evaluate(model, run.loaders[split], run.precision, settings, **kwargs)


def evaluate_few_shot(
        run: Run,
        encode: Callable[[Tensor], Tensor],
        loader: Iterable | None = None,
        progress: Progress | None = None,
) -> dict[str, float]:
    """Test an encoder on the episodes of ``--few-shot-eval``; ``loader`` stands in place of the student's."""
    features = extract_features(
        encode,
        loader or run.loaders["few_shot"],
        run.precision,
        EvaluationSettings(run.world.distributed, run.args.channels_last),
        progress,
    )
    return run.few_shot.measure(features)


def selection_metric(args: argparse.Namespace, figures: dict, terms: dict[str, float]) -> float:
    """Return what ranks this epoch: the held-out part where there is one, else the validation split, else the loss.

    Trained on weak labels alone, a held-out part is scored against the teacher: its ground truth is not to be used.
    Of several kinds of episodes the first one counts. What is not a number is the worst.
    """
    sign = -1.0 if args.eval_metric == "loss" else 1.0  # the loss falls
    if args.eval_metric == "few-shot" and "few_shot" in figures:
        metric = next(iter(figures["few_shot"].values()))
    elif "select" in figures and is_scored_by_teacher(args):
        metric = sign * figures["select"]["agreement"]
    elif "select" in figures or "val" in figures:
        metric = figures.get("select", figures.get("val"))[args.eval_metric]
    else:
        metric = -sign * terms["loss"]
    # Nothing compares with NaN: the first epoch to have it would stay the best.
    return metric if math.isfinite(metric) else -sign * math.inf
