"""Which flags do not go together: terms and rules. What a flag excludes, and needs beside it, is in flags.yaml."""

from argparse import Namespace
from collections.abc import Callable

from ..cli.declare import dest_of, read_table
from ..cli.forms import (
    DIGITS,
    KNN,
    TEST_EPISODES,
    check_dataset_name,
    count_episodes,
    parse_long_tail,
    parse_selection,
    parse_shapes,
)
from ..cli.parser import train_parser
from ..cli.values import split_names
from ..errors import UserError
from ..teachers.name import parse_teachers
from .resolve import (
    has_labels,
    has_labels_alone,
    has_no_truth,
    is_scored_by_teacher,
    is_semi_supervised,
    mixes,
    note_idle,
    stores_targets,
    teacher_models,
    view_epochs,
)

# element-wise ones: their step on a part of a parameter is that part of their step
SHARDED_OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "nadam", "nadamw", "radam", "adamax", "adagrad", "adadelta",
                      "adabelief", "rmsprop", "rmsproptf", "lion", "lookahead_adamw")

Test = Callable[[Namespace], object]


def _selection_rule(args: Namespace) -> str | None:
    return parse_selection(args.clean_select)[0] if args.clean_select else None


def _asks_the_teacher(args: Namespace) -> bool:
    return _selection_rule(args) not in (None, "file") and not args.clean_select_model


def _has_agreement(args: Namespace) -> bool:
    if teacher_models(args.teacher):
        return not args.no_teacher_eval
    return has_labels_alone(args) and args.select_split is not None


def _is_share_or_count(part: float | int | None) -> bool:
    return part is None or 0 < part < 1 or (isinstance(part, int) and part >= 1)


# ---------------------------------------------------------------- pairs


OWN_IMAGES = "--dataset w2s/digits, which brings its own images"
# what several flags, or the values of one, come to
TERMS: dict[str, Test] = {
    "--mixup and --cutmix": mixes,
    "--teacher-targets cached": stores_targets,
    "--teacher-targets cached-views:N": lambda args: view_epochs(args) and not args.linear_probe,
    "--clean-select by labels": lambda args: _selection_rule(args) == KNN,
    "--clean-select by the teacher": _asks_the_teacher,
    "--teacher labels:PATH": has_labels,
    "--teacher labels:PATH alone": has_labels_alone,
    "models beside --teacher labels:PATH": lambda args: has_labels(args) and teacher_models(args.teacher),
    "labelled samples in the batches of --unlabeled": is_semi_supervised,
    "--unlabeled without --data-dir or --dataset": has_no_truth,
    "a single --teacher": lambda args: (
        len(parse_teachers(args.teacher)) < 2 or (args.labels_combine and has_labels_alone(args))),
    "--linear-probe without cached-views:N": lambda args: args.linear_probe and not view_epochs(args),
    "no --reprob and no --split-bn": lambda args: not args.reprob and not args.split_bn,
    OWN_IMAGES: lambda args: args.dataset == DIGITS and not args.unlabeled,
    "no validation split": lambda args: not args.val_split and args.select_split is None,
    "--clean-select file:FILE": lambda args: _selection_rule(args) == "file",
    "--model-ema with --model-dtype bfloat16": lambda args: args.model_ema and args.model_dtype == "bfloat16",
}

def in_use(args: Namespace, what: str) -> bool:
    """True where one of `TERMS`, a flag with this value (``--tune head``), or a flag with any but its default is used.
    """
    if what in TERMS:
        return bool(TERMS[what](args))
    flag, _, value = what.partition(" ")
    action = train_parser().by_dest()[dest_of(flag)]
    found = getattr(args, action.dest)
    if value:
        return str(found) == value
    return bool(found) and found not in (action.own_default, action.facts.neutral)


def leave_idle_flags(args: Namespace) -> None:
    """Log the flags that have no effect in the mode of this run (``idle``), and put their defaults in their place.

    A file of flags may set them for other modes.
    """
    defaults, idle = train_parser().defaults(), {}
    for name, facts in train_parser().facts().items():
        mode = next((mode for mode in facts.idle if in_use(args, mode)), None)
        if mode and getattr(args, name) not in (defaults[name], facts.neutral):
            setattr(args, name, defaults[name])
            idle.setdefault(mode, []).append(name)
    for mode, names in idle.items():
        note_idle(mode, names)


# ---------------------------------------------------------------- what has a number, or words of its own


# what is said, with the values of flags in braces, where it is true
RULES: dict[str, Test] = {
    # the model and its views
    "--naflex-loader: a NaFlexVit is trained here on images of one size, without this flag":
        lambda args: args.naflex_loader,
    "--torchscript cannot train here: use --torchcompile":
        lambda args: args.torchscript,
    "--resume auto looks for the run's own folder: name it with --experiment":
        lambda args: args.resume == "auto" and not args.experiment,
    "--aug-splits {aug_splits}: expected 0 or at least 2, with the jsd criterion at least 2":
        lambda args: args.aug_splits < 2 and (args.aug_splits != 0 or args.task_loss == "jsd"),
    "mixup and cutmix pair samples: --batch-size and --train-batch-sizes must be even":
        lambda args: mixes(args) and any(size % 2 for size in [args.batch_size, *(args.train_batch_sizes or ())]),
    "--train-batch-sizes and --train-size-probs: expected as many numbers as --train-img-sizes has":
        lambda args: any(values and len(values) != len(args.train_img_sizes)
                         for values in (args.train_batch_sizes, args.train_size_probs)),
    "--train-size-probs: expected numbers of which some are above 0":
        lambda args: args.train_size_probs and not sum(args.train_size_probs),
    # what is learned, and from whom
    "--task-loss-weight 0 leaves ground truth out, and without a teacher nothing is left to learn from: give --teacher":
        lambda args: args.task_loss_weight == 0 and not (
            args.loss or args.teacher or args.kd_model_name or args.unlabeled),
    "--unlabeled: images without labels need a teacher that says what is on them: --teacher NAME (and "
    "--teacher-checkpoint FILE)":
        lambda args: args.unlabeled and not args.teacher,
    "--loss {loss} needs a teacher: give --teacher NAME (and --teacher-checkpoint FILE)":
        lambda args: args.loss and not args.teacher,
    "--refine-labels is fitted to stored answers: give --teacher-targets cached, or --no-refine-labels":
        lambda args: args.refine_labels and args.teacher and not stores_targets(args),
    "--clean-select {clean_select} needs a model that decides: --clean-select-model NAME, or a --teacher":
        lambda args: _asks_the_teacher(args) and not args.teacher,
    # the student in parts
    f"--fsdp: the step of --opt {{opt}} is not that of its parts; expected one of {', '.join(SHARDED_OPTIMIZERS)}":
        lambda args: args.fsdp and args.opt.lower() not in SHARDED_OPTIMIZERS,
    # evaluation and the choice of an epoch
    "--val-split {val_split}: --unlabeled images have no labels; give a labelled split by --data-dir or --dataset":
        lambda args: has_no_truth(args) and args.val_split,
    "--val-split {val_split}: --episodic trains no classifier of all classes; measure with --few-shot-eval 5x1":
        lambda args: args.episodic and args.val_split,
    "--eval-metric few-shot needs --few-shot-eval NxK":
        lambda args: args.eval_metric == "few-shot" and not args.few_shot_eval,
    "--eval-metric agreement asks a --teacher about the validation split, without --no-teacher-eval, or compares "
    "labels with a part that --select-split holds out":
        lambda args: args.eval_metric == "agreement" and not _has_agreement(args),
    "--select-split {select_split}: expected a share between 0 and 1, or a count of at least 1":
        lambda args: not _is_share_or_count(args.select_split),
    "--select-split without ground truth ranks epochs by the agreement with the teacher: leave out --no-teacher-eval":
        lambda args: args.select_split is not None and args.no_teacher_eval and is_scored_by_teacher(args),
    "--select best needs a --val-split, a --select-split, or --eval-metric few-shot":
        lambda args: (args.select == "best" and not args.val_split and args.select_split is None
                      and args.eval_metric != "few-shot"),
}


def check_rules(args: Namespace) -> None:
    """Raise a `UserError` for the first of all rules that the flags of ``train_w2s.py`` break."""
    for pair in read_table("flags.yaml")["excludes"]:
        other = next((other for other in pair["others"] if in_use(args, other)), None)
        if other and in_use(args, pair["flag"]):
            raise UserError(f"{pair['flag']} cannot be combined with {other}: {pair['why']}")
    for message, is_broken in RULES.items():
        if is_broken(args):
            raise UserError(message.format(**vars(args)))


def check_validation(args: Namespace) -> None:
    """Check the flags of ``validate.py`` against each other."""
    check_dataset_name(args.dataset)
    parse_long_tail(args.long_tail)
    if args.data_dir and args.dataset == DIGITS:
        note_idle(OWN_IMAGES, ["data_dir"])
    if not args.few_shot:
        return
    parse_shapes(args.few_shot, args.queries, "--few-shot")
    count_episodes(args.few_shot, "--few-shot", TEST_EPISODES, 2)
    if len(split_names(args.teacher)) > 1:
        raise UserError("--few-shot: several teachers have no common features; give one --teacher")
    if args.naflex_loader or args.ceiling_acc is not None:
        raise UserError("--few-shot cannot be combined with --naflex-loader or --ceiling-acc")
