"""Command lines of the two scripts, and the console commands of an installed package."""

import runpy
import sys
from pathlib import Path

from ..files import TOP
from .parser import Command, Given, parse, train_parser, validate_parser

__all__ = ["Command", "Given", "main", "parse", "train_parser", "validate_parser"]

MODULES = {
    "w2s-train": "train_w2s",
    "w2s-validate": "validate",
    "w2s-predict": "w2s_plugins.predictions",
}


def main() -> None:
    """Run the command of the name that was typed, ``w2s-train`` or ``w2s-study``, as ``python -m`` does."""
    name = sys.argv[0] = Path(sys.argv[0]).stem
    sys.path.insert(0, str(TOP))
    runpy.run_module(
        MODULES.get(name) or f"w2s_plugins.{name.removeprefix('w2s-')}", run_name="__main__"
    )
