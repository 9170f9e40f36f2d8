"""What a run ends with: its student, its record, its export."""

import argparse
import logging
from pathlib import Path

import torch
from timm.utils import unwrap_model

from ..build.record import Outcome, make_record
from ..build.student import plain_batch_norm
from ..errors import UserError
from ..files import delete, write_json
from ..hub.export import export_hashes, export_model
from ..hub.push import push_export
from ..models.loading import load_weights, read_weights
from ..run import record as report
from ..run.find import find_best
from ..run.restore import stored_predictions
from ..students.adapters import has_adapters, merge_adapters
from ..tokens import say
from .evaluation import evaluate_test_sets, predictions_of
from .training_run import Run

_logger = logging.getLogger(__name__)


def trained_student(run: Run) -> torch.nn.Module | None:
    """Return the student, or its average where that was evaluated; a sharded one is gathered on rank 0."""
    model = run.task.get_eval_model(ema=run.evaluates_average)
    if run.args.fsdp:
        return model.gather()
    model = unwrap_model(model)
    return model.student.requires_grad_(True) if run.args.linear_probe else model


def take_best(run: Run, model: torch.nn.Module, best: dict) -> tuple[list[str], torch.Tensor] | None:
    """Load the weights of the epoch that ranked first, for ``--select best``; return its predictions."""
    # The checkpoint of that epoch may be gone: it is needed only where it is to be exported.
    folder = run.output.folder
    try:
        path, content = find_best(folder, best["epoch"], run.args.fsdp)
    except UserError as error:
        if run.args.select == "best":
            raise UserError(f"--select best: {error}; --select last exports the last epoch") from error
        _logger.warning(f"WARNING: {error}; there is no {report.PREDICTIONS['best']}")
        delete(folder / report.PREDICTIONS["best"])
        return None
    if run.args.select == "best":
        load_weights(model, read_weights(path, "--select", best["ema"], keep_adapters=True), str(path), "--select")
    return stored_predictions(content.get("w2s") or {})


def finish(run: Run, model: torch.nn.Module, seconds: float) -> dict:
    """Export the selected student, write result.json, print the closing table, publish; return the record.

    Args:
        run: the run.
        model: its student.
        seconds: that it took.
    """
    args, parts, files, folder = run.args, run.parts, run.files, run.output.folder
    files.trackers.close()
    files.metrics.save()
    evaluations = files.metrics.evaluations
    if not evaluations:
        raise UserError(f"{folder}: no epoch was trained (--epochs {args.epochs}, --stop-epoch {args.stop_epoch})")
    if not run.position.taken:
        raise UserError(f"{folder}: every step was skipped, its loss or gradient was not finite: the student is "
                        "untrained and not exported; try a lower --lr, --clip-grad 1, or --amp-dtype bfloat16")

    # The epoch that is exported, and what was said at it: of an earlier one that stands in its checkpoint.
    best = report.best_of(evaluations, run.output.saver.best_epoch)
    predictions = dict.fromkeys(report.PREDICTIONS, files.predictions)
    if best is not evaluations[-1]:
        known = files.best if args.select == "last" else None  # they are in the checkpoint as well
        predictions["best"] = known or take_best(run, model, best)

    # What is measured and exported is a plain timm model.
    if has_adapters(model):
        merge_adapters(model)
    tests, failed = evaluate_test_sets(run, model)
    record = make_record(
        args, model, parts,
        Outcome(best, run.weak_metrics, run.position, seconds, evaluations, tests, failed))
    plain_batch_norm(model)
    export_model(model, folder / "export", parts.student.data_config, record, parts.data.class_names)

    # Everything else lies there before result.json, which says that the run is finished.
    record["export"] = export_hashes(folder / "export")
    for name, found in predictions.items():
        if found is not None:
            report.write_predictions(folder / report.PREDICTIONS[name], *found)
    for name, found in tests.items():
        report.write_predictions(folder / report.predictions_on(name), *predictions_of(found))
    for name in failed:
        delete(folder / report.predictions_on(name))
    write_json(folder / "result.json", record)
    for warning in record["warnings"]:
        _logger.warning(f"WARNING: {warning}")
    table = report.closing_table(record)
    if table:
        print(table)
    say(f"* exported to {folder / 'export'}" if table else f"Student exported to {folder / 'export'}")
    publish(args, folder)
    return record


def publish(args: argparse.Namespace, folder: Path) -> None:
    """Publish the student, where that is asked for.

    Raises:
        UserError: it could not be published; it says how to try again.
    """
    if args.push_to_hub:
        where = push_export(
            folder / "export", args.push_to_hub, private=args.hub_private or None, revision=args.hub_revision)
        say(f"published at {where}")
