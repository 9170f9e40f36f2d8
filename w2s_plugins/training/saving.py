"""What a run shows and writes while it trains: log lines, metrics.jsonl, trackers, checkpoints."""

import math

import torchvision

from ..data import Batch
from ..errors import UserError, logger
from ..made_of import to_plain
from ..monitor import Console
from ..run.checkpoint import Checkpoint
from ..run.restore import gather_rank_states
from ..run.saver import Saver
from .evaluation import EpochFigures, format_metrics
from .step import mean_lr, weights_are_finite
from .task import trained_module
from .training_run import Run


def create_saver(run: Run, recorded: dict[str, object], checkpoint: Checkpoint | None) -> Saver:
    """Return what writes the checkpoints of a run, and leave its folder as the one that it goes on from would have."""
    settings = run.settings
    # With sharding every rank gathers its part of the state; the first one writes it.
    saver = Saver(
        run.folder,
        task=run.task,
        optimizer=run.optimizer,
        scaler=run.precision.scaler,
        scheduler=run.schedule.scheduler,
        position=run.position,
        flags={**recorded, "made_of": to_plain(run.made_of)},
        files=run.files.state if run.files else dict,
        max_history=settings.run.checkpoint_hist,
        decreasing=settings.evaluation.eval_metric == "loss",
        milestones=settings.evaluation.save_epochs,
        primary=run.world.primary,
    )
    saver.resume_from(checkpoint)
    return saver


def log_update(run: Run, console: Console, update: int, batch: Batch, number: int) -> None:
    """Show and write the averages of the epoch so far; all ranks take part."""
    # All ranks exchange their sums; the first one goes on to write them.
    terms, lr = run.position.meter.average(run.world.distributed), mean_lr(run.optimizer)
    epoch, per_epoch = run.position.epoch, run.schedule.updates_per_epoch
    console.log(epoch, run.stop, update % per_epoch, per_epoch, terms, lr)
    if not run.files:
        return
    run.files.metrics.write(
        "train",
        epoch=epoch,
        update=update % per_epoch,
        step=update,
        lr=lr,
        terms=terms,
    )
    run.files.trackers.log(
        update, {"lr": lr, **{f"train/{name}": value for name, value in terms.items()}}
    )
    # The images as the student sees them, for looking at.
    if run.settings.run.save_images:
        torchvision.utils.save_image(
            batch.input, run.folder / f"train-batch-{number}.jpg", normalize=True
        )


def log_epoch(run: Run, epoch: int, terms: dict[str, float], outcome: EpochFigures) -> None:
    """Show and write the figures of an epoch, on rank 0."""
    if not run.files:
        return
    # One line for people, one event in metrics.jsonl, one point in each tracker.
    averages = " ".join(f"{name} {value:.4g}" for name, value in terms.items())
    logger.info(
        f"epoch {epoch + 1}/{run.stop} done: {averages} | {format_metrics(outcome.figures)}"
    )
    run.files.metrics.write(
        "eval",
        epoch=epoch,
        metric=outcome.metric,
        train=terms,
        lr=mean_lr(run.optimizer),
        ema=run.evaluates_average,
        **outcome.figures,
        **({} if outcome.thresholds is None else {"thresholds": outcome.thresholds}),
    )
    step = run.position.epoch * run.schedule.updates_per_epoch
    for split, figures in outcome.figures.items():
        run.files.trackers.log(step, {f"{split}/{name}": value for name, value in figures.items()})


def check_weights(run: Run, epoch: int, outcome: EpochFigures) -> None:
    """Raise a `UserError` where the weights, or what they give after bad steps, are not finite: nothing is saved."""
    # All ranks take part in the first question, whatever they know of the second.
    finite = weights_are_finite(trained_module(run.task), run.world.distributed)
    losses = [figures.get("loss", 0) for figures in outcome.figures.values()]
    if run.position.bad_steps and not all(map(math.isfinite, losses)):
        finite = False
    if not finite:
        raise UserError(
            f"epoch {epoch + 1}, learning rate {run.settings.optim.lr:.3g}: the weights, or what they give, are not "
            "finite; not saved, checkpoints of earlier epochs are kept; try a lower --lr, --clip-grad 1"
        )


def save_epoch(run: Run, epoch: int, outcome: EpochFigures) -> None:
    """Write what an epoch ends with."""
    # These come first, because the checkpoint carries them.
    if run.files:
        run.files.predictions, run.files.held_out = outcome.predictions, outcome.held_out
        run.files.metrics.save()
    if run.saver:
        run.saver.save_checkpoint(epoch, outcome.metric)


def save_recovery(run: Run, update: int) -> None:
    """Save a checkpoint inside an epoch, unless its weights are broken; every rank takes part."""
    if not weights_are_finite(trained_module(run.task), run.world.distributed):
        logger.warning(
            f"epoch {run.position.epoch + 1}, step {update + 1}: the weights are not finite; no recovery "
            "checkpoint is written, the earlier ones are kept"
        )
        return
    # Inside an epoch each rank has statistics and sums of its own.
    states = gather_rank_states(run.task, run.position) if run.world.distributed else None
    if run.saver:
        run.saver.save_recovery(run.position.epoch, update, states)
