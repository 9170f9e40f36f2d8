"""The console commands of an installed package: each runs a script, or a module as ``python -m`` does."""

import runpy
import sys
from pathlib import Path

from .files import TOP

MODULES = {"w2s-train": "train_w2s", "w2s-validate": "validate", "w2s-predict": "w2s_plugins.predictions"}


def main() -> None:
    """Run the command of the name that was typed: ``w2s-train``, ``w2s-study``, ..."""
    name = sys.argv[0] = Path(sys.argv[0]).stem
    sys.path.insert(0, str(TOP))
    runpy.run_module(MODULES.get(name) or f"w2s_plugins.{name.removeprefix('w2s-')}", run_name="__main__")
