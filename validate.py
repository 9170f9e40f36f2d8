#!/usr/bin/env python3
"""Evaluate anything that timm can load, with or without its weak teacher beside it.

    python validate.py --model hf-hub:me/my-student --data-dir /data/imagenet
    python validate.py --checkpoint output/train/my-run
"""

from w2s_plugins.versions import check_versions

check_versions("validate.py")  # an import of what is too old would fail in its own words

from w2s_plugins.cli import parse, train_parser, validate_parser
from w2s_plugins.errors import UserError, exit_now, one_line, run_main

if __name__ == "__main__":  # --help and wrong flags are answered before the seconds that it takes to import torch
    run_main(lambda: parse(validate_parser()), "validate.py")

import argparse
import copy
import logging
import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torch.distributed as dist
from sklearn.metrics import precision_recall_fscore_support
from timm.data import RealLabelsImagenet
from timm.data.model_config import resolve_input_data_config
from timm.data.naflex_loader import create_naflex_loader
from timm.layers import apply_test_time_pool
from timm.utils import check_batch_size_retry, decay_batch_step, natural_key, random_seed, reparameterize_model
from torch import nn
from torch.utils.data import Dataset

from w2s_plugins.build.data import draw_few_shot_test
from w2s_plugins.build.device import create_precision, join_processes
from w2s_plugins.build.resolve import check_model_name, resolve_data_dir, resolve_precision, split_names
from w2s_plugins.cli.declare import Role
from w2s_plugins.data import create_eval_loader, open_split, parse_shapes, take_slice
from w2s_plugins.data.datasets import check_dataset_name, num_classes_of
from w2s_plugins.distributed.world import Precision, World, dealt_rows
from w2s_plugins.files import to_csv, to_json, write_text
from w2s_plugins.metrics.figures import format_figures
from w2s_plugins.metrics.long_tail import CLASS_COUNTS, ShotGroups, count_classes, read_counts
from w2s_plugins.metrics.pgr import performance_gap_recovered
from w2s_plugins.models.class_names import names_of_data, names_of_model, warn_of_names
from w2s_plugins.models.features import pooled_features
from w2s_plugins.models.foreign import refuse_addresses
from w2s_plugins.models.loading import create_model, find_weights, load_weights, read_weights
from w2s_plugins.models.shards import is_sharded
from w2s_plugins.monitor import Console, format_table, setup_logging
from w2s_plugins.registry import load_plugins
from w2s_plugins.run.args_file import read_run_args
from w2s_plugins.run.find import BEST, LAST, SHARDED_BEST, SHARDED_LAST
from w2s_plugins.teachers.teacher import StudentInput, Teacher, create_teacher
from w2s_plugins.train.engine import Evaluation, evaluate
from w2s_plugins.train.few_shot import extract_features

_logger = logging.getLogger("validate")

# pretrained weights for other label sets or tasks, which `--model all` leaves out, as timm's script does
OTHER_LABELS = ["*_in21k", "*_in22k", "*in12k", "*_dino", "*fcmae", "*seer"]


@dataclass
class Subject:
    """What is evaluated: a model, ready on the device, and how its input is made."""

    model: nn.Module
    data_config: dict
    params: int
    crop_pct: float
    class_names: list[str] | None = None


def main() -> None:
    args, given = parse(validate_parser())
    setup_logging(primary=int(os.environ.get("RANK", "0")) == 0)
    if args.few_shot and "split" not in given:
        args.split = "novel"
    args.recorded, args.plugins_of_run = {}, []
    use_run_flags(args, given)
    load_plugins(args.plugins)
    check_dataset_name(args.dataset)
    resolve_data_dir(args)
    resolve_precision(args, given)
    if args.few_shot:
        parse_shapes(args.few_shot, args.queries, "--few-shot")
        if args.naflex_loader or args.ceiling_checkpoint or args.ceiling_acc is not None or "train_counts" in given:
            raise UserError("--few-shot cannot be combined with --naflex-loader, --train-counts or a ceiling")
    world = join_processes(args)
    candidates = list_candidates(args)
    if len(candidates) > 1:
        results = validate_all(args, candidates, world)
    else:
        args.model, args.checkpoint = candidates[0]
        results = validate_retrying(args, world) if args.retry else validate(args, world)
    if world.primary:
        if args.results_file:
            write_results(Path(args.results_file), results, args.results_format)
        print(f"\n{results_table(results)}")
        print(f"--result\n{to_json(results, indent=4)}")
    if world.distributed:
        dist.barrier()
        dist.destroy_process_group()
        exit_now(0)


# ---------------------------------------------------------------- what is evaluated


def use_run_flags(args: argparse.Namespace, given: set[str]) -> None:
    """Let the args.yaml beside the checkpoint set what was not given by hand: the run's own figure comes out."""
    path = Path(args.checkpoint) if args.checkpoint else None
    if path is not None and not path.exists():
        raise UserError(f"--checkpoint {path}: no such file or folder")
    is_run = path is not None and path.is_dir() and not is_sharded(path)
    folder = path if path is None or is_run else path.parent
    if folder is None or not (folder / "args.yaml").is_file():
        return
    run_args = read_run_args(folder, "--checkpoint")
    args.plugins_of_run = run_args.get("plugins") or []
    run_flags = taken_over(bool(args.few_shot))
    taken = {k: v for k, v in run_flags.items() if v not in given and run_args.get(k) not in (None, "")}
    refuse_addresses(run_args, taken, f"--checkpoint {folder}")
    for theirs, ours in taken.items():
        setattr(args, ours, run_args[theirs])
    args.recorded = args.model_kwargs if "model_kwargs" in taken else {}
    if "train_counts" not in given and (folder / CLASS_COUNTS).is_file():
        args.train_counts = str(folder / CLASS_COUNTS)
    if "use_train_size" not in given:
        args.use_train_size = True
    if "use_ema" not in given:
        args.use_ema = bool(run_args.get("model_ema")) and not run_args.get("model_ema_force_cpu")
    if is_run:
        best = run_args.get("select") == "best"
        sharded = path / (SHARDED_BEST if best else SHARDED_LAST)
        args.checkpoint = str(sharded if is_sharded(sharded) else path / (BEST if best else LAST))
    if run_args.get("device") == "cpu":
        given.discard("device")


def taken_over(few_shot: bool) -> dict[str, str]:
    """Return the flags of a run that hold for its evaluation, or for its test on episodes, and their names here."""
    kinds: dict[bool, dict[str, str]] = {True: {}, False: {}}
    for name, facts in train_parser().facts().items():
        if facts.evaluation:
            kinds[Role.EPISODES in facts.role][name] = facts.evaluation
    if not few_shot:
        return kinds[False]
    return {k: v for k, v in kinds[False].items() if v not in kinds[True].values()} | kinds[True]


def list_candidates(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Return the (model, checkpoint) pairs that ``--model`` and ``--checkpoint`` stand for."""
    if args.checkpoint and Path(args.checkpoint).is_dir() and not is_sharded(Path(args.checkpoint)):
        files = [p for pattern in ("*.pth.tar", "*.pth", "*.safetensors") for p in Path(args.checkpoint).glob(pattern)]
        if not files:
            raise UserError(f"--checkpoint {args.checkpoint}: the folder has neither args.yaml nor checkpoints")
        return [(args.model, str(p)) for p in sorted(files, key=lambda p: natural_key(p.name))]
    if args.model == "all":
        args.pretrained = True
        return [(name, "") for name in timm.list_models(pretrained=True, exclude_filters=OTHER_LABELS)]
    if Path(args.model).is_file():
        names = [line.strip() for line in Path(args.model).read_text(encoding="utf-8").splitlines()]
        return [(name, "") for name in names if name]
    if any(c in args.model for c in "*?["):
        names = timm.list_models(args.model, pretrained=True)
        if not names:
            raise UserError(f"--model {args.model}: no model with pretrained weights has such a name")
        return [(name, "") for name in names]
    check_known(args)
    return [(args.model, args.checkpoint)]


def check_known(args: argparse.Namespace) -> None:
    """Raise a `UserError` unless timm knows the model, or would with the plugins that its run used."""
    try:
        check_model_name("--model", args.model)
    except UserError as error:
        if not args.plugins_of_run:
            raise
        raise UserError(f"{error}; that run used --plugins {shlex.join(args.plugins_of_run)}, which runs their code: "
                        "give it as well, if you trust them") from error


def create_subject(args: argparse.Namespace, device: torch.device) -> Subject:
    """Create the model with its weights and bring it into the form in which it is evaluated."""
    model = create_model(
        "--model",
        args.model,
        pretrained=args.pretrained or not args.checkpoint,
        inputs=dict(img_size=args.img_size, input_size=args.input_size, in_chans=args.in_chans),
        recorded=args.recorded,
        **{"num_classes": args.num_classes, "global_pool": args.gp, "scriptable": args.torchscript or None,
           **({} if args.recorded else args.model_kwargs)},
    )
    if args.checkpoint:
        file = find_weights(args.checkpoint, "--checkpoint")
        report = load_weights(model, read_weights(file, "--checkpoint", args.use_ema), str(file), "--checkpoint")
        _logger.info(f"{args.model}: {report}")
    class_names = names_of_model(model, args.checkpoint or None, "--checkpoint")
    if args.reparam:
        model = reparameterize_model(model)
    params = sum(p.numel() for p in model.parameters())
    try:
        data_config = resolve_input_data_config(model, args=vars(args), use_test_size=not args.use_train_size)
    except (ValueError, AssertionError) as error:
        raise UserError(f"--model {args.model}: {one_line(error)}") from error
    pooled = False
    if args.test_pool:
        model, pooled = apply_test_time_pool(model, data_config)
    model = model.to(device=device, dtype=getattr(torch, args.model_dtype) if args.model_dtype else None).eval()
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return Subject(model, data_config, params, 1.0 if pooled else data_config["crop_pct"], class_names)


def compiled(args: argparse.Namespace, model: nn.Module) -> nn.Module:
    """Return the model in the compiled or parallel form that the flags ask for."""
    if args.torchscript:
        return torch.jit.script(model)
    if args.torchcompile:
        return torch.compile(model, backend=args.torchcompile, mode=args.torchcompile_mode)
    if args.aot_autograd:
        from functorch.compile import memory_efficient_fusion
        return memory_efficient_fusion(model)
    return nn.DataParallel(model, device_ids=list(range(args.num_gpu))) if args.num_gpu > 1 else model


# ---------------------------------------------------------------- evaluation


def validate(args: argparse.Namespace, world: World) -> dict:
    """Evaluate one model, its teacher and its ceiling; returns the row of the results."""
    random_seed(args.seed)
    subject = create_subject(args, world.device)
    dataset = open_dataset(args, subject)
    precision = create_precision(args, world)
    loader = create_loader(args, dataset, subject, precision, world)
    teacher = open_teacher(args, subject, dataset, world) if args.teacher else None
    if args.few_shot:
        return few_shot_results(args, subject, dataset, loader, teacher, precision, world)
    real_labels = open_real_labels(args, dataset, subject) if args.real_labels else None
    console = Console(world.primary, 0)
    found = evaluate(
        compiled(args, subject.model),
        loader,
        precision,
        distributed=world.distributed,
        channels_last=args.channels_last,
        teacher=teacher,
        valid_labels=read_valid_labels(args.valid_labels) if args.valid_labels else None,
        groups=open_groups(args, dataset, subject) if args.train_counts else None,
        on_output=(lambda logits, _: real_labels.add_result(logits)) if real_labels else None,
        progress=console.wrap(args.model),
    )
    top1, top5 = found.metrics["top1"], found.metrics["top5"]
    if real_labels:
        top1, top5 = real_labels.get_accuracy(k=1), real_labels.get_accuracy(k=5)
    results = dict(
        model=args.model,
        top1=round(top1, 4), top1_err=round(100 - top1, 4),
        top5=round(top5, 4), top5_err=round(100 - top5, 4),
        loss=round(found.metrics["loss"], 6),
        **{k: round(v, 4) for k, v in found.metrics.items() if k.startswith("top1_")},
        **averaged_metrics(args, found, world),
        param_count=round(subject.params / 1e6, 2),
        img_size=subject.data_config["input_size"][-1],
        crop_pct=subject.crop_pct,
        interpolation=subject.data_config["interpolation"],
    )
    if args.checkpoint:
        results["checkpoint"] = args.checkpoint
    results.update(teacher_figures(args, found, top1, precision, world))
    return results


def open_teacher(args: argparse.Namespace, subject: Subject, dataset: Dataset, world: World) -> Teacher:
    """Create the teacher on the input of what is evaluated."""
    return create_teacher(
        split_names(args.teacher),
        split_names(args.teacher_checkpoint),
        StudentInput(subject.data_config["mean"], subject.data_config["std"], subject.data_config["input_size"][0],
                     None if args.few_shot else subject.model.num_classes,
                     None if args.few_shot or args.valid_labels else names_of_data(dataset)),
        device=world.device,
        class_map_file=args.teacher_class_map,
        img_size=args.teacher_img_size,
        model_kwargs=args.teacher_kwargs,
    )


def few_shot_results(
        args: argparse.Namespace,
        subject: Subject,
        dataset: Dataset,
        loader: Iterable,
        teacher: Teacher | None,
        precision: Precision,
        world: World,
) -> dict:
    """Test the frozen encoder, and its teacher's, on episodes; returns the row of the results."""
    if teacher is not None and len(teacher.members) > 1:
        raise UserError("--few-shot: several teachers have no common features; give one --teacher")
    test = draw_few_shot_test(dataset, args, args.few_shot, args.episodes, "--few-shot")
    encoders = {"": lambda images: pooled_features(subject.model, images)}
    if teacher is not None:
        encoders["teacher_"] = lambda images: teacher.encode(images)[0]
    figures = {}
    for who, encode in encoders.items():
        features = extract_features(
            encode, loader, precision, distributed=world.distributed, channels_last=args.channels_last,
            progress=Console(world.primary, 0).wrap(args.model))
        figures.update({f"{who}{k}": round(v, 4) for k, v in test.measure(features).items()})
    return dict(
        model=args.model,
        **figures,
        split=args.split,
        classes=num_classes_of(dataset),
        episodes=args.episodes,
        queries=args.queries,
        classifier=args.few_shot_classifier,
        few_shot_seed=args.few_shot_seed,
        param_count=round(subject.params / 1e6, 2),
        img_size=subject.data_config["input_size"][-1],
        **(dict(checkpoint=args.checkpoint) if args.checkpoint else {}),
        **(dict(teacher=args.teacher) if args.teacher else {}),
    )


def open_named(args: argparse.Namespace, split: str, flag: str, channels: int) -> Dataset:
    """Open a split of the data; ``flag`` named it."""
    return open_split(
        args.dataset, args.data_dir, split, args.class_list, flag=flag, class_map=args.class_map,
        image_root=args.image_root, download=args.dataset_download, load_bytes=args.tf_preprocessing,
        num_samples=args.num_samples, input_img_mode=args.input_img_mode or ("RGB" if channels == 3 else "L"),
        input_key=args.input_key, target_key=args.target_key, trust_remote_code=args.dataset_trust_remote_code,
        seed=args.seed)


def open_groups(args: argparse.Namespace, dataset: Dataset, subject: Subject) -> ShotGroups:
    """Group the classes by their training samples. Raises `UserError` when the counts are not of these classes."""
    flag, path = f"--train-counts {args.train_counts}", Path(args.train_counts)
    num_classes = num_classes_of(dataset) or subject.model.num_classes
    if path.is_file():
        counts = read_counts(path, "--train-counts")
    else:
        split = open_named(args, args.train_counts, "--train-counts", subject.data_config["input_size"][0])
        counts = count_classes(split, num_classes)
    if counts is None:
        raise UserError(f"{flag}: this kind of dataset does not tell its labels without being read; give "
                        f"{CLASS_COUNTS} of a run")
    if len(counts) != num_classes:
        raise UserError(f"{flag}: counts of {len(counts)} classes, the data has {num_classes}")
    groups = ShotGroups(counts, *args.long_tail_thresholds)
    _logger.info(f"Long tail: {groups}")
    return groups


def open_dataset(args: argparse.Namespace, subject: Subject) -> Dataset:
    """Open the split and compare its classes with the model's."""
    channels = subject.data_config["input_size"][0]
    dataset = open_named(args, args.split, "--split", channels)
    if not args.few_shot:
        dataset = take_slice(dataset, args.val_slice, args.slice_seed, "--val-slice")
    classes, expected = num_classes_of(dataset), subject.model.num_classes
    if classes is not None and classes != expected and not (args.valid_labels or args.few_shot):
        raise UserError(f"the data has {classes} classes, {args.model} has {expected}; give --valid-labels FILE with "
                        "the classes that count, --class-map FILE, or the model's own data")
    if not args.few_shot:
        names, counted = subject.class_names, read_valid_labels(args.valid_labels) if args.valid_labels else None
        if names and counted is not None:
            names = [names[i] for i in counted if 0 <= i < len(names)]
        warn_of_names(args.checkpoint or args.model, names, names_of_data(dataset))
    return dataset


def create_loader(
        args: argparse.Namespace,
        dataset: Dataset,
        subject: Subject,
        precision: Precision,
        world: World,
) -> Iterable:
    """Create timm's evaluation loader, of images or of NaFlex patches."""
    config = {**subject.data_config, "crop_pct": subject.crop_pct}
    if not args.naflex_loader:
        return create_eval_loader(
            dataset, config, batch_size=args.batch_size, workers=args.workers, device=world.device,
            dtype=precision.dtype, distributed=world.distributed, prefetch=not args.no_prefetcher,
            pin_memory=args.pin_mem, crop_border_pixels=args.crop_border_pixels, tf_preprocessing=args.tf_preprocessing,
            decoder=args.decoder)
    embeds = getattr(subject.model, "embeds", None)
    return create_naflex_loader(
        dataset, batch_size=args.batch_size, use_prefetcher=not args.no_prefetcher,
        interpolation=config["interpolation"], mean=config["mean"], std=config["std"], num_workers=args.workers,
        crop_pct=config["crop_pct"], crop_mode=config["crop_mode"], crop_border_pixels=args.crop_border_pixels,
        pin_memory=args.pin_mem, device=world.device, img_dtype=precision.dtype,
        patch_size=getattr(embeds, "patch_size", None) or (16, 16), max_seq_len=args.naflex_max_seq_len)


def open_real_labels(args: argparse.Namespace, dataset: Dataset, subject: Subject) -> RealLabelsImagenet:
    """Open the ReaL labels. Raises `UserError` when the file cannot be read or the data is not ImageNet's."""
    try:
        labels = RealLabelsImagenet(dataset.filenames(basename=True), real_json=args.real_labels)
        known = set(labels.real_labels)
    except (OSError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise UserError(f"--real-labels {args.real_labels}: expected the json of the ReaL labels, for images in files "
                        f"({one_line(error)})") from error
    odd = next((name for name in labels.filenames if name not in known), None)
    if odd is not None or subject.model.num_classes != 1000:
        raise UserError(f"--real-labels is for ImageNet's validation images (ILSVRC2012_val_00000001.JPEG, ...) and "
                        f"1,000 classes, not {odd or labels.filenames[0]} and {subject.model.num_classes}")
    return labels


def teacher_figures(
        args: argparse.Namespace,
        found: Evaluation,
        top1: float,
        precision: Precision,
        world: World,
) -> dict[str, float]:
    """Return the teacher's accuracy, the agreement, and the ceiling with the PGR where asked for."""
    figures = {}
    ceiling = args.ceiling_acc
    if args.ceiling_checkpoint:
        ceiling = evaluate_ceiling(args, precision, world)
    if ceiling is not None:
        figures["ceiling_top1"] = round(ceiling, 4)
    if found.teacher_metrics is not None:
        figures.update(
            teacher=args.teacher,
            **{f"teacher_{k}": round(v, 4) for k, v in found.teacher_metrics.items() if k.startswith("top1")},
            agreement=round(found.metrics["agreement"], 4))
        if ceiling is not None:
            figures["pgr"] = round(performance_gap_recovered(found.teacher_metrics["top1"], top1, ceiling), 4)
    elif ceiling is not None:
        raise UserError("--ceiling-acc and --ceiling-checkpoint serve the PGR, which also needs --teacher")
    return figures


def evaluate_ceiling(args: argparse.Namespace, precision: Precision, world: World) -> float:
    """Return the top-1 of the ceiling, a run folder or a checkpoint of the same model, on the same data."""
    other = copy.copy(args)
    other.checkpoint = args.ceiling_checkpoint
    use_run_flags(other, validate_parser().names(Role.DATA | Role.SLICE | Role.WHERE) | {"batch_size"})
    check_known(other)
    subject = create_subject(other, world.device)
    dataset = open_dataset(other, subject)
    loader = create_loader(other, dataset, subject, precision, world)
    found = evaluate(subject.model, loader, precision, distributed=world.distributed, channels_last=args.channels_last)
    return found.metrics["top1"]


def averaged_metrics(args: argparse.Namespace, found: Evaluation, world: World) -> dict[str, float]:
    """Return precision, recall and F1 in percent where ``--metrics-avg`` asks for them."""
    if not args.metrics_avg:
        return {}
    labels, predictions = (dealt_rows(t, world.distributed) for t in (found.targets, found.predictions))
    scores = precision_recall_fscore_support(labels, predictions, average=args.metrics_avg, zero_division=0)
    names = ("precision", "recall", "f1_score")
    return {f"{args.metrics_avg}_{name}": round(100 * float(s), 4) for name, s in zip(names, scores)}


def read_valid_labels(file: str) -> list[int]:
    """Read class indices, one a line."""
    try:
        return [int(line) for line in Path(file).read_text(encoding="utf-8").split()]
    except (OSError, ValueError) as error:
        raise UserError(f"--valid-labels {file}: expected one class number a line ({one_line(error)})") from error


def validate_retrying(args: argparse.Namespace, world: World) -> dict:
    """Evaluate with ever smaller batches as long as memory runs out."""
    size = args.batch_size
    while size:
        args.batch_size = size
        try:
            return validate(args, world)
        except RuntimeError as error:
            if not check_batch_size_retry(str(error)):
                raise
            _logger.warning(f"{one_line(error)}: trying a batch size of {decay_batch_step(size)}")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        size = decay_batch_step(size)
    raise UserError(f"--model {args.model}: does not fit into memory, even with a batch size of 1")


def validate_all(args: argparse.Namespace, candidates: list[tuple[str, str]], world: World) -> list[dict]:
    """Evaluate several models; one that fails is reported and left out. The best come first."""
    results = []
    for number, (model, checkpoint) in enumerate(candidates, start=1):
        _logger.info(f"{number} of {len(candidates)}: {model} {checkpoint}")
        own = copy.copy(args)
        own.model, own.checkpoint = model, checkpoint
        try:
            results.append(validate_retrying(own, world))
        except UserError as error:
            _logger.warning(f"left out: {error}")
    if not results:
        raise UserError("none of the models could be evaluated; the reasons are above")
    ranked_by = "top1"
    if args.few_shot:
        ranked_by = str(parse_shapes(args.few_shot, args.queries, "--few-shot")[0])
    return sorted(results, key=lambda r: r[ranked_by], reverse=True)


# ---------------------------------------------------------------- report


def results_table(results: dict | list[dict]) -> str:
    """Return the results as a table for people."""
    columns = {"top1": "top-1", "top5": "top-5", "top1_many": "top-1 many", "top1_medium": "top-1 medium",
               "top1_few": "top-1 few", "loss": "loss", "teacher_top1": "teacher top-1",
               "agreement": "agreement", "ceiling_top1": "ceiling", "pgr": "PGR", "param_count": "M params",
               "img_size": "px"}
    rows = results if isinstance(results, list) else [results]
    shown = [c for c in columns if any(c in r for r in rows)]
    if "classifier" in rows[0]:  # few-shot
        shapes = [k.removesuffix("_ci95") for k in rows[0] if k.endswith("_ci95")]
        columns = {**{s: s.replace("_", " ") for s in shapes}, **columns}
        shown = [*shapes, *shown]
        rows = [{**r, **format_figures({k: r[k] for s in shapes for k in (s, f"{s}_ci95")})} for r in rows]
    names = [Path(r["checkpoint"]).name if len(rows) > 1 and "checkpoint" in r else r["model"] for r in rows]
    return format_table(
        [[name, *(r.get(c) for c in shown)] for name, r in zip(names, rows)], ["", *(columns[c] for c in shown)])


def write_results(path: Path, results: dict | list[dict], fmt: str) -> None:
    """Write the results to a file, as csv or json."""
    if fmt == "json":
        write_text(path, to_json(results, indent=4) + "\n")
        return
    rows = results if isinstance(results, list) else [results]
    write_text(path, to_csv(rows))


if __name__ == "__main__":
    run_main(main, "validate.py")
