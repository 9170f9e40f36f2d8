"""A plan: runs that need one another, in an order in which they can be made."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..errors import said_of
from ..metrics.figures import headline_of

RESULT = "result.json"  # a run writes it last, and whole


@dataclass
class PlannedRun:
    """A run of a plan, and what has become of it. Subclasses have its flags.

    Args:
        name: of the run and its folder.
        kind: weak (a teacher), ceiling (a student on ground truth), student, or the name of a control; stages and folds
            have none.
        needs: names of the runs that must be finished before it, because it takes something of them.
        folder: where it lies.
        record: content of its result.json, empty until an executor knows that it is finished.
    """

    name: str
    kind: str
    # subclasses add fields without a default, which these would have to stand behind
    needs: list[str] = field(default_factory=list, kw_only=True)
    folder: Path = field(default=Path(), kw_only=True)
    record: dict[str, Any] = field(default_factory=dict, kw_only=True)

    @property
    def finished(self) -> bool:
        """True when it has come to its end."""
        return (self.folder / RESULT).is_file()

    def look(self) -> bool:
        """Return whether it is finished, as far as this process knows, and has its record."""
        return bool(self.record)

    @property
    def headline(self) -> float | None:
        """Its accuracy or mAP in percent, None while it has none."""
        return headline_of(self.record.get("metrics", {}))


# the runs of one plan are of one kind, and so is the executor that makes them
R = TypeVar("R", bound=PlannedRun)


@dataclass
class RunPlan(Generic[R]):
    """The runs of a command.

    Args:
        flag: that asks for them, or the command; it begins messages.
        folder: that they lie in.
        runs: each after those that it needs.
        flags: of the command, with defaults; a study has none, since its runs say all.
    """

    flag: str
    folder: Path
    runs: list[R]
    flags: dict[str, Any] = field(default_factory=dict)

    def about(self, run: PlannedRun) -> AbstractContextManager[None]:
        """Begin the message of a `UserError` with the run that it is about."""
        return said_of(f"{self.flag}, {run.name}: ")

    def records(self) -> dict[str, dict[str, Any]]:
        """Return the record of each run that is finished."""
        return {run.name: run.record for run in self.runs if run.record}

    def ceiling_acc(self, run: PlannedRun) -> float | None:
        """Return the accuracy or mAP of the ceiling that a run needs: the run reports its PGR by it."""
        # a stage may be called ceiling, and is none: only its kind says it
        for other in self.runs:
            if other.kind == "ceiling" and other.name in run.needs:
                return other.headline
        return None
