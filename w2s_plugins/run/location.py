"""Where a run is to be; known before torch is imported."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunLocation:
    """Where a run is to be.

    Args:
        root: the folder that runs are made in.
        name: of the folder in it, "" for one that is still to be named.
        resume: what it goes on from: "", "auto", a run folder, or a checkpoint.
    """

    root: Path
    name: str
    resume: str

    @property
    def folder(self) -> Path:
        return self.root / self.name
