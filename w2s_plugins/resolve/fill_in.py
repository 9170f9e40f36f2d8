"""Flags brought into this project's terms: what follows from others is filled in, values that have a form are read.

What goes together stands in `settings.rules`, what only timm, torch and plugins know in `train.py`, which calls this.
"""

import os
from argparse import Namespace
from collections.abc import Mapping
from inspect import Parameter
from pathlib import Path

from ..cli.parser import ExplicitFlags
from ..errors import UserError, logger, near_path, nearest
from ..no_label import NAME_OF_UNLABELED
from ..run.location import RunLocation
from ..settings.composite import count_view_epochs
from ..settings.concerns import DataSettings, EpisodeSettings, RunSettings, WeakTeacherSettings
from ..settings.concerns.data import has_no_truth
from ..settings.forms import (
    LABELS_PREFIX,
    MULTILABEL,
    PREFIXES,
    TEST_EPISODES,
    check_dataset_name,
    count_episodes,
    parse_long_tail,
    parse_noise,
    parse_shapes,
    unlabeled_roots,
)
from ..settings.programs import train_program
from ..settings.rules import note_idle
from ..settings.teacher_name import label_paths

Losses = Mapping[str, Mapping[str, Parameter]]  # the hyper-parameters of each distillation loss

BATCHES_OF_EPISODES = 200  # in an epoch

# defaults of the released code where they differ from those of the losses here
RELEASED_LOSS_DEFAULTS = {"kd": {"temperature": 1.0}, "dkd": {"beta": 2.0, "temperature": 1.0}}
RELEASED_WEIGHTS = {"task_loss_weight": "gt_loss_weight", "distill_loss_weight": "kd_loss_weight"}


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
    parse_long_tail(args.long_tail)
    if args.label_noise:
        parse_noise(args.label_noise)

    # How the student learns, on what data, and from whom.
    if args.task == MULTILABEL:
        # as timm's script has it
        if "smoothing" not in explicit_flags:
            args.smoothing = 0.0
        if "eval_metric" not in explicit_flags:
            args.eval_metric = "map"
        # Recipes refine labels, which is made for one class an image; who types it is told that.
        typed = explicit_flags.typed if isinstance(explicit_flags, ExplicitFlags) else ()
        if args.refine_labels and "refine_labels" not in typed:
            logger.info("--task multilabel: no --refine-labels, which is for one class an image")
            args.refine_labels = False
    _resolve_loss(args, losses)
    if explicit_flags & set(RELEASED_WEIGHTS.values()):
        for ours, theirs in RELEASED_WEIGHTS.items():
            if ours not in explicit_flags:  # each is 1 in the released code
                weight = getattr(args, theirs)
                setattr(args, ours, 1.0 if weight is None else weight)
    resolve_data_dir(args)
    if args.unlabeled:
        # Ground truth is left out, unless a part of each batch is to have it.
        is_all = has_no_truth(args.unlabeled, args.dataset, args.data_dir)
        if is_all and "val_split" not in explicit_flags:
            args.val_split = ""
        if not args.task_loss_weight:
            args.task_loss_weight, args.train_split = 0.0, NAME_OF_UNLABELED

    # What trains something else than a classifier by epochs of views.
    asked_once = label_paths(args.teacher) or (args.linear_probe and args.teacher)
    if asked_once and args.teacher_targets == "online":
        if "teacher_targets" in explicit_flags:
            raise UserError(
                "--teacher-targets online: labels, and the teacher of a --linear-probe, say once what an "
                "image is: leave the flag out"
            )
        args.teacher_targets = "cached"
    # Features of a linear probe are those of plain images, unless views are stored; there is no statistic to share.
    if args.linear_probe:
        args.no_aug = args.no_aug or not count_view_epochs(vars(args))
        args.dist_bn = ""
    if args.few_shot_eval:
        parse_shapes(args.few_shot_eval, args.queries, "--few-shot-eval")
        count_episodes(args.few_shot_eval, "--few-shot-eval", TEST_EPISODES, 2)
    episodes = EpisodeSettings.take(vars(args)).in_batch
    if episodes is not None:
        shape, count = episodes
        if "batch_size" in explicit_flags and args.batch_size != shape.size * count:
            note_idle(f"--episodic {args.episodic}", ["batch_size"])
        args.batch_size = shape.size * count
        if "val_split" not in explicit_flags:
            args.val_split = ""
        args.train_batches_per_epoch = args.train_batches_per_epoch or BATCHES_OF_EPISODES
    if args.loss is not None:
        _resolve_loss_kwargs(args, explicit_flags, losses)


def resolve_data_dir(args: Namespace) -> None:
    """Fill in ``data_dir`` from the positional argument or, where there is no other data, ``IMAGENET_DIR``."""
    args.data_dir, args.data = args.data_dir or args.data, None
    if args.dataset or vars(args).get("unlabeled"):  # validate has no such flag
        return
    args.data_dir = args.data_dir or os.environ.get("IMAGENET_DIR")
    if not args.data_dir:
        raise UserError(
            "no data: give --data-dir FOLDER (or set IMAGENET_DIR), or --dataset w2s/digits, which needs no files"
        )


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
    criteria = train_program().flags["task_loss"].choices or ()
    # of several labels some of them are distillation losses as well
    distils = bool(args.teacher) and args.task == MULTILABEL and args.loss in losses
    if args.loss in criteria and not distils:
        if args.teacher:
            raise UserError(
                f"--loss {args.loss} is a criterion on ground truth and would not use --teacher "
                f"{args.teacher}; use --task-loss {args.loss} with a distillation loss, or --teacher ''"
            )
        args.task_loss, args.loss = args.task_loss or args.loss, None
    if args.task_loss is None:
        # timm's older flags of single criteria, of which jsd comes first
        several = args.task == MULTILABEL
        args.task_loss = "bce" if args.bce_loss or several else "ce"
        if args.jsd_loss:
            args.task_loss = "jsd"

    # all else is a distillation loss, or a sum of them
    parts = [] if args.loss is None or args.loss in losses else args.loss.split("+")
    for part in map(str.strip, parts):
        if part not in losses:
            raise UserError(
                f"--loss: unknown loss '{part}'{nearest(part, [*losses, *criteria])}; distillation "
                f"losses: {', '.join(losses)}; criteria: {', '.join(criteria)}"
            )


def _resolve_loss_kwargs(args: Namespace, explicit_flags: set[str], losses: Losses) -> None:
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
    for name, flag in train_program().flags.items():
        value = getattr(args, name)
        if not flag.sets or name not in explicit_flags or value is None or value is False:
            continue
        if args.loss in flag.sets:
            kwargs[flag.sets[args.loss]] = value
        else:
            note_idle(f"--loss {args.loss}", [name])

    # --kd-temperature is timm's; losses call it by two names. In args.yaml it has the value that counts, and is one
    # that was set by hand.
    parameters = losses.get(args.loss, {})
    name = next((name for name in ("kd_temperature", "temperature") if name in parameters), None)
    kwargs |= typed
    if name:
        before = kwargs.get(name, parameters[name].default)
        if (
            "kd_temperature" in explicit_flags
            and name not in typed
            and args.kd_temperature != before
        ):
            kwargs[name] = args.kd_temperature
        args.kd_temperature = kwargs.get(name, before)
    args.loss_kwargs = kwargs


# ---------------------------------------------------------------- what has to be there


def check_paths(
    loading: DataSettings,
    teaching: WeakTeacherSettings,
    elsewhere: bool = False,
) -> None:
    """Raise a `UserError` for images or labels on this disk that are not there.

    Args:
        loading: names the images.
        teaching: names the labels.
        elsewhere: data that are not here are on another machine.
    """
    for path in teaching.label_paths:
        file = path.rpartition("#")[0]
        if not (path.startswith("hf:") or os.path.exists(path) or os.path.exists(file)):
            raise UserError(f"--teacher {LABELS_PREFIX}{path}: no such file{near_path(path)}")
    if loading.unlabeled and not loading.unlabeled.lower().startswith(PREFIXES):
        unlabeled_roots(loading.unlabeled)
    if not elsewhere:
        check_data_dir(loading)


def check_data_dir(settings: DataSettings) -> None:
    """Raise a `UserError` if there is no ``--data-dir``; a ``--dataset`` answers for its own."""
    folder = settings.data_dir
    if folder and not settings.dataset and not Path(folder).exists():
        raise UserError(f"--data-dir {folder}: no such folder{near_path(folder)}")


def locate_run(settings: RunSettings) -> RunLocation:
    """Return where a run is to be: in the folder of the checkpoint that it goes on from, unless another one is named."""
    root = Path(settings.output or "./output/train")
    if not settings.experiment and settings.resume not in ("", "auto"):
        path = Path(settings.resume)
        folder = path if path.is_dir() else path.parent
        if (folder / "args.yaml").is_file():
            return RunLocation(folder.parent, folder.name, settings.resume)
    return RunLocation(root, settings.experiment, settings.resume)
