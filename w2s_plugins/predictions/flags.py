"""The flags of a prediction, which need neither torch nor timm."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..cli.parser import Parser, add_groups
from ..errors import UserError, called
from ..labels.table_writer import check_writable

SHARDS = "wds/"


@functools.cache
def predict_parser() -> Parser:
    """The parser of ``python -m w2s_plugins.predictions``."""
    parser = Parser(
        prog=called("python -m w2s_plugins.predictions"),
        description="Write down what a model says of images without labels. The table is a file of labels: whatever "
                    "reads those reads it (docs/labels.md). An interrupted prediction goes on where it stopped; "
                    "torchrun shares it.")
    add_groups(parser, "predict")
    return parser


def settle(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a `run.Prediction` for flags that were given. Raises `UserError` for what cannot be done."""
    check_writable(flags["output"])
    if not Path(flags["dir"]).exists() and not str(flags["dir"]).startswith(SHARDS):
        raise UserError(f"{flags['dir']}: no such folder or tar file")
    return {name: value for name, value in flags.items() if name != "debug"}
