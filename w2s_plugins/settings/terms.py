"""What several flags, or the values of one, come to: terms of the rules between flags, each with a name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .forms import DIGITS

if TYPE_CHECKING:
    from .composite import TrainSettings


@dataclass(frozen=True)
class Term:
    """What several flags, or the values of one, come to.

    Args:
        shown: how messages call it.
        holds: whether it is true of the settings of a run.
    """

    shown: str
    holds: "Callable[[TrainSettings], object]"

    def __str__(self) -> str:
        return self.shown


def in_use(settings: "TrainSettings", what: str | Term) -> bool:
    """Return whether a term is true, or a flag has this value (``--tune head``), or any but its default and the one that
    changes nothing (``--tune``).
    """
    return bool(what.holds(settings)) if isinstance(what, Term) else settings.uses(what)


def has_models_beside_labels(settings: "TrainSettings") -> bool:
    return settings.teacher.has_labels and bool(settings.teacher.models)


def has_one_teacher(settings: "TrainSettings") -> bool:
    """A crowd that is combined is one, too."""
    combined = settings.teacher.labels_combine and settings.teacher.has_labels_alone
    return len(settings.teacher.names) < 2 or bool(combined)


def is_probe_of_plain_images(settings: "TrainSettings") -> bool:
    return settings.student.linear_probe and not settings.teacher.view_epochs


def stores_views(settings: "TrainSettings") -> bool:
    return bool(settings.teacher.view_epochs) and not settings.student.linear_probe


def has_images_of_its_own(settings: "TrainSettings") -> bool:
    return settings.data.dataset == DIGITS and not settings.data.unlabeled


def has_no_evaluation(settings: "TrainSettings") -> bool:
    return not settings.data.val_split and settings.data.select_split is None


def averages_in_bfloat16(settings: "TrainSettings") -> bool:
    return settings.optim.model_ema and settings.compute.model_dtype == "bfloat16"


# the data
OWN_IMAGES = Term("--dataset w2s/digits, which brings its own images", has_images_of_its_own)
NO_TRUTH = Term(
    "--unlabeled without --data-dir or --dataset", lambda settings: settings.data.has_no_truth
)
WEAK_LABELS_ALONE = Term(
    "--unlabeled without --task-loss-weight",
    lambda settings: settings.data.learns_weak_labels_alone,
)
SEMI_SUPERVISED = Term(
    "labelled samples in the batches of --unlabeled",
    lambda settings: settings.data.semi_supervised,
)
NO_EVALUATION = Term("no validation split", has_no_evaluation)
SELECTION_BY_LABELS = Term(
    "--clean-select by labels", lambda settings: settings.labels.selects_by_labels
)
SELECTION_BY_TEACHER = Term(
    "--clean-select by the teacher", lambda settings: settings.labels.asks_the_teacher
)
SELECTION_OF_FILE = Term(
    "--clean-select file:FILE", lambda settings: settings.labels.selection_rule == "file"
)
# the views
MIXING = Term("--mixup and --cutmix", lambda settings: settings.views.mixes)
PROBE_OF_PLAIN_IMAGES = Term("--linear-probe without cached-views:N", is_probe_of_plain_images)
PLAIN = (PROBE_OF_PLAIN_IMAGES, "--no-aug")
NOTHING_TO_SPLIT = Term(
    "no --reprob and no --split-bn",
    lambda settings: not settings.views.reprob and not settings.student.split_bn,
)
# the teacher
STORED_TARGETS = Term("--teacher-targets cached", lambda settings: settings.teacher.stores_targets)
STORED_VIEWS = Term("--teacher-targets cached-views:N", stores_views)
LABELS = Term("--teacher labels:PATH", lambda settings: settings.teacher.has_labels)
LABELS_ALONE = Term(
    "--teacher labels:PATH alone", lambda settings: settings.teacher.has_labels_alone
)
MODELS_BESIDE_LABELS = Term("models beside --teacher labels:PATH", has_models_beside_labels)
ONE_TEACHER = Term("a single --teacher", has_one_teacher)
# the average
AVERAGE_IN_BFLOAT16 = Term("--model-ema with --model-dtype bfloat16", averages_in_bfloat16)
