"""Command lines of the two scripts, and their console commands, ``w2s-train`` and ``w2s-validate``."""

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType

from ..errors import run_main
from ..files import TOP
from ..registry import check_versions
from .declare import Parser
from .parser import Command, ExplicitFlags, parse, train_parser, validate_parser

__all__ = [
    "Command",
    "ExplicitFlags",
    "load_script",
    "parse",
    "read_flags",
    "train_parser",
    "validate_parser",
]


def train() -> None:
    """Do what ``python train_w2s.py`` does."""
    _run_script("train_w2s", train_parser)


def validate() -> None:
    """Do what ``python validate.py`` does."""
    _run_script("validate", validate_parser)


def _run_script(name: str, parser: Callable[[], Parser]) -> None:
    program = f"{name}.py"
    # packages that are too old would fail in their own words
    run_main(check_versions, program)
    command = run_main(lambda: read_flags(parser()), program)
    run_main(lambda: load_script(name).main(command), program)


def read_flags(parser: Parser) -> Command:
    """Return the command line: --help, wrong flags and wrong tables are answered before torch is imported, for seconds."""
    command = parse(parser)
    if {"teacher", "train_labels", "val_labels"} & command[1]:
        # labels are in a room below this one
        import_module("..labels.ahead", __package__).check_tables(vars(command[0]))
    return command


def load_script(name: str) -> ModuleType:
    """Import ``train_w2s`` or ``validate``, which are no modules of the package but stand beside it, or in `files.TOP`."""
    # in front, because another package may have a module called validate; and no longer than the import takes
    sys.path.insert(0, str(TOP))
    try:
        return import_module(name)
    finally:
        sys.path.remove(str(TOP))
