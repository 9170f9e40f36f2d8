"""What a run shows and writes while it trains."""

import logging

import torchvision

from ..data import Batch
from ..errors import UserError
from ..files import atomic_write
from ..monitor import Console
from .evaluation import EpochFigures
from .step import mean_lr
from .training_run import Run

_logger = logging.getLogger(__name__)


def log_update(run: Run, console: Console, update: int, batch: Batch, number: int) -> None:
    """Show and write the averages of the epoch so far; all ranks take part."""
    # All ranks exchange their sums; the first one goes on to write them.
    terms, lr = run.position.meter.average(run.world.distributed), mean_lr(run.optimizer)
    epoch, per_epoch = run.position.epoch, run.schedule.updates_per_epoch
    console.log(epoch, run.stop, update % per_epoch, per_epoch, terms, lr)
    if not run.files:
        return
    run.files.metrics.write("train", epoch=epoch, update=update % per_epoch, step=update, lr=lr, terms=terms)
    run.files.trackers.log(update, {"lr": lr, **{f"train/{k}": v for k, v in terms.items()}})
    # Pictures are for looking at: a full disk must not end the run for them.
    if run.args.save_images:
        try:
            with atomic_write(run.output.folder / f"train-batch-{number}.jpg") as file:
                torchvision.utils.save_image(batch.input, file, format="jpeg", normalize=True)
        except UserError as error:
            _logger.warning(f"WARNING: {error}; training goes on without this image")


def log_epoch(run: Run, epoch: int, terms: dict[str, float], found: EpochFigures) -> None:
    """Show and write the figures of an epoch, on rank 0."""
    if not run.files:
        return
    # One line for people, one event in metrics.jsonl, one point in each tracker.
    shown = [" ".join(f"{k} {v:.4g}" for k, v in terms.items())]
    for split, figures in found.figures.items():
        shown.append(split + " " + " ".join(f"{k} {v:.2f}" for k, v in figures.items()))
    _logger.info(f"epoch {epoch + 1}/{run.stop} done: " + " | ".join(shown))
    run.files.metrics.write("eval", epoch=epoch, metric=found.metric, train=terms, lr=mean_lr(run.optimizer),
                            ema=run.evaluates_average, **found.figures)
    step = run.position.epoch * run.schedule.updates_per_epoch
    run.files.trackers.log(step, {f"{s}/{k}": v for s, figures in found.figures.items() for k, v in figures.items()})
