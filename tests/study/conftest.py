"""``python -m w2s_plugins.study`` in the process of the tests."""

import logging
import sys
from collections.abc import Callable, Iterator

import pytest

from w2s_plugins.errors import run_main
from w2s_plugins.study import __main__ as study

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Iterator[Cli]:
    """Runs a command line and returns its exit code, output and errors."""
    def run(*argv: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["study", *map(str, argv)])
        code = 0
        try:
            run_main(study.main, "study")
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    yield run
    logging.disable(logging.NOTSET)  # a command that plans silences what single runs would say
