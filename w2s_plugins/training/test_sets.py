"""Further test sets: ``--val-sets``."""

import argparse
import logging
import os
import pkgutil
from collections.abc import Sequence

from torch.utils.data import Dataset

from ..cli.forms import PREFIXES, parse_test_sets
from ..data import open_split
from ..data.datasets import check_labels, num_classes_of
from ..errors import UserError
from ..labels.splits import TestSet
from ..models.class_names import names_of_data
from .classes import by_name

_logger = logging.getLogger(__name__)

SPLIT = "validation"  # where a folder has several
# timm's lists of the 200 classes of ImageNet-A and -R, by convention the only ones that count there
SHIFTED = ("_info/imagenet_a_synsets.txt", "_info/imagenet_r_synsets.txt")


def open_test_sets(
        args: argparse.Namespace,
        names: Sequence[str] | None,
        num_classes: int | None,
        mode: str,
) -> dict[str, TestSet]:
    """Open the test sets that the flags name.

    Args:
        args: the flags.
        names: of the classes of the model, None where they have none.
        num_classes: how many there are.
        mode: of Pillow, that images are converted to.

    Raises:
        UserError: not NAME=PATH, or a set that cannot be opened or has other classes.
    """
    found: dict[str, TestSet] = {}
    for name, place in parse_test_sets(args.val_sets).items():
        # The messages of a folder are about --data-dir.
        try:
            found[name] = matched(_open(args, place, mode), name, names, num_classes)
        except UserError as error:
            why = str(error).removeprefix(f"--data-dir {place}").lstrip(",: ")
            raise UserError(f"--val-sets {name}={place}: {why}") from error
    return found


def _open(args: argparse.Namespace, place: str, mode: str) -> Dataset:
    name, folder, split = "", place, SPLIT
    if place.lower().startswith(PREFIXES) and not os.path.exists(place):
        name, _, split = place.rpartition(":")
        folder = args.data_dir
        if not name:
            raise UserError(f"which split? Expected TYPE/NAME:SPLIT, such as {place}:test")
    return open_split(name, folder, split, None, flag="--val-sets", is_training=False, input_img_mode=mode)


def matched(dataset: Dataset, name: str, names: Sequence[str] | None, num_classes: int | None) -> TestSet:
    """Return a test set with its classes numbered as those of the model; of ImageNet-A and -R only their own count.

    Raises:
        UserError: it has a class that the model has not.
    """
    # Names are compared; numbers as names, as of ImageNet-V2, say only how many there are.
    own = names_of_data(dataset)
    if names and own and own != [str(number) for number in range(len(names))]:
        places = {class_name: place for place, class_name in enumerate(names)}

        # Of a set with a known part of the classes only these count.
        for file in SHIFTED:
            if set(own) == set(pkgutil.get_data("timm.data", file).decode().split()) <= places.keys():
                _logger.info(f"--val-sets {name}: of the model's {len(names)} classes only its {len(own)} count")
                return TestSet(dataset, [places[class_name] for class_name in own])
        dataset = by_name(dataset, list(names), name, "the model")
    elif num_classes is not None:
        if (count := num_classes_of(dataset)) not in (None, num_classes):
            raise UserError(f"has {count} classes, and the model, whose classes have no names, {num_classes}")
        check_labels(dataset, name, num_classes)
    return TestSet(dataset)
