"""Weak teachers. A plugin adds a kind of them with `register_teacher`."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .openers import Opened, Request, register_teacher

# whoever writes a plugin needs these three
__all__ = ["Opened", "Request", "register_teacher"]


def __getattr__(name: str) -> object:
    """Import torch only for those who open a teacher: names of teachers are parsed without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(".openers", __name__), name)
