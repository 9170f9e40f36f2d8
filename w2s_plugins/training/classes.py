"""Which classes a run has and what they are called, said by flags, data or teacher; matched by name, never by place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from ..data import AnyDataset
from ..data.datasets import check_labels, num_classes_of, truth_of
from ..errors import UserError, logger, nearest, quietly
from ..labels.names import read_class_names
from ..labels.relabelled import Relabelled
from ..labels.several import ListForm
from ..labels.spelling import warn_of_lists
from ..models.class_names import (
    are_elsewhere,
    have_common_names,
    imagenet_names,
    names_of_data,
    names_of_model,
    recorded_names,
)
from ..models.loading import create_model, first_of
from ..settings.concerns import DataSettings, WeakTeacherSettings
from ..settings.teacher_name import TeacherName
from ..settings.values import split_names
from ..target_kind import ONE_CLASS, TargetKind, kind_of_task
from ..teachers.kinds import open_classifier, takes_class_names
from ..teachers.openers import TEACHER_FLAGS, TEACHERS, Opened, Request
from ..teachers.teacher import pair_checkpoints
from .labels import LabelSource


@dataclass(frozen=True)
class CommonClasses:
    """The classes of a run.

    Args:
        splits: by role, with labels that are the numbers of these classes.
        names: their names, None if nothing says them.
        count: their number, None if neither data nor ``--num-classes`` say it, for a stream.
    """

    splits: dict[str, AnyDataset]
    names: list[str] | None
    count: int | None


# their names and their number, as far as these are known
Classes = tuple[list[str] | None, int | None]


def common_classes(
    loading: DataSettings,
    teaching: WeakTeacherSettings,
    channels: int,
    splits: Mapping[str, AnyDataset],
    labels: Sequence[LabelSource] = (),
    opened: dict[TeacherName, Opened] | None = None,
) -> CommonClasses:
    """Number the classes of all splits alike, by name.

    Args:
        loading: what the user says of the classes, and the names of the splits.
        teaching: who labels images without labels.
        channels: of the model's images.
        splits: by role, as of `open_splits`.
        labels: in place of a teacher.
        opened: gets the model that was opened for its classes, by its name.

    Raises:
        UserError: the validation split has a class that training has not; names, flags and data contradict each other.
    """
    # Their names: of images without labels those that the teacher has, else those of the training set.
    train = splits["train"]
    if loading.unlabeled:
        names, count, source = _classes_of_unlabeled(
            loading, teaching, channels, splits, labels, opened
        )
        names_in_data = names
        vars(train)["classes"] = names  # where data sets that know their classes have them
    else:
        names_in_data, names = names_of_labelled(loading, train)
        count, source = len(names) if names else num_classes_of(train), "the training set"

    # Labels, if there are some, follow the names that the data have. New names are those of the same classes.
    labelled = {
        role: split for role, split in splits.items() if not (loading.unlabeled and role == "train")
    }
    numbered = {
        role: by_name(split, names_in_data, loading.split_name(role), source)
        for role, split in labelled.items()
    }
    if names is not None and names != names_in_data:
        numbered = {role: _named(split, names, truth_of(split)) for role, split in numbered.items()}

    # Their number, which every label is below.
    # A number that was typed is for data that do not tell; where they tell, it has to be the same.
    asked = loading.num_classes
    if count is None:
        count = asked
    elif asked is not None and count != asked:
        raise UserError(
            f"--num-classes {asked} does not match the data, which has {count} classes; leave the flag out, or map "
            "classes with --class-map"
        )
    if count is not None:
        for role, split in numbered.items():
            check_labels(split, loading.split_name(role), count)
    return CommonClasses({**splits, **numbered}, names, count)


def names_of_labelled(
    settings: DataSettings, train: AnyDataset
) -> tuple[list[str] | None, list[str] | None]:
    """Return the names of the classes in the order of their numbers to be, as the data have them and as they are called
    from now on: ``--class-names`` puts them in another order, or replaces them.
    """
    # Labels are numbers in the order of these names, so that another order of them means other numbers.
    names_in_data, count = names_of_data(train), num_classes_of(train)
    if not settings.class_names:
        return names_in_data, names_in_data

    # The same names in another order, perhaps of more classes than the data have.
    names = read_class_names(settings.class_names)
    odd = next((name for name in names_in_data or () if name not in names), None)
    if names_in_data and odd is None:
        return names, names

    # New names are those of the data's classes in their order; a slip in an old one would exchange classes.
    mixed = names_in_data and are_elsewhere(names, names_in_data)
    if mixed or (count is not None and len(names) != count):
        unknown = ""
        if odd:
            unknown = f"; the class '{odd}' of '{settings.train_split}' is none of them{nearest(odd, names)}"
        raise UserError(
            f"--class-names {settings.class_names[:80]}: has {len(names)} names, the data has {count} classes"
            f"{unknown}; give all of the data's names, or new ones in its order"
        )
    return names_in_data, names


def _classes_of_unlabeled(
    loading: DataSettings,
    teaching: WeakTeacherSettings,
    channels: int,
    splits: Mapping[str, AnyDataset],
    labels: Sequence[LabelSource],
    opened: dict[TeacherName, Opened] | None,
) -> tuple[list[str] | None, int, str]:
    """Return the names, the number and the source of the classes that a teacher tells apart, and those that the samples
    beside the images without labels have besides.
    """
    # Images without labels say nothing of classes: it is asked, in this order, who else does.
    names, count, source = None, None, "--class-names"
    beside = [splits[role] for role in ("labelled", "val") if role in splits]
    of_labelled = names_of_data(splits["labelled"]) if "labelled" in splits else None
    of_data = next(filter(None, map(names_of_data, beside)), None)

    # What the user says comes first, then who labels the images; samples with labels may have more classes.
    if loading.class_names:
        names = read_class_names(loading.class_names)
    else:
        kind = kind_of_task(loading.task)
        names, count = classes_of_teacher(teaching, channels, of_data, labels, opened, kind)
        source = f"--teacher {teaching.teacher}"
        if of_labelled:
            matched = have_common_names(source, names, of_labelled)
            names = list(dict.fromkeys([*(names or ()), *of_labelled])) if matched else None

    # A teacher without names has those of the data; without any names there is a number at least.
    if names is None and of_data:
        names, source = of_data, "the data"
    if names is not None:
        count = len(names)
    else:
        counts = [loading.num_classes, *map(num_classes_of, beside), count]
        count = next(filter(None, counts), None)
        source = "none; --class-names FILE gives them some"
    if not count:
        raise UserError(
            "--unlabeled: which classes there are is said by nothing; give --class-names FILE with a name a line, or "
            "--num-classes N"
        )
    logger.info(f"Classes: {count}, with the names of {source}: {first_of(names or ())}")
    return names, count, source


def classes_of_teacher(
    settings: WeakTeacherSettings,
    channels: int,
    of_data: Sequence[str] | None = None,
    labels: Sequence[LabelSource] = (),
    opened: dict[TeacherName, Opened] | None = None,
    target_kind: TargetKind = ONE_CLASS,
) -> Classes:
    """Return the classes of labels in place of a teacher and of the first model, before that is opened on the student's
    input.

    Args:
        settings: who labels.
        channels: of the student's images.
        of_data: names that these are to be compared with, if there are any.
        labels: in place of a teacher.
        opened: gets the model that was opened for its classes, by its name.
        target_kind: what the labels are.

    Raises:
        UserError: labels and model have names, and none in common.
    """
    # the files stay open for `match_labels`; what is to be said of them is said when they are brought to the samples
    files = [(of_name.file, of_name.missing) for of_name in labels]
    with quietly():
        lists = ListForm(settings.labels_unlisted, settings.labels_delimiter)
        tables = [
            file.labels(None, missing, of_data, target_kind=target_kind, lists=lists)
            for file, missing in files
        ]
    # but these are their own names by then, which nobody doubts
    for (file, _), table in zip(files, tables):
        warn_of_lists(table.doubtful, file.flag)
    of_labels = list(dict.fromkeys(name for table in tables for name in table.class_names or ()))
    # To open a model draws random numbers, and how the student begins must not depend on who teaches it.
    with torch.random.fork_rng(devices=[]):
        of_names = of_labels or of_data
        names, count = _classes_of_model(settings, channels, of_names, opened, target_kind)
    if have_common_names(f"--teacher {settings.teacher}", names, of_labels):
        of_labels = list(dict.fromkeys([*of_labels, *(names or ())]))
    return (of_labels, len(of_labels)) if of_labels else (names, count)


def _classes_of_model(
    settings: WeakTeacherSettings,
    channels: int,
    of_data: Sequence[str] | None,
    opened: dict[TeacherName, Opened] | None,
    target_kind: TargetKind,
) -> Classes:
    """Return the classes of the first model of a teacher that has its own; a zero-shot classifier is given them."""
    pairs = pair_checkpoints(settings.models, split_names(settings.teacher_checkpoint))
    with_classes = [pair for pair in pairs if not takes_class_names(pair[0])]
    if not with_classes:
        return None, None
    name, checkpoint = with_classes[0]

    # One of timm knows its classes without its weights.
    if name.is_of_timm and checkpoint is None:
        model = create_model(
            TEACHER_FLAGS[0],
            name.text,
            pretrained=False,
            inputs=dict(in_chans=channels),
            **settings.teacher_kwargs,
        )
        names = names_of_model(model, None, TEACHER_FLAGS[0])
        if names is None and name.is_architecture:
            names = imagenet_names(model, of_data)
        return names, model.num_classes

    # Of a run they are written beside its weights; what does not tell them is opened.
    names = recorded_names(checkpoint, TEACHER_FLAGS[1]) if checkpoint else None
    if names:
        return names, len(names)
    request = Request(
        in_chans=channels,
        img_size=settings.teacher_img_size,
        checkpoint=checkpoint,
        model_kwargs=settings.teacher_kwargs,
        target_kind=target_kind,
    )
    teacher = open_classifier(name, request)
    if opened is not None and name.kind in TEACHERS:  # a function has the size of the student
        opened[name] = teacher
    return teacher.class_names, teacher.num_classes


def by_name(
    dataset: AnyDataset, names: Sequence[str] | None, split: str, source: str
) -> AnyDataset:
    """Return a dataset whose labels are the places of its classes among ``names``, of which it may lack some.

    Raises:
        UserError: it has a class that is none of them.
    """
    in_data = names_of_data(dataset)
    if names is None or in_data is None or in_data == list(names):
        return dataset
    # A split may lack classes, and have the others in an order of its own.
    numbers = {name: number for number, name in enumerate(names)}
    odd = [name for name in in_data if name not in numbers]
    if odd:
        further = f", nor {first_of(odd[1:], 8)}" if len(odd) > 1 else ""
        raise UserError(
            f"the splits have different classes: '{odd[0]}' of '{split}' is none of the {len(names)} of {source} "
            f"({first_of(names)}){nearest(odd[0], names)}{further}; give them the same class folders or tables, or name "
            "all classes with --class-names, a file of one name a line; few-shot learning has --val-split '' "
            "--few-shot-eval 5x1"
        )

    # Labels follow the names, so that the dataset has to tell them.
    labels = truth_of(dataset)
    if labels is None:
        raise UserError(
            f"the split '{split}' has the classes of {source} in another order, and does not tell its labels without "
            "being read; give it the same classes"
        )
    lacking = [name for name in names if name not in in_data]
    if lacking:
        logger.info(
            f"The split '{split}' has {len(in_data)} of the {len(names)} classes; it lacks {first_of(lacking)}"
        )
    if isinstance(labels, Tensor):
        # of classes that it lacks nothing is known
        renumbered = torch.full((len(labels), len(names)), torch.nan)
        renumbered[:, [numbers[name] for name in in_data]] = labels
        return _named(dataset, names, renumbered)
    return _named(dataset, names, [numbers[in_data[label]] for label in labels])


def with_classes(dataset: AnyDataset, numbers: Sequence[int]) -> AnyDataset:
    """Return a dataset of several classes an image with the labels of some classes alone, in the order of ``numbers``."""
    labels, names = truth_of(dataset), names_of_data(dataset)
    if not isinstance(labels, Tensor):
        raise TypeError("these are no labels of several classes an image")
    picked = [names[number] for number in numbers] if names else []
    return _named(dataset, picked, labels[:, list(numbers)])


def _named(
    dataset: AnyDataset, names: Sequence[str], labels: Sequence[int] | Tensor | None
) -> AnyDataset:
    """Return a dataset with other names of its classes, and other labels."""
    if labels is None or isinstance(dataset, IterableDataset):  # nothing to write the names to
        return dataset
    named = Relabelled(dataset, labels)
    named.classes = list(names)
    return named
