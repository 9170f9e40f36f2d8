"""The kinds of target that there are, and how one is known by its name."""

from collections.abc import Sequence

from ..errors import UserError
from .base import TargetKind
from .one_class import OneClass
from .several import SeveralClasses

ONE_CLASS, SEVERAL_CLASSES = OneClass(), SeveralClasses()
KINDS: dict[str, TargetKind] = {kind.task: kind for kind in (ONE_CLASS, SEVERAL_CLASSES)}


def kind_of_task(task: str, threshold: float | Sequence[float] = 0.5) -> TargetKind:
    """Return what a label is, by timm's name of the task; ``threshold`` as of `SeveralClasses`."""
    if task == ONE_CLASS.task:
        return ONE_CLASS
    return SeveralClasses(threshold)


def kind_of_problem(problem_type: object) -> TargetKind | None:
    """Return what a label is, by transformers' name of the problem; None if that is nothing known."""
    for kind in KINDS.values():
        if problem_type == kind.problem_type:
            return kind
    return None


def require_one_class(what: str, target_kind: TargetKind) -> None:
    """Raise a `UserError` where something that is made for one class an image alone is to be used with another kind."""
    if target_kind.name != ONE_CLASS.name:
        raise UserError(f"{what}: labels of {target_kind.words}, expected {ONE_CLASS.words}")
