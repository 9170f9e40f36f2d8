"""Data workers: how they outlive a signal to the whole job, and how their errors come out in one line."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import TracebackType

from ..errors import STOPPING, UserError


class WorkerError(UserError):
    """An error of a data worker, in one line.

    PyTorch's loader makes the exception of a data worker anew from a text that holds a traceback; the last line of
    it is the message.
    """

    def __init__(self, text: str):
        super().__init__(text.rsplit(f"{type(self).__name__}: ", 1)[-1].strip())


def start_worker(worker: int, then: Callable[[int], None] | None = None) -> None:
    """Initialise a data worker, and call ``then``: only its own main process may end it with a signal.

    Schedulers, torchrun and terminals send a signal to every process of a job. Workers have to outlive it, since the
    main process goes on with the step in hand, and a dead worker would end it with an error.
    """
    # Signals are blocked, and a thread takes them from the queue. A handler would not do: it does not learn who has sent
    # the signal, and only the parent may end a worker.
    if hasattr(signal, "sigtimedwait"):  # it tells who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()
        sys.excepthook = _report
    else:  # macOS
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if then is not None:
        then(worker)


def _report(
    kind: type[BaseException],
    error: BaseException,
    trace: TracebackType | None,
) -> None:
    """Print an error of a thread, unless a main process that ends has left a batch that it was about to take."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def _obey(parent: int) -> None:
    """Take signals from the queue of a process; end it on SIGTERM from its parent, and when that is gone."""
    while True:
        # a main process that is gone leaves nobody to load for
        taken = signal.sigtimedwait(STOPPING, 2.0)
        if os.getppid() != parent:
            os._exit(1)
        if taken is None:
            continue
        if taken.si_signo == signal.SIGTERM and taken.si_pid == parent:
            os._exit(0)
