"""Checks of one flag against another, and the flags of other scripts brought into this project's terms.

Needs neither torch nor timm: whoever types a wrong command learns it before these are imported. What only they know is
checked in `flags.py`.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..cli.declare import Parser, Role, option, shown_value
from ..cli.forms import (
    BATCH_EPISODES,
    KNN,
    PREFIXES,
    TEST_EPISODES,
    UNLABELED,
    check_dataset_name,
    check_device,
    count_episodes,
    loss_weights,
    parse_data_errors,
    parse_noise,
    parse_part,
    parse_selection,
    parse_shapes,
    parse_test_sets,
    unlabeled_roots,
)
from ..cli.kwargs import STAGES, Parameters, check_loss_kwargs, loss_parameters
from ..cli.names import UnknownName, refuse_unknown_kind, refuse_unknown_model, refuse_unknown_optimizer
from ..cli.outcome import PROCESSES
from ..cli.parser import fill, train_parser
from ..cli.values import split_names
from ..errors import UserError, near_path, nearest, said_of
from ..files import SHARDED
from ..quiet import quietly
from ..registry import ENTRY_POINT_GROUP
from ..run.place import HUB, Place, refuse_existing_run
from .resolve_probe import resolve_probe

Plan = Callable[[Mapping[str, object], Parser], Iterable[tuple[str, Mapping[str, object]]]]

_logger = logging.getLogger(__name__)

LABELS = "labels:"  # begins the name of a teacher that is a file or folder of labels
ABOUT_MODELS = ("teacher_checkpoint", "teacher_class_map", "teacher_topk", "teacher_img_size", "teacher_kwargs",
                "use_ema_teacher", "prompts")
CRITERIA = ("ce", "bce", "asl", "poly", "jsd")  # of timm
MULTI_LABEL = ("twoway", "zlpr", "db")  # timm's others
BATCHES_OF_EPISODES = 200  # in an epoch
# element-wise ones: their step on a part of a parameter is that part of their step
SHARDED_OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "nadam", "nadamw", "radam", "adamax", "adagrad", "adadelta",
                      "adabelief", "rmsprop", "rmsproptf", "lion", "lookahead_adamw")

# defaults of the released code where they differ from those of the losses here
RELEASED_LOSS_DEFAULTS = {"kd": {"temperature": 1.0}, "dkd": {"beta": 2.0, "temperature": 1.0}}


def refuse_early(args: argparse.Namespace, given: set[str], planned: Plan) -> None:
    """Raise what `flags.resolve_train_args` would, as far as that is known before torch and timm are imported.

    Args:
        args: all flags, fresh ones: what follows from others is filled in.
        given: names of the flags that were set by hand.
        planned: returns, of each run of a command that has several, what begins messages about it, and its flags.
    """
    if args.list_losses:
        return
    if not (args.protocol or args.stages or args.folds):
        refuse_run(args, given)
        return
    for where, flags in planned({name: getattr(args, name) for name in given}, train_parser()):
        with said_of(where):
            refuse_run(*fill(train_parser(), flags))


def refuse_run(args: argparse.Namespace, given: set[str], elsewhere: bool = False) -> None:
    """Raise what is known to be wrong with one run before torch and timm are imported.

    Args:
        args: all flags, fresh ones.
        given: names of the flags that were set by hand.
        elsewhere: it may be meant for another machine, which has its data.
    """
    if "torch" in sys.modules:  # in a fork that has imported everything, nobody waits
        return
    try:
        _refuse_unknown_models(args)
        refuse_unknown_optimizer(args.opt)
        with quietly():  # what is said of right flags, is said later
            resolve_flags(args, given, loss_parameters())
        refuse_existing_run(run_place(args))
        refuse_missing_paths(args, elsewhere)
    except UnknownName:
        if not may_have_plugins(args.plugins):
            raise


def may_have_plugins(plugins: object) -> bool:
    """True where something may know names that this package does not: ``--plugins``, another package, or the program
    that this is called in.
    """
    return bool(plugins or "torch" in sys.modules or entry_points(group=ENTRY_POINT_GROUP))


def refuse_early_validation(args: argparse.Namespace, given: set[str]) -> None:
    """Raise what ``validate.py`` would, as far as that is known before torch and timm are imported and before the flags
    of the run are read that ``--checkpoint`` may be of.

    Args:
        args: all flags, fresh ones.
        given: names of the flags that were set by hand.
    """
    if args.model != "all" and not may_have_plugins(args.plugins):
        _refuse_unknown_models(args)
    refuse_missing_checkpoint(args.checkpoint)
    check_validation(args, given)
    if not args.checkpoint:
        resolve_data_dir(args)
        _refuse_missing_data(args)
    _refuse_missing_test_sets(args)


def check_validation(args: argparse.Namespace, given: set[str]) -> None:
    """Check the flags of ``validate.py`` against each other."""
    check_dataset_name(args.dataset)
    check_device(args.device)
    parse_test_sets(args.val_sets, args.corruptions)
    refuse_two_dtypes(args)
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


def _refuse_unknown_models(args: argparse.Namespace) -> None:
    for flag, names in (("--model", [args.model]), ("--teacher", teacher_models(args.teacher))):
        for name in names:
            refuse_unknown_model(flag, name)
    for name in teacher_models(args.teacher):
        refuse_unknown_kind("--teacher", name)


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
    _refuse_missing_data(args)
    _refuse_missing_test_sets(args)


def _refuse_missing_data(args: argparse.Namespace) -> None:
    if args.data_dir and not args.dataset and not Path(args.data_dir).exists():
        raise UserError(f"--data-dir {args.data_dir}: no such folder{near_path(args.data_dir)}")


def _refuse_missing_test_sets(args: argparse.Namespace) -> None:
    for name, place in parse_test_sets(args.val_sets, ()).items():
        if isinstance(place, str) and not place.lower().startswith(PREFIXES) and not Path(place).exists():
            raise UserError(f"--val-sets {name}={place}: no such folder{near_path(place)}")


def resolve_flags(args: argparse.Namespace, given: set[str], losses: Mapping[str, Parameters]) -> None:
    """Check the flags of ``train_w2s.py`` against each other and fill in what follows from others, in place.

    Args:
        args: all flags.
        given: names of the flags that were set by hand.
        losses: the hyper-parameters of each distillation loss.

    Raises:
        UserError: one line for the first thing that is wrong.
    """
    _ignore_idle_flags(args)
    if args.sched in ("wsd", "rsqrt") and "decay_epochs" not in given:
        args.decay_epochs = 0.2  # as timm's factory has it: the 90 are for step
    check_dataset_name(args.dataset)
    if not args.device_modules:  # which may bring a kind of their own
        check_device(args.device)
    parse_test_sets(args.val_sets, args.corruptions)
    _resolve_released(args)
    if args.unlabeled:
        _resolve_unlabeled_data(args, given)
    else:
        resolve_data_dir(args)
    _resolve_loss(args, given, losses)
    _resolve_weights(args, given)
    if args.unlabeled:
        _resolve_unlabeled(args, given)
    _resolve_labels(args, given)
    resolve_probe(args, given)
    _resolve_episodes(args, given)
    _check_labels(args)
    _resolve_changes(args)
    refuse_two_dtypes(args)
    _check_combinations(args)
    _resolve_loss_kwargs(args, given, losses)
    _say_what_no_aug_leaves_out(args, given)


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


def _say_what_no_aug_leaves_out(args: argparse.Namespace, given: set[str]) -> None:
    """Log the flags of views that were given beside ``--no-aug``: one may be of a file, the other typed over it."""
    views = [option(name) for name, facts in train_parser().facts().items()
             if facts.role & Role.VIEW and name in given and getattr(args, name) not in (facts.off, None, "", 0)]
    if args.no_aug and views and not args.linear_probe:
        _logger.info(f"--no-aug: no effect of {', '.join(views)}")


def refuse_two_dtypes(args: argparse.Namespace) -> None:
    """Raise a `UserError` for ``--amp`` with weights that are not in float32."""
    if args.amp and args.model_dtype not in (None, "float32"):
        raise UserError(f"--amp keeps the weights in float32 and cannot go with --model-dtype {args.model_dtype}")


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


def _resolve_unlabeled(args: argparse.Namespace, given: set[str]) -> None:
    """Leave ground truth out of a training without it, unless a part of each batch is to have it, and refuse what is
    about it.
    """
    if not args.teacher:
        raise UserError("--unlabeled: images without labels need a teacher that says what is on them: --teacher NAME "
                        "(and --teacher-checkpoint FILE)")
    labelled = bool(args.data_dir or args.dataset)
    truth = {
        f"--task-loss-weight {args.task_loss_weight}": args.task_loss_weight and not labelled,
        "--task-loss": "task_loss" in given and not args.task_loss_weight,
        "--label-noise": args.label_noise,
        f"--clean-select {args.clean_select}": args.clean_select and parse_selection(
            args.clean_select)[0] == KNN,
        "--episodic": args.episodic,
        "--long-tail always": args.long_tail == "always",
        "--class-list": args.class_list,
        "--class-map": args.class_map and not labelled,
        "--few-shot-eval": args.few_shot_eval and not labelled,
    }
    for flag, broken in truth.items():
        if broken:
            raise UserError(f"{flag} is about labels, which the images of --unlabeled do not have: leave it out")
    if not args.task_loss_weight:
        args.task_loss_weight, args.train_split = 0.0, UNLABELED
    if not args.val_split and args.select_split is None:
        _logger.warning("WARNING: nothing measures this run; --select best --select-split 0.1 holds out images, and "
                        "reports agreement with the teacher, confidence and the share of each class there")


def is_semi_supervised(args: argparse.Namespace) -> bool:
    """True where each batch has labelled samples beside those of ``--unlabeled``."""
    return bool(args.unlabeled and args.task_loss_weight)


def is_scored_by_teacher(args: argparse.Namespace) -> bool:
    """True where a held-out part has no ground truth, or none that is to be used: the teacher is right there."""
    weight = loss_weights(args.task_loss_weight, args.distill_loss_weight)[0]
    return bool(args.teacher and (weight == 0 or args.unlabeled))


def check_choice(flag: str, value: str, choices: tuple[str, ...] | list[str]) -> None:
    """Raise a `UserError` with the nearest choice unless ``value`` is one of ``choices``."""
    if value not in choices:
        known = f"; one of {', '.join(choices)}" if len(choices) <= 12 else ""
        raise UserError(f"{flag}: unknown choice '{value}'{nearest(value, choices)}{known}")


def _check_labels(args: argparse.Namespace) -> None:
    """Check the flags on label noise and the selection of clean samples."""
    if args.label_noise:
        parse_noise(args.label_noise)
    rule = parse_selection(args.clean_select)[0] if args.clean_select else None
    name = args.clean_select_model
    rules = [
        (name and rule in (None, "file"),
         "--clean-select-model needs --clean-select knn:K, entropy:R or confidence:P"),
        (rule not in (None, "file") and not name and not args.teacher,
         f"--clean-select {args.clean_select} needs a model that decides: --clean-select-model NAME, or a --teacher"),
    ]
    for broken, message in rules:
        if broken:
            raise UserError(message)


def _resolve_changes(args: argparse.Namespace) -> None:
    """Bring the names of ``--resume-changes`` into the form of the flags' own."""
    known = {*vars(args), PROCESSES}
    for name in args.resume_changes:
        if name.lstrip("-").replace("-", "_") not in known:
            dashed = [k.replace("_", "-") for k in known]
            raise UserError(f"--resume-changes {name}: no such flag{nearest(name.lstrip('-'), dashed)}; expected names "
                            "such as batch-size, or processes")
    args.resume_changes = [name.lstrip("-").replace("-", "_") for name in args.resume_changes]


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


def _resolve_labels(args: argparse.Namespace, given: set[str]) -> None:
    """Check the flags beside ``--teacher labels:PATH``: labels are stored, so models beside them are asked once too."""
    if not label_paths(args.teacher):
        return
    name = next(n for n in split_names(args.teacher) if n.startswith(LABELS))
    if "teacher_targets" in given and args.teacher_targets == "online":
        raise UserError(f"--teacher {name}: labels are stored, they cannot be asked about a view: leave out "
                        "--teacher-targets online")
    models = teacher_models(args.teacher)
    idle = {f"--{flag.replace('_', '-')}": getattr(args, flag) for flag in ABOUT_MODELS}
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


def _push_rules(args: argparse.Namespace) -> list[tuple[bool, str]]:
    flag, names = f"--push-labels {args.push_labels}", split_names(args.teacher)
    rules = [
        (label_paths(args.teacher), f"{flag}: labels of --teacher {args.teacher} are there already; publish them "
         "by python -m w2s_plugins.labels push PATH ORG/NAME"),
        (len(names) > 1, f"{flag} publishes what one teacher has said, and there are {len(names)}: name one of them"),
        (args.teacher_targets != "cached", f"{flag}: with --teacher-targets {args.teacher_targets} no labels of images "
         "are stored: give --teacher-targets cached"),
    ]
    return rules if args.push_labels else []


def view_epochs(args: argparse.Namespace) -> int:
    """Return the N of ``--teacher-targets cached-views:N``, 0 for other kinds. Features are stored alike."""
    kind, _, number = args.teacher_targets.partition(":")
    return int(number) if (args.teacher or args.linear_probe) and kind == "cached-views" else 0


def _resolve_released(args: argparse.Namespace) -> None:
    """Bring the flags of the released code on evaluation and names into this project's."""
    if args.speedtest:
        args.val_split, args.no_teacher_eval, args.speedtest = "", True, False
    idle = [name for name in ("eval_interval_end", "model_name") if getattr(args, name) is not None]
    if idle:
        _logger.info(f"{', '.join(map(option, idle))}: of the released code, and without effect here")


def _resolve_loss(args: argparse.Namespace, given: set[str], losses: Mapping[str, Parameters]) -> None:
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
        raise UnknownName(f"--loss: unknown loss '{unknown}'{nearest(unknown, [*losses, *CRITERIA])}; distillation "
                          f"losses: {', '.join(losses)}; criteria: {', '.join(CRITERIA)}")
    if args.kd_model_name:
        raise UserError(f"--kd-model-name runs timm's own distillation; with --loss {args.loss} use --teacher "
                        f"{args.kd_model_name}")
    if not args.teacher:
        raise UserError(f"--loss {args.loss} needs a teacher: give --teacher NAME (and --teacher-checkpoint FILE)")


def _resolve_loss_kwargs(args: argparse.Namespace, given: set[str], losses: Mapping[str, Parameters]) -> None:
    """Let the flags of timm and of the released code set the kwargs of the loss, below ``--loss-kwargs``."""
    if args.loss is None:
        return
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
            _logger.info(f"--{flag.replace('_', '-')} has no meaning for --loss {args.loss} and is ignored")
    parameters = losses.get(args.loss, {})
    name = next((n for n in ("kd_temperature", "temperature") if n in parameters), None)
    if name:
        default = parameters[name].default
        if "kd_temperature" in given and args.kd_temperature != args.loss_kwargs.get(name, default):
            _set_kwarg(args, name, args.kd_temperature, given)
        args.kd_temperature = args.loss_kwargs.get(name, default)  # in args.yaml it counts as given
    check_loss_kwargs(args.loss, args.loss_kwargs, losses)
    refuse_other_shares(args, args.num_classes)


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


def _semi_supervised_rules(args: argparse.Namespace) -> list[tuple[bool, str]]:
    if not is_semi_supervised(args):
        return []
    excluded = {"mixup and cutmix": mixes(args), "--aug-splits": args.aug_splits, "--resplit": args.resplit,
                "--train-img-sizes": args.train_img_sizes}
    return [
        *((broken, f"{flag}: cannot be combined with labelled samples in the batches of --unlabeled; leave out "
           f"--task-loss-weight {args.task_loss_weight:g}, or this") for flag, broken in excluded.items()),
        (args.batch_size < 2, f"--batch-size {args.batch_size} has no room for labelled samples beside the others: "
         "expected 2 or more"),
    ]


def mixes(args: argparse.Namespace) -> bool:
    """True where images of a batch are mixed."""
    return args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None


def _sharding_rules(args: argparse.Namespace) -> list[tuple[bool, str]]:
    if not args.fsdp:
        return []
    return [
        (args.device.partition(":")[0] not in ("cpu", "cuda"), f"--fsdp runs on cuda and cpu, not {args.device}"),
        (args.few_shot_eval or args.episodic, "--few-shot-eval and --episodic take features of a whole student, which "
         "--fsdp has in parts: leave out --fsdp, or test a checkpoint with validate.py --few-shot"),
        (args.kd_model_name, "--fsdp cannot shard the student of timm's own distillation: use --teacher in place of "
         "--kd-model-name"),
        (args.opt.lower() not in SHARDED_OPTIMIZERS, f"--fsdp gives the optimizer parts of the weights, with which "
         f"--opt {args.opt} does not work{nearest(args.opt, SHARDED_OPTIMIZERS)}; one of "
         f"{', '.join(SHARDED_OPTIMIZERS)}"),
        (args.clip_grad is not None and args.clip_mode == "agc", "--clip-mode agc looks at rows of whole weights: use "
         "norm or value with --fsdp"),
        (args.sync_bn, "--sync-bn was not made for sharded weights: leave out --sync-bn or --fsdp"),
        (args.model_ema and args.model_dtype == "bfloat16", "--model-ema rounds bfloat16 weights at random, alike on "
         "all processes, which parts of them cannot: use --amp --amp-dtype bfloat16 in place of --model-dtype"),
    ]


def _scheduled_size_rules(args: argparse.Namespace) -> list[tuple[bool, str]]:
    sizes, probs = args.train_img_sizes or (), args.train_size_probs
    rules = [(args.train_size_schedule == "progressive" and len(sizes) < 2,
              "--train-size-schedule progressive needs at least 2 --train-img-sizes")]
    rules.append((args.train_batches_per_epoch is not None and not sizes and not args.episodic,
                  "--train-batches-per-epoch needs --train-img-sizes, or --episodic"))
    for flag, values in (("--train-batch-sizes", args.train_batch_sizes), ("--train-size-probs", probs)):
        rules += [
            (values and not sizes, f"{flag} needs --train-img-sizes"),
            (values and len(values) != len(sizes), f"{flag} has {len(values or ())} values for {len(sizes)} sizes"),
        ]
    return [
        *rules,
        (min([1, *sizes, *(args.train_batch_sizes or ())]) < 1, "image and batch sizes are at least 1"),
        (probs and not (min(probs) >= 0 and 0 < sum(probs) < float("inf")),
         "--train-size-probs: expected numbers of at least 0, not all 0"),
    ]


def _episode_rules(args: argparse.Namespace) -> list[tuple[bool, str]]:
    few_shot = bool(args.few_shot_eval)
    rules = [(args.class_list and args.class_map, "--class-list and --class-map exclude each other"),
             (args.eval_metric == "few-shot" and not few_shot, "--eval-metric few-shot needs --few-shot-eval NxK")]
    if not args.episodic:
        return rules
    excluded = {
        "--mixup and --cutmix": mixes(args),
        "--aug-splits": args.aug_splits,
        "--aug-repeats": args.aug_repeats,
        "--train-img-sizes": args.train_img_sizes,
        "--epoch-repeats": args.epoch_repeats,
        "--kd-model-name": args.kd_model_name,
        "--select-split": args.select_split is not None,
        "--teacher-class-map": args.teacher_class_map,
        "--teacher-weights learned": args.teacher_weights == "learned",
        "--teacher-assign student": args.teacher_assign == "student",
        f"--teacher-targets {args.teacher_targets}": args.teacher and args.teacher_targets != "online",
    }
    return [*rules, *((broken, f"{flag} cannot be combined with --episodic") for flag, broken in excluded.items()),
            (args.val_split, f"--val-split {args.val_split}: with --episodic no classifier of all classes is trained; "
             "leave it out, and measure with --few-shot-eval 5x1")]


def _check_combinations(args: argparse.Namespace) -> None:
    mixing = mixes(args)
    odd = next((n for n in [*(args.train_batch_sizes or ()), args.batch_size] if n % 2), None)
    teachers = len(split_names(args.teacher))
    cached = args.teacher and args.teacher_targets != "online"
    choices = args.teacher_assign == "student", args.teacher_weights == "learned"
    rules = [
        (args.log_tensorboard and find_spec("tensorboard") is None,
         "--log-tensorboard needs a package: pip install tensorboard"),
        (args.log_wandb and find_spec("wandb") is None, "--log-wandb needs a package: pip install wandb"),
        (args.log_trackio and find_spec("trackio") is None, "--log-trackio needs a package: pip install trackio"),
        (any(choices) and teachers < 2, "--teacher-assign student and --teacher-weights learned need several teachers: "
         "--teacher NAME,NAME"),
        (all(choices), "--teacher-assign student leaves no weights to be learned: drop --teacher-weights learned"),
        (args.naflex_loader, "--naflex-loader: timm's NaFlexMapDatasetWrapper gives batches of patches and does not "
         "say of which samples, by which teacher, views and resumption go: a NaFlexVit trains here on images of one "
         "size, without the flag"),
        (args.torchscript, "--torchscript cannot train here, TorchScript is deprecated: use --torchcompile"),
        (bool(args.finetune and args.initial_checkpoint), "--finetune would overwrite the weights of "
         "--initial-checkpoint: give one of them"),
        (args.aug_splits == 1, "--aug-splits 1 is no split: give 2 or more"),
        (args.aug_splits and mixing, "--aug-splits cannot be combined with mixup or cutmix"),
        (args.aug_splits and args.no_aug, "--aug-splits cannot be combined with --no-aug"),
        (args.aug_splits and args.no_prefetcher, "--aug-splits needs the prefetcher: leave out --no-prefetcher"),
        (args.task_loss == "jsd" and args.aug_splits < 2, "the jsd criterion needs --aug-splits of at least 2"),
        (args.split_bn and args.aug_splits < 2 and not args.resplit, "--split-bn needs --aug-splits or --resplit"),
        *_tuning_rules(args),
        (args.split_bn and args.sync_bn, "--split-bn and --sync-bn exclude each other"),
        (mixing and odd, f"mixup and cutmix pair samples: --batch-size {odd} must be even"),
        (args.aug_splits and cached, "--aug-splits needs --teacher-targets online"),
        (view_epochs(args) and args.aug_repeats, "--teacher-targets cached-views:N keeps one view of a sample in an "
         "epoch: use online with --aug-repeats"),
        (view_epochs(args) and args.resplit and args.reprob, "--resplit erases by the place in the batch, on which a "
         "cached view must not depend: use --teacher-targets online"),
        (view_epochs(args) and args.train_img_sizes, "--train-img-sizes draws sizes by batch, on which a cached view "
         "must not depend: use --teacher-targets online"),
        (view_epochs(args) and mixing and args.mixup_off_epoch, "--mixup-off-epoch ends mixing once, and cached views "
         "come round again: leave it out, or use --teacher-targets online"),
        (args.teacher_topk is not None and not cached, "--teacher-topk is for cached targets: give --teacher NAME and "
         "--teacher-targets cached or cached-views:N"),
        (args.epoch_slice and (view_epochs(args) or args.aug_repeats or args.episodic or args.unlabeled),
         "--epoch-slice lets labelled samples come round again, which --teacher-targets cached-views:N, --aug-repeats, "
         "--episodic and --unlabeled cannot: leave one out"),
        (args.train_img_sizes and args.aug_splits, "--train-img-sizes cannot be combined with --aug-splits"),
        *_scheduled_size_rules(args),
        *_episode_rules(args),
        *_sharding_rules(args),
        *_semi_supervised_rules(args),
        (parse_data_errors(args.data_errors) is not None and args.episodic, f"--data-errors {args.data_errors}: "
         "another sample of the batch would change the classes of an episode; use --data-errors raise with --episodic"),
        (parse_data_errors(args.data_errors) is not None and args.linear_probe, f"--data-errors {args.data_errors}: "
         "--linear-probe needs the features of every sample; use --data-errors raise with it"),
        (args.refine_labels and args.teacher and args.teacher_targets == "online", "--refine-labels is fitted to "
         "stored answers: give --teacher-targets cached, or --no-refine-labels"),
        (args.refine_labels and args.teacher and parse_data_errors(args.data_errors) is not None,
         f"--data-errors {args.data_errors}: --refine-labels needs the features of every sample; use --data-errors "
         "raise with it, or --no-refine-labels"),
        (args.teacher_checkpoint and not args.teacher, "--teacher-checkpoint needs --teacher NAME"),
        (args.ceiling_checkpoint, "--ceiling-checkpoint is for --protocol w2s; a single run takes its figure, "
         "--ceiling-acc, and validate.py --ceiling-checkpoint evaluates it"),
        (args.select_split is not None and args.select != "best", "--select-split needs --select best"),
        (args.select_split is not None and not (args.select_split >= 1 if isinstance(args.select_split, int)
                                                else 0 < args.select_split < 1),
         f"--select-split {args.select_split}: expected a share between 0 and 1, or a count of at least 1"),
        (args.select_split is not None and args.no_teacher_eval and is_scored_by_teacher(args),
         "--select-split without ground truth ranks epochs by the agreement with the teacher: leave out "
         "--no-teacher-eval"),
        (args.select == "best" and not args.val_split and args.select_split is None and args.eval_metric != "few-shot",
         "--select best needs a --val-split, a --select-split, or --eval-metric few-shot"),
        (args.long_tail == "always" and not args.val_split and args.select_split is None,
         "--long-tail always measures on a validation split: give --val-split or --select-split"),
        *_push_rules(args),
        (args.eval_metric == "agreement" and not args.teacher, "--eval-metric agreement needs a --teacher"),
        (args.eval_metric == "agreement" and args.no_teacher_eval and teacher_models(args.teacher),
         "--eval-metric agreement asks the teacher about the validation split: leave out --no-teacher-eval"),
        (args.eval_metric == "agreement" and args.select_split is None and not teacher_models(args.teacher),
         f"--eval-metric agreement: --teacher {args.teacher} says nothing of the validation split: give --select best "
         "and --select-split, which holds out some of what has labels"),
        (args.teacher_until_passed and not loss_weights(args.task_loss_weight, args.distill_loss_weight)[0],
         "--teacher-until-passed goes on with ground truth, which "
         + ("--unlabeled leaves out unless a --task-loss-weight is given" if args.unlabeled
            else "--task-loss-weight 0 leaves out")),
        (args.teacher_until_passed and (args.no_teacher_eval or not teacher_models(args.teacher) or (
            not args.val_split and (args.select_split is None or args.unlabeled))),
         "--teacher-until-passed compares the student with a --teacher that can be asked about a split with ground "
         "truth: give --val-split or --select-split, and leave out --no-teacher-eval"),
        (args.resume == "auto" and not args.experiment,
         "--resume auto looks for the run's own folder: name it with --experiment"),
        (args.start_epoch is not None and args.start_epoch >= args.epochs,
         f"--start-epoch {args.start_epoch} is not below --epochs {args.epochs}"),
        (args.task_loss_weight == 0 and not args.teacher and not args.kd_model_name,
         "--task-loss-weight 0 leaves ground truth out, and without a teacher nothing is left to learn from: give "
         "--teacher NAME"),
    ]
    for broken, message in rules:
        if broken:
            raise UserError(message)


def trains_part(args: argparse.Namespace) -> bool:
    """True where something of the student keeps its weights."""
    return args.tune != "all" or bool(args.freeze)


def random_start_hint(args: argparse.Namespace) -> str | None:
    """Return a line that says that the part of a student which is not trained is random, or None."""
    if not trains_part(args) or args.pretrained or args.pretrained_path or args.finetune or args.initial_checkpoint:
        return None
    what = f"--tune {args.tune}" if args.tune != "all" else f"--freeze {shown_value(args.freeze)}"
    return (f"{what} leaves weights as they are, and they are random here: give --pretrained, --finetune FILE or "
            "--initial-checkpoint FILE")


def _tuning_rules(args: argparse.Namespace) -> list[tuple[bool, str]]:
    parse_part(args.tune)
    partly = trains_part(args)
    if hint := random_start_hint(args):
        _logger.warning(f"WARNING: {hint}")
    return [
        (bool(partly and args.split_bn), "--split-bn makes new batch norms, all of which would be trained: leave out "
         "--tune and --freeze, or --split-bn"),
        (bool(args.unfreeze and not partly), "--unfreeze needs --tune or --freeze: all is trained without these"),
    ]
