"""Which classes a run has and what they are called, said by flags, data or teacher."""

import argparse
import logging
from collections.abc import Sequence
from itertools import zip_longest

from timm.data import ImageNetInfo, infer_imagenet_subset
from torch.utils.data import Dataset

from ..data.datasets import check_labels, class_names_of, labels_of, num_classes_of
from ..data.unlabeled import is_unlabeled
from ..errors import UserError, nearest
from ..labels.names import read_class_names
from ..labels.relabelled import Relabelled
from ..models.class_names import names_of_data, names_of_model, recorded_names
from ..models.loading import create_model
from ..teachers.kinds import Request, kind_of, open_kind
from ..teachers.teacher import TEACHER_FLAGS, TeacherSettings, load_frozen_model, pair_checkpoints
from .labels import FoundLabels, names_in_labels
from .resolve import split_names, teacher_models

_logger = logging.getLogger(__name__)

TRAINING = "the training set"
SAME = ("give both the same class folders; splits of different classes are for few-shot learning: --val-split '' "
        "--few-shot-eval 5x1")


def common_classes(
        args: argparse.Namespace,
        train: Dataset,
        val: Dataset | None,
        labels: Sequence[FoundLabels] = (),
) -> tuple[Dataset, Dataset | None, list[str] | None, int | None]:
    """Return both splits with their labels as the numbers of common classes, the names of these, and how many there are
    (None where neither data nor ``--num-classes`` say it, for a stream).

    Raises:
        UserError: the validation split has a class that training has not; names, flags and data contradict each other.
    """
    given = read_class_names(args.class_names) if args.class_names else None
    if is_unlabeled(train):
        val, names, count = _classes_of_unlabeled(args, given, val, labels)
        train.classes = names
    else:
        train, val, names = _names_of_labelled(args, given, train, val)
        count = len(names) if names else num_classes_of(train)
    if None not in (count, args.num_classes) and count != args.num_classes:
        raise UserError(f"--num-classes {args.num_classes} does not match the data, which has {count} classes; leave "
                        "the flag out, or map classes with --class-map")
    count = args.num_classes if count is None else count
    for dataset, split in ((train, args.train_split), (val, args.val_split)):
        if dataset is not None and count is not None:
            check_labels(dataset, split, count)
    return train, val, names, count


def _names_of_labelled(
        args: argparse.Namespace,
        given: list[str] | None,
        train: Dataset,
        val: Dataset | None,
) -> tuple[Dataset, Dataset | None, list[str] | None]:
    own, count = names_of_data(train), num_classes_of(train)
    if own is None:
        _refuse_other_classes(args, train, val)
    if given is None or given == own:
        return train, by_name(val, own, args.val_split), own
    flag = f"--class-names {args.class_names[:80]}"
    if own is not None and set(own) <= set(given):
        return by_name(train, given, args.train_split), by_name(val, given, args.val_split), given
    if count is not None and len(given) != count:
        odd = next((name for name in own or () if name not in given), None)
        what = f"; the class '{odd}' of '{args.train_split}' is none of them{nearest(odd, given)}" if odd else ""
        raise UserError(f"{flag}: has {len(given)} names, the data has {count} classes{what}")
    if own is not None:
        _logger.info(f"{flag}: takes the place of the names of the data, by position: '{own[0]}' is '{given[0]}'")
    val = by_name(val, own, args.val_split)
    return _named(train, given), _named(val, given), given


def _classes_of_unlabeled(
        args: argparse.Namespace,
        given: list[str] | None,
        val: Dataset | None,
        labels: Sequence[FoundLabels],
) -> tuple[Dataset | None, list[str] | None, int]:
    """Return the validation split, the names, and the number of the classes that a teacher tells apart."""
    names, count, of_val = given, None, names_of_data(val) if val is not None else None
    source = "--class-names"
    if names is None and not args.teacher_class_map:
        names, count = classes_of_teacher(args, labels)
        source = f"--teacher {args.teacher}"
    if names is None and of_val:
        names, source = of_val, f"'{args.val_split}'"
    if names is not None:
        _logger.info(f"Classes: {len(names)}, with the names of {source}: {shown(names)}")
        return by_name(val, names, args.val_split, source), names, len(names)
    count = args.num_classes or (val is not None and num_classes_of(val)) or count
    if not count:
        raise UserError("--unlabeled: which classes there are is said by nothing; give --class-names FILE with a name "
                        "a line, or --num-classes N")
    _logger.info(f"Classes: {count}, without names; --class-names FILE gives them some")
    return val, None, count


def shown(names: Sequence[str], most: int = 5) -> str:
    """Return the first of some names as a text."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def classes_of_teacher(
        args: argparse.Namespace, labels: Sequence[FoundLabels] = ()) -> tuple[list[str] | None, int | None]:
    """Return names and number of the classes of labels in place of a teacher, else of the first teacher, before it is
    opened on the student's input.

    Models of timm itself with a number of classes that one of ImageNet's sets has are taken to have its synsets.
    """
    if names := names_in_labels(labels):
        return names, len(names)
    pairs = pair_checkpoints(teacher_models(args.teacher), split_names(args.teacher_checkpoint))
    name, checkpoint = next((pair for pair in pairs if not pair[0].startswith("clip:")), (None, None))
    if name is None:  # a zero-shot classifier has the classes that it is given
        return None, None
    channels = args.in_chans or (args.input_size[0] if args.input_size else 3)
    if kind_of(name):
        opened = open_kind(name, Request(in_chans=channels, img_size=args.teacher_img_size), TEACHER_FLAGS[0])
        return opened.class_names, opened.model.num_classes
    if checkpoint is not None:
        if names := recorded_names(checkpoint, TEACHER_FLAGS[1]):
            return names, len(names)
        settings = TeacherSettings(use_ema=args.use_ema_teacher, model_kwargs=args.teacher_kwargs)
        return None, load_frozen_model(name, checkpoint, channels, settings)[0].num_classes
    model = create_model(TEACHER_FLAGS[0], name, pretrained=False, inputs=dict(in_chans=channels),
                         **args.teacher_kwargs)
    names = names_of_model(model, None, TEACHER_FLAGS[0])
    if names is None and ":" not in name and (subset := infer_imagenet_subset(model)):
        names = list(ImageNetInfo(subset).label_names())
    return names, model.num_classes


def by_name(
        dataset: Dataset | None,
        names: Sequence[str] | None,
        split: str,
        source: str = TRAINING,
) -> Dataset | None:
    """Return a dataset whose labels are the places of its classes among ``names``, of which it may lack some.

    Raises:
        UserError: it has a class that is none of them.
    """
    own = None if dataset is None or names is None else names_of_data(dataset)
    if own is None or own == list(names):
        return dataset
    places = {name: place for place, name in enumerate(names)}
    if odd := [name for name in own if name not in places]:
        others = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        remedy = SAME if source == TRAINING else f"name its folders as these, or leave it out: {shown(names, 3)}"
        raise UserError(f"the splits have different classes: '{odd[0]}'{others} of '{split}' is none of the "
                        f"{len(names)} of {source}{nearest(odd[0], names)}; {remedy}")
    labels = labels_of(dataset)
    if labels is None:
        raise UserError(f"the split '{split}' has the classes of {source} in another order, and does not tell its "
                        "labels without being read; give it the same classes")
    if len(own) < len(names):
        lacking = [name for name in names if name not in set(own)]
        _logger.info(f"The split '{split}' has {len(own)} of the {len(names)} classes; it lacks {shown(lacking, 3)}")
    return _named(dataset, list(names), [places[own[label]] for label in labels])


def _named(dataset: Dataset | None, names: list[str], labels: Sequence[int] | None = None) -> Dataset | None:
    """Return a dataset with other names of its classes, and other labels where these are given."""
    labels = labels or (None if dataset is None else labels_of(dataset))
    if labels is None:  # a stream has nothing to write the names to
        return dataset
    named = Relabelled(dataset, labels)
    named.classes = names
    return named


def _refuse_other_classes(args: argparse.Namespace, train: Dataset, val: Dataset | None) -> None:
    """Refuse splits whose classes, several of which have one number by ``--class-map``, are not the same ones."""
    names, others = class_names_of(train), class_names_of(val) if val is not None else None
    if names and others and names != others:
        odd = next(a or b for a, b in zip_longest(names, others) if a != b)
        raise UserError(f"the splits have different classes: {len(names)} in '{args.train_split}', {len(others)} in "
                        f"'{args.val_split}' (first difference: {odd}); {SAME}")
