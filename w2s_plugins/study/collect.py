"""The finished students of a folder: what each one was trained with, what it says of the test samples.

A folder is that of a study, whose plan names the runs, or any folder that has run folders in it: protocol runs
(``--protocol w2s``), and students beside the ceilings they go with.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas

from ..cli import train_parser
from ..cli.declare import NEUTRAL, Role
from ..cli.groups import CONTROLS
from ..errors import UserError, nearest, one_line, scrub
from ..metrics.pgr import performance_gap_recovered
from ..run.args_file import read_run_args
from ..run.record import PREDICTIONS, predictions_on
from .layout import PLAN, RESULT, load_plan, read_record
from .outcome import gain_of, hits_of, read_answers
from .same_data import check_same_data

PARTS = ("set", "weak", "strong", "protocol")  # what losses are compared within
# flags that make no other protocol, since other labels and the seed tell them apart
_NAMED = {"loss", "loss_kwargs", "kd_temperature", "model", "teacher", "teacher_checkpoint"}


@dataclass(frozen=True)
class StudentRun:
    """A finished student on one test set.

    Args:
        folder: its run folder.
        labels: what it is, by the names of `PARTS` and ``loss``.
        args: content of its args.yaml.
        record: content of its result.json.
        target: (N,) labels of the test samples.
        answers: (N,) what it says of them, and its teacher, its ceiling and controls.
        test: name of the test set, where it is not the validation split.
    """

    folder: Path
    labels: dict[str, str]
    args: dict = field(repr=False)
    record: dict = field(repr=False)
    target: np.ndarray = field(repr=False)
    answers: dict[str, np.ndarray] = field(repr=False)
    test: str = ""

    @property
    def seed(self) -> int:
        """Of its training."""
        return self.record["seed"]

    @cached_property
    def hits(self) -> dict[str, np.ndarray]:
        """(N,) where it and the others are right, see `hits_of`."""
        return hits_of(self.target, self.answers)

    def class_name(self, label: int) -> str:
        """Return the name of a class, its number where it has none."""
        names = self.record["model"].get("class_names")
        return names[label] if names else str(label)

    @cached_property
    def figures(self) -> dict[str, float | None]:
        """All that the table has of it: each becomes columns of table.csv. None where it is not known.

        Accuracies are in percent, misfit and gain in nats.
        """
        figures = {name: 100 * float(row.mean()) for name, row in self.hits.items()}
        figures["pgr"] = None
        if not self.test:
            figures.setdefault("ceiling", self.args.get("ceiling_acc"))
            misfit = gain_of(self.record)["misfit"] or {}
            figures |= {"misfit": misfit.get("kl"), "gain": misfit.get("gain")}
        if figures.get("ceiling") is not None:
            figures["pgr"] = performance_gap_recovered(figures["weak"], figures["student"], figures["ceiling"])
        return figures


@dataclass
class Collected:
    """The students of a folder, and what was left out.

    Args:
        folder: where they are.
        students: by seed, in the order of their study.
        left_out: one sentence each.
    """

    folder: Path
    students: list[StudentRun] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @contextmanager
    def noting(self, run: Path) -> Iterator[None]:
        """Note an error as the reason why a run is left out."""
        try:
            yield
        except UserError as error:
            self.left_out.append(f"{run}: {error}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:  # files of another version, or damaged
            self.left_out.append(f"{run}: its files are not those of a finished run ({one_line(error)})")

    def table(self) -> pandas.DataFrame:
        """Return one row a run: its labels, its seed, its PGR, and the run itself."""
        return pandas.DataFrame([{**run.labels, "seed": run.seed, "pgr": run.figures["pgr"], "run": run}
                                 for run in self.students])


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
    sources = _sources_of_plan if (folder / PLAN).is_file() else _sources_in_folders

    # a second run with the same labels and seed would count the seed twice
    kept: dict[tuple, StudentRun] = {}
    for path, labels, others in sources(found, records):
        labels = {part: scrub(label) for part, label in labels.items()}
        for test in ("", *records[path].get("test_sets", {})):
            with found.noting(path):
                files = {}
                for name, run in {"student": path, **others}.items():
                    rule = records[run]["selected"]["rule"]
                    files[name] = run / (predictions_on(test) if test else PREDICTIONS[rule])
                # another test set makes a protocol of its own
                protocol = [labels["protocol"], test and f"on {test}"]
                student = StudentRun(
                    path,
                    {**labels, "protocol": ", ".join(filter(None, protocol))},
                    read_run_args(path, "study"),
                    records[path],
                    *read_answers(files),
                    test,
                )
                first = kept.setdefault((*student.labels.values(), student.seed), student)
                if first is not student:
                    raise UserError(f"the same settings and seed as {first.folder}, which is counted")
        found.left_out += [f"{path}: {reason}" for reason in records[path].get("failed_test_sets", {}).values()]
    found.students = sorted(kept.values(), key=lambda student: student.seed)

    # reasons name runs by their place in the folder
    found.left_out = [scrub(reason).replace(f"{folder}/", "") for reason in found.left_out]
    if not found.students:
        reasons = found.left_out[0] if found.left_out else "expected run folders of train_w2s.py --teacher"
        raise UserError(f"{folder}: no finished student in it; {reasons}")
    return found


# a student's run folder, its labels, and the folders of its ceiling and controls
Sources = Iterator[tuple[Path, dict[str, str], dict[str, Path]]]


def _sources_of_plan(found: Collected, records: Mapping[Path, dict]) -> Sources:
    """Yield the finished students of a study."""
    plan = {run.id: run for run in load_plan(found.folder)}
    finished = {run.id: records[run.path] for run in plan.values() if run.path in records}
    check_same_data(finished, f"study {found.folder}")
    students = [run for run in plan.values() if run.kind == "student"]
    waiting = [run.id for run in students if run.id not in finished]
    if waiting:
        found.left_out.append(f"{len(waiting)} of {len(students)} students are not finished, such as {waiting[0]}")
    for run in students:
        if run.id in finished:
            others = {plan[name].kind: plan[name].path for name in (*run.needs, *run.controls) if name in finished}
            others.pop("weak", None)
            yield run.path, {part: getattr(run, part) or "" for part in (*PARTS, "loss")}, others


def _sources_in_folders(found: Collected, records: Mapping[Path, dict]) -> Sources:
    """Yield all students below a folder. Ceiling and controls are the runs of these names beside it."""
    flags: dict[Path, dict] = {}
    labels: dict[Path, dict[str, str]] = {}
    for path, record in records.items():
        # the record of a protocol is that of no run, and a control has a student beside it
        is_control = path.name in CONTROLS and path.with_name("student") in records
        if "model" in record and record.get("teacher") and not is_control:
            with found.noting(path):
                args, about = read_run_args(path, "study"), record["loss"]
                inner = ", ".join(f"{k}={v}" for k, v in sorted((about["kwargs"] or {}).items()))
                labels[path] = dict(set="", weak=str(args["teacher"]), strong=str(args["model"]),
                                    loss=about["name"] + (f"({inner})" if inner else ""))
                flags[path] = args
    for path, protocol in _protocol_labels(flags).items():
        others = {name: path.with_name(name) for name in ("ceiling", *CONTROLS)
                  if records.get(path.with_name(name), {}).get("seed") == records[path]["seed"]}
        yield path, {**labels[path], "protocol": protocol}, others


def _protocol_labels(runs: Mapping[Path, dict]) -> dict[Path, str]:
    """Say of each run by what flags it differs from others, besides models, loss and seeds.

    A flag that an earlier version did not have counts as its default.
    """
    parser = train_parser()
    defaults = {name: list(value) if isinstance(value, tuple) else value for name, value in parser.defaults().items()}
    table = pandas.DataFrame([{**defaults, **args} for args in runs.values()]).astype(str)
    flags_of_protocol = set(table) - parser.names(NEUTRAL | Role.SEED) - _NAMED
    shown = [name for name in sorted(flags_of_protocol) if table[name].nunique() > 1]
    return {path: ", ".join(f"{name}={row[name]}" for name in shown)
            for path, row in zip(runs, table.to_dict("records"))}
