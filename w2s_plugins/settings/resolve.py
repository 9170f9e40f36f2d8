"""Flags brought into this project's terms: what follows from others is filled in, values that have a form are read.

What goes together stands in `rules.py`, what only timm, torch and plugins know in `flags.py`, which calls this.
"""

import os
from argparse import Namespace
from collections.abc import Iterable, Mapping
from inspect import Parameter
from pathlib import Path
from typing import Any

from ..cli.declare import option
from ..cli.forms import (
    BATCH_EPISODES,
    LABELS,
    PREFIXES,
    TEST_EPISODES,
    UNLABELED,
    EpisodeShape,
    check_dataset_name,
    count_episodes,
    loss_weights,
    parse_labels,
    parse_long_tail,
    parse_noise,
    parse_part,
    parse_shapes,
    unlabeled_roots,
)
from ..cli.parser import train_parser
from ..errors import UserError, logger, near_path, nearest
from ..run.location import RunLocation
from ..teachers.name import TeacherName, parse_teachers

Losses = Mapping[str, Mapping[str, Parameter]]  # the hyper-parameters of each distillation loss

BATCHES_OF_EPISODES = 200  # in an epoch

# defaults of the released code where they differ from those of the losses here
RELEASED_LOSS_DEFAULTS = {"kd": {"temperature": 1.0}, "dkd": {"beta": 2.0, "temperature": 1.0}}
RELEASED_WEIGHTS = {"task_loss_weight": "gt_loss_weight", "distill_loss_weight": "kd_loss_weight"}


# ---------------------------------------------------------------- what flags mean together


def label_paths(teacher: str | None) -> list[str]:
    """Return the files of labels among the names of ``--teacher``."""
    return parse_labels(teacher)[0]


def teacher_models(teacher: str | None) -> list[TeacherName]:
    """Return the models among the names of ``--teacher``."""
    return [name for name in parse_teachers(teacher) if not name.is_labels]


def shown_teachers(teacher: str | None) -> str:
    """Return ``--teacher`` as records show it: of files and folders of labels the last part of the path alone."""
    names = parse_teachers(teacher)
    return ",".join(LABELS + Path(name.rest).name if name.is_labels else name.text for name in names)


def has_labels(args: Namespace) -> bool:
    """True where a name of ``--teacher`` is that of labels, not of a model."""
    return any(name.is_labels for name in parse_teachers(args.teacher))


def has_labels_alone(args: Namespace) -> bool:
    """True where all names of ``--teacher`` are those of labels."""
    return has_labels(args) and not teacher_models(args.teacher)


def in_order(teacher: str | None, models: Iterable[Any], labels: Iterable[Any]) -> list[Any]:
    """Return what there is for each name of ``--teacher``, in their order: of its models, and of its labels. What all
    names of labels have in common stands at the first of them.
    """
    of_models, of_labels = iter(models), iter(labels)
    found = [next(of_labels if name.is_labels else of_models, None) for name in parse_teachers(teacher)]
    return [one for one in found if one is not None]


def view_epochs(args: Namespace) -> int:
    """Return the N of ``--teacher-targets cached-views:N``, 0 for other kinds. Features are stored alike."""
    kind, _, number = args.teacher_targets.partition(":")
    return int(number) if (args.teacher or args.linear_probe) and kind == "cached-views" else 0


def stores_targets(args: Namespace) -> bool:
    """True where the teacher is asked before training, or labels are read."""
    return bool(args.teacher and args.teacher_targets != "online")


def mixes(args: Namespace) -> bool:
    """True where images of a batch are mixed."""
    return args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None


def has_no_truth(args: Namespace) -> bool:
    """True where there are only images without labels; a folder of torchvision's is not one of a labelled split."""
    downloaded = str(args.unlabeled).lower().startswith("torch/")
    return bool(args.unlabeled and not args.dataset and (downloaded or not args.data_dir))


def is_semi_supervised(args: Namespace) -> bool:
    """True where each batch has labelled samples beside those of ``--unlabeled``."""
    return bool(args.unlabeled and args.task_loss_weight)


def is_scored_by_teacher(args: Namespace) -> bool:
    """True where a held-out part has no ground truth, or none that is to be used: the teacher is right there."""
    weight = loss_weights(args.task_loss_weight, args.distill_loss_weight)[0]
    return bool(args.teacher and (weight == 0 or args.unlabeled))


def batch_of_episodes(args: Namespace) -> tuple[EpisodeShape, int]:
    """Return the shape and the number of the episodes in a batch of ``--episodic``."""
    shapes = parse_shapes(args.episodic, args.queries, "--episodic")
    if len(shapes) > 1:
        raise UserError(f"--episodic {args.episodic}: training has episodes of one shape, such as {shapes[0]}")
    return shapes[0], count_episodes(args.episodic, "--episodic", BATCH_EPISODES, 1)


def input_channels(args: Namespace) -> int:
    """Return the number of channels of the student's images."""
    return args.in_chans or (args.input_size[0] if args.input_size else 3)


def locate_run(args: Namespace) -> RunLocation:
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


def resolve_flags(args: Namespace, explicit_flags: set[str], losses: Losses) -> None:
    """Fill in what follows from other flags of ``train_w2s.py``, in place.

    Args:
        args: all flags.
        explicit_flags: names of the flags that were set by hand.
        losses: those that are registered.

    Raises:
        UserError: one line for the first thing that is wrong.
    """
    if args.speedtest:  # of the released code
        args.val_split, args.no_teacher_eval, args.speedtest = "", True, False
    if args.sched in ("wsd", "rsqrt") and "decay_epochs" not in explicit_flags:
        args.decay_epochs = 0.2  # as timm's factory has it: the 90 are for step

    # Values that have a form of their own.
    check_dataset_name(args.dataset)
    parse_part(args.tune)
    parse_long_tail(args.long_tail)
    if args.label_noise:
        parse_noise(args.label_noise)

    # How the student learns, on what data, and from whom.
    _resolve_loss(args, losses)
    if explicit_flags & set(RELEASED_WEIGHTS.values()):
        for ours, theirs in RELEASED_WEIGHTS.items():
            if ours not in explicit_flags:  # each is 1 in the released code
                weight = getattr(args, theirs)
                setattr(args, ours, 1.0 if weight is None else weight)
    resolve_data_dir(args)
    if args.unlabeled:
        # Ground truth is left out, unless a part of each batch is to have it.
        if has_no_truth(args) and "val_split" not in explicit_flags:
            args.val_split = ""
        if not args.task_loss_weight:
            args.task_loss_weight, args.train_split = 0.0, UNLABELED

    # What trains something else than a classifier by epochs of views.
    asked_once = has_labels(args) or (args.linear_probe and args.teacher)
    if asked_once and args.teacher_targets == "online":
        if "teacher_targets" in explicit_flags:
            raise UserError("--teacher-targets online: labels, and the teacher of a --linear-probe, say once what an "
                            "image is: leave the flag out")
        args.teacher_targets = "cached"
    if args.linear_probe:  # the images are plain, unless views are stored; no statistic is to be shared
        args.no_aug = args.no_aug or not view_epochs(args)
        args.dist_bn = ""
    if args.few_shot_eval:
        parse_shapes(args.few_shot_eval, args.queries, "--few-shot-eval")
        count_episodes(args.few_shot_eval, "--few-shot-eval", TEST_EPISODES, 2)
    if args.episodic:
        shape, count = batch_of_episodes(args)
        if "batch_size" in explicit_flags and args.batch_size != shape.size * count:
            note_idle(f"--episodic {args.episodic}", ["batch_size"])
        args.batch_size = shape.size * count
        if "val_split" not in explicit_flags:
            args.val_split = ""
        args.train_batches_per_epoch = args.train_batches_per_epoch or BATCHES_OF_EPISODES
    if args.loss is not None:
        _resolve_loss_kwargs(args, explicit_flags, losses)


def note_idle(mode: str, names: Iterable[str]) -> None:
    """Log the flags that have no effect in a mode of this run."""
    logger.warning(f"WARNING: {mode}: no effect of {', '.join(map(option, names))}")


def resolve_data_dir(args: Namespace) -> None:
    """Fill in ``data_dir`` from the positional argument or, where there is no other data, ``IMAGENET_DIR``."""
    args.data_dir, args.data = args.data_dir or args.data, None
    if args.dataset or vars(args).get("unlabeled"):  # validate has no such flag
        return
    args.data_dir = args.data_dir or os.environ.get("IMAGENET_DIR")
    if not args.data_dir:
        raise UserError(
            "no data: give --data-dir FOLDER (or set IMAGENET_DIR), or --dataset w2s/digits, which needs no files")


def _resolve_loss(args: Namespace, losses: Losses) -> None:
    """Split ``--loss`` into a distillation loss (or None) and the criterion on ground truth."""
    if args.distiller:  # of the released code
        args.loss, args.distiller = args.distiller, None
        if args.loss == "vanilla":
            args.loss, args.teacher, args.teacher_checkpoint = "ce", None, None
        args.loss_kwargs = {**RELEASED_LOSS_DEFAULTS.get(args.loss, {}), **args.loss_kwargs}
    if args.loss is None and args.teacher:
        args.loss = "adaptconf"
        logger.info("--loss adaptconf, that of the paper")

    # timm's criteria are on ground truth
    criteria = train_parser().by_dest()["task_loss"].choices
    if args.loss in criteria:
        if args.teacher:
            raise UserError(f"--loss {args.loss} is a criterion on ground truth and would not use --teacher "
                            f"{args.teacher}; use --task-loss {args.loss} with a distillation loss, or --teacher ''")
        args.task_loss, args.loss = args.task_loss or args.loss, None
    if args.task_loss is None:
        args.task_loss = "jsd" if args.jsd_loss else "bce" if args.bce_loss else "ce"

    # all else is a distillation loss, or a sum of them
    parts = [] if args.loss is None or args.loss in losses else args.loss.split("+")
    for part in map(str.strip, parts):
        if part not in losses:
            raise UserError(f"--loss: unknown loss '{part}'{nearest(part, [*losses, *criteria])}; distillation "
                            f"losses: {', '.join(losses)}; criteria: {', '.join(criteria)}")


def _resolve_loss_kwargs(
        args: Namespace, explicit_flags: set[str], losses: Losses) -> None:
    """Let the flags of timm and of the released code set the kwargs of the loss, below ``--loss-kwargs``."""
    typed = args.loss_kwargs if "loss_kwargs" in explicit_flags else {}
    kwargs = dict(args.loss_kwargs)

    # of the released code
    if args.loss == "fitnet":
        if args.fitnet_stage:  # stage 1 is level 1 there too: level 0 is the stem
            kwargs |= dict(student_stages=args.fitnet_stage, teacher_stages=args.fitnet_stage)
        if args.fitnet_loss_weight is not None:
            args.distill_loss_weight = args.fitnet_loss_weight * (args.distill_loss_weight or 1.0)
            args.fitnet_loss_weight = None
    for flag, facts in train_parser().facts().items():
        value = getattr(args, flag)
        if not facts.sets or flag not in explicit_flags or value is None or value is False:
            continue
        if args.loss in facts.sets:
            kwargs[facts.sets[args.loss]] = value
        else:
            note_idle(f"--loss {args.loss}", [flag])

    # --kd-temperature is timm's; losses call it by two names. In args.yaml it has the value that counts, and is one
    # that was set by hand.
    parameters = losses.get(args.loss, {})
    name = next((name for name in ("kd_temperature", "temperature") if name in parameters), None)
    kwargs |= typed
    if name:
        before = kwargs.get(name, parameters[name].default)
        if "kd_temperature" in explicit_flags and name not in typed and args.kd_temperature != before:
            kwargs[name] = args.kd_temperature
        args.kd_temperature = kwargs.get(name, before)
    args.loss_kwargs = kwargs


# ---------------------------------------------------------------- what has to be there


def check_paths(args: Namespace, elsewhere: bool = False) -> None:
    """Raise a `UserError` for images or labels on this disk that are not there.

    Args:
        args: resolved flags.
        elsewhere: data that are not here are on another machine.
    """
    for path in label_paths(args.teacher):
        file = path.rpartition("#")[0]
        if not (path.startswith("hf:") or os.path.exists(path) or os.path.exists(file)):
            raise UserError(f"--teacher {LABELS}{path}: no such file{near_path(path)}")
    if args.unlabeled and not args.unlabeled.lower().startswith(PREFIXES):
        unlabeled_roots(args.unlabeled)
    if not elsewhere:
        check_data_dir(args)


def check_data_dir(args: Namespace) -> None:
    """Raise a `UserError` if there is no ``--data-dir``; a ``--dataset`` answers for its own."""
    if args.data_dir and not args.dataset and not Path(args.data_dir).exists():
        raise UserError(f"--data-dir {args.data_dir}: no such folder{near_path(args.data_dir)}")
