"""The parsers of the two scripts: flags, YAML files and defaults merged, every key checked."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from timm.utils import ParseKwargs

from ..errors import UserError, nearest, one_line
from ..plain_files import read_plain
from . import groups
from .idle import refuse_idle
from .values import check_values, refuse_tokens


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations whose errors are `UserError`s with the nearest flag."""

    def __init__(self, **kwargs: object):
        super().__init__(allow_abbrev=False, formatter_class=HelpFormatter, **kwargs)

    def error(self, message: str) -> None:
        raise UserError(message)

    def flags(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings if option.startswith("--")]

    def by_dest(self) -> dict[str, argparse.Action]:
        return {a.dest: a for a in self._actions if a.dest not in ("help", "config")}

    def group(self, title: str) -> groups.Adder:
        return self.add_argument_group(title).add_argument


class HelpFormatter(argparse.HelpFormatter):
    """Wider help with defaults where they say something."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=110)

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", getattr(action, "own_default", action.default)
        shown = default not in (None, False, "", argparse.SUPPRESS) and default not in ([], {})
        value = " ".join(map(str, default)) if isinstance(default, list) else str(default)
        return f"{text} (default: {value.replace('%', '%%')})" if shown and "default" not in text else text


def train_parser() -> Parser:
    """The parser of ``train_w2s.py``: the weak-to-strong groups first, then timm's."""
    parser = Parser(
        prog="train_w2s.py",
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
    model = parser.add_argument_group("student")
    groups.add_model(model.add_argument, model)
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


def validate_parser() -> Parser:
    """The parser of ``validate.py``."""
    parser = Parser(
        prog="validate.py",
        usage="%(prog)s [--model NAME] [--checkpoint PATH] [--data-dir DIR] [options]",
        description="Evaluate a model, with or without its teacher. Takes every flag of timm's validate.py.",
    )
    _add_config(parser)
    groups.add_validation_teacher(parser.group("teacher and ceiling"))
    groups.add_validation_data(parser.group("data"))
    model = parser.add_argument_group("model")
    groups.add_validation_model(model.add_argument, model)
    groups.add_validation_few_shot(parser.group("few-shot learning"))
    groups.add_validation_report(parser.group("report"))
    return parser


def parse(parser: Parser, argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, set[str]]:
    """Parse a command line: defaults < first --config < ... < last --config < flags.

    Returns:
        The values of all flags, and the names of those that were given in a file or on the command line.

    Raises:
        UserError: unknown flag or key, a value of the wrong type, or a flag that has no effect.
    """
    refuse_tokens(sys.argv[1:] if argv is None else argv)
    defaults = {dest: action.default for dest, action in parser.by_dest().items()}
    for action in parser._actions:
        action.own_default = action.default  # for --help
        action.default = argparse.SUPPRESS  # so that the namespace holds only what was typed
    try:
        typed, unknown = parser.parse_known_args(argv)
    finally:
        for dest, action in parser.by_dest().items():
            action.default = defaults[dest]
    if unknown:
        flag = unknown[0].split("=")[0]
        hint = nearest(flag, parser.flags()) if flag.startswith("-") else ""
        raise UserError(f"unknown {'flag' if flag.startswith('-') else 'argument'} '{flag}'{hint}; see --help")
    typed = vars(typed)
    given: dict[str, object] = {}
    layers = [read_config(file, parser) for file in typed.pop("config", [])]
    for layer in (*layers, typed):
        _overlay(given, layer)
    check_values(given)
    args = argparse.Namespace(**{**defaults, **given})
    refuse_idle(args, defaults, {name for layer in layers for name in layer}, typed)
    return args, set(given)


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

    The files that it names under ``config``, relative to itself, are read before it.

    Args:
        file: path of the file.
        parser: knows the flags.
        readers: the files that led to this one, each named by the one before it.
        flag: the flag that named the first of them.

    Raises:
        UserError: naming the file, the key and the nearest valid one.
    """
    path, where, named_by = Path(file), f"{flag} {file}", f", named by {readers[-1]}" if readers else ""
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path("hparams")
        hint = nearest(str(path), [str(p) for p in folder.rglob("*.yaml")])
        raise UserError(f"{where}: no such file{named_by}{hint}")
    if file in readers:
        raise UserError(f"{where}: the file names itself: {' -> '.join((*readers, file))}")
    try:
        content = read_plain(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: not a YAML file: {one_line(error)}") from error
    values: dict[str, object] = {}
    bases = content.pop("config", []) if isinstance(content, dict) else []
    for base in _names_of_files(bases, where):
        _overlay(values, read_config(os.path.normpath(path.parent / base), parser, (*readers, file), flag))
    _overlay(values, check_flags(content, parser, where))
    return values


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
    actions = parser.by_dest()
    values = {}
    for key, value in content.items():
        dest = str(key).replace("-", "_")
        if dest not in actions:
            raise UserError(f"{where}: unknown key '{key}'{nearest(dest, actions)}")
        values[dest] = _coerce(actions[dest], value, where)
    return values


def _names_of_files(value: object, where: str) -> list[str]:
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}: config: {value!r} is not the name of a file or a list of names")
    return names


def _add_config(parser: Parser) -> None:
    parser.add_argument("-c", "--config", nargs="+", action="extend", default=[], metavar="FILE",
                        help="YAML files with flags; later files win, the command line wins over all; a file's config "
                        "names others that are read before it")


def _coerce(action: argparse.Action, value: object, where: str) -> object:
    """Bring a YAML value to the type that the flag has on the command line."""
    def wrong(expected: str) -> UserError:
        shown = repr(value) if len(repr(value)) < 60 else repr(value)[:57] + "..."
        return UserError(f"{where}: {action.dest}: {shown} is a {type(value).__name__}, expected {expected}")

    if value is None:
        if action.default is None:
            return None
        raise wrong("a value")
    if isinstance(action, argparse._StoreTrueAction):
        if not isinstance(value, bool):
            raise wrong("true or false")
        return value
    if isinstance(action, ParseKwargs):
        return _coerce_kwargs(value, wrong)
    if action.nargs in ("+", "*") or isinstance(action.nargs, int):
        items = value if isinstance(value, list) else [value]
        if isinstance(action.nargs, int) and len(items) != action.nargs:
            raise wrong(f"{action.nargs} values")
        return [_coerce_scalar(action, item, wrong) for item in items]
    return _coerce_scalar(action, value, wrong)


def _coerce_kwargs(value: object, wrong: object) -> dict[str, object]:
    if isinstance(value, dict):
        return {str(k): v for k, v in value.items()}
    namespace = argparse.Namespace()
    words = map(str, value) if isinstance(value, list) else str(value).split()
    try:
        ParseKwargs([], "kwargs")(None, namespace, list(words))
    except ValueError as error:
        raise wrong("a mapping, or key=value") from error
    return namespace.kwargs


def _coerce_scalar(action: argparse.Action, value: object, wrong: object) -> object:
    if isinstance(value, (dict, list, bool)):
        raise wrong(_type_name(action))
    kind = action.type or str
    if kind is int and isinstance(value, float) and not value.is_integer():
        raise wrong("int")
    try:
        if kind is int and isinstance(value, float):
            result = int(value)
        elif isinstance(kind, type):
            result = kind(value)
        else:
            result = kind(str(value))
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        raise wrong(_type_name(action)) from error
    if action.choices is not None and result not in action.choices:
        raise wrong(f"one of {', '.join(map(str, action.choices))}")
    return result


def _type_name(action: argparse.Action) -> str:
    return getattr(action.type or str, "__name__", "a value").replace("_", " ")
