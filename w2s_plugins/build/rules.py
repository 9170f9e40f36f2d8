"""Which flags do not go together, by topic. What a flag needs beside it is declared with it (``needs``)."""

import argparse
from collections.abc import Callable
from typing import NamedTuple

from ..cli.declare import dest_of
from ..cli.forms import (
    KNN,
    loss_weights,
    parse_data_errors,
    parse_noise,
    parse_selection,
)
from ..cli.parser import train_parser
from ..cli.values import split_names
from ..errors import UserError, nearest
from .resolve import (
    is_scored_by_teacher,
    is_semi_supervised,
    mixes,
    stores_targets,
    teacher_models,
    view_epochs,
)

# element-wise ones: their step on a part of a parameter is that part of their step
SHARDED_OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "nadam", "nadamw", "radam", "adamax", "adagrad", "adadelta",
                      "adabelief", "rmsprop", "rmsproptf", "lion", "lookahead_adamw")

Rules = list[tuple[object, str]]  # what is wrong where it is true, and what to say of it


# ---------------------------------------------------------------- pairs


class Excludes(NamedTuple):
    """What cannot be combined with a flag, each written as `in_use` reads it, and why."""

    flag: str
    others: tuple[str, ...]
    why: str


# what several flags, or the values of one, come to
TERMS: dict[str, Callable[[argparse.Namespace], object]] = {
    "--mixup and --cutmix": mixes,
    "--teacher-targets cached": stores_targets,
    "--teacher-targets cached-views:N": view_epochs,
    "--refine-labels": lambda args: args.refine_labels and args.teacher,
    "--clean-select by labels": lambda args: args.clean_select and parse_selection(args.clean_select)[0] == KNN,
    "--data-errors skip:N": lambda args: parse_data_errors(args.data_errors) is not None,
    "labelled samples in the batches of --unlabeled": is_semi_supervised,
    "--unlabeled without --data-dir or --dataset": lambda args: args.unlabeled and not (args.data_dir or args.dataset),
}

EXCLUDES = (
    # views of an image
    Excludes("--aug-splits", ("--mixup and --cutmix", "--no-aug", "--no-prefetcher", "--train-img-sizes",
                              "--teacher-targets cached"),
             "a batch holds several views of each image, in the order of the loader"),
    Excludes("--teacher-targets cached-views:N", ("--aug-repeats", "--train-img-sizes", "--mixup-off-epoch",
                                                  "--resplit"),
             "views that come round again must not depend on batch or epoch; use --teacher-targets online"),
    Excludes("--data-errors skip:N", ("--episodic", "--linear-probe", "--refine-labels"),
             "every sample is needed there; use --data-errors raise"),
    Excludes("--epoch-slice", ("--teacher-targets cached-views:N", "--aug-repeats", "--episodic", "--unlabeled"),
             "it lets labelled samples come round again"),
    # images without labels
    Excludes("--unlabeled", ("--label-noise", "--clean-select by labels", "--episodic", "--class-list",
                            "--long-tail always"),
             "its images have no labels"),
    Excludes("--unlabeled without --data-dir or --dataset", ("--task-loss-weight", "--class-map", "--few-shot-eval"),
             "its images have no labels"),
    Excludes("labelled samples in the batches of --unlabeled", ("--mixup and --cutmix", "--aug-splits", "--resplit",
                                                               "--train-img-sizes"),
             "they stand first in the batch; leave out --task-loss-weight, or this"),
    # episodes of few classes
    Excludes("--episodic", ("--mixup and --cutmix", "--aug-splits", "--aug-repeats", "--train-img-sizes",
                            "--epoch-repeats", "--kd-model-name", "--select-split", "--teacher-class-map",
                            "--teacher-weights learned", "--teacher-assign student",
                            "--teacher-targets cached"),
             "its batches are episodes of a few classes"),
    Excludes("--class-list", ("--class-map",), "both choose the classes"),
    # the model and its teachers
    Excludes("--finetune", ("--initial-checkpoint",), "one would overwrite the weights of the other"),
    Excludes("--split-bn", ("--sync-bn", "--tune", "--freeze"), "it makes new batch norms, all of which are trained"),
    Excludes("--teacher-assign student", ("--teacher-weights learned",), "it leaves no weights to be learned"),
    # the student in parts
    Excludes("--fsdp", ("--few-shot-eval", "--episodic", "--kd-model-name", "--clip-mode agc",
                        "--sync-bn"),
             "no process has the whole student"),
)


def in_use(args: argparse.Namespace, what: str) -> bool:
    """True where one of `TERMS`, a flag with this value (``--tune head``), or a flag with any but its default is used.
    """
    if what in TERMS:
        return bool(TERMS[what](args))
    flag, _, value = what.partition(" ")
    action = train_parser().by_dest()[dest_of(flag)]
    found = getattr(args, action.dest)
    if value:
        return str(found) == value
    return bool(found) and found not in (action.own_default, action.facts.off)


def check_rules(args: argparse.Namespace) -> None:
    """Raise a `UserError` for the first of all rules that the flags break."""
    for rule in EXCLUDES:
        other = next((other for other in rule.others if in_use(args, other)), None)
        if other and in_use(args, rule.flag):
            raise UserError(f"{rule.flag} cannot be combined with {other}: {rule.why}")
    topics = (_of_the_model, _of_views, _of_teachers, _of_labels, _of_sharding, _of_evaluation, _of_selection)
    for topic in topics:
        for broken, message in topic(args):
            if broken:
                raise UserError(message)


# ---------------------------------------------------------------- what has a number, or words of its own


def _of_the_model(args: argparse.Namespace) -> Rules:
    return [
        (args.naflex_loader, "--naflex-loader: timm's loader of patches does not say of which samples a batch is, by "
         "which teacher, views and resumption go: a NaFlexVit trains here on images of one size, without the flag"),
        (args.torchscript, "--torchscript cannot train here, TorchScript is deprecated: use --torchcompile"),
        (args.resume == "auto" and not args.experiment,
         "--resume auto looks for the run's own folder: name it with --experiment"),
        (args.start_epoch is not None and args.start_epoch >= args.epochs,
         f"--start-epoch {args.start_epoch} is not below --epochs {args.epochs}"),
    ]


def _of_views(args: argparse.Namespace) -> Rules:
    odd = next((n for n in [*(args.train_batch_sizes or ()), args.batch_size] if n % 2), None)
    sizes = args.train_img_sizes or ()
    probs = args.train_size_probs
    lists = {"--train-batch-sizes": args.train_batch_sizes, "--train-size-probs": probs}
    return [
        (args.aug_splits == 1, "--aug-splits 1 is no split: give 2 or more"),
        (args.task_loss == "jsd" and args.aug_splits < 2, "the jsd criterion needs --aug-splits of at least 2"),
        (mixes(args) and odd, f"mixup and cutmix pair samples: --batch-size {odd} must be even"),
        (is_semi_supervised(args) and args.batch_size < 2, f"--batch-size {args.batch_size} has no room for labelled "
         "samples beside the others: expected 2 or more"),
        (args.train_size_schedule == "progressive" and len(sizes) < 2,
         "--train-size-schedule progressive needs at least 2 --train-img-sizes"),
        *((values and len(values) != len(sizes), f"{flag} has {len(values or ())} values for {len(sizes)} sizes")
          for flag, values in lists.items()),
        (probs and not sum(probs), "--train-size-probs: expected numbers of which some are above 0"),
    ]


def _holds_out(args: argparse.Namespace) -> bool:
    """True where something is measured with ground truth while the student is trained."""
    return bool(args.val_split) or (args.select_split is not None and not args.unlabeled)


def _of_teachers(args: argparse.Namespace) -> Rules:
    chooses = args.teacher_assign == "student" or args.teacher_weights == "learned"
    return [
        (chooses and len(split_names(args.teacher)) < 2, "--teacher-assign student and --teacher-weights learned need "
         "several teachers: --teacher NAME,NAME"),
        (args.teacher_topk is not None and not stores_targets(args), "--teacher-topk is for cached targets: give "
         "--teacher NAME and --teacher-targets cached or cached-views:N"),
        (args.refine_labels and args.teacher and args.teacher_targets == "online", "--refine-labels is fitted to "
         "stored answers: give --teacher-targets cached, or --no-refine-labels"),
        (args.task_loss_weight == 0 and not args.teacher and not args.kd_model_name,
         "--task-loss-weight 0 leaves ground truth out, and without a teacher nothing is left to learn from: give "
         "--teacher NAME"),
        (args.teacher_until_passed and not loss_weights(args.task_loss_weight, args.distill_loss_weight)[0],
         "--teacher-until-passed goes on with ground truth, which "
         + ("--unlabeled leaves out unless a --task-loss-weight is given" if args.unlabeled
            else "--task-loss-weight 0 leaves out")),
        (args.teacher_until_passed and (
            args.no_teacher_eval or not teacher_models(args.teacher) or not _holds_out(args)),
         "--teacher-until-passed compares the student with a --teacher that can be asked about a split with ground "
         "truth: give --val-split or --select-split, and leave out --no-teacher-eval"),
    ]


def _of_labels(args: argparse.Namespace) -> Rules:
    if args.label_noise:
        parse_noise(args.label_noise)
    rule = parse_selection(args.clean_select)[0] if args.clean_select else None
    name = args.clean_select_model
    return [
        (name and rule in (None, "file"),
         "--clean-select-model needs --clean-select knn:K, entropy:R or confidence:P"),
        (rule not in (None, "file") and not name and not args.teacher,
         f"--clean-select {args.clean_select} needs a model that decides: --clean-select-model NAME, or a --teacher"),
    ]


def _of_sharding(args: argparse.Namespace) -> Rules:
    if not args.fsdp:
        return []
    return [
        (args.device.partition(":")[0] not in ("cpu", "cuda"), f"--fsdp runs on cuda and cpu, not {args.device}"),
        (args.opt.lower() not in SHARDED_OPTIMIZERS, f"--fsdp gives the optimizer parts of the weights, with which "
         f"--opt {args.opt} does not work{nearest(args.opt, SHARDED_OPTIMIZERS)}; one of "
         f"{', '.join(SHARDED_OPTIMIZERS)}"),
        (args.model_ema and args.model_dtype == "bfloat16", "--model-ema rounds bfloat16 weights at random, alike on "
         "all processes, which --fsdp cannot: use --amp --amp-dtype bfloat16 in place of --model-dtype"),
    ]


def _of_evaluation(args: argparse.Namespace) -> Rules:
    asked = args.eval_metric == "agreement"
    return [
        (args.eval_metric == "few-shot" and not args.few_shot_eval,
         "--eval-metric few-shot needs --few-shot-eval NxK"),
        (args.episodic and args.val_split, f"--val-split {args.val_split}: with --episodic no classifier of all "
         "classes is trained; leave it out, and measure with --few-shot-eval 5x1"),
        (args.long_tail == "always" and not args.val_split and args.select_split is None,
         "--long-tail always measures on a validation split: give --val-split or --select-split"),
        (asked and not args.teacher, "--eval-metric agreement needs a --teacher"),
        (asked and args.no_teacher_eval and teacher_models(args.teacher),
         "--eval-metric agreement asks the teacher about the validation split: leave out --no-teacher-eval"),
        (asked and args.select_split is None and not teacher_models(args.teacher),
         f"--eval-metric agreement: --teacher {args.teacher} says nothing of the validation split: give --select best "
         "and --select-split, which holds out some of what has labels"),
    ]


def _of_selection(args: argparse.Namespace) -> Rules:
    part = args.select_split
    is_count = isinstance(part, int)
    return [
        (part is not None and not (part >= 1 if is_count else 0 < part < 1),
         f"--select-split {part}: expected a share between 0 and 1, or a count of at least 1"),
        (part is not None and args.no_teacher_eval and is_scored_by_teacher(args),
         "--select-split without ground truth ranks epochs by the agreement with the teacher: leave out "
         "--no-teacher-eval"),
        (args.select == "best" and not args.val_split and part is None and args.eval_metric != "few-shot",
         "--select best needs a --val-split, a --select-split, or --eval-metric few-shot"),
    ]
