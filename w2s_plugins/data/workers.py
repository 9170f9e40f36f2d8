"""Data workers that outlive a signal to the whole job."""

import os
import signal
import threading
from collections.abc import Callable


class WorkerStart:
    """Initialisation of a data worker: only its own main process may end it with a signal.

    Schedulers, torchrun and terminals send a signal to every process of a job. Workers have to outlive it, since the
    main process goes on with the step in hand, and a dead worker would end it with an error.

    Args:
        then: another initialisation, called with the worker's number.
    """

    def __init__(self, then: Callable[[int], None] | None = None):
        self.then = then

    def __call__(self, worker: int) -> None:
        if hasattr(signal, "sigwaitinfo"):  # it tells who sent a signal
            signals = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}
            signal.pthread_sigmask(signal.SIG_BLOCK, signals)
            threading.Thread(target=_obey, args=(os.getppid(), signals), daemon=True).start()
        else:  # macOS
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self.then is not None:
            self.then(worker)


def _obey(parent: int, signals: set[int]) -> None:
    """Take signals from the queue of a process; end it on SIGTERM from its parent."""
    while True:
        taken = signal.sigwaitinfo(signals)
        if taken.si_signo == signal.SIGTERM and taken.si_pid == parent:
            os._exit(0)
