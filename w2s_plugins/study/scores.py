"""The figures of models on one test set, each with its interval over test samples.

A figure is a mapping with ``value``, ``low`` and ``high``; accuracies, agreement and differences are in percent. Of
several classes an image the mAP takes the place of the accuracy. It is computed anew in each resample; what single images
contribute to it (`metrics.several.map_by_image`) takes the place of hits.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch

from ..errors import UserError, one_line
from ..metrics.figures import (
    HEADINGS,
    HEADLINE,
    HEADLINE_OF_SEVERAL,
    allows_advice,
    no_advice,
    of_few,
)
from ..metrics.pgr import above_ceiling_hint, no_gap_hint, performance_gap_recovered
from ..metrics.resampling import CONFIDENCE, resampled_means
from ..metrics.several import map_by_image, resampled_map
from ..monitor import format_table
from ..no_label import NO_LABEL
from ..run.record import PREDICTIONS
from ..target_kind import SEVERAL_CLASSES
from ..target_kind.table import LOGIT
from .controls import CONTROLS, without
from .plan import RESULT
from .planning import LocalPlan
from .statistics import RESAMPLES, bounds, sample_interval

NAMES = {
    "weak": "weak teacher",
    "student": "strong student",
    "ceiling": "ceiling",
    "agreement": "agreement",
    "pgr": "PGR",
}
WORDS = {HEADLINE: "accuracy", HEADLINE_OF_SEVERAL: "mAP"}
NOT_WORTH = "weak-to-strong was not worth doing here"
NOT_SHOWN = "it is not shown that weak-to-strong was worth doing here"


# ---------------------------------------------------------------- from predictions to figures


def read_predictions(path: Path) -> pandas.DataFrame:
    """Read what `run.record.write_predictions` wrote: a row a test sample, a column for each who says a class.

    Of several classes an image columns have two levels, who and the class: 1, 0 or -1 of ``target``, ``student`` and
    ``teacher``, and logits of the last two, such as ``student_logit``.
    """
    try:
        # the header says of which kind the run is
        heads = [*pandas.read_csv(path, nrows=0)]
        kinds = {head: np.float32 if LOGIT in head else np.int64 for head in heads}
        table = pandas.read_csv(path, dtype=kinds)
        if "target.0" in heads:
            pairs = [head.rpartition(".") for head in heads]
            table.columns = pandas.MultiIndex.from_tuples([(who, int(i)) for who, _, i in pairs])
        return table
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"{path}: expected the predictions that an evaluation on images with ground truth writes: "
            f"{one_line(error)}"
        ) from error


def predictions_of(folder: Path, record: Mapping) -> Path:
    """Return the file with what the selected student of a run says of the test samples."""
    return folder / PREDICTIONS[record["selected"]["rule"]]


def read_answers(files: Mapping[str, Path]) -> pandas.DataFrame:
    """Return a row a test sample: its label, ``target``, and what each model says of it, ``weak`` first if it is one.

    Args:
        files: predictions of the ``student``, which have its teacher's beside them, and of what it is compared with.

    Raises:
        UserError: predictions are missing, or of other test samples.
    """
    tables = {name: read_predictions(file) for name, file in files.items()}
    student = tables["student"]
    for name, table in tables.items():
        if not table["target"].equals(student["target"]):
            raise UserError(f"{files['student']} and {files[name]} are of different test samples")
    if is_of_several(student):
        return _answers_of_several(files, tables)
    # the student takes its place behind its teacher, which labels in a file have not got
    answers = student.drop(columns="student").rename(columns={"teacher": "weak"})
    return answers.assign(**{name: table["student"] for name, table in tables.items()})


def is_of_several(answers: pandas.DataFrame) -> bool:
    """Say whether predictions are of several classes an image: then their columns have two levels."""
    return answers.columns.nlevels == 2


def headline_of_answers(answers: pandas.DataFrame) -> str:
    """Return the figure that models with these predictions are compared by."""
    return HEADLINE_OF_SEVERAL if is_of_several(answers) else HEADLINE


def _answers_of_several(
    files: Mapping[str, Path], tables: Mapping[str, pandas.DataFrame]
) -> pandas.DataFrame:
    """Return decisions and logits of each model by its name, with the true labels, in columns of two levels."""
    parts = {"target": tables["student"]["target"]}
    whole = {name: (table, "student") for name, table in tables.items()}
    if "teacher" in tables["student"]:
        whole = {"weak": (tables["student"], "teacher"), **whole}
    for name, (table, who) in whole.items():
        if who + LOGIT not in table:
            raise UserError(
                f"{files.get(name, files['student'])}: it has no logits of the {who}, of which mAP is computed; expected "
                f"columns such as {who}{LOGIT}.0"
            )
        parts |= {name: table[who], name + LOGIT: table[who + LOGIT]}
    return pandas.concat(parts, axis="columns")


def _truth(answers: pandas.DataFrame) -> np.ndarray:
    """Return true labels (N, C) of several classes, NaN where nobody knows."""
    target = answers["target"].to_numpy(np.float64)
    return np.where(target == NO_LABEL, np.nan, target)


def _logits(answers: pandas.DataFrame) -> dict[str, np.ndarray]:
    """Return the logits (N, C) of each model."""
    names = [name for name in answers.columns.unique(0) if name.endswith(LOGIT)]
    return {name.removesuffix(LOGIT): answers[name].to_numpy(np.float64) for name in names}


def hits_of(answers: pandas.DataFrame) -> pandas.DataFrame:
    """Return where each model is right, where student and teacher say the same, ``agreement``, and how much more often
    the student is right than each control, ``above NAME``. Of several classes an image: what it contributes to the mAP,
    and the share of the classes that they say the same of.
    """
    # one row a sample keeps the pairing, which the intervals of differences need
    if is_of_several(answers):
        truth = _truth(answers)
        hits = pandas.DataFrame(
            {name: map_by_image(rows, truth) for name, rows in _logits(answers).items()}
        )
        if "weak" in hits:
            decisions = (torch.from_numpy(answers[who].to_numpy()) for who in ("student", "weak"))
            hits["agreement"] = SEVERAL_CLASSES.agreement(*decisions).numpy()
    else:
        hits = answers.drop(columns="target").eq(answers["target"], axis="index")
        if "weak" in answers:
            hits["agreement"] = answers["student"] == answers["weak"]
    for control in hits.columns.intersection(list(CONTROLS)):
        hits[f"above {control}"] = hits["student"].astype(float) - hits[control]
    return hits


def values_of(hits: pandas.DataFrame, ceiling: float | None = None) -> dict[str, float | None]:
    """Return the mean of each column of `hits_of`, in percent, and the ``pgr`` where there is a ceiling.

    Args:
        hits: of the models.
        ceiling: accuracy of one of which no more is known.
    """
    # the mean of an answer's hits is an accuracy, that of a difference in hits a difference of accuracies
    values = (100 * hits.mean()).to_dict()
    if ceiling is not None:
        values.setdefault("ceiling", ceiling)
    if values.keys() >= {"weak", "ceiling"}:
        values["pgr"] = performance_gap_recovered(
            values["weak"], values["student"], values["ceiling"]
        )
    # true labels of several classes may allow no mAP
    return {name: None if pandas.isna(value) else value for name, value in values.items()}


def draws_of(hits: pandas.DataFrame, answers: pandas.DataFrame | None = None) -> dict[str, Any]:
    """Return each column of `hits_of` in resamples of the test samples (R,), in percent, the same resamples for all.

    Args:
        hits: of the models.
        answers: that they are of, where several classes an image may be meant: the mAP of each resample is computed of them.
    """
    draws: dict[str, Any] = dict(
        zip(hits, 100 * resampled_means(hits.to_numpy(float).T, RESAMPLES))
    )
    if answers is not None and is_of_several(answers):
        of_models = resampled_map(_logits(answers), _truth(answers), RESAMPLES)
        draws |= {name: 100 * values for name, values in of_models.items()}
        for name in hits.columns.intersection([f"above {control}" for control in CONTROLS]):
            draws[name] = draws["student"] - draws[name.removeprefix("above ")]
    return draws


def figures_of(
    hits: pandas.DataFrame, draws: Mapping[str, np.ndarray] | None = None
) -> dict[str, dict[str, Any]]:
    """Return `values_of` with percentile bootstrap intervals over test samples, the same resamples for all.

    Args:
        hits: of the models.
        draws: see `draws_of`; None: those of one class an image.

    The PGR has no value where the ceiling is not above the teacher, and no bounds but ``no_interval``, the reason,
    where that is so in some resamples.
    """
    # paired: a resample has the same samples for all models
    values = values_of(hits)
    draws = dict(draws or draws_of(hits))
    if "pgr" in values:
        gaps = draws["ceiling"] - draws["weak"]
        draws["pgr"] = (draws["student"] - draws["weak"]) / np.where(gaps > 0, gaps, np.nan)
    figures = {}
    for name, value in values.items():
        low = high = None
        if name == "pgr":
            low, high = bounds(draws[name])
        elif value is not None:
            is_difference = name == "gain" or name.startswith("above ")
            lowest = -100.0 if is_difference else 0.0
            low, high = sample_interval(draws[name], value, len(hits), lowest)
        figures[name] = dict(value=value, low=low, high=high)
        # only a PGR has no bounds
        if value is not None and low is None:
            lacking = np.isnan(draws[name]).sum()
            figures[name]["no_interval"] = (
                f"in {lacking} of {RESAMPLES} resamples of the test samples the ceiling is not above the teacher"
                if lacking
                else "it is the same in all resamples of the test samples"
            )
    return figures


def remarks_on(
    figures: Mapping[str, Any],
    labels: str = "true labels",
    measure: str = "accuracy",
    images: int | None = None,
) -> dict[str, str]:
    """Return what a reader has to be told of the figures of one student, by what it is about.

    Args:
        figures: of ``weak``, ``student``, ``pgr`` and, where there are such, ``ceiling`` and controls with the
            difference of the student from them, ``above NAME``.
        labels: what the control direct has learned from.
        measure: what the figures are.
        images: that they are on; on few nothing is said of what was worth doing.
    """
    told: dict[str, str | None] = {}
    known = {
        name: figure["value"]
        for name, figure in figures.items()
        if isinstance(figure, Mapping) and figure["value"] is not None
    }
    lacking = [NAMES[name] for name in ("weak", "ceiling") if name not in known]
    if lacking:
        told["pgr"] = (
            f"there is no PGR, for which the {measure} of the {' and of the '.join(lacking)} would be needed"
        )
    else:
        told["gap"] = no_gap_hint(known["weak"], known["ceiling"])
        if "no_interval" in figures.get("pgr", {}):
            told["interval"] = f"the PGR has no interval: {figures['pgr']['no_interval']}"
    # a ceiling that is passed was trained worse than it could be
    if "ceiling" in known:
        for name in filter(known.__contains__, ("student", *CONTROLS)):
            told[f"{name} above ceiling"] = above_ceiling_hint(name, known[name], known["ceiling"])
    # was the teacher needed at all?
    above = figures.get("above direct")
    if not allows_advice(images):
        told["few"] = no_advice(images)
    elif above and above["low"] is not None and above["low"] <= 0:
        verdict = NOT_WORTH if above["high"] < 0 else NOT_SHOWN
        told["direct"] = (
            f"{verdict}: trained directly on {labels} the strong student has {known['direct']:.2f}, on "
            f"what the teacher says {known['student']:.2f} ({above['value']:+.2f}, 95 % interval {above['low']:+.2f} "
            f"to {above['high']:+.2f})"
        )
    return {about: text for about, text in told.items() if text}


# ---------------------------------------------------------------- what --protocol w2s ends with


def summary_of_protocol(plan: LocalPlan) -> tuple[dict, str]:
    """Return the figures of all models and their intervals over test samples as a record, and the table that the
    protocol ends with.

    Raises:
        UserError: predictions are missing, or of other test samples.
    """
    done = plan.records()
    student = done["student"]
    # what the teacher says stands in the student's file
    measured = [run for run in plan.runs if run.kind != "weak"]
    files = {run.kind: predictions_of(run.folder, run.record) for run in measured}
    answers = read_answers(files)
    hits, headline = hits_of(answers), headline_of_answers(answers)
    figures = figures_of(hits, draws_of(hits, answers))
    # what the runs have said already is not said again
    warnings = gather_warnings(done)
    splits = {name: record["data"]["splits"] for name, record in done.items()}
    remarks = remarks_on(figures, labels_of_direct(splits), WORDS[headline], len(hits))
    warnings += [text for text in remarks.values() if text not in " ".join(warnings)]
    # a control with the difference of the student from it
    controls = {}
    for name in filter(done.get, CONTROLS):
        above = figures.pop(f"above {name}")
        labels = done[name]["data"]["train_samples"]
        controls[name] = dict(figures.pop(name), student_above=above, labels=labels)
    noises = {name: record["data"]["label_noise"] for name, record in done.items()}
    record = dict(
        schema=1,
        protocol="w2s",
        # records of one class an image name no figure: it is their accuracy
        **({} if headline == HEADLINE else {"headline": headline}),
        **figures,
        gain=student.get("gain"),
        controls=controls,
        warnings=warnings,
        splits=dict(
            test=splits["student"]["val"],
            held_out=splits["student"]["select"],
            **{name: of_run["train"] for name, of_run in splits.items()},
        ),
        selected={name: record["selected"] for name, record in done.items()},
        label_noise={
            name: noise and without(noise, ["confusion"]) for name, noise in noises.items()
        },
        loss=student["loss"],
        models=dict(weak=plan.flags["teacher"], strong=plan.flags["model"]),
        seed=plan.flags["seed"],
        bootstrap=dict(
            resamples=RESAMPLES,
            confidence=CONFIDENCE,
            method="percentile, paired over test samples",
        ),
        runs={
            run.name: run.folder.name if run.folder.parent == plan.folder else str(run.folder)
            for run in plan.runs
        },
    )
    return record, f"{table_of_runs(record, len(hits))}\n* {plan.folder / RESULT}"


def labels_of_direct(splits: Mapping[str, Mapping]) -> str:
    """Return what the control direct has learned from, in words: the teacher's labels only if these are known.

    Args:
        splits: of each run, as its record has them.
    """
    direct = splits.get("direct", {}).get("train")
    if direct is None:
        return "true labels"
    labels = f"{direct['num_samples']} true labels"
    weak = splits.get("weak", {}).get("train")
    # streams have no fingerprint
    if weak is None or direct["fingerprint"] is None:
        return labels
    is_same = weak["fingerprint"] == direct["fingerprint"]
    return f"the teacher's own {labels}" if is_same else labels


def table_of_runs(record: dict, images: int | None = None) -> str:
    """Return the table that the protocol ends with; ``images`` is how many are in the test set."""
    rows = [(head, record[name]) for name, head in NAMES.items()]
    for control, figure in record["controls"].items():
        rows += [(control, figure), (f"above {control}", figure["student_above"])]
    texts = [(head, figure_text(figure)) for head, figure in rows]
    heading = HEADINGS[record.get("headline", HEADLINE)]
    return format_table(texts, ["", f"{heading} (95 % interval){of_few(images)}"])


def gather_warnings(records: Mapping[str, Mapping]) -> list[str]:
    """Return what runs warn of, each text once, with the names of its runs."""
    # runs have most of their flags in common, and so most of their warnings
    names: dict[str, list[str]] = {}
    for name, record in records.items():
        for text in record.get("warnings", ()):
            names.setdefault(text, []).append(name)
    return [f"{', '.join(runs)}: {text}" for text, runs in names.items()]


def figure_text(figure: Mapping | None, form: str = ".2f") -> str:
    """Return such as ``85.50 ± 1.20 (0.97)``; without a spread over seeds ``85.50 [83.10, 87.90]``."""
    if not figure or figure["value"] is None:
        return ""
    text = format(figure["value"], form)
    if figure["low"] is None:
        return text
    if figure.get("sd") is not None:
        return f"{text} ± {figure['high'] - figure['value']:.2f} ({figure['sd']:.2f})"
    return f"{text} [{figure['low']:{form}}, {figure['high']:{form}}]"
