"""What the flags of a prediction have to fulfil, which needs neither torch nor timm."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError, near_path
from ..labels.table_writer import check_writable
from ..settings.field import option
from ..settings.values import check_values

SHARDS = "wds/"
FEATURE_FILES = (".npz", ".parquet")
OF_LABELS = ("top_k", "all", "class_names", "prompts", "task", "multilabel_threshold")


def settle(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a `run.Prediction` for flags that were given. Raises `UserError` for what cannot be done."""
    # arguments without a flag are called in messages as the help calls them
    metavars = {"model": "MODEL", "dir": "DIR"}
    check_values({metavars.get(name, name): value for name, value in flags.items()})
    output, features = flags.get("output"), flags.get("features")
    if output is not None:
        check_writable(output)
    if features is not None:
        check_writable(features, flag="--features", kinds=FEATURE_FILES)
        if output is not None and output.resolve() == features.resolve():
            raise UserError(f"--features {features}: is --output, too; expected two files")
        # what would be ignored was meant for a table
        ignored = [option(name) for name in OF_LABELS if name in flags]
        if output is None and ignored:
            raise UserError(
                f"{ignored[0]} is about labels, and --features holds none; give --output FILE as well, or leave it out"
            )
    if not Path(flags["dir"]).exists() and not str(flags["dir"]).startswith(SHARDS):
        raise UserError(
            f"{flags['dir']}: no such folder, image or tar file{near_path(flags['dir'])}"
        )
    return {name: value for name, value in flags.items() if name != "debug"}
