"""The finished students of a folder: what each one was trained with, what it says of the test samples.

A folder is that of a study, whose plan names the runs, or any folder that has run folders in it: protocol runs
(``--protocol w2s``), and students beside the ceilings they go with.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from ..cli import train_parser
from ..cli.declare import NEUTRAL, Role
from ..cli.groups import CONTROLS
from ..errors import UserError, nearest, one_line
from ..metrics.pgr import performance_gap_recovered
from ..run.args_file import read_run_args
from ..run.record import PREDICTIONS, predictions_on
from ..tokens import scrub
from .layout import PLAN, RESULT, load_plan, read_record
from .outcome import gain_of, read_predictions
from .same_data import check_same_data

EPOCHS = ("passes_teacher", "copies_again")  # of the gain of a run, counted from 0
PARTS = ("set", "weak", "strong", "protocol", "loss")  # the first where a study has several data sets
Group = tuple[tuple[str, str], ...]  # parts, each with its label
# flags that make no other protocol, since the names of `PARTS` and the seed tell them apart
_NAMED = {"loss", "loss_kwargs", "kd_temperature", "model", "teacher", "teacher_checkpoint"}


@dataclass(frozen=True)
class StudentRun:
    """A finished student.

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
    def group(self) -> Group:
        """Data set, weak model, strong model and protocol: what losses are compared within."""
        return tuple((part, self.labels[part]) for part in PARTS[:-1] if part in self.labels)

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
        about = gain_of(self.record)
        misfit, gain = about["misfit"] or {}, about["gain"] or {}
        found = {"ceiling": self.args.get("ceiling_acc"), "pgr": None,
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
    students: list[StudentRun]
    left_out: list[str] = field(default_factory=list)

    def groups(self) -> dict[Group, list[StudentRun]]:
        """Students by data set, weak model, strong model and protocol, in the order of the first of each."""
        found: dict[Group, list[StudentRun]] = {}
        for student in self.students:
            found.setdefault(student.group, []).append(student)
        return found


def collect(folder: Path) -> Collected:
    """Read the students of a folder.

    Raises:
        UserError: no such folder, or no finished student in it.
    """
    if not folder.is_dir():
        siblings = [str(p) for p in folder.parent.glob("*") if p.is_dir()] if folder.parent.is_dir() else []
        raise UserError(f"no folder {folder}{nearest(str(folder), siblings)}")
    found = Collected(folder, [])
    read = _from_plan if (folder / PLAN).is_file() else _from_folders

    # a second run with the same labels and seed would count the seed twice
    kept: dict[tuple, StudentRun] = {}
    for student in read(folder, found.left_out):
        key = (*student.labels.values(), student.seed)
        if key in kept:
            found.left_out.append(
                f"{student.folder}: the same settings and seed as {kept[key].folder}, which is counted")
        else:
            kept[key] = student
    found.students = [kept[key] for key in sorted(kept, key=_natural)]

    found.left_out = [scrub(reason).replace(f"{folder}/", "") for reason in found.left_out]
    if not found.students:
        reasons = f": {found.left_out[0]}" if found.left_out else "; expected run folders of train_w2s.py --teacher"
        raise UserError(f"{folder}: no finished student in it{reasons}")
    return found


def _natural(key: tuple) -> list[list[str | int]]:
    """Return what sorts labels80 before labels300."""
    return [[int(piece) if place % 2 else piece for place, piece in enumerate(re.split(r"(\d+)", str(part)))]
            for part in key]


@contextmanager
def _noting(folder: Path, left_out: list[str]) -> Iterator[None]:
    """Note an error as the reason why a run is left out."""
    try:
        yield
    except UserError as error:
        left_out.append(str(error))
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # files of another version, or damaged
        left_out.append(f"{folder}: its files are not those of a finished run ({one_line(error)})")


def _from_plan(folder: Path, left_out: list[str]) -> list[StudentRun]:
    """Read the finished students of a study."""
    plan = {run.id: run for run in load_plan(folder)}
    records = {run.id: read_record(run.path / RESULT) or {} for run in plan.values() if run.finished}
    check_same_data(records, f"study {folder}")
    students = [run for run in plan.values() if run.kind == "student"]
    waiting = [run for run in students if not run.finished]
    if waiting:
        names = ", ".join(run.id for run in waiting[:5]) + (", ..." if len(waiting) > 5 else "")
        left_out.append(f"{len(waiting)} of {len(students)} students are not finished: {names}")
    found = []
    for run in students:
        if not run.finished:
            continue
        # a study of an earlier version may have direct on several amounts of labels: the first one counts
        beside: dict[str, Path] = {}
        for name in (*run.needs, *run.controls):
            other = plan.get(name)
            if other is not None and other.finished and other.kind != "weak":
                beside.setdefault(other.kind, other.path)
        labels = {part: getattr(run, part) or "" for part in PARTS if part != "set" or run.set}
        found += _read_student(run.path, labels, beside, left_out)
    return found


def _from_folders(folder: Path, left_out: list[str]) -> list[StudentRun]:
    """Read all students below a folder; labels are made of what differs between their flags."""
    records: dict[Path, dict] = {}
    for path in sorted(folder.rglob(RESULT)):
        record = read_record(path)
        if record is None:
            left_out.append(f"{path}: cannot be read")
        elif {"model", "loss", "data", "selected", "seed"} <= record.keys():  # that of a protocol has no data
            records[path.parent] = record

    flags: dict[Path, dict] = {}
    for path, record in records.items():
        is_control = path.name in CONTROLS and path.with_name("student") in records
        if record.get("teacher") and not is_control:
            with _noting(path, left_out):
                flags[path] = read_run_args(path, "study")

    students = []
    for (path, args), protocol in zip(flags.items(), _protocol_labels(list(flags.values()))):
        with _noting(path, left_out):
            about = records[path]["loss"]
            inner = ", ".join(f"{k}={v}" for k, v in sorted((about["kwargs"] or {}).items()))
            labels = dict(weak=str(args.get("teacher") or args["kd_model_name"]), strong=str(args["model"]),
                          protocol=protocol, loss=about["name"] + (f"({inner})" if inner else ""))
            beside = {}
            if path.name == "student":
                beside = {name: path.with_name(name) for name in CONTROLS if path.with_name(name) in records}
            ceiling = _ceiling_of(path, records)
            if ceiling is not None:
                beside["ceiling"] = ceiling
            students += _read_student(path, labels, beside, left_out)
    return students


def _ceiling_of(path: Path, records: dict[Path, dict]) -> Path | None:
    """Return the ceiling of a protocol run, or the run without a teacher of the same data, model and seed.

    The nearest one, if there are several.
    """
    def traits(of: dict) -> tuple:
        test = of["data"].get("splits", {}).get("val")
        return of["model"]["architecture"], of["data"]["fingerprint"], test, of["seed"]

    plain = {p: record for p, record in records.items() if not record.get("teacher")}
    if path.name == "student" and path.with_name("ceiling") in plain:
        return path.with_name("ceiling")
    fitting = [p for p, other in plain.items()
               if traits(other) == traits(records[path]) and not other["data"].get("label_noise")]
    return min(fitting, key=lambda p: (p.parent != path.parent, str(p)), default=None)


def _protocol_labels(runs: list[dict]) -> list[str]:
    """Say of each run by what flags it differs from others, besides models, loss and seed.

    A flag that an earlier version did not have counts as its default.
    """
    def follows_seed(name: str) -> bool:  # one value for each seed of training: --seed 1 --slice-seed 1
        return len({(args["seed"], args.get(name)) for args in runs}) == len({args["seed"] for args in runs})

    parser = train_parser()
    names = parser.names(NEUTRAL) | _NAMED | {name for name in parser.names(Role.SEED) if follows_seed(name)}
    defaults = {k: list(v) if isinstance(v, tuple) else v for k, v in parser.defaults().items()}
    kept = [{k: v for k, v in {**defaults, **args}.items() if k not in names} for args in runs]
    differing = sorted({k for args in kept for k in args if any(args.get(k) != other.get(k) for other in kept)})
    return [", ".join(f"{k}={args.get(k)}" for k in differing) for args in kept]


def _read_student(
        folder: Path,
        labels: dict[str, str],
        beside: dict[str, Path],
        left_out: list[str],
) -> list[StudentRun]:
    """Read the predictions of a finished student and of its ceiling and controls: on the validation split and, as
    further runs with a protocol of their own, on other test sets, where nothing is known of its training.

    Args:
        folder: of the student.
        labels: by the names of `PARTS`.
        beside: folders of ceiling and controls.
        left_out: gets a sentence for what is missing, or of other test samples.
    """
    labels = {part: scrub(label) for part, label in labels.items()}
    found: list[StudentRun] = []
    with _noting(folder, left_out):
        args, record = read_run_args(folder, "study"), read_record(folder / RESULT) or {}
        found.append(_read_on("", folder, labels, args, record, beside))
        for test in record.get("test_sets", {}):
            own = {**labels, "protocol": ", ".join(filter(None, [labels["protocol"], f"on {test}"]))}
            of_test = {k: v for k, v in record.items() if k not in ("metrics", "gain")}
            with _noting(folder, left_out):
                found.append(_read_on(test, folder, own, {**args, "ceiling_acc": None}, of_test, beside))
        left_out += [f"{folder}: {reason}" for reason in record.get("failed_test_sets", {}).values()]
    return found


def _read_on(
        test: str,
        folder: Path,
        labels: dict[str, str],
        args: dict,
        record: dict,
        beside: dict[str, Path],
) -> StudentRun:
    columns = _read_answers(folder, record, test)
    if "teacher" not in columns:
        raise UserError(f"{folder}: no predictions of the teacher in it (--no-teacher-eval)")
    others = {}
    for name, path in beside.items():
        theirs = _read_answers(path, read_record(path / RESULT) or {}, test)
        if not np.array_equal(theirs["target"], columns["target"]):
            raise UserError(f"{folder}: {path}, which it is compared with, was evaluated on other test samples")
        others[name] = theirs["student"]
    return StudentRun(folder / f"on {test}" if test else folder, labels, record["seed"], args, record,
                      columns["target"], columns["student"], columns["teacher"], others, test)


def _read_answers(folder: Path, record: dict, test: str) -> dict[str, np.ndarray]:
    """Return the predictions of a run on a test set."""
    rule = record.get("selected", {}).get("rule", "last")
    return read_predictions(folder / (predictions_on(test) if test else PREDICTIONS[rule]))
