"""What files of others may say: the config.json of a model, and the flags that a run has recorded.

Allow-lists: what is not named here is not taken. Code, and where weights come from, are the user's to name, on the
command line.
"""

import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Container, Mapping
from pathlib import Path

import timm
from timm.models import build_model_with_cfg, model_entrypoint
from timm.models._hub import _parse_model_cfg
from timm.models._pretrained import PretrainedCfg
from torch import nn

from ..cli.declare import Role
from ..cli.groups import INTERPOLATIONS
from ..cli.parser import check_flags, train_parser
from ..cli.values import check_values
from ..errors import UserError, nearest, one_line
from ..files import read_plain

LARGEST = 2 ** 31  # of a number; sizes and counts are below
# fields of timm's pretrained_cfg that say where weights lie or how they are loaded: they are left out
LOCATIONS = {"url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load"}
# arguments of timm's functions around the constructor, and those that place a model or make it something else
OUTSIDE = {"self", "pruned", "device", "dtype", "features_only", "out_indices", "feature_cls", "inputs",
           *inspect.signature(timm.create_model).parameters, *inspect.signature(build_model_with_cfg).parameters}
BATCH_NORM = {"bn_momentum", "bn_eps", "bn_tf"}  # timm makes a layer of them before it calls a constructor
# kinds of datasets that lie on the disk: others are addresses, and webdataset runs those that begin with pipe:
LOCAL_DATASETS = ("", "torch", "w2s", "wds", "inat2018", "inat2021")

Check = tuple[Callable[[object], bool], str]


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < LARGEST


def _is_count(value: object, least: int = 0) -> bool:
    return type(value) is int and least <= value < LARGEST


def _all(check: Callable[[object], bool], *lengths: int) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value)) and len(value) in (lengths or (len(value),))


def _one_or_more(value: object) -> bool:
    return isinstance(value, str) or _all(lambda part: isinstance(part, str))(value)


def _is_size(value: object) -> bool:
    return _is_count(value, 1)


SIZES: Check = (_all(_is_size, 3), f"3 whole numbers from 1 to {LARGEST - 1}")
TEXT: Check = (lambda value: isinstance(value, str), "a text")
TEXTS: Check = (_one_or_more, "a text or a list of texts")
SHARE: Check = (lambda value: _is_number(value) and value > 0, "a number above 0")
COUNT: Check = (_is_count, f"a whole number from 0 to {LARGEST - 1}")
NAMES: Check = (lambda value: isinstance(value, (list, dict)), "a list or a mapping")
PRETRAINED_CFG: dict[str, Check] = {
    **dict.fromkeys(("input_size", "test_input_size", "min_input_size"), SIZES),
    **dict.fromkeys(("pool_size", "test_pool_size"), (_all(_is_size), "whole numbers from 1 on")),
    **dict.fromkeys(("crop_pct", "test_crop_pct"), SHARE),
    **dict.fromkeys(("num_classes", "label_offset"), COUNT),
    **dict.fromkeys(("tag", "license", "description", "origin_url", "paper_name", "architecture"), TEXT),
    **dict.fromkeys(("first_conv", "classifier", "paper_ids", "notes"), TEXTS),
    **dict.fromkeys(("label_names", "label_descriptions"), NAMES),
    "mean": (lambda value: bool(value) and _all(_is_number)(value), "a list of numbers"),
    "std": (lambda value: bool(value) and _all(SHARE[0])(value), "a list of numbers above 0"),
    "fixed_input_size": (lambda value: isinstance(value, bool), "true or false"),
    "interpolation": (lambda value: value in INTERPOLATIONS, f"one of {', '.join(INTERPOLATIONS)}"),
    "crop_mode": (lambda value: value in ("center", "squash", "border"), "center, squash or border"),
}
COMMON_ARGS: dict[str, Check] = {
    "in_chans": (_is_size, "a whole number from 1 on"),
    "num_classes": COUNT,
    "img_size": (lambda value: _is_size(value) or _all(_is_size, 2)(value), "a whole number, or two"),
    "global_pool": TEXT,
}


# ---------------------------------------------------------------- config.json of a model


def read_model_config(
        path: Path,
        where: str,
        given: Container[str] = (),
) -> tuple[str, dict[str, object], dict[str, object]]:
    """Read the config.json of a model in timm's format, and let through only what describes the model.

    Args:
        path: the file.
        where: begins the messages.
        given: arguments of the constructor that the user gives by hand; what the file says of them is left out.

    Returns:
        The name of the architecture; ``pretrained_cfg`` without `LOCATIONS`, as timm completes it; and ``model_args``,
        which `check_model_args` has looked at.

    Raises:
        UserError: not such a file, or a value that is not allowed.
    """
    try:
        content = read_plain(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: not a JSON file: {one_line(error)}") from error
    content = {k: v for k, v in content.items() if v is not None} if isinstance(content, dict) else None
    if content is None or not all(isinstance(content.get(k, {}), dict) for k in ("pretrained_cfg", "model_args")):
        raise UserError(f"{where}: not the config.json of a timm model: expected a mapping, with mappings "
                        "pretrained_cfg and model_args")
    architecture = content.get("architecture")
    check_architecture(architecture, where)
    theirs = {k: v for k, v in content.get("model_args", {}).items() if k not in given}
    labels = ("label_names", "label_descriptions")
    top = {k: content[k] for k in ("num_classes", *labels) if k in content}
    checked = {"architecture": architecture, **_check(top, PRETRAINED_CFG, where),
               "model_args": check_model_args(architecture, theirs, f"{where}: model_args")}
    # older files have the fields of pretrained_cfg at the top
    fields = content.get("pretrained_cfg", {"label_names" if k == "labels" else k: v for k, v in content.items() if (
        k not in ("architecture", "num_features", "model_args"))})
    checked["pretrained_cfg"] = _check_pretrained_cfg(fields, f"{where}: pretrained_cfg")
    try:
        cfg, _, model_args = _parse_model_cfg(checked, {})
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise UserError(f"{where}: not the config.json of a timm model: {one_line(error)}") from error
    return architecture, cfg, model_args


def check_architecture(name: object, where: str) -> None:
    """Raise a `UserError` unless ``name`` is that of an architecture: no tag, no id of the Hub, no folder."""
    if not isinstance(name, str):
        raise UserError(f"{where}: not the config.json of a timm model: it names no architecture")
    if not re.fullmatch(r"\w+", name) or not timm.is_model(name):
        raise UserError(f"{where}: timm {timm.__version__} has no architecture {name!r:.60}"
                        f"{nearest(name, timm.list_models())}; one of your own needs --plugins")


def _check_pretrained_cfg(fields: Mapping[str, object], where: str) -> dict[str, object]:
    known = {field.name for field in dataclasses.fields(PretrainedCfg)}
    for key in fields:
        if key not in known:
            raise UserError(f"{where}: not that of a timm model: unknown field {key!r:.60}{nearest(key, known)}")
    return _check({k: v for k, v in fields.items() if k not in LOCATIONS}, PRETRAINED_CFG, where)


def _check(values: Mapping[str, object], checks: Mapping[str, Check], where: str) -> dict[str, object]:
    """Return the values that are there. Raises `UserError` for one that is not of its kind."""
    kept = {k: v for k, v in values.items() if v is not None}
    for key, value in kept.items():
        fits, expected = checks[key]
        if not fits(value):
            raise UserError(f"{where}: {key}: {value!r:.60} is a {type(value).__name__}, expected {expected}")
    return kept


def check_model_args(architecture: str, args: Mapping[str, object], where: str) -> dict[str, object]:
    """Return arguments of a constructor that a file names; those that are null are left out.

    Raises:
        UserError: one that is not an argument of the architecture itself, or not a number, a text, a truth value or a
            list of those.
    """
    kept = {k: v for k, v in args.items() if v is not None}
    allowed = constructor_arguments(architecture)
    for key, value in kept.items():
        if key not in allowed:
            raise UserError(f"{where}: {key!r:.60} is not an argument of {architecture} that a file may set"
                            f"{nearest(str(key), allowed)}")
        if not _is_plain(value):
            raise UserError(f"{where}: {key}: {value!r:.60} is a {type(value).__name__}, expected a number, a text, "
                            f"true, false, or a list of those; numbers are below {LARGEST}")
    _check({k: v for k, v in kept.items() if k in COMMON_ARGS}, COMMON_ARGS, where)
    return kept


def refused_values(args: Mapping[str, object]) -> list[str]:
    """Return the names of arguments whose values, mappings say, a file may not set."""
    return [key for key, value in args.items() if value is not None and not _is_plain(value)]


def _is_plain(value: object, depth: int = 3) -> bool:
    if isinstance(value, (list, tuple)):
        return depth > 0 and all(_is_plain(part, depth - 1) for part in value)
    return isinstance(value, (str, bool)) or _is_number(value)


def constructor_arguments(architecture: str) -> set[str]:
    """Return the names of the arguments that the constructor of an architecture takes, without those of `OUTSIDE`.

    Constructors are the classifiers in the module that registers it; settings that are kept in a dataclass beside them
    can be given to those that take further arguments.
    """
    entry = model_entrypoint(architecture)
    names = {"num_classes", "in_chans", "global_pool", "img_size"} | BATCH_NORM | _named(entry)
    for kind in vars(inspect.getmodule(entry)).values():
        if not inspect.isclass(kind):
            continue
        if dataclasses.is_dataclass(kind):
            names |= {field.name for field in dataclasses.fields(kind)}
        elif issubclass(kind, nn.Module):
            own = set().union(*(_named(base.__init__) for base in kind.__mro__))
            names |= own if "num_classes" in own else set()
    return {name for name in names - OUTSIDE if not name.startswith("pretrained")}


def _named(function: Callable) -> set[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):  # of C
        return set()
    return {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


# ---------------------------------------------------------------- flags of a run


def typed_flags(content: object, where: str) -> dict[str, object]:
    """Return flags that a run, or timm, has recorded, with the types and ranges that they have when typed.

    What is no flag of ``train_w2s.py`` is left out.

    Raises:
        UserError: no mapping, or a value that the command line would not take.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{where}: expected a mapping of flags to values, found a {type(content).__name__}")
    parser = train_parser()
    known = {k: list(v) if isinstance(v, tuple) else v for k, v in content.items() if k in parser.by_dest()}
    values = check_flags(known, parser, where)
    try:
        check_values(values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return values


def refuse_addresses(flags: Mapping[str, object], names: Mapping[str, str], where: str) -> None:
    """Raise a `UserError` when a `Role.PLACE` among the flags of a run is not one model, or not on this machine.

    A run of others could have anything fetched by them, and webdataset runs commands that stand where a path does.
    """
    for name in sorted(train_parser().names(Role.PLACE) & names.keys()):
        value = flags.get(name)
        if name == "val_sets" and isinstance(value, list):
            places = [str(text).partition("=")[2] for text in value]
            value = next((p for p in places if ":" in p and p.split("/")[0].lower() not in ("torch", "w2s")), None)
        if not isinstance(value, str):
            continue
        odd = ":" in value  # as in an address
        if name == "dataset":
            odd |= value.split("/")[0].lower() not in LOCAL_DATASETS
        elif name == "model":  # neither a file with names, nor a pattern, nor all of them
            odd = value == "all" or not re.fullmatch(r"[\w.-]+", value)
        if odd:
            flag = f"--{names[name].replace('_', '-')}"
            raise UserError(f"{where}: it names {value!r:.80}, an address or more than one model, and nothing that a "
                            f"run names is fetched: if it is meant, give {flag} {value:.80}")
