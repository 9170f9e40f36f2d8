"""Data before a training: ``python -m w2s_plugins.data check DIR`` reads all images and says what is wrong, and
``convert-pickle FILE OUT`` turns a pickle of miniImageNet into class folders."""

import os
import sys
from pathlib import Path

from w2s_plugins.errors import OneLineParser, called, run_main
from w2s_plugins.tokens import say


def data_parser() -> OneLineParser:
    """The parser of ``python -m w2s_plugins.data``."""
    parser = OneLineParser(
        prog=called("python -m w2s_plugins.data"),
        description="Check data, or bring them into the form of class folders.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    convert = commands.add_parser("convert-pickle", help="turn a pickle of miniImageNet into class folders")
    convert.add_argument("file", metavar="FILE", type=Path, help="pickle with data and labels, or image_data and "
                         "class_dict; nothing in it is run")
    convert.add_argument("out", metavar="OUT", type=Path, help="new folder of the split, such as DIR/novel")
    check = commands.add_parser("check", help="read all images and say what is wrong; exit code 1 when something is")
    check.add_argument("dir", metavar="DIR", type=Path, help="folder with train/ and validation/, or a tar file")
    check.add_argument("-j", "--workers", type=int, default=os.cpu_count(), metavar="N", help="processes")
    check.add_argument("--unlabeled", action="store_true", help="it has no labels, and sub-folders mean nothing, as "
                       "where images are in the folder itself")
    for command in (convert, check):
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main() -> None:
    """Parse the command line and do what it says."""
    args = data_parser().parse_args()
    if args.command == "check":
        print_check(args.dir, args.workers, args.unlabeled)
    else:
        print_conversion(args.file, args.out)


def print_conversion(source: Path, target: Path) -> None:
    """Convert a pickle and print what came of it."""
    from w2s_plugins.data.pickles import convert_pickle  # --help and wrong flags do not wait for imports

    images, classes = convert_pickle(source, target)
    say(f"{target}: {images} images in {classes} classes")


def print_check(folder: Path, workers: int, unlabeled: bool = False) -> None:
    """Check a folder, print what was found, and end with exit code 1 for errors."""
    from w2s_plugins.data.check import check_folder

    report = check_folder(folder, workers, progress=sys.stderr.isatty(), unlabeled=unlabeled)
    say(*report.lines())
    if report.errors:
        sys.exit(1)


if __name__ == "__main__":
    run_main(main, "w2s_plugins.data")
