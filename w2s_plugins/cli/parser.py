"""The parsers of the two scripts: flags, YAML files and defaults merged, every key checked."""

import argparse
import copy
import functools
import os
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError, called, near_path, nearest, one_line, said_of
from ..files import is_name, read_plain, recipe_path, special_kind
from ..settings.concerns import Debugging
from ..settings.concerns.subcommands import SUBCOMMANDS
from ..settings.field import flags_of, option, shown_value
from ..settings.forms import parse_labels
from ..settings.programs import Program, predict_program, train_program, validate_program
from ..settings.values import check_values
from .declare import Parser


class ExplicitFlags(set[str]):
    """Names of the flags that were set by hand.

    Args:
        names: of all.
        typed: of those on the command line; the others are in a file.
    """

    def __init__(self, names: Iterable[str], typed: Iterable[str] = ()):
        super().__init__(names)
        self.typed = frozenset(typed)


# all flags, and the names of those that were set by hand
Command = tuple[argparse.Namespace, ExplicitFlags]

FIRST_HELP = """\
usage: {prog} [--teacher NAME] [--model NAME] [--data-dir DIR] [options]

Train a strong student on what a weak teacher says of its images. Flags of a first run:
  --data-dir DIR          folder with train/CLASS/ and validation/CLASS/ of images (or set IMAGENET_DIR)
  --train-labels FILE     table of the true labels, in place of class folders; so --val-labels FILE
  --val-split NAME        folder to validate on (default: validation); --train-slice A:B: a part of train
  --unlabeled PATH        images without labels to train on: a folder, at any depth, or a tar file
  --dataset NAME          a data set by its name: torch/cifar100, hfds/ORG/NAME, w2s/digits
  --class-names A,B,C     the classes, or a file with one name a line; --num-classes N: how many

  --model NAME            the student: a model of timm, or hf-hub:ORG/NAME (default: resnet50)
  --pretrained            start from its pretrained weights; --pretrained-path FILE: those of a file
  --img-size N            side of the images in pixels; --scale MIN MAX: area of random crops
  --tune PART             train only a part of it: head, norm, bias, last:2, lora (default: all)

  --teacher NAME          who labels: labels:FILE, a model of timm, hf-hub:ORG/NAME, a run folder,
                          clip:MODEL/PRETRAINED, ...; several, separated by commas, are an ensemble
  --teacher-checkpoint P  its weights: a file, or a run folder
  --loss NAME             how the student learns from it (default: adaptconf; all: --list-losses)
  --task-loss-weight W    weight of ground truth beside it; 0: the teacher's labels alone (default: 1)

  --config NAME ...       flags that belong together: weak-labels, another of hparams/README.md, or a
                          YAML file of yours; what you type wins over them
  --epochs N              (default: 300); --val-interval N, --batch-size N, --lr LR, --opt NAME, --amp
  --protocol w2s          train teacher, student and ceiling, and report the gap recovered
  --stages FILE           several students: weak-labels-candidates, weak-labels-plus-few-true, or a file
  --experiment NAME       folder of the run, below --output DIR (default: ./output/train)
  --resume auto           go on where the run of this name was stopped

Examples:
  {prog} --unlabeled photos --teacher labels:answers.csv \\
      --model vit_small_patch16_224 --pretrained --config weak-labels
  {prog} --teacher resnet18 --model vit_base_patch16_224 --data-dir IMAGENET
  {prog} --config digits-cnn2-cnn5 --experiment first

All flags, those of timm's train.py among them: {prog} --help-all
"""


def _parser_of(program: Program, first_help: str = "", has_files: bool = True) -> Parser:
    """Return the parser of a program; ``has_files``: it takes YAML files of flags."""
    parser = Parser(
        first_help,
        prog=called(program.prog),
        usage=program.usage,
        description=program.help,
    )
    if has_files:
        parser.add_argument(
            "-c",
            "--config",
            nargs="+",
            action="extend",
            default=argparse.SUPPRESS,
            metavar="FILE",
            help="YAML files with flags, or names of the package's (hparams/README.md); later files win, the command "
            "line wins over all; a file's config names others that are read before it",
        )
    for title, flags in program.groups.items():
        parser.add_flags(flags, title)
    return parser


@functools.cache
def train_parser() -> Parser:
    """The parser of ``train_w2s.py``."""
    return _parser_of(train_program(), FIRST_HELP)


@functools.cache
def validate_parser() -> Parser:
    """The parser of ``validate.py``."""
    return _parser_of(validate_program())


@functools.cache
def predict_parser() -> Parser:
    """The parser of ``python -m w2s_plugins.predictions``."""
    return _parser_of(predict_program(), has_files=False)


def read_command(package: str) -> tuple[str, dict[str, Any]]:
    """Return the sub-command of ``python -m w2s_plugins.PACKAGE`` that was typed, and the values of its flags.

    Raises:
        UserError: it has no such flag.
    """
    description, concerns = SUBCOMMANDS[package]
    parser = Parser(prog=called(f"python -m w2s_plugins.{package}"), description=description)
    adder = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands: dict[str, Parser] = {}
    for name, concern in concerns.items():
        # the docstring as a part of a sentence
        text = " ".join((concern.__doc__ or "").split()).removesuffix(".")
        text = text[:1].lower() + text[1:]
        commands[name] = adder.add_parser(name, help=text, description=text)
        commands[name].add_flags([*flags_of(concern), *flags_of(Debugging)])
    # a flag of the command that was typed, not of another one, is the nearest
    args, unknown = parser.parse_known_args()
    typed = vars(args)
    name = typed.pop("command")
    command = commands[name]
    with said_of(f"{name}: "):
        command.check(typed, unknown)
    values = command.defaults() | typed
    # an argument by position is named as the help does
    check_values(
        {
            dest.upper() if flag.is_positional else dest: values[dest]
            for dest, flag in command.by_dest().items()
        }
    )
    # run_main looks for --debug on the command line
    values.pop("debug")
    return name, values


def parse(parser: Parser, argv: Sequence[str] | None = None) -> Command:
    """Parse a command line: defaults < first --config < ... < last --config < flags.

    Returns:
        The values of all flags, and the names of those that were given in a file or on the command line.

    Raises:
        UserError: unknown flag or key, a value of the wrong type or out of range, or a flag that has no effect.
    """
    typed = parser.take(sys.argv[1:] if argv is None else argv)
    return combine(parser, typed.pop("config", []), typed)


def combine(parser: Parser, files: Iterable[str], typed: dict[str, object]) -> Command:
    """Return what `parse` does, for YAML files and the flags that win over them."""
    # later files win over earlier ones, the command line over all
    given: dict[str, object] = {}
    for file in files:
        overlay(given, read_config(file, parser))
    overlay(given, typed)
    keep_typed(given, typed)
    # what a value may be is known of each; what they mean together is checked once torch is there
    check_values(given)
    args, names = fill(parser, given)
    # of some flags one at most can be given; argparse sees the command line alone, not the files
    first: dict[str, str] = {}
    for dest, flag in parser.by_dest().items():
        if flag.one_of and getattr(args, dest) != flag.default:
            other = first.setdefault(flag.one_of, dest)
            if other != dest:
                raise UserError(
                    f"{option(other)} and {option(dest)} exclude each other: give one of them"
                )
    # what a recipe sets for those who add the flag that it needs is no mistake of theirs
    for_others = {
        name for name, flag in parser.by_dest().items() if flag.in_recipes and name not in typed
    }
    check_needs(parser, args, names - for_others)
    return args, ExplicitFlags(names, typed)


def fill(parser: Parser, given: Mapping[str, object]) -> Command:
    """Return all flags, with defaults where nothing is given, and the names of those that are given.

    Raises:
        UserError: ``--teacher labels:FILE?SETTING=VALUE`` has a setting that there is not.
    """
    # values may be changed later, and those of a file are used for several runs
    args = argparse.Namespace(**{**parser.defaults(), **copy.deepcopy(given)})
    parse_labels(args.teacher)
    return args, ExplicitFlags(given)


def overlay(values: dict[str, object], later: dict[str, object]) -> None:
    """Let later values win, in place; a loss that another one replaces takes its kwargs with it."""
    replaced, loss = (layer.get("distiller") or layer.get("loss") for layer in (values, later))
    if replaced and loss and replaced != loss:
        values.pop("loss_kwargs", None)
    values.update(later)


def keep_typed(values: dict[str, object], typed: Collection[str]) -> None:
    """Take flags that were typed out of those that change for a transformer, or for several labels an image, in place:
    what is typed stays. If another part of the student was typed than would be trained then, none changes for a
    transformer.
    """
    for name in ("for_transformers", "for_multilabel"):
        changes = values.get(name)
        if not isinstance(changes, dict) or not changes or name in typed:
            continue
        part = changes.get("tune")
        later = part[1:] if isinstance(part, list) else []
        is_other = "tune" in typed and name == "for_transformers" and values["tune"] not in later
        values[name] = {
            changed: change
            for changed, change in changes.items()
            if changed not in typed and not is_other
        }


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
        file: path of the file, or the name of one of the package's.
        parser: knows the flags.
        readers: the files that led to this one, each named by the one before it.
        flag: the flag that named the first of them.

    Raises:
        UserError: naming the file, the key and the nearest valid one.
    """
    where = f"{flag} {file}"
    named_by = f", named by {readers[-1]}" if readers else ""
    if file in readers:
        raise UserError(f"{where}: the file names itself: {' -> '.join((*readers, file))}")
    path, content = read_yaml(file, where, named_by)
    taken_by, what = taker_of(content)
    if taken_by != "--config":
        raise UserError(f"{where}: is {what}; expected flags with values, or {taken_by} {file}")
    # the files that it names come first, because its own values win over theirs
    values: dict[str, object] = {}
    bases = content.pop("config", []) if isinstance(content, dict) else []
    if not isinstance(bases, list):
        bases = [bases]
    if not all(isinstance(base, str) for base in bases):
        raise UserError(f"{where}: config: {bases} is not the name of a file or a list of names")
    for base in bases:
        overlay(values, read_config(_beside(base, path), parser, (*readers, file), flag))
    # names in it are relative to the file, wherever the run starts
    flags = check_flags(content, parser, where)
    for name in ("weak_config", "ceiling_config"):
        others = flags.get(name)
        if isinstance(others, list):
            flags[name] = [_beside(other, path) for other in others]
    overlay(values, flags)
    return values


def taker_of(content: object) -> tuple[str, str]:
    """Return what takes a YAML file with this content, and what the content is."""
    if isinstance(content, list):
        return "--stages", "a list, as of stages"
    if isinstance(content, dict) and content.keys() & {"weak", "strong", "losses"}:
        return "w2s-study run", "a study"
    return "--config", "flags with values"


def read_yaml(name: str | Path, where: str, named_by: str = "") -> tuple[Path, object]:
    """Return the path and the content of a YAML file that was named, or one of the package's.

    Args:
        name: as it was typed, or the path that came of it.
        where: begins the message.
        named_by: ends what it says of a file that is not there.

    Raises:
        UserError: there is no such file, or it is something else.
    """
    path = recipe_path(name, where)
    # whoever opened a FIFO would wait for ever
    kind = "a folder" if path.is_dir() else special_kind(path)
    if kind:
        raise UserError(f"{where}: is {kind}; expected a YAML file{named_by}")
    if not path.is_file():
        raise UserError(f"{where}: no such file{named_by}{near_path(path)}")
    try:
        return path, read_plain(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: not a YAML file: {one_line(error)}") from error


def _beside(name: str, file: Path) -> str:
    """Return the path of a file that ``file`` names, relative to itself; those of the package have names."""
    if is_name(name):
        return name
    # a path that has become a name alone, a.yaml beside the file without its suffix, stays a path
    path = os.path.normpath(file.parent / name)
    return os.path.join(os.curdir, path) if is_name(path) else path


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
        raise UserError(
            f"{where}: expected a mapping of flags to values, found a {type(content).__name__}"
        )
    known = parser.by_dest()
    values = {}
    for key, value in content.items():
        dest = str(key).replace("-", "_")
        if dest not in known:
            raise UserError(f"{where}: unknown key '{key}'{nearest(dest, known)}")
        # YAML is read without; JSON and Python can have --batch-size with a dash and with an underscore
        if dest in values:
            raise UserError(f"{where}: {dest} is given twice; expected one of them")
        flag = known[dest]
        try:
            values[dest] = flag.take(value)
        except argparse.ArgumentTypeError as error:
            raise UserError(f"{where}: {dest}: {error}") from error
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{where}: {dest}: {value!r:.60} is a {type(value).__name__}, expected "
                f"{flag.expected(value)}"
            ) from error
        with said_of(f"{where}: "):
            flag.check_range(values[dest])
    return values


def check_needs(parser: Parser, args: argparse.Namespace, given: set[str]) -> None:
    """Raise a `UserError` for the first flag without the one that it belongs to, and of which it would have no effect.

    A default value, and what a flag without a value is when it is not typed, ask for nothing.
    """
    known = parser.by_dest()

    def used(name: str) -> bool:
        # a value that is the default is as good as none
        value = getattr(args, name)
        return value is not False and value not in (None, "", []) and value != known[name].default

    # in the order of the help, so that the first message is the same every time
    for name, flag in known.items():
        needs = [need for need in flag.needs if need in known]  # not every script has all
        if name not in given or not needs or not used(name):
            continue
        # each stage may have a teacher of its own, or measure itself
        of_stages = {"teacher", "select"} & {*needs} and getattr(args, "stages", None)
        if of_stages or any(map(used, needs)):
            continue
        value = getattr(args, name)
        shown = option(name) if value is True else f"{option(name)} {shown_value(value)}"
        needed = " or ".join(f"{option(need)} {known[need].form}".rstrip() for need in needs)
        raise UserError(
            f"{shown} has no effect without {needed}: add it, or leave {option(name)} out"
        )
