"""What is known of a kind of target without tensors: its names, its figures, and how tables have its labels.

No torch is needed here, because flags and tables are checked before it is imported. A `TargetKind` is one of these, too.
"""

from abc import ABC

THRESHOLDS = "label_thresholds"  # what the config.json of an export calls them
LIST_SEPARATOR = ","  # between the names of classes in a cell
LOGIT = "_logit"  # ends the name of a column of logits among predictions


class TargetTable(ABC):
    """What the labels of images are called.

    Attributes:
        name: known to losses, which register the kinds that they can learn.
        words: how messages call it.
        task: timm's name of it, which ``--task`` takes.
        problem_type: that of transformers, which the config.json of an export has.
        headline: the figure that models are compared by, of those of an evaluation.
        score_name: the figure that is the mean of `TargetKind.score`.
    """

    name: str
    words: str
    task: str
    problem_type: str
    headline: str
    score_name: str


class OneClassTable(TargetTable):
    """Each image has one class."""

    name = "one-class"
    words = "one class an image"
    task = "classification"
    problem_type = "single_label_classification"
    headline = score_name = "top1"


class SeveralClassesTable(TargetTable):
    """Each image has any number of classes."""

    name = "several-classes"
    words = "several classes an image"
    task = "multilabel"
    problem_type = "multi_label_classification"
    headline = "map"
    score_name = "sample_f1"
