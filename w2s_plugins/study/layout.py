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
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..errors import UserError, near_folder
from ..files import read_plain, write_json
from ..made_of import PRODUCT, Ingredient, absolute_place, from_plain, hash_of_place
from .controls import LABELS_OF_KIND

SPEC, PLAN, RUNS, STATE, RESULT = "study.yaml", "plan.json", "runs", "state", "result.json"
WEIGHTS = Path("export/model.safetensors")  # of a run
STUDY = (
    "{study}"  # stands for the folder of the study in plan.json, so that the folder can be moved
)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,254}")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study, as plan.json has it.

    Args:
        id: names it and its folder; changes when its command does.
        kind: weak (a teacher), ceiling (a student on ground truth), student, or the name of a control.
        weak: label of the weak teacher; None for what does not depend on one, as for the labels below.
        strong: label of the student.
        loss: label of the loss.
        protocol: label of the protocol.
        seed: its ``--seed``.
        argv: flags of train_w2s.py.
        needs: ids of the runs that must be finished before it: its teacher and its ceiling.
        root: folder of the study.
        controls: ids of the runs that a student is compared with.
        set: label of the data set; None where the study has one only, in its base.
    """

    id: str
    kind: str
    weak: str | None
    strong: str | None
    loss: str | None
    protocol: str | None
    seed: int
    argv: list[str]
    needs: list[str] = field(default_factory=list)
    root: Path = Path()
    controls: list[str] = field(default_factory=list)
    set: str | None = None

    @property
    def path(self) -> Path:
        """Its run folder."""
        return self.root / RUNS / self.id

    @property
    def label(self) -> str:
        """Kind and labels, without the seed: the cell of a table that it belongs to."""
        parts = [self.kind, self.set, self.weak, self.strong, self.loss, self.protocol]
        return " ".join(part for part in parts if part)

    @property
    def command(self) -> list[str]:
        """Its flags, with the folder of the study filled in."""
        return [word.replace(STUDY, str(self.root)) for word in self.argv]

    @property
    def finished(self) -> bool:
        """True when it has come to its end: its result.json is written last, and atomically."""
        return (self.path / RESULT).is_file()

    def state_file(self, suffix: str) -> Path:
        """Return a file of the runner: ``state/ID.SUFFIX``."""
        return self.root / STATE / f"{self.id}.{suffix}"


def save_plan(root: Path, plan: Iterable[PlannedRun]) -> None:
    """Write plan.json."""
    write_json(root / PLAN, [{k: v for k, v in asdict(run).items() if k != "root"} for run in plan])


def load_plan(root: Path) -> list[PlannedRun]:
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
    plan: dict[str, PlannedRun] = {}
    try:
        for entry in json.loads(path.read_text(encoding="utf-8")):
            run = PlannedRun(root=root, **entry)
            # no name leads out of the folder, and whoever needs a run comes after it
            known = NAME.fullmatch(run.id) and run.kind in LABELS_OF_KIND and run.id not in plan
            if not known or not plan.keys() >= set(run.needs):
                raise ValueError
            plan[run.id] = run
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: cannot be read as a plan: it is damaged, or of another version of w2s_plugins; make "
            "it again with `study plan`"
        ) from error
    return list(plan.values())


def read_record(path: Path) -> dict | None:
    """Return the content of a result.json; None when it is not there, damaged, or not one."""
    try:
        content = read_plain(path)
        # what a run was made of is compared with what others were made of, without another look at its form
        content.get("data", {}).keys()
        made_of_record(content)
    except (OSError, ValueError, AttributeError):
        return None
    return content


def made_of_record(record: Mapping) -> list[Ingredient]:
    """Return what a run was made of, by its result.json. Raises `ValueError` if it is damaged."""
    return from_plain(record.get("made_of"))


def made_of_run(folder: Path, record: Mapping) -> list[Ingredient]:
    """Return what a finished run was made of, and the weights that it has exported, of which others may be made."""
    made_of, file = made_of_record(record), folder / WEIGHTS
    exported = record.get("export")
    if isinstance(exported, Mapping) and exported.get(WEIGHTS.name):
        place = hash_of_place(absolute_place(file))
        made_of.append(
            Ingredient(PRODUCT, f"the weights of {folder.name}", place, exported[WEIGHTS.name])
        )
    return made_of
