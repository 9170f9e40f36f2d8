"""The folder of a study: where the plan, the runs and their states lie.

::

    STUDY/study.yaml      the specification, its defaults filled in
    STUDY/plan.json       every run of it
    STUDY/runs/FOLDER/    a run folder of train_w2s.py
    STUDY/state/          what the runner knows of each run: ID.json, ID.log, ID.N.lock

Nothing but Python's own library is imported here: a process that only watches a run should start at once.
"""

import contextlib
import dataclasses
import json
import os
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import AGAIN, UserError, nearest, one_line, write_errors

SPEC, PLAN, RUNS, STATE, RESULT = "study.yaml", "plan.json", "runs", "state", "result.json"
KINDS = ("weak", "ceiling", "student", "direct", "same-size", "strong-to-strong")
DEFAULT_ROOT = Path("output/studies")
STUDY = "{study}"  # stands for the folder of the study in plan.json, so that the folder can be moved


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study.

    Args:
        id: names it in ``state/`` and on the command line; changes when its command does.
        kind: weak (a teacher), ceiling (a student on ground truth), student, or the name of a control.
        folder: its run folder is ``runs/FOLDER``.
        weak: label of the weak teacher; None for what does not depend on one.
        strong: label of the student; None for a weak teacher, and for a student of its size.
        loss: label of the loss; None where none is distilled.
        protocol: label of the protocol; None but for students, since several protocols may share a teacher.
        seed: its ``--seed``.
        argv: flags of train_w2s.py.
        needs: ids of the runs that must be finished before it: its teacher and its ceiling.
        root: folder of the study.
        controls: ids of the runs that a student is compared with, direct on all of the teacher's labels first of its
            kind.
        set: label of the data set; None where the study has one only, in its base.
    """

    id: str
    kind: str
    folder: str
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
        return self.root / RUNS / self.folder

    @property
    def label(self) -> str:
        """Kind and labels, without the seed: the cell of a table that it belongs to."""
        parts = self.kind, self.set, self.weak, self.strong, self.loss, self.protocol
        return " ".join(part for part in parts if part)

    def state_file(self, suffix: str) -> Path:
        """Return a file of the runner: ``state/ID.SUFFIX``."""
        return self.root / STATE / f"{self.id}.{suffix}"

    def flag(self, name: str) -> str | None:
        """Return the value that its command gives a flag, such as ``--epochs``; None where it is not given."""
        return dict(zip(self.argv, self.argv[1:])).get(name)


def save_plan(root: Path, plan: Iterable[PlannedRun]) -> None:
    """Write plan.json."""
    fields = [f.name for f in dataclasses.fields(PlannedRun) if f.name != "root"]
    write_json(root / PLAN, [{name: getattr(run, name) for name in fields} for run in plan])


def load_plan(root: Path) -> list[PlannedRun]:
    """Read plan.json: the runs, each after those that it needs, with the study's folder filled into their commands.

    Raises:
        UserError: no study, or a damaged file.
    """
    path = root / PLAN
    if not path.is_file():
        raise UserError(f"{root}: no folder of a study, it has no {PLAN}; expected the --output of `study run` or "
                        "`study plan`")
    try:
        plan = [_planned(entry, root) for entry in json.loads(path.read_text(encoding="utf-8"))]
        _check_order(plan)
        return plan
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as a plan: {one_line(error)}") from error


def _planned(entry: dict, root: Path) -> PlannedRun:
    """Return one run of plan.json. Raises `ValueError` where its names would leave the folder, among others."""
    run = PlannedRun(root=root, **{**entry, "argv": fill_in(entry["argv"], root)})
    for name in (run.id, run.folder):
        if not isinstance(name, str) or not re.fullmatch(r"[^/\\]{1,255}", name) or name in (".", "..") or (
                not name.isprintable()):
            raise ValueError(f"{name!r:.60} is no name of a run")
    labels = [x for x in (run.kind, run.set, run.weak, run.strong, run.loss, run.protocol) if x is not None]
    texts = *labels, *run.argv, *run.needs, *run.controls
    if not all(isinstance(text, str) for text in texts) or type(run.seed) is not int or run.kind not in KINDS:
        raise ValueError(f"the run {run.id} is not what `study plan` writes")
    return run


def _check_order(plan: Iterable[PlannedRun]) -> None:
    """Raise `ValueError` unless each run is there once, after those that it needs."""
    seen: set[str] = set()
    for run in plan:
        if run.id in seen or not seen.issuperset(run.needs):
            raise ValueError(f"the run {run.id} is there twice, or before one that it needs")
        seen.add(run.id)


def fill_in(argv: Iterable[str], root: Path) -> list[str]:
    """Put the folder of the study where `STUDY` stands for it."""
    return [part.replace(STUDY, str(root)) for part in argv]


def find_run(plan: Iterable[PlannedRun], run_id: str) -> PlannedRun:
    """Return a run by its id. Raises `UserError` with the nearest ids."""
    by_id = {run.id: run for run in plan}
    if run_id not in by_id:
        raise UserError(f"no run '{run_id}' in this study{nearest(run_id, by_id)}")
    return by_id[run_id]


def finished(run: PlannedRun) -> bool:
    """True when the run has come to its end: its result.json is written last, and atomically."""
    return (run.path / RESULT).is_file()


def read_result(run: PlannedRun) -> dict:
    """Return the result.json of a finished run. Raises `UserError` when it is not there or damaged."""
    content = read_json(run.path / RESULT)
    if content is None:
        raise UserError(f"{run.path / RESULT}: missing or damaged")
    return content


def read_top1(run: PlannedRun) -> float | None:
    """Return the top-1 accuracy of a finished run, None where it has none. Raises `UserError` as `read_result`."""
    metrics = read_result(run).get("metrics")
    top1 = metrics.get("top1") if isinstance(metrics, dict) else None
    return top1 if isinstance(top1, (int, float)) else None


def read_json(path: Path) -> dict | None:
    """Return the content of a json file, None when it is not there, damaged, or no mapping."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def read_state(run: PlannedRun) -> dict:
    """Return what a runner noted about a run, without parts that none writes; empty where nothing is there."""
    found = {}
    for key, value in (read_json(run.state_file("json")) or {}).items():
        if key in ("state", "host", "error") and isinstance(value, str):
            found[key] = "".join(c for c in value if c.isprintable())
        elif key in ("started", "earlier", "seconds", "ended") and is_time(value):
            found[key] = value
    return found


def is_time(value: object) -> bool:
    """True for a number of seconds: no NaN, and nothing that cannot be shown."""
    return isinstance(value, (int, float)) and 0 <= value < 1e11


def write_json(path: Path, content: object) -> None:
    """Write a json file atomically; several processes may write the same one. Raises `UserError` as `write_shared`."""
    write_shared(path, json.dumps(content, indent=1) + "\n")


def write_shared(path: Path, text: str) -> None:
    """Write a text file atomically, as one of several processes and machines that may do so.

    Raises:
        UserError: it cannot be written; what was there before is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    with write_errors(path, AGAIN):
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
