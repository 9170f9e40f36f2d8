"""Where a run is to be, and whether another is there already; known before torch is imported."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..files import SHARDED

HUB = "hf-hub:"  # begins the value of --resume that names a repository


@dataclass(frozen=True)
class Place:
    """Where a run is to be.

    Args:
        root: the folder that runs are made in.
        name: of the folder in it, "" for one that is still to be named.
        resume: what it goes on from: "", "auto", a run folder, a checkpoint, or hf-hub:ORG/NAME.
    """

    root: Path
    name: str
    resume: str

    @property
    def folder(self) -> Path:
        return self.root / self.name


def refuse_existing_run(place: Place) -> None:
    """Raise a `UserError` when the named run folder holds a run and is not to be continued, or not that one."""
    if place.resume.startswith(HUB) and (place.folder / "args.yaml").is_file():
        raise UserError(f"--resume {place.resume}: {place.folder} holds a run already: --resume auto goes on with that "
                        "one; give another --experiment")
    if not place.name or place.resume:
        return
    if place.folder.is_dir() and any(path.name.endswith((".pth.tar", SHARDED)) for path in place.folder.iterdir()):
        raise UserError(f"the run folder {place.folder} exists already: continue it with --resume auto, or give "
                        "another --experiment")
    refuse_what_is_left(place.folder)


def refuse_what_is_left(folder: Path) -> None:
    """Raise a `UserError` for a folder without checkpoints whose run has had some: another would write over the rest.

    The evaluation of an epoch is written before its checkpoint, so that the last one proves nothing.
    """
    history = folder / "metrics.jsonl"
    left = "result.json" if (folder / "result.json").is_file() else history.name if history.is_file() and (
        history.read_bytes().count(b'{"event": "eval"') > 1) else None
    if left:
        raise UserError(f"the run folder {folder} has lost its checkpoints, and a run that starts anew in it would "
                        f"write over its {left}: give another --experiment, or delete the folder")
