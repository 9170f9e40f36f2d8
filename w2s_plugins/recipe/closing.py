"""What a run ends with: its student, its record, its export."""

import logging

import torch
from timm.utils import unwrap_model

from ..build.student import plain_batch_norm
from ..errors import UserError
from ..files import write_json
from ..hub.export import export_hashes, export_model
from ..hub.push import push_export
from ..models.class_names import names_of_data
from ..models.loading import load_weights, read_weights
from ..run import checkpoint as ckpt
from ..run import record as report
from .evaluation import evaluates_average
from .run import Run

_logger = logging.getLogger(__name__)


def trained_student(run: Run) -> torch.nn.Module | None:
    """Return the student, or its average where that was evaluated; a sharded one is gathered on rank 0."""
    model = run.task.get_eval_model(ema=evaluates_average(run))
    if run.args.fsdp:
        return model.gather()
    model = unwrap_model(model)
    return model.student.requires_grad_(True) if run.args.linear_probe else model


def finish(run: Run, model: torch.nn.Module, seconds: float) -> dict:
    """Export the selected student, write result.json, print the closing table, publish; return the record."""
    args, output, parts = run.args, run.output, run.parts
    folder = output.folder
    run.files.trackers.close()
    run.files.flush()
    history = report.read_history(run.files.metrics.path)
    if not history:
        raise UserError(f"{folder}: no epoch was trained (--epochs {args.epochs}, --stop-epoch {args.stop_epoch})")
    if not run.position.taken:
        raise UserError(f"{folder}: every step was skipped, its loss or gradient was not finite: the student is "
                        "untrained and not exported; try a lower --lr, --clip-grad 1, or --amp-dtype bfloat16")
    best = report.best_of(history, args.eval_metric)
    if args.select == "best" and not best.get("unsaved"):
        path = ckpt.find_best(folder, best["epoch"], args.fsdp)
        load_weights(model, read_weights(path, "--select", best["ema"]), str(path), "--select")
    record = report.make_record(
        args, model, parts.student.source, parts.teacher, parts.targets, run.weak_metrics, parts.data,
        parts.student.data_config, history, run.position, seconds)
    if output.saver.best_epoch is not None and output.saver.best_epoch not in {event["epoch"] for event in history}:
        record["warnings"].append(f"metrics.jsonl has lost epoch {output.saver.best_epoch + 1}, which ranked first")
    plain_batch_norm(model)
    export_model(model, folder / "export", parts.student.data_config, record, names_of_data(parts.data.train))
    if module := record["model"]["plugin_module"]:
        _logger.info(f"The architecture of the export is not one of timm's own: timm loads it after `import {module}`")
    record["export"] = export_hashes(folder / "export")
    write_json(folder / "result.json", record)  # last: it says that the run is finished
    for warning in record["warnings"]:
        _logger.warning(f"WARNING: {warning}")
    print(report.closing_table(record))
    print(f"* exported to {folder / 'export'}")
    if args.push_to_hub:
        url = push_export(folder / "export", args.push_to_hub, private=args.hub_private or None,
                          revision=args.hub_revision, commit_message=args.hub_commit_message)
        print(f"published at {url}")
    return record
