"""``python -m w2s_plugins.labels COMMAND``. What a command needs is imported when its flags are right."""

from importlib import import_module
from pathlib import Path

from ..cli.parser import read_command
from ..errors import UserError, run_main


def main() -> None:
    """Run one command, the function of its name in `commands`, or one in `audit`. Raises `UserError` for wrong flags."""
    command, values = read_command("labels")
    output: Path | None = values.get("output")
    # before torch is imported, which takes seconds
    if command == "export" and output is not None:
        fits = output.suffix == ".npz" and output.parent.is_dir()
        if not fits or output.exists():
            raise UserError(
                f"--output {output}: expected the name of a new file that ends in .npz, in a folder that is "
                "there"
            )
    if command in ("check", "stats"):
        files = values.get("files") or filter(None, (values["file"], values["against"]))
        import_module(".ahead", __package__).check_files(
            [*files], values["task"], values["class_names"]
        )
    # what asks the student of a run is in a room below this one; import is no name of a function
    below = {
        "import": (".imports.command", "import_labels"),
        "audit": ("..audit.run", "audit"),
        "next": ("..audit.next_round", "ask_next"),
        "review": ("..audit.review", "review"),
    }
    module, function = below.get(command, (".commands", command))
    getattr(import_module(module, __package__), function)(**values)


def console() -> None:
    """The command of that name, ``w2s-labels``, and ``python -m``."""
    run_main(main, "w2s_plugins.labels")


if __name__ == "__main__":
    console()
