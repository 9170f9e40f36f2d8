#!/usr/bin/env python3
"""Evaluate anything that timm can load, with or without its weak teacher beside it.

python validate.py --model hf-hub:me/my-student --data-dir /data/imagenet
python validate.py --checkpoint output/train/my-run
"""

from w2s_plugins.errors import run_main
from w2s_plugins.registry import check_versions

# Packages that are too old would fail below, with errors of their own.
if __name__ == "__main__":
    run_main(check_versions, "validate.py")

from w2s_plugins.cli import Command, parse, read_flags, validate_parser
from w2s_plugins.errors import UserError, exit_now, logger, one_line
from w2s_plugins.settings.forms import TEST_EPISODES, count_episodes

# --help, wrong flags and wrong tables are answered before the seconds that it takes to import torch.
if __name__ == "__main__":
    COMMAND = run_main(lambda: read_flags(validate_parser()), "validate.py")

import dataclasses
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from timm.utils.decay_batch import check_batch_size_retry, decay_batch_step
from timm.utils.random import random_seed
from torch import Tensor

from w2s_plugins.data import AnyDataset
from w2s_plugins.data.datasets import num_classes_of
from w2s_plugins.data.loaders import LoaderSettings
from w2s_plugins.distributed.world import Precision, World, barrier, gather_in_dataset_order
from w2s_plugins.files import note_written, to_csv, to_json, write_text
from w2s_plugins.metrics.figures import (
    HEADINGS,
    HEADLINE,
    OF_ONE_MODEL,
    format_figures,
    headline_name,
    of_few,
)
from w2s_plugins.metrics.pgr import no_gap_hint, performance_gap_recovered
from w2s_plugins.models.feature_extraction import pooled_features
from w2s_plugins.monitor import Console, format_table, setup_logging
from w2s_plugins.resolve.validation import Candidate, resolve_validate_args
from w2s_plugins.settings.composite import ValidateSettings
from w2s_plugins.teachers.stored import own_answers, own_features
from w2s_plugins.teachers.teacher import Teacher
from w2s_plugins.training import validate as parts
from w2s_plugins.training.data import draw_few_shot_test
from w2s_plugins.training.device import create_precision, join_processes
from w2s_plugins.training.evaluation import (
    Evaluation,
    EvaluationOptions,
    Progress,
    evaluate,
    evaluate_teacher,
    extract_features,
)
from w2s_plugins.training.loaders import loader_settings
from w2s_plugins.training.record import evaluated_on


def main(command: Command | None = None) -> None:
    """Evaluate what the command line asks for; ``command`` is that line if it has been parsed already."""
    args, given = command or parse(validate_parser())
    setup_logging(primary=int(os.environ.get("RANK", "0")) == 0)
    settings, candidates = resolve_validate_args(args, given)
    world = join_processes(settings.compute)
    results = validate_all(settings, candidates, world)
    # Rank 0 writes and shows what all have measured together.
    if world.primary:
        content = to_json(results if len(candidates) > 1 else results[0], indent=4)
        report = settings.report
        if report.results_file:
            text = content + "\n" if report.results_format == "json" else to_csv(results)
            file = Path(report.results_file)
            write_text(file, text)
            note_written(file)
        print(f"\n{results_table(results)}")
        print(f"--result\n{content}")
    if world.distributed:
        barrier()
        dist.destroy_process_group()
        exit_now(0)


def validate_all(
    settings: ValidateSettings,
    candidates: list[Candidate],
    world: World,
) -> list[dict]:
    """Evaluate the models, the best first; of several, one that fails is reported and left out."""
    batch_size = settings.data.batch_size
    if len(candidates) == 1:
        evaluate_one = validate_retrying if settings.report.retry else validate
        return [evaluate_one(settings, candidates[0], world, batch_size)]
    # As timm's script does for `--model all`: what does not fit or cannot be read does not keep back the others.
    results = []
    for number, candidate in enumerate(candidates, start=1):
        logger.info(f"{number} of {len(candidates)}: {candidate.model} {candidate.checkpoint}")
        try:
            results.append(validate_retrying(settings, candidate, world, batch_size))
        except UserError as error:
            logger.warning(f"left out: {error}")
    if not results:
        raise UserError("none of the models could be evaluated; the reasons are above")
    # Of few-shot figures the first kind counts, which a row begins with.
    ranked_by = [*results[0]][1] if settings.episodes.few_shot_eval else headline_name(results[0])
    return sorted(results, key=lambda result: result.get(ranked_by, 0), reverse=True)


def validate_retrying(
    settings: ValidateSettings,
    candidate: Candidate,
    world: World,
    batch_size: int,
) -> dict:
    """Evaluate with ever smaller batches as long as memory runs out."""
    while batch_size:
        try:
            return validate(settings, candidate, world, batch_size)
        except RuntimeError as error:
            if not check_batch_size_retry(str(error)):
                raise
            batch_size = decay_batch_step(batch_size)
            logger.warning(f"{one_line(error)}: trying a batch size of {batch_size}")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    raise UserError(
        f"--model {candidate.model}: does not fit into memory, even with a batch size of 1"
    )


@dataclass(frozen=True)
class Setup:
    """What one model is evaluated with.

    Args:
        subject: the model, and how its images are made.
        dataset: the split.
        loader: its batches, of images as the model takes them.
        loading: how they are loaded.
        teacher: what the model is compared with.
        precision: of both.
        options: of the evaluation.
        progress: shows how far it is.
    """

    subject: parts.Subject
    dataset: AnyDataset
    loader: Iterable
    loading: LoaderSettings
    teacher: Teacher | None
    precision: Precision
    options: EvaluationOptions
    progress: Progress | None


def validate(
    settings: ValidateSettings,
    candidate: Candidate,
    world: World,
    batch_size: int,
) -> dict:
    """Evaluate one model and its teacher; return the row of the results."""
    # Model first: it says how images are prepared, and the teacher sees them through its input.
    form, compute = settings.subject, settings.compute
    random_seed(settings.seed)
    counted = parts.read_valid_labels(form.valid_labels)
    subject = parts.create_subject(settings, candidate, world.device)
    dataset = parts.open_dataset(settings, subject, counted)
    precision = create_precision(compute, world, subject.layout)
    teacher = parts.reference_teacher(settings, subject, dataset, precision)
    loading = loader_settings(settings.data, precision, world)
    loading = dataclasses.replace(loading, batch_size=batch_size)
    setup = Setup(
        subject=subject,
        dataset=dataset,
        loader=parts.create_loader(form, dataset, subject, loading),
        loading=loading,
        teacher=teacher,
        precision=precision,
        options=EvaluationOptions(
            world.distributed, target_kind=subject.target_kind, valid_labels=counted
        ),
        progress=Console(world.primary, 0).wrap(candidate.model),
    )
    # On episodes of any classes, or on the classes of the split.
    if settings.episodes.few_shot_eval:
        figures = figures_of_episodes(settings, setup)
    else:
        figures = figures_of_split(settings, setup, world)

    # Figures of two files are compared only if these fields say that they are of the same samples and settings.
    row = dict(
        model=candidate.model,
        **figures,
        param_count=round(subject.params / 1e6, 2),
        img_size=subject.data_config["input_size"][-1],
        **evaluated_on(
            settings.data,
            compute,
            dataset,
            subject.data_config,
            teacher,
            **parts.unlike_training(settings),
        ),
        images=len(dataset),
        weights=subject.weights,
    )
    if candidate.checkpoint:
        row["checkpoint"] = candidate.checkpoint
    if settings.teacher.teacher:
        row["teacher"] = settings.teacher.teacher
    return row


def figures_of_episodes(settings: ValidateSettings, setup: Setup) -> dict[str, object]:
    """Test the frozen encoder on episodes, and its teacher's: both are asked for features alone."""
    subject, precision = setup.subject, setup.precision
    shapes, queries = settings.episodes.few_shot_eval or "", settings.episodes.queries
    test = draw_few_shot_test(setup.dataset, shapes, queries, "--few-shot")
    # the student, on its own images
    features = extract_features(
        lambda images: pooled_features(subject.model, images),
        setup.loader,
        precision,
        setup.options,
        setup.progress,
    )
    figures: dict[str, object] = {
        shape: round(value, 4) for shape, value in test.measure(features).items()
    }
    # the teacher sees the same images as it prepares them itself
    if setup.teacher is not None:
        encode, images = own_features(setup.teacher.members[0], setup.dataset, setup.loading)
        features = extract_features(encode, images, precision, setup.options, setup.progress)
        for shape, value in test.measure(features).items():
            figures[f"teacher_{shape}"] = round(value, 4)
    return figures | dict(
        classes=num_classes_of(setup.dataset),
        episodes=count_episodes(shapes, "--few-shot", TEST_EPISODES, 2),
        queries=queries,
        classifier="cosine",
    )


def figures_of_split(settings: ValidateSettings, setup: Setup, world: World) -> dict[str, object]:
    """Evaluate the model on a split, and its teacher."""
    form, subject, precision = settings.subject, setup.subject, setup.precision
    real_labels = None
    if form.real_labels:
        real_labels = parts.open_real_labels(form.real_labels, setup.dataset)
    groups = parts.open_groups(settings, setup.dataset, subject)
    how = dataclasses.replace(setup.options, groups=groups)
    # The teacher is asked first, of the plain images through its own transform, so that the student can be compared
    # with what it says.
    weak = None
    if setup.teacher is not None:
        asked = own_answers(
            setup.teacher,
            setup.dataset,
            setup.loading,
            setup.loader,
            tf_preprocessing=form.tf_preprocessing,
        )
        weak = evaluate_teacher(*asked, precision, how, setup.progress)
    logits: list[Tensor] = []  # of each batch, on the CPU
    evaluation = evaluate(
        parts.compiled(form, settings.compute, subject.model),
        setup.loader,
        precision,
        how,
        teacher=None if weak is None else weak.predictions,
        on_logits=(lambda batch: logits.append(batch.cpu())) if real_labels else None,
        progress=setup.progress,
    )
    # Labels that people have given anew take the place of its own; the last batch was filled up, with no images.
    if real_labels:
        answers = torch.cat(logits)[: len(evaluation.predictions)]
        real_labels.add_result(gather_in_dataset_order(answers, world.distributed))
        for k in (1, 5):
            accuracy = real_labels.get_accuracy(k=k)
            if isinstance(accuracy, float):  # without k it is a dict of all
                evaluation.metrics[f"top{k}"] = accuracy
    # the student, then what it has of its teacher, then averages over classes
    figures: dict[str, object] = {**student_figures(evaluation)}
    if weak is not None:
        figures |= teacher_figures(evaluation, weak, settings.evaluation.ceiling_acc)
    if settings.report.metrics_avg:
        figures |= averaged_metrics(evaluation, settings.report.metrics_avg, world)
    return figures | {k: subject.data_config[k] for k in ("crop_pct", "interpolation")}


# ---------------------------------------------------------------- figures


def student_figures(evaluation: Evaluation) -> dict[str, float]:
    """Return accuracy, error and loss of the model; of several classes an image mAP and F1 in place of the first two."""
    figures = {}
    headline = headline_name(evaluation.metrics)
    for name in OF_ONE_MODEL[headline]:
        # true labels of several classes may allow no mAP
        if name not in evaluation.metrics:
            continue
        figures[name] = round(evaluation.metrics[name], 4)
        if headline == HEADLINE:
            figures[f"{name}_err"] = round(100 - evaluation.metrics[name], 4)
    figures["loss"] = round(evaluation.metrics["loss"], 6)
    # Of a long tail also the groups of classes.
    for name, value in evaluation.metrics.items():
        if name.startswith("top1_"):
            figures[name] = round(value, 4)
    return figures


def averaged_metrics(evaluation: Evaluation, average: str, world: World) -> dict[str, float]:
    """Return precision, recall and F1 in percent, as ``--metrics-avg`` says."""
    from sklearn.metrics import precision_recall_fscore_support  # takes most of a second

    labels = gather_in_dataset_order(evaluation.targets, world.distributed)
    if labels.isnan().any():
        raise UserError(
            "--metrics-avg: some true labels are unknown; leave the flag out, F1 is measured without them"
        )
    predictions = gather_in_dataset_order(evaluation.predictions, world.distributed)
    precision, recall, f1_score, _ = precision_recall_fscore_support(
        labels,
        predictions,
        average=average,
        zero_division=0,  # pyright: ignore[reportArgumentType]  # its default alone is a text
    )
    scores = dict(precision=precision, recall=recall, f1_score=f1_score)
    return {f"{average}_{name}": round(100 * float(score), 4) for name, score in scores.items()}


def teacher_figures(
    evaluation: Evaluation, teacher: Evaluation, ceiling: float | None
) -> dict[str, float]:
    """Return the teacher's accuracy, what the student has of it, and the PGR where there is a ceiling."""
    headline = headline_name(teacher.metrics)
    weak, student = (one.metrics.get(headline) for one in (teacher, evaluation))
    figures = {
        f"teacher_{name}": value
        for name, value in teacher.metrics.items()
        if name.startswith(headline) or (headline != HEADLINE and name in OF_ONE_MODEL[headline])
    }
    for name in ("agreement", "copied"):
        figures[name] = evaluation.metrics[name]
    if ceiling is not None and weak is not None and student is not None:
        figures[f"ceiling_{headline}"] = ceiling
        pgr = performance_gap_recovered(weak, student, ceiling)
        if pgr is None:
            logger.warning(f"WARNING: {no_gap_hint(weak, ceiling)}")
        else:
            figures["pgr"] = pgr
    return {name: round(value, 4) for name, value in figures.items()}


# ---------------------------------------------------------------- results


COLUMNS = HEADINGS | {"param_count": "M params", "img_size": "px"}


def results_table(results: list[dict]) -> str:
    """Return the results as a table for people."""
    # Few-shot figures come first, each with its interval.
    shapes = [name.removesuffix("_ci95") for name in results[0] if name.endswith("_ci95")]
    columns = {shape: shape.replace("_", " ") for shape in shapes} | COLUMNS
    shown = [name for name in columns if any(name in result for result in results)]

    # Of several checkpoints of one model each is called by its file.
    lines = []
    for result in results:
        name = result["model"]
        if len(results) > 1 and "checkpoint" in result:
            name = Path(result["checkpoint"]).name
        # a figure on few images stands with their number
        name += of_few(result.get("images"))
        of_episodes = {
            key: value for key, value in result.items() if key.removesuffix("_ci95") in shapes
        }
        texts = result | format_figures(of_episodes)
        lines.append([name, *map(texts.get, shown)])
    return format_table(lines, ["", *(columns[column] for column in shown)])


if __name__ == "__main__":
    run_main(lambda: main(COMMAND), "validate.py")
