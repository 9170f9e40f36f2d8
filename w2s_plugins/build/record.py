"""result.json, of which the model card is made.

`model` (name, names of its classes, initialisation, source with commit and sha256), `teacher` (members with theirs,
accuracy, kind of targets, key and path of caches), `loss`, `data` (identity of each split; `sources`: of the whole
splits and the files of labels that it was made of; label noise, selection of samples, unreadable ones), `changes`
(flags that were changed on the way, by epoch and update), `selected` (rule, epoch, split), `last`, `best`, `metrics`
of the selected epoch, `gain` by epoch, `test_sets` by name, `failed_test_sets` (why there are no figures of them),
`ceiling_acc`, `pgr`, `command`, `versions`, `warnings`, `export` (SHA-256 of what an export is loaded from).
"""

import argparse
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence, Sized
from dataclasses import asdict, dataclass
from pathlib import Path

import huggingface_hub
import timm
import torch
import torchvision
from torch import nn

from .. import __version__
from ..cli.forms import TEST_EPISODES, count_episodes, loss_weights
from ..cli.outcome import list_changes
from ..data.datasets import describe
from ..engine.evaluation import Evaluation
from ..errors import called
from ..hub.export import ABOUT_WEIGHTS
from ..labels.splits import Data
from ..metrics.pgr import above_ceiling_hint, chance_of_difference, no_gap_hint, turning_points
from ..run.position import Position
from ..run.record import recovered, registering_module
from ..students.refine import RefinedTargets
from ..teachers.mix import TRAINED_SHARE
from ..teachers.stored import CachedTargets
from ..teachers.teacher import Teacher
from .resolve import (
    LABELS,
    average_hint,
    in_order,
    is_scored_by_teacher,
    label_paths,
    random_start_hint,
    split_names,
    student_chance_hint,
    teacher_chance_hint,
)
from .student import RANDOM_FEATURES


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Args:
        last: its last evaluation.
        best: that of the epoch that ranked first.
        weak: figures of the teacher by split, where measured.
        position: where the run ended, with what became of it on the way.
        seconds: duration of the process that ended the run.
        evaluations: all of them.
        tests: evaluations of the selected student on the test sets beside the validation split.
        failed: why it could not be evaluated on others, by name.
        updates_per_epoch: of the weights.
    """

    last: dict
    best: dict
    weak: dict[str, dict]
    position: Position
    seconds: float
    evaluations: Sequence[dict]
    tests: Mapping[str, Evaluation]
    failed: Mapping[str, str]
    updates_per_epoch: int


def make_record(
        args: argparse.Namespace,
        model: nn.Module,
        student_source: dict,
        teacher: Teacher | None,
        targets: CachedTargets | None,
        data: Data,
        data_config: dict,
        outcome: Outcome,
) -> dict:
    """Collect everything that result.json and the model card say.

    Args:
        args: parsed flags.
        model: the selected student.
        student_source: how it started.
        teacher: the teacher, or None.
        targets: its cached targets, or None.
        data: the splits.
        data_config: input of the student.
        outcome: what came of the run.
    """
    launcher = "torchrun" if "TORCHELASTIC_RUN_ID" in os.environ else "python"
    last, best, weak = outcome.last, outcome.best, outcome.weak.get("val")
    chosen = best if args.select == "best" else last
    sources = in_order(
        args.teacher, teacher.sources if teacher is not None else (), (labels.source for labels in data.given))
    return {
        "schema": 1,
        "model": _student(args, model, data_config) | dict(
            class_names=data.class_names, weights=(weights := _weights(args, model))) | student_source,
        "teacher": None if not sources else dict(
            name=_teacher_name(args), models=sources, targets=args.teacher_targets, cache=targets and targets.record,
            **({"refined": targets.figures} if isinstance(targets, RefinedTargets) else {}), **(weak or {})),
        "loss": _loss(args),
        "data": _data(args, data, outcome.position.unreadable),
        "selected": dict(rule=args.select, epoch=chosen["epoch"], split=ranked_by(args, chosen)),
        "last": dict(epoch=last["epoch"], **_measured(last)),
        "best": dict(epoch=best["epoch"], **_measured(best)),
        "metrics": _measured(chosen),
        "few_shot": None if data.few_shot is None else dict(
            **_episodes(args, data), teacher=outcome.weak.get("few_shot"), last=last.get("few_shot"),
            best=best.get("few_shot"), metrics=chosen.get("few_shot")),
        "gain": weak and turning_points(outcome.evaluations, weak["top1"], len(data.val)),
        "test_sets": {name: dict(samples=len(found.targets), **found.metrics, teacher=found.teacher_metrics)
                      for name, found in outcome.tests.items()},
        **({"failed_test_sets": outcome.failed} if outcome.failed else {}),
        "changes": outcome.position.changes,
        "ceiling_acc": args.ceiling_acc,
        "pgr": recovered(weak, chosen, args.ceiling_acc),
        "license": weights.get("license"),
        "seed": args.seed,
        "command": called(f"{launcher} {shlex.quote(sys.argv[0])}") + " " + shlex.join(sys.argv[1:]),
        "versions": dict(
            python=platform.python_version(), torch=torch.__version__, torchvision=torchvision.__version__,
            timm=timm.__version__, huggingface_hub=huggingface_hub.__version__, w2s_plugins=__version__),
        "seconds": round(outcome.seconds, 1),
        "warnings": [*filter(None, [average_hint(args, (last["epoch"] + 1) * outcome.updates_per_epoch)]),
                     *teacher_hints(args, outcome.weak, data),
                     *filter(None, [refined_hint(targets, weak, data.val), agreement_hint(outcome.evaluations)]),
                     *([RANDOM_FEATURES] if args.linear_probe and student_source["init"] == "random" else []),
                     *student_hints(args, chosen, data),
                     *list_warnings(args, chosen, outcome.position, weak),
                     *(f"the student could not be measured on the test set {name}" for name in outcome.failed)],
    }


def _teacher_name(args: argparse.Namespace) -> str:
    """Return ``--teacher``, with the names alone of files and folders of labels."""
    if not label_paths(args.teacher):
        return args.teacher
    return ",".join(LABELS + Path(name.removeprefix(LABELS)).name if name.startswith(LABELS) else name
                    for name in split_names(args.teacher))


def _measured(event: dict) -> dict[str, float]:
    """Return the figures of the validation split; without one those of a held-out part, where these are no accuracies.
    """
    select = event.get("select", {})
    return event.get("val") or ({} if "top1" in select else select)


def _student(args: argparse.Namespace, model: nn.Module, data_config: dict) -> dict:
    module = registering_module(model)
    return dict(
        name=args.model,
        architecture=model.pretrained_cfg.get("architecture", args.model),
        num_classes=model.num_classes,
        input_size=list(data_config["input_size"]),
        linear_probe=args.linear_probe,
        plugin_module=None if module.startswith("timm.") else module.rpartition(".")[0] or module,
    )


def _weights(args: argparse.Namespace, model: nn.Module) -> dict[str, object]:
    """Return what is published of the weights that the student started from; nothing of other ones than the model's."""
    if not args.pretrained or args.pretrained_path or args.initial_checkpoint or args.finetune:
        return {}
    return {key: value for key in ABOUT_WEIGHTS if (value := model.pretrained_cfg.get(key))}


def _loss(args: argparse.Namespace) -> dict:
    distilled = bool(args.teacher or args.kd_model_name)
    weights = loss_weights(args.task_loss_weight, args.distill_loss_weight) if distilled else (1.0, 0.0)
    return dict(
        name=args.loss or (f"timm {args.kd_distill_type}" if args.kd_model_name else args.task_loss),
        kwargs=args.loss_kwargs,
        task_loss=args.task_loss,
        task_loss_weight=weights[0],
        distill_loss_weight=weights[1],
    )


def _data(args: argparse.Namespace, data: Data, unreadable: list[str]) -> dict:
    train = describe(data.train, args.dataset, args.train_split)
    val = describe(data.val, args.dataset, args.val_split) if data.val is not None else None
    select = describe(data.select, args.dataset, args.train_split) if data.select is not None else None
    labelled = {} if data.labelled is None else {
        "labelled": asdict(describe(data.labelled, args.dataset, args.train_split))}
    return dict(
        dataset=args.dataset or train.name,
        name=_name_of_data(args) or train.name,
        train_split=train.split,
        val_split=args.val_split,
        train_samples=train.num_samples,
        val_samples=val.num_samples if val else None,
        train_slice=args.train_slice,
        val_slice=args.val_slice,
        fingerprint=train.fingerprint,
        sources=data.sources,
        splits=dict(train=asdict(train), val=val and asdict(val), select=select and asdict(select), **labelled),
        label_noise=data.noise and data.noise.record(data.candidates),
        clean_select=data.selection and data.selection.about,
        unreadable=sorted(unreadable),
    )


def _name_of_data(args: argparse.Namespace) -> str:
    """Return what one would call the training data: the names of folders and files, or that after timm's reader."""
    if args.unlabeled or not args.dataset:
        places = (args.unlabeled or args.data_dir).split(",")
        return ", ".join(Path(place).name or Path(place).resolve().name for place in places)
    reader, _, name = args.dataset.partition("/")
    return Path(name).name if reader == "wds" else name or reader


def _episodes(args: argparse.Namespace, data: Data) -> dict:
    return dict(
        split=args.few_shot_split,
        class_list=args.few_shot_class_list,
        classifier=args.few_shot_classifier,
        episodes=count_episodes(args.few_shot_eval, "--few-shot-eval", TEST_EPISODES, 2),
        queries=args.queries,
        seed=args.few_shot_seed,
        data=asdict(describe(data.few_shot, args.dataset, args.few_shot_split)),
    )


def ranked_by(args: argparse.Namespace, chosen: dict) -> str:
    """Return the data that ranked the epochs."""
    if args.select_split is not None:
        how = ", scored against the teacher" if is_scored_by_teacher(args) else ""
        return f"held-out part of the training split{how}"
    if args.eval_metric == "few-shot":
        return f"episodes of {args.few_shot_split}"
    return args.val_split if "val" in chosen else "training loss"


def refined_hint(targets: CachedTargets | None, weak: Mapping[str, float] | None, val: Sized | None) -> str | None:
    """Return a line that says that ``--refine-labels`` had features to go by that know less than the teacher, beyond
    the noise of the validation split ``val``, or None.
    """
    top1 = targets.figures["top1"] if isinstance(targets, RefinedTargets) else None
    if top1 is None or "top1" not in (weak or {}):
        return None
    if (weak["top1"] - top1) / 100 <= chance_of_difference([top1 / 100, weak["top1"] / 100], len(val)):
        return None
    return (f"--refine-labels: its discriminant of the student's features is right on {top1:.2f} % of the validation "
            f"split, the teacher on {weak['top1']:.2f} %: images as large as in the pretraining, or "
            "--no-refine-labels, may be better")


def teacher_hints(args: argparse.Namespace, weak: Mapping[str, dict], data: Data) -> list[str]:
    """Return what is to be said of a teacher, measured on the splits with ground truth, that a run can tell nothing of.
    """
    splits = {"val": data.val, "select": data.select}
    hints = [teacher_chance_hint(weak[name]["top1"], data.num_classes, len(split))
             for name, split in splits.items() if "top1" in weak.get(name, ())]
    if args.ceiling_acc is not None and "top1" in weak.get("val", ()):
        hints.append(no_gap_hint(weak["val"]["top1"], args.ceiling_acc))
    return [*filter(None, hints)]


def agreement_hint(evaluations: Sequence[dict]) -> str | None:
    """Say that several teachers have agreed on no sample of an epoch, which has then taught nothing."""
    idle = sum(found["train"].get(TRAINED_SHARE) == 0 for found in evaluations)
    if not idle:
        return None
    return (f"the teachers agreed on no sample in {idle} of {len(evaluations)} epochs, which taught nothing: "
            "lower --teacher-agreement-share")


def student_hints(args: argparse.Namespace, chosen: dict, data: Data) -> list[str]:
    """Return what is to be said of a student that has learned nothing, or more than its ceiling, on the validation
    split.
    """
    if "top1" not in chosen.get("val", ()):
        return []
    top1 = chosen["val"]["top1"]
    hints = [student_chance_hint(top1, data.num_classes, len(data.val))]
    if args.ceiling_acc is not None:
        hints.append(above_ceiling_hint("the student", top1, args.ceiling_acc))
    return [*filter(None, hints)]


def list_warnings(args: argparse.Namespace, chosen: dict, position: Position, weak: dict | None) -> list[str]:
    """Return what a reader of the figures has to know.

    Args:
        args: parsed flags.
        chosen: evaluation of the selected epoch.
        position: where the run ended.
        weak: figures of the teacher on the validation split.
    """
    warnings = [*filter(None, [random_start_hint(args)])]
    if weak and "val" in chosen and chosen["val"]["top1"] < weak["top1"]:
        warnings.append(f"the student is below its teacher: top-1 {chosen['val']['top1']:.2f}, teacher "
                        f"{weak['top1']:.2f}")
    if "val" in chosen and args.select == "best" and ranked_by(args, chosen) == args.val_split:
        warnings.append(f"the checkpoint was selected on '{args.val_split}', the split that it is reported on; "
                        "--select-split holds out a part of the training split instead")
    if position.changes:
        described = [f"from epoch {change['epoch'] + 1}, step {change['update']} on: {list_changes(change['flags'])}"
                     for change in position.changes]
        warnings.append(f"the run went on with other flags {'; '.join(described)}")
    if position.unreadable:
        warnings.append(f"{len(position.unreadable)} training sample(s) could not be read, others of their batches "
                        f"took their places (--data-errors {args.data_errors}); result.json names them")
    return warnings
