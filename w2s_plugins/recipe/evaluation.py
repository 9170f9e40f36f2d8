"""The figures of a run: of teacher and student before the first step, of the student after an epoch."""

import argparse
import logging
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.distributed as dist
from timm.utils import distribute_bn, unwrap_model

from ..build.loaders import eval_loader_settings
from ..build.record import teacher_hints
from ..build.resolve import is_scored_by_teacher
from ..data import create_eval_loader
from ..data.unlabeled import is_unlabeled
from ..distributed.signals import SignalWatch
from ..distributed.world import World, dealt_rows
from ..engine.evaluation import Evaluation, EvaluationSettings, Predictions, evaluate
from ..engine.few_shot import extract_features
from ..errors import UserError, one_line
from ..metrics.figures import format_figures
from ..models.features import pooled_features
from ..monitor import Console
from ..teachers.stored import answers_to, own_features
from .run import Run

_logger = logging.getLogger(__name__)


def first_evaluation(run: Run) -> None:
    """Measure teacher and student before the first step, each through its own evaluation transform."""
    args = run.args
    if run.parts.few_shot is not None and not args.no_teacher_eval:
        first_few_shot(run)
    if run.parts.data.given and run.loaders["select"] is not None:
        said = torch.full((len(run.parts.data.select),), -1)
        for labels in run.parts.data.given:  # the first who says something
            said = torch.where(said < 0, labels.predictions(labels.select, len(said)), said)
        run.weak_said["select"] = Predictions(said[run.world.rank::run.world.size])
    if run.parts.teacher is None or args.no_teacher_eval:
        return
    for split in ("val", "select"):
        if run.loaders[split] is None:
            continue
        console = Console(run.world.primary, 0)
        teacher = run.loaders[split].teacher if args.linear_probe else answers_to(
            run.parts.teacher, getattr(run.parts.data, split), eval_loader_settings(args, run.precision, run.world))
        found = evaluate_split(
            run, split, run.task.get_eval_model(), teacher=teacher, progress=console.wrap("before training"))
        run.weak_metrics[split], run.weak_said[split] = found.teacher_metrics, found.teacher_said
        name = args.val_split if split == "val" else "held-out part"
        what, key = ("top-1", "top1") if "top1" in found.metrics else ("mean confidence", "confidence")
        _logger.info(f"Before training, {name}: teacher {what} {found.teacher_metrics[key]:.2f}, student {what} "
                     f"{found.metrics[key]:.2f}, agreement {found.metrics['agreement']:.2f}")
        if run.files and run.position.epoch == 0 and run.position.batch == 0:
            run.files.metrics.write("start", split=split, teacher=found.teacher_metrics, student=found.metrics)
    for hint in teacher_hints(args, run.weak_metrics, run.parts.data):
        _logger.warning(f"WARNING: {hint}")


def first_few_shot(run: Run) -> None:
    """Test student and teacher, where it is a single one, on episodes before the first step."""
    student = unwrap_model(run.task.get_eval_model()).eval()
    found = {"student": evaluate_few_shot(run, lambda images: pooled_features(student, images))}
    if run.parts.teacher is not None and len(run.parts.teacher.members) == 1:
        (member,) = run.parts.teacher.members
        if member.embeds:
            found["teacher"] = evaluate_few_shot(run, *own_features(
                member, run.parts.data.few_shot, eval_loader_settings(run.args, run.precision, run.world)))
            run.weak_metrics["few_shot"] = found["teacher"]
        else:
            _logger.info(f"--few-shot-eval: --teacher {run.args.teacher} has no features that can be had, and is not "
                         "tested on episodes")
    _logger.info(f"Before training, few-shot on {run.args.few_shot_split}: " + "; ".join(
        f"{who} " + ", ".join(f"{k} {v}" for k, v in format_figures(f).items()) for who, f in sorted(found.items())))
    if run.files and run.position.epoch == 0 and run.position.batch == 0:
        run.files.metrics.write("start", split="few_shot", **found)


class EpochFigures(NamedTuple):
    """What an evaluation after an epoch has found.

    Args:
        figures: by split: ``val``, ``select``, ``few_shot``.
        metric: ranks the epoch; infinite where it is not a number.
        predictions: columns and rows of what is said of each sample of the validation split, or None.
        shares: how many samples of a held-out part without labels each class is said to have, by whom; or None.
    """

    figures: dict[str, dict[str, float]]
    metric: float
    predictions: tuple[list[str], torch.Tensor] | None
    shares: dict[str, list[int]] | None = None


def average_batch_norm(run: Run, due: bool) -> None:
    """Average the statistics of batch norm over all ranks as ``--dist-bn`` says; those of the average of the weights
    where an evaluation is due.
    """
    if run.world.distributed and run.args.dist_bn in ("broadcast", "reduce") and not run.position.statistics_shared:
        for average in (False, True)[:1 + (due and evaluates_average(run))]:
            distribute_bn(run.task.get_trainable_module(ema=average), run.world.size, run.args.dist_bn == "reduce")
    run.position.statistics_shared = True


def evaluate_epoch(run: Run, terms: dict[str, float], watch: SignalWatch) -> EpochFigures:
    """Evaluate the student, or the average of its weights, on all splits; all ranks take part.

    Args:
        run: the run.
        terms: averages of the loss and its terms over the epoch, which rank it where there is no split.
        watch: stops at a signal.
    """
    args = run.args
    model = run.task.get_eval_model(ema=evaluates_average(run))
    found = {
        split: evaluate_split(
            run, split, model, teacher_said=run.weak_said.get(split),
            progress=None if args.fsdp else watch.guard)  # a sharded model runs on all ranks or on none
        for split in ("val", "select") if run.loaders[split] is not None
    }
    figures = {split: evaluation.metrics for split, evaluation in found.items()}
    if run.parts.few_shot is not None:
        encoder = unwrap_model(model).eval()
        figures["few_shot"] = evaluate_few_shot(
            run, lambda images: pooled_features(encoder, images), progress=watch.guard)
    return EpochFigures(
        figures, selection_metric(args, figures, terms),
        gather_predictions(run, found["val"]) if "val" in found else None,
        class_shares(run, found["select"]) if "select" in found and is_unlabeled(run.parts.data.select) else None)


def count_passing(run: Run, figures: dict[str, dict[str, float]]) -> None:
    """Count the evaluations in a row in which the student is better than its teacher, up to ``--teacher-until-passed``.
    """
    needed, position = run.args.teacher_until_passed, run.position
    if has_passed(run) or needed is None:
        return
    split = "select" if "top1" in figures.get("select", ()) else "val"
    ahead = figures[split]["top1"] > run.weak_metrics[split]["top1"]
    position.passed = position.passed + 1 if ahead else 0
    if has_passed(run):
        _logger.info(f"--teacher-until-passed {needed}: the student is better than its teacher, top-1 "
                     f"{figures[split]['top1']:.2f} against {run.weak_metrics[split]['top1']:.2f}, and goes on without")


def has_passed(run: Run) -> bool:
    """True where the student goes on with ground truth alone."""
    return run.args.teacher_until_passed is not None and run.position.passed >= run.args.teacher_until_passed


def class_shares(run: Run, found: Evaluation) -> dict[str, list[int]]:
    """Return how many samples the student, and the teacher where it was asked, say to be of each class, over all ranks.
    """
    said = {"student": found.predictions}
    if found.teacher_predictions is not None:
        said["teacher"] = found.teacher_predictions
    size = run.parts.data.num_classes
    counts = torch.stack([classes.bincount(minlength=size) for classes in said.values()]).to(run.world.device)
    if run.world.distributed:
        dist.all_reduce(counts)
    return dict(zip(said, counts.tolist()))


def evaluate_split(run: Run, split: str, model: object, **kwargs: object) -> Evaluation:
    """Evaluate on ``val`` or ``select`` as the flags say."""
    settings = EvaluationSettings(
        run.world.distributed, run.args.channels_last, run.args.tta, groups=run.parts.data.groups,
        labelled=not is_unlabeled(getattr(run.parts.data, split)))
    return evaluate(model, run.loaders[split], run.precision, settings, **kwargs)


def evaluate_test_sets(run: Run, model: torch.nn.Module) -> tuple[dict[str, Evaluation], dict[str, str]]:
    """Measure the selected student and its teacher on the test sets beside the validation split, in this process alone.

    Args:
        run: the run.
        model: its student.

    Returns:
        What was found by name, and why that failed: a set that is broken does not end a run which is trained.
    """
    found, failed, alone = {}, {}, World(run.world.device, 0, 1, False)
    settings = eval_loader_settings(run.args, run.precision, alone)
    teacher, model = None if run.args.no_teacher_eval else run.parts.teacher, model.to(run.world.device)
    for name, test in run.parts.data.tests.items():
        try:
            answers = teacher and answers_to(teacher, test.dataset, settings)
            found[name] = evaluate(
                model, create_eval_loader(test.dataset, run.parts.student.data_config, settings), run.precision,
                EvaluationSettings(channels_last=run.args.channels_last, valid_labels=test.counted),
                teacher=answers, progress=Console(True, 0).wrap(name))
        except (UserError, OSError, RuntimeError) as error:
            failed[name] = f"{test.flag} {name}: {one_line(error)}"
            continue
        figures = found[name]
        of_teacher = f", teacher {figures.teacher_metrics['top1']:.2f}" if teacher else ""
        _logger.info(f"Test set {name}: student top-1 {figures.metrics['top1']:.2f}{of_teacher}")
    return found, failed


def evaluate_few_shot(
        run: Run,
        encode: Callable[[torch.Tensor], torch.Tensor],
        loader: Iterable | None = None,
        progress: Callable[[Iterable], Iterable] | None = None,
) -> dict[str, float]:
    """Test an encoder on the episodes of ``--few-shot-eval``; ``loader`` stands in place of the student's."""
    features = extract_features(
        encode, loader or run.loaders["few_shot"], run.precision, distributed=run.world.distributed,
        channels_last=run.args.channels_last, progress=progress)
    return run.parts.few_shot.measure(features)


def evaluates_average(run: Run) -> bool:
    """True when the average of the weights is what is evaluated and exported."""
    return run.task.has_ema() and not run.args.model_ema_force_cpu


def gather_predictions(run: Run, found: Evaluation) -> tuple[list[str], torch.Tensor]:
    """Return what the student says of each sample of the validation split, as columns and rows; all ranks take part."""
    columns, rows = predictions_of(found)
    return columns, dealt_rows(rows, run.world.distributed)


def predictions_of(found: Evaluation) -> tuple[list[str], torch.Tensor]:
    """Return what was said on this rank, as columns and rows."""
    columns = {"target": found.targets, "student": found.predictions}
    if found.teacher_predictions is not None:
        columns["teacher"] = found.teacher_predictions
    return list(columns), torch.stack(list(columns.values()), dim=1).int()


def evaluation_due(args: argparse.Namespace, epoch: int, stop: int) -> bool:
    """True when an evaluation and a checkpoint follow this epoch."""
    return (epoch + 1) % args.val_interval == 0 or epoch + 1 == stop or epoch + 1 in args.save_epochs


def selection_metric(args: argparse.Namespace, figures: dict, terms: dict[str, float]) -> float:
    """Return what ranks this epoch: the held-out part where there is one, else the validation split, else the loss.

    Trained on weak labels alone, a held-out part is scored against the teacher: its ground truth is not to be used.
    Of several kinds of episodes the first one counts. What is not a number is the worst.
    """
    metric = _metric(args, figures, terms)
    if not math.isfinite(metric):  # nothing compares with NaN: the first epoch to have it would stay the best
        metric = math.inf if args.eval_metric == "loss" else -math.inf
    return metric


def _metric(args: argparse.Namespace, figures: dict, terms: dict[str, float]) -> float:
    if args.eval_metric == "few-shot" and "few_shot" in figures:
        return next(iter(figures["few_shot"].values()))
    if "select" in figures:
        if not is_scored_by_teacher(args):
            return figures["select"][args.eval_metric]
        agreement = figures["select"]["agreement"]
        return -agreement if args.eval_metric == "loss" else agreement  # of a loss, less is better
    if "val" in figures:
        return figures["val"][args.eval_metric]
    return terms["loss"] if args.eval_metric == "loss" else -terms["loss"]
