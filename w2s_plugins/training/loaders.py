"""Settings of loaders, made of flags, and the loaders of a run."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from ..data import MapDataset, create_eval_loader, create_train_loader
from ..data.datasets import strata
from ..data.episodes import Episodes
from ..data.loaders import LoaderSettings, TrainLoader, TrainViews
from ..data.map_style import classes_of_samples
from ..data.order import KeyedSampler, StretchBatches, check_batch_size
from ..data.wrapper import without_transform
from ..distributed.world import Precision, World
from ..errors import UserError, logger
from ..models.loading import TimmModel
from ..resolve.fill_in import BATCHES_OF_EPISODES
from ..settings.composite import TrainSettings
from ..settings.concerns import DataSettings, ViewSettings
from ..settings.terms import STORED_TARGETS, in_use
from ..students.probe import EvalFeatures, TrainFeatures, create_encoder
from ..target_kind import SEVERAL_CLASSES
from ..teachers.stored import AnswerStore, CachedTargets, Encodes, Pass, StudentViews
from ..teachers.teacher import Teacher, TeacherModel
from .splits import Data

# what asks for samples by their numbers, as `in_use` reads it
NEEDS_INDEX = (
    "--clean-select",
    STORED_TARGETS,
    "--episodic",
    "--mixup-off-epoch",
    "--aug-splits",
    "--aug-repeats",
    "--strong-views",
    "--train-img-sizes",
    "--epoch-slice",
)

# what of the views of `student_views` decides those without augmentation
UNCHANGING = ("input_size", "dtype", "prefetcher", "no_aug", "interpolation", "mean", "std")


def loader_settings(settings: DataSettings, precision: Precision, world: World) -> LoaderSettings:
    """Return how batches are loaded."""
    return LoaderSettings(
        batch_size=settings.batch_size,
        workers=settings.workers,
        device=world.device,
        dtype=precision.dtype,
        rank=world.rank,
        world_size=world.size,
        prefetch=not settings.no_prefetcher,
        pin_memory=settings.pin_mem or world.device.type == "cuda",
        decoder=settings.decoder,
    )


def eval_loader_settings(
    settings: DataSettings, precision: Precision, world: World
) -> LoaderSettings:
    """Return how batches of an evaluation are loaded, which ``--validation-batch-size`` may make larger."""
    batch_size = settings.validation_batch_size or settings.batch_size
    return dataclasses.replace(loader_settings(settings, precision, world), batch_size=batch_size)


def whole_pass(settings: DataSettings, world: World) -> Pass:
    """Return how models go over whole datasets."""
    batch_size = settings.validation_batch_size or settings.batch_size
    return Pass(world, batch_size, settings.workers, settings.decoder)


def answer_store(settings: DataSettings, folder: str | Path, world: World) -> AnswerStore:
    """Return what keeps the answers of models to whole datasets, and features of the student, in a folder."""
    return AnswerStore(Path(folder), settings.dataset, whole_pass(settings, world))


# ---------------------------------------------------------------- size of a batch


def epoch_order(
    settings: TrainSettings, samples: int, epoch_size: int, world: World
) -> KeyedSampler | None:
    """Return the order of an epoch of so many samples on this rank; None for what has batches of another kind."""
    if settings.episodes.episodic or settings.views.train_img_sizes:
        return None
    return KeyedSampler(samples, settings.run.seed, world.rank, world.size, size=epoch_size)


def fit_batch_size(settings: TrainSettings, order: KeyedSampler, typed: bool) -> int:
    """Return the batch size of a run, or the largest one that its data allow.

    Args:
        settings: of the run.
        order: of an epoch.
        typed: the size must stay as it is.

    Raises:
        UserError: the size that was typed is too large, or none would do.
    """
    # few true labels are no reason to give up: such runs are what the others are compared with
    size = settings.data.batch_size
    try:
        # the labelled samples of a batch stand beside those of the training set
        check_batch_size(size, order, settings.data.labelled_in_batch)
        return size
    except UserError as error:
        fitting = len(order)
        if settings.views.mixes:  # mixup pairs samples
            fitting -= fitting % 2
        if typed and fitting:
            raise UserError(f"{error}, or leave the flag out") from error
        if not fitting:
            raise
        return fitting


def fit_to_data(
    settings: TrainSettings, data: Data, world: World, refit: Callable[[int], TrainSettings] | None
) -> TrainSettings:
    """Return the settings of a run whose batch is no larger than an epoch; ``refit`` makes those with another size, None
    if it was typed.
    """
    if isinstance(data.train, IterableDataset):  # which does not tell the number of its samples
        return settings
    order = epoch_order(settings, len(data.train), data.epoch_size, world)
    before = settings.data.batch_size
    size = before if order is None else fit_batch_size(settings, order, refit is None)
    if size == before or refit is None:
        return settings
    logger.info(f"Batch size {before} becomes {size}, because there are {len(data.train)} samples")
    return refit(size)


# ---------------------------------------------------------------- views


def train_views(settings: TrainSettings, data_config: dict, num_classes: int | None) -> TrainViews:
    """Return what decides a training view; ``num_classes`` is for the targets of mixed images."""
    loading, views = settings.data, settings.views
    episodes = None
    if settings.episodes.in_batch is not None:
        batches = views.train_batches_per_epoch or BATCHES_OF_EPISODES
        episodes = Episodes(*settings.episodes.in_batch, batches)
    mixing = None
    # Mixed targets are made in the data workers, which have to know how many classes there are.
    if views.mixes:
        several = loading.task == SEVERAL_CLASSES.task
        mixing = mixing_of(views, data_config, settings.loss.smoothing, num_classes, several)
    return TrainViews(
        transform=transform_of(views, data_config),
        seed=settings.run.seed,
        mixing=mixing,
        mixup_off_epoch=views.mixup_off_epoch,
        splits=views.aug_splits,
        repeats=views.aug_repeats,
        epochs=settings.teacher.view_epochs,
        sizes=tuple(views.train_img_sizes or ()),
        schedule=schedule_of(views, loading.batch_size, settings.optim.epochs),
        episodes=episodes,
        worker_seeding=loading.worker_seeding,
        keeps_share=settings.teacher.stores_targets,
        labelled_count=loading.labelled_in_batch,
        strong=strong_transform_of(views, data_config),
    )


def strong_transform_of(views: ViewSettings, data_config: dict) -> dict[str, object] | None:
    """Return the arguments of timm's transform of ``--strong-views``: as the first view, with this policy in place of
    ``--aa``.
    """
    if views.strong_views is None:
        return None
    strong = transform_of(views, data_config) | dict(auto_augment=views.strong_views)
    # Of an image without augmentation the policy alone makes the second view, of the largest square in its middle.
    if views.no_aug:
        whole = (1.0, 1.0)
        strong |= dict(
            no_aug=False,
            train_crop_mode=None,
            scale=whole,
            ratio=whole,
            hflip=0.0,
            vflip=0.0,
            color_jitter=None,
            re_prob=0.0,
        )
    return strong


def transform_of(views: ViewSettings, data_config: dict) -> dict[str, object]:
    """Return the arguments of timm's transform of one image."""
    # Without augmentation images are resized as in evaluations; else timm may draw an interpolation for each.
    interpolation = data_config["interpolation"]
    if views.train_interpolation and not views.no_aug:
        interpolation = views.train_interpolation
    return dict(
        is_training=True,
        no_aug=views.no_aug,
        train_crop_mode=views.train_crop_mode,
        scale=views.scale,
        ratio=views.ratio,
        hflip=views.hflip,
        vflip=views.vflip,
        color_jitter=views.color_jitter,
        color_jitter_prob=views.color_jitter_prob,
        grayscale_prob=views.grayscale_prob or 0.0,
        gaussian_blur_prob=views.gaussian_blur_prob or 0.0,
        auto_augment=views.aa,
        interpolation=interpolation,
        mean=data_config["mean"],
        std=data_config["std"],
        re_prob=views.reprob,
        re_mode=views.remode,
        re_count=views.recount,
        re_num_splits=(views.aug_splits or 2) if views.resplit else 0,
    )


def mixing_of(
    views: ViewSettings,
    data_config: dict,
    smoothing: float,
    num_classes: int | None,
    several: bool = False,
) -> dict[str, object]:
    """Return the arguments of timm's `Mixup`; targets may be those of ``several`` classes an image.

    Raises:
        UserError: the boxes of cutmix have no whole pixels.
    """
    height, width = data_config["input_size"][-2:]
    low, high = views.cutmix_minmax or (0, 1)
    # timm draws the sides of boxes from whole pixels, and would find no number between these.
    if any(int(low * side) >= int(high * side) for side in (height, width)):
        raise UserError(
            f"--cutmix-minmax {low:g} {high:g}: no box of whole pixels lies between them at {height} x {width}; give "
            "two numbers that are further apart"
        )
    return dict(
        mixup_alpha=views.mixup,
        cutmix_alpha=views.cutmix,
        cutmix_minmax=views.cutmix_minmax,
        prob=views.mixup_prob,
        switch_prob=views.mixup_switch_prob,
        mode=views.mixup_mode,
        label_smoothing=smoothing,
        num_classes=num_classes,
        multi_label=several,
    )


def schedule_of(views: ViewSettings, batch_size: int, epochs: int) -> dict[str, object] | None:
    """Return the arguments of timm's sampler of batches whose images have one of several sizes; None with one size."""
    if not views.train_img_sizes:
        return None
    return dict(
        batch_sizes=views.train_batch_sizes or [batch_size] * len(views.train_img_sizes),
        choice_weights=views.train_size_probs,
        num_batches=views.train_batches_per_epoch,
        choice_schedule=views.train_size_schedule,
        schedule_epochs=epochs if views.train_size_schedule == "progressive" else None,
        schedule_spread=views.train_size_schedule_spread,
        schedule_random_mix=views.train_size_random_mix,
    )


def student_views(
    settings: TrainSettings,
    data_config: dict,
    precision: Precision,
    world: World,
    unchanging: bool = False,
) -> StudentViews | None:
    """Return the training views about which models are asked once, None if these see plain images.

    With ``unchanging`` these are the views of ``--no-aug``, which are the same in every epoch.
    """
    epochs = 1 if unchanging else settings.teacher.view_epochs
    loading = loader_settings(settings.data, precision, world)
    if not epochs:
        return None
    # What is stored is found again by all that decides what a model sees. Answers are mixed later.
    views = dataclasses.replace(train_views(settings, data_config, None), mixing=None)
    seen: dict[str, object] = dict(
        seed=settings.run.seed,
        input_size=data_config["input_size"],
        dtype=precision.dtype,
        prefetcher=loading.prefetch,
        **views.transform,
    )
    # CPU and GPU draw other noise from one seed.
    erases_noise = settings.views.reprob and settings.views.remode != "const"
    if loading.prefetch and loading.device.type != "cpu" and erases_noise:
        seen["device"] = loading.device.type  # where timm draws what it fills an erased part with
    if unchanging:
        seen = {name: seen[name] for name in UNCHANGING}

    def load(dataset: MapDataset, chosen: StretchBatches) -> TrainLoader:
        return create_train_loader(dataset, views, data_config, loading, chosen=chosen)

    return StudentViews(epochs, seen, load, settings.data.batch_size)


# ---------------------------------------------------------------- loaders


# by split: `TrainLoader` and timm's loaders, or features in their place; None if a run has not the split
Loaders = dict[str, Any]


def check_stream(settings: TrainSettings) -> None:
    """Raise a `UserError` for the first flag that asks for samples by their numbers, which a stream has not."""
    # timm loads a stream as it comes; views by number, stored answers and memories by sample need positions.
    flag = next((what for what in NEEDS_INDEX if in_use(settings, what)), None)
    if settings.data.no_prefetcher and settings.views.mixes:
        flag = "--no-prefetcher with --mixup or --cutmix"
    if flag is not None:
        raise UserError(
            f"{flag} needs a dataset that can be indexed; --dataset {settings.data.dataset} is a stream"
        )


def build_loaders(
    settings: TrainSettings,
    data: Data,
    data_config: dict,
    precision: Precision,
    world: World,
) -> Loaders:
    """Create the loaders; those of splits that there are not are None."""
    # Images of the training set come as views; those of all other splits as they are.
    views = train_views(settings, data_config, data.num_classes)
    train = create_train_loader(
        data.train,
        dataclasses.replace(views, epoch_size=data.epoch_size),
        data_config,
        loader_settings(settings.data, precision, world),
        labelled_set=data.labelled_set,
    )
    # A held-out part shares the training images, but not their transform.
    loaders: Loaders = {"train": train}
    loading = eval_loader_settings(settings.data, precision, world)
    for role, dataset in (("val", data.val), ("select", data.select), ("few_shot", data.few_shot)):
        loaders[role] = None
        if dataset is not None:
            loaders[role] = create_eval_loader(without_transform(dataset), data_config, loading)
    return loaders


def _label_tensor(dataset: MapDataset) -> Tensor:
    """Return the label of every sample, (N,), negative without labels, or of several classes (N, C)."""
    several = classes_of_samples(dataset)
    return torch.tensor(strata(dataset, "--linear-probe")) if several is None else several


def build_feature_loaders(
    settings: TrainSettings,
    data: Data,
    student: TimmModel,
    teacher: Teacher | None,
    data_config: dict,
    precision: Precision,
    world: World,
) -> Loaders:
    """Compute or find the features of all splits for ``--linear-probe``; return loaders of them.

    The teacher, if there is one, labels the evaluation splits once, unless ``--no-teacher-eval``.

    Raises:
        UserError: a dataset that does not tell its labels, or a head that is not one linear layer.
    """
    # Of the training set there are features of each view if views are stored.
    encoder = create_encoder(student, data_config, precision, f"--model {settings.student.model}")
    views = student_views(settings, data_config, precision, world)
    labellers: Sequence[TeacherModel] = ()
    if teacher is not None and not settings.evaluation.no_teacher_eval:
        labellers = teacher.members
    return load_stored(settings, data, encoder, views, precision, world, labellers)


def load_stored(
    settings: TrainSettings,
    data: Data,
    encoder: Encodes,
    views: StudentViews | None,
    precision: Precision,
    world: World,
    labellers: Sequence[TeacherModel] = (),
) -> Loaders:
    """Compute or find what a frozen part of a student gives for all splits, which the rest of it sees; return loaders of
    that.

    Args:
        settings: of the run.
        data: its splits; of none of them a stream.
        encoder: the frozen part.
        views: those of the training set; None is the plain image.
        precision: device and dtype.
        world: all processes take part.
        labellers: label each image of the evaluation splits once.
    """
    # The frozen part is asked about each image once.
    loading = settings.data
    store = answer_store(loading, settings.teacher.target_cache, world)
    samples = data.samples
    labels = _label_tensor(samples)
    features = store.features(encoder, samples, loading.train_split, views)
    order = KeyedSampler(
        len(samples), settings.run.seed, world.rank, world.size, size=data.epoch_size
    )
    train = TrainFeatures(features, labels, order, loading.batch_size, precision)
    loaders: Loaders = {"train": train, "val": None, "select": None, "few_shot": None}

    # The other splits are measured on plain images, beside what the teacher says of these.
    for role, dataset, split in (
        ("val", data.val, loading.val_split),
        ("select", data.select, loading.train_split),
    ):
        if dataset is None or isinstance(dataset, IterableDataset):  # the latter is refused before
            continue
        labels = _label_tensor(dataset)
        readers = [store.exact(member, dataset, split) for member in labellers]
        loaders[role] = EvalFeatures(
            store.features(encoder, dataset, split),
            labels,
            CachedTargets(readers, world.device, data.target_kind) if readers else None,
            eval_loader_settings(loading, precision, world),
        )
    return loaders
