"""Command lines of the two scripts."""

from .parser import Command, parse, train_parser, validate_parser

__all__ = ["Command", "parse", "train_parser", "validate_parser"]
