"""The parts of an evaluation by ``validate.py``, made from its flags."""

from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
from timm.data import RealLabelsImagenet
from timm.data.naflex_loader import create_naflex_loader
from timm.layers import apply_test_time_pool
from timm.utils import natural_key, reparameterize_model
from torch import nn
from torch.utils.data import Dataset

from ..cli.declare import Role
from ..cli.forms import parse_long_tail
from ..cli.parser import train_parser
from ..cli.values import locate
from ..data import create_eval_loader, take_slice
from ..data.datasets import num_classes_of
from ..data.loaders import LoaderSettings
from ..distributed.world import Precision
from ..errors import UserError, logger, name_runs, near_path, one_line
from ..files import read_text
from ..metrics.long_tail import CLASS_COUNTS, ShotGroups, read_counts
from ..models.class_names import are_elsewhere, names_of_data, names_of_model, warn_of_names
from ..models.fingerprint import hash_tensors
from ..models.foreign import refuse_addresses
from ..models.loading import create_model, find_weights, input_config, load_weights, read_weights
from ..registry import load_plugins
from ..run.args_file import read_run_args
from ..run.find import BEST, LAST
from ..settings.flags import check_model_name, check_teacher_name, resolve_precision
from ..settings.resolve import check_data_dir, resolve_data_dir
from ..settings.rules import check_validation
from ..teachers.name import parse_teachers
from ..teachers.teacher import Teacher
from .classes import by_name
from .data import open_named_split
from .teacher import open_teacher

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

    @property
    def name(self) -> str:
        return self.checkpoint or self.model


@dataclass(frozen=True)
class Subject:
    """A model, ready on the device, how its input is made, and the hash of its weights as they were loaded."""

    candidate: Candidate
    model: nn.Module
    data_config: dict
    params: int
    weights: str
    class_names: list[str] | None


# ---------------------------------------------------------------- flags


def resolve_validate_args(args: Namespace, explicit_flags: set[str]) -> list[Candidate]:
    """Fill in what follows from other flags and from the run that ``--checkpoint`` names, in place; check them.

    Returns:
        What ``--model`` and ``--checkpoint`` stand for.
    """
    # What the run of the checkpoint used holds unless a flag says otherwise.
    args.class_counts = None
    if args.few_shot and "split" not in explicit_flags:
        args.split = "novel"
    # A run in the place of the data is what is to be evaluated.
    if args.data and any(locate(args.data)) and not explicit_flags & {"model", "checkpoint"}:
        args.checkpoint, args.data = args.data, None
    recorded = take_run_flags(args, explicit_flags)
    # Names and values are checked once all of them are there.
    load_plugins(args.plugins)
    for name in parse_teachers(args.teacher):
        check_teacher_name("--teacher", name)
    resolve_data_dir(args)
    # before a model is opened, because a run that is misspelt is taken for data
    check_data_dir(args)
    check_validation(args)
    resolve_precision(args, explicit_flags)
    return list_candidates(args, recorded)


def take_run_flags(args: Namespace, explicit_flags: set[str]) -> dict:
    """Let the flags of the run that was named set what was not given by hand: its own figure comes out.

    ``--checkpoint`` names it, or ``--model`` alone.

    Returns:
        The arguments of the model that it names.
    """
    name = args.checkpoint or args.model
    path, (export, folder) = Path(name), locate(name)
    if args.checkpoint and not path.exists():
        raise UserError(f"--checkpoint {path}: no such file or folder{near_path(path)}")
    # Without flags of a run it is an export, a name, or weights of the model that --model names.
    if folder is None:
        if export and not (args.checkpoint and "model" in explicit_flags):
            args.model, args.checkpoint = export, ""
        elif args.checkpoint and path.is_dir() and not weights_in(path):
            raise UserError(f"--checkpoint {path}: the folder has neither args.yaml nor checkpoints{name_runs(path)}")
        return {}
    if not args.checkpoint:
        args.checkpoint, explicit_flags = name, explicit_flags - {"model"}

    # Flags of the run that hold for its evaluation, unless they are given: of several that come to the same the last
    # one that is set, and in a test on episodes its own.
    run, taken = read_run_args(folder, "--checkpoint"), {}
    for theirs, facts in train_parser().facts().items():
        ours, of_episodes = facts.evaluation, Role.EPISODES in facts.role
        if not ours or ours in explicit_flags or (of_episodes and not args.few_shot):
            continue
        if run.get(theirs) not in (None, ""):
            taken[ours] = theirs
        elif of_episodes:
            taken.pop(ours, None)
    recorded = run["model_kwargs"] if taken.pop("model_kwargs", None) else {}
    refuse_addresses(
        run, {theirs: ours for ours, theirs in taken.items()}, f"--checkpoint {folder}")
    for ours, theirs in taken.items():
        setattr(args, ours, run[theirs])

    # What follows from others of its flags, and from its files.
    if (folder / CLASS_COUNTS).is_file():
        args.class_counts = folder / CLASS_COUNTS
    number = (run.get("few_shot_eval") or "").partition(":")[2]
    if args.few_shot and number and ":" not in args.few_shot:
        args.few_shot += f":{number}"
    defaults = {
        "use_train_size": True,
        "use_ema": bool(run.get("model_ema")) and not run.get("model_ema_force_cpu"),
    }
    for name in defaults.keys() - explicit_flags:
        setattr(args, name, defaults[name])
    if path.is_dir():
        kept = path / (BEST if run.get("select") == "best" else LAST)
        # The export has the weights with the adapters in them, and is there when the checkpoints are deleted.
        if str(run.get("tune")).startswith("lora") or not kept.is_file():
            kept, args.use_ema = find_weights(str(path), "--checkpoint"), False
        args.checkpoint = str(kept)
    return recorded


def weights_in(folder: Path) -> list[Path]:
    """Return the files of weights in a folder."""
    return [
        path
        for pattern in ("*.pth.tar", "*.pth", "*.safetensors")
        for path in folder.glob(pattern)
    ]


def list_candidates(args: Namespace, recorded: dict) -> list[Candidate]:
    """Return what ``--model`` and ``--checkpoint`` stand for; what its run says of a model is in ``recorded``."""
    # A folder of checkpoints, a pattern, a list in a file: each model is one row.
    path = Path(args.checkpoint)
    if args.checkpoint and path.is_dir():
        files = sorted(weights_in(path), key=lambda file: natural_key(file.name))
        return [Candidate(args.model, str(file)) for file in files]
    if args.model == "all":
        names = timm.list_models(pretrained=True, exclude_filters=OTHER_LABELS)
    elif any(sign in args.model for sign in "*?["):
        names = timm.list_models(args.model, pretrained=True)
    elif Path(args.model).is_file() and Path(args.model).suffix not in (".safetensors", ".tar", ".pth"):
        names = Path(args.model).read_text(encoding="utf-8").split()
    else:
        check_model_name("--model", args.model)
        return [Candidate(args.model, args.checkpoint, recorded)]
    if not names:
        raise UserError(f"--model {args.model}: no model with pretrained weights has such a name")
    return [Candidate(name) for name in names]


# ---------------------------------------------------------------- model


def create_subject(args: Namespace, candidate: Candidate, device: torch.device) -> Subject:
    """Create the model with its weights and bring it into the form in which it is evaluated."""
    model = create_model(
        "--model",
        candidate.model,
        pretrained=args.pretrained or not candidate.checkpoint,
        inputs=dict(img_size=args.img_size, input_size=args.input_size, in_chans=args.in_chans),
        recorded=candidate.recorded,
        **{
            "num_classes": args.num_classes,
            "global_pool": args.gp,
            "scriptable": args.torchscript or None,
            **args.model_kwargs,
        },
    )
    if candidate.checkpoint:
        file = find_weights(candidate.checkpoint, "--checkpoint")
        report = load_weights(
            model, read_weights(file, "--checkpoint", args.use_ema), str(file), "--checkpoint")
        logger.info(f"{candidate.model}: {report}")
    # Names of the classes travel with a checkpoint, and say which answer is which.
    class_names = names_of_model(model, candidate.checkpoint or None, "--checkpoint")
    weights = hash_tensors(dict(sorted(model.state_dict().items())))
    if args.reparam:
        model = reparameterize_model(model)
    params = sum(p.numel() for p in model.parameters())
    data_config = input_config(
        model, f"--model {candidate.model}", vars(args), use_test_size=not args.use_train_size)
    # Larger images than in training: features are pooled over windows of the old size.
    if args.test_pool:
        model, pooled = apply_test_time_pool(model, data_config)
        if pooled:
            data_config = {**data_config, "crop_pct": 1.0}
    model = model.to(device=device, dtype=getattr(torch, args.model_dtype) if args.model_dtype else None).eval()
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return Subject(candidate, model, data_config, params, weights, class_names)


def compiled(args: Namespace, model: nn.Module) -> nn.Module:
    """Return the model in the compiled or parallel form that the flags ask for."""
    if args.torchscript:
        return torch.jit.script(model)
    if args.torchcompile:
        return torch.compile(model, backend=args.torchcompile, mode=args.torchcompile_mode)
    if args.aot_autograd:
        from functorch.compile import memory_efficient_fusion
        return memory_efficient_fusion(model)
    return nn.DataParallel(model, device_ids=list(range(args.num_gpu))) if args.num_gpu > 1 else model


def build_teacher(
        args: Namespace, subject: Subject, dataset: Dataset, precision: Precision) -> Teacher | None:
    """Create the teacher on the input of what is evaluated; None without one."""
    if not args.teacher:
        return None
    num_classes = None if args.few_shot else subject.model.num_classes
    class_names = None if args.few_shot or args.valid_labels else names_of_data(dataset)
    teacher = open_teacher(
        args, parse_teachers(args.teacher), subject.data_config, num_classes, class_names, precision)
    if args.few_shot and not teacher.members[0].embeds:
        raise UserError(f"--few-shot: --teacher {args.teacher} has no features that can be had; models of timm and "
                        "clip: have")
    return teacher


# ---------------------------------------------------------------- data


def open_dataset(args: Namespace, subject: Subject, counted: list[int] | None) -> Dataset:
    """Open the split and compare its classes with the model's, of which only those in ``counted`` count."""
    dataset = open_named_split(
        args,
        "--split",
        args.class_list,
        subject.data_config["input_size"][0],
        load_bytes=args.tf_preprocessing,
        num_samples=args.num_samples,
        seed=args.seed,
    )
    if args.few_shot:
        return dataset
    dataset = take_slice(dataset, args.val_slice, args.slice_seed, "--val-slice")
    expected, names, who = subject.model.num_classes, subject.class_names, subject.candidate.name
    if counted is not None:
        # The data has the classes that count, in their order.
        names = [names[i] for i in counted if 0 <= i < len(names)] if names else None
    else:
        # In another order, or not all; one that is misspelt among others that are elsewhere is refused there.
        own = names_of_data(dataset)
        if names and own and own != names and (set(own) <= set(names) or are_elsewhere(own, names)):
            dataset = by_name(dataset, names, args.split, who)
        classes = num_classes_of(dataset)
        if classes not in (None, expected):
            raise UserError(f"the data has {classes} classes, {subject.candidate.model} has {expected}; give "
                            "--valid-labels FILE with the classes that count, --class-map FILE, or the model's own "
                            "data")
    warn_of_names(who, names, names_of_data(dataset))
    return dataset


def create_loader(args: Namespace, dataset: Dataset, subject: Subject, settings: LoaderSettings) -> Iterable:
    """Create timm's evaluation loader, of images or of NaFlex patches."""
    config = subject.data_config
    if not args.naflex_loader:
        return create_eval_loader(
            dataset, config, settings, crop_border_pixels=args.crop_border_pixels,
            tf_preprocessing=args.tf_preprocessing)
    patch_size = getattr(getattr(subject.model, "embeds", None), "patch_size", None)
    of_config = {
        name: config[name]
        for name in ("interpolation", "mean", "std", "crop_pct", "crop_mode")
    }
    return create_naflex_loader(
        dataset,
        batch_size=settings.batch_size,
        use_prefetcher=settings.prefetch,
        num_workers=settings.workers,
        pin_memory=settings.pin_memory,
        device=settings.device,
        img_dtype=settings.dtype,
        crop_border_pixels=args.crop_border_pixels,
        patch_size=patch_size or (16, 16),
        max_seq_len=args.naflex_max_seq_len,
        **of_config,
    )


def open_groups(args: Namespace, dataset: Dataset, subject: Subject) -> ShotGroups | None:
    """Group the classes by the training samples that the run of the checkpoint has counted; None for other classes."""
    if args.class_counts is None:
        return None
    counts = read_counts(args.class_counts, "--checkpoint")
    if len(counts) != (num_classes_of(dataset) or subject.model.num_classes):
        return None
    groups = ShotGroups(counts, *parse_long_tail(args.long_tail)[1:])
    logger.info(f"Long tail: {groups}")
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
