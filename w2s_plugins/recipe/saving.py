"""Checkpoints and the other files of a run."""

import argparse
import functools
import logging
import math

from ..errors import UserError
from ..run import checkpoint as ckpt
from ..run import record as report
from ..run.folder import Resumed
from ..run.sharded import ShardedSaver
from ..train.engine import agree_on_unreadable, weights_are_finite
from .evaluation import EpochFigures
from .run import Run

_logger = logging.getLogger(__name__)


def create_saver(run: Run, flags: set[str], resumed: Resumed) -> ckpt.Saver:
    create = functools.partial(ShardedSaver, primary=run.world.primary) if run.args.fsdp else ckpt.Saver
    saver = create(
        position=run.position,
        scheduler=run.schedule.scheduler,
        files=run.files.state if run.files else dict,
        max_failures=0 if run.args.fsdp else run.args.max_save_failures,  # ranks write shards together
        model=run.task.get_trainable_module(),
        optimizer=run.optimizer,
        args=argparse.Namespace(**{k: v for k, v in vars(run.args).items() if k in flags}),
        amp_scaler=run.precision.scaler,
        checkpoint_dir=str(run.output.folder),
        recovery_dir=str(run.output.folder),
        decreasing=run.args.eval_metric == "loss",
        max_history=run.args.checkpoint_hist,
        task=run.task,
        milestones=run.args.save_epochs,
    )
    saver.go_on_from(resumed.path, resumed.saver)
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
    """Write what an epoch ends with. Where there is no room for its checkpoint, it is not taken for the best one."""
    saver = run.output.saver
    if not run.files:
        if saver:
            saver.save_epoch(epoch, found.metric)
        return
    best = saver.best_metric is None or saver.cmp(found.metric, saver.best_metric)
    paths = [run.output.folder / report.PREDICTIONS[name] for name in (("last", "best") if best else ("last",))]
    before = paths[-1].read_bytes() if paths[-1].is_file() else None
    others = [run.files.metrics.flush, run.files.summary.flush]
    if found.predictions is not None:
        others += [functools.partial(report.write_predictions, path, *found.predictions) for path in paths]
    if not saver.save_epoch(epoch, found.metric, others):
        run.files.metrics.write("unsaved", epoch=epoch)
        if best:
            report.put_back(paths[-1], before)


def save_recovery(run: Run, update: int, background: bool = True) -> None:
    """Save a checkpoint inside an epoch, unless its weights are broken; every rank takes part."""
    if not weights_are_finite(run.task.get_trainable_module(), run.world.distributed):
        _logger.warning(f"epoch {run.position.epoch + 1}, step {update + 1}: the weights are not finite; no recovery "
                        "checkpoint is written, the earlier ones are kept")
        return
    agree_on_unreadable(run.position, run.loaders["train"])
    states = ckpt.gather_rank_states(run.task, run.position) if run.world.distributed else None
    if run.output.saver:
        run.output.saver.save_recovery(run.position.epoch, update, states, background)
