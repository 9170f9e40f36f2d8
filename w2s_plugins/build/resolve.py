"""Flags brought into this project's terms: what follows from others is filled in, values that have a form are read.

What goes together stands in `rules.py`, what only timm, torch and plugins know in `flags.py`, which calls this.
"""

import argparse
import logging
import os
from collections.abc import Iterable, Mapping
from inspect import Parameter
from pathlib import Path
from typing import Any

from ..cli.declare import Role, dest_of, option, shown_value
from ..cli.forms import (
    BATCH_EPISODES,
    PREFIXES,
    STAGES,
    TEST_EPISODES,
    UNLABELED,
    check_dataset_name,
    count_episodes,
    loss_weights,
    parse_data_errors,
    parse_part,
    parse_selection,
    parse_shapes,
    parse_test_sets,
    unlabeled_roots,
)
from ..cli.outcome import PROCESSES
from ..cli.parser import train_parser
from ..cli.values import split_names
from ..errors import UserError, near_path, nearest
from ..files import SHARDED
from ..run.place import HUB, Place
from .resolve_probe import resolve_probe

Losses = Mapping[str, Mapping[str, Parameter]]  # the hyper-parameters of each distillation loss

_logger = logging.getLogger(__name__)

LABELS = "labels:"  # begins the name of a teacher that is a file or folder of labels
ABOUT_MODELS = ("teacher_checkpoint", "teacher_class_map", "teacher_topk", "teacher_img_size", "teacher_kwargs",
                "use_ema_teacher", "prompts")
CRITERIA = ("ce", "bce", "asl", "poly", "jsd")  # of timm
MULTI_LABEL = ("twoway", "zlpr", "db")  # timm's others
BATCHES_OF_EPISODES = 200  # in an epoch

# defaults of the released code where they differ from those of the losses here
RELEASED_LOSS_DEFAULTS = {"kd": {"temperature": 1.0}, "dkd": {"beta": 2.0, "temperature": 1.0}}


# ---------------------------------------------------------------- what flags mean together


def label_paths(teacher: str | None) -> list[str]:
    """Return the files and folders of labels among the names of ``--teacher``."""
    return [name.removeprefix(LABELS) for name in split_names(teacher) if name.startswith(LABELS)]


def teacher_models(teacher: str | None) -> list[str]:
    """Return the models among the names of ``--teacher``."""
    return [name for name in split_names(teacher) if not name.startswith(LABELS)]


def in_order(teacher: str | None, models: Iterable[Any], labels: Iterable[Any]) -> list[Any]:
    """Return what there is for each name of ``--teacher``, in their order: of its models, and of its labels."""
    of_models, of_labels = iter(models), iter(labels)
    return [next(of_labels if name.startswith(LABELS) else of_models) for name in split_names(teacher)]


def view_epochs(args: argparse.Namespace) -> int:
    """Return the N of ``--teacher-targets cached-views:N``, 0 for other kinds. Features are stored alike."""
    kind, _, number = args.teacher_targets.partition(":")
    return int(number) if (args.teacher or args.linear_probe) and kind == "cached-views" else 0


def stores_targets(args: argparse.Namespace) -> bool:
    """True where the teacher is asked before training, or labels are read."""
    return bool(args.teacher and args.teacher_targets != "online")


def mixes(args: argparse.Namespace) -> bool:
    """True where images of a batch are mixed."""
    return args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None


def is_semi_supervised(args: argparse.Namespace) -> bool:
    """True where each batch has labelled samples beside those of ``--unlabeled``."""
    return bool(args.unlabeled and args.task_loss_weight)


def is_scored_by_teacher(args: argparse.Namespace) -> bool:
    """True where a held-out part has no ground truth, or none that is to be used: the teacher is right there."""
    weight = loss_weights(args.task_loss_weight, args.distill_loss_weight)[0]
    return bool(args.teacher and (weight == 0 or args.unlabeled))


def trains_part(args: argparse.Namespace) -> bool:
    """True where something of the student keeps its weights."""
    return args.tune != "all" or bool(args.freeze)


# ---------------------------------------------------------------- resolved and checked


def check_validation(args: argparse.Namespace, given: set[str]) -> None:
    """Check the flags of ``validate.py`` against each other."""
    check_dataset_name(args.dataset)
    parse_test_sets(args.val_sets, args.corruptions)
    if not args.few_shot:
        return
    parse_shapes(args.few_shot, args.queries, "--few-shot")
    count_episodes(args.few_shot, "--few-shot", TEST_EPISODES, 2)
    if len(split_names(args.teacher)) > 1:
        raise UserError("--few-shot: several teachers have no common features; give one --teacher")
    if args.naflex_loader or args.ceiling_checkpoint or args.ceiling_acc is not None or given & {
            "train_counts", "val_sets", "corruptions"}:
        raise UserError("--few-shot cannot be combined with --naflex-loader, --train-counts, --val-sets, "
                        "--corruptions or a ceiling")


def refuse_missing_checkpoint(checkpoint: str) -> None:
    """Raise a `UserError` for a ``--checkpoint`` of ``validate.py`` that is not there."""
    if checkpoint and not Path(checkpoint).exists():
        raise UserError(f"--checkpoint {checkpoint}: no such file or folder{near_path(checkpoint)}")


def run_place(args: argparse.Namespace) -> Place:
    """Return where a run is to be: in the folder of the checkpoint that it goes on from, unless another one is named.

    What comes from the Hub has the name of its repository.
    """
    root = Path(args.output or "./output/train")
    if args.resume.startswith(HUB):
        return Place(root, args.experiment or args.resume.partition("@")[0].rpartition("/")[2], args.resume)
    if not args.experiment and args.resume not in ("", "auto"):
        path = Path(args.resume)
        folder = path if path.is_dir() and path.suffix != SHARDED else path.parent
        if (folder / "args.yaml").is_file():
            return Place(folder.parent, folder.name, args.resume)
    return Place(root, args.experiment, args.resume)


def refuse_missing_paths(args: argparse.Namespace, elsewhere: bool = False) -> None:
    """Raise a `UserError` for images or labels on this disk that are not there.

    Args:
        args: resolved flags.
        elsewhere: without the data here, they are on another machine, with the test sets.
    """
    for path in label_paths(args.teacher):
        if not (path.startswith("hf:") or Path(path).exists() or Path(path.rpartition("#")[0] or path).exists()):
            raise UserError(f"--teacher {LABELS}{path}: no such file{near_path(path)}")
    if args.unlabeled and not args.unlabeled.lower().startswith(PREFIXES):
        unlabeled_roots(args.unlabeled)
    if elsewhere and args.data_dir and not Path(args.data_dir).exists():
        return
    refuse_missing_data(args)


def refuse_missing_data(args: argparse.Namespace) -> None:
    """Raise a `UserError` for a folder of images, or a test set, that is not there."""
    if args.data_dir and not args.dataset and not Path(args.data_dir).exists():
        raise UserError(f"--data-dir {args.data_dir}: no such folder{near_path(args.data_dir)}")
    for name, place in parse_test_sets(args.val_sets, ()).items():
        if isinstance(place, str) and not place.lower().startswith(PREFIXES) and not Path(place).exists():
            raise UserError(f"--val-sets {name}={place}: no such folder{near_path(place)}")


def resolve_flags(args: argparse.Namespace, given: set[str], losses: Losses) -> None:
    """Check the flags of ``train_w2s.py`` against each other and fill in what follows from others, in place.

    Args:
        args: all flags.
        given: names of the flags that were set by hand.
        losses: those that are registered.

    Raises:
        UserError: one line for the first thing that is wrong.
    """
    _ignore_idle_flags(args)
    if args.sched in ("wsd", "rsqrt") and "decay_epochs" not in given:
        args.decay_epochs = 0.2  # as timm's factory has it: the 90 are for step
    _resolve_released(args)
    # values that have a form of their own
    check_dataset_name(args.dataset)
    parse_test_sets(args.val_sets, args.corruptions)
    parse_part(args.tune)
    parse_data_errors(args.data_errors)
    # data, then who labels them
    if args.unlabeled:
        _resolve_unlabeled_data(args, given)
    else:
        resolve_data_dir(args)
    _resolve_loss(args, given, losses)
    _resolve_weights(args, given)
    if args.unlabeled:
        _resolve_unlabeled(args)
    _resolve_labels(args, given)
    # what trains something else than a classifier by epochs of views
    resolve_probe(args, given)
    _resolve_episodes(args, given)
    _resolve_changes(args)
    if args.loss is not None:
        _resolve_loss_kwargs(args, given, losses)
    # what is right, but hardly meant
    _say_what_no_aug_leaves_out(args, given)
    if hint := random_start_hint(args):
        _logger.warning(f"WARNING: {hint}")


# in each mode the flags that change nothing there: they are noted and left at their defaults
IDLE_FLAGS = {
    "linear_probe": ("fsdp", "sync_bn", "split_bn", "grad_checkpointing", "torchcompile", "channels_last",
                     "layer_decay", "drop", "drop_path", "drop_connect", "drop_block", "tta", "save_images"),
    "fsdp": ("channels_last", "model_ema_force_cpu"),
}


def _ignore_idle_flags(args: argparse.Namespace) -> None:
    """Log the flags that have no effect in the mode of this run, and put their defaults in their place."""
    defaults = train_parser().defaults()
    for mode, names in IDLE_FLAGS.items():
        idle = [name for name in names if getattr(args, mode) and getattr(args, name) != defaults[name]]
        if idle:
            _logger.warning(f"WARNING: {option(mode)}: no effect of {', '.join(map(option, idle))}")
        for name in idle:
            setattr(args, name, defaults[name])


def _resolve_released(args: argparse.Namespace) -> None:
    """Bring the flags of the released code on evaluation and names into this project's."""
    if args.speedtest:
        args.val_split, args.no_teacher_eval, args.speedtest = "", True, False
    idle = [name for name in ("eval_interval_end", "model_name") if getattr(args, name) is not None]
    if idle:
        _logger.info(f"{', '.join(map(option, idle))}: of the released code, and without effect here")


def _say_what_no_aug_leaves_out(args: argparse.Namespace, given: set[str]) -> None:
    """Log the flags of views that were given beside ``--no-aug``: one may be of a file, the other typed over it."""
    views = [option(name) for name, facts in train_parser().facts().items()
             if facts.role & Role.VIEW and name in given and getattr(args, name) not in (facts.off, None, "", 0)]
    if args.no_aug and views and not args.linear_probe:
        _logger.info(f"--no-aug: no effect of {', '.join(views)}")


def resolve_data_dir(args: argparse.Namespace) -> None:
    """Fill in ``data_dir`` from the positional argument or ``IMAGENET_DIR``."""
    args.data_dir = args.data_dir or args.data
    args.data = None
    if args.dataset:
        return
    args.data_dir = args.data_dir or os.environ.get("IMAGENET_DIR")
    if not args.data_dir:
        raise UserError(
            "no data: give --data-dir FOLDER (or set IMAGENET_DIR), or --dataset w2s/digits, which needs no files")


def _resolve_unlabeled_data(args: argparse.Namespace, given: set[str]) -> None:
    """Let ``--data-dir`` and ``--dataset`` be absent, and validation with them."""
    args.data_dir, args.data = args.data_dir or args.data, None
    if args.dataset or (args.data_dir and not args.unlabeled.lower().startswith("torch/")):  # which are in --data-dir
        return
    if "val_split" in given and args.val_split:
        raise UserError(f"--val-split {args.val_split}: the images of --unlabeled have no labels; give the folder of a "
                        "labelled split with --data-dir, or a --dataset")
    args.val_split = ""


def _resolve_unlabeled(args: argparse.Namespace) -> None:
    """Leave ground truth out of a training without it, unless a part of each batch is to have it."""
    if not args.teacher:
        raise UserError("--unlabeled: images without labels need a teacher that says what is on them: --teacher NAME "
                        "(and --teacher-checkpoint FILE)")
    if not args.task_loss_weight:
        args.task_loss_weight, args.train_split = 0.0, UNLABELED
    if not args.val_split and args.select_split is None:
        _logger.warning("WARNING: nothing measures this run; --select best --select-split 0.1 holds out images, and "
                        "reports agreement with the teacher, confidence and the share of each class there")


def check_choice(flag: str, value: str, choices: tuple[str, ...] | list[str]) -> None:
    """Raise a `UserError` with the nearest choice unless ``value`` is one of ``choices``."""
    if value not in choices:
        known = f"; one of {', '.join(choices)}" if len(choices) <= 12 else ""
        raise UserError(f"{flag}: unknown choice '{value}'{nearest(value, choices)}{known}")


def _resolve_changes(args: argparse.Namespace) -> None:
    """Bring the names of ``--resume-changes`` into the form of the flags' own."""
    known = {*vars(args), PROCESSES}
    for name in args.resume_changes:
        if dest_of(name) not in known:
            dashed = [k.replace("_", "-") for k in known]
            raise UserError(f"--resume-changes {name}: no such flag{nearest(name.lstrip('-'), dashed)}; expected names "
                            "such as batch-size, or processes")
    args.resume_changes = [dest_of(name) for name in args.resume_changes]


def _resolve_labels(args: argparse.Namespace, given: set[str]) -> None:
    """Check the flags beside ``--teacher labels:PATH``: labels are stored, so models beside them are asked once too."""
    if not label_paths(args.teacher):
        return
    name = next(n for n in split_names(args.teacher) if n.startswith(LABELS))
    if "teacher_targets" in given and args.teacher_targets == "online":
        raise UserError(f"--teacher {name}: labels are stored, they cannot be asked about a view: leave out "
                        "--teacher-targets online")
    models = teacher_models(args.teacher)
    idle = {option(flag): getattr(args, flag) for flag in ABOUT_MODELS}
    for flag, used in (*idle.items(), (
            f"--teacher-targets {args.teacher_targets}", view_epochs(args) and not args.linear_probe)):
        if used and not models:
            raise UserError(f"--teacher {name}: {flag} is about a model, and there are labels alone: leave it out")
    if args.teacher_targets == "online":
        args.teacher_targets = "cached"
    rule = parse_selection(args.clean_select)[0] if args.clean_select else "file"
    asked = not models and rule != "file" and not args.clean_select_model
    for flag, used in (("--episodic", args.episodic), ("--linear-probe", args.linear_probe and models),
                       (f"--clean-select {args.clean_select}", asked)):
        if used:
            raise UserError(f"--teacher {name}: {flag} asks a teacher about images, which labels cannot answer")


def _resolve_loss(args: argparse.Namespace, given: set[str], losses: Losses) -> None:
    """Split ``--loss`` into a distillation loss (or None) and the criterion on ground truth."""
    if args.distiller:
        if "loss" in given and args.loss != args.distiller:
            _logger.info(f"--distiller {args.distiller} takes the place of --loss {args.loss}")
        if args.distiller == "vanilla":
            args.loss, args.teacher, args.teacher_checkpoint = "ce", None, None
        else:
            args.loss = args.distiller
        for key, value in RELEASED_LOSS_DEFAULTS.get(args.loss, {}).items():
            args.loss_kwargs.setdefault(key, value)
        args.distiller = None
    if args.kd_model_name and args.teacher:
        raise UserError("--teacher and --kd-model-name name two teachers; --kd-model-name is for timm's own tasks")
    if args.teacher_targets != "online" and not args.teacher and not view_epochs(args):
        _logger.info(f"--teacher-targets {args.teacher_targets} has no meaning without --teacher and is ignored")
    if args.loss is None and args.teacher:
        args.loss = "adaptconf"
        _logger.info("--loss adaptconf, that of the paper; for pretrained students --config w2s:w2s is recommended "
                     "(docs/recipe.md)")
    if args.loss in CRITERIA:
        if args.teacher:
            raise UserError(f"--loss {args.loss} is a criterion on ground truth and would not use --teacher "
                            f"{args.teacher}; use --task-loss {args.loss} with a distillation loss, or --teacher ''")
        args.task_loss, args.loss = args.task_loss or args.loss, None
    elif args.loss in MULTI_LABEL:
        raise UserError(f"--loss {args.loss} is for multi-label data; a teacher's classes exclude one another")
    if args.task_loss is None:
        args.task_loss = "jsd" if args.jsd_loss else "bce" if args.bce_loss else "ce"
    check_choice("--task-loss", args.task_loss, CRITERIA)
    if args.loss is None:
        return
    unknown = next((part for part in map(str.strip, args.loss.split("+")) if part not in losses), None)
    if unknown is not None and args.loss not in losses:
        raise UserError(f"--loss: unknown loss '{unknown}'{nearest(unknown, [*losses, *CRITERIA])}; distillation "
                          f"losses: {', '.join(losses)}; criteria: {', '.join(CRITERIA)}")
    if args.kd_model_name:
        raise UserError(f"--kd-model-name runs timm's own distillation; with --loss {args.loss} use --teacher "
                        f"{args.kd_model_name}")
    if not args.teacher:
        raise UserError(f"--loss {args.loss} needs a teacher: give --teacher NAME (and --teacher-checkpoint FILE)")


def _resolve_loss_kwargs(args: argparse.Namespace, given: set[str], losses: Losses) -> None:
    """Let the flags of timm and of the released code set the kwargs of the loss, below ``--loss-kwargs``."""
    if args.fitnet_stage and args.loss == "fitnet":  # stage 1 is level 1 there too: level 0 is the stem
        for name in STAGES:
            _set_kwarg(args, name, args.fitnet_stage, given)
    if args.fitnet_loss_weight is not None and args.loss == "fitnet":
        args.distill_loss_weight = args.fitnet_loss_weight * (args.kd_loss_weight or args.distill_loss_weight or 1.0)
        given.add("distill_loss_weight")
    for flag, facts in train_parser().facts().items():
        targets = facts.sets or {}
        if not targets or flag not in given or getattr(args, flag) is None or getattr(args, flag) is False:
            continue
        if args.loss in targets:
            _set_kwarg(args, targets[args.loss], getattr(args, flag), given)
        else:
            _logger.info(f"{option(flag)} has no meaning for --loss {args.loss} and is ignored")
    parameters = losses.get(args.loss, {})
    name = next((n for n in ("kd_temperature", "temperature") if n in parameters), None)
    if name:
        default = parameters[name].default
        if "kd_temperature" in given and args.kd_temperature != args.loss_kwargs.get(name, default):
            _set_kwarg(args, name, args.kd_temperature, given)
        args.kd_temperature = args.loss_kwargs.get(name, default)  # in args.yaml it counts as given


def refuse_other_shares(args: argparse.Namespace, num_classes: int | None) -> None:
    """Raise a `UserError` for shares of classes in ``--loss-kwargs`` that are not one for each class."""
    shares = args.loss_kwargs.get("shares" if args.loss == "balanced_elr" else "balanced_elr.shares")
    if shares and not args.episodic and num_classes not in (None, len(shares)):
        raise UserError(f"loss 'balanced_elr': shares has {len(shares)} numbers, expected one for each of the "
                        f"{num_classes} classes")


def _set_kwarg(args: argparse.Namespace, name: str, value: object, given: set[str]) -> None:
    if name not in args.loss_kwargs or "loss_kwargs" not in given:
        args.loss_kwargs = {**args.loss_kwargs, name: value}


def _resolve_weights(args: argparse.Namespace, given: set[str]) -> None:
    """Bring the released code's weights, each 1 unless given, into ``task_loss_weight`` and ``distill_loss_weight``."""
    if "gt_loss_weight" not in given and "kd_loss_weight" not in given:
        return
    for ours, theirs in (("task_loss_weight", "gt_loss_weight"), ("distill_loss_weight", "kd_loss_weight")):
        if ours not in given:
            value = getattr(args, theirs)
            setattr(args, ours, 1.0 if value is None else value)


def _resolve_episodes(args: argparse.Namespace, given: set[str]) -> None:
    """Check the shapes of episodes; those of training fix the batch, and there is no classifier of all classes."""
    if args.few_shot_eval:
        parse_shapes(args.few_shot_eval, args.queries, "--few-shot-eval")
        count_episodes(args.few_shot_eval, "--few-shot-eval", TEST_EPISODES, 2)
    if not args.episodic:
        return
    shapes = parse_shapes(args.episodic, args.queries, "--episodic")
    if len(shapes) > 1:
        raise UserError(f"--episodic {args.episodic}: training has episodes of one shape, such as {shapes[0]}; several "
                        "are for --few-shot-eval")
    count = count_episodes(args.episodic, "--episodic", BATCH_EPISODES, 1)
    size = count * shapes[0].size
    if "batch_size" in given and args.batch_size != size:
        raise UserError(f"--batch-size {args.batch_size}: {count} episodes of --episodic {shapes[0]} with "
                        f"{args.queries} queries a class are {size} images; leave the flag out, or give another "
                        f"number: --episodic {shapes[0]}:E")
    args.batch_size = size
    args.train_batches_per_epoch = args.train_batches_per_epoch or BATCHES_OF_EPISODES
    if "val_split" not in given:
        args.val_split = ""


def random_start_hint(args: argparse.Namespace) -> str | None:
    """Return a line that says that the part of a student which is not trained is random, or None."""
    if not trains_part(args) or args.pretrained or args.pretrained_path or args.finetune or args.initial_checkpoint:
        return None
    what = f"--tune {args.tune}" if args.tune != "all" else f"--freeze {shown_value(args.freeze)}"
    return (f"{what} leaves weights as they are, and they are random here: give --pretrained, --finetune FILE or "
            "--initial-checkpoint FILE")
