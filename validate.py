#!/usr/bin/env python3
"""Evaluate anything that timm can load, with or without its weak teacher beside it.

    python validate.py --model hf-hub:me/my-student --data-dir /data/imagenet
    python validate.py --checkpoint output/train/my-run
"""

from w2s_plugins.versions import check_versions

check_versions("validate.py")  # an import of what is too old would fail in its own words

from w2s_plugins.cli import Command, parse, validate_parser
from w2s_plugins.cli.forms import TEST_EPISODES, count_episodes, parse_shapes
from w2s_plugins.errors import UserError, exit_now, one_line, run_main

if __name__ == "__main__":  # --help and wrong flags are answered before the seconds that it takes to import torch
    COMMAND = run_main(lambda: parse(validate_parser()), "validate.py")

import argparse
import dataclasses
import logging
import os
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.distributed as dist
from timm.utils import check_batch_size_retry, decay_batch_step, random_seed
from torch.utils.data import Dataset

from w2s_plugins.build import validate as build
from w2s_plugins.build.data import draw_few_shot_test
from w2s_plugins.build.device import create_precision, join_processes
from w2s_plugins.build.loaders import loader_settings
from w2s_plugins.build.validate import Candidate, Subject
from w2s_plugins.data.datasets import num_classes_of
from w2s_plugins.data.loaders import LoaderSettings
from w2s_plugins.distributed.world import Precision, World, dealt_rows, meet
from w2s_plugins.engine.evaluation import Evaluation, EvaluationSettings, evaluate
from w2s_plugins.engine.few_shot import extract_features
from w2s_plugins.files import to_csv, to_json, write_text
from w2s_plugins.labels.splits import TestSet
from w2s_plugins.metrics.figures import format_figures
from w2s_plugins.metrics.pgr import no_gap_hint, performance_gap_recovered
from w2s_plugins.models.features import pooled_features
from w2s_plugins.monitor import Console, format_table, setup_logging
from w2s_plugins.run.record import refuse_unmeasured
from w2s_plugins.study.outcome import intervals
from w2s_plugins.teachers.stored import answers_to, own_features
from w2s_plugins.teachers.teacher import Teacher

_logger = logging.getLogger("validate")


def main(command: Command | None = None) -> None:
    args, given = command or parse(validate_parser())
    setup_logging(primary=int(os.environ.get("RANK", "0")) == 0)
    candidates = build.resolve_validate_args(args, given)
    world = join_processes(args)
    if len(candidates) > 1:
        results = validate_all(args, candidates, world)
    elif args.retry:
        results = validate_retrying(args, candidates[0], world)
    else:
        results = validate(args, candidates[0], world, args.batch_size)
    if world.primary:
        if args.results_file:
            write_results(Path(args.results_file), results, args.results_format)
        print(f"\n{results_table(results)}")
        print(f"--result\n{to_json(results, indent=4)}")
        refuse_unmeasured(results if isinstance(results, list) else [results], "measured")
    if world.distributed:
        meet()
        dist.destroy_process_group()
        exit_now(0)


def validate(
        args: argparse.Namespace,
        candidate: Candidate,
        world: World,
        batch_size: int,
        keep: dict[str, Evaluation] | None = None,
) -> dict:
    """Evaluate one model, its teacher and its ceiling; returns the row of the results, and keeps its evaluations."""
    keep = {} if keep is None else keep
    random_seed(args.seed)
    counted = build.read_valid_labels(args.valid_labels)
    subject = build.create_subject(args, candidate, world.device)
    dataset = build.open_dataset(args, subject, counted)
    precision = create_precision(args, world)
    settings = dataclasses.replace(loader_settings(args, precision, world), batch_size=batch_size)
    loader = build.create_loader(args, dataset, subject, settings)
    teacher = build.open_teacher(args, subject, dataset, precision)
    if args.few_shot:
        figures = few_shot_figures(args, subject, dataset, loader, settings, teacher, precision, world)
    else:
        real_labels = build.open_real_labels(args.real_labels, dataset, subject) if args.real_labels else None
        tests = build.open_tests(args, subject, dataset, counted)
        found = keep[""] = evaluate(
            build.compiled(args, subject.model),
            loader,
            precision,
            EvaluationSettings(
                world.distributed, args.channels_last, valid_labels=counted,
                groups=build.open_groups(args, dataset, subject)),
            teacher=teacher and answers_to(teacher, dataset, settings, tf_preprocessing=args.tf_preprocessing),
            on_output=(lambda logits, _: real_labels.add_result(logits)) if real_labels else None,
            progress=Console(world.primary, 0).wrap(candidate.model),
        )
        if real_labels:
            found.metrics.update({f"top{k}": real_labels.get_accuracy(k=k) for k in (1, 5)})
        figures = {
            **student_figures(found),
            **(averaged_metrics(found, args.metrics_avg, world) if args.metrics_avg else {}),
            **{k: subject.data_config[k] for k in ("crop_pct", "interpolation")},
        }
        ceilings = ceilings_of(args, candidate, world, batch_size)
        if teacher is not None:
            figures.update(teacher_figures(found, ceilings.get(""), world))
        sets, failed = {}, {}
        for name, test in tests.items():
            try:
                keep[name] = on_test_set(args, name, test, subject, settings, teacher, precision)
            except UserError as error:
                if world.distributed:  # the other processes wait in it
                    raise
                failed[name] = str(error)
                continue
            sets[name] = student_figures(keep[name]) | (
                teacher_figures(keep[name], ceilings.get(name), world) if teacher is not None else {})
        figures |= ({"test_sets": sets} if sets else {}) | ({"failed_test_sets": failed} if failed else {})
    return dict(
        model=candidate.model,
        **figures,
        param_count=round(subject.params / 1e6, 2),
        img_size=subject.data_config["input_size"][-1],
        **(dict(checkpoint=candidate.checkpoint) if candidate.checkpoint else {}),
        **(dict(teacher=args.teacher) if args.teacher else {}),
    )


def on_test_set(
        args: argparse.Namespace,
        name: str,
        test: TestSet,
        subject: Subject,
        settings: LoaderSettings,
        teacher: Teacher | None,
        precision: Precision,
) -> Evaluation:
    """Evaluate the model, and its teacher, on a test set beside the split. Raises `UserError` with its name."""
    try:
        return evaluate(
            build.compiled(args, subject.model), build.create_loader(args, test.dataset, subject, settings), precision,
            EvaluationSettings(settings.world_size > 1, args.channels_last, valid_labels=test.counted),
            teacher=teacher and answers_to(teacher, test.dataset, settings, tf_preprocessing=args.tf_preprocessing))
    except UserError as error:
        raise UserError(f"{test.flag} {name}: {error}") from error


def student_figures(found: Evaluation) -> dict[str, float]:
    """Return accuracy, error and loss of the model."""
    top1, top5 = found.metrics["top1"], found.metrics["top5"]
    return dict(
        top1=round(top1, 4), top1_err=round(100 - top1, 4),
        top5=round(top5, 4), top5_err=round(100 - top5, 4),
        loss=round(found.metrics["loss"], 6),
        **{k: round(v, 4) for k, v in found.metrics.items() if k.startswith("top1_")})


def averaged_metrics(found: Evaluation, average: str, world: World) -> dict[str, float]:
    """Return precision, recall and F1 in percent, as ``--metrics-avg`` says."""
    from sklearn.metrics import precision_recall_fscore_support  # takes most of a second

    labels, predictions = (dealt_rows(t, world.distributed) for t in (found.targets, found.predictions))
    scores = precision_recall_fscore_support(labels, predictions, average=average, zero_division=0)
    names = ("precision", "recall", "f1_score")
    return {f"{average}_{name}": round(100 * float(s), 4) for name, s in zip(names, scores)}


def teacher_figures(found: Evaluation, ceiling: Evaluation | float | None, world: World) -> dict[str, float]:
    """Return the teacher's accuracy, what the student has of it, and the PGR where there is a ceiling.

    Args:
        found: evaluation of student and teacher.
        ceiling: its accuracy or, for intervals over test samples, its evaluation.
        world: all ranks take part.
    """
    figures = {f"teacher_{k}": v for k, v in found.teacher_metrics.items() if k.startswith("top1")}
    figures |= {name: found.metrics[name] for name in ("agreement", "copied", "misfit")}
    if isinstance(ceiling, Evaluation):
        figures |= bounds(found, ceiling, world)
        ceiling = ceiling.metrics["top1"]
    if ceiling is not None:
        figures["ceiling_top1"], weak = ceiling, found.teacher_metrics["top1"]
        if hint := no_gap_hint(weak, ceiling):
            _logger.warning(f"WARNING: {hint}")
        else:
            figures["pgr"] = performance_gap_recovered(weak, found.metrics["top1"], ceiling)
    return {k: round(v, 4) for k, v in figures.items()}


def bounds(found: Evaluation, ceiling: Evaluation, world: World) -> dict[str, float]:
    """Return the ends of the intervals over test samples that ``--protocol w2s`` reports, as far as there are any."""
    said = (found.teacher_predictions, found.predictions, ceiling.predictions)
    rows = torch.stack([*(who == found.targets for who in said), said[0] == said[1]], dim=1)
    figures = intervals(*dealt_rows(rows, world.distributed).T.numpy())
    names = dict(weak="teacher_top1", student="top1", ceiling="ceiling_top1", agreement="agreement", pgr="pgr")
    return {f"{name}_{end}": figures[key][end] for key, name in names.items() for end in ("low", "high")
            if figures[key][end] is not None}


def ceilings_of(
        args: argparse.Namespace, student: Candidate, world: World, batch_size: int) -> dict[str, Evaluation | float]:
    """Return the ceiling by test set, that of the split under no name: its accuracy where that is given, or what a run
    or a checkpoint reaches on the same data; empty without one.
    """
    if not args.ceiling_checkpoint:
        return {} if args.ceiling_acc is None else {"": args.ceiling_acc}
    own, ceiling = build.resolve_ceiling(args, student)
    found: dict[str, Evaluation | float] = {}
    validate(own, ceiling, world, batch_size, found)
    return {name: one.metrics["top1"] for name, one in found.items()} if args.real_labels else found


def few_shot_figures(
        args: argparse.Namespace,
        subject: Subject,
        dataset: Dataset,
        loader: Iterable,
        settings: LoaderSettings,
        teacher: Teacher | None,
        precision: Precision,
        world: World,
) -> dict[str, object]:
    """Test the frozen encoder, and its teacher's, on episodes."""
    test = draw_few_shot_test(dataset, args, args.few_shot, "--few-shot")
    encoders = {"": (lambda images: pooled_features(subject.model, images), loader)}
    if teacher is not None:
        encoders["teacher_"] = own_features(teacher.members[0], dataset, settings)
    figures = {}
    for who, (encode, images) in encoders.items():
        features = extract_features(
            encode, images, precision, distributed=world.distributed, channels_last=args.channels_last,
            progress=Console(world.primary, 0).wrap(subject.candidate.model))
        figures.update({f"{who}{k}": round(v, 4) for k, v in test.measure(features).items()})
    return dict(
        **figures,
        split=args.split,
        classes=num_classes_of(dataset),
        episodes=count_episodes(args.few_shot, "--few-shot", TEST_EPISODES, 2),
        queries=args.queries,
        classifier=args.few_shot_classifier,
        few_shot_seed=args.few_shot_seed,
    )


# ---------------------------------------------------------------- several models


def validate_retrying(args: argparse.Namespace, candidate: Candidate, world: World) -> dict:
    """Evaluate with ever smaller batches as long as memory runs out."""
    size = args.batch_size
    while size:
        try:
            return validate(args, candidate, world, size)
        except RuntimeError as error:
            if not check_batch_size_retry(str(error)):
                raise
            _logger.warning(f"{one_line(error)}: trying a batch size of {decay_batch_step(size)}")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        size = decay_batch_step(size)
    raise UserError(f"--model {candidate.model}: does not fit into memory, even with a batch size of 1")


def validate_all(args: argparse.Namespace, candidates: list[Candidate], world: World) -> list[dict]:
    """Evaluate several models; one that fails is reported and left out. The best come first."""
    results = []
    for number, candidate in enumerate(candidates, start=1):
        _logger.info(f"{number} of {len(candidates)}: {candidate.model} {candidate.checkpoint}")
        try:
            results.append(validate_retrying(args, candidate, world))
        except UserError as error:
            _logger.warning(f"left out: {error}")
    if not results:
        raise UserError("none of the models could be evaluated; the reasons are above")
    ranked_by = str(parse_shapes(args.few_shot, args.queries, "--few-shot")[0]) if args.few_shot else "top1"
    return sorted(results, key=lambda r: r[ranked_by], reverse=True)


# ---------------------------------------------------------------- results


def flat(results: dict | list[dict]) -> list[dict]:
    """Return a row for each model and, below it, for each of its test sets."""
    rows = []
    for result in results if isinstance(results, list) else [results]:
        own = {k: v for k, v in result.items() if k not in ("test_sets", "failed_test_sets")}
        sets = result.get("test_sets", {})
        told = {k: own[k] for k in ("model", "checkpoint", "teacher") if k in own}
        rows += [{**own, **({"test_set": ""} if sets else {})},
                 *({**told, "test_set": name, **figures} for name, figures in sets.items())]
    return rows


def results_table(results: dict | list[dict]) -> str:
    """Return the results as a table for people."""
    columns = {"top1": "top-1", "top5": "top-5", "top1_many": "top-1 many", "top1_medium": "top-1 medium",
               "top1_few": "top-1 few", "loss": "loss", "teacher_top1": "teacher top-1",
               "agreement": "agreement", "ceiling_top1": "ceiling", "pgr": "PGR", "param_count": "M params",
               "img_size": "px"}
    rows = flat(results)
    shapes = [k.removesuffix("_ci95") for k in rows[0] if k.endswith("_ci95")]  # few-shot
    columns = {**{s: s.replace("_", " ") for s in shapes}, **columns}
    rows = [{**r, **format_figures({k: r[k] for s in shapes for k in (s, f"{s}_ci95")})} for r in rows]
    shown = [c for c in columns if any(c in r for r in rows)]
    several = isinstance(results, list)
    names = [Path(r["checkpoint"]).name if several and "checkpoint" in r else r["model"] for r in rows]
    names = [f"{name}, {r['test_set']}" if r.get("test_set") else name for name, r in zip(names, rows)]
    return format_table(
        [[name, *(r.get(c) for c in shown)] for name, r in zip(names, rows)], ["", *(columns[c] for c in shown)])


def write_results(path: Path, results: dict | list[dict], fmt: str) -> None:
    """Write the results to a file, as csv or json."""
    write_text(path, to_json(results, indent=4) + "\n" if fmt == "json" else to_csv(flat(results)))


if __name__ == "__main__":
    run_main(lambda: main(COMMAND), "validate.py")
