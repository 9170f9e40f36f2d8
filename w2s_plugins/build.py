"""The parts of a training run, each made from the command line."""

import argparse
import copy
import functools
import importlib
import logging
import os
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch
import torch.distributed as dist
from timm.data.model_config import resolve_input_data_config
from timm.layers import convert_splitbn_model, convert_sync_batchnorm, set_fast_norm
from timm.loss import create_classification_loss
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import (
    ClassificationTask,
    FeatureDistillationTask,
    LogitDistillationTask,
    TokenDistillationTask,
    TrainingTask,
)
from timm.utils import NativeScaler, init_distributed_device, random_seed, set_jit_fuser
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from . import heartbeat
from .class_order import names_of_data
from .clean_selection import select_by_model, selection_models
from .cli.resolve import loss_weights, split_names, view_epochs
from .data import (
    EpisodeShape,
    create_eval_loader,
    create_train_loader,
    hold_out,
    labels_of,
    open_split,
    parse_shapes,
    take_slice,
)
from .data.datasets import check_labels, class_names_of, describe, num_classes_of
from .data.loaders import train_transform_kwargs
from .data.noise import LabelNoise, create_label_noise, positions_in_split
from .data.overlap import count_shared
from .data.selection import Selection, parse_selection, read_selection, selection_figures, take_selected
from .data.unreadable import Blanked, SkippedSamples
from .engine import Precision
from .errors import UserError, one_line
from .features import FeatureExtractor, create_feature_extractor
from .few_shot import EpisodicTask, FewShotTest, create_test
from .hints import speed_hint
from .hub import file_sha256, hub_source, on_hub
from .inference import cpu_has_bfloat16_units, inference_dtype
from .loading import (
    check_finite,
    check_input_size,
    check_loaded,
    create_model,
    find_weights,
    load_weights,
    read_weights,
)
from .long_tail import ShotGroups, choose_groups, count_classes
from .losses import DistillationLoss, create_loss
from .monitor import Console
from .published import Published, choose_pool, load_published, read_published, warn_of_normalisation
from .target_cache import (
    CachedTargets,
    CacheSpec,
    ImageLabeller,
    TargetReader,
    ViewLabeller,
    agree,
    data_identity,
    ensure_cache,
    teacher_identity,
)
from .task import WeakToStrongTask
from .teacher_mix import LearnedTeacherWeights, NearestTeacher
from .teachers import StudentInput, Teacher, TeacherModel, create_teacher

_logger = logging.getLogger(__name__)


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


@dataclass
class Data:
    """The splits of a run.

    Args:
        train: the training set.
        val: the validation split.
        select: held out of the training slice where a part of it chooses the checkpoint.
        few_shot: has classes of its own, on which the encoder is tested by episodes.
        split_size: samples in the whole training split, 0 for a stream.
        noise: the labels that the training split was given in place of its own.
        selection: the samples that ``--clean-select`` has left in the training set.
        groups: the classes by their number of samples in the whole training split, where accuracy is measured by them.
    """

    train: Dataset
    val: Dataset | None
    select: Dataset | None
    few_shot: Dataset | None = None
    split_size: int = 0
    noise: LabelNoise | None = None
    selection: Selection | None = None
    groups: ShotGroups | None = None

    @property
    def candidates(self) -> Dataset:
        """The training set before the selection."""
        return self.train if self.selection is None else self.train.dataset


def join_processes(args: argparse.Namespace) -> World:
    """Choose the device, join the other processes, and say where the work is done."""
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    if not args.dist_timeout >= 1:
        raise UserError(f"--dist-timeout {args.dist_timeout}: expected at least 1 second")
    device = join_group(args)
    world = World(device, args.rank, args.world_size, args.distributed)
    if world.distributed:
        heartbeat.note("preparing")
    why = " (no CUDA here)" if args.no_accelerator else ""
    emulated = args.amp and device.type == "cpu" and not cpu_has_bfloat16_units()
    _logger.info(f"{world.size} process(es) on {device}{why}"
                 + (f", mixed precision in {args.amp_dtype}" if args.amp else f", {args.model_dtype or 'float32'}")
                 + (", for which this CPU has no units: float32 (without --amp) is likely faster" if emulated else ""))
    if args.fuser:
        set_jit_fuser(args.fuser)
    if args.fast_norm:
        set_fast_norm()
    return world


def join_group(args: argparse.Namespace) -> torch.device:
    """Choose the device and join the process group, once: the runs of a protocol follow each other in one group.

    Raises:
        UserError: the port that the processes meet at is taken, or cannot be reached.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        try:
            device = init_distributed_device(args)
        except dist.DistNetworkError as error:
            place = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
            raise UserError(f"the processes cannot meet at {place}: {one_line(error)}; where another run has this "
                            "port, give each its own MASTER_PORT, or leave the choice to torchrun --standalone"
                            ) from error
        if args.distributed:
            heartbeat.start(args.dist_timeout)
        return device
    args.rank, args.world_size, args.distributed = dist.get_rank(), dist.get_world_size(), True
    args.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if args.device != "cpu":
        args.device = f"{args.device.split(':')[0]}:{args.local_rank}"
    return torch.device(args.device)


def setup_device(args: argparse.Namespace) -> World:
    """Join the other processes and set what training needs globally."""
    for module in args.device_modules or ():
        _logger.info(f"--device-modules {module}: is imported, which runs its code")
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"--device-modules {module}: cannot be imported: {one_line(error)}") from error
    world = join_processes(args)
    if hint := speed_hint(args, world.device.type, cpu_has_bfloat16_units()):
        _logger.info(hint)
    random_seed(args.seed, 0)  # the same initial weights on every rank
    return world


def reading(args: argparse.Namespace) -> dict[str, object]:
    """Return how samples are read, as arguments of `open_split`."""
    channels = args.in_chans or (args.input_size[0] if args.input_size else 3)
    return dict(
        class_map=args.class_map,
        image_root=args.image_root,
        download=args.dataset_download,
        batch_size=args.batch_size,
        input_img_mode=args.input_img_mode or ("RGB" if channels == 3 else "L"),
        input_key=args.input_key,
        target_key=args.target_key,
        trust_remote_code=args.dataset_trust_remote_code,
    )


def open_train_split(args: argparse.Namespace) -> Dataset:
    """Open the whole training split."""
    return open_split(
        args.dataset, args.data_dir, args.train_split, args.class_list, flag="--train-split", is_training=True,
        seed=args.seed, repeats=args.epoch_repeats, num_samples=args.train_num_samples, **reading(args))


def open_val_split(args: argparse.Namespace) -> Dataset:
    """Open the whole validation split."""
    return open_split(
        args.dataset, args.data_dir, args.val_split, args.class_list, flag="--val-split", is_training=False,
        num_samples=args.val_num_samples, **reading(args))


def build_data(args: argparse.Namespace) -> Data:
    """Create the splits, settle the number of classes, and cut slices."""
    train, val = open_train_split(args), open_val_split(args) if args.val_split else None
    few_shot = open_split(
        args.dataset, args.data_dir, args.few_shot_split, args.few_shot_class_list, flag="--few-shot-split",
        list_flag="--few-shot-class-list", is_training=False, **reading(args)) if args.few_shot_eval else None
    settle_classes(args, train, val)
    groups = shot_groups(args, train)
    streamed = isinstance(train, IterableDataset)
    split_size, noise = 0 if streamed else len(train), None
    if args.label_noise:
        noise = create_label_noise(args.label_noise, train, seed=args.noise_seed, map_file=args.label_noise_map)
    whole = train, val
    train = take_slice(train, args.train_slice, args.slice_seed)
    if args.val_slice and val is not None:
        val = take_slice(val, args.val_slice, args.slice_seed, "--val-slice")
    check_disjoint(args, whole, train, val)
    train, select = hold_out(train, args.select_split, args.slice_seed)
    if noise is not None:  # after the cuts, which are then those of a run without noise
        train, select = noise.apply(train), noise.apply(select) if select is not None else None
        about = noise.record(train)
        _logger.info(f"Label noise {args.label_noise}: {about['changed']} of {about['samples']} training labels "
                     f"({100 * about['rate']:.2f} %) are not the clean ones")
    if streamed:
        if args.clean_select:
            raise UserError("--clean-select needs a dataset that can be indexed; streams cannot")
        _logger.info("Streaming dataset: order and views follow timm; exact resumption is not promised")
        if args.teacher and args.teacher_targets != "online":
            raise UserError(f"--teacher-targets {args.teacher_targets} needs a dataset that can be indexed; streams "
                            "cannot")
    return Data(train, val, select, few_shot, split_size=split_size, noise=noise, groups=groups)


def shot_groups(args: argparse.Namespace, train: Dataset) -> ShotGroups | None:
    """Group the classes by their samples in the training split, of which a run may train on a part."""
    counts = None if args.long_tail == "never" else count_classes(train, args.num_classes)
    groups = choose_groups(args.long_tail, counts, args.long_tail_thresholds)
    if groups is not None:
        _logger.info(f"Long tail: {groups}")
    return groups


def check_disjoint(
        args: argparse.Namespace,
        whole: tuple[Dataset, Dataset | None],
        train: Dataset,
        val: Dataset | None,
) -> None:
    """Refuse a test set that shares samples with the training set where both are cut from one split.

    Without ``--val-slice`` it is a warning: to evaluate on what one trains on is a known way to look for errors.
    """
    if val is None or any(isinstance(split, IterableDataset) for split in whole) or len(whole[0]) != len(whole[1]):
        return  # not one split; to compare all names takes time
    shared = count_shared(train, val)
    if shared and not args.val_slice:
        _logger.warning(f"WARNING: '{args.train_split}' and '{args.val_split}' are the same samples, and {shared} of "
                        "them are trained on; --val-slice A:B evaluates on others")
    elif shared:
        raise UserError(f"--val-slice {args.val_slice}: {shared} of its {len(val)} samples are trained on; give a "
                        f"slice outside of --train-slice {args.train_slice or ':'}")


def select_clean(
        args: argparse.Namespace,
        data: Data,
        data_config: dict,
        teacher: Teacher | None,
        world: World,
        saved: Path | None = None,
) -> None:
    """Leave in the training set what ``--clean-select`` selects, in place.

    Args:
        args: parsed flags.
        data: the splits.
        data_config: input of the student.
        teacher: the teacher, whose features or losses decide unless ``--clean-select-model`` names another model.
        world: this process.
        saved: index file of a run that is resumed; where it has the same rule it is taken again.
    """
    if not args.clean_select:
        return
    candidates, given = data.train, labels_of(data.train)
    if given is None:
        raise UserError("--clean-select: this kind of dataset does not tell its labels without being read; use a "
                        "folder, torch/, hfds/ or w2s/ dataset")
    rule, value = parse_selection(args.clean_select)
    fingerprint = describe(candidates, args.dataset, args.train_split).fingerprint
    selected, origin = None, {}
    if saved is not None and saved.is_file():
        selected, origin = read_selection(str(saved), candidates, data.split_size, fingerprint)
    if origin.get("rule") != args.clean_select:
        if rule == "file":
            selected, made_by = read_selection(value, candidates, data.split_size, fingerprint)
            origin = dict(made_by=made_by.get("rule"), models=made_by.get("models"))
        else:
            models = selection_models(
                rule, args.clean_select_model, args.clean_select_checkpoint, teacher,
                in_chans=data_config["input_size"][0], num_classes=args.num_classes,
                class_names=names_of_data(candidates), device=world.device)
            selected = select_by_model(
                rule, value, models, without_transform(candidates), num_classes=args.num_classes,
                batch_size=args.validation_batch_size or args.batch_size, workers=args.workers, decoder=args.decoder,
                device=world.device, rank=world.rank, world_size=world.size,
                progress=Console(world.primary, 0).wrap)
            origin = dict(made_by=None, models=[model.source for model in models])
    figures = selection_figures(
        selected, given, data.noise.clean_labels(candidates) if data.noise else None, args.num_classes)
    data.train = take_selected(candidates, selected)
    data.selection = Selection(
        dict(rule=args.clean_select, made_by=origin["made_by"], models=origin["models"], fingerprint=fingerprint,
             **figures),
        list(positions_in_split(data.train)))
    quality = "" if figures["precision"] is None else (
        f", precision {100 * figures['precision']:.2f} %, recall {100 * figures['recall']:.2f} %")
    _logger.info(f"Clean selection {args.clean_select}: {figures['selected']} of {figures['candidates']} training "
                 f"samples{quality}")
    if figures["empty_classes"]:
        _logger.warning(f"WARNING: --clean-select has left no sample of {figures['empty_classes']} class(es)")


def settle_classes(args: argparse.Namespace, train: Dataset, val: Dataset | None) -> None:
    """Compare the classes of the splits with each other and with ``--num-classes``, which defaults to theirs."""
    names = class_names_of(train)
    val_names = class_names_of(val) if val is not None else None
    if names and val_names and names != val_names:
        odd = next(a or b for a, b in zip_longest(names, val_names) if a != b)
        raise UserError(f"the splits have different classes: {len(names)} in '{args.train_split}', {len(val_names)} in "
                        f"'{args.val_split}' (first difference: {odd}); give both the same class folders; splits of "
                        "different classes are for few-shot learning: --val-split '' --few-shot-eval 5x1")
    count = num_classes_of(train)
    if args.num_classes is None:
        args.num_classes = count
    elif count is not None and count != args.num_classes:
        raise UserError(f"--num-classes {args.num_classes} does not match the data, which has {count} classes; leave "
                        "the flag out, or map classes with --class-map")
    for dataset, split in ((train, args.train_split), (val, args.val_split)):
        if dataset is not None and args.num_classes is not None:
            check_labels(dataset, split, args.num_classes)


def build_student(args: argparse.Namespace, world: World) -> tuple[nn.Module, dict, dict]:
    """Create the student and say how it starts."""
    overlay = state = None
    if args.pretrained_path:
        file = find_weights(args.pretrained_path, "--pretrained-path")
        overlay = dict(file=str(file), num_classes=-1)
        if file.suffix != ".npz":  # weights of JAX, which only the model itself can read
            state = read_weights(file, "--pretrained-path")
    published = None
    if args.finetune:
        published = read_published(find_weights(args.finetune, "--finetune"), "--finetune")
        choose_pool(args, published)
    flags = dict(
        num_classes=args.num_classes,
        drop_rate=args.drop or None,
        drop_path_rate=args.drop_path if args.drop_path is not None else args.drop_connect,
        drop_block_rate=args.drop_block,
        global_pool=args.gp,
        bn_momentum=args.bn_momentum,
        bn_eps=args.bn_eps,
        pretrained_cfg_overlay=overlay,
    )
    model = create_model(
        "--model",
        args.model,
        pretrained=args.pretrained or bool(overlay),
        inputs=dict(img_size=args.img_size, input_size=args.input_size, in_chans=args.in_chans),
        **{**flags, **args.model_kwargs},
    )
    if state is not None:
        check_loaded(model, state, str(file), "--pretrained-path")
    args.num_classes = model.num_classes
    source = student_start(args, model, published)
    if args.linear_probe:
        model.reset_classifier(model.num_classes)  # pretrained heads know the ground truth of their own data
        if source["init"] == "random":
            _logger.warning("WARNING: --linear-probe on features of random weights: give --pretrained, --finetune FILE "
                            "or --initial-checkpoint FILE")
    with torch.no_grad():
        if args.head_init_scale is not None:
            model.get_classifier().weight.mul_(args.head_init_scale)
            model.get_classifier().bias.mul_(args.head_init_scale)
        if args.head_init_bias is not None:
            nn.init.constant_(model.get_classifier().bias, args.head_init_bias)
    if args.grad_checkpointing:
        try:
            model.set_grad_checkpointing(enable=True)
        except (AssertionError, AttributeError) as error:
            raise UserError(f"--grad-checkpointing: --model {args.model} cannot do it") from error
    try:
        data_config = resolve_input_data_config(model, args=vars(args))
    except (ValueError, AssertionError) as error:
        raise UserError(f"--model {args.model}: {one_line(error)}") from error
    if published is not None:
        warn_of_normalisation(published, data_config)
    if args.split_bn:
        model = convert_splitbn_model(model, max(args.aug_splits, 2))
    model.to(
        device=first_device(args.fsdp, world), dtype=getattr(torch, args.model_dtype) if args.model_dtype else None)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    channels, *size = data_config["input_size"]
    for shape in {tuple(size), *((s, s) for s in args.train_img_sizes or ())}:
        check_input_size(model, (channels, *shape), f"--model {args.model}")
    if args.sync_bn and world.distributed:
        args.dist_bn = ""
        model = convert_sync_batchnorm(model)
    return model, data_config, source


def first_device(sharded: bool, world: World) -> torch.device:
    """Return where a model is made: on the CPU when it is to be sharded, for the whole may not fit the device."""
    return torch.device("cpu") if sharded else world.device


def student_start(args: argparse.Namespace, model: nn.Module, published: Published | None) -> dict:
    """Load what ``--initial-checkpoint`` or ``--finetune`` names; log and return how the student starts."""
    source = dict(init="pretrained" if args.pretrained or args.pretrained_path else "random", source=None)
    if args.pretrained_path:
        file = find_weights(args.pretrained_path, "--pretrained-path")
        source["source"] = dict(file=args.pretrained_path, sha256=file_sha256(file))
    elif args.pretrained:
        source["source"] = hub_source(model, args.model)
    if args.initial_checkpoint:
        flag, file = "--initial-checkpoint", find_weights(args.initial_checkpoint, "--initial-checkpoint")
        state = read_weights(file, flag, use_ema=True)
        check_finite(state, str(file), flag)
        report = load_weights(model, state, str(file), flag)
        _logger.info(f"Student {args.model}: {report}")
        source = dict(init="checkpoint", source=dict(file=args.initial_checkpoint, sha256=file_sha256(file)))
    if published is not None:
        _logger.info(f"Student {args.model}: {load_published(model, published, '--finetune')}")
        source = dict(init="checkpoint", source=dict(file=args.finetune, sha256=file_sha256(published.path)))
    params = sum(p.numel() for p in model.parameters())
    start = {"random": "random weights", "pretrained": "pretrained weights", "checkpoint": "weights from a file"}
    has_weights = model.pretrained_cfg.get("hf_hub_id") or model.pretrained_cfg.get("url")
    hint = "; --pretrained starts from timm's weights" if source["init"] == "random" and has_weights else ""
    _logger.info(f"Student {args.model}: {params / 1e6:.2f} M parameters, {model.num_classes} classes, starts from "
                 f"{start[source['init']]}{hint}")
    return {**source, "params": params}


def create_precision(args: argparse.Namespace, world: World) -> Precision:
    """Return the dtype of images and model, and autocast with its scaler."""
    amp_dtype = getattr(torch, args.amp_dtype) if args.amp else None
    scaler = NativeScaler(device=world.device.type) if amp_dtype == torch.float16 else None
    dtype = getattr(torch, args.model_dtype) if args.model_dtype else torch.float32
    return Precision(world.device, dtype, amp_dtype, scaler)


def build_teacher(
        args: argparse.Namespace,
        student: nn.Module,
        data_config: dict,
        precision: Precision,
        world: World,
        class_names: list[str] | None = None,
) -> Teacher | None:
    """Create the frozen teacher on the student's input, or None; ``class_names`` are those of the training set."""
    if not args.teacher:
        return None
    dtype = inference_dtype(world.device, precision.amp_dtype)
    return create_teacher(
        split_names(args.teacher),
        split_names(args.teacher_checkpoint),
        StudentInput(
            data_config["mean"], data_config["std"], data_config["input_size"][0],
            None if args.episodic else student.num_classes, None if args.episodic else class_names),
        device=first_device(args.fsdp_teacher, world),
        dtype=getattr(torch, args.teacher_dtype) if args.teacher_dtype else dtype,
        use_ema=args.use_ema_teacher,
        class_map_file=args.teacher_class_map,
        img_size=args.teacher_img_size,
        model_kwargs=args.teacher_kwargs,
        compiled=args.teacher_compile,
    )


def build_loaders(
        args: argparse.Namespace,
        data: Data,
        data_config: dict,
        precision: Precision,
        world: World,
) -> dict[str, object]:
    """Create the loaders; ``val`` and ``select`` are None where there is no such split."""
    def evaluation(dataset: Dataset | None) -> object:
        return None if dataset is None else create_eval_loader(
            dataset,
            data_config,
            batch_size=args.validation_batch_size or args.batch_size,
            workers=args.workers,
            device=world.device,
            dtype=precision.dtype,
            distributed=world.distributed,
            prefetch=not args.no_prefetcher,
            pin_memory=args.pin_mem,
            decoder=args.decoder,
        )
    train = create_train_loader(
        data.train, args, data_config, device=world.device, dtype=precision.dtype, rank=world.rank,
        world_size=world.size, view_epochs=view_epochs(args))
    select = data.select
    if select is not None:  # it shares the training images, but not their transform
        select = without_transform(select)
    few_shot = data.few_shot
    return dict(train=train, val=evaluation(data.val), select=evaluation(select), few_shot=evaluation(few_shot))


def build_few_shot_test(args: argparse.Namespace, data: Data) -> FewShotTest | None:
    """Draw the episodes that ``--few-shot-eval`` asks for, or return None."""
    if data.few_shot is None:
        return None
    return draw_few_shot_test(data.few_shot, args, args.few_shot_eval, args.few_shot_episodes, "--few-shot-eval")


def draw_few_shot_test(
        dataset: Dataset,
        args: argparse.Namespace,
        text: str,
        count: int,
        flag: str,
) -> FewShotTest:
    """Draw ``count`` test episodes of each of the shapes in ``text`` from a split. Raises `UserError`."""
    labels = labels_of(dataset)
    if labels is None:
        raise UserError(f"{flag}: this kind of dataset does not tell its labels without being read; use a folder, "
                        "torch/, hfds/ or w2s/ dataset")
    return create_test(
        labels, parse_shapes(text, args.queries, flag), count=count, seed=args.few_shot_seed,
        classifier=args.few_shot_classifier, flag=flag, class_names=class_names_of(dataset))


def without_transform(dataset: Dataset) -> Dataset:
    """Return a shallow copy of a dataset, down to the one that owns the transform, that can be given another one."""
    twin = copy.copy(dataset)
    if "transform" not in vars(twin) and hasattr(twin, "dataset"):
        twin.dataset = without_transform(twin.dataset)
    return twin


def cached_targets(
        args: argparse.Namespace,
        teacher: Teacher | None,
        data: Data,
        data_config: dict,
        precision: Precision,
        world: World,
        skipped: SkippedSamples | None = None,
) -> CachedTargets | None:
    """Find the teacher's cached targets, or let it make them; None where it is asked in every step.

    With ``skipped``, samples that cannot be read are counted there and have no targets.
    """
    if teacher is None or args.teacher_targets == "online":
        return None
    epochs = view_epochs(args)
    dataset = without_transform(data.train)
    if skipped is not None:
        dataset = Blanked(dataset)
    create_view_loader = functools.partial(
        create_train_loader, dataset, args, data_config, device=world.device, dtype=precision.dtype)
    console = Console(world.primary, 0)
    readers = []
    for number, member in enumerate(teacher.members, start=1):
        spec = agree(world.primary and cache_spec(args, member, data, data_config, precision), world.distributed)
        if epochs:
            labeller = ViewLabeller(
                member, dataset, lambda keys: create_view_loader(keys=keys), args.batch_size, args.channels_last)
        else:
            labeller = ImageLabeller(
                member, dataset, args.validation_batch_size or args.batch_size, args.workers, world.device,
                args.decoder)
        cache = ensure_cache(
            Path(args.target_cache), spec, labeller, distributed=world.distributed,
            progress=console.wrap(f"targets of teacher {number}"), skipped=skipped)
        readers.append(TargetReader(cache, spec))
    largest, mean = (max(figures) for figures in zip(*(reader.errors[0] for reader in readers)))
    how = f"{args.teacher_cache_dtype}{f', top {args.teacher_topk}' if args.teacher_topk else ''}"
    _logger.info(f"Teacher targets stored as {how}: probabilities differ from the teacher's by {largest:.2g} at most, "
                 f"{mean:.2g} in the mean")
    if epochs:
        _logger.info(f"Training views repeat after {epochs} epoch(s) (--teacher-targets {args.teacher_targets})")
    return CachedTargets(readers, world.device)


def cache_spec(
        args: argparse.Namespace,
        member: TeacherModel,
        data: Data,
        data_config: dict,
        precision: Precision,
) -> CacheSpec:
    """Return what a cache of one model's targets is made of, by which it is found again."""
    identity, epochs = describe(data.train, args.dataset, args.train_split), view_epochs(args)
    views = dict(
        seed=args.seed,
        input_size=data_config["input_size"],
        dtype=precision.dtype,
        prefetcher=not args.no_prefetcher,
        **train_transform_kwargs(args, data_config),
    )
    made_of = dict(
        data=data_identity(without_transform(data.train), identity.fingerprint),
        teacher=teacher_identity(member),
        transform=dict(member.data_config, decoder=args.decoder),
        student_views=views if epochs else None,
    )
    return CacheSpec(
        made_of, identity.num_samples, member.num_classes, max(1, epochs), getattr(torch, args.teacher_cache_dtype),
        args.teacher_topk)


def build_task(
        args: argparse.Namespace,
        student: nn.Module,
        teacher: Teacher | None,
        targets: CachedTargets | None,
        data: Data,
        data_config: dict,
        precision: Precision,
        world: World,
) -> TrainingTask:
    """Create the task: weak-to-strong, one of timm's distillation tasks, or plain classification."""
    mixing = args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None
    criterion = create_classification_loss(
        args.task_loss,
        smoothing=args.smoothing,
        soft_targets=mixing,
        bce_target_thresh=args.bce_target_thresh if args.task_loss == "bce" else None,
        bce_sum=args.bce_sum if args.task_loss == "bce" else False,
        pos_weight=args.bce_pos_weight if args.task_loss == "bce" else None,
        jsd_splits=args.aug_splits,
    ).to(world.device)
    shared = dict(device=first_device(args.fsdp, world), dtype=precision.dtype, verbose=world.primary)
    if args.episodic and teacher is None:
        return EpisodicTask(student, None, None, criterion, shape=episode_shape(args), **shared)
    if teacher is not None:
        task_weight, distill_weight = loss_weights(args.task_loss_weight, args.distill_loss_weight)
        _logger.info(f"Loss {task_weight:g} x {args.task_loss} on ground truth + {distill_weight:g} x {args.loss}"
                     + "".join(f" {k}={v}" for k, v in args.loss_kwargs.items()))
        loss = create_loss(args.loss, **args.loss_kwargs).to(shared["device"])
        shared.update(task_loss_weight=task_weight, distill_loss_weight=distill_weight)
        if args.episodic:
            if loss.needs_features or loss.needs_index:
                need = "features" if loss.needs_features else "memory by sample"
                raise UserError(f"--loss {args.loss} needs {need}, which episodes do not give: with --episodic use a "
                                "loss on logits, such as adaptconf")
            return EpisodicTask(student, teacher, loss, criterion, shape=episode_shape(args), **shared)
        return WeakToStrongTask(
            student,
            targets or teacher,
            loss,
            criterion,
            extractor=build_extractor(args, loss, student, data_config, teacher),
            mix=build_mix(args, teacher),
            log_weights=args.log_beta,
            cached=targets is not None,
            num_samples=None if isinstance(data.train, IterableDataset) else len(data.train),
            **shared,
        )
    if args.kd_model_name:
        return build_timm_distillation(args, student, criterion, shared)
    return ClassificationTask(student, criterion, **shared)


def episode_shape(args: argparse.Namespace) -> EpisodeShape:
    """Return the shape of the training episodes."""
    return parse_shapes(args.episodic, args.queries, "--episodic")[0]


def build_extractor(
        args: argparse.Namespace,
        loss: DistillationLoss,
        student: nn.Module,
        data_config: dict,
        teacher: Teacher,
) -> FeatureExtractor | None:
    """Choose the feature levels of student and teacher when the loss needs features."""
    if not loss.needs_features:
        return None
    if args.teacher_targets != "online":
        raise UserError(f"--loss {args.loss} needs the teacher's features: use --teacher-targets online")
    teacher.choose_stages(args.teacher_stages)
    return create_feature_extractor(student, data_config["input_size"], args.student_stages)


def build_mix(args: argparse.Namespace, teacher: Teacher) -> nn.Module | None:
    """Return what makes one target of several teachers, or None for the mean of their probabilities."""
    if args.teacher_assign == "student":
        return NearestTeacher()
    if args.teacher_weights == "learned":
        return LearnedTeacherWeights(len(teacher.members), args.teacher_agreement_share)
    return None


def build_timm_distillation(
        args: argparse.Namespace,
        student: nn.Module,
        criterion: nn.Module,
        shared: dict,
) -> TrainingTask:
    """Create one of timm's own distillation tasks from timm's own flags."""
    teacher = create_model("--kd-model-name", args.kd_model_name, pretrained=True, num_classes=student.num_classes,
                           in_chans=student.in_chans, device=shared["device"], dtype=shared["dtype"])
    common = dict(
        student_model=student, teacher_model=teacher, criterion=criterion,
        distill_loss_weight=args.distill_loss_weight, task_loss_weight=args.task_loss_weight, **shared)

    def create() -> TrainingTask:
        if args.kd_distill_type == "feature":
            return FeatureDistillationTask(
                student_feature_dim=args.kd_student_feature_dim,
                teacher_feature_dim=args.kd_teacher_feature_dim, **common)
        if args.kd_distill_type == "token":
            return TokenDistillationTask(
                distill_type=args.kd_token_distill_type, temperature=args.kd_temperature, **common)
        return LogitDistillationTask(loss_type=args.kd_loss_type, temperature=args.kd_temperature, **common)

    try:
        return on_hub(f"--kd-model-name {args.kd_model_name}", create)
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise UserError(f"--kd-model-name {args.kd_model_name}, --kd-distill-type {args.kd_distill_type}: "
                        f"{one_line(error)}") from error


def settle_learning_rate(args: argparse.Namespace, world_size: int) -> None:
    """Scale ``--lr-base`` by the batch size of all processes when ``--lr`` is not given, by timm's rule."""
    if args.lr:
        return
    sizes = args.train_batch_sizes or [args.batch_size]
    probs = args.train_size_probs or [1.0] * len(sizes)
    average = sum(s * p for s, p in zip(sizes, probs)) / sum(probs)
    ratio = average * world_size * args.grad_accum_steps / args.lr_base_size
    if not args.lr_base_scale:
        args.lr_base_scale = "sqrt" if any(o in args.opt.lower() for o in ("ada", "lamb")) else "linear"
    args.lr = args.lr_base * (ratio ** 0.5 if args.lr_base_scale == "sqrt" else ratio)
    _logger.info(f"Learning rate {args.lr:.4g} from --lr-base {args.lr_base:g}, {args.lr_base_scale} in the batch size")


def create_optimizer(args: argparse.Namespace, task: TrainingTask) -> torch.optim.Optimizer:
    """Create timm's optimizer of everything in the task that is trained."""
    try:
        return create_optimizer_v2(task.get_trainable_module(), **optimizer_kwargs(cfg=args), **args.opt_kwargs)
    except (TypeError, ValueError, IndexError, AssertionError, ImportError) as error:
        raise UserError(f"--opt {args.opt}: cannot be created: {one_line(error)}") from error


def create_schedule(
        args: argparse.Namespace,
        optimizer: torch.optim.Optimizer,
        updates_per_epoch: int,
) -> tuple[object | None, int]:
    """Create timm's learning-rate schedule; return it, None for a constant rate, and the number of epochs."""
    try:
        return create_scheduler_v2(
            optimizer, **scheduler_kwargs(args, decreasing_metric=args.eval_metric == "loss"),
            updates_per_epoch=updates_per_epoch)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"--sched {args.sched}: cannot be created: {one_line(error)}") from error
