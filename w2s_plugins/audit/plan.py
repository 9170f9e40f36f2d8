"""What a run's student and its labels say of each image: ``audit/plan.json``, from which all else follows."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..data.keys import sample_keys
from ..files import delete, read_plain
from ..predictions.run import open_model
from ..teachers.name import TeacherName
from ..teachers.teacher import open_alone
from ..training.learned import ROWS, Learned
from .draw import STRATA, drawing_order, find_strata


@dataclass
class Plan:
    """What is said of all images of a run, in the order in which they are drawn.

    Args:
        weights: SHA-256 of the student.
        by: what the keys are, ``filename`` or ``id``.
        classes: their names.
        keys: (N,) of the images.
        labels: (N,) classes that the student has learned from.
        student: (N,) classes that it says.
        other: (N,) the label where it is another class, else what the student finds the next best one.
        strata: (N,) see `draw.find_strata`.
        drawn: how many images a person is asked about, the first ones.
    """

    weights: str
    by: str
    classes: list[str]
    keys: list[str] | list[int]
    labels: list[int]
    student: list[int]
    other: list[int]
    strata: list[int]
    drawn: int = 0


def read_plan(path: Path, weights: str) -> Plan | None:
    """Return the plan of the student with these weights, None where there is no whole one."""
    try:
        plan = Plan(**read_plain(path))
        return plan if plan.weights == weights and is_whole(plan) else None
    except (OSError, ValueError, TypeError):
        return None


def is_whole(plan: Plan) -> bool:
    """True if a plan may be one of `make_plan`. Raises `TypeError` or `ValueError` for some of those that are not."""
    rows = np.array([plan.labels, plan.student, plan.other, plan.strata])
    most, kind = [len(plan.classes)] * 3 + [STRATA], {"filename": str, "id": int}.get(plan.by)
    types = [*map(type, (plan.drawn, plan.keys, plan.classes)), {*map(type, plan.keys)}, {*map(type, plan.classes)}]
    return (types == [int, list, list, {kind}, {str}] and 0 <= plan.drawn <= len(plan.keys)
            and rows.dtype.kind == "i" and rows.shape == (4, len(plan.keys))
            and bool((rows >= 0).all() and (rows.max(axis=1) < most).all()))


def make_plan(run: Path, weights: str, learned: Learned) -> Plan:
    """Ask the student of a run about its training images.

    Args:
        run: its folder.
        weights: SHA-256 of the student.
        learned: what it has learned from.
    """
    student = open_model(str(run))
    labels = learned.labels(student)
    # in its own form of the plain images; answers are kept until all are there
    member = open_alone(TeacherName.parse(str(run)), student, learned.world.device, ("RUN", "RUN"))
    reader = learned.answers(member, run / "audit" / "student")
    best = [reader(index, learned.world.device).softmax(dim=1).topk(min(2, member.num_classes))
            for index in torch.arange(len(labels)).split(ROWS)]
    confidence, classes = (torch.cat(rows).numpy(force=True) for rows in zip(*best))
    delete(run / "audit" / "student")

    # all images in the order of the draw
    said, keys = classes[:, 0], sample_keys(learned.data.train)
    strata = find_strata(labels, said, confidence[:, 0])
    other, names = np.where(labels == said, classes[:, -1], labels), [str(key) for key in keys.values]
    # a name that is not UTF-8 can stand in no table
    order = [row for row in drawing_order(strata, labels, said)
             if names[row].encode(errors="ignore").decode() == names[row]]
    return Plan(
        weights,
        "filename" if keys.by == "filename" else "id",
        learned.data.class_names or [*map(str, range(member.num_classes))],
        [keys.values[row] for row in order],
        *(rows[order].tolist() for rows in (labels, said, other, strata)),
    )
