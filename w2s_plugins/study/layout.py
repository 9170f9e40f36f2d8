"""The folder of a study: where the plan, the runs and what became of them lie.

::

    STUDY/study.yaml      the specification
    STUDY/plan.json       every run of it
    STUDY/runs/ID/        a run folder of train_w2s.py
    STUDY/state/          of each run: ID.log, ID.lock, and ID.failed with the reason where it failed
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError, near_folder
from ..files import read_plain, write_json
from ..made_of import PRODUCT, Ingredient, absolute_place, from_plain, hash_of_place
from .controls import LABELS_OF_KIND
from .plan import RESULT, PlannedRun

SPEC, PLAN, RUNS, STATE = "study.yaml", "plan.json", "runs", "state"
WEIGHTS = Path("export/model.safetensors")  # of a run
# stands for the folder of the study in plan.json, so that the folder can be moved
STUDY = "{study}"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,254}")


# what plan.json says of a run beside its name
ENTRIES = ["kind", "weak", "strong", "loss", "protocol", "seed", "argv", "needs", "controls", "set"]


@dataclass
class StudyRun(PlannedRun):
    """A run of a study, as plan.json has it; its name changes when its command does.

    Args:
        weak: label of the weak teacher; None for what does not depend on one, as for the labels below.
        strong: label of the student.
        loss: label of the loss.
        protocol: label of the protocol.
        seed: its ``--seed``.
        argv: flags of train_w2s.py.
        controls: names of the runs that a student is compared with.
        set: label of the data set; None where the study has one only, in its base.
        root: folder of the study.
    """

    weak: str | None
    strong: str | None
    loss: str | None
    protocol: str | None
    seed: int
    argv: list[str]
    controls: list[str] = field(default_factory=list, kw_only=True)
    set: str | None = field(default=None, kw_only=True)
    root: Path = field(default=Path(), kw_only=True)

    # the folder of a study may be moved, and its plan does not say where it lies
    def __post_init__(self) -> None:
        self.folder = self.root / RUNS / self.name

    def look(self) -> bool:
        """Return whether it has a result.json, whoever has made it, and read that."""
        if self.finished and not self.record:
            self.record = read_record(self.folder / RESULT) or {}
        return self.finished

    @property
    def label(self) -> str:
        """Kind and labels, without the seed: the cell of a table that it belongs to."""
        parts = [self.kind, self.set, self.weak, self.strong, self.loss, self.protocol]
        return " ".join(part for part in parts if part)

    @property
    def command(self) -> list[str]:
        """Its flags, with the folder of the study filled in."""
        return [word.replace(STUDY, str(self.root)) for word in self.argv]

    def state_file(self, suffix: str) -> Path:
        """Return a file of the runner: ``state/NAME.SUFFIX``."""
        return self.root / STATE / f"{self.name}.{suffix}"


def save_plan(root: Path, runs: Iterable[StudyRun]) -> None:
    """Write plan.json."""
    # what becomes of a run is not written here: its own folder tells, whoever has made it
    entries = []
    for run in runs:
        entries.append({"id": run.name, **{name: getattr(run, name) for name in ENTRIES}})
    write_json(root / PLAN, entries)


def load_plan(root: Path) -> list[StudyRun]:
    """Read plan.json: the runs, each after those that it needs.

    Raises:
        UserError: no study, or a damaged file.
    """
    path = root / PLAN
    if not path.is_file():
        raise UserError(
            f"{root}: no folder of a study, it has no {PLAN}{near_folder(root, PLAN)}; expected the "
            "--output of `study run` or `study plan`"
        )
    runs: dict[str, StudyRun] = {}
    try:
        for entry in json.loads(path.read_text(encoding="utf-8")):
            # what becomes of a run, such as its record, is not believed from here
            run = StudyRun(entry.pop("id"), root=root, **entry)
            if entry.keys() - set(ENTRIES):
                raise ValueError
            # no name leads out of the folder, and whoever needs a run comes after it
            known = NAME.fullmatch(run.name) and run.kind in LABELS_OF_KIND and run.name not in runs
            if not known or not runs.keys() >= set(run.needs):
                raise ValueError
            runs[run.name] = run
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise UserError(
            f"{path}: cannot be read as a plan: it is damaged, or of another version of w2s_plugins; make "
            "it again with `study plan`"
        ) from error
    return list(runs.values())


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the content of a result.json; None when it is not there, damaged, or not one."""
    try:
        content = read_plain(path)
        if not isinstance(content, dict) or not isinstance(content.get("data", {}), dict):
            return None
        # what a run was made of is compared with what others were made of, without another look at its form
        made_of_record(content)
    except (OSError, ValueError):
        return None
    return content


def made_of_record(record: Mapping) -> list[Ingredient]:
    """Return what a run was made of, by its result.json. Raises `ValueError` if it is damaged."""
    return from_plain(record.get("made_of"))


def made_of_run(folder: Path, record: Mapping) -> list[Ingredient]:
    """Return what a finished run was made of, and the weights that it has exported, of which others may be made."""
    # students learn from what a teacher exports, so a teacher that was trained anew is noticed by its weights
    made_of = made_of_record(record)
    exported = record.get("export")
    if not isinstance(exported, Mapping) or not exported.get(WEIGHTS.name):
        return made_of
    name, place = f"the weights of {folder.name}", hash_of_place(absolute_place(folder / WEIGHTS))
    return [*made_of, Ingredient(PRODUCT, name, place, exported[WEIGHTS.name])]
