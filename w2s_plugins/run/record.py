"""What a run leaves beside its checkpoints: labels, predictions, figures for result.json, the closing table."""

import csv
from collections.abc import Iterable
from pathlib import Path

import timm
from torch import Tensor, nn

from ..errors import UserError
from ..files import atomic_write, write_text
from ..labels.splits import Data
from ..metrics.figures import format_figures
from ..metrics.long_tail import CLASS_COUNTS, counts_to_json
from ..metrics.pgr import performance_gap_recovered
from ..models.class_names import write_class_names
from ..monitor import format_table

LABELS, SELECTED = "labels.csv", "selected.txt"
# what the student says of each sample of the validation split, at the last epoch and at the one that ranks first
PREDICTIONS = {"last": "predictions_last.csv", "best": "predictions_best.csv"}


def predictions_on(name: str) -> str:
    """Return the file with what the selected student says of a test set beside the validation split."""
    return f"predictions_on_{name}.csv"


def write_predictions(path: Path, columns: list[str], rows: Tensor) -> None:
    """Write predicted classes: a header, then a line a sample in the order of the data.

    Args:
        path: the file.
        columns: names such as target, student, teacher.
        rows: (N, number of columns) classes.
    """
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows.tolist()])


def write_labels(folder: Path, data: Data, split: str) -> None:
    """Write the names of the classes, the labels of the training split, where there is label noise, its class counts,
    where accuracy is measured by them, and which samples were selected.
    """
    write_class_names(folder, data.class_names)
    if data.groups is not None:
        write_text(folder / CLASS_COUNTS, counts_to_json(split, data.groups.counts))
    if data.noise is not None:
        write_text(folder / LABELS, data.noise.to_csv())
    if data.selection is not None:
        write_text(folder / SELECTED, data.selection.to_text())


def best_of(evaluations: list[dict], epoch: int | None) -> dict:
    """Return the evaluation of the epoch that ranked first of those with a checkpoint.

    Where none has a checkpoint it is the last one, whose weights are those that are exported.
    """
    return next((event for event in evaluations if event["epoch"] == epoch), evaluations[-1])


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
    """Return the table that a run ends with; a star marks the epoch that was exported. Empty: nothing was measured."""
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
    for name, found in record.get("test_sets", {}).items():
        for who, figures in (("teacher", found["teacher"]), ("student", found)):
            if figures:
                rows.append([f"{who}, {name}", figures["top1"], figures["top5"], figures.get("agreement"), None,
                             *(None for _ in (*shapes, *shots))])
    if record["ceiling_acc"] is not None:
        rows.append(["ceiling", float(record["ceiling_acc"]), None, None, None,
                     *(None for _ in (*shapes, *shots))])
    if all(cell is None for row in rows for cell in row[1:]):
        return ""
    heads = [s.replace("top1_", "top-1 ") for s in shots]
    return format_table(rows, ["", "top-1", "top-5", "agreement", "PGR", *shapes, *heads])


def refuse_unmeasured(
        records: Iterable[dict],
        rest: str = "written, and the same command with --resume measures what is missing",
) -> None:
    """Raise a `UserError` where a student could not be measured on a test set; ``rest`` is what became of all else."""
    if failed := dict.fromkeys(reason for record in records for reason in record.get("failed_test_sets", {}).values()):
        raise UserError(f"{'; '.join(failed)}; everything else is {rest}")
