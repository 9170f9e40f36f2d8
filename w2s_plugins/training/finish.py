"""How a run ends: with its student, its record and its export, or at a signal; and how its processes end."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import torch.distributed as dist
from timm.utils.model import unwrap_model

from ..distributed.signals import Interrupted, SignalWatch
from ..distributed.world import barrier, count_processes, gather_objects
from ..errors import STOPPING, UserError, exit_now, logger, said_of, say
from ..files import write_json
from ..hub.export import export_hashes, export_model
from ..hub.push import push_export
from ..models.loading import TimmModel, load_weights, of_timm, read_weights
from ..run import record as report
from ..run.find import find_best
from ..run.lock import unlock_run
from ..students.adapters import has_adapters, merge_adapters
from ..students.frozen import run_whole
from ..students.probe import Probe
from ..target_kind import SEVERAL_CLASSES, kind_of_task
from .fsdp import ShardedModel
from .record import make_record
from .saving import save_recovery
from .student import plain_batch_norm
from .task import evaluated_model
from .training_run import Run


def trained_student(run: Run) -> TimmModel | None:
    """Return the student, or its average where that was evaluated; a sharded one is gathered on rank 0."""
    model = evaluated_model(run.task, run.evaluates_average)
    if isinstance(model, ShardedModel):
        return model.gather()
    model = unwrap_model(model)
    run_whole(model)
    # A probe is its whole student, whose frozen part whoever loads it may train.
    return of_timm(model.student.requires_grad_(True) if isinstance(model, Probe) else model)


def finish(run: Run, model: TimmModel, seconds: float) -> dict:
    """Export the selected student, write result.json, print the closing table, publish; return the record.

    Args:
        run: the run.
        model: its student.
        seconds: that it took.
    """
    settings, files, folder = run.settings, run.files, run.folder
    select, saver = settings.evaluation.select, run.saver
    if files is None or saver is None:
        raise RuntimeError("only the first rank has the files of a run")
    files.trackers.close()
    files.metrics.save()
    evaluations = files.metrics.evaluations
    if not evaluations:
        raise UserError(
            f"{folder}: no epoch was trained (--epochs {settings.optim.epochs}, --stop-epoch "
            f"{settings.run.stop_epoch})"
        )
    if not run.position.taken:
        raise UserError(
            f"{folder}: every step was skipped, its loss or gradient was not finite: the student is "
            "untrained and not exported; try a lower --lr, --clip-grad 1 or, in float16, bfloat16"
        )

    # The epoch that is exported, and what was predicted at it: an earlier one stands in its checkpoint.
    best = report.best_of(evaluations, saver.best_epoch)
    predictions, held_out = files.predictions, files.held_out
    if select == "best" and best is not evaluations[-1]:
        with said_of("--select best: "):
            checkpoint = find_best(folder, best["epoch"])
        weights = read_weights(checkpoint.path, "--select", best["ema"], keep_adapters=True)
        load_weights(model, weights, str(checkpoint.path), "--select")
        predictions, held_out = checkpoint.predictions, checkpoint.held_out

    # What is measured and exported is a plain timm model.
    if has_adapters(model):
        merge_adapters(model)
    record = make_record(run, model, evaluations, best, seconds)
    plain_batch_norm(model)
    names, kind = run.data.class_names, run.data.target_kind
    config, thresholds = run.student.data_config, record.get("thresholds")
    if thresholds is not None:
        kind = kind_of_task(kind.task, thresholds)
    export_model(model, folder / "export", config, record, names, kind)

    # Everything else lies there before result.json, which says that the run is finished.
    record["export"] = export_hashes(folder / "export")
    if predictions is not None:
        report.write_predictions(folder / report.PREDICTIONS[select], *predictions)
        if kind.name == SEVERAL_CLASSES.name:
            report.write_classes(folder / report.CLASSES, *predictions, names, thresholds)
    if held_out is not None:
        report.write_predictions(folder / report.HELD_OUT, ["agreement"], held_out)
    write_json(folder / "result.json", record)
    # Warnings may be hours up in the log, so that they stand below the figures too.
    for line in report.with_warnings(report.closing_table(record), record["warnings"]):
        say(line)
    say(f"* exported to {folder / 'export'}")
    if settings.run.push_to_hub:
        say(f"published at {push_export(folder / 'export', settings.run.push_to_hub)}")
    return record


def stop_early(run: Run, interruption: Interrupted) -> None:
    """Save where the run stands and end the process with the exit code of the signal."""
    # The update in hand is finished. It is saved in this thread, because the process ends after that.
    save_recovery(run, max(run.updates_in_epoch - 1, 0))
    if run.files:
        logger.warning(
            f"{interruption}: stopped in epoch {run.position.epoch + 1}, step {run.updates_in_epoch}; go on with the "
            f"same command and --resume {run.folder} (a command of several runs: --resume auto)"
        )
        run.files.trackers.close()
    run.loaders.clear()  # ends the data workers
    unlock_run()
    end_process(interruption.exit_code)


def stop_between_runs() -> None:
    """End the process where a signal came while the run before was finished, which nothing interrupts by itself."""
    watch = SignalWatch.entered
    received = None if watch is None else watch.received
    # One rank may have got the signal alone, and all have to end at the same place.
    asked = [received] if count_processes() == 1 else gather_objects(received)
    if signum := next(filter(None, asked), None):
        tell_of_stop(signum)
        end_process(Interrupted(signum).exit_code)


@contextlib.contextmanager
def stop_outside_of_runs() -> Iterator[None]:
    """End the process at a signal that comes while none of several runs is trained, such as while the teacher of the
    next one is asked. While one is trained, `SignalWatch` takes the signals.
    """
    process = os.getpid()

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a data worker that has just been forked
            exit_now(128 + signum)
        raise Interrupted(signum)

    is_main = threading.current_thread() is threading.main_thread()  # no other can set a handler
    previous = {signum: signal.signal(signum, interrupt) for signum in STOPPING} if is_main else {}
    try:
        yield
    except Interrupted as interruption:
        tell_of_stop(interruption.signum)
        unlock_run()
        # the other ranks may be anywhere, so nothing is exchanged with them; torchrun ends them
        if count_processes() > 1:
            exit_now(interruption.exit_code)
        end_process(interruption.exit_code)
    finally:
        for signum, handler in previous.items():
            if signal.getsignal(signum) is interrupt:
                signal.signal(signum, handler)


def tell_of_stop(signum: int) -> None:
    """Say on the first rank that several runs stop where none is trained."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        logger.warning(
            f"{signal.Signals(signum).name}: stopped between two runs; go on with the same command and "
            "--resume auto"
        )


def end_process(code: int) -> None:
    """End this process; on several ranks without the teardown of objects, in which gloo may never return.

    Signals change nothing from here on: what is to be written is written.
    """
    # Ignored, not handled: an interpreter that ends would take any other handler away.
    for signum in STOPPING:
        signal.signal(signum, signal.SIG_IGN)
    if count_processes() > 1:
        # torchrun ends all ranks when one ends with an error, so rank 0 is waited for.
        barrier()
        dist.destroy_process_group()
        for worker in multiprocessing.active_children():
            worker.terminate()
        exit_now(code)
    if dist.is_initialized():
        dist.destroy_process_group()  # of one process, from --fsdp
    if code:
        sys.exit(code)
