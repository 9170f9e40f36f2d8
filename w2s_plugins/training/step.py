"""The pieces of a training step: seeds, the backward pass, the update, and what happens if an update is bad.

`train_w2s.train_one_epoch` calls them in that order. An update is bad if its loss or one of its gradients is not
finite.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from timm.utils.model import unwrap_model
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..data.views import hash_seed
from ..distributed.world import Precision
from ..errors import UserError, logger
from ..losses.undo import Undo
from ..private_names import copy_tensors
from .training_run import Run

_NO_SCALER = torch.amp.GradScaler(enabled=False)


def count_bad_steps(run: Run, update: int, bad: bool) -> None:
    """Count bad updates in a row, in the run's position; one that was good ends the row.

    Args:
        run: the run.
        update: number of this update, for the message.
        bad: whether its loss or a gradient was not finite.

    Raises:
        UserError: ``--nan-patience`` is reached.
    """
    position, patience = run.position, run.settings.run.nan_patience
    position.bad_steps = position.bad_steps + 1 if bad else 0
    if not bad:
        return
    # The weights are as before, because a bad step is not taken. So a few of them are only reported.
    message = (
        f"step {update}: loss or gradient is not finite, learning rate {mean_lr(run.optimizer):.3g}"
    )
    if position.bad_steps >= patience:
        raise UserError(
            f"{message}; stopped after {position.bad_steps} bad steps in a row (--nan-patience), the last "
            "good checkpoint is kept; try a lower --lr, --clip-grad 1 or, in float16, bfloat16"
        )
    logger.warning(f"{message}; the step is skipped ({position.bad_steps} of {patience} in a row)")


class BufferUndo:
    """Undoes what the forward passes of a skipped update left in buffers.

    These are the statistics of batch norm, other buffers, and the memories of losses. If a forward pass gave NaN, it is
    in them now and would stay there. Losses with a large memory have an `Undo` that notes only the entries that change;
    of all other buffers a copy is kept.

    Args:
        module: the student and its loss.
    """

    def __init__(self, module: nn.Module):
        modules = set(module.modules())
        remembering = {m for m in modules if isinstance(getattr(m, "undo", None), Undo)}
        self.memories = [undo for m in remembering if isinstance(undo := m.undo, Undo)]
        self.places = [
            (m, name) for m in modules - remembering for name, _ in m.named_buffers(recurse=False)
        ]
        self.kept: list[Tensor] = []

    @torch.no_grad()
    def keep(self) -> None:
        """Copy the buffers before an update."""
        # The copies are made once and then overwritten, because allocating them in each step would cost time. A loss
        # may replace a buffer by one of another shape; then they are made anew.
        buffers = [module.get_buffer(name) for module, name in self.places]
        if [b.shape for b in buffers] != [k.shape for k in self.kept]:
            self.kept = [b.clone() for b in buffers]
        elif buffers:
            copy_tensors(self.kept, buffers)
        for undo in self.memories:
            undo.keep()

    @torch.no_grad()
    def put_back(self) -> None:
        """Restore the buffers, because the update was skipped."""
        for (module, name), kept in zip(self.places, self.kept):
            buffer = module.get_buffer(name)
            if buffer.shape == kept.shape:
                buffer.copy_(kept)
            else:  # the loss has replaced it by a larger one
                setattr(module, name, kept.clone())
        for undo in self.memories:
            undo.put_back()


def share_statistics(module: nn.Module) -> None:
    """Give all ranks the batch norm statistics of rank 0. Once an epoch is enough: only evaluation reads them."""
    for name, buffer in unwrap_model(module).named_buffers():
        if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            dist.broadcast(buffer, 0)


@torch.no_grad()
def weights_are_finite(module: nn.Module, distributed: bool = False) -> bool:
    """Return whether all parameters and buffers of a module are finite, on all ranks. This waits for the device."""
    # A rank has only its own part of a sharded model, so the ranks compare their findings below.
    tensors = [
        t.to_local() if isinstance(t, DTensor) else t
        for t in (*module.parameters(), *module.buffers())
    ]
    finite = torch.stack([t.isfinite().all() for t in tensors]).all().to(torch.int32)
    if distributed:
        dist.all_reduce(finite, dist.ReduceOp.MIN)
    return bool(finite)


def seed_step(device: torch.device, seed: int, rank: int, epoch: int, batch: int) -> None:
    """Seed dropout and other random layers for one step, so that a resumed run draws what an uninterrupted one would.

    It does what `torch.manual_seed` does, without the millisecond that this takes on a machine without an accelerator.
    """
    # The seed depends on the position in training alone, so checkpoints need not hold the state of a generator.
    number = hash_seed(seed, rank, epoch, batch)
    torch.default_generator.manual_seed(number)
    if device.type != "cpu":
        module = torch.get_device_module(device)
        getattr(module, "manual_seed_all", module.manual_seed)(number)


def backward(loss: Tensor, optimizer: torch.optim.Optimizer, precision: Precision) -> None:
    """Compute the gradients. In float16 the loss is scaled up first, because small gradients would become 0."""
    _scaler(precision).scale(loss).backward(
        create_graph=getattr(optimizer, "is_second_order", False)
    )


def update_weights(
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    clip: Callable[[], None],
    loss: Tensor,
) -> tuple[bool, bool]:
    """Take the optimizer's step, unless a gradient is not finite.

    The step has to be left out completely. With gradients of 0 an optimizer would still decay the weights, move on by
    its momentum and count a step.

    Args:
        optimizer: its parameters have their gradients.
        precision: has the loss scaler, if there is one.
        clip: clips the gradients.
        loss: sum of the losses of this update.

    Returns:
        Whether the step was taken, which is the same on all ranks, and whether the loss of this rank was finite.
    """
    scaler = _scaler(precision)
    # Bring scaled gradients back to their true size, because clipping and the check below need it.
    scaler.unscale_(optimizer)
    gradients = [
        p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
    ]
    # The gradients decide, not the loss. DDP has averaged them over the ranks, so all ranks decide alike without asking
    # each other.
    norm = nn.utils.get_total_norm(gradients, error_if_nonfinite=False)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    # Ask the device about both at once, because each question waits until it has finished its work.
    gradients_finite, loss_finite = torch.stack([norm.isfinite(), loss.isfinite()]).tolist()
    if gradients_finite:
        clip()
        scaler.step(optimizer)
    scaler.update()
    return gradients_finite, loss_finite


def _scaler(precision: Precision) -> torch.amp.GradScaler:
    return _NO_SCALER if precision.scaler is None else precision.scaler._scaler


def mean_lr(optimizer: torch.optim.Optimizer) -> float:
    """Return the mean learning rate of the groups of parameters."""
    rates = [group["lr"] for group in optimizer.param_groups]
    return sum(rates) / len(rates)
