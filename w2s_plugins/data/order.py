"""Which views an epoch has, in which order and batches: functions of the seed and the epoch.

An order is dealt out to ranks one by one, so that batch k of all ranks together is batch k of a single process with the
batch size of all, and each of these begins anywhere: that is how a run goes on in the middle of an epoch.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.utils.data import Sampler

from ..errors import UserError
from .views import ViewKey, hash_seed


@dataclass(eq=False)
class KeyedSampler(Sampler[ViewKey]):
    """Keys of one epoch for one rank, in an order that is a function of seed and epoch.

    The order is dealt out to ranks one by one, so that batch k of all ranks together is batch k of a single process
    with the batch size of all. Samples left over after an even deal are dropped, never doubled.

    Args:
        samples: how many there are.
        seed: seed of the run.
        rank: this process.
        world_size: number of processes.
        repeats: views of a sample in an epoch (repeated augmentation, arXiv 1902.05509); an epoch still has ``size``
            views, of fewer samples.
        view_epochs: views are those of the epoch modulo this number, 0 for new ones in every epoch; the order is new
            in every epoch all the same.
        size: views in an epoch, of all ranks together. Where it is more than ``samples``, these come round as often as
            that needs, each time in another order and in other views.
        first: the index of the first sample.
    """

    samples: int
    seed: int
    rank: int = 0
    world_size: int = 1
    repeats: float = 0
    view_epochs: int = 0
    size: int = 0
    first: int = 0

    def __post_init__(self) -> None:
        self.size = max(self.size, self.samples)
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return self.size // self.world_size - self.start

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, and the number of this rank's views to skip."""
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[ViewKey]:
        # An order of all samples, new in every epoch: as many permutations as fill it. A generator of its own, because
        # the global one is somewhere else after a restart.
        generator = torch.Generator().manual_seed(hash_seed(self.seed, self.epoch))
        rounds = math.ceil(self.size / self.samples)
        shuffled = [torch.randperm(self.samples, generator=generator) for _ in range(rounds)]
        order = torch.cat(shuffled).tolist()
        # views that are cached come round again
        view_epoch = self.epoch % self.view_epochs if self.view_epochs else self.epoch
        for position in range(self.start, self.size // self.world_size):
            # ranks take turns, so that all of them together go through the order of one process
            turn = position * self.world_size + self.rank
            repeat = turn // self.samples
            # which may be a fraction: 1.5 views are two of every second sample
            if self.repeats > 1:
                sample = int(turn / self.repeats)
                repeat = turn - math.ceil(sample * self.repeats)
                turn = sample
            yield ViewKey(view_epoch, self.first + order[turn], repeat)


class KeyedBatches(Sampler[list[ViewKey]]):
    """Batches of the keys of an epoch; those that do not fill one are left out."""

    def __init__(self, sampler: KeyedSampler, batch_size: int):
        self.sampler = sampler
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.sampler) // self.batch_size

    def __iter__(self) -> Iterator[list[ViewKey]]:
        # whole batches only, as in timm's training loader: batch norm would take its statistics of the few in the last one
        keys = iter(self.sampler)
        for _ in range(len(self)):
            yield list(itertools.islice(keys, self.batch_size))

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, and the number of batches to skip."""
        self.sampler.set_epoch(epoch, start * self.batch_size)


class Stretch(Protocol):
    """Rows one after the other, of which a view is wanted.

    Args:
        view: number of the view.
        first: the first row.
        stop: the row after the last one.
    """

    @property
    def view(self) -> int: ...

    @property
    def first(self) -> int: ...

    @property
    def stop(self) -> int: ...


class StretchBatches(Sampler[list[ViewKey]]):
    """Batches of stretches, in their order. No batch has rows of two stretches: the last one of each may be shorter.

    So what a model says of a stretch does not depend on what else it is asked about.
    """

    def __init__(self, stretches: Sequence[Stretch], batch_size: int):
        self.stretches = stretches
        self.batch_size = batch_size

    def count(self, stretch: Stretch) -> int:
        """Return the number of batches of a stretch."""
        return math.ceil((stretch.stop - stretch.first) / self.batch_size)

    def __len__(self) -> int:
        return sum(self.count(stretch) for stretch in self.stretches)

    def __iter__(self) -> Iterator[list[ViewKey]]:
        for stretch in self.stretches:
            for first in range(stretch.first, stretch.stop, self.batch_size):
                rows = range(first, min(first + self.batch_size, stretch.stop))
                yield [ViewKey(stretch.view, row) for row in rows]


def check_batch_size(batch_size: int, sampler: KeyedSampler, labelled_count: int = 0) -> None:
    """Raise a `UserError` if an epoch has no whole batch.

    Args:
        batch_size: samples in a batch.
        sampler: the keys of an epoch.
        labelled_count: samples of a batch that are no keys of this sampler, see `TwoPartSampler`.
    """
    if batch_size - labelled_count > len(sampler):
        raise UserError(
            f"--batch-size {batch_size} is more than {sampler.samples} training samples on "
            f"{sampler.world_size} process(es) have; expected {len(sampler)} at most"
        )


class WithStrongViews(Sampler[list[ViewKey]]):
    """Batches that end with the samples without labels once more: as other samples, which follow all others.

    Args:
        batches: of the first views.
        labelled_count: samples at the start of a batch that have labels.
        first: the index of the strong view of sample 0.
    """

    def __init__(self, batches: "KeyedBatches | TwoPartSampler", labelled_count: int, first: int):
        self.batches = batches
        self.labelled_count = labelled_count
        self.first = first
        self.batch_size = 2 * batches.batch_size - labelled_count
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.batches)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, and the number of batches to skip."""
        self.epoch = epoch
        self.batches.set_epoch(epoch, start)

    def __iter__(self) -> Iterator[list[ViewKey]]:
        for keys in self.batches:
            # new ones in every epoch, also where first views come round again
            strong = [
                ViewKey(self.epoch, self.first + key.index, key.repeat)
                for key in keys[self.labelled_count :]
            ]
            yield [*keys, *strong]


class TwoPartSampler(Sampler[list[ViewKey]]):
    """Batches of some labelled samples, which come first, and others without labels, which make the epoch.

    Each part of batch k of all ranks together is that of batch k of a single process with the batch size of all.

    Args:
        unlabelled: keys of an epoch; its indices begin at 0.
        labelled_size: size of the labelled set, whose indices follow.
        batch_size: samples in a batch.
        labelled_count: how many of them are labelled.
    """

    def __init__(
        self, unlabelled: KeyedSampler, labelled_size: int, batch_size: int, labelled_count: int
    ):
        self.batch_size = batch_size
        self.labelled_count = labelled_count
        self.rest = KeyedBatches(unlabelled, batch_size - labelled_count)
        # the few labelled samples come round until every batch of the epoch has its share
        self.labelled_order = KeyedSampler(
            labelled_size,
            unlabelled.seed,
            unlabelled.rank,
            unlabelled.world_size,
            size=len(self.rest) * labelled_count * unlabelled.world_size,
            first=unlabelled.samples,
        )

    def __len__(self) -> int:
        return len(self.rest)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, and the number of batches to skip."""
        self.rest.set_epoch(epoch, start)
        self.labelled_order.set_epoch(epoch, start * self.labelled_count)

    def __iter__(self) -> Iterator[list[ViewKey]]:
        # the labelled ones first, by which the task tells them apart
        labelled = iter(self.labelled_order)
        for keys in self.rest:
            yield [*itertools.islice(labelled, self.labelled_count), *keys]
