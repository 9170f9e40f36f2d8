"""Training views as pure functions of (seed, epoch, sample index), and the batches that are made of them.

timm's transforms draw from the global generators of Python, NumPy and PyTorch. Here those generators are seeded for
each sample, and for the mixing of each batch, with a hash of its key; so a view does not depend on the number of data
workers, ranks or restarts.
"""

import contextlib
import hashlib
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.random.mtrand import get_bit_generator, set_bit_generator
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info

from ..errors import one_line
from ..no_label import NO_LABEL
from .workers import WorkerError


class ViewKey(NamedTuple):
    """One view of one sample: ``repeat`` counts its views within an epoch."""

    epoch: int
    index: int  # pyright: ignore[reportIncompatibleMethodOverride]  # of the sample; nobody looks a value up
    repeat: int = 0


class Sample(NamedTuple):
    """One view of a sample."""

    image: object
    label: int
    key: ViewKey
    view_seed: int


# of an unknown label: so much more than 1 that the smallest share of it is, too
TRACE = 2.0**100
# stands in for the global one in `kept_generators`
_NUMPY_GENERATOR = np.random.MT19937(0)


def hash_seed(*parts: int) -> int:
    """Return a 63-bit seed that is a hash of some integers."""
    # a hash, because sums of seed, epoch and index would be the same for many of them
    digest = hashlib.blake2b(struct.pack(f"<{len(parts)}q", *parts), digest_size=8).digest()
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
    # the main process has draws of its own, such as those of initial weights
    of_python = random.getstate()
    of_numpy = get_bit_generator()
    of_torch = torch.get_rng_state()
    # copying NumPy's state there and back would take 70 microseconds
    set_bit_generator(_NUMPY_GENERATOR)
    try:
        yield
    finally:
        random.setstate(of_python)
        set_bit_generator(of_numpy)
        torch.set_rng_state(of_torch)


@dataclass
class BatchTarget:
    """What belongs to a batch of images. Moves between devices like a tensor, so timm's loader can carry it.

    Args:
        label: (B,) class indices or (B, C) soft labels.
        index: (B,) positions of the samples in the training set.
        view_seed: (B,) seeds of the views.
        share: (B, 1) see `mix_with_share`, None where it is not kept.
    """

    label: Tensor
    index: Tensor
    view_seed: Tensor
    share: Tensor | None = None

    def to(self, device: torch.device, non_blocking: bool = False) -> "BatchTarget":
        # positions and seeds stay: caches are looked up and generators seeded on the CPU, and to fetch them would wait
        label = self.label.to(device=device, non_blocking=non_blocking)
        share = self.share
        if share is not None:
            share = share.to(device=device, non_blocking=non_blocking)
        return replace(self, label=label, share=share)

    def pin_memory(self) -> "BatchTarget":
        share = None if self.share is None else self.share.pin_memory()
        return replace(self, label=self.label.pin_memory(), share=share)


@dataclass(eq=False)
class KeyedDataset(Dataset[Sample]):
    """A dataset that is indexed by `ViewKey` and seeds the generators for each view.

    Args:
        dataset: makes a view of a sample.
        seed: of the run.
    """

    dataset: Dataset
    seed: int

    def __getitems__(self, keys: list[ViewKey | tuple[ViewKey, int]]) -> list[Sample]:
        """Return a batch, as PyTorch's loader asks for it. Raises `UnreadableSample`."""
        with kept_generators():
            return [self._view(key) for key in keys]

    def _view(self, key: ViewKey | tuple[ViewKey, int]) -> Sample:
        # timm's scheduled sizes say which of several transforms
        if isinstance(key, ViewKey):
            position = key.index
        else:
            key, choice = key
            position = (key.index, choice)
        # from here on timm's transforms, which draw from the global generators, are a function of the key
        view_seed = hash_seed(self.seed, *key)
        seed_generators(view_seed)
        try:
            image, label = self.dataset[position]
        except (ValueError, RuntimeError, TypeError) as error:
            raise WorkerError(
                f"no training view can be made of sample {key.index}: {one_line(error)}; it is a "
                "matter of the augmentation (--no-aug), of --img-size or of "
                "--input-img-mode"
            ) from error
        return Sample(image, label, key, view_seed)


@dataclass
class KeyedCollate:
    """timm's collate function with the randomness of mixing keyed by the batch.

    Args:
        collate: turns a list of (image, label) into a batch.
        mixup: the `Mixup` that ``collate`` applies, or None.
        mixup_off_epoch: no mixing from this epoch on, 0 for never.
        keeps_share: of each sample in its mixed image, for labels that are mixed later.
    """

    collate: Callable
    mixup: Mixup | None = None
    mixup_off_epoch: int = 0
    keeps_share: bool = False

    def __call__(self, batch: list[Sample]) -> tuple[Tensor, BatchTarget]:
        # a batch is known by the views in it
        view_seeds = [sample.view_seed for sample in batch]
        labels = [sample.label for sample in batch]
        # rows of several classes are those of samples with labels
        labelled = any(isinstance(label, Tensor) or label != NO_LABEL for label in labels)
        share = None

        def collate(labels: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
            pairs = [(sample.image, label) for sample, label in zip(batch, labels)]
            return self.collate(pairs)

        # decided here, by the key: workers live on and would not see a flag set in the main process
        if self.mixup is not None:
            is_off = self.mixup_off_epoch and batch[0].key.epoch >= self.mixup_off_epoch
            self.mixup.mixup_enabled = not is_off
        with kept_generators():
            seed_generators(hash_seed(*view_seeds))
            if self.mixup is not None and (self.keeps_share or not labelled):
                images, target, share = mix_with_share(
                    self.mixup, collate, default_collate(labels), labelled
                )
            elif self.mixup is not None and self.mixup.multi_label:
                images, target = mix_several(self.mixup, collate, default_collate(labels))
            else:
                images, target = collate(labels)

        # augmentation splits stack the batch; each split has seeds of its own
        splits = len(target) // len(batch)
        split_seeds: list[int] = []
        for split in range(2, splits + 1):
            split_seeds += [hash_seed(seed, split) for seed in view_seeds]
        index = torch.tensor([sample.key.index for sample in batch]).repeat(splits)
        seeds = torch.tensor(view_seeds + split_seeds)
        return images, BatchTarget(target, index, seeds, share)


def mix_with_share(
    mixup: Mixup,
    collate: Callable[[Sequence[int]], tuple[Tensor, Tensor]],
    labels: Tensor,
    labelled: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix a batch; return the images, their labels, and the share (B, 1) that each sample has in its own image.

    The rest of image i is of sample B - 1 - i, as timm pairs them. Labels that are none stay what they are.

    Args:
        mixup: says how classes are counted and smoothed.
        collate: mixes the images by ``mixup``, with the classes that it is given.
        labels: (B,) true classes, or `NO_LABEL`; of several classes an image (B, C), NaN where nobody knows.
        labelled: False where all are `NO_LABEL`.
    """
    # timm mixes labels, not shares: classes that differ in each pair bring the share to light
    half = torch.arange(len(labels)) * 2 // len(labels)  # as classes: those of a pair differ
    num_classes = mixup.num_classes
    smoothing = mixup.label_smoothing
    multi_label = mixup.multi_label
    mixup.num_classes = 2
    mixup.label_smoothing = 0.0
    mixup.multi_label = False
    images, shares = collate(half.tolist())
    mixup.num_classes = num_classes
    mixup.label_smoothing = smoothing
    mixup.multi_label = multi_label
    share = shares.gather(1, half.unsqueeze(1))
    if not labelled:
        return images, labels, share
    # timm has one share for a batch, as a number; its formula holds for one each
    if multi_label:
        labels, num_classes = with_traces(labels), 2 * num_classes
    mixed = mixup_target(labels, num_classes, share, smoothing, multi_label)  # pyright: ignore[reportArgumentType]  # see above
    return images, without_traces(mixed) if multi_label else mixed, share


def mix_several(
    mixup: Mixup, collate: Callable[[Tensor], tuple[Tensor, Tensor]], labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Mix a batch; return the images and their labels (B, C), NaN for those that are unknown of an image in the mixture.

    Args:
        mixup: says how labels are smoothed.
        collate: mixes images and labels by ``mixup``.
        labels: (B, C), NaN where nobody knows.
    """
    num_classes = mixup.num_classes
    mixup.num_classes = 2 * num_classes
    images, mixed = collate(with_traces(labels))
    mixup.num_classes = num_classes
    return images, without_traces(mixed)


def with_traces(labels: Tensor) -> Tensor:
    """Return labels (B, C), 0 where they are NaN, and behind them as many columns that say where that is (B, 2C).

    What has no share in a mixture has no part in it, but 0 times NaN is NaN. Of these columns the smallest share shows.
    """
    return torch.cat([labels.nan_to_num(0.0), labels.isnan() * TRACE], dim=1)


def without_traces(mixed: Tensor) -> Tensor:
    """Return mixed labels (B, C) of those `with_traces`: NaN where an unknown one has a share."""
    labels, traces = mixed.chunk(2, dim=1)
    # smoothing moves what is known to a half at most
    return labels.masked_fill(traces > 1, torch.nan)


@dataclass
class KeyedErasing:
    """timm's random erasing on the device, keyed by view."""

    erasing: RandomErasing

    def __call__(self, images: Tensor, view_seeds: Tensor) -> Tensor:
        # only later splits are erased: the first one is the plain view
        splits = self.erasing.num_splits
        draws = self.erasing.rand_color or self.erasing.per_pixel
        first = len(images) // splits if splits > 1 else 0
        with kept_generators():
            for position, view_seed in enumerate(view_seeds[first:].tolist(), start=first):
                seed = hash_seed(view_seed, 1)
                random.seed(seed)
                if draws:
                    torch.default_generator.manual_seed(seed)
                if draws and images.is_cuda:
                    # not put back: the engine seeds the device before every step
                    torch.cuda.manual_seed(seed)
                self.erasing(images[position])
        return images
