"""Loaders made of timm's transforms, collate functions and prefetcher."""

import argparse
import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from timm.data import AugMixDataset, FastCollateMixup, ImageDataset, Mixup, create_loader, create_transform
from timm.data.loader import PrefetchLoader, fast_collate
from timm.data.random_erasing import RandomErasing
from timm.data.scheduled_sampler import ScheduledBatchSampler, ScheduledTransformDataset
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler, default_collate
from torchvision import transforms

from ..errors import UserError, one_line
from .datasets import TorchvisionDataset, class_names_of, labels_of
from .decoding import FileDataset, TensorTransform, with_decoder
from .digits import Digits
from .episodes import EpisodeSampler, check_shape, parse_shapes
from .unreadable import SkippedSamples, parse_data_errors
from .views import KeyedCollate, KeyedDataset, KeyedErasing, KeyedSampler, hash_seed, seeded
from .workers import SharedCollate, WorkerStart, fitting_workers
from .wrapper import Wrapper

# modules of transforms; the policies in timm.data.auto_augment do draw from NumPy
_WITHOUT_NUMPY = {"torchvision.transforms.transforms", "timm.data.transforms", "timm.data.random_erasing",
                  TensorTransform.__module__}


class Batch(NamedTuple):
    """One training batch on the device; the samples' positions stay on the CPU, where caches are read by them."""

    input: Tensor
    target: Tensor
    index: Tensor | None


class TrainLoader:
    """The batches of an epoch.

    Args:
        loader: yields (images, target); the target is a `BatchTarget` where samples have keys.
        sampler: the keyed sampler, or None for an iterable dataset, which keeps timm's behaviour.
        erasing: random erasing on the device.
        mixup: mixing on the device, where it is not done while collating.
        mixup_off_epoch: no mixing on the device from this epoch on.
        device: where batches go.
        dtype: dtype of the images.
        skipped: counts samples that could not be read, where ``--data-errors`` allows some.
    """

    def __init__(
            self,
            loader: DataLoader | PrefetchLoader,
            sampler: KeyedSampler | EpisodeSampler | ScheduledBatchSampler | None,
            *,
            erasing: KeyedErasing | None = None,
            mixup: Mixup | None = None,
            mixup_off_epoch: int = 0,
            device: torch.device,
            dtype: torch.dtype,
            skipped: SkippedSamples | None = None,
    ):
        self.skipped = skipped
        self.loader, self.sampler = loader, sampler
        self.erasing, self.mixup, self.mixup_off_epoch = erasing, mixup, mixup_off_epoch
        self.device, self.dtype = device, dtype
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
        skip = 0 if isinstance(self.sampler, (KeyedSampler, EpisodeSampler)) else start
        for number, (images, target) in enumerate(self.loader):
            if number < skip:
                continue
            yield self._finish(images, target, epoch)

    def _set_epoch(self, epoch: int, start: int) -> None:
        if isinstance(self.sampler, KeyedSampler):
            self.sampler.set_epoch(epoch, start * loader_batch(self.loader))
        elif isinstance(self.sampler, EpisodeSampler):
            self.sampler.set_epoch(epoch, start)
        else:
            self.sampler.set_epoch(epoch)

    def _finish(self, images: Tensor, target: object, epoch: int) -> Batch:
        if isinstance(target, Tensor):
            label, index, seeds = target, None, None
        else:
            label, index, seeds = target.label, target.index, target.view_seed
            if self.skipped is not None:
                self.skipped.add(target.unreadable)
        if not isinstance(self.loader, PrefetchLoader):
            images = images.to(device=self.device, dtype=self.dtype)
            label = label.to(self.device)
        if self.mixup is not None:
            self.mixup.mixup_enabled = not (self.mixup_off_epoch and epoch >= self.mixup_off_epoch)
            with seeded(hash_seed(*seeds.tolist())):
                images, label = self.mixup(images, label)
        if self.erasing is not None:
            images = self.erasing(images, seeds)
        return Batch(images, label, index)


def loader_batch(loader: DataLoader | PrefetchLoader) -> int:
    """Return the batch size of a loader."""
    inner = loader.loader if isinstance(loader, PrefetchLoader) else loader
    return inner.batch_size or inner.batch_sampler.batch_size


def create_train_loader(
        dataset: Dataset,
        args: argparse.Namespace,
        data_config: dict,
        *,
        device: torch.device,
        dtype: torch.dtype,
        rank: int = 0,
        world_size: int = 1,
        view_epochs: int = 0,
        keys: Sampler | None = None,
) -> TrainLoader:
    """Create the training loader from the flags of timm's training script.

    Args:
        dataset: the training set, without transform.
        args: parsed flags.
        data_config: timm's data configuration of the student (input_size, mean, std, interpolation, ...).
        device: where batches go.
        dtype: dtype of the images.
        rank: this process.
        world_size: number of processes.
        view_epochs: views repeat after this number of epochs, 0 for never.
        keys: load the views that these keys name, in their order, and no others.

    Raises:
        UserError: the training set is smaller than one batch.
    """
    if isinstance(dataset, IterableDataset):
        if args.episodic:
            raise UserError(f"--episodic needs a dataset that can be indexed; --dataset {args.dataset} is a stream")
        return _create_iterable_loader(dataset, args, data_config, device, dtype, world_size > 1)
    prefetch = not args.no_prefetcher
    mixup, collate = _mixing(args, data_config, prefetch)
    episodes = _episode_sampler(dataset, args, rank, world_size) if args.episodic else None
    with _flag_errors("augmentation"):
        dataset, sampler_extra = _with_transforms(dataset, args, data_config, prefetch)
    allowed = parse_data_errors(args.data_errors)
    sampler = keys or KeyedSampler(
        len(dataset), args.seed, rank, world_size, args.aug_repeats, view_epochs,
        0 if allowed is None else args.batch_size * world_size)
    keyed_collate = KeyedCollate(
        collate or (fast_collate if prefetch else default_collate),
        collate if isinstance(collate, Mixup) else None,
        args.mixup_off_epoch,
    )
    samples = f"{len(dataset)} training samples on {world_size} process(es)"
    if episodes is not None:
        batch_sampler = sampler = episodes
    elif sampler_extra:
        with _flag_errors(f"--train-img-sizes, {samples}"):
            batch_sampler = ScheduledBatchSampler(sampler, **sampler_extra)
    else:
        batch_sampler = BatchSampler(sampler, args.batch_size, drop_last=True)
        if len(batch_sampler) == 0:
            raise UserError(f"--batch-size {args.batch_size} is more than {samples} have")
    loader = DataLoader(
        KeyedDataset(dataset, args.seed, draws_from_numpy(dataset)),
        batch_sampler=batch_sampler,
        num_workers=fitting_workers(args.workers, _train_batch_bytes(args, data_config), "training batches"),
        collate_fn=SharedCollate(keyed_collate),
        pin_memory=args.pin_mem,
        persistent_workers=args.workers > 0,  # the number that fits is not 0 either
        worker_init_fn=WorkerStart(),
        generator=torch.Generator(),  # else every epoch draws the seed of the workers from the global one
    )
    erasing = None
    if prefetch:
        loader = PrefetchLoader(
            loader,
            mean=data_config["mean"],
            std=data_config["std"],
            channels=data_config["input_size"][0],
            device=device,
            img_dtype=dtype,
        )
        if args.reprob > 0 and not args.no_aug:
            erasing = KeyedErasing(RandomErasing(
                args.reprob, mode=args.remode, max_count=args.recount,
                num_splits=(args.aug_splits or 2) if args.resplit else 0, device=device))
    return TrainLoader(
        loader,
        batch_sampler if sampler_extra else None if keys else sampler,
        erasing=erasing,
        mixup=mixup,
        mixup_off_epoch=args.mixup_off_epoch,
        device=device,
        dtype=dtype,
        skipped=None if keys or allowed is None else SkippedSamples(allowed, world_size > 1),
    )


def create_eval_loader(
        dataset: Dataset,
        data_config: dict,
        *,
        batch_size: int,
        workers: int,
        device: torch.device,
        dtype: torch.dtype,
        distributed: bool = False,
        prefetch: bool = True,
        pin_memory: bool = False,
        crop_border_pixels: int | None = None,
        tf_preprocessing: bool = False,
        decoder: str = "auto",
) -> DataLoader | PrefetchLoader:
    """Create timm's evaluation loader: every sample, in order, dealt out to the ranks."""
    size = batch_size * math.prod(data_config["input_size"]) * (1 if prefetch else 4)
    workers = fitting_workers(workers, size, "batches of an evaluation")
    loader = create_loader(
        dataset,
        input_size=data_config["input_size"],
        batch_size=batch_size,
        is_training=False,
        use_prefetcher=prefetch,
        interpolation=data_config["interpolation"],
        mean=data_config["mean"],
        std=data_config["std"],
        num_workers=workers,
        distributed=distributed,
        crop_pct=data_config["crop_pct"],
        crop_mode=data_config["crop_mode"],
        crop_border_pixels=crop_border_pixels,
        pin_memory=pin_memory,
        device=device,
        img_dtype=dtype,
        tf_preprocessing=tf_preprocessing,
        persistent_workers=workers > 0,
    )
    _shield_workers(loader)
    dataset.transform = with_decoder(dataset.transform, dataset, decoder, "evaluation images")
    return loader


def draws_from_numpy(dataset: Dataset) -> bool:
    """Return False for datasets and transforms known to use other generators only; to seed NumPy's takes time."""
    while isinstance(dataset, Wrapper):
        dataset = dataset.dataset
    if type(dataset) not in (FileDataset, ImageDataset, TorchvisionDataset, Digits):
        return True
    steps = [dataset.transform]
    while steps:
        step = steps.pop()
        steps += [step.transform] if isinstance(step, TensorTransform) else getattr(step, "transforms", ())
        if type(step).__module__ not in _WITHOUT_NUMPY or isinstance(step, transforms.Lambda):
            return True
    return False


def _shield_workers(loader: DataLoader | PrefetchLoader) -> None:
    inner = loader.loader if isinstance(loader, PrefetchLoader) else loader
    inner.worker_init_fn = WorkerStart(inner.worker_init_fn)
    inner.collate_fn = SharedCollate(inner.collate_fn)


def _train_batch_bytes(args: argparse.Namespace, data_config: dict) -> int:
    """Bytes of a batch as it leaves a worker: 8-bit pixels, which the prefetcher normalises, or floats."""
    channels, height, width = data_config["input_size"]
    pixels = args.batch_size * height * width
    if args.train_img_sizes:
        batches = args.train_batch_sizes or [args.batch_size] * len(args.train_img_sizes)
        pixels = max(count * side ** 2 for count, side in zip(batches, args.train_img_sizes))
    return channels * pixels * max(1, args.aug_splits) * (4 if args.no_prefetcher else 1)


def train_transform_kwargs(args: argparse.Namespace, data_config: dict) -> dict:
    """Return the augmentation flags as arguments of timm's `create_transform` and `create_loader`."""
    interpolation = args.train_interpolation
    return dict(
        is_training=True,
        no_aug=args.no_aug,
        train_crop_mode=args.train_crop_mode,
        scale=args.scale,
        ratio=args.ratio,
        hflip=args.hflip,
        vflip=args.vflip,
        color_jitter=args.color_jitter,
        color_jitter_prob=args.color_jitter_prob,
        grayscale_prob=args.grayscale_prob or 0.0,
        gaussian_blur_prob=args.gaussian_blur_prob or 0.0,
        auto_augment=args.aa,
        interpolation=data_config["interpolation"] if args.no_aug or not interpolation else interpolation,
        mean=data_config["mean"],
        std=data_config["std"],
        re_prob=args.reprob,
        re_mode=args.remode,
        re_count=args.recount,
        re_num_splits=(args.aug_splits or 2) if args.resplit else 0,
    )


@contextlib.contextmanager
def _flag_errors(what: str) -> Iterator[None]:
    """Turn what timm says of its arguments into a `UserError`."""
    try:
        yield
    except (AssertionError, ValueError, KeyError) as error:
        raise UserError(f"{what}: {one_line(error)}") from error


def _with_transforms(
        dataset: Dataset,
        args: argparse.Namespace,
        data_config: dict,
        prefetch: bool,
) -> tuple[Dataset, dict | None]:
    """Give the dataset its transforms; for scheduled sizes also return the arguments of the batch sampler."""
    kwargs = dict(train_transform_kwargs(args, data_config), use_prefetcher=prefetch)
    if args.aug_splits > 1:
        dataset = AugMixDataset(dataset, num_splits=args.aug_splits)
        kwargs["separate"] = True
    if not args.train_img_sizes:
        transform = create_transform(data_config["input_size"], **kwargs)
        if args.aug_splits < 2:
            transform = with_decoder(transform, dataset, args.decoder, "training images")
        dataset.transform = transform
        return dataset, None
    channels = data_config["input_size"][0]
    by_size = [create_transform((channels, size, size), **kwargs) for size in args.train_img_sizes]
    return ScheduledTransformDataset(dataset, by_size), dict(
        batch_sizes=args.train_batch_sizes or [args.batch_size] * len(by_size),
        choice_weights=args.train_size_probs,
        seed=args.seed,
        num_batches=args.train_batches_per_epoch,
        choice_schedule=args.train_size_schedule,
        schedule_epochs=args.epochs if args.train_size_schedule == "progressive" else None,
        schedule_spread=args.train_size_schedule_spread,
        schedule_random_mix=args.train_size_random_mix,
    )


def _episode_sampler(dataset: Dataset, args: argparse.Namespace, rank: int, world_size: int) -> EpisodeSampler:
    labels = labels_of(dataset)
    if labels is None:
        raise UserError("--episodic: this kind of dataset does not tell its labels without being read; use a folder, "
                        "torch/, hfds/ or w2s/ dataset")
    (shape,) = parse_shapes(args.episodic, args.queries, "--episodic")
    check_shape(shape, labels, "--episodic", class_names_of(dataset))
    return EpisodeSampler(
        labels, shape, args.episodes_per_batch, args.train_batches_per_epoch, args.seed, rank, world_size)


def _mixing(args: argparse.Namespace, data_config: dict, prefetch: bool) -> tuple[Mixup | None, Mixup | None]:
    """Return (mixing on the device, mixing while collating); at most one of them is set."""
    if args.mixup <= 0 and args.cutmix <= 0 and args.cutmix_minmax is None:
        return None, None
    kwargs = dict(
        mixup_alpha=args.mixup,
        cutmix_alpha=args.cutmix,
        cutmix_minmax=args.cutmix_minmax,
        prob=args.mixup_prob,
        switch_prob=args.mixup_switch_prob,
        mode=args.mixup_mode,
        label_smoothing=args.smoothing,
        num_classes=args.num_classes,
    )
    return (None, FastCollateMixup(**kwargs)) if prefetch else (Mixup(**kwargs), None)


def _create_iterable_loader(
        dataset: IterableDataset,
        args: argparse.Namespace,
        data_config: dict,
        device: torch.device,
        dtype: torch.dtype,
        distributed: bool,
) -> TrainLoader:
    prefetch = not args.no_prefetcher
    mixup, collate = _mixing(args, data_config, prefetch)
    kwargs = train_transform_kwargs(args, data_config)
    kwargs.pop("re_num_splits")
    needs_index = [
        (mixup is not None, "--no-prefetcher with mixup or cutmix"),
        (collate is not None and args.mixup_off_epoch, "--mixup-off-epoch"),
        (args.aug_splits, "--aug-splits"),
        (args.aug_repeats, "--aug-repeats"),
        (args.train_img_sizes, "--train-img-sizes"),
        (args.decoder == "torchvision", "--decoder torchvision"),
    ]
    for broken, flag in needs_index:
        if broken:
            raise UserError(f"{flag} needs a dataset that can be indexed; --dataset {args.dataset} is a stream")
    with _flag_errors("augmentation"):
        loader = create_loader(
            dataset,
            input_size=data_config["input_size"],
            batch_size=args.batch_size,
            collate_fn=collate,
            num_workers=fitting_workers(args.workers, _train_batch_bytes(args, data_config), "training batches"),
            distributed=distributed,
            pin_memory=args.pin_mem,
            device=device,
            img_dtype=dtype,
            use_prefetcher=prefetch,
            worker_seeding=args.worker_seeding,
            re_split=args.resplit,
            **kwargs,
        )
    _shield_workers(loader)
    return TrainLoader(loader, None, device=device, dtype=dtype)
