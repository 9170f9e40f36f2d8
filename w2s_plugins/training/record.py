"""result.json, of which the model card is made.

`model` (name, names of its classes, initialisation, source with commit and sha256), `teacher` (members with theirs,
accuracy, kind of targets, key and path of caches), `loss`, `data` (identity of each split; label noise, selection of
samples), `made_of` (splits, files of labels and weights by content, see `w2s_plugins.made_of`), `changes` (flags that
were changed on the way, by epoch and update), `selected` (rule, epoch, split), `last`, `best`, `metrics` of the
selected epoch, those of teacher and student on the part that is `held_out`, `gain` by epoch, `ceiling_acc`, `pgr`,
`command`, `versions`, `warnings`, `export` (SHA-256 of what an export is loaded from).
"""

import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import timm

from ..cli.outcome import list_changes
from ..data import AnyDataset
from ..data.decoding import describe_decoder
from ..data.keys import describe, fingerprint_of_samples
from ..data.loaders import EVAL_TRANSFORM
from ..errors import called, shorten
from ..hub.export import ABOUT_WEIGHTS
from ..losses.base import LOSSES
from ..made_of import to_plain
from ..metrics.figures import HEADINGS, headline_name, headline_of, of_few
from ..metrics.pgr import above_ceiling_hint, gain_by_epoch, no_gap_hint, performance_gap_recovered
from ..models.loading import TimmModel
from ..run.position import Position
from ..settings.composite import TrainSettings
from ..settings.concerns import ComputeSettings, DataSettings, LossSettings
from ..settings.values import split_names
from ..students.refine import RefinedTargets
from ..target_kind import ONE_CLASS
from ..teachers.posterior import PosteriorTargets
from ..teachers.teacher import Teacher
from ..version import __version__
from .splits import Data
from .student import Student
from .training_run import Run

# how images that are evaluated are prepared; two figures are of one evaluation only if all of these are equal
PREPARATION = ("input_size", *EVAL_TRANSFORM)
# whose versions decide what comes out of a run
PACKAGES = ("torch", "torchvision", "timm", "huggingface_hub")


def make_record(
    run: Run, model: TimmModel, evaluations: list[dict], best: dict, seconds: float
) -> dict:
    """Collect everything that result.json and the model card say.

    Args:
        run: it has ended.
        model: the selected student.
        evaluations: all of the run.
        best: that of the epoch that ranked first.
        seconds: duration of the process that ended the run.
    """
    # The epoch that counts, and the weights that the student started from where they are the model's own.
    settings, data, weak = run.settings, run.data, run.teacher_metrics.get("val")
    loading, starting, ceiling = settings.data, settings.student, settings.evaluation.ceiling_acc
    select = settings.evaluation.select
    last = evaluations[-1]
    chosen = best if select == "best" else last
    events = {"last": last, "best": best, "metrics": chosen}
    other_start = starting.pretrained_path or starting.initial_checkpoint or starting.finetune
    config = model.pretrained_cfg if starting.pretrained and not other_start else {}
    weights = {key: config[key] for key in ABOUT_WEIGHTS if config.get(key)}

    # What is measured beside the validation split, or made of its figures.
    # Of a teacher without a figure, or without a ceiling, there is no gap that could be recovered.
    few_shot = pgr = None
    if data.few_shot is not None:
        split = settings.episodes.few_shot_split
        few_shot = dict(
            split=split,
            classifier="cosine",
            data=asdict(describe(data.few_shot, loading.dataset, split)),
            teacher=run.teacher_metrics.get("few_shot"),
            **{name: event.get("few_shot") for name, event in events.items()},
        )
    of_teacher, of_student = headline_of(weak or {}), headline_of(chosen.get("val", {}))
    if of_teacher is not None and of_student is not None and ceiling is not None:
        pgr = performance_gap_recovered(of_teacher, of_student, ceiling)

    # Of several classes an image: from which probability on each is said to be there.
    thresholds = {"thresholds": chosen["thresholds"]} if "thresholds" in chosen else {}

    of_data = _data(loading, settings.compute, data, run.student, run.teacher)
    # Under torchrun the script alone is no command that could be repeated.
    launcher = "torchrun" if "TORCHELASTIC_RUN_ID" in os.environ else "python"
    command = called(f"{launcher} {shlex.quote(sys.argv[0])}")
    about_model = {**_student(run, model), "class_names": data.class_names, "weights": weights}
    # what nothing is said of has one class an image
    if data.target_kind.name != ONE_CLASS.name:
        about_model["problem_type"] = data.target_kind.problem_type
    return {
        "model": about_model,
        "teacher": _teacher(run, weak or {}),
        "loss": dict(
            _loss(settings.loss, bool(settings.teacher.teacher)),
            strong_views=settings.views.strong_views,
        ),
        "data": of_data,
        "made_of": to_plain(run.made_of),
        "selected": dict(rule=select, epoch=chosen["epoch"], split=ranked_by(settings, chosen)),
        "last": dict(epoch=last["epoch"], **_measured(last)),
        "best": dict(epoch=best["epoch"], **_measured(best)),
        "metrics": _measured(chosen),
        "held_out": dict(teacher=run.teacher_metrics.get("select"), student=chosen.get("select")),
        "few_shot": few_shot,
        **thresholds,
        "gain": weak and gain_by_epoch(evaluations),
        "changes": run.position.changes,
        "ceiling_acc": ceiling,
        "pgr": pgr,
        "license": weights.get("license"),
        "seed": settings.run.seed,
        "command": f"{command} {shlex.join(sys.argv[1:])}",
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
            "w2s_plugins": __version__,
        },
        "seconds": round(seconds, 1),
        # of files of labels the names alone
        "warnings": [
            *(
                shorten(re.sub("^WARNING: |(?<=labels:)[^,:]*/", "", one.getMessage()))
                for one in data.warnings
            ),
            *list_warnings(
                settings,
                chosen,
                run.position,
                weak or {},
                _skipped_steps(run),
                of_data["val_samples"],
            ),
        ],
    }


# ---------------------------------------------------------------- its parts


def _student(run: Run, model: TimmModel) -> dict:
    # Of a plugin the module is named, which whoever loads the model has to import.
    # An export is opened by the architecture, which for a model of the Hub is another name than the one that was typed.
    architecture = model.pretrained_cfg.get("architecture", run.settings.student.model)
    module = type(model).__module__
    if timm.models.is_model(architecture):
        module = timm.models.model_entrypoint(architecture).__module__
    return dict(
        name=run.settings.student.model,
        architecture=architecture,
        num_classes=model.num_classes,
        input_size=list(run.student.data_config["input_size"]),
        linear_probe=run.settings.student.linear_probe,
        plugin_module=None if module.startswith("timm.") else module.rpartition(".")[0] or module,
        **run.student.source,
    )


def _teacher(run: Run, weak: dict) -> dict | None:
    """Return models and labels that taught, with the names alone of files and folders of labels; None without any."""
    # Models that answered and files of labels, in the order in which they were named.
    models = run.teacher.sources if run.teacher is not None else ()
    settings = run.settings.teacher
    sources = settings.in_order(models, (labels.source for labels in run.data.given_labels))
    if not sources:
        return None
    # How one target is made of several answers, and what was found in doing that.
    made: dict[str, object] = {}
    if len(sources) > 1:
        made["assign"] = settings.teacher_assign
    if isinstance(run.targets, PosteriorTargets):
        made["posterior"] = run.targets.figures
    if isinstance(run.targets, RefinedTargets):
        made["refined"] = run.targets.figures
    return dict(
        name=settings.shown,
        models=sources,
        targets=settings.teacher_targets,
        cache=run.targets and run.targets.record,
        **made,
        **weak,
    )


def _loss(settings: LossSettings, has_teacher: bool) -> dict:
    # Without a teacher the criterion is all of the loss, whatever the flags say.
    weights = (1.0, 0.0)
    if has_teacher or settings.kd_model_name:
        weights = settings.weights
    # A sum of losses has the papers of all of its parts.
    name, papers = settings.task_loss, {}
    if settings.loss:
        name = settings.loss
        papers = {part: LOSSES.get(part.strip()).paper for part in settings.loss.split("+")}
    elif settings.kd_model_name:
        name = f"timm {settings.kd_distill_type}"
    return dict(
        name=name,
        papers=papers,
        kwargs=settings.loss_kwargs,
        task_loss=settings.task_loss,
        task_loss_weight=weights[0],
        distill_loss_weight=weights[1],
    )


def _data(
    settings: DataSettings,
    compute: ComputeSettings,
    data: Data,
    student: Student,
    teacher: Teacher | None,
) -> dict:
    # Each split is identified by its samples and labels, so that others can see that theirs is the same.
    train = asdict(describe(data.train, settings.dataset, settings.train_split))
    splits: dict[str, dict | None] = {"train": train, "val": None, "select": None}
    for role, dataset in (
        ("val", data.val),
        ("select", data.select),
        ("labelled", data.labelled_set),
    ):
        if dataset is not None:
            about = describe(dataset, settings.dataset, settings.shown_split(role))
            splits[role] = asdict(about)
    val, evaluated = splits["val"], None
    if data.val is not None:
        evaluated = evaluated_on(
            settings,
            compute,
            data.val,
            student.data_config,
            teacher,
            gp=student.resolved["gp"],
            num_samples=settings.val_num_samples,
        )

    # What one would call the training data: the names of folders and files, or that after timm's reader.
    # A record may be read by others, so that folders of this disk are called by their last part.
    reader, _, name = settings.dataset.partition("/")
    if settings.unlabeled or not settings.dataset:
        folders = map(Path, split_names(settings.unlabeled) or [settings.data_dir or ""])
        name = ", ".join(folder.name or folder.resolve().name for folder in folders)
    elif reader == "wds":
        name = Path(name).name
    return dict(
        dataset=train["name"],
        name=name or reader or train["name"],
        train_split=train["split"],
        val=evaluated,
        train_samples=train["num_samples"],
        val_samples=val and val["num_samples"],
        train_slice=settings.train_slice,
        fingerprint=train["fingerprint"],
        splits=splits,
        label_noise=data.noise and data.noise.record(data.candidates),
        clean_select=data.selection and data.selection.about,
    )


def evaluated_on(
    loading: DataSettings,
    compute: ComputeSettings,
    dataset: AnyDataset,
    data_config: Mapping[str, object],
    teacher: Teacher | None = None,
    **further: object,
) -> dict[str, object]:
    """Say what makes an evaluation the same as another one: its samples, by content, and its settings.

    Args:
        loading: where the samples are from, and how they are decoded.
        compute: the dtype of the model.
        dataset: the part of the split that is evaluated.
        data_config: timm's configuration of the model's input.
        teacher: with which the model is compared.
        **further: other settings that change figures; what is None, empty or off is left out.

    Returns:
        ``dataset`` (its folder where it has no other name), ``split`` (or which part of it), ``fingerprint`` of the
        samples, ``evaluation``, the settings, and ``taught_by``, a hash of the teacher.
    """
    # Without a name of its own a data set is called by its folder; the fingerprint tells such apart.
    name = loading.dataset or Path(loading.data_dir or "").absolute().name
    part = f"[{loading.val_slice}]" if loading.val_slice else ""
    settings = dict(
        {key: data_config[key] for key in PREPARATION},
        decoder=describe_decoder(loading.decoder),
        input_img_mode=loading.input_img_mode,
        dtype=compute.amp_dtype if compute.amp else compute.model_dtype,
        **further,
    )
    # as JSON has them, so that those of a file are equal
    plain = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in settings.items()
        if value
    }
    return dict(
        dataset=name,
        split=f"{loading.shown_split('val')}{part}",
        fingerprint=fingerprint_of_samples(dataset, loading.dataset),
        evaluation=plain,
        taught_by=teacher and teacher.digest[:16],
    )


def _measured(event: dict) -> dict[str, float]:
    """Return the figures of the validation split; without one those of a held-out part, where these are no accuracies."""
    # Without a validation split the held-out part is all there is; its accuracies are those that epochs were chosen by.
    select = event.get("select", {})
    return event.get("val") or (select if headline_of(select) is None else {})


def ranked_by(settings: TrainSettings, chosen: Mapping[str, object]) -> str:
    """Return the data that ranked the epochs."""
    if settings.data.select_split is not None:
        how = ", scored against the teacher" if settings.is_scored_by_teacher else ""
        return f"held-out part of the training split{how}"
    if settings.evaluation.eval_metric == "few-shot":
        return f"episodes of {settings.episodes.few_shot_split}"
    return settings.data.shown_split("val") if "val" in chosen else "training loss"


def _skipped_steps(run: Run) -> int:
    """Return how many steps were left out because a loss or gradient was not finite. In float16 that is how the loss
    scaler finds its scale; a run that begins at ``--start-epoch`` has not counted the steps before.
    """
    if run.precision.scaler is not None or run.settings.run.start_epoch:
        return 0
    return run.updates_done - run.position.taken


def list_warnings(
    settings: TrainSettings,
    chosen: dict,
    position: Position,
    weak: dict[str, float],
    skipped: int = 0,
    images: int | None = None,
) -> list[str]:
    """Say what a reader of the figures has to know.

    Args:
        settings: of the run.
        chosen: evaluation of the selected epoch.
        position: where the run ended.
        weak: figures of the teacher on the validation split, empty without it.
        skipped: steps that were left out.
        images: in the validation split, 0 of a stream.
    """
    # What they are compared with, and what they were chosen on.
    student, ceiling = headline_of(chosen.get("val", {})), settings.evaluation.ceiling_acc
    teacher = headline_of(weak)
    hints = [no_gap_hint(teacher, ceiling)]
    if student is not None and teacher is not None and student < teacher:
        name = HEADINGS[headline_name(weak)]
        hints.append(
            f"the student is below its teacher: {name} {student:.2f}, teacher {teacher:.2f}{of_few(images)}"
        )
    if student is not None and ceiling is not None:
        hints.append(above_ceiling_hint("student", student, ceiling))
    val_split = settings.data.shown_split("val")
    chosen_on = ranked_by(settings, chosen)
    # A loss is measured wherever true labels are; what ranks by them may be impossible all the same.
    held_out, metric = chosen.get("select", chosen.get("val", {})), settings.evaluation.eval_metric
    by_agreement = settings.is_scored_by_teacher and "select" in chosen
    is_unranked = "loss" in held_out and metric not in (*held_out, "few-shot") and not by_agreement
    if is_unranked and settings.evaluation.select == "best":
        hints.append(
            f"no epoch is best by --eval-metric {metric}, and the last one is exported: no class has both images with it "
            "and images without it"
        )
    if "val" in chosen and settings.evaluation.select == "best" and chosen_on == val_split:
        hints.append(
            f"the checkpoint was selected on '{val_split}', the split that it is reported on; --select-split holds "
            "out a part of the training split instead"
        )

    # What happened on the way, so that figures are not compared with those of an undisturbed run.
    if skipped > 0:
        hints.append(f"{skipped} step(s) were skipped, because a loss or gradient was not finite")
    if position.changes:
        described = [
            f"from epoch {change['epoch'] + 1}, step {change['update']} on: {list_changes(change['flags'])}"
            for change in position.changes
        ]
        hints.append(f"the run went on with other flags {'; '.join(described)}")
    return [hint for hint in hints if hint]
