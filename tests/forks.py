"""Commands of this project in forked processes: all is imported already, so a start takes a tenth of the time."""

import multiprocessing
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import sklearn.model_selection  # noqa: F401  w2s/digits takes more than a second for it, in every process

from tests.parts import words
from w2s_plugins.errors import run_main

Main = Callable[[], None]


def start(
    main: Main,
    argv: Sequence[object],
    output: Path,
    *,
    group: bool = False,
    before: Callable[[], object] = lambda: None,
) -> int:
    """Run a command in a process forked from this one, and return its id.

    Args:
        main: what the command does.
        argv: its name and its arguments.
        output: file to which all that it prints is appended.
        group: make it the leader of a process group, so that it can be killed with its children.
        before: what the process does first.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        if group:
            os.setsid()
        signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # a shell's background jobs ignore it
        with output.open("a", buffering=1) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout = sys.stderr = file
            sys.argv = words(*argv)
            try:
                before()
                run_main(main, sys.argv[0])
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                for worker in multiprocessing.active_children():
                    worker.terminate()
    finally:
        os._exit(code)


def finish(pid: int) -> int:
    """Wait for such a process and return its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def start_ranks(
    main: Main,
    argv: Sequence[object],
    outputs: Sequence[Path],
    *,
    before: Callable[[int], object] = lambda rank: None,
) -> list[int]:
    """Run a command as torchrun would, a rank for each output; but nothing ends the others when one ends."""
    places = rank_env(len(outputs))

    def prepare(rank: int) -> None:
        before(rank)
        os.environ.update(places[rank])

    return [
        start(main, argv, output, group=True, before=lambda rank=rank: prepare(rank))
        for rank, output in enumerate(outputs)
    ]


def rank_env(count: int) -> list[dict[str, str]]:
    """What torchrun tells each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        dict(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(count),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        for rank in range(count)
    ]
