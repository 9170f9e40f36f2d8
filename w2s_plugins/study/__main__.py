"""``python -m w2s_plugins.study COMMAND``."""

from ..cli.parser import Parser
from ..errors import UserError, nearest, run_main
from . import commands as study
from . import cost, report_commands


def main() -> None:
    """Run one sub-command."""
    parser = Parser(prog="python -m w2s_plugins.study", description="Plan and run experiments of many runs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    study.add_commands(commands)
    cost.add_command(commands)
    report_commands.add_commands(commands)
    args, unknown = parser.parse_known_args()
    if unknown:
        flag = unknown[0].split("=")[0]
        hint = nearest(flag, commands.choices[args.command].flags())
        raise UserError(f"{args.command}: unknown argument '{flag}'{hint}; see --help")
    args.run(args)


if __name__ == "__main__":
    run_main(main, "w2s_plugins.study")
