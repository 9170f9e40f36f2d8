"""Commands of this project in forked processes: all is imported already, so a start takes a tenth of the time."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import sklearn.model_selection  # noqa: F401  w2s/digits takes more than a second for it, in every process

from w2s_plugins.errors import run_main


def start(main: Callable[[], None], argv: Sequence[object], output: Path, *, group: bool = False) -> int:
    """Run a command in a process forked from this one, and return its id.

    Args:
        main: what the command does.
        argv: its name and its arguments.
        output: file to which all that it prints is appended.
        group: make it the leader of a process group, so that it can be killed with its children.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        if group:
            os.setsid()
        with output.open("a", buffering=1) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout = sys.stderr = file
            sys.argv = [*map(str, argv)]
            try:
                run_main(main, sys.argv[0])
                code = 0
            except Exception:
                traceback.print_exc()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def finish(pid: int) -> int:
    """Wait for such a process and return its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
