"""The flags of a prediction, which need neither torch nor timm."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..cli.declare import Declare, Parser
from ..errors import UserError, called
from ..labels.table_writer import WRITABLE, check_writable

SHARDS = "wds/"


@functools.cache
def predict_parser() -> Parser:
    """The parser of ``python -m w2s_plugins.predictions``."""
    parser = Parser(
        prog=called("python -m w2s_plugins.predictions"),
        description="Write down what a model says of images without labels. The table is a file of labels: whatever "
                    "reads those reads it (docs/labels.md). An interrupted prediction goes on where it stopped; "
                    "torchrun shares it.")
    add = Declare(parser)
    add("model", metavar="MODEL", help="timm name with pretrained weights, hf-hub:ORG/NAME, "
        "local-dir:PATH, a run folder, a folder in timm's export format, or hf:, clip:, onnx: and so on"
        " (docs/teachers.md)")
    add("dir", metavar="DIR", help="folder of images, at any depth, or a tar file; shards as wds/PATH")
    add("--output", metavar="FILE", type=Path, required=True, help=f"table, {', '.join(WRITABLE)}")
    add("--checkpoint", metavar="PATH", help="weights of MODEL: a file or a run folder")
    add("--class-names", metavar="NAMES", help="file with one name a line, or a,b,c; for a model that "
        "knows none of its own")
    add("--prompts", metavar="TEXTS", help="templates of a clip: model, such as 'a photo of a {}|a {}'")
    form = add.exclusive()
    form("--top-k", metavar="K", type=int, low=1, help="add a column with the K most likely classes")
    form("--all", action="store_true", help="add the probability of every class")
    add("--img-size", metavar="N", type=int, low=1, help="input size (default: the model's own)")
    add("-b", "--batch-size", metavar="N", type=int, low=1, default=64, help="images at a time")
    add("-j", "--workers", metavar="N", type=int, low=0, default=4, help="processes that decode images")
    add("--device", metavar="D", help="cpu, cuda, ... (default: cuda where there is one)")
    add("--plugins", metavar="FILE", nargs="+", default=[], help="modules or files to import")
    add("--debug", action="store_true", help="show the traceback of errors")
    return parser


def settle(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a `run.Prediction` for flags that were given. Raises `UserError` for what cannot be done."""
    check_writable(flags["output"])
    if not Path(flags["dir"]).exists() and not str(flags["dir"]).startswith(SHARDS):
        raise UserError(f"{flags['dir']}: no such folder or tar file")
    return {name: value for name, value in flags.items() if name != "debug"}
