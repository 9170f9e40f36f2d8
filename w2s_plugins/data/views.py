"""Training views as pure functions of (seed, epoch, sample index).

timm's transforms draw from the global generators of Python, NumPy and PyTorch. Here those generators are seeded for
each sample, and for the mixing of each batch, with a hash of its key; so a view does not depend on the number of data
workers, ranks or restarts.
"""

import contextlib
import functools
import hashlib
import itertools
import random
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset, Sampler, get_worker_info

from ..errors import one_line
from .unlabeled import NO_LABEL
from .unreadable import UnreadableSample
from .workers import WorkerError


class ViewKey(NamedTuple):
    """One view of one sample: ``repeat`` counts its views within an epoch."""

    epoch: int
    index: int
    repeat: int = 0


class ReplaceableKey(ViewKey):
    """A view for which others of its batch stand in when its sample cannot be read: ``others``, in this order."""

    others: tuple[ViewKey, ...] = ()


class Sample(NamedTuple):
    """One view, with the messages about samples that it takes the place of."""

    image: object
    label: int
    key: ViewKey
    view_seed: int
    unreadable: tuple[str, ...] = ()


WINDOW = 8  # shards whose samples are mixed
STAND_INS = 16  # samples in a row that may be unreadable
_NUMPY_GENERATOR = np.random.MT19937(0)  # takes the place of the global one meanwhile


_packer = functools.cache(lambda count: struct.Struct(f"<{count}q").pack)


def hash_seed(*parts: int) -> int:
    """Return a 63-bit seed that is a hash of some integers."""
    digest = hashlib.blake2b(_packer(len(parts))(*parts), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_generators(seed: int) -> None:
    """Seed the global CPU generators of Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)


@contextlib.contextmanager
def kept_generators() -> Iterator[None]:
    """Put the global CPU generators back after the block; in a data worker nothing else draws from them."""
    if get_worker_info() is not None:
        yield
        return
    states = random.getstate(), np.random.get_bit_generator(), torch.get_rng_state()
    np.random.set_bit_generator(_NUMPY_GENERATOR)  # copying NumPy's state there and back takes 70 microseconds
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_bit_generator(states[1])
        torch.set_rng_state(states[2])


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global CPU generators inside the block; in the main process they are put back after it."""
    with kept_generators():
        seed_generators(seed)
        yield


@dataclass
class BatchTarget:
    """What belongs to a batch of images. Moves between devices like a tensor, so timm's loader can carry it.

    Args:
        label: (B,) class indices or (B, C) soft labels.
        index: (B,) positions of the samples in the training set.
        view_seed: (B,) seeds of the views.
        unreadable: messages about samples in whose place others are.
        share: (B, 1) see `mix_with_share`, None where it is not kept.
        labelled: False where no label is one; to ask the labels themselves would wait for the device.
    """

    label: Tensor
    index: Tensor
    view_seed: Tensor
    unreadable: list[str] = field(default_factory=list)
    share: Tensor | None = None
    labelled: bool = True

    def to(self, device: torch.device, non_blocking: bool = False) -> "BatchTarget":
        move = {"device": device, "non_blocking": non_blocking}
        share = None if self.share is None else self.share.to(**move)
        return replace(self, label=self.label.to(**move), share=share)  # the others are read on the CPU

    def pin_memory(self) -> "BatchTarget":
        share = None if self.share is None else self.share.pin_memory()
        return replace(self, label=self.label.pin_memory(), share=share)


class KeyedDataset(Dataset):
    """A dataset that is indexed by `ViewKey` and seeds the generators for each view.

    Args:
        dataset: makes a view of a sample.
        seed: of the run.
    """

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: ViewKey | tuple[ViewKey, int]) -> Sample:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[ViewKey | tuple[ViewKey, int]]) -> list[Sample]:
        """Return a batch, as PyTorch's loader asks for it. Raises `UnreadableSample` where nothing stands in."""
        with kept_generators():
            return [self._view(key) for key in keys]

    def _view(self, key: ViewKey | tuple[ViewKey, int]) -> Sample:
        key, *choice = key if isinstance(key[0], ViewKey) else (key,)  # timm's scheduled sizes add a choice
        unreadable = []
        for candidate in (key, *getattr(key, "others", ())):
            try:
                return self._make(candidate, choice, tuple(unreadable))
            except UnreadableSample as error:
                unreadable.append(str(error))
        if len(unreadable) == 1:
            raise UnreadableSample(unreadable[0])
        raise UnreadableSample(f"{unreadable[0]}, nor can {len(unreadable) - 1} others of its batch")

    def _make(self, key: ViewKey, choice: list[int], unreadable: tuple[str, ...]) -> Sample:
        view_seed = hash_seed(self.seed, *key)
        seed_generators(view_seed)
        try:
            image, label = self.dataset[(key.index, *choice) if choice else key.index]
        except (ValueError, RuntimeError, TypeError) as error:
            raise WorkerError(f"no training view can be made of sample {key.index}: {one_line(error)}; it is a matter "
                              "of the augmentation (--no-aug), of --img-size or of --input-img-mode") from error
        return Sample(image, label, key, view_seed, unreadable)


def mix_with_share(
        mixup: Mixup,
        mix: Callable[[Tensor], tuple[Tensor, Tensor]],
        labels: Tensor,
        labelled: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix a batch; return the images, their labels, and the share (B, 1) that each sample has in its own image.

    The rest of image i is of sample B - 1 - i, as timm pairs them. Labels that are none stay what they are.

    Args:
        mixup: says how classes are counted and smoothed.
        mix: mixes the images by ``mixup``, with classes (B,) that it is given.
        labels: (B,) true classes, or `NO_LABEL`.
        labelled: False where all are `NO_LABEL`.
    """
    half = torch.arange(len(labels), device=labels.device) * 2 // len(labels)  # as classes: those of a pair differ
    num_classes, smoothing = mixup.num_classes, mixup.label_smoothing
    mixup.num_classes, mixup.label_smoothing = 2, 0.0
    images, shares = mix(half)
    mixup.num_classes, mixup.label_smoothing = num_classes, smoothing
    share = shares.gather(1, half.unsqueeze(1))
    if not labelled:
        return images, labels, share
    return images, mixup_target(labels, num_classes, share, smoothing), share


class KeyedCollate:
    """timm's collate function with the randomness of mixing keyed by the batch.

    Args:
        collate: turns a list of (image, label) into a batch.
        mixup: the `Mixup` that ``collate`` applies, or None.
        mixup_off_epoch: no mixing from this epoch on, 0 for never.
        keeps_share: of each sample in its mixed image, for labels that are mixed later.
    """

    def __init__(self, collate: Callable, mixup: Mixup | None = None, mixup_off_epoch: int = 0,
                 keeps_share: bool = False):
        self.collate = collate
        self.mixup = mixup
        self.mixup_off_epoch = mixup_off_epoch
        self.keeps_share = keeps_share

    def __call__(self, batch: list[Sample]) -> tuple[Tensor, BatchTarget]:
        keys, view_seeds = [b.key for b in batch], [b.view_seed for b in batch]
        if self.mixup is not None:
            # decided here, by the key: workers live on and would not see a flag set in the main process
            self.mixup.mixup_enabled = not (self.mixup_off_epoch and keys[0].epoch >= self.mixup_off_epoch)
        share, labelled = None, any(b.label != NO_LABEL for b in batch)
        with seeded(hash_seed(*view_seeds)):
            if self.mixup is not None and (self.keeps_share or not labelled):
                images, labels, share = mix_with_share(
                    self.mixup, lambda half: self.collate([(b.image, h) for b, h in zip(batch, half.tolist())]),
                    torch.tensor([b.label for b in batch]), labelled)
            else:
                images, labels = self.collate([(b.image, b.label) for b in batch])
        repeats = len(labels) // len(batch)  # augmentation splits stack the batch
        index = torch.tensor([k.index for k in keys]).repeat(repeats)
        split_seeds = [hash_seed(seed, split) for split in range(2, repeats + 1) for seed in view_seeds]
        unreadable = [message for b in batch for message in b.unreadable]
        return images, BatchTarget(labels, index, torch.tensor(view_seeds + split_seeds), unreadable, share, labelled)


class ShardOrder:
    """An order of samples that lie in shards: the shards permuted, and then the samples of `WINDOW` of them together.

    So whoever reads them reads from few shards at a time. It is a function of the seed; in memory are the sizes of the
    shards and the order of two windows.

    Args:
        bounds: (S + 1) where the shards begin and, last, the number of samples.
        seed: of this epoch.
    """

    def __init__(self, bounds: Sequence[int], seed: int):
        self.seed, bounds = seed, torch.tensor(bounds)
        shards = _permutation(len(bounds) - 1, seed)
        self.firsts, sizes = bounds[shards], bounds.diff()[shards]
        self.sizes, self.starts = sizes, [0, *sizes.cumsum(0)[WINDOW - 1:-1:WINDOW].tolist()]  # places of the windows
        self.window = functools.lru_cache(2)(self._window)

    def __getitem__(self, place: int) -> Tensor:
        number = bisect_right(self.starts, place) - 1
        return self.window(number)[place - self.starts[number]]

    def _window(self, number: int) -> Tensor:
        own = slice(number * WINDOW, (number + 1) * WINDOW)
        rows = torch.cat([torch.arange(first, first + size) for first, size in zip(
            self.firsts[own].tolist(), self.sizes[own].tolist())])
        return rows[_permutation(len(rows), hash_seed(self.seed, number))]


def _permutation(size: int, seed: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


class KeyedSampler(Sampler):
    """Keys of one epoch for one rank, in an order that is a function of seed and epoch.

    The order is dealt out to ranks one by one, so that batch k of all ranks together is batch k of a single process
    with the batch size of all. Samples left over after an even deal are dropped, never doubled.

    Args:
        size: samples in the dataset.
        seed: seed of the run.
        rank: this process.
        world_size: number of processes.
        repeats: views of a sample in an epoch (repeated augmentation, arXiv 1902.05509); an epoch still has ``size``
            views, of fewer samples.
        view_epochs: views are those of the epoch modulo this number, 0 for new ones in every epoch; the order is new
            in every epoch all the same.
        replace_within: size of a batch of all ranks together: keys tell which others of it stand in for a sample that
            cannot be read, on any number of ranks the same. 0 for none.
        bounds: of the shards that the samples lie in, see `ShardOrder`; None for an order of all.
    """

    def __init__(self, size: int, seed: int, rank: int = 0, world_size: int = 1, repeats: float = 0,
                 view_epochs: int = 0, replace_within: int = 0, bounds: Sequence[int] | None = None):
        self.size, self.seed, self.rank, self.world_size, self.repeats = size, seed, rank, world_size, repeats
        self.view_epochs, self.replace_within, self.bounds = view_epochs, replace_within, bounds
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return self.size // self.world_size - self.start

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, and the number of this rank's views to skip."""
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[ViewKey]:
        order = self._order(hash_seed(self.seed, self.epoch))
        for position in range(self.start, self.size // self.world_size):
            place = position * self.world_size + self.rank
            key = self._key(place, order)
            if self.replace_within:
                key = ReplaceableKey(*key)
                key.others = tuple(self._key(other, order) for other in self._stand_ins(place))
            yield key

    def _order(self, seed: int) -> Sequence[int]:
        return _permutation(self.size, seed).tolist() if self.bounds is None else ShardOrder(self.bounds, seed)

    def _key(self, place: int, order: Sequence[int]) -> ViewKey:
        view_epoch = self.epoch % self.view_epochs if self.view_epochs else self.epoch
        sample, repeat = int(place / self.repeats) if self.repeats > 1 else place, 0
        if self.repeats > 1:
            repeat = place - int(np.ceil(sample * self.repeats))
        return ViewKey(view_epoch, int(order[sample]), repeat)

    def _stand_ins(self, place: int) -> list[int]:
        """Return the places after this one in its batch, from whose end it goes on at the start."""
        first = place - place % self.replace_within
        length = min(self.replace_within, self.size - first)
        return [first + (place - first + step) % length for step in range(1, min(length, STAND_INS + 1))]


class CycledSampler(KeyedSampler):
    """Keys of samples that come round as often as an epoch needs them, each time in another order and in other views.

    Args:
        samples: how many there are.
        first: the index of the first of them.
        size: views in an epoch, of all ranks together.
        **keyed: further arguments of `KeyedSampler`.
    """

    def __init__(self, samples: int, first: int, size: int, **keyed: int):
        super().__init__(size, **keyed)
        self.samples, self.first = samples, first

    def _order(self, seed: int) -> Tensor:
        generator, rounds = torch.Generator().manual_seed(seed), -(-self.size // self.samples)
        return torch.cat([torch.randperm(self.samples, generator=generator) for _ in range(rounds)])

    def _key(self, place: int, order: Tensor) -> ViewKey:
        return ViewKey(self.epoch, self.first + int(order[place]), place // self.samples)


def create_sampler(samples: int, epoch_size: int, **keyed: object) -> KeyedSampler:
    """Return the keys of an epoch: each sample once or, where that makes fewer than ``epoch_size``, round and round.

    Args:
        samples: how many there are.
        epoch_size: samples in an epoch, 0 for each once.
        **keyed: further arguments of `KeyedSampler`.
    """
    return CycledSampler(samples, 0, epoch_size, **keyed) if epoch_size > samples else KeyedSampler(samples, **keyed)


class TwoPartSampler(Sampler):
    """Batches of some labelled samples, which come first, and others without labels, which make the epoch.

    Each part of batch k of all ranks together is that of batch k of a single process with the batch size of all.

    Args:
        unlabelled: keys of an epoch; its indices begin at 0.
        labelled: number of labelled samples; their indices follow.
        batch_size: samples in a batch.
        count: how many of them are labelled.
    """

    def __init__(self, unlabelled: KeyedSampler, labelled: int, batch_size: int, count: int):
        self.unlabelled, self.batch_size, self.count = unlabelled, batch_size, count
        self.rest = BatchSampler(unlabelled, batch_size - count, drop_last=True)
        self.world_size = ranks = unlabelled.world_size
        self.labelled = CycledSampler(
            labelled, unlabelled.size, len(self.rest) * count * ranks, seed=unlabelled.seed, rank=unlabelled.rank,
            world_size=ranks, replace_within=count * ranks if unlabelled.replace_within else 0)

    def __len__(self) -> int:
        return len(self.rest)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, and the number of batches to skip."""
        self.unlabelled.set_epoch(epoch, start * (self.batch_size - self.count))
        self.labelled.set_epoch(epoch, start * self.count)

    def __iter__(self) -> Iterator[list[ViewKey]]:
        labelled = iter(self.labelled)
        for keys in self.rest:
            yield [*itertools.islice(labelled, self.count), *keys]


class KeyedErasing:
    """timm's random erasing on the device, keyed by view."""

    def __init__(self, erasing: RandomErasing):
        self.erasing = erasing

    def __call__(self, images: Tensor, view_seeds: Tensor) -> Tensor:
        splits, draws = self.erasing.num_splits, self.erasing.rand_color or self.erasing.per_pixel
        first = len(images) // splits if splits > 1 else 0
        with kept_generators():
            for place, seed in enumerate(view_seeds[first:].tolist(), start=first):
                seed = hash_seed(seed, 1)
                random.seed(seed)
                if random.random() > self.erasing.probability:  # timm's first draw: it would leave this image as it is
                    continue
                random.seed(seed)
                if draws:
                    torch.default_generator.manual_seed(seed)
                if draws and images.is_cuda:
                    torch.cuda.manual_seed(seed)  # not put back: the engine seeds the device before every step
                self.erasing(images[place])
        return images
