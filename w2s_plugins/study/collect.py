"""The finished students of a folder: what each one was trained with, what it says of the test samples.

A folder is that of a study, whose plan names the runs, or any folder that has run folders in it: protocol runs
(``--protocol w2s``), and students beside the ceilings they go with.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from ..cli import train_parser
from ..cli.declare import NEUTRAL, Role
from ..cli.groups import CONTROLS
from ..errors import UserError, nearest, one_line
from ..metrics.pgr import performance_gap_recovered, worth_between
from ..protocols.figures import gain_of, read_predictions
from ..protocols.same_data import check_same_data
from ..run.args_file import read_run_args
from ..run.record import PREDICTIONS, predictions_on
from ..tokens import scrub
from .layout import PLAN, RESULT, finished, load_plan, read_json, read_result

EPOCHS = ("passes_teacher", "copies_again")  # of the gain of a run, counted from 0
PARTS = ("set", "weak", "strong", "protocol", "loss")  # the first where a study has several data sets
Group = tuple[tuple[str, str], ...]  # parts, each with its label
# flags that make no other protocol, since the names of `PARTS` and the seed tell them apart
_NAMED = {"loss", "loss_kwargs", "kd_temperature", "model", "teacher", "teacher_checkpoint"}


@dataclass(frozen=True)
class Control:
    """A finished run that a student is compared with.

    Args:
        labels: training samples that it had.
        said: (N,) what it says of the test samples.
    """

    labels: int
    said: np.ndarray = field(repr=False)


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
        ceiling: (N,) what the student trained on ground truth says, or None.
        controls: by name, direct on fewer or more labels than the teacher's as ``direct-N``.
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
    ceiling: np.ndarray | None = field(repr=False)
    controls: dict[str, Control] = field(default_factory=dict, repr=False)
    test: str = ""

    @cached_property
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
        if self.ceiling is not None:
            rows["ceiling"] = self.ceiling == self.target
        rows |= {name: self.controls[name].said == self.target for name in CONTROLS if name in self.controls}
        if "direct" in rows:
            rows["above_direct"] = rows["student"].astype(np.float64) - rows["direct"]
        return rows

    @cached_property
    def figures(self) -> dict[str, float | None]:
        """What `hits` has, in percent, ``pgr``, and what `gain_of` reads of its record; None where it is not known.

        A ceiling that is not above the teacher leaves no gap to recover, hence no PGR. Epochs are counted from 1.
        """
        found: dict[str, float | None] = {"ceiling": self.args.get("ceiling_acc"), "pgr": None}
        about = gain_of(self.record)
        misfit, gain = about["misfit"] or {}, about["gain"] or {}
        found |= {"misfit": misfit.get("kl"), "gain": misfit.get("gain")}
        found |= {name: None if gain.get(name) is None else gain[name] + 1 for name in EPOCHS}
        found |= {name: 100 * float(row.mean()) for name, row in self.hits.items()}
        if found["ceiling"] is not None:
            found["pgr"] = performance_gap_recovered(found["weak"], found["student"], found["ceiling"])
        return found

    @cached_property
    def worth_in_labels(self) -> dict | None:
        """How many true labels give what it has, by its direct controls; None without such."""
        curve = [(control.labels, control.said == self.target)
                 for name, control in self.controls.items() if name.startswith("direct")]
        return worth_between(curve, self.hits["student"]) if curve else None


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
    found.students = _without_twins(read(folder, found.left_out), found.left_out)
    found.left_out = [scrub(reason).replace(f"{folder}/", "") for reason in found.left_out]
    if not found.students:
        reasons = f": {found.left_out[0]}" if found.left_out else "; expected run folders of train_w2s.py --teacher"
        raise UserError(f"{folder}: no finished student in it{reasons}")
    return found


def loss_label(name: str, kwargs: dict | None) -> str:
    """Return ``name``, or ``name(key=value, ...)`` where there are kwargs."""
    inner = ", ".join(f"{k}={v}" for k, v in sorted((kwargs or {}).items()))
    return f"{name}({inner})" if inner else name


def _from_plan(folder: Path, left_out: list[str]) -> list[StudentRun]:
    """Read the finished students of a study."""
    plan = load_plan(folder)
    check_same_data({run.folder: read_json(run.path / RESULT) or {} for run in plan}, f"study {folder}")
    by_id = {run.id: run for run in plan}
    students = [run for run in plan if run.kind == "student"]
    waiting = [run for run in students if not finished(run)]
    if waiting:
        names = ", ".join(run.folder for run in waiting[:5]) + (", ..." if len(waiting) > 5 else "")
        left_out.append(f"{len(waiting)} of {len(students)} students are not finished: {names}")
    found = []
    for run in students:
        ceiling = next((by_id[i].path for i in run.needs if by_id[i].kind == "ceiling" and finished(by_id[i])), None)
        beside: dict[str, Path] = {}
        for other in (by_id[i] for i in run.controls if i in by_id and finished(by_id[i])):
            beside.setdefault(other.kind if other.kind not in beside else other.id, other.path)
        if run not in waiting:
            with _noting(run.path, left_out):
                labels = {part: getattr(run, part) or "" for part in PARTS if part != "set" or run.set}
                args = read_run_args(run.path, "study")
                found += read_student(run.path, labels, args, read_result(run), ceiling, beside, left_out)
    return found


@contextmanager
def _noting(folder: Path, left_out: list[str]) -> Iterator[None]:
    """Note an error as the reason why a run is left out."""
    try:
        yield
    except UserError as error:
        left_out.append(str(error))
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # files of another version, or damaged
        left_out.append(f"{folder}: its files are not those of a finished run ({one_line(error)})")


def _from_folders(folder: Path, left_out: list[str]) -> list[StudentRun]:
    """Read all students below a folder; labels are made of what differs between their flags."""
    records = dict(_records(folder, left_out))
    plain = {path: record for path, record in records.items() if not record.get("teacher")}
    runs = []
    for path, record in records.items():
        if not record.get("teacher") or (path.name in CONTROLS and path.with_name("student") in records):
            continue
        with _noting(path, left_out):
            runs.append((path, read_run_args(path, "study"), record, _ceiling_of(path, record, plain)))
    labels = _protocol_labels([args for _, args, *_ in runs])
    students = []
    for (path, args, record, ceiling), protocol in zip(runs, labels):
        with _noting(path, left_out):
            label = dict(weak=str(args.get("teacher") or args["kd_model_name"]), strong=str(args["model"]),
                         protocol=protocol, loss=loss_label(record["loss"]["name"], record["loss"]["kwargs"]))
            beside = {p.name: p for p in records if p.parent == path.parent and p.name.startswith(CONTROLS)}
            beside = beside if path.name == "student" else {}
            students += read_student(path, label, args, record, ceiling, beside, left_out)
    return students


def _records(folder: Path, left_out: list[str]) -> Iterator[tuple[Path, dict]]:
    for path in sorted(folder.rglob(RESULT)):
        record = read_json(path)
        if record is None:
            left_out.append(f"{path}: cannot be read")
        elif {"model", "loss", "data", "selected", "seed"} <= record.keys():  # that of a protocol has no data
            yield path.parent, record


def _ceiling_of(path: Path, record: dict, plain: dict[Path, dict]) -> Path | None:
    """Return the ceiling of a protocol run, or the run without a teacher of the same data, model and seed.

    The nearest one, if there are several.
    """
    beside = path.with_name("ceiling")
    if path.name == "student" and beside in plain:
        return beside
    def traits(of: dict) -> tuple:
        test = of["data"].get("splits", {}).get("val")
        return of["model"]["architecture"], of["data"]["fingerprint"], test, of["seed"]

    fitting = [p for p, other in plain.items()
               if traits(other) == traits(record) and not other["data"].get("label_noise")]
    return min(fitting, key=lambda p: (p.parent != path.parent, str(p)), default=None)


def _protocol_labels(runs: list[dict]) -> list[str]:
    """Say of each run by what flags it differs from others, besides models, loss and seed.

    A flag that an earlier version did not have counts as its default.
    """
    parser = train_parser()
    names = parser.names(NEUTRAL) | _NAMED | {name for name in parser.names(Role.SEED) if _follows_seed(name, runs)}
    defaults = {k: list(v) if isinstance(v, tuple) else v for k, v in parser.defaults().items()}
    kept = [{k: v for k, v in {**defaults, **args}.items() if k not in names} for args in runs]
    differing = sorted({k for args in kept for k in args if any(args.get(k) != other.get(k) for other in kept)})
    return [", ".join(f"{k}={args.get(k)}" for k in differing) for args in kept]


def _follows_seed(name: str, runs: list[dict]) -> bool:
    """Whether a flag has one value for each seed of training: ``--seed 1 --slice-seed 1``."""
    return len({(args["seed"], args.get(name)) for args in runs}) == len({args["seed"] for args in runs})


def read_student(
        folder: Path,
        labels: dict[str, str],
        args: dict,
        record: dict,
        ceiling: Path | None,
        controls: dict[str, Path],
        left_out: list[str],
) -> list[StudentRun]:
    """Read the predictions of a finished student, of its ceiling and of its controls: on the validation split and, as
    further runs with a protocol of their own, on other test sets, where nothing is known of its training.

    Raises:
        UserError: they are missing, or of other test samples.
    """
    labels = {part: scrub(label) for part, label in labels.items()}
    found = [_read_on("", folder, labels, args, record, ceiling, controls)]
    for test in record.get("test_sets", {}):
        own = {**labels, "protocol": ", ".join(filter(None, (labels["protocol"], f"on {test}")))}
        of_test = {k: v for k, v in record.items() if k not in ("metrics", "gain")}
        with _noting(folder, left_out):
            found.append(_read_on(test, folder, own, {**args, "ceiling_acc": None}, of_test, ceiling, controls))
    left_out += [f"{folder}: {reason}" for reason in record.get("failed_test_sets", {}).values()]
    return found


def _read_on(
        test: str,
        folder: Path,
        labels: dict[str, str],
        args: dict,
        record: dict,
        ceiling: Path | None,
        controls: dict[str, Path],
) -> StudentRun:
    columns, _ = _read_said(folder, record, test)
    if "teacher" not in columns:
        raise UserError(f"{folder}: no predictions of the teacher in it (--no-teacher-eval)")
    beside = {**controls, **({"ceiling": ceiling} if ceiling is not None else {})}
    said = {}
    for name, path in beside.items():
        theirs, samples = _read_said(path, read_json(path / RESULT) or {}, test)
        if not np.array_equal(theirs["target"], columns["target"]):
            raise UserError(f"{folder}: {path}, which it is compared with, was evaluated on other test samples")
        said[name] = Control(samples, theirs["student"])
    top = said.pop("ceiling", None)
    return StudentRun(folder / f"on {test}" if test else folder, labels, record["seed"], args, record,
                      columns["target"], columns["student"], columns["teacher"], top and top.said, said, test)


def _read_said(folder: Path, record: dict, test: str) -> tuple[dict[str, np.ndarray], int]:
    """Return the predictions of a run on a test set, and how many training samples it had."""
    rule = record.get("selected", {}).get("rule", "last")
    columns = read_predictions(folder / (predictions_on(test) if test else PREDICTIONS[rule]))
    return columns, record.get("data", {}).get("train_samples", 0)


def _without_twins(students: Iterable[StudentRun], left_out: list[str]) -> list[StudentRun]:
    """Leave out what would count a seed twice: a second run with the same labels and seed."""
    found: dict[tuple, StudentRun] = {}
    for student in students:
        key = (*student.labels.values(), student.seed)
        if key in found:
            left_out.append(f"{student.folder}: the same settings and seed as {found[key].folder}, which is counted")
        else:
            found[key] = student
    return [found[key] for key in sorted(found, key=_natural)]


def _natural(key: tuple) -> list[list[str | int]]:
    """Return what sorts labels80 before labels300."""
    return [[int(piece) if place % 2 else piece for place, piece in enumerate(re.split(r"(\d+)", str(part)))]
            for part in key]
