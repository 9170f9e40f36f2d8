"""``python -m w2s_plugins.data convert-pickle FILE OUT`` turns a pickle of miniImageNet into class folders."""

import argparse
from pathlib import Path

from w2s_plugins.data.pickles import convert_pickle
from w2s_plugins.errors import UserError, run_main


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(f"{message}; see {self.prog} --help")


def main() -> None:
    """Parse the command line and convert."""
    parser = _Parser(prog="python -m w2s_plugins.data", description="Bring data into the form of class folders.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    convert = commands.add_parser("convert-pickle", help="turn a pickle of miniImageNet into class folders")
    convert.add_argument("file", metavar="FILE", type=Path, help="pickle with data and labels, or image_data and "
                         "class_dict; nothing in it is run")
    convert.add_argument("out", metavar="OUT", type=Path, help="new folder of the split, such as DIR/novel")
    convert.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    images, classes = convert_pickle(args.file, args.out)
    print(f"{args.out}: {images} images in {classes} classes")


if __name__ == "__main__":
    run_main(main, "w2s_plugins.data")
