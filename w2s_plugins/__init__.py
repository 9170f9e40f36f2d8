"""Weak-to-strong training for timm: ``import w2s_plugins as w2s``. What a name needs is imported when it is used."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .api import create_teacher, load_student, predict, protocol, train
    from .engine.task import WeakToStrongTask
    from .errors import UserError
    from .losses import DistillationLoss, LossInputs, create_loss, list_losses, register_loss

__version__ = "0.1.0"
__all__ = ["DistillationLoss", "LossInputs", "UserError", "WeakToStrongTask", "create_loss", "create_teacher",
           "list_losses", "load_student", "predict", "protocol", "register_loss", "train"]

_HOMES = {"api": ("create_teacher", "load_student", "predict", "protocol", "train"), "engine.task": (
    "WeakToStrongTask",), "errors": ("UserError",)}  # of all others: losses


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((home for home, names in _HOMES.items() if name in names), "losses")
    return getattr(importlib.import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
