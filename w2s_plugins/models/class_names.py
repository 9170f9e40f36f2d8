"""Which class each output of a model stands for: names that runs and exports keep, compared with those of the data."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn

from ..data import AnyDataset
from ..data.datasets import class_names_of
from ..errors import UserError, logger, one_line
from ..files import read_plain, write_text
from .loading import find_weights, first_of

CLASS_NAMES = "class_names.json"  # in a run folder


def names_of_data(dataset: AnyDataset) -> list[str] | None:
    """Return the name of each class of a dataset, or None where a class has no name, or several by ``--class-map``."""
    return _checked(class_names_of(dataset))


def names_of_model(model: nn.Module, checkpoint: str | None, flag: str) -> list[str] | None:
    """Return the name of each class of a model, as its run or its export has it, or None where nothing is known.

    Args:
        model: with its weights.
        checkpoint: the file or run folder that they came from, None for those of the model's own name.
        flag: the flag that named it.

    Raises:
        UserError: the file with the names cannot be read.
    """
    # A file of weights says it itself: the names of what the model began with may be others.
    if checkpoint is not None:
        names = recorded_names(checkpoint, flag)
    else:
        names = _checked(getattr(model, "pretrained_cfg", {}).get("label_names"))
    if names is None or len(names) != model.num_classes:
        return None
    return names


def recorded_names(checkpoint: str, flag: str) -> list[str] | None:
    """Return the names beside a file or in a run folder, without opening a model. Raises `UserError`."""
    # An export has them in timm's own file, so that whoever loads it finds them; a run in a file of its own.
    weights = find_weights(checkpoint, flag)
    is_export = weights.suffix == ".safetensors"
    return _read_names(weights.with_name("config.json" if is_export else CLASS_NAMES), flag)


def _read_names(file: Path, flag: str) -> list[str] | None:
    if not file.is_file():
        return None
    try:
        content = read_plain(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{flag} {file}: not a JSON file: {one_line(error)}") from error
    if file.name != CLASS_NAMES:
        content = content.get("label_names") if isinstance(content, dict) else None
    return _checked(content)


def _checked(names: object) -> list[str] | None:
    """Return names as a list, also those that a config.json has by number; None unless each is a text of its own."""
    # config.json has numbers as texts, since JSON has no others for keys.
    if isinstance(names, dict):
        numbered = {str(number): name for number, name in names.items()}
        names = [numbered.get(str(number)) for number in range(len(numbered))]
    if not isinstance(names, (list, tuple)):
        return None
    texts = [name for name in names if isinstance(name, str)]
    all_are_texts = len(texts) == len(names) > 0
    return texts if all_are_texts and len(set(texts)) == len(texts) else None


def write_class_names(folder: Path, names: list[str] | None) -> None:
    """Write the names of a run's classes to its folder.

    Raises:
        UserError: the run that goes on in it had the classes in another order, or others.
    """
    # A run that goes on answers in the order of its first epochs.
    file = folder / CLASS_NAMES
    before = _read_names(file, "--resume")
    if before and names and before != names:
        raise UserError(
            f"{file}: this run was trained on other classes, or has them in another order "
            f"({_difference(before, names)}); give it the same data, or start another run"
        )
    if names:
        write_text(file, json.dumps(names))


def imagenet_names(model: nn.Module, of_data: Sequence[str] | None) -> list[str] | None:
    """Return the names of the classes of a model with timm's own weights, where one of ImageNet's sets has as many.

    Args:
        model: it has no names of its own.
        of_data: names of the data; the synsets or their words are taken, whichever of them the data have. None for the
            synsets.

    Returns:
        None where the data have none of them.
    """
    # Which set of ImageNet has as many classes.
    subset = infer_imagenet_subset(model)
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    synsets = list(info.label_names())
    if not of_data:
        return synsets
    # Names that the data have most of.
    words = list(info.label_descriptions())
    names = max((synsets, words), key=lambda names: len(set(names) & set(of_data)))
    return names if set(names) & set(of_data) else None


def have_common_names(
    who: str,
    theirs: Sequence[str] | None,
    ours: Sequence[str] | None,
) -> bool:
    """Say whether classes of a model can be matched by name with those of the data.

    Numbers in place of names name nothing where the others are none of them.

    Raises:
        UserError: both have names, and none in common.
    """
    if not theirs or not ours:
        return False
    if set(theirs) & set(ours):
        return True
    # Numbers are what classes are called that nobody has named.
    if any(all(map(str.isdecimal, names)) for names in (theirs, ours)):
        return False
    here, there = (", ".join(f"'{name[:60]}'" for name in names[:2]) for names in (ours, theirs))
    raise UserError(
        f"{who}: none of its {len(theirs)} classes ({there}, ...) is one of the {len(ours)} of the "
        f"data ({here}, ...); call them by the names of the teacher: --class-names A,B,..."
    )


def match_classes(
    who: str,
    theirs: Sequence[str] | None,
    ours: Sequence[str] | None,
) -> Tensor | None:
    """Return the class of the data, or -1, for each class of a model, by name; None where these are the same ones in
    the same order, or classes can be taken by position only.

    A line of the log says what was done; it is a warning where either side has classes that the other lacks.

    Args:
        who: the model, for messages.
        theirs: names of its classes, None where unknown.
        ours: those of the data.

    Raises:
        UserError: both have names, and none in common.
    """
    # Nothing to match: no names, or the same ones in the same order.
    if not theirs or not ours or not have_common_names(who, theirs, ours):
        logger.info(
            f"{who}: its classes are taken by position, as there are not names of them on "
            "both sides"
        )
        return None
    if list(theirs) == list(ours):
        return None
    # What is matched, and what has no partner.
    unknown = [name for name in theirs if name not in set(ours)]
    lacking = [name for name in ours if name not in set(theirs)]
    if unknown or lacking:
        said = []
        if unknown:
            said.append(f"{len(unknown)} of its classes are not in the data ({first_of(unknown)})")
        if lacking:
            said.append(
                f"{len(lacking)} classes of the data it does not know ({first_of(lacking)})"
            )
        logger.warning(
            f"WARNING: {who}: {len(theirs)} classes are matched with the {len(ours)} of the data "
            f"by name: {'; '.join(said)}"
        )
    else:
        logger.info(
            f"{who}: its classes are those of the data in another order "
            f"({_difference(theirs, ours)}); its logits are matched by name"
        )
    # -1 for a class that the data have not: its probability is left out of the student's.
    numbers = {name: number for number, name in enumerate(ours)}
    return torch.tensor([numbers.get(name, -1) for name in theirs])


def warn_of_names(who: str, theirs: Sequence[str] | None, ours: Sequence[str] | None) -> None:
    """Warn where a model's classes are not, by name and order, those of the data."""
    if theirs and ours and list(theirs) != list(ours):
        logger.warning(
            f"WARNING: {who}: its classes are not called as those of the data "
            f"({_difference(theirs, ours)}); they are taken by position, so its answers may count "
            "for other classes"
        )


def are_elsewhere(theirs: Sequence[str], ours: Sequence[str]) -> bool:
    """Say whether a name that both have is at another place, so that no position says which class is which."""
    # Names that only one of both has do not count.
    positions = {name: position for position, name in enumerate(ours)}
    return any(positions.get(name, position) != position for position, name in enumerate(theirs))


def _difference(theirs: Sequence[str], ours: Sequence[str]) -> str:
    """Name the first class that differs."""
    for number, (there, here) in enumerate(zip(theirs, ours)):
        if there != here:
            return f"class {number} is '{there[:60]}' there, '{here[:60]}' here"
    return f"{len(theirs)} classes there, {len(ours)} here"
