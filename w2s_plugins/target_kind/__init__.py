"""What a label is: the one place that knows what logits mean, how opinions are averaged, and what is right.

There are two kinds. Of `ONE_CLASS` each image has one of C classes. Of `SEVERAL_CLASSES` it may have any number of them,
and each class is a question of its own, which may be unanswered: NaN among logits, probabilities and true labels, `NO_LABEL`
among hard labels. The kind is made once, for the data (`Data.target_kind`), and handed on; who has no data (a loss by
itself, a table by itself) takes `ONE_CLASS`. Each kind has two halves: `table` needs no torch, the other one is imported
when it is used.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import TargetKind
    from .kinds import (
        KINDS,
        ONE_CLASS,
        SEVERAL_CLASSES,
        kind_of_problem,
        kind_of_task,
        require_one_class,
    )
    from .one_class import TINY, UNMAPPED_LOGIT, OneClass
    from .several import SeveralClasses

__all__ = [
    "KINDS",
    "ONE_CLASS",
    "SEVERAL_CLASSES",
    "TINY",
    "UNMAPPED_LOGIT",
    "OneClass",
    "SeveralClasses",
    "TargetKind",
    "kind_of_problem",
    "kind_of_task",
    "require_one_class",
]

# where they are, unless in kinds
_MODULES = {
    "TINY": "one_class",
    "UNMAPPED_LOGIT": "one_class",
    "OneClass": "one_class",
    "SeveralClasses": "several",
    "TargetKind": "base",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES.get(name, 'kinds')}", __name__), name)
