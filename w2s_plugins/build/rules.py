"""Which flags do not go together, by topic. What a flag needs beside it is declared with it (``needs``)."""

import argparse
from collections.abc import Callable
from typing import NamedTuple

from ..cli.declare import dest_of, option
from ..cli.forms import (
    KNN,
    TEST_EPISODES,
    check_dataset_name,
    count_episodes,
    parse_data_errors,
    parse_noise,
    parse_selection,
    parse_shapes,
    parse_test_sets,
)
from ..cli.parser import train_parser
from ..cli.values import split_names
from ..errors import UserError, nearest
from .resolve import (
    batch_of_episodes,
    is_scored_by_teacher,
    is_semi_supervised,
    label_paths,
    mixes,
    stores_targets,
    teacher_models,
    view_epochs,
)

# element-wise ones: their step on a part of a parameter is that part of their step
SHARDED_OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "nadam", "nadamw", "radam", "adamax", "adagrad", "adadelta",
                      "adabelief", "rmsprop", "rmsproptf", "lion", "lookahead_adamw")
ABOUT_MODELS = ("teacher_checkpoint", "teacher_class_map", "teacher_topk", "teacher_img_size", "teacher_kwargs",
                "use_ema_teacher", "prompts")

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
    "--teacher labels:PATH": lambda args: label_paths(args.teacher),
    "models beside --teacher labels:PATH": lambda args: label_paths(args.teacher) and teacher_models(args.teacher),
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
                            "--teacher labels:PATH", "--teacher-targets cached"),
             "its batches are episodes of a few classes"),
    Excludes("--class-list", ("--class-map",), "both choose the classes"),
    # the model and its teachers
    Excludes("--finetune", ("--initial-checkpoint",), "one would overwrite the weights of the other"),
    Excludes("--split-bn", ("--sync-bn", "--tune", "--freeze"), "it makes new batch norms, all of which are trained"),
    Excludes("--teacher-assign student", ("--teacher-weights learned",), "it leaves no weights to be learned"),
    Excludes("--teacher", ("--kd-model-name",), "both name a teacher; --kd-model-name is for timm's own tasks"),
    # the student in parts
    Excludes("--linear-probe", ("--tune", "--freeze", "--episodic", "--few-shot-eval", "--kd-model-name",
                                "models beside --teacher labels:PATH"),
             "it trains one linear layer on stored features, and no encoder"),
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
    """Raise a `UserError` for the first of all rules that the flags of ``train_w2s.py`` break."""
    for rule in EXCLUDES:
        other = next((other for other in rule.others if in_use(args, other)), None)
        if other and in_use(args, rule.flag):
            raise UserError(f"{rule.flag} cannot be combined with {other}: {rule.why}")
    for topic in (_of_the_model, _of_views, _of_the_loss, _of_teachers, _of_stored_labels, _of_selected_samples,
                  _of_sharding, _of_evaluation, _of_chosen_epochs):
        _check(topic(args))


def check_validation(args: argparse.Namespace, given: set[str]) -> None:
    """Check the flags of ``validate.py`` against each other."""
    check_dataset_name(args.dataset)
    parse_test_sets(args.val_sets)
    if args.few_shot:
        parse_shapes(args.few_shot, args.queries, "--few-shot")
        count_episodes(args.few_shot, "--few-shot", TEST_EPISODES, 2)
        other_sets = given & {"train_counts", "val_sets"}
        _check([
            (len(split_names(args.teacher)) > 1,
             "--few-shot: several teachers have no common features; give one --teacher"),
            (args.naflex_loader or args.ceiling_checkpoint or args.ceiling_acc is not None or other_sets,
             "--few-shot cannot be combined with --naflex-loader, --train-counts, --val-sets or a ceiling"),
        ])


def _check(rules: Rules) -> None:
    for broken, message in rules:
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
    ]


def _of_views(args: argparse.Namespace) -> Rules:
    odd = next((n for n in [*(args.train_batch_sizes or ()), args.batch_size] if n % 2), None)
    sizes = args.train_img_sizes or ()
    probs = args.train_size_probs
    episodes = batch_of_episodes(args) if args.episodic else None
    lists = {"--train-batch-sizes": args.train_batch_sizes, "--train-size-probs": probs}
    return [
        (args.task_loss == "jsd" and args.aug_splits < 2, "the jsd criterion needs --aug-splits of at least 2"),
        (mixes(args) and odd, f"mixup and cutmix pair samples: --batch-size {odd} must be even"),
        (args.episodic and args.batch_size != episodes, f"--batch-size {args.batch_size}: the episodes of --episodic "
         f"{args.episodic} with {args.queries} queries a class are {episodes} images; leave the flag out, or give "
         "another number of them: --episodic NxK:E"),
        (is_semi_supervised(args) and args.linear_probe, "--linear-probe cannot be combined with labelled samples "
         "beside --unlabeled: leave it out, or give --task-loss-weight 0"),
        (is_semi_supervised(args) and args.batch_size < 2, f"--batch-size {args.batch_size} has no room for labelled "
         "samples beside the others: expected 2 or more"),
        *((values and len(values) != len(sizes), f"{flag} has {len(values or ())} values for {len(sizes)} sizes")
          for flag, values in lists.items()),
        (probs and not sum(probs), "--train-size-probs: expected numbers of which some are above 0"),
    ]


def _of_the_loss(args: argparse.Namespace) -> Rules:
    if args.loss is None:
        return [(args.task_loss_weight == 0 and not args.teacher and not args.kd_model_name,
                 "--task-loss-weight 0 leaves ground truth out, and without a teacher nothing is left to learn from: "
                 "give --teacher NAME")]
    return [
        (args.kd_model_name, f"--kd-model-name runs timm's own distillation; with --loss {args.loss} use --teacher "
         f"{args.kd_model_name}"),
        (not args.teacher, f"--loss {args.loss} needs a teacher: give --teacher NAME (and --teacher-checkpoint FILE)"),
    ]


def _of_teachers(args: argparse.Namespace) -> Rules:
    chooses = args.teacher_assign == "student" or args.teacher_weights == "learned"
    return [
        (chooses and len(split_names(args.teacher)) < 2, "--teacher-assign student and --teacher-weights learned need "
         "several teachers: --teacher NAME,NAME"),
        (args.teacher_topk is not None and not stores_targets(args), "--teacher-topk is for cached targets: give "
         "--teacher NAME and --teacher-targets cached or cached-views:N"),
        (args.refine_labels and args.teacher and args.teacher_targets == "online", "--refine-labels is fitted to "
         "stored answers: give --teacher-targets cached, or --no-refine-labels"),
    ]


def _of_stored_labels(args: argparse.Namespace) -> Rules:
    if not label_paths(args.teacher) or teacher_models(args.teacher):
        return []
    idle = next((option(name) for name in ABOUT_MODELS if getattr(args, name)), None)
    decides = args.clean_select and not args.clean_select_model and parse_selection(args.clean_select)[0] != "file"
    return [
        (idle, f"--teacher {args.teacher}: {idle} is about a model, and there are labels alone: leave it out"),
        (view_epochs(args) and not args.linear_probe, f"--teacher {args.teacher}: --teacher-targets "
         f"{args.teacher_targets} is about a model, and there are labels alone: leave it out"),
        (decides, f"--teacher {args.teacher}: --clean-select {args.clean_select} asks a teacher about images, which "
         "labels cannot answer"),
    ]


def _of_selected_samples(args: argparse.Namespace) -> Rules:
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
        (args.opt.lower() not in SHARDED_OPTIMIZERS, f"--fsdp gives the optimizer parts of the weights, with which "
         f"--opt {args.opt} does not work{nearest(args.opt, SHARDED_OPTIMIZERS)}; one of "
         f"{', '.join(SHARDED_OPTIMIZERS)}"),
        (args.model_ema and args.model_dtype == "bfloat16", "--model-ema rounds bfloat16 weights at random, alike on "
         "all processes, which --fsdp cannot: use --amp --amp-dtype bfloat16 in place of --model-dtype"),
    ]


def _of_evaluation(args: argparse.Namespace) -> Rules:
    compares, models = args.eval_metric == "agreement", teacher_models(args.teacher)
    return [
        (args.eval_metric == "few-shot" and not args.few_shot_eval,
         "--eval-metric few-shot needs --few-shot-eval NxK"),
        (args.episodic and args.val_split, f"--val-split {args.val_split}: with --episodic no classifier of all "
         "classes is trained; leave it out, and measure with --few-shot-eval 5x1"),
        (args.long_tail == "always" and not args.val_split and args.select_split is None,
         "--long-tail always measures on a validation split: give --val-split or --select-split"),
        (compares and not args.teacher, "--eval-metric agreement needs a --teacher"),
        (compares and models and args.no_teacher_eval,
         "--eval-metric agreement asks the teacher about the validation split: leave out --no-teacher-eval"),
        (compares and not models and args.select_split is None,
         f"--eval-metric agreement: --teacher {args.teacher} says nothing of the validation split: give --select best "
         "and --select-split, which holds out some of what has labels"),
    ]


def _of_chosen_epochs(args: argparse.Namespace) -> Rules:
    part = args.select_split
    fits = part is None or (part >= 1 if isinstance(part, int) else 0 < part < 1)
    return [
        (not fits, f"--select-split {part}: expected a share between 0 and 1, or a count of at least 1"),
        (part is not None and args.no_teacher_eval and is_scored_by_teacher(args),
         "--select-split without ground truth ranks epochs by the agreement with the teacher: leave out "
         "--no-teacher-eval"),
        (args.select == "best" and not args.val_split and part is None and args.eval_metric != "few-shot",
         "--select best needs a --val-split, a --select-split, or --eval-metric few-shot"),
    ]
