"""What a run leaves beside its checkpoints: labels, predictions, figures for result.json, the closing table."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from ..files import atomic_write
from ..metrics.figures import (
    CLOSING,
    HEADINGS,
    HEADLINE,
    HEADLINE_OF_SEVERAL,
    format_figures,
    headline_name,
    of_few,
)
from ..metrics.several import class_rows
from ..monitor import format_table
from ..no_label import NO_LABEL
from ..target_kind import SEVERAL_CLASSES
from ..target_kind.table import LOGIT

LABELS_FILE, SELECTED = "labels.csv", "selected.txt"
# what the student says of each sample of the validation split, at the last epoch and at the one that ranks first
CLASSES = "classes.csv"  # of several classes an image: positives, AP and F1 of each
PREDICTIONS = {"last": "predictions_last.csv", "best": "predictions_best.csv"}

HELD_OUT = "agreement_held_out.csv"  # of student and teacher on each sample of the held-out part


def write_predictions(path: Path, columns: list[str], rows: Tensor) -> None:
    """Write predicted classes: a header, then a line a sample in the order of the data.

    Args:
        path: the file.
        columns: names such as target, student, teacher.
        rows: (N, number of columns) classes; in float32, where there are logits among them, of which NaN is left empty.
    """
    lines = rows.tolist()
    if rows.is_floating_point():
        # nine digits give a float32 back, and a whole number is one
        lines = [["" if math.isnan(x) else f"{x:.9g}" for x in line] for line in lines]
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *lines])


def write_classes(
    path: Path,
    columns: list[str],
    rows: Tensor,
    names: Sequence[str] | None,
    thresholds: Sequence[float] | None,
) -> None:
    """Write a row for each of several classes an image: its positives in the validation split, AP and F1.

    Args:
        path: the file.
        columns: those of the predictions, among them target.0 and student_logit.0 and so on.
        rows: (N, number of columns).
        names: of the classes; None for their numbers.
        thresholds: (C,) probabilities from which on a class is said to be there; None is 0.5.
    """
    # predictions have decisions beside these, which are those of one threshold
    places = {
        who: [place for place, column in enumerate(columns) if column.startswith(f"{who}.")]
        for who in ("target", f"student{LOGIT}")
    }
    truth, logits = (rows[:, places[who]].double() for who in places)
    # without ground truth there is nothing to say
    if not logits.shape[1]:
        return
    # in the order of the classes, so that the files of two runs can be compared line by line
    found = class_rows(
        names or [str(number) for number in range(logits.shape[1])],
        logits.sigmoid().numpy(),
        truth.masked_fill(truth == NO_LABEL, math.nan).numpy(),
        None if thresholds is None else np.array(thresholds),
    )
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*found[0]])
        writer.writeheader()
        writer.writerows(found)


def best_of(evaluations: list[dict], epoch: int | None) -> dict:
    """Return the evaluation of the epoch that ranked first of those with a checkpoint.

    Where none has a checkpoint it is the last one, whose weights are those that are exported.
    """
    return next((event for event in evaluations if event["epoch"] == epoch), evaluations[-1])


def with_warnings(text: str, warnings: Iterable[str]) -> list[str]:
    """Return the lines that a command ends with: what it has measured, and below it what a reader has to know."""
    return [*text.splitlines(), *(f"WARNING: {warning}" for warning in warnings)]


def label_rows(record: dict) -> dict[str, dict]:
    """Return rows of the closing table for labels in place of a teacher, where they could be compared with true ones or
    with the student. Their images are not those of the validation split, which the rows say.
    """
    teacher, held_out = record["teacher"] or {}, record.get("held_out") or {}
    labels = [source for source in teacher.get("models", ()) if "wrong" in source]
    # of several classes an image it is the share of single labels that is known, which is no mAP
    figure = HEADLINE if headline_of_record(record) == HEADLINE else "right"
    rows = {
        f"{source['name']}, on training images{of_few(source.get('samples'))}": {
            figure: 100 * (1 - source["wrong"])
        }
        for source in labels
        if source["wrong"] is not None
    }
    # the labels are of training images: they and the student can be compared on the part that was held out of these
    student = held_out.get("student")
    if labels and student and student != record["metrics"]:
        few = of_few(images_of(record, "select"))
        rows[f"labels, on the held-out part{few}"] = held_out.get("teacher") or {}
        rows[f"student, on the held-out part{few}"] = student
    return rows


def images_of(record: Mapping, *splits: str) -> int | None:
    """Return how many images the first of some splits has that a run has; 0 of a stream, None without any."""
    known = (record.get("data") or {}).get("splits") or {}
    return next((known[name]["num_samples"] for name in splits if known.get(name)), None)


def headline_of_record(record: dict) -> str:
    """Return which figure a run is known by, whether it was measured or not."""
    # a record without a kind is of one class an image, unless its figures say otherwise
    if record.get("model", {}).get("problem_type") == SEVERAL_CLASSES.problem_type:
        return HEADLINE_OF_SEVERAL
    return headline_name(record["last"])


def closing_table(record: dict) -> str:
    """Return the table that a run ends with; a star marks the epoch that was exported. Empty: nothing was measured."""
    # what only some runs measure is absent from the record of the others, and of older versions
    few_shot = record.get("few_shot") or {}
    episodes = {who: format_figures(few_shot.get(who) or {}) for who in ("teacher", "last", "best")}
    # columns by their headings, some of which only some runs have
    headline = headline_of_record(record)
    # thresholds are chosen where there is a held-out part with true labels
    shown = [name for name in CLOSING[headline] if "chosen" not in name or name in record["last"]]
    columns = {HEADINGS[name]: name for name in shown}
    columns |= {shape: shape for shape in episodes["last"]}
    of_groups = [f"top1_{name}" for name in ("many", "medium", "few")]
    columns |= {HEADINGS[name]: name for name in of_groups if name in record["last"]}

    # the teacher, the student at two epochs, the ceiling
    few = of_few(images_of(record, "val", "select"))
    of_teacher = {**(record["teacher"] or {}), **episodes["teacher"]}
    rows = {f"teacher{few}": of_teacher, **label_rows(record)}
    for name in ("last", "best"):
        label = f"student, {name} epoch ({record[name]['epoch'] + 1}){few}"
        figures = {**record[name], **episodes[name]}
        if name == record["selected"]["rule"]:
            label += " *"
            figures["pgr"] = record["pgr"]
        rows[label] = figures
    if record["ceiling_acc"] is not None:
        rows["ceiling"] = {headline: float(record["ceiling_acc"])}

    # what was not measured has no row
    table = [[label, *map(figures.get, columns.values())] for label, figures in rows.items()]
    measured = [cells for cells in table if any(cell is not None for cell in cells[1:])]
    return format_table(measured, ["", *columns]) if measured else ""
