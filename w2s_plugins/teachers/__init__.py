"""Weak teachers. A plugin adds a kind of them with `register_teacher`."""

from .kinds import Opened, Request, register_teacher

__all__ = ["Opened", "Request", "register_teacher"]
