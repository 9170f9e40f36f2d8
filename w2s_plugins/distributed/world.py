"""This process among others."""

import contextlib
import itertools
import time
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from timm.utils.cuda import NativeScaler
from torch import Tensor

from ..private_names import get_default_store

Value = TypeVar("Value")

GRACE = 2.0  # seconds, in which a signal to all processes comes to each of them


@dataclass
class World:
    """This process among others, and its device."""

    device: torch.device
    rank: int
    size: int
    distributed: bool

    @property
    def primary(self) -> bool:
        return self.rank == 0

    @classmethod
    def alone(cls, device: str) -> "World":
        """This process without others, whom it asks nothing, whether there are any or not."""
        return cls(torch.device(device), 0, 1, False)


@dataclass
class Precision:
    """Autocast, loss scaling, and how images lie in memory.

    Args:
        device: where the model runs.
        dtype: dtype of images and model.
        amp_dtype: dtype of autocast, None without mixed precision.
        scaler: timm's loss scaler, for float16.
        layout: memory format of images and model.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    amp_dtype: torch.dtype | None = None
    scaler: NativeScaler | None = None
    layout: torch.memory_format = torch.contiguous_format

    def autocast(self) -> contextlib.AbstractContextManager:
        # entered anew at each step: an autocast keeps the weights that it has cast for as long as it is entered
        if self.amp_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.amp_dtype)


def count_processes() -> int:
    """Return the number of processes of this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather_objects(value: object) -> list:
    """Return the value of every rank, on every rank. All must call it."""
    # pickled, and so for small things alone
    gathered: list = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def gather_in_dataset_order(rows: Tensor, distributed: bool) -> Tensor:
    """Return the rows of all ranks, dealt out one by one as by the evaluation loader, in the order of the dataset."""
    # one process has them in order already
    if not distributed:
        return rows
    # rank r has the rows r, r + size, r + 2 * size, ...
    gathered = gather_objects(rows.cpu())
    full = torch.empty(sum(map(len, gathered)), *rows.shape[1:], dtype=rows.dtype)
    for rank, part in enumerate(gathered):
        full[rank :: len(gathered)] = part
    return full


_barriers = itertools.count()


def barrier() -> None:
    """Wait for all processes, however long one of them takes: an exchange has a limit, a process that lives has none."""
    store = get_default_store()
    size = dist.get_world_size()
    key = f"w2s/barrier{next(_barriers)}"
    # each counts itself, and asks for the count less and less often
    arrived = store.add(key, 1)
    pause = 0.001  # seconds
    while arrived < size:
        time.sleep(pause)
        pause = min(2 * pause, 0.25)
        try:
            arrived = store.add(key, 0)
        except dist.DistError:
            # Rank 0, which has the store, has ended. If a signal has ended it, it comes to this process as well.
            time.sleep(GRACE)
            raise
    dist.barrier()  # rank 0 may end after it, and the store with it


def broadcast_from_rank0(value: Value | None, distributed: bool) -> Value:
    """Return rank 0's value on every rank, for which the others wait as in `barrier`. Theirs, often None, is not used."""
    shared: list[Any] = [value]
    if not distributed:
        return shared[0]
    barrier()
    # nobody waits long in the exchange itself
    dist.broadcast_object_list(shared, src=0)
    return shared[0]
