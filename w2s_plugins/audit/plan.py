"""What models and tables say of the images of an audit, and which images are drawn: ``audit/plan.json``, and beside it
``opinions.safetensors``.

A plan is believed only if it is as it was written, and of these images and classes. What a model or a table says is
taken from it only if it is of the same weights, images and labels.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from ..files import atomic_write, check_regular, read_plain, to_json, write_text
from ..labels.table_writer import Columns
from ..made_of import Ingredient, differ, from_plain
from ..no_label import NO_LABEL
from .draw import Opinions, Step, chances, drawing_order, lots_of
from .page import UNSURE
from .tables import Answers, read_answers

PLAN, OPINIONS = "plan.json", "opinions.safetensors"
P = TypeVar("P", bound="Plan")


@dataclass
class Opinion:
    """What a model or a table says of the images.

    Args:
        says: (N,) classes, `NO_LABEL` where it says nothing.
        other: (N,) the classes that it finds next best.
        confidence: (N,) how sure it is, from 0 to 1, or NaN.
    """

    says: np.ndarray
    other: np.ndarray
    confidence: np.ndarray


@dataclass
class Plan:
    """What is said of the images, and which of them were drawn.

    Args:
        by: what the keys are, ``filename`` or ``id``.
        classes: their names.
        keys: (N,) of the images, in the order of the data.
        opinions: of models and tables.
        made_of: of what weights, images and labels each of these is, from `made_of.to_plain`.
        draws: the steps of each draw, in turn: which opinions it is about, and how many images it ends with.

    Attributes:
        unit: what is drawn, and has a row in each opinion.
    """

    unit: ClassVar[str] = "image"
    opinions_as: ClassVar[type[Opinions]] = Opinions

    by: str
    classes: list[str]
    keys: list[str | int]
    opinions: list[Opinion] = field(default_factory=list)
    made_of: list[list[dict[str, object]]] = field(default_factory=list)
    draws: list[list[Step]] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many rows there are."""
        return len(self.keys)

    @property
    def choices(self) -> list[str]:
        """What may be said of each row, by its number."""
        return self.classes

    def key(self, row: int) -> str | int:
        """Return what a row is called on the page."""
        return self.keys[row]

    def image(self, row: int) -> str | int:
        """Return the key of the image that a row is about."""
        return self.keys[row]

    def words(self, row: int) -> str:
        """Return what a row is called in a message."""
        return str(self.keys[row])

    def table(self, rows: Sequence[int], answers: Sequence[str], draw: str) -> Columns:
        """Return the columns of a table of answers about some rows, of a draw."""
        return {
            self.by: [self.keys[row] for row in rows],
            "label": answers,
            "audit": [draw] * len(rows),
        }

    def read(self, file: str) -> Answers:
        """Read a table of answers. Raises `UserError` where it is none, or about other images."""
        return read_answers(file, self.by, self.keys, self.classes)

    def word(self, label: int) -> str:
        """Return an answer as a person gives it."""
        return UNSURE if label == NO_LABEL else self.choices[label]

    @cached_property
    def lots(self) -> np.ndarray:
        """The lot (N,) of each image."""
        return lots_of(self.keys)

    def said(self, columns: Sequence[int], rows: np.ndarray | slice = slice(None)) -> Opinions:
        """Return some opinions of some images, all by default."""
        chosen = [self.opinions[column] for column in columns]
        return self.opinions_as(
            np.stack([one.says[rows] for one in chosen], axis=1),
            np.stack([one.confidence[rows] for one in chosen], axis=1),
        )

    def images(self, columns: Sequence[int]) -> np.ndarray:
        """Return the rows of the images of which all of some opinions say something."""
        return self.said(columns).images

    def id_of(self, steps: Sequence[Step]) -> str:
        """Return the name of a draw, however many images of it are drawn."""
        # what decides which images are drawn; how many are drawn in the end does not
        columns, own = _own_columns(steps)
        counts = [step.drawn for step in steps[:-1]]
        about = [self.by, self.keys, self.classes, [step.columns for step in own], counts]
        digest = hashlib.sha256(json.dumps(about).encode())
        for array in self.said(columns):
            digest.update(np.ascontiguousarray(array).data)
        return "a" + digest.hexdigest()[:15]

    def order(self, steps: Sequence[Step]) -> np.ndarray:
        """Return the rows of the images in the order in which they are drawn."""
        columns, own = _own_columns(steps)
        return drawing_order(self.said(columns), self.lots, own)

    def chances(self, steps: Sequence[Step], drawn: np.ndarray) -> np.ndarray:
        """Return how likely each of the first drawn images (n,) was to be drawn."""
        columns, own = _own_columns(steps)
        return chances(self.said(columns), self.lots, own, drawn)


def _own_columns(steps: Sequence[Step]) -> tuple[list[int], list[Step]]:
    """Return which opinions some steps are about, and these steps in terms of the places in that list."""
    columns = sorted({column for step in steps for column in step.columns})
    own = [Step([columns.index(column) for column in step.columns], step.drawn) for step in steps]
    return columns, own


def find_opinion(plan: Plan, made_of: Sequence[Ingredient]) -> int | None:
    """Return the number of the opinion that is made of the same, None if there is none."""
    for number, content in enumerate(plan.made_of):
        before = from_plain(content)
        if [one.role for one in before] == [one.role for one in made_of] and all(
            _is_same(*pair) for pair in zip(before, made_of)
        ):
            return number
    return None


def _is_same(before: Ingredient, now: Ingredient) -> bool:
    """True if two ingredients have the same content or, where that cannot be told, lie in the same place."""
    if before.fingerprint is None or now.fingerprint is None:
        return before.place == now.place
    return not differ(before.fingerprint, now.fingerprint)


# ---------------------------------------------------------------- its file


def write_plan(folder: Path, plan: Plan) -> None:
    """Write the plan into the folder of an audit."""
    arrays = {
        f"{number} {name}": np.ascontiguousarray(array)
        for number, opinion in enumerate(plan.opinions)
        for name, array in vars(opinion).items()
    }
    with atomic_write(folder / OPINIONS) as temporary:
        temporary.write_bytes(save(arrays))
    content: dict[str, object] = dict(made_of=plan.made_of, draws=plan.draws)
    checksum = _checksum(content, plan)
    write_text(folder / PLAN, to_json({**content, "sha256": checksum}))


def read_plan(folder: Path, empty: P) -> P | None:
    """Return the plan in the folder of an audit if there is one of the images and classes of an empty one, as it was
    written.
    """
    plan = replace(empty, opinions=[], made_of=[], draws=[])
    try:
        # the values are believed by nobody, not even to be of the types that they were written as
        content = read_plain(folder / PLAN)
        if not isinstance(content, dict):
            return None
        checksum = content.pop("sha256", None)
        check_regular(folder / OPINIONS)
        arrays = load_file(folder / OPINIONS)
        plan.made_of, plan.draws = content["made_of"], content["draws"]
        for number in range(len(plan.made_of)):
            names = Opinion.__dataclass_fields__
            opinion = Opinion(**{name: arrays[f"{number} {name}"] for name in names})
            plan.opinions.append(opinion)
        if checksum != _checksum(content, plan) or not _is_whole(plan):
            return None
        plan.draws = [[Step(list(own), drawn) for own, drawn in steps] for steps in plan.draws]
    except (OSError, ValueError, TypeError, LookupError, AttributeError, SafetensorError):
        return None
    return plan


def _checksum(content: dict[str, object], plan: Plan) -> str:
    """Return a hash of a plan and of the images that it is of."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    digest.update(json.dumps([plan.by, plan.classes, plan.keys]).encode())
    for opinion in plan.opinions:
        for array in vars(opinion).values():
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _is_whole(plan: Plan) -> bool:
    """True if a plan may be one that was written here. Raises `TypeError` or `ValueError` for some that are not."""
    count, most = plan.count, len(plan.choices)
    for opinion, made_of in zip(plan.opinions, plan.made_of):
        from_plain(made_of)
        classes = np.stack([opinion.says, opinion.other])
        if classes.dtype != np.int32 or classes.shape != (2, count):
            return False
        if not NO_LABEL <= classes.min() <= classes.max() < most:
            return False
        if opinion.confidence.dtype != np.float32 or opinion.confidence.shape != (count,):
            return False
    for steps in plan.draws:
        drawn = [step[1] for step in steps]
        columns = [column for step in steps for column in step[0]]
        if {*map(type, [*drawn, *columns])} != {int} or sorted(drawn) != drawn:
            return False
        if not 0 < drawn[0] <= drawn[-1] <= count:
            return False
        if not 0 <= min(columns) <= max(columns) < len(plan.opinions):
            return False
    return True
