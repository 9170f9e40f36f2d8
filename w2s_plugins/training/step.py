"""What a training step is made of: bad steps, buffers, seeds, backward and step."""

import logging
from collections.abc import Callable

import torch
import torch.distributed as dist
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype

from ..data.views import hash_seed
from ..distributed.world import Precision
from ..errors import UserError
from ..losses.undo import Undo

_logger = logging.getLogger(__name__)
_NO_SCALER = torch.amp.GradScaler(enabled=False)


def count_bad_steps(before: int, patience: int, step: int, bad: bool, lr: float) -> int:
    """Return how many updates in a row, this one included, were bad: loss or gradient was not finite.

    Args:
        before: how many there were until now.
        patience: bad steps in a row that end the run.
        step: number of the update.
        bad: this one is.
        lr: learning rate, for the message.

    Raises:
        UserError: patience has ended.
    """
    if not bad:
        return 0
    # Patience ends the run; until then the step, which was not taken, is only told.
    count = before + 1
    message = f"step {step}: loss or gradient is not finite, learning rate {lr:.3g}"
    if count >= patience:
        raise UserError(f"{message}; stopped after {count} bad steps in a row (--nan-patience), the last good "
                        "checkpoint is kept; try a lower --lr, --clip-grad 1 or, in float16, bfloat16")
    _logger.warning(f"{message}; the step is skipped ({count} of {patience} in a row)")
    return count


class BufferUndo:
    """Puts the statistics of batch norm, other buffers and the memory of losses back when an update is skipped.

    A forward pass that gave NaN has left it in them, where it would stay. Modules with an `Undo` note what
    they change by themselves, since their buffers are large.

    Args:
        module: what is trained.
    """

    def __init__(self, module: nn.Module):
        modules = set(module.modules())
        remembering = {m for m in modules if isinstance(getattr(m, "undo", None), Undo)}
        self.memories = [m.undo for m in remembering]
        self.places = [
            (m, name)
            for m in modules - remembering
            for name, _ in m.named_buffers(recurse=False)
        ]
        self.kept: list[Tensor] = []

    @torch.no_grad()
    def keep(self) -> None:
        """Note them before an update."""
        # A loss may put another tensor in the place of one. Storage is made once and written over.
        buffers = [module.get_buffer(name) for module, name in self.places]
        if [b.shape for b in buffers] != [k.shape for k in self.kept]:
            self.kept = [b.clone() for b in buffers]
        elif buffers:
            for (kept, now), _ in _group_tensors_by_device_and_dtype([self.kept, buffers]).values():
                torch._foreach_copy_(kept, now)  # several dtypes in one call would be copied one by one on CUDA
        for undo in self.memories:
            undo.keep()

    @torch.no_grad()
    def put_back(self) -> None:
        """Put them back: the update was skipped."""
        for (module, name), kept in zip(self.places, self.kept):
            buffer = module.get_buffer(name)
            if buffer.shape == kept.shape:
                buffer.copy_(kept)
            else:  # it has grown
                setattr(module, name, kept.clone())
        for undo in self.memories:
            undo.put_back()


def share_statistics(module: nn.Module) -> None:
    """Give all ranks the batch norm statistics of rank 0, once an epoch: training does not read them."""
    for name, buffer in unwrap_model(module).named_buffers():
        if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            dist.broadcast(buffer, 0)


@torch.no_grad()
def weights_are_finite(module: nn.Module, distributed: bool = False) -> bool:
    """True when no parameter or buffer of a module, on any rank, has NaN or infinity in it. Waits for the device."""
    # Of a sharded model each rank looks at its own part.
    tensors = [
        t.to_local() if isinstance(t, DTensor) else t
        for t in (*module.parameters(), *module.buffers())
    ]
    finite = torch.stack([t.isfinite().all() for t in tensors]).all().to(torch.int32)
    if distributed:
        dist.all_reduce(finite, dist.ReduceOp.MIN)
    return bool(finite)


def seed_step(device: torch.device, seed: int, rank: int, epoch: int, batch: int) -> None:
    """Seed dropout and the like for one step, so that a resumed run draws what an uninterrupted one would.

    `torch.manual_seed` would do, but takes a millisecond where there is no accelerator: it notes for each kind of them
    where it was called.
    """
    # A function of the position alone: no state of a generator has to be in checkpoints.
    number = hash_seed(seed, rank, epoch, batch)
    torch.default_generator.manual_seed(number)
    if device.type != "cpu":
        module = torch.get_device_module(device)
        getattr(module, "manual_seed_all", module.manual_seed)(number)


def backward(loss: Tensor, optimizer: torch.optim.Optimizer, precision: Precision) -> None:
    """Backward pass, scaled where float16 needs it."""
    _scaler(precision).scale(loss).backward(create_graph=getattr(optimizer, "is_second_order", False))


def update_weights(
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        clip: Callable[[], None],
        loss: Tensor,
) -> tuple[bool, bool]:
    """Take the optimizer's step unless a gradient is not finite.

    An update waits for its gradients on every device, as with a loss scaler anyway: an optimizer counts steps, decays
    weights and goes on with its momentum whatever the gradients are, so a bad step must not reach it.

    Args:
        optimizer: its gradients are there.
        precision: has the loss scaler.
        clip: clips the gradients.
        loss: of the update.

    Returns:
        Whether the step was taken, on all ranks alike, and whether the loss of this rank was finite.
    """
    scaler = _scaler(precision)
    # Gradients in their true size: clipping and the check below need it.
    scaler.unscale_(optimizer)
    gradients = [
        p.grad
        for group in optimizer.param_groups
        for p in group["params"]
        if p.grad is not None
    ]
    # Gradients, not the loss, decide: DDP has averaged them, so that all ranks decide alike without another exchange.
    norm = nn.utils.get_total_norm(gradients, error_if_nonfinite=False)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    # One question to the device for both, because every question waits for it.
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
