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
    LABELS,
    PREFIXES,
    TEST_EPISODES,
    UNLABELED,
    check_dataset_name,
    count_episodes,
    loss_weights,
    parse_data_errors,
    parse_part,
    parse_shapes,
    parse_test_sets,
    split_labels,
    unlabeled_roots,
)
from ..cli.outcome import PROCESSES
from ..cli.parser import train_parser
from ..errors import UserError, near_path, nearest
from ..metrics.pgr import chance_level
from ..run.location import RunLocation
from ..teachers.name import parse_teachers

Losses = Mapping[str, Mapping[str, Parameter]]  # the hyper-parameters of each distillation loss

_logger = logging.getLogger(__name__)

CRITERIA = ("ce", "bce", "asl", "poly", "jsd")  # of timm, but for those of multi-label data
BATCHES_OF_EPISODES = 200  # in an epoch

# defaults of the released code where they differ from those of the losses here
RELEASED_LOSS_DEFAULTS = {"kd": {"temperature": 1.0}, "dkd": {"beta": 2.0, "temperature": 1.0}}
RELEASED_WEIGHTS = {"task_loss_weight": "gt_loss_weight", "distill_loss_weight": "kd_loss_weight"}

# in each mode the flags that change nothing there: they are noted and left at their defaults
IDLE_FLAGS = {
    "linear_probe": ("fsdp", "sync_bn", "split_bn", "grad_checkpointing", "torchcompile", "channels_last",
                     "layer_decay", "drop", "drop_path", "drop_connect", "drop_block", "tta", "save_images"),
    "fsdp": ("channels_last", "model_ema_force_cpu"),
}


# ---------------------------------------------------------------- what flags mean together


def label_paths(teacher: str | None) -> list[str]:
    """Return the files and folders of labels among the names of ``--teacher``."""
    return [split_labels(name.rest)[0] for name in parse_teachers(teacher) if name.is_labels]


def teacher_models(teacher: str | None) -> list[str]:
    """Return the models among the names of ``--teacher``."""
    return [name.text for name in parse_teachers(teacher) if not name.is_labels]


def in_order(teacher: str | None, models: Iterable[Any], labels: Iterable[Any]) -> list[Any]:
    """Return what there is for each name of ``--teacher``, in their order: of its models, and of its labels."""
    of_models, of_labels = iter(models), iter(labels)
    return [next(of_labels if name.is_labels else of_models) for name in parse_teachers(teacher)]


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


def batch_of_episodes(args: argparse.Namespace) -> int:
    """Return the number of images in a batch of ``--episodic``, whose episodes have one shape."""
    shapes = parse_shapes(args.episodic, args.queries, "--episodic")
    if len(shapes) > 1:
        raise UserError(f"--episodic {args.episodic}: training has episodes of one shape, such as {shapes[0]}; several "
                        "are for --few-shot-eval")
    return count_episodes(args.episodic, "--episodic", BATCH_EPISODES, 1) * shapes[0].size


def input_channels(args: argparse.Namespace) -> int:
    """Return the number of channels of the student's images."""
    return args.in_chans or (args.input_size[0] if args.input_size else 3)


def locate_run(args: argparse.Namespace) -> RunLocation:
    """Return where a run is to be: in the folder of the checkpoint that it goes on from, unless another one is named.
    """
    root = Path(args.output or "./output/train")
    if not args.experiment and args.resume not in ("", "auto"):
        path = Path(args.resume)
        folder = path if path.is_dir() else path.parent
        if (folder / "args.yaml").is_file():
            return RunLocation(folder.parent, folder.name, args.resume)
    return RunLocation(root, args.experiment, args.resume)


# ---------------------------------------------------------------- what follows from what


def resolve_flags(args: argparse.Namespace, given: set[str], losses: Losses) -> None:
    """Fill in what follows from other flags of ``train_w2s.py``, in place.

    Args:
        args: all flags.
        given: names of the flags that were set by hand.
        losses: those that are registered.

    Raises:
        UserError: one line for the first thing that is wrong.
    """
    _ignore_idle_flags(args, given)
    if args.sched in ("wsd", "rsqrt") and "decay_epochs" not in given:
        args.decay_epochs = 0.2  # as timm's factory has it: the 90 are for step

    # Values that have a form of their own.
    check_dataset_name(args.dataset)
    parse_test_sets(args.val_sets)
    parse_part(args.tune)
    parse_data_errors(args.data_errors)
    args.resume_changes = [_changed_flag(args, name) for name in args.resume_changes]

    # How the student learns, on what data, and from whom.
    _resolve_loss(args, given, losses)
    if given & set(RELEASED_WEIGHTS.values()):
        for ours, theirs in RELEASED_WEIGHTS.items():
            if ours not in given:  # each is 1 in the released code
                weight = getattr(args, theirs)
                setattr(args, ours, 1.0 if weight is None else weight)
    if args.unlabeled:
        _resolve_unlabeled(args, given)
    else:
        resolve_data_dir(args)
    if label_paths(args.teacher) or (args.linear_probe and args.teacher):
        _resolve_stored_targets(args, given)

    # What trains something else than a classifier by epochs of views.
    if args.linear_probe:
        _resolve_probe(args, given)
    if args.few_shot_eval:
        parse_shapes(args.few_shot_eval, args.queries, "--few-shot-eval")
        count_episodes(args.few_shot_eval, "--few-shot-eval", TEST_EPISODES, 2)
    if args.episodic:
        _resolve_episodes(args, given)
    if args.loss is not None:
        _resolve_loss_kwargs(args, given, losses)
    if hint := random_start_hint(args):
        _logger.warning(f"WARNING: {hint}")


def _ignore_idle_flags(args: argparse.Namespace, given: set[str]) -> None:
    """Log the flags that have no effect in the mode of this run, and put their defaults in their place."""
    defaults = train_parser().defaults()
    for mode, names in IDLE_FLAGS.items():
        idle = [name for name in names if getattr(args, mode) and getattr(args, name) != defaults[name]]
        if idle:
            _logger.warning(f"WARNING: {option(mode)}: no effect of {', '.join(map(option, idle))}")
        for name in idle:
            setattr(args, name, defaults[name])

    # one of them may be of a file, the other typed over it
    if args.no_aug and not args.linear_probe:
        views = [option(name) for name in _changed(args, given, Role.VIEW)]
        if views:
            _logger.info(f"--no-aug: no effect of {', '.join(views)}")

    # of the released code
    if args.speedtest:
        args.val_split, args.no_teacher_eval, args.speedtest = "", True, False
    idle = [option(name) for name in ("eval_interval_end", "model_name") if getattr(args, name) is not None]
    if idle:
        _logger.info(f"{', '.join(idle)}: of the released code, and without effect here")


def _changed(args: argparse.Namespace, given: set[str], role: Role) -> list[str]:
    """Return the flags of a role that were set by hand to more than nothing."""
    return [name for name, facts in train_parser().facts().items()
            if facts.role & role and name in given and getattr(args, name) not in (facts.off, None, "", 0)]


def resolve_data_dir(args: argparse.Namespace) -> None:
    """Fill in ``data_dir`` from the positional argument or ``IMAGENET_DIR``."""
    args.data_dir, args.data = args.data_dir or args.data, None
    if args.dataset:
        return
    args.data_dir = args.data_dir or os.environ.get("IMAGENET_DIR")
    if not args.data_dir:
        raise UserError(
            "no data: give --data-dir FOLDER (or set IMAGENET_DIR), or --dataset w2s/digits, which needs no files")


def _resolve_unlabeled(args: argparse.Namespace, given: set[str]) -> None:
    """Leave ground truth out of a training without it, unless a part of each batch is to have it; ``--data-dir`` and
    ``--dataset`` may be absent, and validation with them.
    """
    if not args.teacher:
        raise UserError("--unlabeled: images without labels need a teacher that says what is on them: --teacher NAME "
                        "(and --teacher-checkpoint FILE)")
    args.data_dir, args.data = args.data_dir or args.data, None
    has_labelled = args.dataset or (args.data_dir and not args.unlabeled.lower().startswith("torch/"))
    if not has_labelled:
        if "val_split" in given and args.val_split:
            raise UserError(f"--val-split {args.val_split}: the images of --unlabeled have no labels; give the folder "
                            "of a labelled split with --data-dir, or a --dataset")
        args.val_split = ""

    # Without a weight on ground truth there is none, and only a held-out part can say how it goes.
    if not args.task_loss_weight:
        args.task_loss_weight, args.train_split = 0.0, UNLABELED
    if not args.val_split and args.select_split is None:
        _logger.warning("WARNING: nothing measures this run; --select best --select-split 0.1 holds out images, and "
                        "reports agreement with the teacher and confidence there")


def _resolve_loss(args: argparse.Namespace, given: set[str], losses: Losses) -> None:
    """Split ``--loss`` into a distillation loss (or None) and the criterion on ground truth."""
    if args.distiller:  # of the released code
        if "loss" in given and args.loss != args.distiller:
            _logger.info(f"--distiller {args.distiller} takes the place of --loss {args.loss}")
        args.loss, args.distiller = args.distiller, None
        if args.loss == "vanilla":
            args.loss, args.teacher, args.teacher_checkpoint = "ce", None, None
        for key, value in RELEASED_LOSS_DEFAULTS.get(args.loss, {}).items():
            args.loss_kwargs.setdefault(key, value)
    if args.loss is None and args.teacher:
        args.loss = "adaptconf"
        _logger.info("--loss adaptconf, that of the paper; for pretrained students --config w2s:w2s is recommended "
                     "(docs/recipe.md)")

    # timm's criteria are on ground truth
    if args.loss in CRITERIA:
        if args.teacher:
            raise UserError(f"--loss {args.loss} is a criterion on ground truth and would not use --teacher "
                            f"{args.teacher}; use --task-loss {args.loss} with a distillation loss, or --teacher ''")
        args.task_loss, args.loss = args.task_loss or args.loss, None
    if args.task_loss is None:
        args.task_loss = "jsd" if args.jsd_loss else "bce" if args.bce_loss else "ce"
    check_choice("--task-loss", args.task_loss, CRITERIA)

    # all else is a distillation loss, or a sum of them
    parts = [] if args.loss is None or args.loss in losses else [part.strip() for part in args.loss.split("+")]
    for part in parts:
        if part not in losses:
            raise UserError(f"--loss: unknown loss '{part}'{nearest(part, [*losses, *CRITERIA])}; distillation "
                            f"losses: {', '.join(losses)}; criteria: {', '.join(CRITERIA)}")


def _resolve_loss_kwargs(args: argparse.Namespace, given: set[str], losses: Losses) -> None:
    """Let the flags of timm and of the released code set the kwargs of the loss, below ``--loss-kwargs``."""
    found: dict[str, object] = {}

    # of the released code
    if args.loss == "fitnet":
        if args.fitnet_stage:  # stage 1 is level 1 there too: level 0 is the stem
            found = dict(student_stages=args.fitnet_stage, teacher_stages=args.fitnet_stage)
        if args.fitnet_loss_weight is not None:
            outer = args.kd_loss_weight or args.distill_loss_weight or 1.0
            args.distill_loss_weight = args.fitnet_loss_weight * outer
            given.add("distill_loss_weight")
    for flag, facts in train_parser().facts().items():
        value = getattr(args, flag)
        if not facts.sets or flag not in given or value is None or value is False:
            continue
        if args.loss in facts.sets:
            found[facts.sets[args.loss]] = value
        else:
            _logger.info(f"{option(flag)} has no meaning for --loss {args.loss} and is ignored")

    # --kd-temperature is timm's; in args.yaml, with the value that counts, it is one that was set by hand
    parameters = losses.get(args.loss, {})
    name = next((name for name in ("kd_temperature", "temperature") if name in parameters), None)
    kept = args.loss_kwargs if "loss_kwargs" in given else {}
    if name:
        before = {**args.loss_kwargs, **found, **kept}.get(name, parameters[name].default)
        if "kd_temperature" in given and args.kd_temperature != before:
            found[name] = args.kd_temperature
    args.loss_kwargs = {**args.loss_kwargs, **found, **kept}
    if name:
        args.kd_temperature = args.loss_kwargs.get(name, parameters[name].default)


def _resolve_stored_targets(args: argparse.Namespace, given: set[str]) -> None:
    """Labels are stored, and a probe sees an image once: so the models beside them are asked once too."""
    if args.teacher_targets != "online":
        return
    if "teacher_targets" in given:
        why = "labels are stored, they cannot be asked about a view" if label_paths(args.teacher) else (
            "--linear-probe lets the teacher label each image once")
        raise UserError(f"--teacher {args.teacher}: {why}: leave out --teacher-targets online")
    args.teacher_targets = "cached"


def _resolve_probe(args: argparse.Namespace, given: set[str]) -> None:
    """Refuse views of a ``--linear-probe`` that sees plain images, or set them to what they come to."""
    stores_views = args.teacher_targets.startswith("cached-views")
    views = [] if args.no_aug or stores_views else _changed(args, given, Role.VIEW)
    changed = [*views, *_changed(args, given, Role.MIXING)]
    if changed:
        shown = ", ".join(f"{option(name)} {shown_value(getattr(args, name))}" for name in changed)
        remedy = ", add --no-aug, or store views with --teacher-targets cached-views:N" if views else ""
        raise UserError(f"--linear-probe sees every image once, without augmentation: leave out {shown}{remedy}")
    for name, facts in train_parser().facts().items():
        if facts.role & (Role.MIXING if stores_views else Role.VIEW | Role.MIXING):
            setattr(args, name, facts.off)
    args.dist_bn = ""  # there is no statistic to share
    args.no_aug = args.no_aug or not stores_views


def _resolve_episodes(args: argparse.Namespace, given: set[str]) -> None:
    """Fill in what follows from episodes, which fix the batch; there is no classifier of all classes."""
    if "batch_size" not in given:
        args.batch_size = batch_of_episodes(args)
    args.train_batches_per_epoch = args.train_batches_per_epoch or BATCHES_OF_EPISODES
    if "val_split" not in given:
        args.val_split = ""


def _changed_flag(args: argparse.Namespace, name: str) -> str:
    """Return a name of ``--resume-changes`` in the form of the flags' own."""
    known = {*vars(args), PROCESSES}
    if dest_of(name) not in known:
        dashed = [dest.replace("_", "-") for dest in known]
        raise UserError(f"--resume-changes {name}: no such flag{nearest(name.lstrip('-'), dashed)}; expected names "
                        "such as batch-size, or processes")
    return dest_of(name)


def check_choice(flag: str, value: str, choices: tuple[str, ...] | list[str]) -> None:
    """Raise a `UserError` with the nearest choice unless ``value`` is one of ``choices``."""
    if value not in choices:
        known = f"; one of {', '.join(choices)}" if len(choices) <= 12 else ""
        raise UserError(f"{flag}: unknown choice '{value}'{nearest(value, choices)}{known}")


# ---------------------------------------------------------------- what has to be there


def refuse_missing_checkpoint(checkpoint: str) -> None:
    """Raise a `UserError` for a ``--checkpoint`` of ``validate.py`` that is not there."""
    if checkpoint and not Path(checkpoint).exists():
        raise UserError(f"--checkpoint {checkpoint}: no such file or folder{near_path(checkpoint)}")


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
    if not (elsewhere and args.data_dir and not Path(args.data_dir).exists()):
        refuse_missing_data(args)


def refuse_missing_data(args: argparse.Namespace) -> None:
    """Raise a `UserError` for a folder of images, or a test set, that is not there."""
    if args.data_dir and not args.dataset and not Path(args.data_dir).exists():
        raise UserError(f"--data-dir {args.data_dir}: no such folder{near_path(args.data_dir)}")
    for name, place in parse_test_sets(args.val_sets).items():
        if not place.lower().startswith(PREFIXES) and not Path(place).exists():
            raise UserError(f"--val-sets {name}={place}: no such folder{near_path(place)}")


# ---------------------------------------------------------------- what is right, but hardly meant


def random_start_hint(args: argparse.Namespace) -> str | None:
    """Return a line that says that the part of a student which is not trained is random, or None."""
    if not trains_part(args) or args.pretrained or args.pretrained_path or args.finetune or args.initial_checkpoint:
        return None
    what = f"--tune {args.tune}" if args.tune != "all" else f"--freeze {shown_value(args.freeze)}"
    return (f"{what} leaves weights as they are, and they are random here: give --pretrained, --finetune FILE or "
            "--initial-checkpoint FILE")


def chance_hint(who: str, top1: float, num_classes: int, samples: int, remedy: str) -> str | None:
    """Return a line on an accuracy that is not better than guessing by two standard errors, or None."""
    chance = chance_level(num_classes) / 100
    if top1 > 100 * (chance + 2 * (chance * (1 - chance) / max(1, samples)) ** 0.5):
        return None
    return (f"{who} is at chance: top-1 {top1:.2f} with {num_classes} classes (guessing gives {100 * chance:.2f}). "
            f"{remedy}")


def teacher_chance_hint(top1: float, num_classes: int, samples: int) -> str | None:
    """Return a line that says that a teacher is not better than guessing, or None."""
    return chance_hint("the teacher", top1, num_classes, samples,
                       "Wrong weights, class order, normalisation or input size?")


def student_chance_hint(top1: float, num_classes: int, samples: int) -> str | None:
    """Return a line that says that a student is not better than guessing, or None."""
    return chance_hint("the student", top1, num_classes, samples,
                       "If it has learned nothing, give it a smaller --lr or more --epochs")


def average_hint(args: argparse.Namespace, updates: int) -> str | None:
    """Return a line that says that the average of the weights is mostly made of those before training, or None."""
    start = args.model_ema_decay ** updates
    if not args.model_ema or args.model_ema_warmup or start < 0.5:
        return None
    return (f"{start:.0%} of the average of the weights will be those before training: --model-ema-decay "
            f"{args.model_ema_decay:g} is for more than these {updates} updates; give a smaller one, or add "
            "--model-ema-warmup")
