"""Command lines of the two scripts."""

from .parser import parse, train_parser, validate_parser

__all__ = ["parse", "train_parser", "validate_parser"]
