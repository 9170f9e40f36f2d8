"""The parsers of the two scripts: flags, YAML files and defaults merged, every key checked."""

import argparse
import copy
import functools
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import UserError, called, nearest, one_line
from ..files import RECIPE, TOP, read_plain, recipe_path, special_kind
from . import groups
from .declare import SWITCHES, OutOfRange, ParseKwargs, Parser, is_plain, words_of
from .idle import refuse_idle
from .values import check_values, refuse_tokens


@functools.cache
def train_parser() -> Parser:
    """The parser of ``train_w2s.py``: the weak-to-strong groups first, then timm's."""
    parser = Parser(
        prog=called("train_w2s.py"),
        usage="%(prog)s [--config FILE ...] [--teacher NAME] [--model NAME] [--loss NAME] [options]",
        description="Train a strong student on what a weak teacher says. Takes every flag of timm's train.py.",
    )
    _add_config(parser)
    groups.add_teacher(parser.group("weak teacher"))
    groups.add_loss(parser.group("distillation loss"))
    groups.add_protocol(parser.group("weak-to-strong protocol"))
    groups.add_few_shot(parser.group("few-shot learning"))
    groups.add_labels(parser.group("noisy labels"))
    groups.add_hub(parser.group("Hugging Face Hub"))
    groups.add_run(parser.group("run"))
    groups.add_dataset(parser.group("data"))
    groups.add_model(parser.group("student"))
    groups.add_device(parser.group("device and precision"))
    groups.add_optimizer(parser.group("optimizer"))
    groups.add_schedule(parser.group("learning-rate schedule"))
    groups.add_augmentation(parser.group("augmentation and regularisation"))
    groups.add_batch_norm(parser.group("batch norm"))
    groups.add_ema(parser.group("average of the weights"))
    groups.add_misc(parser.group("logging, checkpoints, loading"))
    groups.add_timm_distillation(parser.group("timm's own distillation"))
    groups.add_naflex(parser.group("NaFlex"))
    groups.add_released_code(parser.group("flags of the released code of Vision Superalignment"))
    return parser


@functools.cache
def validate_parser() -> Parser:
    """The parser of ``validate.py``."""
    parser = Parser(
        prog=called("validate.py"),
        usage="%(prog)s [--model NAME] [--checkpoint PATH] [--data-dir DIR] [options]",
        description="Evaluate a model, with or without its teacher. Takes every flag of timm's validate.py.",
    )
    _add_config(parser)
    groups.add_validation_teacher(parser.group("teacher and ceiling"))
    groups.add_validation_data(parser.group("data"))
    groups.add_validation_model(parser.group("model"))
    groups.add_validation_few_shot(parser.group("few-shot learning"))
    groups.add_validation_report(parser.group("report"))
    return parser


def parse(parser: Parser, argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, set[str]]:
    """Parse a command line: defaults < first --config < ... < last --config < flags.

    Returns:
        The values of all flags, and the names of those that were given in a file or on the command line.

    Raises:
        UserError: unknown flag or key, a value of the wrong type or out of range, or a flag that has no effect.
    """
    words = sys.argv[1:] if argv is None else argv
    refuse_tokens(words)
    typed = parser.take(words)
    given: dict[str, object] = {}
    layers = [read_config(file, parser) for file in typed.pop("config", [])]
    for layer in (*layers, typed):
        _overlay(given, layer)
    check_values(given)
    args, _ = fill(parser, given)
    refuse_idle(parser, args, {name for layer in layers for name in layer}, typed)
    return args, set(given)


def fill(parser: Parser, given: Mapping[str, object]) -> tuple[argparse.Namespace, set[str]]:
    """Return all flags, with defaults where nothing is given, and the names of those that are given."""
    return argparse.Namespace(**{**parser.defaults(), **copy.deepcopy(given)}), set(given)


def _overlay(values: dict[str, object], later: dict[str, object]) -> None:
    """Let later values win, in place; a loss that another one replaces takes its kwargs with it."""
    replaced, loss = (layer.get("distiller") or layer.get("loss") for layer in (values, later))
    if replaced and loss and replaced != loss:
        values.pop("loss_kwargs", None)
    values.update(later)


def read_config(
        file: str,
        parser: Parser,
        readers: tuple[str, ...] = (),
        flag: str = "--config",
) -> dict[str, object]:
    """Read one YAML file of flags, as names with underscores or dashes.

    The files that it names under ``config``, relative to itself, are read before it; those of ``weak_config`` and
    ``ceiling_config`` are relative to it as well.

    Args:
        file: path of the file, or ``w2s:NAME``.
        parser: knows the flags.
        readers: the files that led to this one, each named by the one before it.
        flag: the flag that named the first of them.

    Raises:
        UserError: naming the file, the key and the nearest valid one.
    """
    where, named_by = f"{flag} {file}", f", named by {readers[-1]}" if readers else ""
    path = yaml_file(file, where, named_by)
    if file in readers:
        raise UserError(f"{where}: the file names itself: {' -> '.join((*readers, file))}")
    try:
        content = read_plain(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: not a YAML file: {one_line(error)}") from error
    values: dict[str, object] = {}
    bases = content.pop("config", []) if isinstance(content, dict) else []
    for base in _names_of_files(bases, where):
        _overlay(values, read_config(_beside(base, path), parser, (*readers, file), flag))
    own = check_flags(content, parser, where)
    for name in own.keys() & {"weak_config", "ceiling_config"}:
        own[name] = [_beside(other, path) for other in own[name]]
    _overlay(values, own)
    return values


def yaml_file(name: str, where: str, named_by: str = "") -> Path:
    """Return the path of a YAML file that was named, or ``w2s:NAME``.

    Args:
        name: as it was typed.
        where: begins the message.
        named_by: ends what it says of a file that is not there.

    Raises:
        UserError: there is no such file.
    """
    path = recipe_path(name, where)
    if kind := "a folder" if path.is_dir() else special_kind(path):
        raise UserError(f"{where}: is {kind}; expected a YAML file{named_by}")
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path("hparams")
        recipe = TOP / path.with_suffix(".yaml")
        hint = nearest(str(path), [str(p) for p in folder.rglob("*.y*ml")])
        if path.parts[0] == "hparams" and recipe.is_file() and not hint:  # as in a checkout, typed elsewhere
            hint = f"; as it comes with the package: {RECIPE}{path.relative_to('hparams').with_suffix('').as_posix()}"
        raise UserError(f"{where}: no such file{named_by}{hint}")
    return path


def _beside(name: str, file: Path) -> str:
    """Return the path of a file that ``file`` names, relative to itself; recipes of this project have names."""
    return name if name.startswith(RECIPE) else os.path.normpath(file.parent / name)


def check_flags(content: object, parser: Parser, where: str) -> dict[str, object]:
    """Return a mapping of flags to values, as it was read from YAML, with the types that they have when typed.

    Args:
        content: the mapping; None is an empty one.
        parser: knows the flags.
        where: begins the messages.

    Raises:
        UserError: naming the key and the nearest valid one.
    """
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected a mapping of flags to values, found a {type(content).__name__}")
    actions, words, values = parser.by_dest(), {}, {}
    for key, value in content.items():
        dest = str(key).replace("-", "_")
        if dest not in actions:
            raise UserError(f"{where}: unknown key '{key}'{nearest(dest, actions)}")
        default = actions[dest].own_default
        values[dest] = value = type(default)() if value is None and default in ("", [], {}) else value
        try:
            if not is_plain(actions[dest], value):
                words[dest] = words_of(actions[dest], value)
        except TypeError as error:
            raise _wrong_type(where, actions[dest], value) from error
    try:
        in_order = sorted(words, key=lambda dest: bool(actions[dest].option_strings))  # else a list takes the others
        return values | parser.take(itertools.chain.from_iterable(words[dest] for dest in in_order))
    except UserError:
        placed = [word for dest in in_order if not actions[dest].option_strings for word in words[dest]]
        for dest, some in words.items():  # which one is it?
            try:
                parser.take([*placed, *some] if actions[dest].option_strings else placed)
            except OutOfRange as error:
                raise UserError(f"{where}: {error}") from error
            except UserError as error:
                raise _wrong_type(where, actions[dest], values[dest]) from error
        raise


def _names_of_files(value: object, where: str) -> list[str]:
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}: config: {value!r} is not the name of a file or a list of names")
    return names


def _add_config(parser: Parser) -> None:
    parser.add_argument("-c", "--config", nargs="+", action="extend", default=argparse.SUPPRESS, metavar="FILE",
                        help="YAML files with flags, w2s:NAME for hparams/NAME.yaml; later files win, the command line "
                        "wins over all; a file's config names others that are read before it")


def _wrong_type(where: str, action: argparse.Action, value: object) -> UserError:
    shown = repr(value) if len(repr(value)) < 60 else repr(value)[:57] + "..."
    expected = _expected(action, value)
    return UserError(f"{where}: {action.dest}: {shown} is a {type(value).__name__}, expected {expected}")


def _expected(action: argparse.Action, value: object) -> str:
    """Say what a flag takes."""
    if isinstance(action, SWITCHES):
        return "true or false"
    if value is None:
        return "a value"
    if isinstance(action, ParseKwargs):
        return "a mapping, or key=value"
    if isinstance(action.nargs, int) and isinstance(value, list) and len(value) != action.nargs:
        return f"{action.nargs} values"
    if action.choices is not None and isinstance(value, str):
        return f"one of {', '.join(map(str, filter(None, action.choices)))}"
    return getattr(action.type or str, "__name__", "a value").replace("_", " ")
