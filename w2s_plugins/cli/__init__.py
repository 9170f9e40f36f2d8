"""Command lines of the two scripts."""

from .parser import parse, train_parser, validate_parser
from .resolve import resolve_train_args

__all__ = ["parse", "resolve_train_args", "train_parser", "validate_parser"]
