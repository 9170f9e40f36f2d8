"""One pass of evaluation."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from timm.task.evaluator import ClassificationEvaluator, evaluation_sample_limit
from torch import Tensor, nn

from ..distributed.world import Precision
from ..errors import UserError
from ..metrics.long_tail import ShotGroups
from .task import first_output


class Said(NamedTuple):
    """What a model has said of a split on this rank, in order, on the CPU.

    Args:
        classes: (N,) that it predicts.
        log_probs: (N, C) in float16, None where only the classes are known.
    """

    classes: Tensor
    log_probs: Tensor | None = None


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
        teacher_said: of the teacher on this rank.
        targets: this rank's labels.
    """

    metrics: dict[str, float]
    teacher_metrics: dict[str, float] | None
    predictions: Tensor
    teacher_said: Said | None
    targets: Tensor

    @property
    def teacher_predictions(self) -> Tensor | None:
        """This rank's predicted classes of the teacher."""
        return None if self.teacher_said is None else self.teacher_said.classes


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


class ConfidenceMeter:
    """In place of timm's evaluator where there is no ground truth: mean probability of what a model says, in percent.

    Args:
        device: of the logits.
        max_samples: rows to count; the others are padding.
    """

    def __init__(self, device: torch.device, max_samples: int | None = None):
        self.device, self.max_samples, self.rows = device, max_samples, []

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count a batch of logits; ``target`` stands in the place of labels and says nothing."""
        self.rows.append(logits.float().softmax(dim=1).amax(dim=1))

    def compute(self, distributed: bool = False) -> dict[str, float]:
        """Return ``confidence`` over all ranks together."""
        rows = torch.cat(self.rows)[:self.max_samples]
        sums = torch.stack([rows.sum(), torch.tensor(float(len(rows)), device=rows.device)])
        if distributed:
            dist.all_reduce(sums)
        total, count = sums.tolist()
        return {"confidence": 100.0 * total / max(1.0, count)}


@torch.no_grad()  # not inference mode: CUDA graphs that begin in it cannot be trained on (pytorch#135892)
def evaluate(
        model: Callable[[Tensor], Tensor],
        loader: Iterable,
        precision: Precision,
        settings: EvaluationSettings = EvaluationSettings(),
        *,
        teacher: Callable[[Tensor], Tensor] | None = None,
        teacher_said: Said | None = None,
        on_output: Callable[[Tensor, Tensor], None] | None = None,
        progress: Callable[[Iterable], Iterable] | None = None,
) -> Evaluation:
    """Evaluate a model, counting every sample once on any number of ranks.

    Args:
        model: maps images to logits.
        loader: timm's evaluation loader.
        precision: autocast.
        settings: what is averaged, counted and shared.
        teacher: also evaluate what this answers to each batch, in the order of the loader.
        teacher_said: what the teacher has said of the split in an earlier pass.
        on_output: called with each batch of logits and labels.
        progress: wraps the loader to show progress.

    Raises:
        UserError: the teacher gives values that are not finite, or ``--tta`` does not divide a batch.
    """
    tta, distributed = settings.tta, settings.distributed

    def counted(logits: Tensor) -> Tensor:
        if tta > 1:
            if len(logits) % tta:
                raise UserError(f"--tta {tta}: a batch of {len(logits)} does not consist of groups of {tta} views; "
                                "choose --validation-batch-size, and a split, that do")
            logits = logits.unfold(0, tta, tta).mean(dim=2)
        return logits if settings.valid_labels is None else logits[:, settings.valid_labels]

    if isinstance(model, nn.Module):
        model.eval()
    device, limit = precision.device, evaluation_sample_limit(loader)
    create_meter = ClassificationEvaluator if settings.labelled else ConfidenceMeter
    meter = create_meter(device, max_samples=limit)
    teacher_meter = create_meter(device, max_samples=limit) if teacher is not None else None
    predictions, teacher_rows, teacher_broken, targets, misfits, seen = [], [], [], [], [], 0
    known = None if teacher_said is None else teacher_said.log_probs
    for images, target in (progress(loader) if progress else loader):
        target = target.to(device)
        if isinstance(images, Tensor):  # NaFlex patches come as a dictionary, on the device already
            images = images.to(device=device, dtype=precision.dtype)
        if settings.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with precision.autocast():
            logits = counted(first_output(model(images)))
        target = target[::max(1, tta)][:len(logits)]
        meter.update(logits, target)
        predictions.append(logits.argmax(dim=1))
        targets.append(target)
        if teacher_meter is not None:
            teacher_logits = counted(teacher(images))
            teacher_meter.update(teacher_logits, target)
            teacher_broken.append(~teacher_logits.isfinite().all(dim=1))
            teacher_rows.append(Said(teacher_logits.argmax(dim=1).cpu(),
                                     teacher_logits.float().log_softmax(dim=1).half().cpu()))
        if teacher_rows or known is not None:
            of_teacher = teacher_rows[-1].log_probs if teacher_rows else known[seen:seen + len(logits)]
            misfits.append(misfit(logits[:len(of_teacher)], of_teacher))  # what is more is padding
        seen += len(logits)
        if on_output:
            on_output(logits, target)
    if teacher_broken:
        refuse_not_finite(torch.cat(teacher_broken)[:limit], "an evaluation", distributed)
    metrics = dict(meter.compute(distributed=distributed))
    teacher_metrics = dict(teacher_meter.compute(distributed=distributed)) if teacher_meter is not None else None
    predicted, labels = torch.cat(predictions)[:limit].cpu(), torch.cat(targets)[:limit].cpu()
    if teacher_rows:
        teacher_said = Said(*(torch.cat(rows)[:limit] for rows in zip(*teacher_rows)))
    if teacher_said is not None and len(teacher_said.classes) == len(predicted):
        agrees = predicted == teacher_said.classes
        metrics["agreement"] = _percentage(agrees, device, distributed)
        if settings.labelled:
            metrics["copied"] = _percentage(agrees[teacher_said.classes != labels], device, distributed)
    if misfits:
        metrics["misfit"] = _mean(torch.cat(misfits)[:limit], distributed)
    if settings.groups is not None:
        metrics.update(settings.groups.evaluate(predicted, labels, device, distributed))
        if teacher_metrics is not None:
            teacher_metrics.update(settings.groups.evaluate(teacher_said.classes, labels, device, distributed))
    return Evaluation(metrics, teacher_metrics, predicted, teacher_said, labels)


def misfit(logits: Tensor, of_teacher: Tensor) -> Tensor:
    """Return the KL divergence (B,) of a student's probabilities, by its logits (B, C), from its teacher's logs (B, C).
    """
    own = logits.float().log_softmax(dim=1)
    return (own.exp() * (own - of_teacher.to(device=own.device, dtype=own.dtype))).sum(dim=1)


def _mean(rows: Tensor, distributed: bool) -> float:
    sums = torch.stack([rows.double().sum(), torch.tensor(len(rows), dtype=torch.float64, device=rows.device)])
    if distributed:
        dist.all_reduce(sums)
    return float(sums[0] / sums[1].clamp(min=1))


@torch.inference_mode()
def evaluate_heads(
        logits_of: Callable[[Tensor], Tensor],
        loader: Iterable,
        precision: Precision,
        settings: EvaluationSettings = EvaluationSettings(),
        teacher_said: Said | None = None,
) -> list[dict[str, float]]:
    """Return for each of G heads what `evaluate` gives of loss, accuracy and agreement; ``logits_of`` maps a batch to
    logits (G, B, C).
    """
    device, limit = precision.device, evaluation_sample_limit(loader)
    create_meter = ClassificationEvaluator if settings.labelled else ConfidenceMeter
    meters, rows = None, []
    for features, target in loader:
        with precision.autocast():
            logits = logits_of(features.to(precision.dtype))
        meters = meters or [create_meter(device, max_samples=limit) for _ in logits]
        for meter, own in zip(meters, logits):
            meter.update(own, target)
        rows.append(logits.argmax(dim=2))
    found = [dict(meter.compute(distributed=settings.distributed)) for meter in meters]
    predicted = torch.cat(rows, dim=1)[:, :limit].cpu()
    if teacher_said is not None and len(teacher_said.classes) == predicted.shape[1]:
        for figures, own in zip(found, predicted):
            figures["agreement"] = _percentage(own == teacher_said.classes, device, settings.distributed)
    return found


def _percentage(hits: Tensor, device: torch.device, distributed: bool) -> float:
    counts = torch.tensor([int(hits.sum()), len(hits)], device=device)
    if distributed:
        dist.all_reduce(counts)
    return 100.0 * int(counts[0]) / max(1, int(counts[1]))


def refuse_not_finite(broken: Tensor, where: str, distributed: bool) -> None:
    """Raise a `UserError` when the teacher's values for any sample are not finite; all ranks must call it."""
    counts = torch.stack([broken.sum(), torch.tensor(len(broken), device=broken.device)])
    if distributed:
        dist.all_reduce(counts)
    number, samples = counts.tolist()
    if number:
        raise UserError(f"--teacher: it gives values that are not finite for {number} of {samples} samples of {where}; "
                        "take other weights or, where it runs in half precision, give --teacher-dtype float32")
