"""Evaluation: one pass over a split, and the figures of a run before its first step and after an epoch."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from timm.task.evaluator import evaluation_sample_limit
from timm.utils.distributed import distribute_bn
from timm.utils.model import unwrap_model
from torch import Tensor, nn

from ..data import MapDataset
from ..data.datasets import is_unlabeled, truth_of
from ..distributed.signals import SignalWatch
from ..distributed.world import Precision, gather_in_dataset_order
from ..errors import UserError, logger
from ..metrics.evaluator import SeveralEvaluator, create_evaluator
from ..metrics.figures import headline_of
from ..metrics.long_tail import ShotGroups
from ..metrics.pgr import no_gap_hint
from ..metrics.several import FEWEST_FOR_THRESHOLD, best_thresholds, decide, f1_figures
from ..models.feature_extraction import pooled_features
from ..models.inference import inference_dtype, run_over
from ..monitor import Console
from ..no_label import NO_LABEL
from ..target_kind import ONE_CLASS, TargetKind
from ..teachers.stored import own_answers, own_features
from .few_shot import FewShotTest
from .loaders import eval_loader_settings
from .task import evaluated_model, trained_module
from .training_run import Run

Progress = Callable[[Iterable], Iterable]  # wraps a loader, to show progress or to stop at a signal

# ---------------------------------------------------------------- one pass


@dataclass
class Evaluation:
    """The outcome of one pass over a split.

    Args:
        metrics: ``loss``, ``top1``, ``top5`` in percent, and those of `ShotGroups` where there are such; ``confidence``
            in place of the first three without ground truth. Beside a teacher also ``agreement`` and ``copied``, the
            share of the teacher's errors that the student makes as well, in percent.
        predictions: (N,) classes of this rank, in order.
        targets: this rank's labels.
        logits: (N, C) of this rank, of several classes an image with ground truth, whose figures rank by them.
        agreement: (N,) of this rank with the teacher, from 0 to 1; None without one.
    """

    metrics: dict[str, float]
    predictions: Tensor
    targets: Tensor
    logits: Tensor | None = None
    agreement: Tensor | None = None


@dataclass(frozen=True)
class EvaluationOptions:
    """How a split is evaluated.

    Args:
        distributed: sum over all ranks.
        tta: consecutive views of a sample whose logits are averaged.
        valid_labels: classes that count, for a model with more.
        groups: also measure the accuracy on these classes.
        has_truth: False for images without ground truth: of them ``confidence`` and ``agreement`` are measured.
        target_kind: what the labels are.
    """

    distributed: bool = False
    tta: int = 0
    valid_labels: Sequence[int] | None = None
    groups: ShotGroups | None = None
    has_truth: bool = True
    target_kind: TargetKind = ONE_CLASS

    def of_samples(self, logits: Tensor) -> Tensor:
        """Return logits with one row a sample and one column a class that counts."""
        if self.tta > 1:
            if len(logits) % self.tta:
                raise UserError(
                    f"--tta {self.tta}: a batch of {len(logits)} does not consist of groups of so many "
                    "views; choose --validation-batch-size, and a split, that do"
                )
            logits = logits.unfold(0, self.tta, self.tta).mean(dim=2)
        return logits if self.valid_labels is None else logits[:, self.valid_labels]


@torch.no_grad()  # not inference mode: CUDA graphs that begin in it cannot be trained on (pytorch#135892)
def evaluate(
    model: Callable[[Tensor], Tensor],
    loader: Iterable,
    precision: Precision,
    settings: EvaluationOptions = EvaluationOptions(),
    *,
    teacher: Tensor | None = None,
    on_logits: Callable[[Tensor], None] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a model, counting every sample once on any number of ranks.

    Args:
        model: maps images to logits.
        loader: timm's evaluation loader.
        precision: device, dtype, autocast and memory layout.
        settings: what is averaged, counted and shared.
        teacher: classes (N,) that it has predicted of the same split, in the same order.
        on_logits: called with the logits of each batch.
        progress: wraps the loader.

    Raises:
        UserError: ``--tta`` does not divide a batch.
    """
    if isinstance(model, nn.Module):
        model.eval()
    # The last batches of some ranks are filled up with samples that are there already; these do not count.
    limit = evaluation_sample_limit(loader)
    kind = settings.target_kind
    evaluator = create_evaluator(kind, precision.device, limit)
    # Kept on the device until the end: each copy to the CPU would wait for the batch.
    rows: dict[str, list[Tensor]] = defaultdict(list)
    batches = loader if progress is None else progress(loader)
    for output, target in run_over(model, batches, precision):
        # With several views of a sample there is one row for all of them.
        logits = settings.of_samples(output)
        target = target[:: max(1, settings.tta)][: len(logits)]
        rows["classes"].append(kind.decide(logits))
        rows["targets"].append(target)
        if settings.has_truth:
            evaluator.update(logits, target)
        else:
            rows["confidence"].append(100 * kind.confidence(logits.float()))
        if on_logits:
            on_logits(logits)

    # Against ground truth, without padding.
    joined = {name: torch.cat(parts)[:limit].cpu() for name, parts in rows.items()}
    classes, targets, device = joined["classes"], joined["targets"], precision.device

    def mean(values: Tensor) -> float:
        return mean_over_ranks(values, device, settings.distributed)

    if settings.has_truth:
        metrics = dict(evaluator.compute(distributed=settings.distributed))
    else:
        metrics = {"confidence": mean(joined["confidence"])}
    if settings.groups is not None:
        metrics.update(settings.groups.evaluate(classes, targets, device, settings.distributed))

    # How the student stands to its teacher, whatever the ground truth is.
    agreement = None
    if teacher is not None:
        agreement = kind.agreement(classes, teacher)
        metrics["agreement"] = mean(100 * agreement)
        if settings.has_truth:
            metrics["copied"] = mean(100 * kind.copied(classes, teacher, targets))
    ranked = None
    if isinstance(evaluator, SeveralEvaluator) and settings.has_truth:
        ranked = evaluator.logits
    return Evaluation(metrics, classes, targets, ranked, agreement)


def evaluate_teacher(
    answer: Callable[[object], Tensor],
    loader: Iterable,
    precision: Precision,
    settings: EvaluationOptions,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a teacher, which answers in its own precision; arguments as of `evaluate`.

    Raises:
        UserError: it gives values that are not finite.
    """
    # A teacher that overflows in half precision would still have an accuracy, of the classes that argmax makes of NaN.
    finite: list[Tensor] = []

    def note(logits: Tensor) -> None:
        finite.append(settings.target_kind.are_answers(logits).cpu())

    evaluation = evaluate(
        answer, loader, Precision(precision.device), settings, on_logits=note, progress=progress
    )
    if share := mean_over_ranks(100 * ~torch.cat(finite), precision.device, settings.distributed):
        raise UserError(
            f"--teacher: it gives values that are not finite for {share:.3g} % of the samples; take other "
            f"weights (these ran in {inference_dtype(precision)})"
        )
    return evaluation


@torch.inference_mode()
def extract_features(
    encode: Callable[[Tensor], Tensor],
    loader: Iterable,
    precision: Precision,
    settings: EvaluationOptions = EvaluationOptions(),
    progress: Progress | None = None,
) -> Tensor:
    """Return the features (N, D) of all samples in float32, in the order of the dataset, on every rank.

    Args:
        encode: maps a normalised batch (B, 3, H, W) to features (B, D).
        loader: timm's evaluation loader.
        precision: device, dtype, autocast and memory layout.
        settings: of them whether each rank computes its share.
        progress: wraps the loader.
    """
    batches = loader if progress is None else progress(loader)
    asked = run_over(encode, batches, precision)
    features = torch.cat([rows.float().cpu() for rows, _ in asked])
    # The last batches of some ranks are filled up, so that all ranks have equally many.
    return gather_in_dataset_order(
        features[: evaluation_sample_limit(loader)], settings.distributed
    )


def mean_over_ranks(values: Tensor, device: torch.device, distributed: bool) -> float:
    """Return the mean of values over all ranks, each of which must call it; 0 without any."""
    # In float64 and as sums, so that the mean does not depend on how samples are dealt out.
    sums = torch.tensor([float(values.double().sum()), len(values)], dtype=torch.float64)
    if distributed:
        sums = sums.to(device)
        dist.all_reduce(sums)
    total, count = sums.tolist()
    return total / max(1.0, count)


# ---------------------------------------------------------------- before the first step


def first_evaluation(run: Run) -> None:
    """Measure teacher and student before the first step, each through its own evaluation transform."""
    settings, data, teacher = run.settings, run.data, run.teacher
    if data.given_labels and data.select is not None:
        score_given_labels(run, data.select)
    # most answers are no, so agreement hardly tells one epoch from another
    if (
        data.select is not None
        and data.target_kind is not ONE_CLASS
        and truth_of(data.select) is None
    ):
        of_epochs = ", and the last epoch may be better than the best"
        logger.warning(
            "WARNING: --select-split: its images have no true labels, and of several classes an image the teacher agrees "
            f"with each epoch alike: no threshold is chosen{of_epochs if settings.evaluation.select == 'best' else ''}"
        )
    if settings.evaluation.no_teacher_eval:
        return
    loading = eval_loader_settings(settings.data, run.precision, run.world)
    # Student and teacher, where it is a single one with features, are tested on the same episodes.
    if run.few_shot is not None and data.few_shot is not None:
        measured = {"student": evaluate_few_shot(run, run.few_shot, evaluated_model(run.task))}
        members = teacher.members if teacher is not None else ()
        if len(members) == 1 and members[0].embeds:
            asked = own_features(members[0], data.few_shot, loading)
            options = EvaluationOptions(run.world.distributed)
            features = extract_features(*asked, run.precision, options)
            measured["teacher"] = run.teacher_metrics["few_shot"] = run.few_shot.measure(features)
        log_start(run, "few_shot", **measured)
    if teacher is None:
        return

    # A teacher is asked once about each split, and its predictions are compared with the student's after every epoch.
    progress = Console(run.world.primary, 0).wrap("before training")
    for split in ("val", "select"):
        loader = run.loaders[split]
        if loader is None:
            continue
        # Beside stored features lie the teacher's stored logits; else it sees the images in its own form.
        if settings.student.linear_probe:
            asked = loader.teacher, loader
        else:
            asked = own_answers(teacher, getattr(data, split), loading, loader)
        weak = evaluate_teacher(*asked, run.precision, split_settings(run, split), progress)
        run.teacher_metrics[split], run.teacher_predictions[split] = weak.metrics, weak.predictions
        run.teacher_logits[split] = weak.logits
        student = evaluate_split(run, split, evaluated_model(run.task), progress)
        log_start(run, split, teacher=weak.metrics, student=student.metrics)
    weak = headline_of(run.teacher_metrics.get("val", {}))
    if hint := no_gap_hint(weak, settings.evaluation.ceiling_acc):
        logger.warning(f"WARNING: {hint}")


def score_given_labels(run: Run, held_out: MapDataset) -> None:
    """Let labels in place of a teacher score a held-out part: of each sample the first who says something."""
    data, settings = run.data, run.settings
    classes: Tensor | None = None
    for labels in data.given_labels:
        if labels.select is not None:
            theirs = torch.from_numpy(labels.select.classes())
            classes = theirs if classes is None else classes
            classes = torch.where(classes == NO_LABEL, theirs, classes)
    if classes is None:
        classes = torch.full((len(held_out),), NO_LABEL)
    # Samples are dealt out to the ranks as by the loader; of the views of one, which --tta averages, one stands for all.
    of_rank = classes[run.world.rank :: run.world.size]
    run.teacher_predictions["select"] = of_rank[:: max(1, settings.evaluation.tta)]
    # Where ground truth is known, it says how good the labels are.
    truth = data.noise.clean_labels(held_out) if data.noise else truth_of(held_out)
    known = (classes != NO_LABEL).reshape(len(classes), -1).any(dim=1)
    if truth is not None and run.teacher is None and known.any():
        scores = data.target_kind.score(classes, torch.as_tensor(truth))[known]
        name = data.target_kind.score_name
        run.teacher_metrics["select"] = {name: 100 * scores.double().mean().item()}


def log_start(run: Run, split: str, **figures: dict[str, float]) -> None:
    """Show figures of before the first step by model, and write them to metrics.jsonl once."""
    logger.info(f"Before training, {split}: {format_metrics(figures)}")
    if run.files and run.updates_done == 0:
        run.files.metrics.write("start", split=split, **figures)


def format_metrics(figures: dict[str, dict[str, float]]) -> str:
    """Return the figures of several models or splits as a line of the log."""
    return " | ".join(
        " ".join([title, *(f"{name} {value:.2f}" for name, value in metrics.items())])
        for title, metrics in figures.items()
    )


# ---------------------------------------------------------------- after an epoch


@dataclass(frozen=True)
class EpochFigures:
    """What an evaluation after an epoch has found.

    Args:
        figures: by split: ``val``, ``select``, ``few_shot``.
        metric: ranks the epoch; infinite where it is not a number.
        predictions: columns and rows of what is said of each sample of the validation split, or None.
        thresholds: of several classes an image the probability (C,) from which on each is said to be there, chosen on a
            held-out part; None without one.
        held_out: (N, 1) how far student and teacher agree on each sample of the held-out part; None without one.
    """

    figures: dict[str, dict[str, float]]
    metric: float
    predictions: tuple[list[str], Tensor] | None
    thresholds: list[float] | None = None
    held_out: Tensor | None = None


def average_batch_norm(run: Run) -> None:
    """Average the statistics of batch norm over all ranks as ``--dist-bn`` says; those of the average of the weights
    where an evaluation is due.
    """
    # A run that goes on after the evaluation of an epoch finds them shared already, and would average averages.
    how = run.settings.student.dist_bn
    if (
        run.world.distributed
        and how in ("broadcast", "reduce")
        and not run.position.statistics_shared
    ):
        modules = [trained_module(run.task)]
        if run.evaluation_due and run.evaluates_average:
            modules.append(trained_module(run.task, average=True))
        for module in modules:
            distribute_bn(module, run.world.size, how == "reduce")
    run.position.statistics_shared = True


def evaluate_epoch(run: Run, terms: dict[str, float], watch: SignalWatch) -> EpochFigures:
    """Evaluate the student, or the average of its weights, on all splits; all ranks take part.

    Args:
        run: the run.
        terms: averages of the loss and its terms over the epoch, which rank it where there is no split.
        watch: stops at a signal.
    """
    # What is evaluated is what would be exported. A signal stops the pass between two batches; not that of a sharded
    # model, which runs on all ranks or on none.
    model = evaluated_model(run.task, run.evaluates_average)
    progress = None if run.settings.compute.fsdp else watch.guard
    figures, predictions, ranked, held_out = {}, None, {}, None
    for split in ("val", "select"):
        if run.loaders[split] is None:
            continue
        evaluation = evaluate_split(run, split, model, progress)
        figures[split] = evaluation.metrics
        if evaluation.logits is not None:
            ranked[split] = torch.stack([evaluation.logits.cpu(), evaluation.targets.float()], 1)
        if split == "select" and evaluation.agreement is not None:
            rows = evaluation.agreement.float()[:, None]
            held_out = gather_in_dataset_order(rows, run.world.distributed)
        if split == "val":
            columns = {"target": evaluation.targets, "student": evaluation.predictions}
            if split in run.teacher_predictions:
                columns["teacher"] = run.teacher_predictions[split]
            logits = {"student": evaluation.logits, "teacher": run.teacher_logits.get(split)}
            names, rows = run.data.target_kind.predictions(columns, logits)
            predictions = names, gather_in_dataset_order(rows, run.world.distributed)
    if run.few_shot is not None:
        figures["few_shot"] = evaluate_few_shot(run, run.few_shot, model, progress)
    thresholds = None
    if ranked.keys() == {"val", "select"}:
        of_all = {
            split: gather_in_dataset_order(rows, run.world.distributed)
            for split, rows in ranked.items()
        }
        thresholds, chosen = f1_at_chosen(of_all["select"], of_all["val"])
        figures["val"] |= chosen
    settings = run.settings
    metric = selection_metric(
        settings.evaluation.eval_metric,
        settings.is_scored_by_teacher,
        figures,
        terms,
        run.position.epoch,
    )
    return EpochFigures(figures, metric, predictions, thresholds, held_out)


def f1_at_chosen(held_out: Tensor, val: Tensor) -> tuple[list[float], dict[str, float]]:
    """Choose a threshold for each class on a held-out part, and measure F1 with these on the validation split.

    Args:
        held_out: (M, 2, C) logits and true labels, NaN where one is unknown.
        val: (N, 2, C) the same of the validation split.

    Returns:
        The thresholds (C,), and F1 in percent by name.
    """
    (chosen_on, known), (scores, truth) = (rows.double().unbind(dim=1) for rows in (held_out, val))
    # Chosen on the validation split itself they would flatter.
    thresholds = best_thresholds(chosen_on.sigmoid().numpy(), known.numpy())
    enough = ((known == 1).sum(dim=0) >= FEWEST_FOR_THRESHOLD) & (known == 0).any(dim=0)
    few = int((~enough).sum())
    if few:
        logger.info(
            f"Thresholds: {few} of {len(thresholds)} classes have fewer than {FEWEST_FOR_THRESHOLD} positives, or no "
            "negative, in the held-out part, and keep 0.5"
        )
    found = f1_figures(decide(scores.sigmoid().numpy(), thresholds), truth.numpy())
    if math.isnan(found.micro):
        return thresholds.tolist(), {}
    figures = dict(micro_f1_chosen=100 * found.micro, macro_f1_chosen=100 * found.macro)
    return thresholds.tolist(), figures


def evaluate_split(run: Run, split: str, model: nn.Module, progress: Progress | None) -> Evaluation:
    """Evaluate a student on ``val`` or ``select``, beside what its teacher has predicted."""
    return evaluate(
        model,
        run.loaders[split],
        run.precision,
        split_settings(run, split),
        teacher=run.teacher_predictions.get(split),
        progress=progress,
    )


def split_settings(run: Run, split: str) -> EvaluationOptions:
    """Return how ``val`` or ``select`` is evaluated, as the flags say."""
    return EvaluationOptions(
        run.world.distributed,
        run.settings.evaluation.tta,
        groups=run.data.groups,
        has_truth=not is_unlabeled(getattr(run.data, split)),
        target_kind=run.data.target_kind,
    )


def evaluate_few_shot(
    run: Run,
    test: FewShotTest,
    model: nn.Module,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Test a student on the episodes of ``--few-shot-eval``."""
    # A compiled model is asked through the one in it, whose methods are not compiled.
    encoder = unwrap_model(model).eval()
    settings = EvaluationOptions(run.world.distributed)
    features = extract_features(
        lambda images: pooled_features(encoder, images),
        run.loaders["few_shot"],
        run.precision,
        settings,
        progress,
    )
    return test.measure(features)


def selection_metric(
    metric: str, by_teacher: bool, figures: dict[str, dict], terms: dict[str, float], epoch: int = 0
) -> float:
    """Return what ranks an epoch: the held-out part where there is one, else the validation split, else the loss.

    Of several kinds of episodes the first one counts. What is not a number is the worst. Where the true labels allow no
    such figure, the last epoch ranks first.

    Args:
        metric: its name, as ``--eval-metric`` has it.
        by_teacher: a held-out part is scored against the teacher: its ground truth is not to be used.
        figures: by split.
        terms: averages of the loss and its terms.
        epoch: its number.
    """
    sign = -1.0 if metric == "loss" else 1.0  # the loss falls
    # A held-out part is for the choice alone, so that the validation split is not chosen on.
    held_out = figures.get("select", figures.get("val"))
    if metric == "few-shot" and "few_shot" in figures:
        value = next(iter(figures["few_shot"].values()))
    elif by_teacher and "select" in figures:
        value = sign * figures["select"]["agreement"]
    elif held_out is not None:
        value = held_out.get(metric, float(epoch))
    else:
        value = -sign * terms["loss"]
    # Nothing compares with NaN: the first epoch to have it would stay the best.
    return value if math.isfinite(value) else -sign * math.inf
