"""One epoch of training, one pass of evaluation."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from timm.task import TrainingTask
from timm.task.evaluator import ClassificationEvaluator, evaluation_sample_limit
from timm.utils import dispatch_clip_grad
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..data import Batch, TrainLoader
from ..data.views import hash_seed
from ..distributed.ddp import share_statistics
from ..distributed.heartbeat import note
from ..distributed.signals import Interrupted
from ..distributed.world import Precision
from ..errors import UserError
from ..losses.undo import Undo
from ..metrics.long_tail import ShotGroups
from ..run.position import Position, scalar_terms
from .task import first_output

_logger = logging.getLogger(__name__)
_NO_SCALER = torch.amp.GradScaler(enabled=False)


@dataclass
class StepSettings:
    """How a batch becomes an update; the flags of timm's training script."""

    accum_steps: int = 1
    clip_grad: float | None = None
    clip_mode: str = "norm"
    channels_last: bool = False
    nan_patience: int = 10
    log_interval: int = 50
    synchronize: bool = False
    loss_scale: str = "none"  # of the batch size, with scheduled image sizes
    seed: int = 42
    rank: int = 0
    distributed: bool = False
    share_statistics: bool = False  # give all ranks rank 0's batch norm statistics before the last update


class Health:
    """Counts bad steps in a row and ends the run when patience does.

    A device with a queue is asked only now and then (`check`), since every question waits for it.

    Args:
        patience: bad steps in a row that end the run.
        bad_steps: bad steps in a row so far.
    """

    def __init__(self, patience: int, bad_steps: int = 0):
        self.patience, self.bad_steps = patience, bad_steps
        self._pending: list[tuple[int, float, list[str], Tensor]] = []

    def record(self, step: int, good: Tensor | bool, result: dict[str, Tensor], lr: float) -> None:
        """Note the outcome of an update, without waiting for the device."""
        terms = scalar_terms(result)
        good = torch.as_tensor(good, device=terms["loss"].device)
        flags = torch.stack([good & torch.isfinite(terms["loss"]), *(torch.isfinite(v) for v in terms.values())])
        self._pending.append((step, lr, list(terms), flags))
        if flags.device.type == "cpu":
            self.check()

    def check(self) -> None:
        """Judge the noted steps. Raises `UserError` when patience has ended."""
        pending, self._pending = self._pending, []
        rows = torch.stack([flags for *_, flags in pending]).tolist() if pending else []
        for (step, lr, names, _), (good, *finite) in zip(pending, rows):
            if good:
                self.bad_steps = 0
                continue
            self.bad_steps += 1
            bad = [name for name, ok in zip(names, finite) if not ok and name != "loss"]
            cause = f"term {', '.join(bad)}" if bad else "the loss" if not all(finite) else "the gradient"
            self._report(f"step {step}: {cause} is not finite, learning rate {lr:.3g}")

    def _report(self, message: str) -> None:
        if self.bad_steps >= self.patience:
            raise UserError(f"{message}; stopped after {self.bad_steps} bad steps in a row (--nan-patience), the last "
                            "good checkpoint is kept; try a lower --lr, --clip-grad 1, or --amp-dtype bfloat16")
        _logger.warning(f"{message}; the step is skipped ({self.bad_steps} of {self.patience} in a row)")


class Statistics:
    """Statistics of batch norm, other buffers and the memory of losses as they were before an update, to be put back
    when the update is skipped.

    A forward pass that gave NaN has left it in them, where it would stay for ever. Modules with an `Undo` note what
    they change by themselves, since their buffers are large.

    Args:
        module: what is trained.
    """

    def __init__(self, module: nn.Module):
        self.memories = [m.undo for m in module.modules() if isinstance(getattr(m, "undo", None), Undo)]
        others = [m for m in module.modules() if not isinstance(getattr(m, "undo", None), Undo)]
        self.places = [(m, name) for m in others for name, b in m.named_buffers(recurse=False)]
        self.kept: list[Tensor] = []

    def buffers(self) -> list[Tensor]:
        """Return them as they are now; a loss may put another tensor in the place of one."""
        return [m.get_buffer(name) for m, name in self.places]

    @torch.no_grad()
    def keep(self) -> None:
        """Note them before an update."""
        buffers = self.buffers()
        if [b.shape for b in buffers] != [k.shape for k in self.kept]:
            self.kept = [b.clone() for b in buffers]
        elif buffers:
            torch._foreach_copy_(self.kept, buffers)
        for memory in self.memories:
            memory.keep()

    @torch.no_grad()
    def put_back(self) -> None:
        """Put them back: the update was skipped."""
        for (module, name), kept in zip(self.places, self.kept):
            buffer = module.get_buffer(name)
            if buffer.shape == kept.shape:
                buffer.copy_(kept)
            else:  # it has grown
                setattr(module, name, kept.clone())
        for memory in self.memories:
            memory.put_back()


@torch.no_grad()
def weights_are_finite(module: nn.Module, distributed: bool = False) -> bool:
    """True when no parameter or buffer of a module, on any rank, has NaN or infinity in it. Waits for the device."""
    tensors = [t.to_local() if isinstance(t, DTensor) else t for t in (*module.parameters(), *module.buffers())]
    floats = [t for t in tensors if t.is_floating_point()]
    flag = torch.stack([t.isfinite().all() for t in floats]).all().to(torch.int32) if floats else torch.tensor(1)
    if distributed:
        dist.all_reduce(flag, dist.ReduceOp.MIN)
    return bool(flag)


def train_one_epoch(
        position: Position,
        task: TrainingTask,
        loader: TrainLoader,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        settings: StepSettings,
        *,
        num_epochs: int,
        scheduler: object | None = None,
        on_log: Callable[[int, dict[str, float], float], None] | None = None,
        on_update: Callable[[int, int], None] | None = None,
        on_batch: Callable[[Batch, int], None] | None = None,
        waiting: Callable[[Iterable], Iterable] = iter,
) -> dict[str, float]:
    """Train for one epoch, or for what is left of it.

    Args:
        position: where to start; kept up to date.
        task: any timm training task.
        loader: batches of the epoch.
        optimizer: optimizer of the task's trainable module.
        precision: autocast and loss scaling.
        settings: how a batch becomes an update.
        num_epochs: length of the whole training, for the share that is done.
        scheduler: timm scheduler, stepped by update.
        on_log: called with the update, averages of the terms and learning rate.
        on_update: called after each update with its number in the epoch and the number of samples.
        on_batch: called with a logged batch and its number.
        waiting: wraps the batches; it may raise `Interrupted` in place of one, which undoes a half-done update.

    Returns:
        Averages of ``loss`` and of each term over the epoch.

    Raises:
        UserError: ``nan_patience`` bad steps in a row, or more unreadable samples than are allowed.
    """
    epoch, total, accum = position.epoch, len(loader), settings.accum_steps
    updates_per_epoch = -(-total // accum)
    last_group = total - total % accum if total % accum else total  # a last, shorter group of batches
    health = Health(settings.nan_patience, position.bad_steps)
    statistics = Statistics(task.get_trainable_module())
    good: Tensor | bool = True
    task.train()
    if hasattr(task, "set_epoch"):
        task.set_epoch(epoch)
    optimizer.zero_grad()
    for number, batch in _batches(position, loader, waiting, statistics, accum):
        need_update = (number + 1) % accum == 0 or number + 1 == total
        group = accum if number < last_group else total % accum
        images = batch.input
        if settings.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        if settings.share_statistics and number == (total - 1) // accum * accum:
            share_statistics(task.get_trainable_module())
        if number % accum == 0:
            statistics.keep()
        note(f"in the forward pass of batch {number + 1}, epoch {epoch + 1}")
        seed_step(precision.device, settings.seed, settings.rank, epoch, number)
        if hasattr(task, "set_progress"):
            task.set_progress((epoch * total + number) / (num_epochs * total))
        exchange_later = task.no_sync() if settings.distributed and not need_update else contextlib.nullcontext()
        with exchange_later:
            result = _forward(task, batch, images, precision)
            note(f"in the backward pass of batch {number + 1}, epoch {epoch + 1}")
            scale = _batch_scale(settings.loss_scale, len(images) / loader.average_batch_size) / group
            taken = _backward(result["loss"] * scale, task, optimizer, precision, settings, need_update)
        # a loss scaler looks for its scale in steps that are too large: those are skipped, and not bad
        good = good & (taken if precision.scaler is None else torch.isfinite(result["loss"].detach()))
        position.meter.update(result, len(images))
        position.weights.update(result, batch.target)
        position.batch = number + 1
        note(f"after batch {number + 1}, epoch {epoch + 1}")
        if not need_update:
            continue
        update = number // accum
        done = epoch * updates_per_epoch + update + 1
        if not taken:
            refuse_broken_teacher(task, images, settings.distributed)
        if taken:
            position.taken += 1
            task.update_ema(step=done)
        else:
            statistics.put_back()
        health.record(done - 1, good, result, _lr(optimizer))
        if not taken or health.bad_steps:  # no checkpoint is written during a streak, so its end is not waited for
            health.check()
        good = True
        position.bad_steps = health.bad_steps
        optimizer.zero_grad()
        if settings.synchronize and precision.device.type == "cuda":
            torch.cuda.synchronize()
        last = number + 1 == total
        logged = update % settings.log_interval == 0 or last
        if logged:
            agree_on_unreadable(position, loader)
        if on_log and logged:
            health.check()
            on_log(update, position.meter.average(settings.distributed), _lr(optimizer))
            if on_batch:
                on_batch(batch, number)
        if scheduler is not None:
            scheduler.step_update(num_updates=done, metric=None)
        if on_update:
            on_update(update, len(images) * accum)
    health.check()
    position.bad_steps = health.bad_steps
    if hasattr(optimizer, "sync_lookahead"):
        optimizer.sync_lookahead()
    return position.meter.average(settings.distributed)


def _batches(
        position: Position,
        loader: TrainLoader,
        waiting: Callable[[Iterable], Iterable],
        statistics: Statistics,
        accum: int,
) -> Iterator[tuple[int, Batch]]:
    """Yield the batches that are left of an epoch with their numbers. An interruption undoes a half-done update."""
    try:
        for number, batch in enumerate(waiting(loader.epoch(position.epoch, position.batch)), start=position.batch):
            if number % accum == 0:
                before = position.copied() if accum > 1 else None
            yield number, batch
    except Interrupted:
        if position.batch % accum and position.batch < len(loader):  # gradients are in no checkpoint
            statistics.put_back()
            position.go_back_to(before)
        raise


def agree_on_unreadable(position: Position, loader: TrainLoader) -> None:
    """Count samples that no rank could read; all ranks must call it.

    Raises:
        UserError: they are more than ``--data-errors`` allows.
    """
    skipped = getattr(loader, "skipped", None)
    if skipped is not None:
        position.unreadable = skipped.agree()


def refuse_broken_teacher(task: TrainingTask, images: Tensor, distributed: bool) -> None:
    """Raise a `UserError` when the teacher's values for images that are finite are not; all ranks must call it."""
    logits = getattr(task, "teacher_logits", None)
    if logits is None:
        return
    broken = ~logits.isfinite().all(dim=-1)
    if broken.ndim == 2:  # of several teachers
        broken = broken.any(dim=0)
    _refuse_broken(broken & images.flatten(1).isfinite().all(dim=1), "a batch", distributed)


def _refuse_broken(broken: Tensor, where: str, distributed: bool) -> None:
    counts = torch.stack([broken.sum(), torch.tensor(len(broken), device=broken.device)])
    if distributed:
        dist.all_reduce(counts)
    number, samples = counts.tolist()
    if number:
        raise UserError(f"--teacher: it gives values that are not finite for {number} of {samples} samples of {where}; "
                        "take other weights, or run it in float32")


def seed_step(device: torch.device, seed: int, rank: int, epoch: int, batch: int) -> None:
    """Seed dropout and the like for one step, so that a resumed run draws what an uninterrupted one would.

    `torch.manual_seed` would do, but takes a millisecond where there is no accelerator: it notes for each kind of them
    where it was called.
    """
    number = hash_seed(seed, rank, epoch, batch)
    torch.default_generator.manual_seed(number)
    if device.type != "cpu":
        module = torch.get_device_module(device)
        getattr(module, "manual_seed_all", module.manual_seed)(number)


def _forward(task: TrainingTask, batch: Batch, images: Tensor, precision: Precision) -> dict[str, Tensor]:
    with precision.autocast():
        if getattr(task, "takes_index", hasattr(task, "set_progress")):
            return task(images, batch.target, index=batch.index)
        return task(images, batch.target)


def _backward(
        loss: Tensor,
        task: TrainingTask,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        settings: StepSettings,
        need_update: bool,
) -> bool:
    """Backward pass and, when due, the optimizer's step. Returns whether it was taken, on all ranks alike.

    An update waits for its gradients on every device, as with a loss scaler anyway: an optimizer counts steps, decays
    weights and goes on with its momentum whatever the gradients are, so a bad step must not reach it.
    """
    scaler = _NO_SCALER if precision.scaler is None else precision.scaler._scaler
    scaler.scale(loss).backward(create_graph=getattr(optimizer, "is_second_order", False))
    if not need_update:
        return True
    scaler.unscale_(optimizer)
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    # Gradients, not the loss, decide: DDP has averaged them, so that all ranks decide alike without another exchange.
    norm = nn.utils.get_total_norm(gradients, error_if_nonfinite=False)
    good = bool(torch.isfinite(norm.full_tensor() if isinstance(norm, DTensor) else norm))
    if good:
        if settings.clip_grad is not None:
            parameters = task.get_clip_parameters(exclude_head="agc" in settings.clip_mode)
            dispatch_clip_grad(parameters, value=settings.clip_grad, mode=settings.clip_mode)
        scaler.step(optimizer)
    scaler.update()
    return good


def _batch_scale(rule: str, ratio: float) -> float:
    return {"none": 1.0, "linear": ratio, "sqrt": ratio ** 0.5}[rule]


def _lr(optimizer: torch.optim.Optimizer) -> float:
    rates = [group["lr"] for group in optimizer.param_groups]
    return sum(rates) / len(rates)


@dataclass
class Evaluation:
    """The outcome of one pass over a split.

    Args:
        metrics: ``loss``, ``top1``, ``top5`` in percent, ``agreement`` in percent where there is a teacher, and those
            of `ShotGroups` where there are such.
        teacher_metrics: the same of the teacher, where it was evaluated.
        predictions: this rank's predicted classes, in order.
        teacher_predictions: those of the teacher.
        targets: this rank's labels.
    """

    metrics: dict[str, float]
    teacher_metrics: dict[str, float] | None
    predictions: Tensor
    teacher_predictions: Tensor | None
    targets: Tensor


@torch.inference_mode()
def evaluate(
        model: Callable[[Tensor], Tensor],
        loader: Iterable,
        precision: Precision,
        *,
        distributed: bool = False,
        channels_last: bool = False,
        teacher: Callable[[Tensor], Tensor] | None = None,
        teacher_predictions: Tensor | None = None,
        valid_labels: list[int] | None = None,
        groups: ShotGroups | None = None,
        tta: int = 0,
        on_output: Callable[[Tensor, Tensor], None] | None = None,
        progress: Callable[[Iterable], Iterable] | None = None,
) -> Evaluation:
    """Evaluate a model, counting every sample once on any number of ranks.

    Args:
        model: maps images to logits.
        loader: timm's evaluation loader.
        precision: autocast.
        distributed: sum over all ranks.
        channels_last: memory layout of the images.
        teacher: also evaluate this, on the same batches.
        teacher_predictions: predicted classes of the teacher on this rank, from an earlier pass.
        valid_labels: classes that count, for a model with more.
        groups: also measure the accuracy on these classes.
        tta: consecutive views of a sample whose logits are averaged.
        on_output: called with each batch of logits and labels.
        progress: wraps the loader to show progress.

    Raises:
        UserError: the teacher gives values that are not finite.
    """
    def counted(logits: Tensor) -> Tensor:
        if tta > 1:
            logits = logits.unfold(0, tta, tta).mean(dim=2)
        return logits if valid_labels is None else logits[:, valid_labels]

    if isinstance(model, nn.Module):
        model.eval()
    note("in an evaluation")
    device, limit = precision.device, evaluation_sample_limit(loader)
    meter = ClassificationEvaluator(device, max_samples=limit)
    teacher_meter = ClassificationEvaluator(device, max_samples=limit) if teacher is not None else None
    predictions, teacher_rows, teacher_broken, targets = [], [], [], []
    for images, target in (progress(loader) if progress else loader):
        target = target.to(device)
        if isinstance(images, Tensor):  # NaFlex patches come as a dictionary, on the device already
            images = images.to(device=device, dtype=precision.dtype)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with precision.autocast():
            logits = counted(first_output(model(images)))
        target = target[::max(1, tta)][:len(logits)]
        meter.update(logits, target)
        predictions.append(logits.argmax(dim=1))
        targets.append(target)
        if teacher_meter is not None:
            teacher_logits = counted(teacher(images))
            teacher_meter.update(teacher_logits, target)
            teacher_rows.append(teacher_logits.argmax(dim=1))
            teacher_broken.append(~teacher_logits.isfinite().all(dim=1))
        if on_output:
            on_output(logits, target)
    if teacher_broken:
        _refuse_broken(torch.cat(teacher_broken)[:limit], "an evaluation", distributed)
    metrics = dict(meter.compute(distributed=distributed))
    teacher_metrics = dict(teacher_meter.compute(distributed=distributed)) if teacher_meter is not None else None
    predicted, labels = torch.cat(predictions)[:limit].cpu(), torch.cat(targets)[:limit].cpu()
    if teacher_rows:
        teacher_predictions = torch.cat(teacher_rows)[:limit].cpu()
    if teacher_predictions is not None and len(teacher_predictions) == len(predicted):
        metrics["agreement"] = _share(predicted == teacher_predictions, device, distributed)
    if groups is not None:
        metrics.update(groups.evaluate(predicted, labels, device, distributed))
        if teacher_metrics is not None:
            teacher_metrics.update(groups.evaluate(teacher_predictions, labels, device, distributed))
    note("after an evaluation")
    return Evaluation(metrics, teacher_metrics, predicted, teacher_predictions, labels)


def _share(hits: Tensor, device: torch.device, distributed: bool) -> float:
    counts = torch.tensor([int(hits.sum()), len(hits)], device=device)
    if distributed:
        dist.all_reduce(counts)
    return 100.0 * int(counts[0]) / max(1, int(counts[1]))
