"""``python -m w2s_plugins.labels COMMAND``: its flags. What a command needs is imported when they are right."""

from importlib import import_module
from pathlib import Path

from ..cli.parser import Parser
from ..errors import called, run_main
from .table_writer import WRITABLE, check_new

# the function of each command; its flags are the arguments
FUNCTIONS = {"export": "export_folder", "merge": "merge_tables", "push": "push",
             "check": "print_check", "stats": "print_stats"}


def main() -> None:
    """Run one command. Raises `UserError` for what is wrong with its flags."""
    command, values = read_words()
    if command in ("export", "merge"):
        check_new(values["output"])
    getattr(import_module(".commands", __package__), FUNCTIONS[command])(**values)


def read_words() -> tuple[str, dict[str, object]]:
    """Return the command that was typed and the values of its flags. Raises `UserError` for what is wrong with them."""
    parser = Parser(
        prog=called("python -m w2s_plugins.labels"), description="Tables and folders of labels: converted, joined, "
        "published, checked, counted. docs/labels.md says what a table looks like.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    tables = ", ".join(WRITABLE)

    export = commands.add_parser("export", help="write a folder of labels, such as a teacher's, as a table")
    export.add_argument("folder", metavar="FOLDER", help="folder of labels")
    export.add_argument("--output", metavar="FILE", type=Path, required=True, help=f"table, {tables}")
    form = export.add_mutually_exclusive_group()
    form.add_argument("--top-k", metavar="K", type=int, help="add a column with the K most likely classes")
    form.add_argument("--all", dest="every", action="store_true", help="add the probability of every class")

    merge = commands.add_parser("merge", help="join the tables of several annotators; each is named after its file")
    merge.add_argument("files", metavar="FILE", nargs="+", type=Path, help="tables of labels")
    merge.add_argument("--output", metavar="FILE", type=Path, required=True, help=f"table, {tables}")

    push = commands.add_parser("push", help="publish labels as a dataset on the Hugging Face Hub, with a card")
    push.add_argument("path", metavar="PATH", type=Path, help="folder or table of labels, or the folder of a run with "
                      "--teacher-targets cached")
    push.add_argument("repo_id", metavar="ORG/NAME", help="repository, created when missing")
    push.add_argument("--license", metavar="ID", help="license in the card (default: the card says nothing of it)")
    push.add_argument("--private", action="store_true", default=None, help="create the repository private")
    push.add_argument("--revision", metavar="R", help="branch to push to, created when missing (default: main)")
    push.add_argument("--commit-message", metavar="M", help="first line of the commit")

    check = commands.add_parser("check", help="can a table be trained on with these images, and does it agree with "
                                "another opinion? Exit code 1 when training would refuse it")
    check.add_argument("file", metavar="FILE", help="table of labels")
    check.add_argument("--data-dir", metavar="DIR", type=Path, required=True, help="folder of the images, at any depth,"
                       " or a tar file: what the names in the table are relative to")
    check.add_argument("--against", metavar="OTHER", help="another table, or 'folders': the names of the folders that "
                       "the images are in")
    check.add_argument("--class-names", metavar="NAMES", help="file with one name a line, or a,b,c: what labels may be")

    stats = commands.add_parser("stats", help="count samples, annotators and classes of a table")
    stats.add_argument("file", metavar="FILE", help="table of labels")
    return parser.parse_command(commands)


if __name__ == "__main__":
    run_main(main, "w2s_plugins.labels")
