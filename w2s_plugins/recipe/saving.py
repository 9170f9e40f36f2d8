"""Checkpoints and the other files of a run."""

import logging
import math

from ..build.run import Resumed
from ..engine.step import agree_on_unreadable, weights_are_finite
from ..errors import UserError
from ..run.restore import gather_rank_states
from ..run.saver import Saver
from .evaluation import EpochFigures
from .run import Run

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
        max_history=recorded["checkpoint_hist"] or 0,  # which rank 0 knows
        decreasing=args.eval_metric == "loss",
        milestones=args.save_epochs,
        sharded=args.fsdp,
        primary=run.world.primary,
    )
    saver.go_on_from(resumed.path, resumed.content.get("saver"))
    return saver


def refuse_broken_weights(run: Run, epoch: int, found: EpochFigures) -> bool:
    """Say whether an epoch is not to be saved, for it ended in steps and an evaluation that were not finite.

    Raises:
        UserError: that was the last epoch, or the weights themselves are not finite.
    """
    rate = f"learning rate {run.args.lr:.3g}"
    remedy = "checkpoints of earlier epochs are kept; try a lower --lr, --clip-grad 1"
    if run.position.bad_steps and not all(math.isfinite(f.get("loss", 0)) for f in found.figures.values()):
        broken = (f"epoch {epoch + 1}: the last {run.position.bad_steps} step(s) and the evaluation gave losses that "
                  f"are not finite, {rate}; it is not saved")
        if epoch + 1 == run.stop:
            raise UserError(f"{broken}, {remedy}")
        _logger.warning(broken)
        return True
    if not weights_are_finite(run.task.get_trainable_module(), run.world.distributed):
        raise UserError(f"epoch {epoch + 1}: the weights are not finite, {rate}; they are not saved, {remedy}")
    return False


def save_epoch(run: Run, epoch: int, found: EpochFigures) -> None:
    """Write what an epoch ends with."""
    if run.files:
        run.files.predictions = found.predictions
        run.files.metrics.save()
    if run.output.saver:
        run.output.saver.save_checkpoint(epoch, found.metric)
        if run.files and run.output.saver.best_epoch == epoch:
            run.files.best = found.predictions


def save_recovery(run: Run, update: int) -> None:
    """Save a checkpoint inside an epoch, unless its weights are broken; every rank takes part."""
    if not weights_are_finite(run.task.get_trainable_module(), run.world.distributed):
        _logger.warning(f"epoch {run.position.epoch + 1}, step {update + 1}: the weights are not finite; no recovery "
                        "checkpoint is written, the earlier ones are kept")
        return
    agree_on_unreadable(run.position, run.loaders["train"])
    states = gather_rank_states(run.task, run.position) if run.world.distributed else None
    if run.output.saver:
        run.output.saver.save_recovery(run.position.epoch, update, states)
