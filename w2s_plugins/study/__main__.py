"""``python -m w2s_plugins.study COMMAND``. What a command needs is imported when its flags are right."""

from importlib import import_module

from ..cli.parser import read_command
from ..errors import run_main


def main() -> None:
    """Run one sub-command: its flags are the arguments of a function."""
    command, values = read_command("study")
    module = import_module(".report" if command == "report" else ".commands", __package__)
    getattr(module, f"run_{command}")(**values)


def console() -> None:
    """The command of that name, ``w2s-study``, and ``python -m``."""
    run_main(main, "w2s_plugins.study")


if __name__ == "__main__":
    console()
