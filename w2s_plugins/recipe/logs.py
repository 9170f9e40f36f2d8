"""What a run shows and writes while it trains."""

import logging
from collections.abc import Sequence

import torchvision

from ..data import Batch
from ..engine.step import mean_lr
from ..errors import UserError
from ..files import atomic_write
from ..monitor import Console
from .evaluation import EpochFigures, evaluates_average
from .run import Run

_logger = logging.getLogger(__name__)


def log_update(run: Run, console: Console, update: int, batch: Batch, number: int) -> None:
    """Show and write the averages of the epoch so far; all ranks take part."""
    terms, lr = run.position.meter.average(run.world.distributed), mean_lr(run.optimizer)
    epoch, per_epoch = run.position.epoch, run.schedule.updates_per_epoch
    console.log(epoch, run.stop, update % per_epoch, per_epoch, terms, lr)
    if not run.files:
        return
    run.files.metrics.write("train", epoch=epoch, update=update % per_epoch, step=update, lr=lr, terms=terms)
    run.files.trackers.log(update, {"lr": lr, **{f"train/{k}": v for k, v in terms.items()}})
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
    figures = found.figures
    _logger.info(f"epoch {epoch + 1}/{run.stop} done: " + " ".join(f"{k} {v:.4g}" for k, v in terms.items())
                 + "".join(f" | {s} " + " ".join(f"{k} {v:.2f}" for k, v in f.items()) for s, f in figures.items()))
    if found.shares:
        names = run.parts.data.class_names or list(map(str, range(run.parts.data.num_classes)))
        _logger.info(f"epoch {epoch + 1}/{run.stop}, share of each class in the held-out part: "
                     f"{describe_shares(found.shares, names)}")
        run.files.metrics.write("shares", epoch=epoch, **found.shares)
    run.files.metrics.write("eval", epoch=epoch, metric=found.metric, train=terms, lr=mean_lr(run.optimizer),
                            ema=evaluates_average(run), **figures)
    step = run.position.epoch * run.schedule.updates_per_epoch
    run.files.trackers.log(step, {f"{s}/{k}": v for s, f in figures.items() for k, v in f.items()})


def describe_shares(shares: dict[str, list[int]], names: Sequence[str], most: int = 5) -> str:
    """Return the largest shares of what the student says, with the teacher's beside them, and how many it never says.
    """
    student, teacher = shares["student"], shares.get("teacher")
    total = max(1, sum(student))
    order = sorted((c for c, count in enumerate(student) if count), key=lambda c: -student[c])[:most]
    told = [f"{names[c]} {100 * student[c] / total:.1f} %"
            + (f" (teacher {100 * teacher[c] / total:.1f} %)" if teacher else "") for c in order]
    return f"{', '.join(told)}; {student.count(0)} of {len(student)} classes never"
