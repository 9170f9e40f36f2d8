"""What a run's student and its labels say of each image: ``audit/plan.json``, from which all else follows.

A plan is believed only if it is of this student and of the images and labels that it has learned from, and if its
strata and its order are those that `draw` makes of what it says.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..data.keys import sample_keys
from ..files import delete, read_plain
from ..labels.answers import key_column
from ..made_of import Ingredient, find_changed, from_plain, to_plain
from ..predictions.run import open_model
from ..teachers.name import TeacherName
from ..teachers.teacher import open_alone
from ..training.learned import ROWS, Learned
from .draw import STRATA, drawing_order, find_strata

COLUMNS = "keys", "labels", "student", "other", "confidence"  # a value for each image
DIGITS = 6  # of a confidence
is_draw = re.compile("a[0-9a-f]{15}").fullmatch  # such as `Plan.id`


@dataclass
class Plan:
    """What is said of all images of a run, in the order in which they are drawn.

    Args:
        made_of: of what student, images and labels it is, from `made_of.to_plain`.
        by: what the keys are, ``filename`` or ``id``.
        classes: their names.
        keys: (N,) of the images.
        labels: (N,) classes that the student has learned from.
        student: (N,) classes that it says.
        other: (N,) the label where it is another class, else what the student finds the next best one.
        confidence: (N,) how sure the student is, from 0 to 1.
        rows: (N,) where the images stand in the data.
        strata: (N,) see `draw.find_strata`.
        drawn: how many images a person is asked about, the first ones.
    """

    made_of: list[dict[str, object]]
    by: str
    classes: list[str]
    keys: list[str | int]
    labels: list[int]
    student: list[int]
    other: list[int]
    confidence: list[float]
    rows: list[int]
    strata: list[int]
    drawn: int = 0

    @property
    def id(self) -> str:
        """Names the draw, however many images of it are drawn. It begins with a letter, so that no spreadsheet takes
        it for a number.
        """
        # what decides which images are drawn; how many are drawn does not
        content = [self.made_of, self.keys, self.labels, self.student, self.strata]
        return "a" + hashlib.sha256(json.dumps(content).encode()).hexdigest()[:15]


def plan_ingredients(weights: str, learned: Learned) -> list[Ingredient]:
    """Return what a plan is made of: the student, by the SHA-256 of its weights, and what it has learned from."""
    return [Ingredient("student", "the student", "", weights), *learned.made_of]


def read_plan(path: Path, made_of: Sequence[Ingredient], learned: Learned) -> Plan | None:
    """Return the plan if there is one of this student and what it has learned from, and if it is as it was made."""
    try:
        content = read_plain(path)
        if not isinstance(content, dict):
            return None
        plan = Plan(**content)

        # of the same student and data, as far as their hashes say
        before = from_plain(plan.made_of)
        same_roles = [one.role for one in before] == [one.role for one in made_of]
        if not same_roles or find_changed(before, made_of):
            return None

        # whoever can write the file cannot choose which images are asked about
        is_drawn_so = is_whole(plan) and draw(plan) == plan
        return plan if is_drawn_so and is_about(plan, learned) else None
    except (OSError, ValueError, TypeError):
        return None


def is_whole(plan: Plan) -> bool:
    """True if a plan may be one of `make_plan`. Raises `TypeError` or `ValueError` for some of those that are not."""
    count = len(plan.keys)
    numbers = np.array([plan.labels, plan.student, plan.other, plan.strata, plan.rows])
    most = [len(plan.classes)] * 3 + [STRATA, count]
    confidence = np.array(plan.confidence)

    # the values are believed by nobody, not even to be of the types that they are declared to be
    key_type = {"filename": str, "id": int}.get(plan.by)
    types = [type(value) for value in (plan.drawn, plan.keys, plan.classes)]
    types_within = [{*map(type, values)} for values in (plan.keys, plan.classes)]
    if types != [int, list, list] or types_within != [{key_type}, {str}]:
        return False
    if numbers.dtype.kind != "i" or numbers.shape != (5, count):
        return False
    if confidence.dtype.kind != "f" or confidence.shape != (count,):
        return False
    in_range = (numbers >= 0).all() and (numbers.max(axis=1) < most).all()
    return bool(in_range) and 0 <= plan.drawn <= count


def is_about(plan: Plan, learned: Learned) -> bool:
    """True if a plan has the images that a student has learned from, and its classes."""
    by, rows, keys = images_in_tables(learned)
    in_data = [plan.keys[row] for row in np.argsort(plan.rows)]
    expected = by, [keys[row] for row in rows], classes_of(learned)
    return (plan.by, in_data, plan.classes) == expected


def images_in_tables(learned: Learned) -> tuple[str, list[int], Sequence[str | int]]:
    """Return what the keys of the training images are, which of these can be asked about, and the keys of all. A name
    that is not UTF-8 can stand in no table.
    """
    keys = sample_keys(learned.data.samples)
    names = [str(key) for key in keys.values]
    rows = [row for row, name in enumerate(names) if name.encode(errors="ignore").decode() == name]
    return key_column(keys.by), rows, keys.values


def classes_of(learned: Learned) -> list[str]:
    """Return the names of the classes, which are their numbers if the data have nothing else."""
    return learned.data.class_names or [*map(str, range(learned.data.count_classes()))]


def draw(plan: Plan) -> Plan:
    """Return a plan with the strata of its images, and these in the order of the draw, whatever order they are in."""
    # in the order of the data, in which they were when they were drawn
    back = np.argsort(plan.rows)
    labels, student, confidence = (
        np.array(column)[back] for column in (plan.labels, plan.student, plan.confidence)
    )
    strata = find_strata(labels, student, confidence)
    order = drawing_order(strata, labels, student)
    columns = {name: [getattr(plan, name)[row] for row in back[order]] for name in COLUMNS}
    return replace(plan, rows=order.tolist(), strata=strata[order].tolist(), **columns)


def make_plan(made_of: Sequence[Ingredient], learned: Learned) -> Plan:
    """Ask the student of a run about its training images.

    Args:
        made_of: of what student, images and labels the plan is, from `plan_ingredients`.
        learned: what the student has learned from.
    """
    # the student as it was exported, which is what would be used
    student = open_model(str(learned.run))
    labels = learned.labels(student)
    # in its own form of the plain images; answers are kept until all are there
    kept = learned.run / "audit" / "student"
    member = open_alone(
        TeacherName.parse(str(learned.run)), student, learned.world.device, ("RUN", "RUN")
    )
    reader = learned.answers(member, kept)
    kind = learned.data.target_kind
    most_likely = [
        kind.probabilities(reader(index, learned.world.device)).topk(min(2, member.num_classes))
        for index in torch.arange(len(labels)).split(ROWS)
    ]
    confidence, classes = (torch.cat(parts).numpy(force=True) for parts in zip(*most_likely))
    delete(kept)

    # all images in the order of the draw
    by, rows, keys = images_in_tables(learned)
    best = classes[:, 0]
    other = np.where(labels == best, classes[:, -1], labels)
    undrawn = Plan(
        made_of=to_plain(made_of),
        by=by,
        classes=classes_of(learned),
        keys=[keys[row] for row in rows],
        labels=labels[rows].tolist(),
        student=best[rows].tolist(),
        other=other[rows].tolist(),
        confidence=confidence[rows, 0].astype(float).round(DIGITS).tolist(),
        rows=[*range(len(rows))],
        strata=[],
    )
    return draw(undrawn)
