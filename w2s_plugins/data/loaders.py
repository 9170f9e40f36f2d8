"""Loaders made of timm's transforms, collate functions and prefetcher."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from timm.data.dataset import AugMixDataset
from timm.data.loader import PrefetchLoader, create_loader, fast_collate
from timm.data.mixup import FastCollateMixup, Mixup
from timm.data.random_erasing import RandomErasing
from timm.data.scheduled_sampler import ScheduledBatchSampler, ScheduledTransformDataset
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    default_collate,
)

from ..errors import UserError, one_line
from .datasets import class_names_of, known_labels
from .decoding import with_decoder
from .episodes import Episodes, EpisodeSampler, check_shape
from .map_style import AnyDataset, MapDataset, Transform
from .order import (
    KeyedBatches,
    KeyedSampler,
    StretchBatches,
    TwoPartSampler,
    WithStrongViews,
    check_batch_size,
)
from .views import BatchTarget, KeyedCollate, KeyedDataset, KeyedErasing
from .workers import start_worker
from .wrapper import Wrapper, without_transform

# what decides which views are in which batch; the last one is timm's, for sizes that change
BatchOrder = (
    KeyedBatches | EpisodeSampler | TwoPartSampler | WithStrongViews | ScheduledBatchSampler
)


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
    decoder: str = "fast"

    @property
    def for_timm(self) -> dict[str, Any]:
        """The same as arguments of timm's loaders."""
        return dict(
            batch_size=self.batch_size,
            num_workers=self.workers,
            pin_memory=self.pin_memory,
            device=self.device,
            img_dtype=self.dtype,
            use_prefetcher=self.prefetch,
        )


# what of a model's data configuration its evaluation transform is made of
EVAL_TRANSFORM = ("interpolation", "crop_pct", "crop_mode", "mean", "std")


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
        worker_seeding: how timm seeds the workers of a stream.
        keeps_share: keep which share of a mixed image is of its own sample, for labels that are mixed later.
        labelled_count: samples of a batch that are of the labelled set, where there is one beside the training set.
        strong: arguments of `create_transform` for a second view of each sample without a label, at the end of the
            batch; None for no such views.
        epoch_size: samples in an epoch; where there are fewer they come round again.
    """

    transform: dict[str, Any]
    seed: int = 42
    mixing: dict[str, Any] | None = None
    mixup_off_epoch: int = 0
    splits: int = 0
    repeats: float = 0
    epochs: int = 0
    sizes: tuple[int, ...] = ()
    schedule: dict[str, Any] | None = None
    episodes: Episodes | None = None
    worker_seeding: str = "all"
    keeps_share: bool = False
    labelled_count: int = 0
    strong: dict[str, Any] | None = None
    epoch_size: int = 0


class Batch(NamedTuple):
    """One training batch on the device; the samples' positions stay on the CPU, where caches are read by them.

    Args:
        input: (B, 3, H, W) normalised images.
        target: (B,) classes, negative where there is none, or (B, C) soft labels; of episodes those of the queries.
        index: (B,) positions in the training set.
        share: (B, 1) of each sample in its mixed image, see `mix_with_share`; None where it is not kept.
    """

    input: Tensor
    target: Tensor
    index: Tensor | None  # pyright: ignore[reportIncompatibleMethodOverride]  # nobody looks a tensor up
    share: Tensor | None = None


class TrainLoader:
    """The batches of an epoch.

    Args:
        loader: yields (images, target); the target is a `BatchTarget` where samples have keys.
        settings: how batches are loaded.
        order: the batches of keys, or None where the loader has an order of its own, as timm's of a stream.
        erasing: random erasing on the device.
    """

    def __init__(
        self,
        loader: DataLoader | PrefetchLoader,
        settings: LoaderSettings,
        order: BatchOrder | None = None,
        erasing: KeyedErasing | None = None,
    ):
        self.loader = loader
        self.settings = settings
        self.order = order
        self.erasing = erasing
        self._set_epoch(0, 0)
        self.num_batches = len(loader)
        self.average_batch_size = _average_batch_size(loader.batch_sampler)

    def __len__(self) -> int:
        return self.num_batches

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of ``epoch`` from number ``start`` on."""
        # orders of keys begin anywhere; timm's own load what is skipped, too
        unwanted = self._set_epoch(epoch, start)
        for images, target in itertools.islice(self.loader, unwanted, None):
            # without the prefetcher the batch is still in memory, in float32
            if not self.settings.prefetch:
                images = images.to(device=self.settings.device, dtype=self.settings.dtype)
                target = target.to(self.settings.device)
            # of a stream
            if not isinstance(target, BatchTarget):
                yield Batch(images, target, None)
                continue
            # random erasing follows the view's own seed
            if self.erasing is not None:
                images = self.erasing(images, target.view_seed)
            label = target.label
            if isinstance(self.order, EpisodeSampler):
                label = self.order.targets.to(images.device)
            yield Batch(images, label, target.index, target.share)

    def _set_epoch(self, epoch: int, start: int) -> int:
        """Choose the epoch, and the number of batches to skip; return how many of these are loaded all the same."""
        if self.order is not None and not isinstance(self.order, ScheduledBatchSampler):
            self.order.set_epoch(epoch, start)
            return 0
        by_epoch = self.loader.dataset if self.order is None else self.order
        set_epoch = getattr(by_epoch, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)
        return start


def _average_batch_size(batches: object) -> float:
    """Return how many samples a batch has, where sizes change on average."""
    if isinstance(batches, ScheduledBatchSampler):
        return float(batches.average_batch_size)
    keyed = (
        BatchSampler,
        KeyedBatches,
        StretchBatches,
        EpisodeSampler,
        TwoPartSampler,
        WithStrongViews,
    )
    if isinstance(batches, keyed):
        return float(batches.batch_size)
    raise TypeError(f"{type(batches).__name__} does not say how large a batch is")


def create_train_loader(
    dataset: AnyDataset,
    views: TrainViews,
    data_config: dict[str, Any],
    settings: LoaderSettings,
    chosen: StretchBatches | None = None,
    labelled_set: MapDataset | None = None,
) -> TrainLoader:
    """Create the training loader.

    Args:
        dataset: the training set, without transform.
        views: what is made of its samples; of a stream all that needs no index.
        data_config: timm's data configuration of the student (input_size, mean, std, interpolation, ...).
        settings: how batches are loaded.
        chosen: load these batches, and no others.
        labelled_set: samples of which each batch has some, before those of ``dataset``; their positions follow its own.

    Raises:
        UserError: the training set is smaller than one batch, or timm refuses an argument.
    """
    # a stream has no positions, and so no keys
    if isinstance(dataset, IterableDataset):
        # timm's loader with timm's mixing, which counts the splits itself
        kwargs = dict(views.transform)
        kwargs["re_split"] = kwargs.pop("re_num_splits") > 0
        kwargs["collate_fn"] = FastCollateMixup(**views.mixing) if views.mixing else None
        kwargs["worker_seeding"] = views.worker_seeding
        with _flag_errors("augmentation"):
            stream = _timm_loader(dataset, data_config, settings, **kwargs)
        return TrainLoader(stream, settings)

    # a view of a sample; timm's refusals of an augmentation name the flag that asked for it
    with _flag_errors("augmentation"):
        samples = _with_transforms(dataset, views, data_config, settings)
    if labelled_set is not None:
        others = _with_transforms(labelled_set, views, data_config, settings)
        samples = ConcatDataset([samples, others])
    # strong views are samples of their own, which follow all others; keys that were chosen name none
    first_strong = None
    if views.strong is not None and chosen is None:
        first_strong = len(dataset) + (0 if labelled_set is None else len(labelled_set))
        strongly = dataclasses.replace(views, transform=views.strong)
        with _flag_errors("--strong-views"):
            strong = _with_transforms(without_transform(dataset), strongly, data_config, settings)
        samples = ConcatDataset([samples, strong])

    # which views are in which batch
    if chosen is not None:
        # what was chosen elsewhere, such as the views that a teacher is still to be asked about, makes no epochs
        order, batches = None, chosen
    else:
        order = batches = _batches(dataset, views, settings, labelled_set, first_strong)

    # a batch, in a data worker and on the device: timm's collate function, with mixing where there is any
    mixup = None
    collate = fast_collate if settings.prefetch else default_collate
    if views.mixing is not None and settings.prefetch:
        mixup = collate = FastCollateMixup(**views.mixing)
    elif views.mixing is not None:
        mixup = Mixup(**views.mixing)
        collate = functools.partial(_collate_and_mix, mixup)
    loader = DataLoader(
        KeyedDataset(samples, views.seed),
        batch_sampler=batches,
        num_workers=settings.workers,
        collate_fn=KeyedCollate(collate, mixup, views.mixup_off_epoch, views.keeps_share),
        pin_memory=settings.pin_memory,
        persistent_workers=settings.workers > 0,
        worker_init_fn=start_worker,
        # else every epoch draws the seed of the workers from the global one
        generator=torch.Generator(),
    )
    if not settings.prefetch:
        return TrainLoader(loader, settings, order)

    # timm normalises and erases on the device
    prefetcher = PrefetchLoader(
        loader,
        mean=data_config["mean"],
        std=data_config["std"],
        channels=data_config["input_size"][0],
        device=settings.device,
        img_dtype=settings.dtype,
    )
    erasing = None
    how = views.transform
    if how["re_prob"] and not how["no_aug"]:
        erasing = KeyedErasing(
            RandomErasing(
                how["re_prob"],
                mode=how["re_mode"],
                max_count=how["re_count"],
                num_splits=how["re_num_splits"],
                device=str(settings.device),
            )
        )
    return TrainLoader(prefetcher, settings, order, erasing)


def _batches(
    dataset: MapDataset,
    views: TrainViews,
    settings: LoaderSettings,
    labelled_set: MapDataset | None,
    first_strong: int | None,
) -> BatchOrder:
    """Return the batches of an epoch; with strong views, the first of which has the index ``first_strong``, if that is
    given. Raises `UserError` where there is no batch.
    """
    if views.episodes is not None:
        # classes and images are drawn by the labels
        labels = known_labels(dataset, "--episodic")
        check_shape(views.episodes.shape, labels, "--episodic", class_names_of(dataset))
        return EpisodeSampler(
            labels, views.episodes, views.seed, settings.rank, settings.world_size
        )
    sampler = KeyedSampler(
        len(dataset),
        views.seed,
        settings.rank,
        settings.world_size,
        views.repeats,
        views.epochs,
        views.epoch_size,
    )
    # sizes that change from batch to batch are timm's
    if views.sizes:
        samples = f"{len(dataset)} training samples on {settings.world_size} process(es)"
        schedule = views.schedule or {}
        with _flag_errors(f"--train-img-sizes, {samples}"):
            return ScheduledBatchSampler(sampler, seed=views.seed, **schedule)
    check_batch_size(settings.batch_size, sampler, views.labelled_count)
    batches: KeyedBatches | TwoPartSampler = KeyedBatches(sampler, settings.batch_size)
    if labelled_set is not None:
        batches = TwoPartSampler(
            sampler, len(labelled_set), settings.batch_size, views.labelled_count
        )
    if first_strong is None:
        return batches
    return WithStrongViews(batches, views.labelled_count, first_strong)


class BatchDataset(Wrapper):
    """A dataset whose samples are batches of another one, as lists, which a loader collates without a batch size.

    Args:
        dataset: of the samples.
        rows: which ones a batch has.
    """

    def __init__(self, dataset: MapDataset, rows: Sequence[Sequence[int]]):
        super().__init__(dataset)
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> list[tuple[object, int | Tensor]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return [self.dataset[row] for row in self.rows[index]]


def create_eval_loader(
    dataset: AnyDataset,
    data_config: dict[str, Any],
    settings: LoaderSettings,
    *,
    chosen: StretchBatches | None = None,
    crop_border_pixels: int | None = None,
    tf_preprocessing: bool = False,
) -> DataLoader | PrefetchLoader:
    """Create timm's evaluation loader: every sample, in order, dealt out to the ranks; or the batches ``chosen``."""
    if chosen is not None:
        if isinstance(dataset, IterableDataset):
            raise TypeError("a stream has no rows that could be chosen")
        dataset = BatchDataset(dataset, [[key.index for key in keys] for keys in chosen])
    loader = _timm_loader(
        dataset,
        data_config,
        settings,
        crop_border_pixels=crop_border_pixels,
        tf_preprocessing=tf_preprocessing,
        batch_size=settings.batch_size if chosen is None else None,
        **{name: data_config[name] for name in EVAL_TRANSFORM},
    )
    # timm has set the transform; only how JPEG files come to its second step may be another
    dataset.transform = with_decoder(dataset.transform, dataset, settings.decoder)
    return loader


def _timm_loader(
    dataset: AnyDataset,
    data_config: dict[str, Any],
    settings: LoaderSettings,
    **kwargs: Any,
) -> DataLoader | PrefetchLoader:
    """Return timm's own loader, whose workers outlive a signal to the whole job; ``kwargs`` are of `create_loader`."""
    loader = create_loader(
        dataset,  # pyright: ignore[reportArgumentType]  # timm sets a transform, whatever dataset it is
        input_size=data_config["input_size"],
        distributed=settings.world_size > 1,
        **{**settings.for_timm, **kwargs},
    )
    # timm sets the seeds of workers in their initialiser, which is kept
    inner = loader.loader if isinstance(loader, PrefetchLoader) else loader
    inner.worker_init_fn = functools.partial(start_worker, then=inner.worker_init_fn)
    return loader


@contextlib.contextmanager
def _flag_errors(what: str) -> Iterator[None]:
    """Turn what timm says of its arguments into a `UserError`."""
    try:
        yield
    except (AssertionError, ValueError, KeyError) as error:
        raise UserError(f"{what}: {one_line(error)}") from error


def _with_transforms(
    dataset: MapDataset,
    views: TrainViews,
    data_config: dict[str, Any],
    settings: LoaderSettings,
) -> Dataset:
    """Give the dataset its transforms."""
    # timm's transform for training, which normalises where the prefetcher does not
    kwargs: dict[str, Any] = {**views.transform, "use_prefetcher": settings.prefetch}
    input_size = data_config["input_size"]
    # several views of an image side by side, as AugMix has them
    if views.splits > 1:
        splits = AugMixDataset(dataset, num_splits=views.splits)
        splits.transform = create_transform(input_size, separate=True, **kwargs)
        return splits
    # several sizes of an image, of which the batch chooses one
    if views.sizes:
        channels = input_size[0]
        sizes = [(channels, side, side) for side in views.sizes]
        return ScheduledTransformDataset(dataset, [_transform(size, kwargs) for size in sizes])
    transform = _transform(input_size, kwargs)
    dataset.transform = with_decoder(transform, dataset, settings.decoder)
    return dataset


def _transform(input_size: tuple[int, int, int], kwargs: dict[str, Any]) -> Transform:
    transform = create_transform(input_size, **kwargs)
    if isinstance(transform, tuple):
        raise TypeError("timm returns three transforms for splits alone")
    return transform


def _collate_and_mix(mixup: Mixup, samples: list[tuple[object, int]]) -> tuple[Tensor, Tensor]:
    return mixup(*default_collate(samples))
