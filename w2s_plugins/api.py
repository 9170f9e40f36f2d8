"""Training from Python: what ``train_w2s.py`` does, with keywords for its flags."""

import contextlib
import importlib
import logging
import sys
from collections.abc import Iterator

from .cli.declare import words_of
from .cli.parser import check_flags, parse, train_parser
from .files import TOP
from .monitor import setup_logging
from .run import lock as run_lock


def train(**flags: object) -> dict:
    """Train as ``train_w2s.py`` does; return the record of the run, or of all runs of a protocol: its result.json.

    Args:
        flags: those of the script, with underscores, as in YAML: ``loss="kd", loss_kwargs={"temperature": 2}``;
            ``config`` is a list of YAML files, or of recipes such as ``w2s:digits/base``.

    Raises:
        UserError: what would be one line and exit code 2 there.
        KeyboardInterrupt: it was stopped; a checkpoint is saved, from which ``resume="auto"`` goes on.
    """
    if str(TOP) not in sys.path:
        sys.path.append(str(TOP))
    with _command_line(["w2s-train", *command_words(flags)]):
        try:
            return importlib.import_module("train_w2s").train_all(*parse(train_parser()))
        except SystemExit as end:
            raise KeyboardInterrupt from end
        finally:
            run_lock.release()


def command_words(flags: dict[str, object]) -> list[str]:
    """Return the words of a command line with these flags. Raises `UserError` for an unknown one, or a wrong type."""
    files = flags.get("config", [])
    others = {name: value for name, value in flags.items() if name != "config"}
    check_flags(others, train_parser(), "w2s.train")
    actions = train_parser().by_dest()
    words = [words_of(actions[name], value) for name, value in others.items() if value is not None]
    words.sort(key=lambda some: bool(some) and some[0].startswith("-"))  # else a list takes the data folder
    return [*(word for some in words for word in some), *(["--config", *files] if files else [])]


@contextlib.contextmanager
def _command_line(words: list[str]) -> Iterator[None]:
    """Be that command, whose line the record keeps, and put back what it changes of this process."""
    argv, root = sys.argv, logging.getLogger()
    handlers, level = root.handlers[:], root.level
    sys.argv = words
    setup_logging(primary=True)
    try:
        yield
    finally:
        sys.argv = argv
        root.handlers[:] = handlers
        root.setLevel(level)
