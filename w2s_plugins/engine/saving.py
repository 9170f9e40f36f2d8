"""Checkpoints and the other files of a run."""

import logging
import math

from ..build.run import Resumed
from ..errors import UserError
from ..run.restore import fitting, gather_rank_states
from ..run.saver import Saver
from .evaluation import EpochFigures
from .step import agree_on_unreadable, weights_are_finite
from .training_run import Run

_logger = logging.getLogger(__name__)


def create_saver(run: Run, recorded: dict[str, object], resumed: Resumed) -> Saver:
    """Return what writes the checkpoints of a run, and leave its folder as the one that it goes on from would have."""
    args = run.args
    saver = Saver(
        run.output.folder,
        task=run.task,
        optimizer=run.optimizer,
        scaler=run.precision.scaler,
        scheduler=run.schedule.scheduler,
        position=run.position,
        flags={**recorded, **run.parts.made_of},
        files=run.files.state if run.files else dict,
        max_history=args.checkpoint_hist,
        decreasing=args.eval_metric == "loss",
        milestones=args.save_epochs,
        sharded=args.fsdp,
        primary=run.world.primary,
    )
    with fitting(resumed.path):
        saver.resume_from(resumed.path, resumed.content.get("saver"))
    return saver


def save_epoch(run: Run, epoch: int, found: EpochFigures) -> None:
    """Write what an epoch ends with."""
    # These come first, because the checkpoint carries them.
    if run.files:
        run.files.predictions = found.predictions
        run.files.metrics.save()
    if run.output.saver:
        run.output.saver.save_checkpoint(epoch, found.metric)
        if run.files and run.output.saver.best_epoch == epoch:
            run.files.best = found.predictions


def refuse_broken_weights(run: Run, epoch: int, found: EpochFigures) -> bool:
    """Say whether an epoch is not to be saved, for it ended in steps and an evaluation that were not finite.

    Raises:
        UserError: that was the last epoch, or the weights themselves are not finite.
    """
    where = f"epoch {epoch + 1}, learning rate {run.args.lr:.3g}"
    remedy = "not saved, checkpoints of earlier epochs are kept; try a lower --lr, --clip-grad 1"
    losses = [figures.get("loss", 0) for figures in found.figures.values()]
    if run.position.bad_steps and not all(map(math.isfinite, losses)):
        broken = f"{where}: the last {run.position.bad_steps} step(s) and the evaluation are not finite; {remedy}"
        if epoch + 1 == run.stop:
            raise UserError(broken)
        _logger.warning(broken)
        return True
    if not weights_are_finite(run.task.get_trainable_module(), run.world.distributed):
        raise UserError(f"{where}: the weights are not finite; {remedy}")
    return False


def save_recovery(run: Run, update: int) -> None:
    """Save a checkpoint inside an epoch, unless its weights are broken; every rank takes part."""
    if not weights_are_finite(run.task.get_trainable_module(), run.world.distributed):
        _logger.warning(f"epoch {run.position.epoch + 1}, step {update + 1}: the weights are not finite; no recovery "
                        "checkpoint is written, the earlier ones are kept")
        return
    # Inside an epoch each rank has statistics and sums of its own.
    agree_on_unreadable(run.position, run.loaders["train"])
    states = gather_rank_states(run.task, run.position) if run.world.distributed else None
    if run.output.saver:
        run.output.saver.save_recovery(run.position.epoch, update, states)
