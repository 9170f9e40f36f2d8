"""What files of others may say: the config.json of a model, and the flags that a run has recorded.

Allow-lists: what is not named here is not taken. Code, and where weights come from, are the user's to name, on the
command line.
"""

import dataclasses
import inspect
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import timm
from timm.models import build_model_with_cfg, model_entrypoint
from torch import nn

from ..cli.parser import check_flags, train_parser
from ..data.datasets import MOST_CLASSES
from ..errors import UserError, nearest, one_line, said_of
from ..files import read_plain
from ..private_names import parse_model_cfg
from ..settings.field import Role
from ..settings.programs import train_program
from ..settings.values import check_values
from ..target_kind import ONE_CLASS, TargetKind, kind_of_problem, kind_of_task
from ..target_kind.table import THRESHOLDS

LARGEST = 2**31  # of a number; sizes and counts are below
# arguments of timm's functions around the constructor, and those that place a model or make it something else
OUTSIDE = {
    *("self", "args", "kwargs", "pruned", "device", "dtype", "inputs"),
    *("features_only", "out_indices", "feature_cls"),
    *inspect.signature(timm.create_model).parameters,
    *inspect.signature(build_model_with_cfg).parameters,
}
# what every architecture takes; timm makes a layer of the last three before it calls a constructor
USUAL = {"num_classes", "in_chans", "global_pool", "img_size", "bn_momentum", "bn_eps", "bn_tf"}
# Values of flags that name something on this machine, and one thing; of all others those without a colon. webdataset
# runs what begins with pipe:, and other kinds of datasets are addresses.
LOCAL = {
    "dataset": r"(torch/|w2s/|wds/|inat2018$|inat2021$)[^:]*|",
    "model": r"(?!all$)[\w.-]+",
}

_INTERPOLATIONS = train_program().flags["interpolation"].choices or ()
# Of timm's pretrained_cfg, what describes the model, with an example of each value; a tuple has all that it may be.
# Where weights lie and how they are loaded is not here: it is left out, as all that is unknown.
PRETRAINED_CFG: dict[str, object] = {
    "input_size": [7],
    "test_input_size": [7],
    "min_input_size": [7],
    "pool_size": [7],
    "test_pool_size": [7],
    "num_classes": 0,
    "label_offset": 0,
    "crop_pct": 0.9,
    "test_crop_pct": 0.9,
    "tag": "text",
    "license": "text",
    "description": "text",
    "origin_url": "text",
    "paper_name": "text",
    "architecture": "text",
    "first_conv": ["text"],
    "classifier": ["text"],
    "paper_ids": ["text"],
    "notes": ["text"],
    "label_names": ["cat"],
    "label_descriptions": ["cat"],
    "mean": [0.0],
    "std": [0.5],
    "fixed_input_size": True,
    "interpolation": tuple(name for name in _INTERPOLATIONS if name),
    "crop_mode": ("center", "squash", "border"),
}
COMMON_ARGS = {"in_chans": 3, "num_classes": 0, "img_size": [224], "global_pool": "avg"}
# these need not be in a list
ONE_OR_MORE = {"first_conv", "classifier", "paper_ids", "notes", "img_size"}


def check_value(key: str, value: object, example: object, where: str) -> None:
    """Raise a `UserError` for a value that is of another kind than its example, or too large."""
    if isinstance(example, tuple):
        fits = value in example
        expected = f"one of {', '.join(example)}"
    elif isinstance(example, list):
        parts = _parts_of(key, value, example[0])
        fits = len(parts) > 0
        expected = "a list"
        for part in parts:
            check_value(key, part, example[0], where)
    elif isinstance(example, float):  # 0 where the example is
        fits = _is_number(value) and 0 <= value < LARGEST and (value > 0 or example == 0)
        expected = "a number above 0"
        if "crop_pct" in key:  # an image is resized by its inverse
            crop = train_program().flags["crop_pct"]
            low, high = crop.low or 0.0, crop.high or math.inf
            fits = fits and isinstance(value, (int, float)) and low <= value <= high
            expected = f"a number from {low} to {high}"
    elif type(example) is int:
        most = MOST_CLASSES if example == 0 else LARGEST - 1
        # bool is an int to isinstance, and no count
        fits = type(value) is int and min(example, 1) <= value <= most
        expected = f"a whole number up to {most}"
    else:
        fits = type(value) is type(example)
        expected = f"a {type(example).__name__}"
    if not fits:
        raise UserError(
            f"{where}: {key}: {value!r:.60} is a {type(value).__name__}, expected {expected}"
        )


def _parts_of(key: str, value: object, example: object) -> Sequence[object]:
    """Return the values of a list, of names by number, or the one value that need not be in a list; else none."""
    if isinstance(value, (list, tuple)):
        return value
    if key in ONE_OR_MORE:
        return [value]
    if isinstance(value, dict) and isinstance(example, str):
        return list(value.values())
    return []


def _is_number(value: object) -> TypeGuard[int | float]:
    """True for a number that is no truth value."""
    return type(value) in (int, float)


# ---------------------------------------------------------------- config.json of a model


def read_model_config(
    path: Path,
    where: str,
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Read the config.json of a model in timm's format, and let through only what describes the model.

    Args:
        path: the file.
        where: begins the messages.

    Returns:
        The name of the architecture; those fields of ``pretrained_cfg`` that `PRETRAINED_CFG` names, as timm completes
        them; and ``model_args``, which `check_model_args` has looked at.

    Raises:
        UserError: not such a file, or a value that is not allowed.
    """
    try:
        content = read_plain(path)
        if not isinstance(content, dict):
            raise TypeError(f"expected a mapping, it is a {type(content).__name__}")
        # timm brings older and newer files into one form, in which input sizes follow from the arguments.
        fields, architecture, model_args = parse_model_cfg(content, {})
        # A name of the architecture alone: no tag, no id of the Hub, no folder.
        if not re.fullmatch(r"\w+", architecture) or not timm.is_model(architecture):
            close = nearest(architecture, timm.list_models())
            raise UserError(
                f"{where}: timm {timm.__version__} has no architecture {architecture!r:.60}"
                f"{close}; one of your own needs --plugins"
            )
        args = check_model_args(architecture, model_args, f"{where}: model_args")
        cfg = check_fields(fields, PRETRAINED_CFG, f"{where}: pretrained_cfg")
    except (OSError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise UserError(
            f"{where}: not the config.json of a timm model: {one_line(error)}"
        ) from error
    return architecture, cfg, args


def recorded_kind(config: Path) -> TargetKind | None:
    """Return what the config.json of a model says that its labels are, and from which probability on an image has each of
    several; None if it says nothing known.

    Raises:
        UserError: the thresholds are no probabilities.
    """
    try:
        content = read_plain(config)
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict):
        return None
    kind = kind_of_problem(content.get("problem_type"))
    return with_thresholds(kind, content.get(THRESHOLDS), str(config))


def with_thresholds(kind: TargetKind | None, thresholds: object, where: str) -> TargetKind | None:
    """Return a kind with the thresholds that a file has beside it, if it has several classes an image.

    Raises:
        UserError: the thresholds are no probabilities.
    """
    # thresholds that are none are those of nobody
    if kind is None or kind.name == ONE_CLASS.name or not isinstance(thresholds, list):
        return kind
    if not thresholds or not all(_is_number(number) and 0 < number < 1 for number in thresholds):
        raise UserError(f"{where}: {THRESHOLDS}: expected numbers between 0 and 1, one a class")
    return kind_of_task(kind.task, [float(number) for number in thresholds])


def check_fields(
    values: Mapping[str, object],
    examples: Mapping[str, object],
    where: str,
) -> dict[str, Any]:
    """Return the values that have an example and are there. Raises `UserError` for one that is of another kind."""
    kept = {key: values[key] for key in examples if values.get(key) is not None}
    for key, value in kept.items():
        check_value(key, value, examples[key], where)
    return kept


def check_model_args(
    architecture: str,
    args: Mapping[str, object],
    where: str,
) -> dict[str, Any]:
    """Return arguments of a constructor that a file names; those that are null are left out.

    Raises:
        UserError: one that is not an argument of the architecture itself, or not a number, a text, a truth value or a
            list of those.
    """
    kept = {key: value for key, value in args.items() if value is not None}
    allowed = constructor_arguments(architecture)
    for key, value in kept.items():
        if key not in allowed:
            raise UserError(
                f"{where}: {key!r:.60} is not an argument of {architecture} that a file may set"
                f"{nearest(str(key), allowed)}"
            )
        if not _is_plain(value):
            raise UserError(
                f"{where}: {key}: {value!r:.60} is a {type(value).__name__}, expected a number, "
                f"a text, true, false, or a list of those; numbers are below {LARGEST}"
            )
    check_fields(kept, COMMON_ARGS, where)
    return kept


def _is_plain(value: object, depth: int = 3) -> bool:
    if isinstance(value, (list, tuple)):
        return depth > 0 and all(_is_plain(part, depth - 1) for part in value)
    return isinstance(value, (str, bool)) or (_is_number(value) and abs(value) < LARGEST)


def constructor_arguments(architecture: str) -> set[str]:
    """Return the names of the arguments that the constructor of an architecture takes, without those of `OUTSIDE`.

    Constructors are the classifiers in the module that registers it; settings that are kept in a dataclass beside them
    can be given to those that take further arguments.
    """
    # What a file sets beyond these would end in timm's own functions, of which some load what they are told to.
    names = set(USUAL)
    for kind in vars(inspect.getmodule(model_entrypoint(architecture))).values():
        if not inspect.isclass(kind):
            continue
        has_settings = dataclasses.is_dataclass(kind)
        if has_settings or issubclass(kind, nn.Module):
            arguments: set[str] = set()
            for base in kind.__mro__:
                arguments |= inspect.signature(base.__init__).parameters.keys()
            if has_settings or "num_classes" in arguments:
                names |= arguments
    return {name for name in names - OUTSIDE if not name.startswith("pretrained")}


# ---------------------------------------------------------------- flags of a run


def typed_flags(content: object, where: str) -> dict[str, Any]:
    """Return flags that a run, or timm, has recorded, with the types and ranges that they have when typed.

    What is no flag of ``train_w2s.py`` is left out.

    Raises:
        UserError: no mapping, or a value that the command line would not take.
    """
    if not isinstance(content, Mapping):
        raise UserError(
            f"{where}: expected a mapping of flags to values, found a {type(content).__name__}"
        )
    # Each is brought to its type as if it had been typed, then checked as a value of its flag.
    parser = train_parser()
    known = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in content.items()
        if name in parser.by_dest()
    }
    values = check_flags(known, parser, where)
    with said_of(f"{where}: "):
        check_values(values)
    return values


def refuse_addresses(
    flags: Mapping[str, object],
    names: Mapping[str, str],
    where: str,
) -> None:
    """Raise a `UserError` when a `Role.PLACE` among the flags of a run is not one model, or not on this machine.

    A run of others could have anything fetched by them, and webdataset runs commands that stand where a path does.
    """
    for name in sorted(train_program().flags.names(Role.PLACE) & names.keys()):
        allowed = LOCAL.get(name, "[^:]*")
        values = flags.get(name)
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, str) and not re.fullmatch(allowed, value, re.IGNORECASE):
                flag = f"--{names[name].replace('_', '-')}"
                raise UserError(
                    f"{where}: it names {value!r:.80}, an address or more than one model, and "
                    f"nothing that a run names is fetched: if it is meant, give {flag} {value:.80}"
                )
