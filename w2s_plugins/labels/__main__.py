"""``python -m w2s_plugins.labels COMMAND``: its flags. What a command needs is imported when they are right."""

from importlib import import_module
from pathlib import Path

from ..cli.parser import Parser
from ..errors import UserError, called, run_main
from .table_writer import WRITABLE, check_writable


def main() -> None:
    """Run one command, the function of its name in `commands`. Raises `UserError` for what is wrong with its flags."""
    command, values = read_words()
    output = values.get("output")
    if output is not None:
        check_writable(output)
        if output.exists():
            raise UserError(f"--output {output}: is there already; expected the name of a new file")
    getattr(import_module(".commands", __package__), command)(**values)


def read_words() -> tuple[str, dict[str, object]]:
    """Return the command that was typed and the values of its flags. Raises `UserError` for what is wrong with them."""
    parser = Parser(
        prog=called("python -m w2s_plugins.labels"), description="Tables and folders of labels: checked, joined, "
        "converted, published. docs/labels.md says what a table looks like.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    output = dict(metavar="FILE", type=Path, required=True, help=f"table, {', '.join(WRITABLE)}")

    check = commands.add_parser("check", help="count what a table holds, and say whether a training on these images "
                                "would take it")
    check.add_argument("file", metavar="FILE", help="table of labels")
    check.add_argument("--data-dir", metavar="DIR", type=Path, help="folder of the images, at any depth, or a tar "
                       "file: what the names in the table are relative to")
    check.add_argument("--class-names", metavar="NAMES", help="file with one name a line, or a,b,c: what labels may be")

    merge = commands.add_parser("merge", help="join the tables of several annotators; each is named after its file")
    merge.add_argument("files", metavar="FILE", nargs="+", type=Path, help="tables of labels")
    merge.add_argument("--output", **output)

    export = commands.add_parser("export", help="write a folder of labels, such as a teacher's, as a table")
    export.add_argument("folder", metavar="FOLDER", help="folder of labels")
    export.add_argument("--output", **output)
    form = export.add_mutually_exclusive_group()
    form.add_argument("--top-k", metavar="K", type=int, help="add a column with the K most likely classes")
    form.add_argument("--all", dest="every", action="store_true", help="add the probability of every class")

    push = commands.add_parser("push", help="publish labels as a dataset on the Hugging Face Hub, with a card")
    push.add_argument("path", metavar="PATH", type=Path, help="folder or table of labels, or the folder of a run with "
                      "--teacher-targets cached")
    push.add_argument("repo_id", metavar="ORG/NAME", help="repository, created when missing")
    push.add_argument("--license", metavar="ID", help="license in the card (default: the card says nothing of it)")
    push.add_argument("--private", action="store_true", default=None, help="create the repository private")
    push.add_argument("--revision", metavar="R", help="branch to push to, created when missing (default: main)")
    push.add_argument("--commit-message", metavar="M", help="first line of the commit")
    return parser.parse_command(commands)


if __name__ == "__main__":
    run_main(main, "w2s_plugins.labels")
