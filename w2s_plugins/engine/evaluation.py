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

from ..build.loaders import eval_loader_settings
from ..build.resolve import is_scored_by_teacher, teacher_chance_hint
from ..data import create_eval_loader
from ..data.unlabeled import is_unlabeled
from ..distributed.signals import SignalWatch
from ..distributed.world import Precision, World, dealt_rows
from ..errors import UserError, one_line
from ..labels.splits import Data
from ..metrics.figures import format_figures
from ..metrics.long_tail import ShotGroups
from ..metrics.pgr import no_gap_hint
from ..models.features import pooled_features
from ..monitor import Console
from ..teachers.stored import answers_to, own_features
from .task import first_output
from .training_run import Predictions, Run

_logger = logging.getLogger(__name__)

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
        teacher_said: of the teacher on this rank.
        targets: this rank's labels.
    """

    metrics: dict[str, float]
    teacher_metrics: dict[str, float] | None
    predictions: Tensor
    teacher_said: Predictions | None
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
        total, count = sum_and_count(torch.cat(self.rows)[:self.max_samples], self.device, distributed)
        return {"confidence": 100.0 * total / max(1.0, count)}


@torch.no_grad()  # not inference mode: CUDA graphs that begin in it cannot be trained on (pytorch#135892)
def evaluate(
        model: Callable[[Tensor], Tensor],
        loader: Iterable,
        precision: Precision,
        settings: EvaluationSettings = EvaluationSettings(),
        *,
        teacher: Callable[[Tensor], Tensor] | None = None,
        teacher_said: Predictions | None = None,
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
    known = None if teacher_said is None else teacher_said.log_probs
    rows: dict[str, list[Tensor]] = defaultdict(list)
    seen = 0
    for images, target in batches(loader, precision, settings.channels_last, progress):
        # The student's answers. With several views of a sample there is one row for all of them.
        with precision.autocast():
            logits = counted(first_output(model(images)))
        target = target[::max(1, tta)][:len(logits)]
        meter.update(logits, target)
        rows["classes"].append(logits.argmax(dim=1))
        rows["targets"].append(target)

        # The teacher's: asked now, or those of an earlier pass, which came in the same order.
        log_probs = None if known is None else known[seen:seen + len(logits)]
        if teacher is not None:
            teacher_logits = counted(teacher(images))
            teacher_meter.update(teacher_logits, target)
            log_probs = teacher_logits.float().log_softmax(dim=1).half().cpu()
            rows["broken"].append(~teacher_logits.isfinite().all(dim=1))
            rows["teacher"].append(teacher_logits.argmax(dim=1).cpu())
            rows["log_probs"].append(log_probs)
        if log_probs is not None:
            rows["misfit"].append(misfit(logits[:len(log_probs)], log_probs))  # what is more is padding
        seen += len(logits)
        if on_output:
            on_output(logits, target)

    # Rows behind the limit are padding, which gave each rank as many batches as the others have.
    whole = {name: torch.cat(parts)[:limit] for name, parts in rows.items()}
    classes, labels = whole["classes"].cpu(), whole["targets"].cpu()
    metrics, teacher_metrics = dict(meter.compute(distributed=distributed)), None
    if teacher is not None:
        broken, samples = sum_and_count(whole["broken"], device, distributed)
        if broken:
            raise UserError(f"--teacher: it gives values that are not finite for {broken:.0f} of {samples:.0f} "
                            "samples; take other weights or, where it runs in half precision, leave out --amp")
        teacher_metrics = dict(teacher_meter.compute(distributed=distributed))
        teacher_said = Predictions(whole["teacher"], whole["log_probs"])

    # How the student stands to its teacher, whatever the ground truth is.
    if teacher_said is not None and len(teacher_said.classes) == len(classes):
        agrees = classes == teacher_said.classes
        metrics["agreement"] = _percentage(agrees, device, distributed)
        if settings.labelled:
            metrics["copied"] = _percentage(agrees[teacher_said.classes != labels], device, distributed)
    if "misfit" in whole:
        total, count = sum_and_count(whole["misfit"], device, distributed)
        metrics["misfit"] = total / max(1.0, count)
    if settings.groups is not None:
        metrics.update(settings.groups.evaluate(classes, labels, device, distributed))
        if teacher_metrics is not None:
            teacher_metrics.update(settings.groups.evaluate(teacher_said.classes, labels, device, distributed))
    return Evaluation(metrics, teacher_metrics, classes, teacher_said, labels)


@torch.inference_mode()
def extract_features(
        encode: Callable[[Tensor], Tensor],
        loader: Iterable,
        precision: Precision,
        *,
        distributed: bool = False,
        channels_last: bool = False,
        progress: Callable[[Iterable], Iterable] | None = None,
) -> Tensor:
    """Return the features (N, D) of all samples in float32, in the order of the dataset, on every rank.

    Args:
        encode: maps a normalised batch (B, 3, H, W) to features (B, D).
        loader: timm's evaluation loader.
        precision: device, dtype and autocast.
        distributed: each rank computes its share.
        channels_last: memory layout of the images.
        progress: wraps the loader, to show progress or to stop at a signal.
    """
    rows = []
    for images, _ in batches(loader, precision, channels_last, progress):
        with precision.autocast():
            rows.append(encode(images).float().cpu())
    return dealt_rows(torch.cat(rows)[:evaluation_sample_limit(loader)], distributed)


def batches(
        loader: Iterable,
        precision: Precision,
        channels_last: bool,
        progress: Callable[[Iterable], Iterable] | None,
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


def sum_and_count(values: Tensor, device: torch.device, distributed: bool) -> tuple[float, float]:
    """Return the sum and the number of values, of all ranks together, each of which must call it."""
    sums = torch.tensor([float(values.double().sum()), len(values)], dtype=torch.float64, device=device)
    if distributed:
        dist.all_reduce(sums)
    total, count = sums.tolist()
    return total, count


def _percentage(hits: Tensor, device: torch.device, distributed: bool) -> float:
    total, count = sum_and_count(hits, device, distributed)
    return 100.0 * total / max(1.0, count)


# ---------------------------------------------------------------- before the first step


def first_evaluation(run: Run) -> None:
    """Measure teacher and student before the first step, each through its own evaluation transform."""
    args, data, teacher = run.args, run.parts.data, run.parts.teacher
    if run.parts.few_shot is not None and not args.no_teacher_eval:
        first_few_shot(run)
    # Labels in place of a teacher: a held-out part is scored by them.
    if data.given and run.loaders["select"] is not None:
        said = torch.full((len(data.select),), -1)
        for labels in data.given:  # the first who says something
            said = torch.where(said < 0, labels.predictions(labels.select, len(said)), said)
        run.weak_said["select"] = Predictions(said[run.world.rank::run.world.size])
    if teacher is None or args.no_teacher_eval:
        return
    # A teacher is asked once about each split, and what it says is compared after every epoch.
    for split in ("val", "select"):
        loader = run.loaders[split]
        if loader is None:
            continue
        if args.linear_probe:
            answers = loader.teacher
        else:
            answers = answers_to(
                teacher, getattr(data, split), eval_loader_settings(args, run.precision, run.world))
        progress = Console(run.world.primary, 0).wrap("before training")
        found = evaluate_split(run, split, run.task.get_eval_model(), teacher=answers, progress=progress)
        run.weak_metrics[split], run.weak_said[split] = found.teacher_metrics, found.teacher_said
        name = args.val_split if split == "val" else "held-out part"
        what, key = ("top-1", "top1") if "top1" in found.metrics else ("mean confidence", "confidence")
        _logger.info(f"Before training, {name}: teacher {what} {found.teacher_metrics[key]:.2f}, student {what} "
                     f"{found.metrics[key]:.2f}, agreement {found.metrics['agreement']:.2f}")
        write_start(run, split, teacher=found.teacher_metrics, student=found.metrics)
    for hint in teacher_hints(args, run.weak_metrics, data):
        _logger.warning(f"WARNING: {hint}")


def first_few_shot(run: Run) -> None:
    """Test student and teacher, where it is a single one, on episodes before the first step."""
    # Episodes are the same for both, so their figures can be compared.
    student = unwrap_model(run.task.get_eval_model()).eval()
    found = {"student": evaluate_few_shot(run, lambda images: pooled_features(student, images))}
    members = run.parts.teacher.members if run.parts.teacher is not None else ()
    if len(members) == 1 and members[0].embeds:
        settings = eval_loader_settings(run.args, run.precision, run.world)
        found["teacher"] = evaluate_few_shot(run, *own_features(members[0], run.parts.data.few_shot, settings))
        run.weak_metrics["few_shot"] = found["teacher"]
    elif len(members) == 1:
        _logger.info(f"--few-shot-eval: --teacher {run.args.teacher} has no features, and is not tested on episodes")
    for who, figures in sorted(found.items()):
        shown = ", ".join(f"{shape} {text}" for shape, text in format_figures(figures).items())
        _logger.info(f"Before training, few-shot on {run.args.few_shot_split}: {who} {shown}")
    write_start(run, "few_shot", **found)


def write_start(run: Run, split: str, **figures: dict) -> None:
    """Write figures of before the first step to metrics.jsonl, once."""
    if run.files and run.position.epoch == 0 and run.position.batch == 0:
        run.files.metrics.write("start", split=split, **figures)


def teacher_hints(args: argparse.Namespace, weak: dict[str, dict], data: Data) -> list[str]:
    """Return what is to be said of a teacher that is at chance, or not below the ceiling."""
    hints = [
        teacher_chance_hint(weak[name]["top1"], data.num_classes, len(getattr(data, name)))
        for name in ("val", "select") if "top1" in weak.get(name, ())]
    if args.ceiling_acc is not None and "top1" in weak.get("val", ()):
        hints.append(no_gap_hint(weak["val"]["top1"], args.ceiling_acc))
    return [*filter(None, hints)]


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
    return (epoch + 1) % args.val_interval == 0 or epoch + 1 == stop or epoch + 1 in args.save_epochs


def average_batch_norm(run: Run, due: bool) -> None:
    """Average the statistics of batch norm over all ranks as ``--dist-bn`` says; those of the average of the weights
    where an evaluation is due.
    """
    if run.world.distributed and run.args.dist_bn in ("broadcast", "reduce") and not run.position.statistics_shared:
        reduce = run.args.dist_bn == "reduce"
        distribute_bn(run.task.get_trainable_module(), run.world.size, reduce)
        if due and run.evaluates_average:
            distribute_bn(run.task.get_trainable_module(ema=True), run.world.size, reduce)
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
        found = evaluate_split(run, split, model, teacher_said=run.weak_said.get(split), progress=progress)
        figures[split] = found.metrics
        if split == "val":
            columns, rows = predictions_of(found)
            predictions = columns, dealt_rows(rows, run.world.distributed)
    if run.parts.few_shot is not None:
        encoder = unwrap_model(model).eval()
        figures["few_shot"] = evaluate_few_shot(
            run, lambda images: pooled_features(encoder, images), progress=watch.guard)
    return EpochFigures(figures, selection_metric(run.args, figures, terms), predictions)


def evaluate_split(run: Run, split: str, model: object, **kwargs: object) -> Evaluation:
    """Evaluate on ``val`` or ``select`` as the flags say."""
    settings = EvaluationSettings(
        run.world.distributed, run.args.channels_last, run.args.tta, groups=run.parts.data.groups,
        labelled=not is_unlabeled(getattr(run.parts.data, split)))
    return evaluate(model, run.loaders[split], run.precision, settings, **kwargs)


def evaluate_few_shot(
        run: Run,
        encode: Callable[[Tensor], Tensor],
        loader: Iterable | None = None,
        progress: Callable[[Iterable], Iterable] | None = None,
) -> dict[str, float]:
    """Test an encoder on the episodes of ``--few-shot-eval``; ``loader`` stands in place of the student's."""
    features = extract_features(
        encode, loader or run.loaders["few_shot"], run.precision, distributed=run.world.distributed,
        channels_last=run.args.channels_last, progress=progress)
    return run.parts.few_shot.measure(features)


def predictions_of(found: Evaluation) -> tuple[list[str], Tensor]:
    """Return what was said on this rank, as columns and rows."""
    columns = {"target": found.targets, "student": found.predictions}
    if found.teacher_predictions is not None:
        columns["teacher"] = found.teacher_predictions
    return list(columns), torch.stack(list(columns.values()), dim=1).int()


def selection_metric(args: argparse.Namespace, figures: dict, terms: dict[str, float]) -> float:
    """Return what ranks this epoch: the held-out part where there is one, else the validation split, else the loss.

    Trained on weak labels alone, a held-out part is scored against the teacher: its ground truth is not to be used.
    Of several kinds of episodes the first one counts. What is not a number is the worst.
    """
    # The first of these that there is: episodes, held-out part, validation split, training loss.
    falls = args.eval_metric == "loss"  # less is better
    if args.eval_metric == "few-shot" and "few_shot" in figures:
        metric = next(iter(figures["few_shot"].values()))
    elif "select" in figures and is_scored_by_teacher(args):
        agreement = figures["select"]["agreement"]
        metric = -agreement if falls else agreement
    elif "select" in figures:
        metric = figures["select"][args.eval_metric]
    elif "val" in figures:
        metric = figures["val"][args.eval_metric]
    else:
        metric = terms["loss"] if falls else -terms["loss"]
    if not math.isfinite(metric):  # nothing compares with NaN: the first epoch to have it would stay the best
        metric = math.inf if falls else -math.inf
    return metric


# ---------------------------------------------------------------- at the end


def evaluate_test_sets(run: Run, model: nn.Module) -> tuple[dict[str, Evaluation], dict[str, str]]:
    """Measure the selected student and its teacher on the test sets beside the validation split, in this process alone.

    Returns:
        What was found by name, and why that failed: a set that is broken does not end a run which is trained.
    """
    found, failed, alone = {}, {}, World(run.world.device, 0, 1, False)
    settings = eval_loader_settings(run.args, run.precision, alone)
    teacher, model = None if run.args.no_teacher_eval else run.parts.teacher, model.to(run.world.device)
    for name, test in run.parts.data.tests.items():
        try:
            found[name] = evaluate(
                model, create_eval_loader(test.dataset, run.parts.student.data_config, settings), run.precision,
                EvaluationSettings(channels_last=run.args.channels_last, valid_labels=test.counted),
                teacher=teacher and answers_to(teacher, test.dataset, settings), progress=Console(True, 0).wrap(name))
        except (UserError, OSError, RuntimeError) as error:
            failed[name] = f"{test.flag} {name}: {one_line(error)}"
        else:
            _logger.info(f"Test set {name}: student top-1 {found[name].metrics['top1']:.2f}")
    return found, failed
