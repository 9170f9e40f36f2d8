"""Programs that begin with everything imported: forks of one process that has done nothing but import it.

That process is not the one that asks for them, which has threads, open files and maybe a GPU: a fork is safe only where
there are none. ``python -m tests.warm FD MODULE ...`` is its command.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]


class Program:
    """A program that a `Warm` has started; ``status`` tells its process id, and its exit code when it has ended."""

    def __init__(self, status: IO[bytes]):
        self._status = status
        self.pid = int(status.readline())

    def wait(self) -> int:
        """Return its exit code, negative for a signal."""
        with self._status:
            return int(self._status.read())


class Warm:
    """Starts programs for the time of a fork.

    Args:
        modules: what is imported once, for all of them.
        env: environment in which it is imported, with the number of threads and what else is read then.
    """

    def __init__(self, modules: Sequence[str], env: Mapping[str, str]):
        self._link, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), *modules], cwd=ROOT, env=env,
                stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True)

    def __enter__(self) -> "Warm":
        return self

    def __exit__(self, *error: object) -> None:
        self._link.close()
        self._process.wait()

    def start(
            self, argv: Sequence[object], env: Mapping[str, str], *, stdin: IO, stdout: IO, stderr: IO, cwd: Path,
    ) -> Program:
        """Start ``python *argv``: a script, ``-c CODE`` or ``-m MODULE``, and its arguments."""
        told = dict(argv=[*map(str, argv)], env=dict(env), cwd=str(cwd))
        with tempfile.TemporaryFile() as order:
            order.write(json.dumps(told).encode())
            order.seek(0)
            reader, writer = os.pipe()
            files = [file.fileno() for file in (order, stdin, stdout, stderr)]
            socket.send_fds(self._link, [b"+"], [*files, writer])
            os.close(writer)
        return Program(open(reader, "rb"))


def _serve(link: socket.socket) -> list[int]:
    """Start programs until the other side is gone. Returns in the process of each of them, with its files."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        asked, files, _, _ = socket.recv_fds(link, 1, 5)
        if not asked:
            sys.exit()
        if os.fork() == 0:
            break
        for number in files:
            os.close(number)
    # a process beside each program waits for it, and tells how it ends
    link.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    status = files.pop()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.close(status)
        return files
    for number in files:
        os.close(number)
    os.write(status, f"{pid}\n".encode())
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.write(status, str(code).encode())
    os._exit(0)


def _become(order: int, *files: int) -> None:
    """Run a program in this process, as Python does it."""
    with open(order, "rb") as file:
        told = json.load(file)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    # what was there before knows other files: whether they can be sought in, or are a terminal
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(told["env"])
    os.chdir(told["cwd"])
    kind, *more = sys.argv = told["argv"]
    place = {"-c": "", "-m": told["cwd"]}.get(kind, os.path.dirname(kind))
    sys.path[:1] = [place, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    if kind == "-c":
        sys.argv[1:2] = []
        exec(more[0], {"__name__": "__main__"})
    elif kind == "-m":
        sys.argv[:1] = []
        runpy.run_module(more[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    for name in sys.argv[2:]:
        importlib.import_module(name)
    gc.freeze()  # what nobody changes stays shared
    _become(*_serve(socket.socket(fileno=int(sys.argv[1]))))
