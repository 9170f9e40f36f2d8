"""What the flags of a prediction have to fulfil, which needs neither torch nor timm."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..cli.values import check_values
from ..errors import UserError, near_path
from ..labels.table_writer import check_writable

SHARDS = "wds/"


def settle(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a `run.Prediction` for flags that were given. Raises `UserError` for what cannot be done."""
    # arguments without a flag are called in messages as the help calls them
    metavars = {"model": "MODEL", "dir": "DIR"}
    check_values({metavars.get(name, name): value for name, value in flags.items()})
    if "output" in flags:
        check_writable(flags["output"])
    if not Path(flags["dir"]).exists() and not str(flags["dir"]).startswith(SHARDS):
        raise UserError(
            f"{flags['dir']}: no such folder, image or tar file{near_path(flags['dir'])}"
        )
    return {name: value for name, value in flags.items() if name != "debug"}
