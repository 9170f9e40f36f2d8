"""``python -m w2s_plugins.predictions MODEL DIR --output FILE``: its flags.

What it needs is imported when they are right.
"""

import argparse
from pathlib import Path

from ..cli.parser import Parser
from ..errors import UserError, called, nearest, run_main
from ..labels.table_writer import WRITABLE, check_writable

SHARDED = ("wds/", "hfids/")


def main() -> None:
    """Parse the command line and do what it says."""
    args = read_flags()
    from .run import Request, predict
    from .shards import predict_shards

    (predict_shards if is_sharded(str(args.dir)) else predict)(Request(**vars(args)))


def is_sharded(images: str) -> bool:
    """Say whether images are in shards."""
    return images.startswith(SHARDED) and not Path(images).exists()


def read_flags() -> argparse.Namespace:
    """Return the flags. Raises `UserError` for the first that is wrong."""
    parser = Parser(
        prog=called("python -m w2s_plugins.predictions"),
        description="Write down what a model says of images without labels. The table is a file of labels: whatever "
                    "reads those reads it (docs/labels.md). An interrupted prediction goes on where it stopped; "
                    "torchrun shares it.")
    parser.add_argument("model", metavar="MODEL", help="timm name with pretrained weights, hf-hub:ORG/NAME, "
                        "local-dir:PATH, a run folder, a folder in timm's export format, or hf:, clip:, onnx: and so on"
                        " (docs/teachers.md)")
    parser.add_argument("dir", metavar="DIR", help="folder of images, at any depth, or a tar file; wds/PATH or "
                        "hfids/ORG/NAME: shards, each of which gets a folder of labels")
    parser.add_argument("--output", metavar="FILE", type=Path, help=f"table, {', '.join(WRITABLE)}; of shards the "
                        "folder of their labels (default: that of the shards)")
    parser.add_argument("--checkpoint", metavar="PATH", help="weights of MODEL: a file or a run folder")
    parser.add_argument("--class-names", metavar="NAMES", help="file with one name a line, or a,b,c; for a model that "
                        "knows none of its own")
    parser.add_argument("--prompts", metavar="TEXTS", help="templates of a clip: model, such as 'a photo of a {}|a {}'")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--top-k", metavar="K", type=count, help="add a column with the K most likely classes")
    form.add_argument("--all", dest="every", action="store_true", help="add the probability of every class")
    parser.add_argument("--embeddings", metavar="FILE", type=Path, help="write the features before the classifier as "
                        "well, .npz")
    parser.add_argument("--img-size", metavar="N", type=count, help="input size (default: the model's own)")
    parser.add_argument("-b", "--batch-size", metavar="N", type=count, default=64, help="images at a time")
    parser.add_argument("-j", "--workers", metavar="N", type=whole, default=4, help="processes that decode images")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, ... (default: cuda where there is one)")
    parser.add_argument("--plugins", metavar="FILE", nargs="+", default=[], help="modules or files to import")
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    args, unknown = parser.parse_known_args()
    if unknown:
        flag = unknown[0].split("=")[0]
        raise UserError(f"unknown argument '{flag}'{nearest(flag, parser.flags())}; see --help")
    del args.debug
    if is_sharded(args.dir):
        if args.embeddings or (args.output or Path()).suffix in WRITABLE:
            flag = "--embeddings" if args.embeddings else f"--output {args.output}"
            raise UserError(f"{flag}: each of the shards gets a folder of labels; expected --output FOLDER, or no "
                            "--output for the folder of the shards")
        return args
    if args.output is None:
        raise UserError("the following arguments are required: --output")
    check_writable(args.output)
    if args.embeddings is not None and (args.embeddings.suffix != ".npz" or not args.embeddings.parent.is_dir()):
        raise UserError(f"--embeddings {args.embeddings}: expected the name of an .npz file in a folder that exists")
    args.dir = Path(args.dir)
    if not args.dir.exists():
        raise UserError(f"{args.dir}: no such folder or tar file")
    return args


def count(text: str) -> int:
    """Read a whole number from 1 on."""
    return whole(text, 1)


def whole(text: str, least: int = 0) -> int:
    """Read a whole number from ``least`` on."""
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number from {least} on, found {text}")
    return int(text)


if __name__ == "__main__":
    run_main(main, "w2s_plugins.predictions")
