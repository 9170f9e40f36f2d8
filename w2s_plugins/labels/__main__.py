"""``python -m w2s_plugins.labels COMMAND``. What a command needs is imported when its flags are right."""

from importlib import import_module

from ..cli.parser import read_command
from ..errors import UserError, run_main


def main() -> None:
    """Run one command, the function of its name in `commands`. Raises `UserError` for what is wrong with its flags."""
    command, values = read_command("labels")
    output = values.get("output")
    if command == "check" and output is not None and not values["against"]:
        raise UserError(f"--output {output} has no effect without --against FILE: it lists where two tables differ")
    if command == "export" and (output.suffix != ".npz" or output.exists() or not output.parent.is_dir()):
        raise UserError(f"--output {output}: expected the name of a new file that ends in .npz, in a folder that is "
                        "there")
    getattr(import_module(".commands", __package__), command)(**values)


if __name__ == "__main__":
    run_main(main, "w2s_plugins.labels")
