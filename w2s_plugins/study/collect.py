"""The finished students of a folder: what each one was trained with, what it says of the test samples.

A folder is that of a study, whose plan names the runs, or any folder that has run folders in it: protocol runs
(``--protocol w2s``), and students beside the ceilings they go with.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from ..cli import train_parser
from ..cli.declare import NEUTRAL, Role
from ..cli.groups import CONTROLS
from ..errors import UserError, nearest, one_line, scrub
from ..metrics.pgr import performance_gap_recovered
from ..run.args_file import read_run_args
from ..run.record import PREDICTIONS, predictions_on
from .layout import PLAN, RESULT, load_plan, read_record
from .outcome import gain_of, read_predictions
from .same_data import check_same_data

EPOCHS = ("passes_teacher", "copies_again")  # of the gain of a run, counted from 0
PARTS = ("set", "weak", "strong", "protocol", "loss")  # the first where a study has several data sets
# flags that make no other protocol, since the names of `PARTS` and the seed tell them apart
_NAMED = {"loss", "loss_kwargs", "kd_temperature", "model", "teacher", "teacher_checkpoint"}


@dataclass(frozen=True)
class StudentRun:
    """A finished student on one test set.

    Args:
        folder: its run folder.
        labels: what it is, by the names of `PARTS`.
        seed: of its training.
        args: content of its args.yaml.
        record: content of its result.json.
        target: (N,) labels of the test samples.
        student: (N,) what it says.
        teacher: (N,) what its teacher says.
        others: (N,) what its ceiling says, and the controls that there are.
        test: name of the test set, where it is not the validation split.
    """

    folder: Path
    labels: dict[str, str]
    seed: int
    args: dict = field(repr=False)
    record: dict = field(repr=False)
    target: np.ndarray = field(repr=False)
    student: np.ndarray = field(repr=False)
    teacher: np.ndarray = field(repr=False)
    others: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    test: str = ""

    @property
    def group(self) -> dict[str, str]:
        """Data set, weak model, strong model and protocol: what losses are compared within."""
        return {part: label for part, label in self.labels.items() if part != "loss"}

    @property
    def loss(self) -> str:
        return self.labels["loss"]

    @cached_property
    def hits(self) -> dict[str, np.ndarray]:
        """(N,) where ``weak``, ``student``, ``ceiling`` and controls are right, ``agreement``, and how much more often
        the student is right than direct, ``above_direct``.
        """
        rows = {"weak": self.teacher == self.target, "student": self.student == self.target,
                "agreement": self.student == self.teacher}
        rows |= {name: answers == self.target for name, answers in self.others.items()}
        if "direct" in rows:
            rows["above_direct"] = rows["student"].astype(np.float64) - rows["direct"]
        return rows

    @cached_property
    def figures(self) -> dict[str, float | None]:
        """What `hits` has, in percent, ``pgr``, and what `gain_of` reads of its record; None where it is not known.

        A ceiling that is not above the teacher leaves no gap to recover, hence no PGR. Epochs are counted from 1.
        """
        about = gain_of({} if self.test else self.record)
        misfit, gain = about["misfit"] or {}, about["gain"] or {}
        found = {"ceiling": None if self.test else self.args.get("ceiling_acc"), "pgr": None,
                 "misfit": misfit.get("kl"), "gain": misfit.get("gain")}
        found |= {name: None if gain.get(name) is None else gain[name] + 1 for name in EPOCHS}
        found |= {name: 100 * float(row.mean()) for name, row in self.hits.items()}
        if found["ceiling"] is not None:
            found["pgr"] = performance_gap_recovered(found["weak"], found["student"], found["ceiling"])
        return found


@dataclass
class Collected:
    """The students of a folder, and what was left out.

    Args:
        folder: where they are.
        students: in the order of their labels and seeds.
        left_out: one sentence each.
    """

    folder: Path
    students: list[StudentRun] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def groups(self) -> list[list[StudentRun]]:
        """Students of one data set, weak model, strong model and protocol, in the order of the first of each."""
        found: dict[tuple, list[StudentRun]] = {}
        for student in self.students:
            found.setdefault(tuple(student.group.items()), []).append(student)
        return list(found.values())

    @contextmanager
    def noting(self, folder: Path) -> Iterator[None]:
        """Note an error as the reason why a run is left out."""
        try:
            yield
        except UserError as error:
            self.left_out.append(str(error))
        except (KeyError, TypeError, ValueError, AttributeError) as error:  # files of another version, or damaged
            self.left_out.append(f"{folder}: its files are not those of a finished run ({one_line(error)})")


@dataclass(frozen=True)
class Source:
    """Where a student is read from.

    Args:
        folder: of the student.
        labels: by the names of `PARTS`.
        beside: folders of its ceiling and controls.
    """

    folder: Path
    labels: dict[str, str]
    beside: dict[str, Path]


def collect(folder: Path) -> Collected:
    """Read the students of a folder.

    Raises:
        UserError: no such folder, or no finished student in it.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}{nearest(str(folder), map(str, folder.parent.glob('*')))}")
    # each result.json is read once
    found, records = Collected(folder), {}
    for path in sorted(folder.rglob(RESULT)):
        record = read_record(path)
        if record is None:
            found.left_out.append(f"{path}: cannot be read")
        else:
            records[path.parent] = record
    find_sources = _sources_of_plan if (folder / PLAN).is_file() else _sources_in_folders

    # a second run with the same labels and seed would count the seed twice
    kept: dict[tuple, StudentRun] = {}
    for source in find_sources(found, records):
        for student in _read_student(source, found, records):
            key = (*student.labels.values(), student.seed)
            if key in kept:
                found.left_out.append(
                    f"{student.folder}: the same settings and seed as {kept[key].folder}, which is counted")
            else:
                kept[key] = student
    found.students = [kept[key] for key in sorted(kept, key=_natural)]

    found.left_out = [scrub(reason).replace(f"{folder}/", "") for reason in found.left_out]
    if not found.students:
        reasons = found.left_out[0] if found.left_out else "expected run folders of train_w2s.py --teacher"
        raise UserError(f"{folder}: no finished student in it; {reasons}")
    return found


def _natural(key: tuple) -> list[list[str | int]]:
    """Return what sorts labels80 before labels300."""
    return [[int(piece) if place % 2 else piece for place, piece in enumerate(re.split(r"(\d+)", str(part)))]
            for part in key]


def _sources_of_plan(found: Collected, records: Mapping[Path, dict]) -> Iterator[Source]:
    """Yield the finished students of a study."""
    plan = {run.id: run for run in load_plan(found.folder)}
    finished = {run.id: records[run.path] for run in plan.values() if run.path in records}
    check_same_data(finished, f"study {found.folder}")
    students = [run for run in plan.values() if run.kind == "student"]
    waiting = [run.id for run in students if run.id not in finished]
    if waiting:
        names = ", ".join(waiting[:5]) + (", ..." if len(waiting) > 5 else "")
        found.left_out.append(f"{len(waiting)} of {len(students)} students are not finished: {names}")
    for run in students:
        if run.id in finished:
            beside = {plan[name].kind: plan[name].path for name in (*run.needs, *run.controls) if name in finished}
            beside.pop("weak", None)
            labels = {part: getattr(run, part) or "" for part in PARTS if part != "set" or run.set}
            yield Source(run.path, labels, beside)


def _sources_in_folders(found: Collected, records: Mapping[Path, dict]) -> Iterator[Source]:
    """Yield all students below a folder; labels are made of what differs between their flags."""
    # the record of a protocol is that of no run
    runs = {path: record for path, record in records.items()
            if {"model", "loss", "data", "selected", "seed"} <= record.keys()}
    flags: dict[Path, dict] = {}
    for path, record in runs.items():
        is_control = path.name in CONTROLS and path.with_name("student") in runs
        if record.get("teacher") and not is_control:
            with found.noting(path):
                flags[path] = read_run_args(path, "study")
    for (path, args), protocol in zip(flags.items(), _protocol_labels(list(flags.values()))):
        with found.noting(path):
            about = runs[path]["loss"]
            inner = ", ".join(f"{k}={v}" for k, v in sorted((about["kwargs"] or {}).items()))
            labels = dict(weak=str(args.get("teacher") or args["kd_model_name"]), strong=str(args["model"]),
                          protocol=protocol, loss=about["name"] + (f"({inner})" if inner else ""))
            beside = {}
            if path.name == "student":
                beside = {name: path.with_name(name) for name in CONTROLS if path.with_name(name) in runs}
            ceiling = _ceiling_of(path, runs)
            if ceiling is not None:
                beside["ceiling"] = ceiling
            yield Source(path, labels, beside)


def _ceiling_of(path: Path, runs: Mapping[Path, dict]) -> Path | None:
    """Return the ceiling of a protocol run, or the nearest run without a teacher of the same data, model and seed."""
    def traits(record: dict) -> tuple:
        data = record["data"]
        return record["model"]["architecture"], data["fingerprint"], data.get("splits", {}).get("val"), record["seed"]

    if path.name == "student" and path.with_name("ceiling") in runs:
        return path.with_name("ceiling")
    fitting = [other for other, record in runs.items() if not record.get("teacher")
               and traits(record) == traits(runs[path]) and not record["data"].get("label_noise")]
    return min(fitting, key=lambda other: (other.parent != path.parent, str(other)), default=None)


def _protocol_labels(runs: list[dict]) -> list[str]:
    """Say of each run by what flags it differs from others, besides models, loss and seed.

    A flag that an earlier version did not have counts as its default.
    """
    def follows_seed(name: str) -> bool:  # one value for each seed of training: --seed 1 --slice-seed 1
        return len({(args["seed"], args.get(name)) for args in runs}) == len({args["seed"] for args in runs})

    parser = train_parser()
    names = parser.names(NEUTRAL) | _NAMED | {name for name in parser.names(Role.SEED) if follows_seed(name)}
    defaults = {k: list(v) if isinstance(v, tuple) else v for k, v in parser.defaults().items()}
    filled = [{**defaults, **args} for args in runs]
    flags = sorted({k for args in filled for k in args} - names)
    differing = [k for k in flags if any(args.get(k) != filled[0].get(k) for args in filled)]
    return [", ".join(f"{k}={args.get(k)}" for k in differing) for args in filled]


def _read_student(source: Source, found: Collected, records: Mapping[Path, dict]) -> Iterator[StudentRun]:
    """Yield a finished student with the predictions of its ceiling and controls: on the validation split and, as
    further runs with a protocol of their own, on other test sets.
    """
    folder, record = source.folder, records[source.folder]
    for test in ("", *record.get("test_sets", {})):
        with found.noting(folder):
            args, columns = read_run_args(folder, "study"), _read_answers(folder, record, test)
            if "teacher" not in columns:
                raise UserError(f"{folder}: no predictions of the teacher in it (--no-teacher-eval)")
            others = {}
            for name, path in source.beside.items():
                theirs = _read_answers(path, records[path], test)
                if not np.array_equal(theirs["target"], columns["target"]):
                    raise UserError(f"{folder}: {path}, which it is compared with, was evaluated on other test samples")
                others[name] = theirs["student"]
            labels = {part: scrub(label) for part, label in source.labels.items()}
            if test:
                labels["protocol"] = ", ".join(filter(None, [labels["protocol"], f"on {test}"]))
            yield StudentRun(folder / f"on {test}" if test else folder, labels, record["seed"], args, record,
                             columns["target"], columns["student"], columns["teacher"], others, test)
    found.left_out += [f"{folder}: {reason}" for reason in record.get("failed_test_sets", {}).values()]


def _read_answers(folder: Path, record: dict, test: str) -> dict[str, np.ndarray]:
    """Return the predictions of a run on a test set."""
    rule = record.get("selected", {}).get("rule", "last")
    return read_predictions(folder / (predictions_on(test) if test else PREDICTIONS[rule]))
