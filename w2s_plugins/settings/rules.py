"""Which flags do not go together: terms and rules. What a flag excludes, and needs beside it, is in flags.yaml."""

from argparse import Namespace
from collections.abc import Callable
from typing import NamedTuple

from ..cli.declare import dest_of, read_table
from ..cli.forms import (
    DIGITS,
    MULTILABEL,
    TEST_EPISODES,
    check_dataset_name,
    count_episodes,
    parse_long_tail,
    parse_shapes,
)
from ..cli.parser import train_parser
from ..cli.values import split_names
from ..errors import UserError
from .composite import TrainSettings, ValidateSettings
from .resolve import note_idle

# element-wise ones: their step on a part of a parameter is that part of their step
SHARDED_OPTIMIZERS = (
    "sgd",
    "momentum",
    "adam",
    "adamw",
    "nadam",
    "nadamw",
    "radam",
    "adamax",
    "adagrad",
    "adadelta",
    "adabelief",
    "rmsprop",
    "rmsproptf",
    "lion",
    "lookahead_adamw",
)


# ---------------------------------------------------------------- terms


class Term(NamedTuple):
    """What several flags, or the values of one, come to.

    Args:
        shown: how messages call it.
        holds: whether it is true of the settings of a run.
    """

    shown: str
    holds: Callable[[TrainSettings], object]


def has_models_beside_labels(settings: TrainSettings) -> bool:
    return settings.teacher.has_labels and bool(settings.teacher.models)


def has_one_teacher(settings: TrainSettings) -> bool:
    """A crowd that is combined is one, too."""
    combined = settings.teacher.labels_combine and settings.teacher.has_labels_alone
    return len(settings.teacher.names) < 2 or bool(combined)


def is_probe_of_plain_images(settings: TrainSettings) -> bool:
    return settings.student.linear_probe and not settings.teacher.view_epochs


def stores_views(settings: TrainSettings) -> bool:
    return bool(settings.teacher.view_epochs) and not settings.student.linear_probe


def has_images_of_its_own(settings: TrainSettings) -> bool:
    return settings.data.dataset == DIGITS and not settings.data.unlabeled


def has_no_evaluation(settings: TrainSettings) -> bool:
    return not settings.data.val_split and settings.data.select_split is None


def averages_in_bfloat16(settings: TrainSettings) -> bool:
    return settings.optim.model_ema and settings.compute.model_dtype == "bfloat16"


OWN_IMAGES = "--dataset w2s/digits, which brings its own images"

# by the names that flags.yaml has for them
TERMS = {
    "mixing": Term("--mixup and --cutmix", lambda settings: settings.views.mixes),
    "stored_targets": Term(
        "--teacher-targets cached", lambda settings: settings.teacher.stores_targets
    ),
    "stored_views": Term("--teacher-targets cached-views:N", stores_views),
    "selection_by_labels": Term(
        "--clean-select by labels", lambda settings: settings.labels.selects_by_labels
    ),
    "selection_by_teacher": Term(
        "--clean-select by the teacher", lambda settings: settings.labels.asks_the_teacher
    ),
    "selection_of_file": Term(
        "--clean-select file:FILE", lambda settings: settings.labels.selection_rule == "file"
    ),
    "labels": Term("--teacher labels:PATH", lambda settings: settings.teacher.has_labels),
    "labels_alone": Term(
        "--teacher labels:PATH alone", lambda settings: settings.teacher.has_labels_alone
    ),
    "models_beside_labels": Term("models beside --teacher labels:PATH", has_models_beside_labels),
    "one_teacher": Term("a single --teacher", has_one_teacher),
    "semi_supervised": Term(
        "labelled samples in the batches of --unlabeled",
        lambda settings: settings.data.semi_supervised,
    ),
    "no_truth": Term(
        "--unlabeled without --data-dir or --dataset", lambda settings: settings.data.has_no_truth
    ),
    "weak_labels_alone": Term(
        "--unlabeled without --task-loss-weight",
        lambda settings: settings.data.learns_weak_labels_alone,
    ),
    "own_images": Term(OWN_IMAGES, has_images_of_its_own),
    "no_evaluation": Term("no validation split", has_no_evaluation),
    "probe_of_plain_images": Term(
        "--linear-probe without cached-views:N", is_probe_of_plain_images
    ),
    "nothing_to_split": Term(
        "no --reprob and no --split-bn",
        lambda settings: not settings.views.reprob and not settings.student.split_bn,
    ),
    "average_in_bfloat16": Term("--model-ema with --model-dtype bfloat16", averages_in_bfloat16),
}


def in_use(settings: TrainSettings, what: str) -> bool:
    """Return whether one of `TERMS`, a flag with this value (``--tune head``), or a flag with any but its default is
    used.
    """
    if what in TERMS:
        return bool(TERMS[what].holds(settings))
    flag, _, value = what.partition(" ")
    dest, parser = dest_of(flag), train_parser()
    used = settings.flags[dest]
    if value:
        return str(used) == value
    return bool(used) and used not in (parser.defaults()[dest], parser.facts()[dest].neutral)


def shown_as(what: str) -> str:
    """Return how messages call what `in_use` is asked about."""
    return TERMS[what].shown if what in TERMS else what


# what is made for labels of one class an image alone; the kind is known once the data are open
ONE_CLASS_ONLY = (
    Term("--class-list", lambda settings: settings.data.class_list),
    Term("--long-tail", lambda settings: settings.evaluation.long_tail not in ("auto", "never")),
    Term("--kd-model-name", lambda settings: settings.loss.kd_model_name),
    Term("--aug-splits", lambda settings: settings.views.aug_splits),
    Term("--episodic", lambda settings: settings.episodes.episodic),
    Term("--few-shot-eval", lambda settings: settings.episodes.few_shot_eval),
    Term("--label-noise", lambda settings: settings.labels.label_noise),
    Term("--refine-labels", lambda settings: settings.teacher.refine_labels),
    Term("--teacher-assign posterior", lambda settings: settings.teacher.weighs_evidence),
    Term("--clean-select knn", lambda settings: settings.labels.selects_by_labels),
)


def leave_idle_flags(args: Namespace) -> None:
    """Log the flags that have no effect in the mode of this run (``idle``), and put their defaults in their place.

    A file of flags may set them for other modes.
    """
    defaults = train_parser().defaults()
    idle: dict[str, list[str]] = {}
    settings = TrainSettings.from_flags(vars(args))
    for name, facts in train_parser().facts().items():
        mode = next((mode for mode in facts.idle if in_use(settings, mode)), None)
        if mode is not None and getattr(args, name) not in (defaults[name], facts.neutral):
            setattr(args, name, defaults[name])
            settings = TrainSettings.from_flags(vars(args))
            idle.setdefault(mode, []).append(name)
    for mode, names in idle.items():
        note_idle(shown_as(mode), names)


# ---------------------------------------------------------------- rules with a number, or words of their own


class Rule(NamedTuple):
    """What settings may not be.

    Args:
        is_broken: whether they are so.
        message: what is wrong, and what to do; ``{0}`` in it stands for the settings.
    """

    is_broken: Callable[[TrainSettings], object]
    message: str


def has_odd_splits(settings: TrainSettings) -> bool:
    """The jsd criterion compares splits with each other; one split alone is none."""
    splits = settings.views.aug_splits
    return splits < 2 and (splits != 0 or settings.loss.task_loss == "jsd")


def mixes_odd_batches(settings: TrainSettings) -> bool:
    sizes = [settings.data.batch_size, *(settings.views.train_batch_sizes or ())]
    return settings.views.mixes and any(size % 2 for size in sizes)


def lacks_numbers_of_sizes(settings: TrainSettings) -> bool:
    views = settings.views
    lists = [numbers for numbers in (views.train_batch_sizes, views.train_size_probs) if numbers]
    return any(len(numbers) != len(views.train_img_sizes or ()) for numbers in lists)


def draws_no_size(settings: TrainSettings) -> bool:
    probs = settings.views.train_size_probs
    return bool(probs) and not sum(probs)


def learns_nothing(settings: TrainSettings) -> bool:
    loss = settings.loss
    source = loss.loss or settings.teacher.teacher or loss.kd_model_name or settings.data.unlabeled
    return loss.task_loss_weight == 0 and not source


def unlearns_the_teacher(settings: TrainSettings) -> bool:
    teacher = settings.teacher.teacher or settings.loss.kd_model_name
    return bool(teacher) and settings.loss.weights[1] < 0


def refines_what_is_not_stored(settings: TrainSettings) -> bool:
    teacher = settings.teacher
    return bool(teacher.refine_labels and teacher.teacher and not teacher.stores_targets)


def weighs_what_is_not_stored(settings: TrainSettings) -> bool:
    teacher = settings.teacher
    return bool(teacher.weighs_evidence and teacher.teacher and not teacher.stores_targets)


def is_right_too_often(settings: TrainSettings) -> bool:
    percent = settings.teacher.last_is_right
    return percent is not None and percent > 100


def holds_out_no_part(settings: TrainSettings) -> bool:
    part = settings.data.select_split
    if part is None:
        return False
    is_count = isinstance(part, int) and part >= 1
    return not (0 < part < 1 or is_count)


def has_no_score_of_held_out(settings: TrainSettings) -> bool:
    held_out = settings.data.select_split is not None
    asks_nobody = settings.evaluation.no_teacher_eval
    return held_out and asks_nobody and settings.is_scored_by_teacher


def selects_without_evaluation(settings: TrainSettings) -> bool:
    evaluation = settings.evaluation
    by_episodes = evaluation.eval_metric == "few-shot"
    return evaluation.select == "best" and has_no_evaluation(settings) and not by_episodes


def measures_another_kind(settings: TrainSettings) -> bool:
    metric = settings.evaluation.eval_metric
    if settings.data.task == MULTILABEL:
        return metric in ("top1", "top5")
    return metric in ("map", "micro_f1", "macro_f1", "sample_f1")


def has_criterion_of_another_kind(settings: TrainSettings) -> bool:
    criterion = settings.loss.task_loss
    if settings.data.task == MULTILABEL:
        return criterion in ("ce", "jsd")
    return criterion in ("twoway", "zlpr")


# in this order; of several that are broken the first is reported
RULES = (
    # the model and its views
    Rule(
        lambda settings: settings.flags["naflex_loader"],
        "--naflex-loader: a NaFlexVit is trained here on images of one size, without this flag",
    ),
    Rule(
        lambda settings: settings.flags["torchscript"],
        "--torchscript cannot train here: use --torchcompile",
    ),
    Rule(
        lambda settings: settings.run.resume == "auto" and not settings.run.experiment,
        "--resume auto looks for the run's own folder: name it with --experiment",
    ),
    Rule(
        has_odd_splits,
        "--aug-splits {0.views.aug_splits}: expected 0 or at least 2, with the jsd criterion at least 2",
    ),
    Rule(
        mixes_odd_batches,
        "mixup and cutmix pair samples: --batch-size and --train-batch-sizes must be even",
    ),
    Rule(
        lacks_numbers_of_sizes,
        "--train-batch-sizes and --train-size-probs: expected as many numbers as --train-img-sizes has",
    ),
    Rule(draws_no_size, "--train-size-probs: expected numbers of which some are above 0"),
    # what is learned, and from whom
    Rule(
        learns_nothing,
        "--task-loss-weight 0 leaves ground truth out, and without a teacher nothing is left to learn from: give "
        "--teacher",
    ),
    Rule(
        lambda settings: settings.data.unlabeled and not settings.teacher.teacher,
        "--unlabeled: images without labels need a teacher that says what is on them: --teacher NAME (and "
        "--teacher-checkpoint FILE)",
    ),
    Rule(
        lambda settings: settings.loss.loss and not settings.teacher.teacher,
        "--loss {0.loss.loss} needs a teacher: give --teacher NAME (and --teacher-checkpoint FILE)",
    ),
    Rule(
        unlearns_the_teacher,
        "--task-loss-weight {0.loss.task_loss_weight} given alone leaves 1 minus it to distillation: give a weight up to "
        "1, or --distill-loss-weight too",
    ),
    Rule(
        is_right_too_often,
        "--teacher-assign {0.teacher.teacher_assign}: expected how often the last teacher is right in percent, "
        "posterior:1 to posterior:100",
    ),
    Rule(
        weighs_what_is_not_stored,
        "--teacher-assign {0.teacher.teacher_assign} finds out from stored answers what each teacher confuses: give "
        "--teacher-targets cached",
    ),
    Rule(
        lambda settings: settings.teacher.weighs_evidence and settings.teacher.refine_labels,
        "--teacher-assign {0.teacher.teacher_assign} and --refine-labels both change what the teachers say: leave one "
        "out",
    ),
    Rule(
        refines_what_is_not_stored,
        "--refine-labels is fitted to stored answers: give --teacher-targets cached, or --no-refine-labels",
    ),
    Rule(
        lambda settings: settings.labels.asks_the_teacher and not settings.teacher.teacher,
        "--clean-select {0.labels.clean_select} needs a model that decides: --clean-select-model NAME, or a --teacher",
    ),
    # one class an image, or several
    Rule(
        measures_another_kind,
        "--eval-metric {0.evaluation.eval_metric}: expected top1, top5 or loss with one class an image, map, micro_f1, "
        "macro_f1, sample_f1 or loss with --task multilabel",
    ),
    Rule(
        has_criterion_of_another_kind,
        "--task-loss {0.loss.task_loss}: expected ce, bce, asl, poly or jsd with one class an image, bce, asl, poly, "
        "twoway or zlpr with --task multilabel",
    ),
    # the student in parts
    Rule(
        lambda settings: (
            settings.compute.fsdp and settings.optim.opt.lower() not in SHARDED_OPTIMIZERS
        ),
        "--fsdp: the step of --opt {0.optim.opt} is not that of its parts; expected one of "
        + ", ".join(SHARDED_OPTIMIZERS),
    ),
    # evaluation and the choice of an epoch
    Rule(
        lambda settings: settings.data.has_no_truth and settings.data.val_split,
        "--val-split {0.data.val_split}: --unlabeled images have no labels; give a labelled split by --data-dir or "
        "--dataset",
    ),
    Rule(
        lambda settings: settings.data.val_labels and not settings.data.val_split,
        "--val-labels {0.data.val_labels}: there is no split that is evaluated; give --data-dir, and no --val-split ''",
    ),
    Rule(
        lambda settings: settings.episodes.episodic and settings.data.val_split,
        "--val-split {0.data.val_split}: --episodic trains no classifier of all classes; measure with --few-shot-eval "
        "5x1",
    ),
    Rule(
        lambda settings: (
            settings.evaluation.eval_metric == "few-shot" and not settings.episodes.few_shot_eval
        ),
        "--eval-metric few-shot needs --few-shot-eval NxK",
    ),
    Rule(
        lambda settings: (
            settings.evaluation.eval_metric == "agreement" and not settings.has_agreement
        ),
        "--eval-metric agreement asks a --teacher about the validation split, without --no-teacher-eval, or compares "
        "labels with a part that --select-split holds out",
    ),
    Rule(
        holds_out_no_part,
        "--select-split {0.data.select_split}: expected a share between 0 and 1, or a count of at least 1",
    ),
    Rule(
        has_no_score_of_held_out,
        "--select-split without ground truth ranks epochs by the agreement with the teacher: leave out "
        "--no-teacher-eval",
    ),
    Rule(
        selects_without_evaluation,
        "--select best needs a --val-split, a --select-split, or --eval-metric few-shot",
    ),
)


def check_rules(settings: TrainSettings) -> None:
    """Raise a `UserError` for the first of all rules that the settings of a run break."""
    for pair in read_table("flags.yaml")["excludes"]:
        other = next((other for other in pair["others"] if in_use(settings, other)), None)
        if other and in_use(settings, pair["flag"]):
            raise UserError(
                f"{shown_as(pair['flag'])} cannot be combined with {shown_as(other)}: {pair['why']}"
            )
    for rule in RULES:
        if rule.is_broken(settings):
            raise UserError(rule.message.format(settings))


def check_validation(settings: ValidateSettings) -> None:
    """Check the settings of ``validate.py`` against each other."""
    data, teacher, shapes = settings.data, settings.teacher.teacher, settings.episodes.few_shot_eval
    check_dataset_name(data.dataset)
    parse_long_tail(settings.evaluation.long_tail)
    if data.data_dir and data.dataset == DIGITS:
        note_idle(OWN_IMAGES, ["data_dir"])
    if not shapes:
        return
    parse_shapes(shapes, settings.episodes.queries, "--few-shot")
    count_episodes(shapes, "--few-shot", TEST_EPISODES, 2)
    if len(split_names(teacher)) > 1:
        raise UserError("--few-shot: several teachers have no common features; give one --teacher")
    if settings.subject.naflex_loader or settings.evaluation.ceiling_acc is not None:
        raise UserError("--few-shot cannot be combined with --naflex-loader or --ceiling-acc")
