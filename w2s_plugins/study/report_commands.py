"""The sub-commands ``table`` and ``report``.

What they need (matplotlib, the whole of the training code) is imported when one of them runs: the other sub-commands
start faster without.
"""

import argparse
from pathlib import Path

FORMATS = ("md", "csv", "json")


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the sub-commands."""
    table = commands.add_parser("table", help="the results of many runs in one table", description=(
        "Mean, standard deviation and 95 % interval of each cell, and the losses compared, of the finished runs in a "
        "folder. Writes table.md, table.csv and table.json."))
    _add_shared(table)
    table.add_argument("--format", choices=FORMATS, default="md", help="what is printed (default: md)")
    table.add_argument("--output", type=Path, metavar="FOLDER", help="where the files go (default: DIR)")
    table.set_defaults(run=run_table)

    report = commands.add_parser("report", help="the results of many runs as a page with figures", description=(
        "Writes index.html, one page that needs no network, README.md with the same in Markdown, the figures as PNG "
        "and SVG, and the tables."))
    _add_shared(report)
    add = report.add_argument
    add("--title", metavar="TEXT", help="heading (default: the name of the folder)")
    add("--output", type=Path, metavar="FOLDER", help="where it goes (default: DIR/report)")
    add("--push-to-hub", metavar="ORG/NAME", help="also upload it to report/ of this repository, created when missing")
    add("--hub-private", action="store_true", default=None, help="create the repository private")
    add("--hub-revision", metavar="R", help="branch to push to, created when missing (default: main)")
    report.set_defaults(run=run_report)


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of a study, or any folder with runs in it")
    parser.add_argument("--reference", metavar="LOSS", help="loss that the others are compared with, or best: the one "
                        "with the highest mean, corrected for all pairs (default: kd where there is one, else best)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")


def run_table(args: argparse.Namespace) -> None:
    """Print the table and write its files."""
    from .collect import collect
    from .table import WRITERS, make_table, write_table

    table = make_table(collect(args.folder), args.reference)
    write_table(table, args.output or args.folder)
    print(WRITERS[args.format](table))


def run_report(args: argparse.Namespace) -> None:
    """Write the report and, where asked, publish it.

    Raises:
        UserError: no token, before anything is written.
    """
    from ..hub.errors import check_login
    from ..hub.push import push_folder
    from .report import FILES, write_report

    if args.push_to_hub:
        check_login(args.push_to_hub)
    folder = args.output or args.folder / "report"
    page = write_report(args.folder, folder, args.reference, args.title)
    print(f"* {page}")
    if args.push_to_hub:
        url = push_folder(folder, args.push_to_hub, "report", FILES, private=args.hub_private,
                          revision=args.hub_revision, commit_message="Upload the report of a study")
        print(f"published at {url}")
