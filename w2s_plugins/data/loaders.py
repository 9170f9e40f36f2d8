"""Loaders made of timm's transforms, collate functions and prefetcher."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from timm.data import AugMixDataset, FastCollateMixup, Mixup, create_loader, create_transform
from timm.data.loader import PrefetchLoader, fast_collate
from timm.data.random_erasing import RandomErasing
from timm.data.scheduled_sampler import ScheduledBatchSampler, ScheduledTransformDataset
from torch import Tensor
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader, Dataset, IterableDataset, Sampler, default_collate

from ..cli.forms import EpisodeShape
from ..errors import UserError, one_line
from .datasets import class_names_of, known_labels
from .decoding import with_decoder
from .episodes import EpisodeSampler, check_shape
from .shards import shard_bounds
from .unreadable import SkippedSamples
from .views import (
    KeyedCollate,
    KeyedDataset,
    KeyedErasing,
    KeyedSampler,
    TwoPartSampler,
    create_sampler,
    hash_seed,
    mix_with_share,
    seeded,
)
from .workers import WorkerStart


@dataclass(frozen=True)
class LoaderSettings:
    """How batches are loaded, and where they go.

    Args:
        batch_size: samples in a batch of one process.
        workers: data worker processes.
        device: where batches go.
        dtype: dtype of the images.
        rank: this process.
        world_size: number of processes.
        prefetch: normalise on the device, by timm's prefetcher.
        pin_memory: pin batches in the workers.
        decoder: ``--decoder``.
    """

    batch_size: int
    workers: int
    device: torch.device
    dtype: torch.dtype = torch.float32
    rank: int = 0
    world_size: int = 1
    prefetch: bool = True
    pin_memory: bool = False
    decoder: str = "pil"


@dataclass(frozen=True)
class Episodes:
    """An epoch of batches of whole episodes."""

    shape: EpisodeShape
    per_batch: int
    batches: int


@dataclass(frozen=True)
class TrainViews:
    """What decides the views of an epoch and their order.

    Args:
        transform: arguments of timm's `create_transform`.
        seed: seed of the run.
        mixing: arguments of timm's `Mixup`, None without mixing.
        mixup_off_epoch: no mixing from this epoch on, 0 for never.
        splits: augmentation splits; below 2 there are none.
        repeats: views of a sample in an epoch.
        epochs: views repeat after this number of epochs, 0 for never.
        sizes: side lengths of the images where these change from batch to batch.
        schedule: arguments of timm's `ScheduledBatchSampler` for ``sizes``.
        episodes: batches of episodes in place of an order of all samples.
        max_unreadable: so many files may be unreadable; None where every such file is an error.
        worker_seeding: how timm seeds the workers of a stream.
        keeps_share: keep which share of a mixed image is of its own sample, for labels that are mixed later.
        labelled: samples of a batch that are labelled, where the training set is not.
        epoch_size: samples in an epoch; where there are fewer they come round again.
    """

    transform: dict
    seed: int = 42
    mixing: dict | None = None
    mixup_off_epoch: int = 0
    splits: int = 0
    repeats: float = 0
    epochs: int = 0
    sizes: tuple[int, ...] = ()
    schedule: dict | None = None
    episodes: Episodes | None = None
    max_unreadable: int | None = None
    worker_seeding: str = "all"
    keeps_share: bool = False
    labelled: int = 0
    epoch_size: int = 0


class Batch(NamedTuple):
    """One training batch on the device; the samples' positions stay on the CPU, where caches are read by them.

    Args:
        input: (B, 3, H, W) normalised images.
        target: (B,) classes, negative where there is none, or (B, C) soft labels.
        index: (B,) positions in the training set.
        share: (B, 1) of each sample in its mixed image, see `mix_with_share`; None where it is not kept.
    """

    input: Tensor
    target: Tensor
    index: Tensor | None
    share: Tensor | None = None


class TrainLoader:
    """The batches of an epoch.

    Args:
        loader: yields (images, target); the target is a `BatchTarget` where samples have keys.
        settings: how batches are loaded.
        sampler: the keyed sampler, or None for a stream, which keeps timm's behaviour.
        erasing: random erasing on the device.
        mixup: mixing on the device, where it is not done while collating.
        mixup_off_epoch: no mixing on the device from this epoch on.
        keeps_share: keep which share of an image that is mixed on the device is of its own sample.
        skipped: counts samples that could not be read, where ``--data-errors`` allows some.
    """

    def __init__(
            self,
            loader: DataLoader | PrefetchLoader,
            settings: LoaderSettings,
            sampler: KeyedSampler | EpisodeSampler | TwoPartSampler | ScheduledBatchSampler | None = None,
            *,
            erasing: KeyedErasing | None = None,
            mixup: Mixup | None = None,
            mixup_off_epoch: int = 0,
            keeps_share: bool = False,
            skipped: SkippedSamples | None = None,
    ):
        self.loader, self.settings, self.sampler, self.skipped = loader, settings, sampler, skipped
        self.erasing, self.mixup = erasing, mixup
        self.mixup_off_epoch, self.keeps_share = mixup_off_epoch, keeps_share
        if sampler is not None:
            self._set_epoch(0, 0)
        self.num_batches = len(loader)
        self.average_batch_size = float(getattr(loader.batch_sampler, "average_batch_size", 0) or loader_batch(loader))

    def __len__(self) -> int:
        return self.num_batches

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of ``epoch`` from number ``start`` on."""
        if self.sampler is not None:
            self._set_epoch(epoch, start)
        elif hasattr(self.loader.dataset, "set_epoch"):
            self.loader.dataset.set_epoch(epoch)
        skip = 0 if isinstance(self.sampler, (KeyedSampler, EpisodeSampler, TwoPartSampler)) else start
        for number, (images, target) in enumerate(self.loader):
            if number < skip:
                continue
            yield self._finish(images, target, epoch)

    def _set_epoch(self, epoch: int, start: int) -> None:
        if isinstance(self.sampler, KeyedSampler):
            self.sampler.set_epoch(epoch, start * loader_batch(self.loader))
        elif isinstance(self.sampler, (EpisodeSampler, TwoPartSampler)):
            self.sampler.set_epoch(epoch, start)
        else:
            self.sampler.set_epoch(epoch)

    def _finish(self, images: Tensor, target: object, epoch: int) -> Batch:
        if isinstance(target, Tensor):
            label, index, seeds, share = target, None, None, None
        else:
            label, index, seeds, share = target.label, target.index, target.view_seed, target.share
            if self.skipped is not None:
                self.skipped.add(target.unreadable)
        if not self.settings.prefetch:
            images = images.to(device=self.settings.device, dtype=self.settings.dtype)
            label = label.to(self.settings.device)
        if self.mixup is not None:
            self.mixup.mixup_enabled = not (self.mixup_off_epoch and epoch >= self.mixup_off_epoch)
            with seeded(hash_seed(*seeds.tolist())):
                if self.keeps_share or not target.labelled:
                    images, label, share = mix_with_share(
                        self.mixup, functools.partial(self.mixup, images), label, target.labelled)
                else:
                    images, label = self.mixup(images, label)
        if self.erasing is not None:
            images = self.erasing(images, seeds)
        return Batch(images, label, index, share)


def loader_batch(loader: DataLoader | PrefetchLoader) -> int:
    """Return the batch size of a loader."""
    inner = loader.loader if isinstance(loader, PrefetchLoader) else loader
    return inner.batch_size or inner.batch_sampler.batch_size


def create_train_loader(
        dataset: Dataset,
        views: TrainViews,
        data_config: dict,
        settings: LoaderSettings,
        keys: Sampler | None = None,
        labelled: Dataset | None = None,
) -> TrainLoader:
    """Create the training loader.

    Args:
        dataset: the training set, without transform.
        views: what is made of its samples; of a stream all that needs no index.
        data_config: timm's data configuration of the student (input_size, mean, std, interpolation, ...).
        settings: how batches are loaded.
        keys: load the views that these keys name, in their order, and no others.
        labelled: samples of which each batch has some, before those of ``dataset``; their positions follow its own.

    Raises:
        UserError: the training set is smaller than one batch, or timm refuses an argument.
    """
    if isinstance(dataset, IterableDataset):
        return _create_stream_loader(dataset, views, data_config, settings)
    mixup, collate = _mixing(views, settings)
    untransformed, samples = dataset, f"{len(dataset)} training samples on {settings.world_size} process(es)"
    with _flag_errors("augmentation"):
        dataset = _with_transforms(dataset, views, data_config, settings)
    sampler = keys or create_sampler(
        len(dataset), views.epoch_size, seed=views.seed, rank=settings.rank, world_size=settings.world_size,
        repeats=views.repeats, view_epochs=views.epochs, bounds=shard_bounds(untransformed), replace_within=0
        if views.max_unreadable is None else settings.world_size * (settings.batch_size - views.labelled))
    if views.episodes is not None:
        batch_sampler = sampler = _episode_sampler(untransformed, views, settings)
    elif views.sizes:
        with _flag_errors(f"--train-img-sizes, {samples}"):
            batch_sampler = ScheduledBatchSampler(sampler, seed=views.seed, **views.schedule)
            sampler = batch_sampler
    elif labelled is not None:
        batch_sampler = sampler = TwoPartSampler(sampler, len(labelled), settings.batch_size, views.labelled)
        dataset = ConcatDataset([dataset, _with_transforms(labelled, views, data_config, settings)])
    else:
        batch_sampler = BatchSampler(sampler, settings.batch_size, drop_last=True)
    if not views.sizes and len(batch_sampler) == 0:
        raise UserError(f"--batch-size {settings.batch_size} is more than {samples} have")
    loader = DataLoader(
        KeyedDataset(dataset, views.seed),
        batch_sampler=batch_sampler,
        num_workers=settings.workers,
        collate_fn=KeyedCollate(
            collate or _collate(settings),
            collate if isinstance(collate, Mixup) else None,
            views.mixup_off_epoch,
            views.keeps_share),
        pin_memory=settings.pin_memory,
        persistent_workers=settings.workers > 0,
        worker_init_fn=WorkerStart(),
        generator=torch.Generator(),  # else every epoch draws the seed of the workers from the global one
    )
    erasing = None
    if settings.prefetch:
        loader = PrefetchLoader(
            loader,
            mean=data_config["mean"],
            std=data_config["std"],
            channels=data_config["input_size"][0],
            device=settings.device,
            img_dtype=settings.dtype,
        )
        erasing = _erasing(views, settings.device)
    return TrainLoader(
        loader,
        settings,
        None if keys else sampler,
        erasing=erasing,
        mixup=mixup,
        mixup_off_epoch=views.mixup_off_epoch,
        keeps_share=views.keeps_share,
        skipped=None if keys or views.max_unreadable is None else SkippedSamples(
            views.max_unreadable, settings.world_size > 1),
    )


def create_eval_loader(
        dataset: Dataset,
        data_config: dict,
        settings: LoaderSettings,
        *,
        crop_border_pixels: int | None = None,
        tf_preprocessing: bool = False,
) -> DataLoader | PrefetchLoader:
    """Create timm's evaluation loader: every sample, in order, dealt out to the ranks."""
    loader = create_loader(
        dataset,
        input_size=data_config["input_size"],
        batch_size=settings.batch_size,
        collate_fn=_collate(settings),
        is_training=False,
        use_prefetcher=settings.prefetch,
        interpolation=data_config["interpolation"],
        mean=data_config["mean"],
        std=data_config["std"],
        num_workers=settings.workers,
        distributed=settings.world_size > 1,
        crop_pct=data_config["crop_pct"],
        crop_mode=data_config["crop_mode"],
        crop_border_pixels=crop_border_pixels,
        pin_memory=settings.pin_memory,
        device=settings.device,
        img_dtype=settings.dtype,
        tf_preprocessing=tf_preprocessing,
        persistent_workers=settings.workers > 0,
    )
    _shield_workers(loader)
    dataset.transform = with_decoder(dataset.transform, dataset, settings.decoder, "evaluation images")
    return loader


def _shield_workers(loader: DataLoader | PrefetchLoader) -> None:
    inner = loader.loader if isinstance(loader, PrefetchLoader) else loader
    inner.worker_init_fn = WorkerStart(inner.worker_init_fn)


@contextlib.contextmanager
def _flag_errors(what: str) -> Iterator[None]:
    """Turn what timm says of its arguments into a `UserError`."""
    try:
        yield
    except (AssertionError, ValueError, KeyError) as error:
        raise UserError(f"{what}: {one_line(error)}") from error


def _with_transforms(dataset: Dataset, views: TrainViews, data_config: dict, settings: LoaderSettings) -> Dataset:
    """Give the dataset its transforms."""
    kwargs = dict(views.transform, use_prefetcher=settings.prefetch)
    if views.splits > 1:
        dataset = AugMixDataset(dataset, num_splits=views.splits)
        kwargs["separate"] = True
    if views.sizes:
        channels = data_config["input_size"][0]
        return ScheduledTransformDataset(
            dataset, [create_transform((channels, size, size), **kwargs) for size in views.sizes])
    transform = create_transform(data_config["input_size"], **kwargs)
    if views.splits < 2:
        transform = with_decoder(transform, dataset, settings.decoder, "training images")
    dataset.transform = transform
    return dataset


def _episode_sampler(dataset: Dataset, views: TrainViews, settings: LoaderSettings) -> EpisodeSampler:
    labels, episodes = known_labels(dataset, "--episodic"), views.episodes
    check_shape(episodes.shape, labels, "--episodic", class_names_of(dataset))
    return EpisodeSampler(
        labels, episodes.shape, episodes.per_batch, episodes.batches, views.seed, settings.rank, settings.world_size)


def _mixing(views: TrainViews, settings: LoaderSettings) -> tuple[Mixup | None, Mixup | None]:
    """Return (mixing on the device, mixing while collating); at most one of them is set."""
    if views.mixing is None:
        return None, None
    if settings.prefetch:
        return None, FastCollateMixup(**views.mixing)
    return Mixup(**views.mixing), None


def _collate(settings: LoaderSettings) -> Callable[[list], tuple]:
    return fast_collate if settings.prefetch else default_collate


def _erasing(views: TrainViews, device: torch.device) -> KeyedErasing | None:
    """Return random erasing on the device."""
    how = views.transform
    if not how["re_prob"] or how["no_aug"]:
        return None
    return KeyedErasing(RandomErasing(
        how["re_prob"], mode=how["re_mode"], max_count=how["re_count"], num_splits=how["re_num_splits"],
        device=device))


def _create_stream_loader(
        dataset: IterableDataset,
        views: TrainViews,
        data_config: dict,
        settings: LoaderSettings,
) -> TrainLoader:
    _, collate = _mixing(views, settings)
    kwargs = dict(views.transform)
    kwargs["re_split"] = kwargs.pop("re_num_splits") > 0
    with _flag_errors("augmentation"):
        loader = create_loader(
            dataset,
            input_size=data_config["input_size"],
            batch_size=settings.batch_size,
            collate_fn=collate,
            num_workers=settings.workers,
            distributed=settings.world_size > 1,
            pin_memory=settings.pin_memory,
            device=settings.device,
            img_dtype=settings.dtype,
            use_prefetcher=settings.prefetch,
            worker_seeding=views.worker_seeding,
            **kwargs,
        )
    _shield_workers(loader)
    return TrainLoader(loader, settings)
