"""All flags of a training run, checked and filled in: against each other, and by what timm, torch and plugins know."""

import os
from argparse import Namespace
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from timm.optim import list_optimizers  # pyright: ignore[reportPrivateImportUsage]  # where timm documents it
from timm.utils.distributed import is_distributed_env, world_info_from_env

from ..cli.parser import check_flags, train_parser
from ..errors import UserError, logger, name_runs, near_path, nearest, quietly
from ..labels.table import SUFFIXES
from ..losses import create_loss, list_losses
from ..losses.base import LOSSES
from ..models.foreign import refuse_addresses
from ..models.loading import create_model, is_transformer
from ..registry import load_plugins
from ..run.args_file import read_run_args
from ..settings.composite import TrainSettings
from ..settings.concerns import ComputeSettings
from ..settings.field import option
from ..settings.forms import LABELS_PREFIX, MULTILABEL, check_device, parse_selection_model
from ..settings.rules import check_rules, leave_idle_flags
from ..settings.teacher_name import TeacherName, teacher_models
from ..settings.values import ANY_MODEL, UNTRAINED_MODEL, find_export, locate, no_model
from ..teachers.kinds import check_kind
from .fill_in import resolve_flags


def resolve_train_args(args: Namespace, explicit_flags: set[str]) -> TrainSettings:
    """Check the flags of ``train_w2s.py``, and return the settings that they come to.

    Args:
        args: all flags; they stay as they are.
        explicit_flags: names of the flags that were set by hand.

    Raises:
        UserError: one line for the first thing that is wrong.
    """
    args = Namespace(**vars(args))
    # Names first: what a message says of them is what was typed.
    load_plugins(args.plugins)
    check_names(args)
    fit_recipe(args)

    # What follows from other flags, then what does not go together, which may be of such flags.
    resolve_flags(args, explicit_flags, {name: LOSSES.get(name).defaults for name in list_losses()})
    settings = leave_idle_flags(TrainSettings.from_flags(vars(args)))
    check_rules(settings)
    check_features(settings)

    # What depends on this machine, and on the number of processes.
    if settings.student.tune.adds_modules and find_spec("peft") is None:
        raise UserError(f"--tune {settings.student.tune.text} needs PEFT: pip install peft")
    settings = settings.with_flags(**fit_device(settings.compute, explicit_flags))
    processes = world_info_from_env()[2] if is_distributed_env() else 1
    if settings.student.sync_bn and processes > 1:
        if settings.compute.device.startswith("cpu"):
            raise UserError("--sync-bn: PyTorch has synchronised batch norm on accelerators only")
        # all have the same statistics already
        settings = settings.with_flags(dist_bn="")
    # A rate of 0 is filled in like one that is not given: timm's script does so.
    if not settings.optim.lr:
        settings = settings.with_flags(**scale_learning_rate(settings, processes))
    return settings


def check_names(args: Namespace) -> None:
    """Raise a `UserError` for the first name of a model, an optimizer or a backend that there is not."""
    check_model_name("--model", args.model, UNTRAINED_MODEL)
    for name in teacher_models(args.teacher):
        check_teacher_name("--teacher", name)
    if args.kd_model_name:
        check_model_name("--kd-model-name", args.kd_model_name, UNTRAINED_MODEL)
    selecting, _ = parse_selection_model(args.clean_select_model)
    if selecting:
        check_teacher_name("--clean-select-model", TeacherName.parse(selecting))
    optimizers = list_optimizers()
    if args.opt.lower().removeprefix("lookahead_") not in optimizers:
        raise UserError(
            f"--opt: unknown optimizer '{args.opt}'{nearest(args.opt, map(str, optimizers))}"
        )
    if args.torchcompile:
        backends = torch.compiler.list_backends(exclude_tags=())
        if args.torchcompile not in backends:
            raise UserError(
                f"--torchcompile: unknown choice '{args.torchcompile}'{nearest(args.torchcompile, backends)}; one of "
                f"{', '.join(backends)}"
            )


def fit_recipe(args: Namespace) -> None:
    """Give a run of several classes an image, and a student with attention, the values that a recipe has for them, in
    place, and say so.

    The rate at which a recipe trains blocks of a convolutional network spoils those of a transformer
    (docs/evidence/transformer.md).

    Raises:
        UserError: a change that is none.
    """
    # a rate is that of the part which is trained
    parts = args.for_transformers.get("tune")
    if isinstance(parts, list) and args.tune not in parts:
        args.for_transformers = {}
    cases: dict[str, tuple[str, Callable[[], bool]]] = {
        "for_multilabel": (f"--task {MULTILABEL}", lambda: args.task == MULTILABEL),
        "for_transformers": (
            f"{args.model} has attention",
            lambda: has_attention(args.model, args.model_kwargs),
        ),
    }
    for flag, (case, holds) in cases.items():
        changes = getattr(args, flag)
        setattr(args, flag, {})
        for name, change in changes.items():
            if not isinstance(change, list) or len(change) != 2:
                raise UserError(
                    f"{option(flag)}: {name}: {change!r:.60}; expected [A, B], B instead of A"
                )
        later = {name: now for name, (_, now) in changes.items()}
        later = check_flags(later, train_parser(), option(flag))
        # asked only if there are changes, because a network is made for it
        if not changes or not holds():
            continue
        made = []
        for name, now in later.items():
            # a part that stays says which one the rate is of
            if getattr(args, name) == changes[name][0] != now:
                setattr(args, name, now)
                made.append(f"{option(name)} {now}")
        if made:
            logger.info(f"{case}: {' '.join(made)} ({option(flag)})")


def has_attention(model: str, model_kwargs: Mapping[str, Any]) -> bool:
    """Return whether the student has blocks with attention; of one that cannot be made, whose error comes later, False."""
    try:
        # its structure alone: no memory, no weights
        with quietly(), torch.device("meta"):
            made = create_model("--model", model, pretrained=False, **model_kwargs)
    except Exception:
        return False
    return is_transformer(made)


def check_features(settings: TrainSettings) -> None:
    """Raise a `UserError` if the loss compares features, and there are none, or they do not reach what is trained."""
    loss = settings.loss
    if loss.loss is None or not create_loss(loss.loss, **loss.loss_kwargs).needs_features:
        return
    if settings.student.linear_probe or settings.teacher.stores_targets:
        raise UserError(
            f"--loss {loss.loss} needs the features of student and teacher: use --teacher-targets online, without "
            "--linear-probe and --refine-labels"
        )
    if settings.student.tune.part == "head" and loss.task_loss_weight == 0 and "+" not in loss.loss:
        raise UserError(f"--tune head: --loss {loss.loss} on features does not reach the head")


def scale_learning_rate(settings: TrainSettings, processes: int) -> dict[str, object]:
    """Return the learning rate by timm's rule, and which one that is: it follows the batch size of all processes."""
    optim, views = settings.optim, settings.views
    sizes = views.train_batch_sizes or [settings.data.batch_size]
    probs = views.train_size_probs or [1.0] * len(sizes)
    average = sum(size * prob for size, prob in zip(sizes, probs)) / sum(probs)
    ratio = average * processes * optim.grad_accum_steps / optim.lr_base_size
    adaptive = any(name in optim.opt.lower() for name in ("ada", "lamb"))
    scale = optim.lr_base_scale or ("sqrt" if adaptive else "linear")
    rate = optim.lr_base * (ratio**0.5 if scale == "sqrt" else ratio)
    logger.info(
        f"Learning rate {rate:.4g} from --lr-base {optim.lr_base:g}, {scale} in the batch size"
    )
    return {"lr": rate, "lr_base_scale": scale}


def fit_device(compute: ComputeSettings, explicit_flags: set[str]) -> dict[str, Any]:
    """Return the flags that are otherwise on this machine: the CPU in place of a CUDA that is not there, and what
    depends on which of them it is.
    """
    if compute.amp and compute.model_dtype not in (None, "float32"):
        raise UserError(
            f"--amp keeps the weights in float32 and cannot go with --model-dtype {compute.model_dtype}"
        )

    # A device that was not typed is left for the CPU where it is absent. Modules may bring kinds of their own.
    device, changes = compute.device, {}
    is_absent = device.startswith("cuda") and not torch.cuda.is_available()
    if is_absent and "device" not in explicit_flags:
        logger.info("no CUDA here: the CPU is used")
        device = changes["device"] = "cpu"
    if not compute.device_modules:
        check_available(device)

    # What one would choose on each of them.
    if device.startswith("cpu") and "amp_dtype" not in explicit_flags:
        changes["amp_dtype"] = "bfloat16"
    if device.startswith("cuda") and "workers" not in explicit_flags:
        # As many workers as there are cores, from 4 to 16; of a machine a scheduler may have given this process a few.
        cores = os.cpu_count() or 1
        if hasattr(os, "sched_getaffinity"):
            cores = len(os.sched_getaffinity(0))
        changes["workers"] = min(max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 4), 16)
    return changes


def check_available(name: str) -> None:
    """Raise a `UserError` unless ``--device`` names a device that this machine has."""
    check_device(name)
    kind, _, number = name.partition(":")
    accelerator = torch.accelerator.current_accelerator()
    count = 0
    if accelerator is not None and accelerator.type == kind:
        count = torch.accelerator.device_count()
    if kind != "cpu" and int(number or 0) >= count:
        raise UserError(f"--device {name}: is not available here; use --device cpu")


def check_model_name(flag: str, name: str, expected: str = ANY_MODEL) -> None:
    """Raise a `UserError` unless timm knows the model; ids of the Hub and folders are checked when they are loaded.

    Args:
        flag: begins the message.
        name: of the model.
        expected: what the flag takes.
    """
    if name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        return
    if name.startswith("hf:"):
        raise UserError(
            f"{flag}: {name} is a model of transformers, which can be a --teacher; expected {expected}"
        )
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        if "/" in name or Path(name).exists():
            raise no_model(flag, name, expected)
        near = nearest(architecture, timm.list_models()) or "; `timm.list_models()` lists them"
        raise UserError(f"{flag}: unknown model '{name}'{near}")

    # What stands behind the point names its weights.
    tags = [weights.partition(".")[2] for weights in timm.list_pretrained(architecture)]
    if tag and tag not in tags:
        raise UserError(
            f"{flag}: model '{architecture}' has no weights '{tag}'{nearest(tag, tags)}"
        )


def named_model(flag: str, name: str) -> tuple[str, str | None]:
    """Return timm's name and the weights (None: its own) of what a command was given: see `locate`, or a name of timm.

    Raises:
        UserError: there is no such model.
    """
    export, folder = locate(name)
    if export:
        return export, None
    if folder:
        run = read_run_args(folder, flag)
        refuse_addresses(run, {"model": "model"}, f"{flag} {folder}")
        return str(run["model"]), name
    check_model_name(flag, name)
    return name, None


def check_teacher_name(flag: str, name: TeacherName) -> None:
    """Raise a `UserError` unless a teacher of this name may be there; files and repositories are opened later."""
    path = Path(name.text)
    if path.suffix.lower() in SUFFIXES and path.is_file():
        raise UserError(f"{flag} {name}: a table of labels is given as {LABELS_PREFIX}{name}")
    check_kind(flag, name)
    if name.kind == "checkpoint" and not Path(name.rest).is_file():
        raise UserError(f"{flag} {name}: no such file{near_path(name.rest)}")
    if not name.is_of_timm:
        return
    if path.is_dir() and not timm.is_model(name.text):
        if find_export(path):
            raise UserError(
                f"{flag} {name}: a folder needs a slash in its name (nearest: ./{name})"
            )
        raise UserError(
            f"{flag} {name}: the folder has no export (config.json); expected a run that has ended, or "
            f"local-dir:FOLDER or hf:FOLDER{name_runs(path)}"
        )
    check_model_name(flag, name.text)
