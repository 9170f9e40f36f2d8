"""Which classes a run has and what they are called, said by flags, data or teacher; matched by name, never by place."""

from argparse import Namespace
from collections.abc import Mapping, Sequence

import torch
from torch.utils.data import Dataset

from ..cli.values import split_names
from ..data.datasets import check_labels, labels_of, num_classes_of
from ..errors import UserError, logger, nearest, quietly
from ..labels.names import read_class_names
from ..labels.relabelled import Relabelled
from ..models.class_names import (
    are_elsewhere,
    have_common_names,
    imagenet_names,
    names_of_data,
    names_of_model,
    recorded_names,
)
from ..models.loading import create_model, first_of
from ..settings.resolve import input_channels, teacher_models
from ..teachers.kinds import open_teacher
from ..teachers.name import TeacherName
from ..teachers.openers import TEACHER_FLAGS, TEACHERS, Opened, Request
from ..teachers.teacher import pair_checkpoints
from .labels import FoundLabels

Classes = tuple[list[str] | None, int | None]  # their names and their number, as far as these are known


def split_name(args: Namespace, role: str) -> str:
    """Return the name of the split in a role of `open_splits`."""
    return args.val_split if role == "val" else args.train_split


def common_classes(
        args: Namespace,
        splits: Mapping[str, Dataset],
        labels: Sequence[FoundLabels] = (),
        opened: dict[TeacherName, Opened] | None = None,
) -> tuple[dict[str, Dataset], list[str] | None, int | None]:
    """Return the splits with their labels as the numbers of common classes, the names of these, and how many there are
    (None where neither data nor ``--num-classes`` say it, for a stream).

    Args:
        args: the flags.
        splits: by role, as of `open_splits`.
        labels: in place of a teacher.
        opened: gets the model that was opened for its classes, by its name.

    Raises:
        UserError: the validation split has a class that training has not; names, flags and data contradict each other.
    """
    # Their names: of images without labels those that the teacher has, else those of the training set.
    train = splits["train"]
    if args.unlabeled:
        names, count, source = _classes_of_unlabeled(args, splits, labels, opened)
        own = train.classes = names
    else:
        own, names = _names_of_labelled(args, train)
        count, source = len(names) if names else num_classes_of(train), "the training set"

    # Labels, where there are some, follow the names that the data have. New names are those of the same classes.
    numbered = {
        role: by_name(split, own, split_name(args, role), source)
        for role, split in splits.items() if not (args.unlabeled and role == "train")}
    if names != own:
        numbered = {role: _named(split, names, labels_of(split)) for role, split in numbered.items()}

    # Their number, which every label is below.
    if None not in (count, args.num_classes) and count != args.num_classes:
        raise UserError(f"--num-classes {args.num_classes} does not match the data, which has {count} classes; leave "
                        "the flag out, or map classes with --class-map")
    count = args.num_classes if count is None else count
    if count is not None:
        for role, split in numbered.items():
            check_labels(split, split_name(args, role), count)
    return {**splits, **numbered}, names, count


def _names_of_labelled(args: Namespace, train: Dataset) -> tuple[list[str] | None, list[str] | None]:
    """Return the names of the classes in the order of their numbers to be, as the data have them and as they are called
    from now on: ``--class-names`` puts them in another order, or replaces them.
    """
    own, count = names_of_data(train), num_classes_of(train)
    if not args.class_names:
        return own, own

    # The same names in another order, perhaps of more classes than the data have.
    names = read_class_names(args.class_names)
    odd = next((name for name in own or () if name not in names), None)
    if own and odd is None:
        return names, names

    # New names are those of the data's classes in their order; a slip in an old one would exchange classes.
    mixed = own and are_elsewhere(names, own)
    if mixed or (count is not None and len(names) != count):
        unknown = f"; the class '{odd}' of '{args.train_split}' is none of them{nearest(odd, names)}" if odd else ""
        raise UserError(f"--class-names {args.class_names[:80]}: has {len(names)} names, the data has {count} "
                        f"classes{unknown}; give all of the data's names, or new ones in its order")
    return own, names


def _classes_of_unlabeled(
        args: Namespace,
        splits: Mapping[str, Dataset],
        labels: Sequence[FoundLabels],
        opened: dict[TeacherName, Opened] | None,
) -> tuple[list[str] | None, int, str]:
    """Return the names, the number and the source of the classes that a teacher tells apart, and those that the samples
    beside the images without labels have besides.
    """
    names, count, source = None, None, "--class-names"
    beside = [splits[role] for role in ("labelled", "val") if role in splits]
    of_labelled = names_of_data(splits["labelled"]) if "labelled" in splits else None
    of_data = next(filter(None, map(names_of_data, beside)), None)

    # What the user says comes first, then who labels the images; samples with labels may have more classes.
    if args.class_names:
        names = read_class_names(args.class_names)
    else:
        names, count = classes_of_teacher(args, of_data, labels, opened)
        source = f"--teacher {args.teacher}"
        if of_labelled:
            matched = have_common_names(source, names, of_labelled)
            names = list(dict.fromkeys([*names, *of_labelled])) if matched else None

    # A teacher without names has those of the data; without any names there is a number at least.
    if names is None and of_data:
        names, source = of_data, "the data"
    if names is not None:
        count = len(names)
    else:
        count = next(filter(None, [args.num_classes, *map(num_classes_of, beside), count]), None)
        source = "none; --class-names FILE gives them some"
    if not count:
        raise UserError("--unlabeled: which classes there are is said by nothing; give --class-names FILE with a name "
                        "a line, or --num-classes N")
    logger.info(f"Classes: {count}, with the names of {source}: {first_of(names or ())}")
    return names, count, source


def classes_of_teacher(
        args: Namespace,
        of_data: Sequence[str] | None = None,
        labels: Sequence[FoundLabels] = (),
        opened: dict[TeacherName, Opened] | None = None,
) -> Classes:
    """Return the classes of labels in place of a teacher and of the first model, before that is opened on the student's
    input; ``of_data`` are names that these are to be compared with, where there are any.

    Raises:
        UserError: labels and model have names, and none in common.
    """
    with quietly():  # what is to be said of them is said when they are brought to the samples
        of_labels = list(dict.fromkeys(
            name for found in labels for name in found.table(None, of_data).class_names or ()))
    with torch.random.fork_rng(devices=[]):  # how the student begins does not depend on who teaches it
        names, count = _classes_of_model(args, of_labels or of_data, opened)
    if have_common_names(f"--teacher {args.teacher}", names, of_labels):
        of_labels = list(dict.fromkeys([*of_labels, *names]))
    return (of_labels, len(of_labels)) if of_labels else (names, count)


def _classes_of_model(
        args: Namespace, of_data: Sequence[str] | None, opened: dict[TeacherName, Opened] | None) -> Classes:
    """Return the classes of the first model of a teacher that has its own; a zero-shot classifier is given them."""
    pairs = pair_checkpoints(teacher_models(args.teacher), split_names(args.teacher_checkpoint))
    pairs = [pair for pair in pairs if pair[0].kind != "clip"]
    if not pairs:
        return None, None
    (name, checkpoint), channels = pairs[0], input_channels(args)

    # One of timm knows its classes without its weights.
    if name.is_of_timm and checkpoint is None:
        model = create_model(TEACHER_FLAGS[0], name.text, pretrained=False, inputs=dict(in_chans=channels),
                             **args.teacher_kwargs)
        names = names_of_model(model, None, TEACHER_FLAGS[0])
        if names is None and name.is_architecture:
            names = imagenet_names(model, of_data)
        return names, model.num_classes

    # Of a run they are written beside its weights; what does not tell them is opened.
    names = recorded_names(checkpoint, TEACHER_FLAGS[1]) if checkpoint else None
    if names:
        return names, len(names)
    request = Request(in_chans=channels, img_size=args.teacher_img_size, checkpoint=checkpoint,
                      model_kwargs=args.teacher_kwargs)
    found = open_teacher(name, request)
    if opened is not None and name.kind in TEACHERS:  # a function has the size of the student
        opened[name] = found
    return found.class_names, found.model.num_classes


def by_name(dataset: Dataset, names: Sequence[str] | None, split: str, source: str) -> Dataset:
    """Return a dataset whose labels are the places of its classes among ``names``, of which it may lack some.

    Raises:
        UserError: it has a class that is none of them.
    """
    own = names_of_data(dataset)
    if names is None or own in (None, list(names)):
        return dataset
    places = {name: place for place, name in enumerate(names)}
    odd = next((name for name in own if name not in places), None)
    if odd is not None:
        raise UserError(f"the splits have different classes: '{odd}' of '{split}' is none of the {len(names)} of "
                        f"{source} ({first_of(names)}){nearest(odd, names)}; give them the same class folders, or "
                        "name all classes with --class-names; few-shot learning has --val-split '' --few-shot-eval 5x1")

    # Labels follow the names, so that the dataset has to tell them.
    labels = labels_of(dataset)
    if labels is None:
        raise UserError(f"the split '{split}' has the classes of {source} in another order, and does not tell its "
                        "labels without being read; give it the same classes")
    lacking = [name for name in names if name not in own]
    if lacking:
        logger.info(f"The split '{split}' has {len(own)} of the {len(names)} classes; it lacks {first_of(lacking)}")
    return _named(dataset, names, [places[own[label]] for label in labels])


def _named(dataset: Dataset, names: Sequence[str], labels: Sequence[int] | None) -> Dataset:
    """Return a dataset with other names of its classes, and other labels."""
    if labels is None:  # a stream has nothing to write the names to
        return dataset
    named = Relabelled(dataset, labels)
    named.classes = list(names)
    return named
