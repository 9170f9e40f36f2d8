"""Settings of loaders, made of flags, and the loaders of a run."""

import dataclasses
from argparse import Namespace
from pathlib import Path

import torch
from torch import nn

from ..data import create_eval_loader, create_train_loader
from ..data.datasets import strata
from ..data.episodes import Episodes
from ..data.loaders import LoaderSettings, TrainViews
from ..data.order import KeyedSampler
from ..data.wrapper import without_transform
from ..distributed.world import Precision, World
from ..errors import UserError
from ..labels.splits import Data
from ..settings.resolve import batch_of_episodes, mixes, stores_targets, view_epochs
from ..settings.rules import in_use
from ..students.probe import EvalFeatures, TrainFeatures, create_encoder
from ..teachers.stored import AnswerStore, CachedTargets, Pass, StudentViews
from ..teachers.teacher import Teacher

# of a training view, which timm's transform takes under their own names
VIEW_FLAGS = ("no_aug", "train_crop_mode", "scale", "ratio", "hflip", "vflip", "color_jitter", "color_jitter_prob")

# what asks for samples by their numbers
NEEDS_INDEX = ("--clean-select", "--teacher-targets cached", "--episodic", "--mixup-off-epoch", "--aug-splits",
               "--aug-repeats", "--train-img-sizes", "--epoch-slice")


def loader_settings(args: Namespace, precision: Precision, world: World) -> LoaderSettings:
    """Return how batches are loaded."""
    return LoaderSettings(
        batch_size=args.batch_size,
        workers=args.workers,
        device=world.device,
        dtype=precision.dtype,
        rank=world.rank,
        world_size=world.size,
        prefetch=not args.no_prefetcher,
        pin_memory=args.pin_mem or world.device.type == "cuda",
        decoder=args.decoder,
    )


def eval_loader_settings(
        args: Namespace, precision: Precision, world: World) -> LoaderSettings:
    """Return how batches of an evaluation are loaded, which ``--validation-batch-size`` may make larger."""
    return dataclasses.replace(
        loader_settings(args, precision, world), batch_size=args.validation_batch_size or args.batch_size)


def whole_pass(args: Namespace, world: World) -> Pass:
    """Return how models go over whole datasets."""
    return Pass(world, args.validation_batch_size or args.batch_size, args.workers, args.decoder)


def answer_store(args: Namespace, world: World) -> AnswerStore:
    """Return where the answers of models to whole datasets are kept, and features of the student."""
    return AnswerStore(Path(args.target_cache), args.dataset, whole_pass(args, world))


def train_views(args: Namespace, data_config: dict, num_classes: int | None) -> TrainViews:
    """Return what decides a training view; ``num_classes`` is for the targets of mixed images."""
    # timm's transform of one image
    own_interpolation = args.no_aug or not args.train_interpolation
    transform = dict(
        is_training=True,
        **{name: getattr(args, name) for name in VIEW_FLAGS},
        grayscale_prob=args.grayscale_prob or 0.0,
        gaussian_blur_prob=args.gaussian_blur_prob or 0.0,
        auto_augment=args.aa,
        interpolation=data_config["interpolation"] if own_interpolation else args.train_interpolation,
        mean=data_config["mean"],
        std=data_config["std"],
        re_prob=args.reprob,
        re_mode=args.remode,
        re_count=args.recount,
        re_num_splits=(args.aug_splits or 2) if args.resplit else 0,
    )
    # what mixes the images of a batch
    mixing = schedule = None
    if mixes(args):
        height, width = data_config["input_size"][-2:]
        low, high = args.cutmix_minmax or (0, 1)
        if any(int(low * side) >= int(high * side) for side in (height, width)):
            raise UserError(f"--cutmix-minmax {low:g} {high:g}: no box of whole pixels lies between them at "
                            f"{height} x {width}; give two numbers that are further apart")
        mixing = dict(
            mixup_alpha=args.mixup,
            cutmix_alpha=args.cutmix,
            cutmix_minmax=args.cutmix_minmax,
            prob=args.mixup_prob,
            switch_prob=args.mixup_switch_prob,
            mode=args.mixup_mode,
            label_smoothing=args.smoothing,
            num_classes=num_classes,
        )
    # sizes that change from batch to batch
    if args.train_img_sizes:
        schedule = dict(
            batch_sizes=args.train_batch_sizes or [args.batch_size] * len(args.train_img_sizes),
            choice_weights=args.train_size_probs,
            num_batches=args.train_batches_per_epoch,
            choice_schedule=args.train_size_schedule,
            schedule_epochs=args.epochs if args.train_size_schedule == "progressive" else None,
            schedule_spread=args.train_size_schedule_spread,
            schedule_random_mix=args.train_size_random_mix,
        )
    return TrainViews(
        transform=transform,
        seed=args.seed,
        mixing=mixing,
        mixup_off_epoch=args.mixup_off_epoch,
        splits=args.aug_splits,
        repeats=args.aug_repeats,
        epochs=view_epochs(args),
        sizes=tuple(args.train_img_sizes or ()),
        schedule=schedule,
        episodes=Episodes(*batch_of_episodes(args), args.train_batches_per_epoch) if args.episodic else None,
        worker_seeding=args.worker_seeding,
        keeps_share=stores_targets(args),
        labelled=labelled_in_batch(args),
    )


def student_views(
        args: Namespace, data_config: dict, precision: Precision, world: World) -> StudentViews | None:
    """Return the training views about which models are asked once, None where these see plain images."""
    epochs, settings = view_epochs(args), loader_settings(args, precision, world)
    if not epochs:
        return None
    # What is stored is found again by all that decides what a model sees.
    views = dataclasses.replace(train_views(args, data_config, None), mixing=None)  # answers are mixed later
    seen = dict(seed=args.seed, input_size=data_config["input_size"], dtype=precision.dtype,
                prefetcher=not args.no_prefetcher, **views.transform)
    if settings.prefetch and settings.device.type != "cpu" and args.reprob and args.remode != "const":
        seen["device"] = settings.device.type  # where timm draws what it fills an erased part with
    return StudentViews(
        epochs, seen, lambda dataset, keys: create_train_loader(dataset, views, data_config, settings, keys=keys),
        args.batch_size)


def labelled_in_batch(args: Namespace) -> int:
    """Return how many samples of a batch are labelled where it has such samples beside those without labels."""
    return min(max(1, round(args.labeled_share * args.batch_size)), args.batch_size - 1)


def check_stream(args: Namespace) -> None:
    """Raise a `UserError` for the first flag that asks for samples by their numbers, which a stream has not."""
    flag = next((flag for flag in NEEDS_INDEX if in_use(args, flag)), None)
    if args.no_prefetcher and mixes(args):
        flag = "--no-prefetcher with --mixup or --cutmix"
    if flag is not None:
        raise UserError(f"{flag} needs a dataset that can be indexed; --dataset {args.dataset} is a stream")


def build_loaders(
        args: Namespace,
        data: Data,
        data_config: dict,
        precision: Precision,
        world: World,
) -> dict[str, object]:
    """Create the loaders; those of splits that there are not are None."""
    # Images of the training set come as views; those of all other splits as they are.
    views = train_views(args, data_config, data.num_classes)
    train = create_train_loader(
        data.train,
        dataclasses.replace(views, epoch_size=data.epoch_size),
        data_config,
        loader_settings(args, precision, world),
        labelled=data.labelled,
    )
    # A held-out part shares the training images, but not their transform.
    loaders, settings = {"train": train}, eval_loader_settings(args, precision, world)
    for role in ("val", "select", "few_shot"):
        dataset = getattr(data, role)
        loaders[role] = None
        if dataset is not None:
            loaders[role] = create_eval_loader(without_transform(dataset), data_config, settings)
    return loaders


def build_feature_loaders(
        args: Namespace,
        data: Data,
        student: nn.Module,
        teacher: Teacher | None,
        data_config: dict,
        precision: Precision,
        world: World,
) -> dict[str, object]:
    """Compute or find the features of all splits for ``--linear-probe``; return loaders of them.

    The teacher, where there is one, labels the evaluation splits once, unless ``--no-teacher-eval``.

    Raises:
        UserError: a dataset that does not tell its labels, or a head that is not one linear layer.
    """
    # The frozen part of the student is asked about each image once; its head sees what is stored. Of the training set
    # there are features of each view where views are stored.
    store = answer_store(args, world)
    encoder = create_encoder(student, data_config, precision, f"--model {args.model}")
    labellers = [] if teacher is None or args.no_teacher_eval else teacher.members
    loaders: dict[str, object] = dict(val=None, select=None, few_shot=None)
    for role, split in (("train", args.train_split), ("val", args.val_split), ("select", args.train_split)):
        dataset = getattr(data, role)
        if dataset is None:
            continue
        labels = torch.tensor(strata(dataset, "--linear-probe"))
        if role == "train":
            views = student_views(args, data_config, precision, world)
            features = store.exact(encoder, dataset, split, "features", views)
            order = KeyedSampler(
                len(dataset), args.seed, world.rank, world.size, size=data.epoch_size)
            loaders[role] = TrainFeatures(features, labels, order, args.batch_size, precision)
        else:
            readers = [store.exact(member, dataset, split, "logits") for member in labellers]
            loaders[role] = EvalFeatures(
                store.exact(encoder, dataset, split, "features"),
                labels,
                CachedTargets(readers, world.device) if readers else None,
                eval_loader_settings(args, precision, world),
            )
    return loaders
