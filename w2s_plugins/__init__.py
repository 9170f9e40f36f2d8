"""Weak-to-strong training for timm: ``import w2s_plugins as w2s``. What a name needs is imported when it is used."""

import importlib
from typing import TYPE_CHECKING

from .version import __version__ as __version__

if TYPE_CHECKING:
    from .api import create_teacher, load_student, predict, protocol, train
    from .errors import UserError
    from .losses import DistillationLoss, LossInputs, create_loss, list_losses, register_loss
    from .training.task import WeakToStrongTask

__all__ = [
    "DistillationLoss",
    "LossInputs",
    "UserError",
    "WeakToStrongTask",
    "create_loss",
    "create_teacher",
    "list_losses",
    "load_student",
    "predict",
    "protocol",
    "register_loss",
    "train",
]

# where they are, unless in losses
_MODULES = {
    "UserError": "errors",
    "WeakToStrongTask": "training.task",
    "create_teacher": "api",
    "load_student": "api",
    "predict": "api",
    "protocol": "api",
    "train": "api",
}


def __getattr__(name: str) -> object:
    # Python asks here for what is not imported yet: the losses take torch, and a wrong flag should not wait for it
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_MODULES.get(name, 'losses')}", __name__)
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
