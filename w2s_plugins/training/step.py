"""What a training step is made of: bad steps, buffers, seeds, backward and step."""

import logging
import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype

from ..data.views import hash_seed
from ..distributed.world import Precision
from ..errors import UserError
from ..losses.undo import Undo
from ..students.probe import Probe

_logger = logging.getLogger(__name__)
_NO_SCALER = torch.amp.GradScaler(enabled=False)


class BadSteps:
    """Counts updates in a row whose loss or gradient was not finite, and ends the run when patience does.

    A device with a queue is asked only now and then (`check`), since every question waits for it.

    Args:
        patience: bad steps in a row that end the run.
        in_a_row: how many there have been so far.
    """

    def __init__(self, patience: int, in_a_row: int = 0):
        self.patience, self.in_a_row = patience, in_a_row
        self._pending: list[tuple[int, float, bool, Tensor]] = []

    def record(self, step: int, loss: Tensor, gradients_finite: bool, lr: float) -> None:
        """Note the outcome of an update, without waiting for the device for its loss."""
        self._pending.append((step, lr, gradients_finite, loss))
        if loss.device.type == "cpu":
            self.check()

    def check(self) -> None:
        """Judge the noted steps. Raises `UserError` when patience has ended."""
        if not self._pending:
            return
        # One question to the device for all steps since the last check.
        pending, self._pending = self._pending, []
        losses_finite = torch.stack([loss for *_, loss in pending]).isfinite().tolist()
        for (step, lr, gradients_finite, _), loss_finite in zip(pending, losses_finite):
            if gradients_finite and loss_finite:
                self.in_a_row = 0
                continue
            # Patience ends the run; until then the step, which was not taken, is only told.
            self.in_a_row += 1
            message = f"step {step}: loss or gradient is not finite, learning rate {lr:.3g}"
            if self.in_a_row >= self.patience:
                raise UserError(f"{message}; stopped after {self.in_a_row} bad steps in a row (--nan-patience), the "
                                "last good checkpoint is kept; try a lower --lr, --clip-grad 1, or --amp-dtype "
                                "bfloat16")
            _logger.warning(f"{message}; the step is skipped ({self.in_a_row} of {self.patience} in a row)")


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
        # The encoder below a probe is not run: its features are stored.
        unused = {part for m in modules if isinstance(m, Probe) for part in m.modules()}
        self.places = [
            (m, name) for m in modules - remembering - unused for name, _ in m.named_buffers(recurse=False)]
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


@torch.no_grad()
def weights_are_finite(module: nn.Module, distributed: bool = False) -> bool:
    """True when no parameter or buffer of a module, on any rank, has NaN or infinity in it. Waits for the device."""
    # Of a sharded model each rank looks at its own part.
    tensors = [t.to_local() if isinstance(t, DTensor) else t for t in (*module.parameters(), *module.buffers())]
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


def update_weights(optimizer: torch.optim.Optimizer, precision: Precision, clip: Callable[[], None]) -> bool:
    """Take the optimizer's step unless a gradient is not finite. Returns whether it was taken, on all ranks alike.

    An update waits for its gradients on every device, as with a loss scaler anyway: an optimizer counts steps, decays
    weights and goes on with its momentum whatever the gradients are, so a bad step must not reach it.

    Args:
        optimizer: its gradients are there.
        precision: has the loss scaler.
        clip: clips the gradients.
    """
    scaler = _scaler(precision)
    # Gradients in their true size: clipping and the check below need it.
    scaler.unscale_(optimizer)
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    # Gradients, not the loss, decide: DDP has averaged them, so that all ranks decide alike without another exchange.
    norm = nn.utils.get_total_norm(gradients, error_if_nonfinite=False)
    finite = math.isfinite(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    if finite:
        clip()
        scaler.step(optimizer)
    scaler.update()
    return finite


def _scaler(precision: Precision) -> torch.amp.GradScaler:
    return _NO_SCALER if precision.scaler is None else precision.scaler._scaler


def mean_lr(optimizer: torch.optim.Optimizer) -> float:
    """Return the mean learning rate of the groups of parameters."""
    rates = [group["lr"] for group in optimizer.param_groups]
    return sum(rates) / len(rates)
