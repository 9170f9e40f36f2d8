"""``python -m w2s_plugins.study`` in the process of the tests."""

import logging
from collections.abc import Callable, Iterator

import pytest

from w2s_plugins.study import __main__ as study

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(command: Callable) -> Iterator[Cli]:
    """Runs a command line and returns its exit code, output and errors."""
    yield lambda *argv: command(study.main, "study", *argv)
    logging.disable(logging.NOTSET)  # a command that plans silences what single runs would say
