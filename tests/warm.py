"""Programs that begin with everything imported: forks of one process that has done nothing but import it.

That process is not the one that asks for them, which has threads, open files and maybe a GPU: a fork is safe only where
there are none. ``python -m tests.warm FD MODULE ...`` is its command.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from w2s_plugins.files import TOP


class Forked:
    """A program that a `Warm` has started, with what is used here of `subprocess.Popen`.

    Args:
        status: tells its process id, and its exit code when it has ended.

    Attributes:
        pid: its process id; 0 for one that nobody has started.
    """

    def __init__(self, status: IO[bytes]):
        self._status, self.pid, self.returncode = status, int(status.readline() or 0), None

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code, negative for a signal; also SIGKILL where the process that would know is gone.

        Raises:
            TimeoutExpired: it has not ended after ``timeout`` seconds.
        """
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a forked program", timeout)
            with self._status:
                self.returncode = int(self._status.read() or -signal.SIGKILL)
        return self.returncode

    def terminate(self) -> None:
        """Send it SIGTERM."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)


def cold(
        argv: Sequence[object],
        env: Mapping[str, str] | None = None,
        *,
        stdout: IO | int,
        stderr: IO | int,
        stdin: IO | int = subprocess.DEVNULL,
        cwd: Path | None = None,
) -> subprocess.Popen:
    """Start a program from the very beginning. It leads a session, and is sent SIGTERM when this process is killed.

    Args:
        argv: what comes after ``python``: a script or ``-c CODE`` or ``-m MODULE``, and its arguments.
        env: its environment; None is that of this process.
        stdout: open file, or its number.
        stderr: likewise.
        stdin: likewise.
        cwd: its folder; None is that of this process.
    """
    return subprocess.Popen(
        [sys.executable, *map(str, argv)], env=env, stdin=stdin, stdout=stdout, stderr=stderr, cwd=cwd,
        start_new_session=True, preexec_fn=_ends_with(os.getpid()))


class Warm:
    """Starts programs as `cold` does, for the time of a fork; as `cold` itself where that cannot be.

    Args:
        modules: what is imported once, for all of them.
        env: environment in which it is imported, with the number of threads and what else is read then.
    """

    def __init__(self, modules: Sequence[str], env: Mapping[str, str]):
        self.modules, self.env = modules, env
        self._lock, self._link, self._process = threading.Lock(), None, None

    def __enter__(self) -> "Warm":
        return self

    def __exit__(self, *error: object) -> None:
        """End the process that imports; programs that still run are sent SIGTERM."""
        if self._link is not None:
            self._link.close()
        if self._process is not None:
            self._process.wait()

    def start(
            self,
            argv: Sequence[object],
            env: Mapping[str, str] | None = None,
            *,
            stdout: IO | int,
            stderr: IO | int,
            stdin: IO | int = subprocess.DEVNULL,
            cwd: Path | None = None,
    ) -> Forked | subprocess.Popen:
        """As `cold`."""
        told = dict(argv=[*map(str, argv)], env=dict(os.environ if env is None else env), cwd=str(cwd or Path.cwd()))
        with self._lock, tempfile.TemporaryFile() as order, open(os.devnull) as nothing:
            order.write(json.dumps(told).encode())
            order.seek(0)
            files = order, nothing if stdin == subprocess.DEVNULL else stdin, stdout, stderr
            reader, writer = os.pipe()
            with open(writer, "wb"), contextlib.suppress(OSError):  # the process that would is gone
                socket.send_fds(self._server(), [b"+"], [
                    *(file if isinstance(file, int) else file.fileno() for file in files), writer])
            program = Forked(open(reader, "rb"))  # noqa: SIM115  it closes that
        if program.pid:
            return program
        program.wait()
        return cold(argv, env, stdout=stdout, stderr=stderr, stdin=stdin, cwd=cwd)

    def _server(self) -> socket.socket:
        if self._link is None:
            if sys.platform != "linux":  # elsewhere libraries do not outlive a fork, and nothing tells of its parent
                raise OSError
            self._link, theirs = socket.socketpair()
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", __name__, str(theirs.fileno()), *self.modules], cwd=TOP, env=self.env,
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()], start_new_session=True)
        return self._link


def _ends_with(parent: int) -> Callable[[], None] | None:
    """Return what sends a new process SIGTERM when ``parent`` is killed, where the system can do that."""
    if sys.platform != "linux":
        return None
    libc, set_signal = ctypes.CDLL(None), 1  # PR_SET_PDEATHSIG

    def prepare() -> None:
        libc.prctl(set_signal, signal.SIGTERM)
        if os.getppid() != parent:  # too late
            os._exit(1)
    return prepare


def _serve(link: socket.socket) -> list[int]:
    """Start programs until the other side is gone. Returns in the process of each of them, with its files.

    A signal to all processes of a job is not for this one: it tells how the programs end.
    """
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    handlers = {signum: signal.signal(signum, signal.SIG_IGN) for signum in (signal.SIGINT, signal.SIGTERM)}
    handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker)
    prepare, running = _ends_with(os.getpid()), {}
    while True:
        ready, _, _ = select.select([link, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            while running and (ended := os.waitpid(-1, os.WNOHANG))[0]:
                _tell(running[ended[0]], os.waitstatus_to_exitcode(ended[1]))
                os.close(running.pop(ended[0]))
        if link in ready:
            asked, files, _, _ = socket.recv_fds(link, 1, 5)
            if not asked:
                sys.exit()
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for signum, handler in handlers.items():
                    signal.signal(signum, handler)
                os.setsid()
                prepare()
                link.close()
                for number in (woken, waker, files.pop(), *running.values()):
                    os.close(number)
                return files
            running[pid] = files.pop()
            for number in files:
                os.close(number)
            _tell(running[pid], f"{pid}\n")


def _tell(status: int, text: object) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(status, str(text).encode())


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
