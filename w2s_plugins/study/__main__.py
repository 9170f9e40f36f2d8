"""``python -m w2s_plugins.study COMMAND``: its flags. What a command needs is imported when they are right."""

import argparse
from importlib import import_module
from pathlib import Path

from ..cli.parser import Parser
from ..errors import called, run_main
from ..files import recipe_path


def read_words() -> tuple[str, dict[str, object]]:
    """Return the command that was typed and the values of its flags. Raises `UserError` for what is wrong with them."""
    parser = Parser(prog=called("python -m w2s_plugins.study"), description="Plan and run experiments of many runs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_study(commands)
    _add_report(commands)
    return parser.parse_command(commands)


def main() -> None:
    """Run one sub-command: its flags are the arguments of a function."""
    command, values = read_words()
    module = import_module(".report" if command == "report" else ".commands", __package__)
    getattr(module, f"run_{command}")(**values)


def count(text: str) -> int:
    """Read a whole number from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {value}")
    return value


def _add_study(commands: argparse._SubParsersAction) -> None:
    """Add what plans and runs a study."""
    plan = commands.add_parser("plan", help="check a study and show its runs", description=(
        "Check every command of a study and show its runs. With --output the folder of the study is made."))
    run = commands.add_parser("run", help="train what is not trained yet", description=(
        "Train every run of a study that is not finished, each in a process of its own. Killed at any moment and "
        "started again, it goes on. Exit code 1 when a run failed."))
    for parser in (plan, run):
        parser.add_argument("spec", type=recipe_path, metavar="STUDY.yaml", help="the specification, "
                            "w2s:studies/NAME for one of the package's, or the folder of a study")
        parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the study (default: "
                            "output/studies/NAME, after the file; `plan` makes a folder only where it is given)")
    run.add_argument("--jobs", type=count, metavar="N", help="runs at a time (default: one for each GPU in "
                     "CUDA_VISIBLE_DEVICES, else one for each core)")
    run.add_argument("--slurm", action="store_true", help="submit the runs to SLURM in place of running them here")
    run.add_argument("--slurm-options", nargs="+", default=[], metavar="NAME=VALUE", help="parameters of submitit: "
                     "timeout_min=240 slurm_partition=gpu gpus_per_node=1 cpus_per_task=8")

    status = commands.add_parser("status", help="what runs, what failed, what is left")
    status.add_argument("study", type=Path, metavar="DIR", help="folder of the study")


def _add_report(commands: argparse._SubParsersAction) -> None:
    """Add what collects results."""
    report = commands.add_parser("report", help="the results of many runs as a page with figures", description=(
        "Compare the finished runs in a folder and print the table. Writes index.html, one page that needs no network, "
        "README.md with the same in Markdown, the figures, table.csv and table.tex."))
    add = report.add_argument
    add("folder", type=Path, metavar="DIR", help="folder of a study, or any folder with runs in it, a run itself among "
        "them")
    add("--reference", metavar="LOSS", help="loss that the others are compared with, or best: the one with the "
        "highest mean, corrected for all pairs (default: kd where there is one, else best)")
    add("--title", metavar="TEXT", help="heading (default: the name of the folder)")
    add("--output", type=Path, metavar="FOLDER", help="where it goes (default: DIR/report)")


if __name__ == "__main__":
    run_main(main, "w2s_plugins.study")
