"""The finished students of a folder: what each one was trained with, what it says of the test samples.

A folder is that of a study, whose plan names the runs, or any folder that has run folders in it: protocol runs
(``--protocol w2s``), and students beside the ceilings they go with.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas

from ..cli import train_parser
from ..cli.declare import NEUTRAL, Role
from ..errors import UserError, nearest, one_line, scrub
from ..run.args_file import read_run_args
from .controls import CONTROLS
from .layout import PLAN, RESULT, load_plan, read_record
from .outcome import hits_of, predictions_of, read_answers, values_of
from .same_data import check_same_data

PARTS = ["set", "weak", "strong", "protocol"]  # what losses are compared within
# flags that make no other protocol, since other labels and the seed tell them apart
_NAMED = {"loss", "loss_kwargs", "kd_temperature", "model", "teacher", "teacher_checkpoint"}


@dataclass(frozen=True)
class StudentRun:
    """A finished student.

    Args:
        folder: its run folder.
        args: content of its args.yaml.
        record: content of its result.json.
        answers: what it says of the test samples, and its teacher, its ceiling and controls, see `read_answers`.
    """

    folder: Path
    args: dict = field(repr=False)
    record: dict = field(repr=False)
    answers: pandas.DataFrame = field(repr=False)

    @cached_property
    def hits(self) -> pandas.DataFrame:
        """Where it and the others are right, see `hits_of`."""
        return hits_of(self.answers)

    @cached_property
    def figures(self) -> dict[str, float | None]:
        """All that the table has of it, in percent: each becomes columns of table.csv. None where it is not known."""
        return values_of(self.hits, self.args.get("ceiling_acc"))


@dataclass(frozen=True)
class Collected:
    """The students of a folder, and what was left out.

    Args:
        runs: a row a run, by seed: `PARTS`, ``loss``, ``seed``, and the `StudentRun` itself as ``run``.
        left_out: one sentence each.
    """

    runs: pandas.DataFrame
    left_out: list[str]


def collect(folder: Path) -> Collected:
    """Read the students of a folder.

    Raises:
        UserError: no such folder, or no finished student in it.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}{nearest(str(folder), map(str, folder.parent.glob('*')))}")
    # each result.json is read once
    records = {path.parent: read_record(path) for path in sorted(folder.rglob(RESULT))}
    left_out = [f"{path}: its {RESULT} cannot be read" for path, record in records.items() if record is None]
    is_planned = (folder / PLAN).is_file()
    students = list(_planned_students(folder) if is_planned else _students_in_folders(records))
    waiting = [path.name for path, *_ in students if path not in records]
    if waiting:
        left_out.append(f"{len(waiting)} of {len(students)} students are not finished, such as {waiting[0]}")

    rows, compared = [], {}
    for path, labels, others in students:
        if not records.get(path):
            continue
        made = {
            name: (run, records[run])
            for name, run in {"student": path, **others}.items()
            if records.get(run)
        }
        compared.update((run.name if is_planned else str(run), record) for run, record in made.values())
        try:
            # its teacher's answers stand beside its own
            answers = read_answers({name: predictions_of(*run) for name, run in made.items() if name != "weak"})
            run = StudentRun(path, read_run_args(path, "study"), records[path], answers)
            named = {part: scrub(label) for part, label in (labels or _labels_of(run)).items()}
            rows.append({**named, "seed": run.record["seed"], "run": run})
        except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
            # files that are damaged, or of another version
            left_out.append(f"{path}: not the files of a finished student: {one_line(error)}")
    check_same_data(compared, f"study {folder}")
    if not rows:
        reasons = [*left_out, "expected run folders of train_w2s.py --teacher"]
        raise UserError(f"{folder}: no finished student in it; {reasons[0]}")
    runs = pandas.DataFrame(rows)
    if not is_planned:
        runs["protocol"] = _protocols_of(runs["run"])

    # a second run with the same labels and seed would count the seed twice
    again = runs.duplicated([*PARTS, "loss", "seed"])
    left_out += [f"{run.folder}: the same settings and seed as a run that is counted" for run in runs["run"][again]]
    runs = runs[~again].sort_values("seed", kind="stable")
    return Collected(runs, [scrub(reason).replace(f"{folder}/", "") for reason in left_out])


# a student's run folder, its labels as far as a plan has them, and the folders of its ceiling and controls
Students = Iterator[tuple[Path, dict[str, str] | None, dict[str, Path]]]


def _planned_students(folder: Path) -> Students:
    """Yield the students of a study, whether they are finished or not."""
    plan = {run.id: run for run in load_plan(folder)}
    for run in plan.values():
        if run.kind == "student":
            labels = {part: getattr(run, part) or "" for part in (*PARTS, "loss")}
            others = [plan[name] for name in (*run.needs, *run.controls)]
            yield run.path, labels, {other.kind: other.path for other in others}


def _students_in_folders(records: Mapping[Path, dict | None]) -> Students:
    """Yield all students below a folder. Ceiling and controls are the runs of these names and of its seed beside it."""
    known = {path: record for path, record in records.items() if record}
    for path, record in known.items():
        # the record of a protocol is that of no run, and a control has a student beside it
        is_control = path.name in CONTROLS and path.with_name("student") in known
        if "model" in record and record.get("teacher") and not is_control:
            yield path, None, {name: path.with_name(name) for name in ("ceiling", *CONTROLS)
                               if known.get(path.with_name(name), {}).get("seed") == record["seed"]}


def _labels_of(run: StudentRun) -> dict[str, str]:
    """Return the labels of a run that no plan names."""
    loss = run.record["loss"]
    inner = ", ".join(f"{name}={value}" for name, value in sorted(loss["kwargs"].items()))
    label = loss["name"] + (f"({inner})" if inner else "")
    return dict(
        set="",
        weak=str(run.args["teacher"]),
        strong=str(run.args["model"]),
        protocol="",
        loss=label,
    )


def _protocols_of(runs: Iterable[StudentRun]) -> list[str]:
    """Say of each run by what flags it differs from others, besides models, loss and seeds.

    A flag that an earlier version did not have counts as its default.
    """
    parser = train_parser()
    defaults = {name: list(value) if isinstance(value, tuple) else value for name, value in parser.defaults().items()}
    table = pandas.DataFrame([{**defaults, **run.args} for run in runs]).astype(str)
    flags = set(table) - parser.names(NEUTRAL | Role.SEED) - _NAMED
    shown = [name for name in sorted(flags) if table[name].nunique() > 1]
    return [", ".join(f"{name}={row[name]}" for name in shown) for row in table.to_dict("records")]
