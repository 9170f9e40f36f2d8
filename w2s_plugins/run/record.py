"""The end of a run: the selected student, result.json, the closing table.

`model` (name, initialisation, source with commit and sha256), `teacher` (members with theirs, accuracy, kind of
targets, key and path of caches), `loss`, `data` (identity of each split, label noise, selection of samples, unreadable
ones), `changes` (flags that were changed on the way, by epoch and update), `selected` (rule, epoch, split), `last`,
`best`, `metrics` of the selected epoch, `ceiling_acc`, `pgr`, `command`, `versions`, `warnings`, `export` (SHA-256 of
what an export is loaded from). The model card is made of it.
"""

import argparse
import csv
import json
import logging
import math
import platform
import shlex
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import huggingface_hub
import timm
import torch
import torchvision
from torch import Tensor, nn

from .. import __version__
from ..data.datasets import describe
from ..errors import UserError
from ..files import atomic_write, write_text
from ..labels.splits import Data
from ..losses.base import loss_weights
from ..metrics.figures import format_figures
from ..metrics.long_tail import CLASS_COUNTS, counts_to_json
from ..metrics.pgr import performance_gap_recovered
from ..models.class_names import DIFFER, names_of_data, write_class_names
from ..monitor import format_table
from ..teachers.stored import CachedTargets
from ..teachers.teacher import Teacher
from .checkpoint import describe_change
from .position import Position

_logger = logging.getLogger(__name__)
LABELS, SELECTED = "labels.csv", "selected.txt"
# what the student says of each sample of the validation split, at the last epoch and at the one that ranks first
PREDICTIONS = {"last": "predictions_last.csv", "best": "predictions_best.csv"}


def write_predictions(path: Path, columns: list[str], rows: Tensor) -> None:
    """Write predicted classes atomically: a header, then a line a sample in the order of the data.

    Args:
        path: the file.
        columns: names such as target, student, teacher.
        rows: (N, number of columns) classes.

    Raises:
        UserError: it cannot be written; an earlier file is deleted, so that it is not taken for those of this epoch.
    """
    try:
        with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([columns, *rows.tolist()])
    except UserError:
        _delete(path)
        raise


def put_back(path: Path, content: bytes | None) -> None:
    """Give a file the content that it had before, None for no file; delete it where that cannot be written."""
    try:
        if content is not None:
            with atomic_write(path) as temporary:
                temporary.write_bytes(content)
            return
    except UserError:
        pass
    _delete(path)


def _delete(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


def write_labels(folder: Path, data: Data, split: str) -> None:
    """Write the names of the classes, the labels of the training split, where there is label noise, its class counts,
    where accuracy is measured by them, and which samples were selected.
    """
    write_class_names(folder, names_of_data(data.train))
    if data.groups is not None:
        write_text(folder / CLASS_COUNTS, counts_to_json(split, data.groups.counts))
    if data.noise is not None:
        write_text(folder / LABELS, data.noise.to_csv())
    if data.selection is not None:
        write_text(folder / SELECTED, data.selection.to_text())


def read_history(metrics_file: Path) -> list[dict]:
    """Return the evaluations of a run, oldest first, from its metrics.jsonl; one of which no checkpoint could be
    written has ``unsaved``.
    """
    events = []
    for number, line in enumerate(metrics_file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            event = json.loads(line)
            if event["event"] in ("eval", "unsaved"):
                events.append((event["epoch"], event))
        except (ValueError, TypeError, KeyError, RecursionError):
            _logger.warning("%s, line %d: damaged, left out", metrics_file, number)
    unsaved = {epoch for epoch, event in events if event["event"] == "unsaved"}
    return [event | ({"unsaved": True} if epoch in unsaved else {}) for epoch, event in events
            if event["event"] == "eval"]


def best_of(history: list[dict], metric: str) -> dict:
    """Return the evaluation that ranks first of those with a checkpoint, the earliest among equals.

    Where none has a checkpoint it is the last one, whose weights are those that are exported. A figure that was not
    finite, null in the file, ranks last.
    """
    sign = -1 if metric == "loss" else 1
    saved = [event for event in history if not event.get("unsaved")]

    def rank(event: dict) -> float:
        return -math.inf if event["metric"] is None else sign * event["metric"]
    return max(saved, key=rank) if saved else history[-1]


def selection(args: argparse.Namespace, chosen: dict) -> tuple[str, list[str]]:
    """Return the data that ranked the epochs, and a warning when that is the split the result is reported on."""
    if args.select_split is not None:
        blind = args.teacher and loss_weights(args.task_loss_weight, args.distill_loss_weight)[0] == 0
        return f"held-out part of the training split{', scored against the teacher' if blind else ''}", []
    if args.eval_metric == "few-shot":
        return f"episodes of {args.few_shot_split}", []
    if "val" not in chosen:
        return "training loss", []
    if args.select != "best":
        return args.val_split, []
    return args.val_split, [
        f"the checkpoint was selected on '{args.val_split}', the split that it is reported on; --select-split holds "
        "out a part of the training split instead"]


def make_record(
        args: argparse.Namespace,
        model: nn.Module,
        student_source: dict,
        teacher: Teacher | None,
        targets: CachedTargets | None,
        weak: dict[str, dict],
        data: Data,
        data_config: dict,
        history: list[dict],
        position: Position,
        seconds: float,
) -> dict:
    """Collect everything that result.json and the model card say.

    Args:
        args: parsed flags.
        model: the selected student.
        student_source: how it started.
        teacher: the teacher, or None.
        targets: its cached targets, or None.
        weak: the teacher's figures by split, where measured.
        data: the splits.
        data_config: input of the student.
        history: the evaluations.
        position: where the run ended, with what became of it on the way.
        seconds: duration of the run.
    """
    last, best = history[-1], best_of(history, args.eval_metric)
    chosen = best if args.select == "best" else last
    distilled = bool(args.teacher or args.kd_model_name)
    weights = loss_weights(args.task_loss_weight, args.distill_loss_weight) if distilled else (1.0, 0.0)
    split, warnings = selection(args, chosen)
    unreadable = position.unreadable
    if position.changes:
        warnings.append(f"the run went on with other flags {'; '.join(map(describe_change, position.changes))}")
    if unreadable:
        warnings.append(f"{len(unreadable)} training sample(s) could not be read, others of their batches took their "
                        f"places (--data-errors {args.data_errors}); result.json names them")
    for source in teacher.sources if teacher is not None else ():
        if source.get("classes") == DIFFER:
            warnings.append(f"the classes of the teacher {source['name']} have {DIFFER}; they were taken by position")
    train = describe(data.train, args.dataset, args.train_split)
    val = describe(data.val, args.dataset, args.val_split) if data.val is not None else None
    select = describe(data.select, args.dataset, args.train_split) if data.select is not None else None
    module = registering_module(model)
    weak, weak_few_shot = weak.get("val"), weak.get("few_shot")
    return {
        "schema": 1,
        "model": dict(
            name=args.model,
            architecture=model.pretrained_cfg.get("architecture", args.model),
            num_classes=model.num_classes,
            input_size=list(data_config["input_size"]),
            linear_probe=args.linear_probe,
            plugin_module=None if module.startswith("timm.") else module.rpartition(".")[0] or module,
            **student_source,
        ),
        "teacher": None if teacher is None else dict(
            name=args.teacher, models=teacher.sources, targets=args.teacher_targets,
            cache=targets and targets.record, **(weak or {})),
        "loss": dict(
            name=args.loss or (f"timm {args.kd_distill_type}" if args.kd_model_name else args.task_loss),
            kwargs=args.loss_kwargs,
            task_loss=args.task_loss,
            task_loss_weight=weights[0],
            distill_loss_weight=weights[1],
        ),
        "data": dict(
            dataset=args.dataset or "folder",
            train_split=args.train_split,
            val_split=args.val_split,
            train_samples=train.num_samples,
            val_samples=val.num_samples if val else None,
            train_slice=args.train_slice,
            val_slice=args.val_slice,
            fingerprint=train.fingerprint,
            splits=dict(train=asdict(train), val=val and asdict(val), select=select and asdict(select)),
            label_noise=data.noise and data.noise.record(data.candidates),
            clean_select=data.selection and data.selection.about,
            unreadable=sorted(unreadable),
        ),
        "selected": dict(rule=args.select, epoch=chosen["epoch"], split=split),
        "last": dict(epoch=last["epoch"], **last.get("val", {})),
        "best": dict(epoch=best["epoch"], **best.get("val", {})),
        "metrics": chosen.get("val", {}),
        "few_shot": None if data.few_shot is None else dict(
            split=args.few_shot_split,
            class_list=args.few_shot_class_list,
            classifier=args.few_shot_classifier,
            episodes=args.few_shot_episodes,
            queries=args.queries,
            seed=args.few_shot_seed,
            data=asdict(describe(data.few_shot, args.dataset, args.few_shot_split)),
            teacher=weak_few_shot,
            last=last.get("few_shot"),
            best=best.get("few_shot"),
            metrics=chosen.get("few_shot"),
        ),
        "changes": position.changes,
        "ceiling_acc": args.ceiling_acc,
        "pgr": recovered(weak, chosen, args.ceiling_acc),
        "license": args.hub_license,
        "seed": args.seed,
        "command": " ".join(["torchrun", *map(shlex.quote, sys.argv)]),
        "versions": dict(
            python=platform.python_version(), torch=torch.__version__, torchvision=torchvision.__version__,
            timm=timm.__version__, huggingface_hub=huggingface_hub.__version__, w2s_plugins=__version__),
        "seconds": round(seconds, 1),
        "warnings": warnings,
    }


def registering_module(model: nn.Module) -> str:
    """Return the module that registered a model's architecture with timm, else that of its class."""
    name = model.pretrained_cfg.get("architecture") or ""
    return timm.models.model_entrypoint(name).__module__ if timm.models.is_model(name) else type(model).__module__


def recovered(weak: dict | None, chosen: dict, ceiling: float | None) -> float | None:
    """Return the PGR where teacher, student and ceiling are known."""
    if weak is None or ceiling is None or "val" not in chosen:
        return None
    return performance_gap_recovered(weak["top1"], chosen["val"]["top1"], ceiling)


def closing_table(record: dict) -> str:
    """Return the table that a run ends with; a star marks the epoch that was exported."""
    teacher, few_shot = record["teacher"] or {}, record.get("few_shot") or {}
    episodes = {who: format_figures(few_shot.get(who) or {}) for who in ("teacher", "last", "best")}
    shapes = list(episodes["last"])
    shots = [f"top1_{name}" for name in ("many", "medium", "few") if f"top1_{name}" in record["last"]]
    rows = []
    if teacher.get("top1") is not None or episodes["teacher"]:
        rows.append(["teacher", teacher.get("top1"), teacher.get("top5"), None, None,
                     *(episodes["teacher"].get(s) for s in shapes), *(teacher.get(s) for s in shots)])
    for name in ("last", "best"):
        event, chosen = record[name], name == record["selected"]["rule"]
        rows.append([f"student, {name} epoch ({event['epoch'] + 1}){' *' if chosen else ''}", event.get("top1"),
                     event.get("top5"), event.get("agreement"), record["pgr"] if chosen else None,
                     *(episodes[name].get(s) for s in shapes), *(event.get(s) for s in shots)])
    if record["ceiling_acc"] is not None:
        rows.append(["ceiling", float(record["ceiling_acc"]), None, None, None,
                     *(None for _ in (*shapes, *shots))])
    heads = [s.replace("top1_", "top-1 ") for s in shots]
    return format_table(rows, ["", "top-1", "top-5", "agreement", "PGR", *shapes, *heads])
