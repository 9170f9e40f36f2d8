"""args.yaml: the flags of a run."""

from collections.abc import Mapping
from pathlib import Path

import yaml

from ..errors import UserError, one_line
from ..files import read_plain, write_text
from ..models.foreign import typed_flags

# in a quarter of the time, where PyYAML has libyaml
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def write_args(path: Path, flags: Mapping[str, object]) -> None:
    """Write args.yaml."""
    # the file is also a recipe, and who gives it to --config wants a run of its own
    content = {**flags, "resume": ""}
    write_text(path, yaml.dump(content, Dumper=_DUMPER, default_flow_style=False))


def read_run_args(folder: Path, flag: str) -> dict[str, object]:
    """Read the args.yaml of a run folder, as `typed_flags`. Raises `UserError` when it cannot be read."""
    # it may come from others: plain values, and of flags those that are known
    path = folder / "args.yaml"
    try:
        content = read_plain(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{flag} {folder}: its args.yaml cannot be read: {one_line(error)}"
        ) from error
    return typed_flags(content, f"{flag} {folder}: its args.yaml")
