"""The parts of an evaluation by ``validate.py``, made from its flags."""

import argparse
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
from timm.data import RealLabelsImagenet
from timm.data.model_config import resolve_input_data_config
from timm.data.naflex_loader import create_naflex_loader
from timm.layers import apply_test_time_pool
from timm.utils import natural_key, reparameterize_model
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from ..cli.declare import Role
from ..cli.parser import train_parser, validate_parser
from ..cli.values import split_names
from ..data import create_eval_loader, open_split, take_slice
from ..data.datasets import num_classes_of
from ..data.loaders import LoaderSettings
from ..distributed.world import Precision
from ..errors import UserError, name_runs, one_line
from ..files import read_text
from ..labels.splits import TestSet
from ..metrics.long_tail import CLASS_COUNTS, ShotGroups, count_classes, read_counts
from ..models.class_names import are_elsewhere, imagenet_names, names_of_data, names_of_model, warn_of_names
from ..models.foreign import refuse_addresses
from ..models.inference import inference_dtype
from ..models.loading import WEIGHT_FILES, create_model, find_weights, has_ema, load_weights, read_weights
from ..registry import load_plugins
from ..run.args_file import read_run_args
from ..run.find import BEST, LAST
from ..teachers.clip import read_prompts
from ..teachers.teacher import StudentInput, Teacher, TeacherSettings, create_teacher
from .classes import by_name
from .flags import check_model_name, check_teacher_name, resolve_precision
from .resolve import refuse_missing_checkpoint, refuse_missing_data, resolve_data_dir
from .rules import check_validation
from .test_sets import open_test_sets

_logger = logging.getLogger(__name__)

# pretrained weights for other label sets or tasks, which `--model all` leaves out, as timm's script does
OTHER_LABELS = ["*_in21k", "*_in22k", "*in12k", "*_dino", "*fcmae", "*seer"]


@dataclass(frozen=True)
class Candidate:
    """A model to evaluate.

    Args:
        model: its name.
        checkpoint: its weights; empty for pretrained ones.
        recorded: arguments that its run names, of which only those of the architecture are taken.
    """

    model: str
    checkpoint: str = ""
    recorded: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """A model, ready on the device, and how its input is made."""

    candidate: Candidate
    model: nn.Module
    data_config: dict
    params: int
    class_names: list[str] | None

    @property
    def image_mode(self) -> str:
        """How images are read unless ``--input-img-mode`` says otherwise."""
        return "RGB" if self.data_config["input_size"][0] == 3 else "L"


# ---------------------------------------------------------------- flags


def resolve_validate_args(args: argparse.Namespace, given: set[str]) -> list[Candidate]:
    """Fill in what follows from other flags and from the run that ``--checkpoint`` names, in place; check them.

    Returns:
        What ``--model`` and ``--checkpoint`` stand for.
    """
    # What the run of the checkpoint used holds unless a flag says otherwise.
    if args.few_shot and "split" not in given:
        args.split = "novel"
    run = take_run_flags(args, given)
    # Names and values are checked once all of them are there.
    load_plugins(args.plugins)
    for name in split_names(args.teacher):
        check_teacher_name("--teacher", name)
    check_validation(args, given)
    resolve_data_dir(args)
    refuse_missing_data(args)
    resolve_precision(args, given)
    candidates = list_candidates(args, {} if "model_kwargs" in given else run.get("model_kwargs") or {})
    if "use_ema" in given:
        for file in (find_weights(one.checkpoint, "--checkpoint") for one in candidates if one.checkpoint):
            single = file.suffix == ".safetensors"  # of an export: its run, where that was named, says what it is
            if not (run.get("model_ema") if single else has_ema(file, "--checkpoint")):
                raise UserError(f"--use-ema: {file} has no EMA weights (state_dict_ema); leave the flag out")
    return candidates


def resolve_ceiling(args: argparse.Namespace, student: Candidate) -> tuple[argparse.Namespace, Candidate]:
    """Return the flags and the model of ``--ceiling-checkpoint``, to be evaluated on the samples of the student.

    It is a run folder, or a checkpoint of the student's own model.
    """
    own = argparse.Namespace(**{
        **vars(args), "model": student.model, "checkpoint": args.ceiling_checkpoint, "ceiling_checkpoint": None,
        "ceiling_acc": None, "teacher": None, "metrics_avg": None, "train_counts": ""})
    # Only what describes the model comes from its own run; the samples stay those of the student.
    same_samples = validate_parser().names(Role.DATA | Role.SLICE | Role.WHERE | Role.TESTS)
    run = take_run_flags(own, same_samples | {"batch_size", "train_counts"})
    check_model_name("--model", own.model)
    recorded = run.get("model_kwargs") or {}
    if recorded:
        own.model_kwargs = {}
    return own, Candidate(own.model, own.checkpoint, recorded if run else student.recorded)


def take_run_flags(args: argparse.Namespace, given: set[str]) -> dict:
    """Let the args.yaml beside the checkpoint set what was not given by hand: the run's own figure comes out.

    Returns:
        All flags of that run; empty without one.
    """
    refuse_missing_checkpoint(args.checkpoint)
    if not args.checkpoint:
        return {}
    path = Path(args.checkpoint)
    is_run = path.is_dir()
    folder = path if is_run else path.parent
    if not (folder / "args.yaml").is_file():
        if is_run and not weights_in(path):
            raise UserError(f"--checkpoint {path}: the folder has neither args.yaml nor checkpoints{name_runs(path)}")
        return {}

    # Flags of the run that hold for its evaluation, unless they are given.
    run = read_run_args(folder, "--checkpoint")
    taken = {theirs: ours for theirs, ours in taken_over(bool(args.few_shot)).items()
             if ours not in given and run.get(theirs) not in (None, "") and theirs != "model_kwargs"}
    refuse_addresses(run, taken, f"--checkpoint {folder}")
    for theirs, ours in taken.items():
        setattr(args, ours, run[theirs])

    # What follows from others of its flags.
    number = (run.get("few_shot_eval") or "").partition(":")[2]
    if args.few_shot and number and ":" not in args.few_shot:
        args.few_shot += f":{number}"
    if "train_counts" not in given and (folder / CLASS_COUNTS).is_file():
        args.train_counts = str(folder / CLASS_COUNTS)
    if "use_train_size" not in given:
        args.use_train_size = True
    if "use_ema" not in given:
        args.use_ema = bool(run.get("model_ema")) and not run.get("model_ema_force_cpu")
    if is_run and str(run.get("tune")).startswith("lora"):  # the weights with the adapters in them
        args.checkpoint, args.use_ema = str(path / WEIGHT_FILES[0]), False
    elif is_run:
        args.checkpoint = str(path / (BEST if run.get("select") == "best" else LAST))
    return run


def weights_in(folder: Path) -> list[Path]:
    """Return the files of weights in a folder."""
    return [path for pattern in ("*.pth.tar", "*.pth", "*.safetensors") for path in folder.glob(pattern)]


def taken_over(few_shot: bool) -> dict[str, str]:
    """Return the flags of a run that hold for its evaluation, or for its test on episodes, and their names here."""
    of_splits, of_episodes = {}, {}
    for name, facts in train_parser().facts().items():
        if facts.evaluation:
            (of_episodes if Role.EPISODES in facts.role else of_splits)[name] = facts.evaluation
    if not few_shot:
        return of_splits
    replaced = set(of_episodes.values())
    return {k: v for k, v in of_splits.items() if v not in replaced} | of_episodes


def list_candidates(args: argparse.Namespace, recorded: dict) -> list[Candidate]:
    """Return what ``--model`` and ``--checkpoint`` stand for; what its run says of a model is in ``recorded``."""
    # A folder of checkpoints, a pattern, a list in a file: each model is one row.
    path = Path(args.checkpoint)
    if args.checkpoint and path.is_dir():
        return [Candidate(args.model, str(p)) for p in sorted(weights_in(path), key=lambda p: natural_key(p.name))]
    if args.model == "all":
        names = timm.list_models(pretrained=True, exclude_filters=OTHER_LABELS)
    elif Path(args.model).is_file():
        names = Path(args.model).read_text(encoding="utf-8").split()
    elif any(c in args.model for c in "*?["):
        names = timm.list_models(args.model, pretrained=True)
        if not names:
            raise UserError(f"--model {args.model}: no model with pretrained weights has such a name")
    else:
        check_model_name("--model", args.model)
        return [Candidate(args.model, args.checkpoint, recorded)]
    return [Candidate(name) for name in names]


# ---------------------------------------------------------------- model


def create_subject(args: argparse.Namespace, candidate: Candidate, device: torch.device) -> Subject:
    """Create the model with its weights and bring it into the form in which it is evaluated."""
    model = create_model(
        "--model",
        candidate.model,
        pretrained=args.pretrained or not candidate.checkpoint,
        inputs=dict(img_size=args.img_size, input_size=args.input_size, in_chans=args.in_chans),
        recorded=candidate.recorded,
        **{"num_classes": args.num_classes, "global_pool": args.gp, "scriptable": args.torchscript or None,
           **args.model_kwargs},
    )
    if candidate.checkpoint:
        file = find_weights(candidate.checkpoint, "--checkpoint")
        report = load_weights(model, read_weights(file, "--checkpoint", args.use_ema), str(file), "--checkpoint")
        _logger.info(f"{candidate.model}: {report}")
    # Names of the classes travel with a checkpoint, and say which answer is which.
    class_names = names_of_model(model, candidate.checkpoint or None, "--checkpoint")
    if args.reparam:
        model = reparameterize_model(model)
    params = sum(p.numel() for p in model.parameters())
    try:
        data_config = resolve_input_data_config(model, args=vars(args), use_test_size=not args.use_train_size)
    except (ValueError, AssertionError) as error:
        raise UserError(f"--model {candidate.model}: {one_line(error)}") from error
    # Larger images than in training: features are pooled over windows of the old size.
    if args.test_pool:
        model, pooled = apply_test_time_pool(model, data_config)
        data_config = {**data_config, "crop_pct": 1.0 if pooled else data_config["crop_pct"]}
    model = model.to(device=device, dtype=getattr(torch, args.model_dtype) if args.model_dtype else None).eval()
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return Subject(candidate, model, data_config, params, class_names)


def compiled(args: argparse.Namespace, model: nn.Module) -> nn.Module:
    """Return the model in the compiled or parallel form that the flags ask for."""
    if args.torchscript:
        return torch.jit.script(model)
    if args.torchcompile:
        return torch.compile(model, backend=args.torchcompile, mode=args.torchcompile_mode)
    if args.aot_autograd:
        from functorch.compile import memory_efficient_fusion
        return memory_efficient_fusion(model)
    return nn.DataParallel(model, device_ids=list(range(args.num_gpu))) if args.num_gpu > 1 else model


def open_teacher(
        args: argparse.Namespace, subject: Subject, dataset: Dataset, precision: Precision) -> Teacher | None:
    """Create the teacher on the input of what is evaluated; None without one."""
    if not args.teacher:
        return None
    # The teacher undoes the student's normalisation and matches classes by name.
    config = subject.data_config
    teacher = create_teacher(
        split_names(args.teacher),
        split_names(args.teacher_checkpoint),
        StudentInput(config["mean"], config["std"], config["input_size"][0],
                     None if args.few_shot else subject.model.num_classes,
                     None if args.few_shot or args.valid_labels else names_of_data(dataset),
                     tuple(config["input_size"][-2:])),
        precision.device,
        TeacherSettings(inference_dtype(precision),
                        class_map_file=args.teacher_class_map, img_size=args.teacher_img_size,
                        model_kwargs=args.teacher_kwargs, prompts=read_prompts(args.prompts)),
    )
    if args.few_shot and not teacher.members[0].embeds:
        raise UserError(f"--few-shot: --teacher {args.teacher} has no features that can be had; models of timm and "
                        "clip: have")
    teacher.log_input(whole=not isinstance(dataset, IterableDataset))
    return teacher


# ---------------------------------------------------------------- data


def open_named(args: argparse.Namespace, split: str, flag: str, subject: Subject) -> Dataset:
    """Open a split of the data; ``flag`` named it."""
    return open_split(
        args.dataset, args.data_dir, split, args.class_list, flag=flag, class_map=args.class_map,
        image_root=args.image_root, download=args.dataset_download, load_bytes=args.tf_preprocessing,
        num_samples=args.num_samples, input_img_mode=args.input_img_mode or subject.image_mode,
        input_key=args.input_key, target_key=args.target_key,
        trust_remote_code=args.dataset_trust_remote_code, seed=args.seed)


def open_dataset(args: argparse.Namespace, subject: Subject, counted: list[int] | None) -> Dataset:
    """Open the split and compare its classes with the model's, of which only those in ``counted`` count."""
    dataset = open_named(args, args.split, "--split", subject)
    if args.few_shot:
        return dataset
    dataset = take_slice(dataset, args.val_slice, args.slice_seed, "--val-slice")
    expected, names = subject.model.num_classes, subject.class_names
    own = names_of_data(dataset)
    # in another order, or not all; one that is misspelt among others that are elsewhere is refused there
    if names and own and counted is None and own != names and (set(own) <= set(names) or are_elsewhere(own, names)):
        dataset = by_name(dataset, names, args.split, subject.candidate.checkpoint or subject.candidate.model)
    classes = num_classes_of(dataset)
    if classes not in (None, expected) and counted is None:
        raise UserError(f"the data has {classes} classes, {subject.candidate.model} has {expected}; give "
                        "--valid-labels FILE with the classes that count, --class-map FILE, or the model's own data")
    if names and counted is not None:
        names = [names[i] for i in counted if 0 <= i < len(names)]
    warn_of_names(subject.candidate.checkpoint or subject.candidate.model, names, names_of_data(dataset))
    return dataset


def open_tests(args: argparse.Namespace, subject: Subject, dataset: Dataset) -> dict[str, TestSet]:
    """Open the test sets beside the split ``dataset``."""
    # Sets are matched with the model by the names of classes; timm knows those of ImageNet's.
    own, size = names_of_data(dataset), subject.model.num_classes
    names = subject.class_names or (own if own and len(own) == size else imagenet_names(subject.model, None))
    return open_test_sets(args, names, size, args.input_img_mode or subject.image_mode)


def create_loader(args: argparse.Namespace, dataset: Dataset, subject: Subject, settings: LoaderSettings) -> Iterable:
    """Create timm's evaluation loader, of images or of NaFlex patches."""
    config = subject.data_config
    if not args.naflex_loader:
        return create_eval_loader(
            dataset, config, settings, crop_border_pixels=args.crop_border_pixels,
            tf_preprocessing=args.tf_preprocessing)
    embeds = getattr(subject.model, "embeds", None)
    return create_naflex_loader(
        dataset, batch_size=settings.batch_size, use_prefetcher=settings.prefetch,
        interpolation=config["interpolation"], mean=config["mean"], std=config["std"], num_workers=settings.workers,
        crop_pct=config["crop_pct"], crop_mode=config["crop_mode"], crop_border_pixels=args.crop_border_pixels,
        pin_memory=settings.pin_memory, device=settings.device, img_dtype=settings.dtype,
        patch_size=getattr(embeds, "patch_size", None) or (16, 16), max_seq_len=args.naflex_max_seq_len)


def open_groups(args: argparse.Namespace, dataset: Dataset, subject: Subject) -> ShotGroups | None:
    """Group the classes by their training samples. Raises `UserError` when the counts are not of these classes."""
    if not args.train_counts:
        return None
    flag, path = f"--train-counts {args.train_counts}", Path(args.train_counts)
    num_classes = num_classes_of(dataset) or subject.model.num_classes
    if path.is_file():
        counts = read_counts(path, "--train-counts")
    else:
        counts = count_classes(open_named(args, args.train_counts, "--train-counts", subject), num_classes)
    if counts is None:
        raise UserError(f"{flag}: this dataset does not tell its labels; give {CLASS_COUNTS} of a run")
    if len(counts) != num_classes:
        raise UserError(f"{flag}: counts of {len(counts)} classes, the data has {num_classes}")
    groups = ShotGroups(counts, *args.long_tail_thresholds)
    _logger.info(f"Long tail: {groups}")
    return groups


def open_real_labels(file: str, dataset: Dataset) -> RealLabelsImagenet:
    """Open the ReaL labels. Raises `UserError` when they are not of these images."""
    try:
        labels = RealLabelsImagenet(dataset.filenames(basename=True), real_json=file)
        known = set(labels.real_labels).issuperset(labels.filenames)
    except (OSError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise UserError(f"--real-labels {file}: expected the json of the ReaL labels ({one_line(error)})") from error
    if not known:
        raise UserError("--real-labels is for ImageNet's validation images (ILSVRC2012_val_00000001.JPEG, ...)")
    return labels


def read_valid_labels(file: str) -> list[int] | None:
    """Read the classes that count, one a line; None for all."""
    if not file:
        return None
    try:
        return [int(line) for line in read_text(file).split()]
    except (OSError, ValueError) as error:
        raise UserError(f"--valid-labels {file}: expected one class number a line ({one_line(error)})") from error
