"""The finished students of a study: what each one was trained with, what it says of the test samples."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas

from ..errors import UserError, one_line, scrub
from ..made_of import check_same
from ..run.args_file import read_run_args
from .layout import load_plan, made_of_run, read_record
from .plan import RESULT
from .scores import draws_of, hits_of, predictions_of, read_answers, values_of

PARTS = ["set", "weak", "strong", "protocol"]  # what losses are compared within


@dataclass(frozen=True)
class StudentRun:
    """A finished student.

    Args:
        args: content of its args.yaml.
        record: content of its result.json.
        answers: what it says of the test samples, and its teacher, its ceiling and controls, see `read_answers`.
    """

    args: dict = field(repr=False)
    record: dict = field(repr=False)
    answers: pandas.DataFrame = field(repr=False)

    @cached_property
    def hits(self) -> pandas.DataFrame:
        """Where it and the others are right, see `hits_of`."""
        return hits_of(self.answers)

    @cached_property
    def draws(self) -> dict[str, np.ndarray]:
        """What they have in resamples of the test samples, see `draws_of`."""
        return draws_of(self.hits, self.answers)

    @cached_property
    def figures(self) -> dict[str, float | None]:
        """All that the table has of it, in percent: each becomes columns of table.csv. None where it is not known."""
        return values_of(self.hits, self.args.get("ceiling_acc"))


@dataclass(frozen=True)
class Collected:
    """The students of a study, and what was left out.

    Args:
        runs: a row a run, by seed: `PARTS`, ``loss`` and its ``name`` in the registry, ``seed``, and the `StudentRun`
            itself as ``run``.
        left_out: one sentence each.
    """

    runs: pandas.DataFrame
    left_out: list[str]


def collect(folder: Path) -> Collected:
    """Read the students of a study.

    Raises:
        UserError: no folder of a study, or no finished student in it.
    """
    plan = {run.name: run for run in load_plan(folder)}
    # each result.json is read once
    records = {run.name: read_record(run.folder / RESULT) for run in plan.values() if run.finished}
    left_out = [
        f"{plan[name].folder}: its {RESULT} cannot be read"
        for name, record in records.items()
        if record is None
    ]
    records = {name: record for name, record in records.items() if record is not None}
    # figures of runs on other images or labels of the same name belong in no table together
    check_same(
        {name: made_of_run(plan[name].folder, record) for name, record in records.items()},
        f"study {folder}",
    )
    # a table of some of the students is of use while others are trained, if it says so
    students = [run for run in plan.values() if run.kind == "student"]
    waiting = [run.name for run in students if not run.finished]
    if waiting:
        left_out.append(
            f"{len(waiting)} of {len(students)} students are not finished, such as {waiting[0]}"
        )

    rows = []
    for student in students:
        if student.name not in records:
            continue
        # beside its own answers stand its teacher's, and those of its ceiling and its controls
        beside = [
            plan[name]
            for name in (student.name, *student.needs, *student.controls)
            if name in records
        ]
        try:
            answers = read_answers(
                {
                    run.kind: predictions_of(run.folder, records[run.name])
                    for run in beside
                    if run.kind != "weak"
                }
            )
            run = StudentRun(read_run_args(student.folder, "study"), records[student.name], answers)
            if run.figures["student"] is None:
                left_out.append(f"{student.folder}: no class of its test samples can be ranked")
                continue
            labels = {part: scrub(getattr(student, part) or "") for part in (*PARTS, "loss")}
            rows.append(
                {
                    **labels,
                    "name": run.record["loss"]["name"],
                    "seed": run.record["seed"],
                    "run": run,
                }
            )
        except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
            # files that are damaged, or of another version
            left_out.append(
                f"{student.folder}: not the files of a finished student: {one_line(error)}"
            )
    if not rows:
        raise UserError(
            f"{folder}: no finished student in it; {[*left_out, 'its plan has none'][0]}"
        )
    # names may come from others: no address with a password in it gets into a report
    runs = pandas.DataFrame(rows).sort_values("seed", kind="stable")
    return Collected(runs, [scrub(reason).replace(f"{folder}/", "") for reason in left_out])
