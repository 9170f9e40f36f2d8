"""Weak-to-strong training for timm: teachers, losses, tasks and the bookkeeping around them."""

__version__ = "0.1.0"
