"""Which flags do not go together. What a flag needs beside it, and what it has no effect with, stands at its field."""

import copy
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..errors import UserError, logger
from . import terms
from .composite import TrainSettings, ValidateSettings
from .field import option
from .forms import (
    DIGITS,
    MULTILABEL,
    TEST_EPISODES,
    check_dataset_name,
    count_episodes,
    parse_long_tail,
    parse_shapes,
)
from .programs import train_program
from .terms import Term, has_no_evaluation, in_use
from .values import split_names

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


def note_idle(mode: str, names: Iterable[str]) -> None:
    """Log the flags that have no effect in a mode of this run."""
    logger.warning(f"WARNING: {mode}: no effect of {', '.join(map(option, names))}")


def leave_idle_flags(settings: TrainSettings) -> TrainSettings:
    """Log the flags that have no effect in the mode of this run (``idle``), and return the settings with their defaults.

    A file of flags may set them for other modes.
    """
    idle: dict[str, list[str]] = {}
    for name, flag in train_program().flags.items():
        mode = next((mode for mode in flag.idle if in_use(settings, mode)), None)
        if mode is not None and settings.flags[name] not in (flag.default, flag.neutral):
            settings = settings.with_flags(**{name: copy.copy(flag.default)})
            idle.setdefault(str(mode), []).append(name)
    for shown, names in idle.items():
        note_idle(shown, names)
    return settings


# ---------------------------------------------------------------- pairs


class Exclusion(NamedTuple):
    """What cannot be combined.

    Args:
        flag: a flag, a flag with a value, or a term.
        others: likewise; the first that is in use is named.
        why: ends the message.
    """

    flag: str | Term
    others: tuple[str | Term, ...]
    why: str


# in this order; of several that are in use the first is reported
EXCLUSIONS = (
    # views of an image
    Exclusion(
        "--aug-splits",
        (terms.MIXING, "--no-aug", "--no-prefetcher", "--train-img-sizes", terms.STORED_TARGETS),
        "a batch holds several views of each image, in the order of the loader",
    ),
    Exclusion(
        terms.STORED_VIEWS,
        ("--aug-repeats", "--train-img-sizes", "--mixup-off-epoch", "--resplit"),
        "views that come round again must not depend on batch or epoch; use --teacher-targets online",
    ),
    Exclusion(
        "--strong-views",
        (
            terms.MIXING,
            "--aug-splits",
            "--aug-repeats",
            "--train-img-sizes",
            "--episodic",
            "--linear-probe",
        ),
        "the strong views stand at the end of a batch, one for each image",
    ),
    # images without labels
    Exclusion(
        "--unlabeled",
        (
            "--label-noise",
            terms.SELECTION_BY_LABELS,
            "--episodic",
            "--class-list",
            "--long-tail always",
        ),
        "its images have no labels",
    ),
    Exclusion(
        terms.NO_TRUTH,
        ("--task-loss-weight", "--class-map", "--few-shot-eval"),
        "its images have no labels",
    ),
    Exclusion(
        terms.SEMI_SUPERVISED,
        (terms.MIXING, "--aug-splits", "--resplit", "--train-img-sizes"),
        "they stand first in the batch; leave out --task-loss-weight, or this",
    ),
    # episodes of few classes
    Exclusion(
        "--episodic",
        (
            terms.MIXING,
            "--aug-splits",
            "--aug-repeats",
            "--train-img-sizes",
            "--epoch-repeats",
            "--kd-model-name",
            "--select-split",
            "--teacher-assign student",
            terms.LABELS,
            terms.STORED_TARGETS,
        ),
        "its batches are episodes of a few classes",
    ),
    # the model and its teachers
    Exclusion(
        "--finetune", ("--initial-checkpoint",), "one would overwrite the weights of the other"
    ),
    Exclusion(
        "--split-bn", ("--sync-bn", "--tune"), "it makes new batch norms, all of which are trained"
    ),
    Exclusion(
        "--kd-model-name",
        ("--teacher", "--loss"),
        "it is the teacher of timm's own tasks; a --loss of these here learns from a --teacher",
    ),
    Exclusion(
        terms.LABELS_ALONE, (terms.SELECTION_BY_TEACHER,), "labels cannot be asked about images"
    ),
    # the student in parts
    Exclusion(
        "--linear-probe",
        (
            "--tune",
            "--episodic",
            "--few-shot-eval",
            "--kd-model-name",
            terms.MODELS_BESIDE_LABELS,
            terms.SEMI_SUPERVISED,
        ),
        "it trains one linear layer on stored features, and no encoder",
    ),
    Exclusion(
        "--fsdp",
        (
            "--few-shot-eval",
            "--episodic",
            "--kd-model-name",
            "--clip-mode agc",
            "--sync-bn",
            terms.AVERAGE_IN_BFLOAT16,
        ),
        "no process has the whole student",
    ),
)


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
    for flag, others, why in EXCLUSIONS:
        other = next((other for other in others if in_use(settings, other)), None)
        if other is not None and in_use(settings, flag):
            raise UserError(f"{flag} cannot be combined with {other}: {why}")
    for rule in RULES:
        if rule.is_broken(settings):
            raise UserError(rule.message.format(settings))


def check_validation(settings: ValidateSettings) -> None:
    """Check the settings of ``validate.py`` against each other."""
    data, teacher, shapes = settings.data, settings.teacher.teacher, settings.episodes.few_shot_eval
    check_dataset_name(data.dataset)
    parse_long_tail(settings.evaluation.long_tail)
    if data.data_dir and data.dataset == DIGITS:
        note_idle(terms.OWN_IMAGES.shown, ["data_dir"])
    if not shapes:
        return
    parse_shapes(shapes, settings.episodes.queries, "--few-shot")
    count_episodes(shapes, "--few-shot", TEST_EPISODES, 2)
    if len(split_names(teacher)) > 1:
        raise UserError("--few-shot: several teachers have no common features; give one --teacher")
    if settings.subject.naflex_loader or settings.evaluation.ceiling_acc is not None:
        raise UserError("--few-shot cannot be combined with --naflex-loader or --ceiling-acc")
