"""Memory by sample: what a loss remembers of each training sample, the same on every rank."""

import torch
import torch.distributed
from torch import Tensor, nn

from ..distributed.world import count_processes
from ..errors import UserError
from .base import LossContext
from .undo import Undo

_LARGEST_RATE = 0.2  # of `ClassShift`
_VISITS = 10  # of a class, until its b has changed much


def gather_rows(*tensors: Tensor) -> list[Tensor]:
    """Return each tensor with the rows of all ranks joined in rank order; as it is when there is one process.

    Args:
        *tensors: of one first dimension, which may differ between ranks; without gradient.
    """
    # one process has all rows
    world_size = count_processes()
    if world_size == 1:
        return list(tensors)
    # ranks may have batches of different sizes
    count = torch.tensor([len(tensors[0])], device=tensors[0].device)
    gathered = [torch.empty_like(count) for _ in range(world_size)]
    torch.distributed.all_gather(gathered, count)
    counts = torch.cat(gathered).tolist()
    return [_gather_padded(tensor, counts) for tensor in tensors]


def merge_repeats(index: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each row whether its index occurs in it first, the sum of all rows of that index and how many they
    are, (B, 1), (B, C), (B, 1), without waiting for the device to say which indices repeat.

    Repeated augmentation and batches that are filled up have a sample more than once.

    Args:
        index: (B,).
        rows: (B, C).
    """
    # equal indices lie side by side once they are sorted
    positions = torch.arange(len(index), device=index.device)
    values, order = index.sort(stable=True)
    starts = torch.where(values == values.roll(1), 0, positions).cummax(dim=0).values
    # for each row the first of its index, to which all are added
    first = torch.empty_like(order).scatter(0, order, order[starts])
    sums = torch.zeros_like(rows).index_add(0, first, rows)[first]
    counts = torch.zeros_like(index).index_add(0, first, torch.ones_like(index))[first]
    return (first == positions).unsqueeze(1), sums, counts.unsqueeze(1)


def size_of(context: LossContext, name: str) -> int:
    """Return the number of training samples. Raises `UserError` where it is not known, as with iterable datasets."""
    if context.num_samples is None:
        raise UserError(
            f"loss '{name}' keeps a memory by sample and needs a dataset of known size, "
            "this one is iterable"
        )
    return context.num_samples


class PredictionMemory(nn.Module):
    """Exponential moving average of the predictions on each training sample, corrected for its start at zero.

    Args:
        decay: share kept at each visit, in [0, 1).
        num_samples: N.
        num_classes: C. The memory takes N * C * 4 bytes: 0.02 GB for CIFAR-100, 5.1 GB for ImageNet-1k.
    """

    mean: Tensor
    visits: Tensor

    def __init__(self, decay: float, num_samples: int, num_classes: int):
        super().__init__()
        self.decay = decay
        self.undo = Undo()
        self.register_buffer("mean", torch.zeros(num_samples, num_classes))
        self.register_buffer("visits", torch.zeros(num_samples, dtype=torch.int32))

    def read(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the averages (B, C), each of sum 1, or 0 where a sample was never seen, and whether it was (B,)."""
        # an average that began at 0 has the mass 1 - decay^visits
        visits = self.visits[index]
        mass = 1 - self.decay ** visits.clamp(min=1).to(self.mean.dtype)
        return self.mean[index] / mass.unsqueeze(1), visits > 0

    @torch.no_grad()
    def update(self, index: Tensor, probabilities: Tensor) -> None:
        """Take in the predictions (B, C) of all ranks; a sample that occurs twice makes one visit, with the mean."""
        # every rank takes in all rows, so that all remember the same
        index, probabilities = gather_rows(index, probabilities.to(self.mean.dtype))
        _, sums, counts = merge_repeats(index, probabilities)
        self.undo.note(self.mean, self.visits, index=index)
        predicted = sums / counts
        self.mean[index] = self.decay * self.mean[index] + (1 - self.decay) * predicted
        self.visits[index] += 1


class ClassShift(nn.Module):
    """A number b_c to add to each logit of a class, with which the mean softmax follows given shares pi of the classes.

    b minimises the convex mean of logsumexp(w + b) - <pi, b>, whose gradient is the difference of shares; each batch
    takes the step b_c <- b_c - rate * (mean of softmax(w + b)_c / pi_c - 1). The rate is 0.2, or less where a batch has
    less than two samples a class, so that a class is seen about ten times before its b has changed much.

    Args:
        shares: (C,), above 0; scaled to sum 1.
    """

    shares: Tensor
    bias: Tensor

    def __init__(self, shares: Tensor):
        super().__init__()
        self.undo = Undo()
        self.register_buffer("shares", shares / shares.sum(), persistent=False)
        self.register_buffer("bias", torch.zeros_like(shares))

    @torch.no_grad()
    def update(self, logits: Tensor) -> None:
        """Take one step on the logits (B, C) of all ranks."""
        # one step down the gradient, of the batch of all ranks
        predicted = (logits + self.bias.to(logits.dtype)).softmax(dim=1)
        (rows,) = gather_rows(predicted)
        rate = min(_LARGEST_RATE, len(rows) / (_VISITS * len(self.bias)))
        self.undo.note(self.bias)
        self.bias -= rate * (rows.mean(dim=0).to(self.bias.dtype) / self.shares - 1)


def _gather_padded(tensor: Tensor, counts: list[int]) -> Tensor:
    # an exchange needs tensors of one size
    padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in counts]
    torch.distributed.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts)])
