"""``python -m w2s_plugins.study COMMAND``: its flags. What a command needs is imported when they are right."""

import argparse
from importlib import import_module
from pathlib import Path

from ..cli.parser import Parser
from ..errors import called, run_main
from ..files import recipe_path
from .layout import DEFAULT_ROOT
from .lease import STALE

# where each command is; its flags are the arguments of the function
FUNCTIONS = {
    "plan": ("commands", "run_plan"),
    "run": ("commands", "run_study"),
    "run-one": ("commands", "run_one"),
    "status": ("commands", "run_status"),
    "submit": ("commands", "run_submit"),
    "cost": ("cost", "run_cost"),
    "table": ("table", "run_table"),
    "report": ("report", "run_report"),
}


def read_words() -> tuple[str, dict[str, object]]:
    """Return the command that was typed and the values of its flags. Raises `UserError` for what is wrong with them."""
    parser = Parser(prog=called("python -m w2s_plugins.study"), description="Plan and run experiments of many runs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_study(commands)
    _add_cost(commands)
    _add_results(commands)
    return parser.parse_command(commands)


def main() -> None:
    """Run one sub-command."""
    command, values = read_words()
    module, function = FUNCTIONS[command]
    getattr(import_module(f".{module}", __package__), function)(**values)


def count(text: str) -> int:
    """Read a whole number from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {value}")
    return value


def rate(text: str) -> float | str:
    """Read images per second, or ``here``."""
    if text == "here":
        return text
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"expected images per second, or here, found {text}")
    return float(text)


def share(text: str) -> float:
    """Read a share above 0, at most 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share above 0, at most 1, found {value:g}")
    return value


def _add_study(commands: argparse._SubParsersAction) -> None:
    """Add what plans and runs a study."""
    plan = commands.add_parser("plan", help="check a study, show its runs and how long they take", description=(
        "Check every command of a study, show what is shared, measure a few steps of each kind of run and say how long "
        "all of it takes. With --output the folder of the study is made."))
    _add_spec(plan)
    _add_slots(plan)
    plan.add_argument("--no-estimate", action="store_true", help="measure nothing")

    run = commands.add_parser("run", help="train what is not trained yet", description=(
        "Train every run of a study that is not finished. Killed at any moment and started again, it goes on; several "
        "of these may work on one folder. Exit code 1 when a run failed twice."))
    _add_spec(run)
    _add_slots(run)
    _add_stale(run)

    one = commands.add_parser("run-one", help="train one run of a study: what a task of `submit` does")
    one.add_argument("study", type=Path, metavar="DIR", help="folder of the study")
    one.add_argument("run_id", metavar="ID", help="the run, as plan.json names it")
    _add_stale(one)

    status = commands.add_parser("status", help="what runs, what failed, how much time is left")
    status.add_argument("study", type=Path, metavar="DIR", help="folder of the study")
    status.add_argument("--watch", nargs="?", type=float, const=5.0, metavar="SECONDS", help="show it again every 5 "
                        "seconds, or so many, until all is done")
    _add_stale(status)

    submit = commands.add_parser("submit", help="write, and submit, a SLURM array of the runs", description=(
        "Write the script of a SLURM job array with one task for each run that is not finished; teachers and ceilings "
        "are one array, the students another one that waits for it."))
    _add_spec(submit)
    submit.add_argument("--submit", action="store_true", help="call sbatch; without it, the commands are printed")
    submit.add_argument("--at-most", type=count, metavar="N", help="tasks of an array that run at the same time")
    submit.add_argument("--sbatch", nargs="*", default=[], metavar="OPTION", help="options of sbatch for all tasks, "
                        "without their dashes: time=04:00:00 partition=gpu gpus=1 cpus-per-task=8")
    submit.add_argument("--activate", metavar="FILE", help="shell file that makes python and torch available")


def _add_spec(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", type=recipe_path, metavar="STUDY.yaml", help="the specification, w2s:studies/NAME "
                        "for one of the package's, or the folder of a study")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the study (default: "
                        f"{DEFAULT_ROOT}/NAME, after the file; `plan` makes a folder only where it is given)")


def _add_slots(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--jobs", type=count, metavar="N", help="runs at the same time on the CPU (default: one "
                       "for each core)")
    where.add_argument("--devices", metavar="I,J", help="GPUs, one run on each at a time: values for "
                       "CUDA_VISIBLE_DEVICES (default: all)")
    parser.add_argument("--threads", type=count, metavar="T", help="threads of a run (default: 1 on the CPU)")


def _add_stale(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stale", type=float, default=STALE, metavar="SECONDS", help="without a sign of life for so "
                        "long, a run of another runner is taken over; the same for all runners of a folder")


def _add_cost(commands: argparse._SubParsersAction) -> None:
    cost = commands.add_parser("cost", help="what a training run, or labelling images, costs", description=(
        "FLOPs per image of student and teacher, and estimated GPU hours. Without --model and --config: the settings "
        "of the paper. With --label: bytes, files and hours of a --teacher that labels images in shards. With "
        "--memory: bytes of a training step, by what of the student is trained."))
    add = cost.add_argument
    add("-c", "--config", nargs="+", default=[], metavar="FILE", help="YAML files of train_w2s.py; flags win over them")
    add("--model", metavar="NAME", help="student")
    add("--teacher", metavar="NAME[,NAME]", help="weak teacher, or several")
    add("--img-size", type=count, metavar="N", help="image size of the student (default: its own)")
    add("--num-classes", type=count, metavar="C", help="number of classes (default: 1000)")
    add("--epochs", type=count, metavar="E", help="epochs (default: 300)")
    add("--images", type=count, metavar="N", help="training images (default: those of ImageNet; with --label 10^9)")
    add("--label", action="store_true", help="what it costs that --teacher labels images")
    add("--shard-size", type=count, default=10_000, metavar="N", help="images of a shard (default: 10000)")
    add("--top-k", type=count, default=10, metavar="K", help="K of top-k labels (default: 10)")
    add("--memory", action="store_true", help="what memory a training step takes, and a recovery checkpoint")
    add("--tune", nargs="+", metavar="PART", help="parts to train with --memory (default: all lora last:1 norm bias "
        "head)")
    add("--precision", nargs="+", choices=("float32", "amp", "bfloat16"), help="of --memory (default: all three)")
    add("--batch-size", type=count, metavar="B", help="images of a step with --memory (default: 128)")
    add("--opt", metavar="NAME", help="optimizer of --memory (default: sgd)")
    add("--throughput", type=rate, metavar="R|here", help="images per second of the teacher; here: measured")
    add("--gpu", nargs="+", metavar="NAME", help="some of v100, a100, h100, rtx3090, rtx4090 (default: all)")
    add("--num-gpus", type=count, default=1, metavar="G", help="divide the work among so many, without loss")
    add("--utilisation", type=share, metavar="R", help="share of the peak that is reached, in place of that of "
        "ResNet-50 in published benchmarks")


def _add_results(commands: argparse._SubParsersAction) -> None:
    """Add what collects results."""
    table = commands.add_parser("table", help="the results of many runs in one table", description=(
        "Mean, standard deviation and 95 % interval of each cell, and the losses compared, of the finished runs in a "
        "folder. Writes table.md, table.csv, table.json and table.tex."))
    table.add_argument("--format", choices=("md", "csv", "json", "tex"), default="md", help="what is printed "
                       "(default: md)")
    table.add_argument("--output", type=Path, metavar="FOLDER", help="where the files go (default: DIR)")

    report = commands.add_parser("report", help="the results of many runs as a page with figures", description=(
        "Writes index.html, one page that needs no network, README.md with the same in Markdown, the figures as PNG, "
        "SVG and PDF, and the tables, also in LaTeX."))
    add = report.add_argument
    add("--title", metavar="TEXT", help="heading (default: the name of the folder)")
    add("--output", type=Path, metavar="FOLDER", help="where it goes (default: DIR/report)")
    add("--push-to-hub", metavar="ORG/NAME", help="also upload it to report/ of this repository, created when missing")
    add("--hub-private", action="store_true", default=None, help="create the repository private")
    add("--hub-revision", metavar="R", help="branch to push to, created when missing (default: main)")
    for command in (table, report):
        add = command.add_argument
        add("folder", type=Path, metavar="DIR", help="folder of a study, or any folder with runs in it, a "
            "run itself among them")
        add("--reference", metavar="LOSS", help="loss that the others are compared with, or best: the one with the "
            "highest mean, corrected for all pairs (default: kd where there is one, else best)")


if __name__ == "__main__":
    run_main(main, "w2s_plugins.study")
