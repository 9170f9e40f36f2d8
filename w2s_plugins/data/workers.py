"""Data workers: what they share with the main process, and how they outlive a signal to the whole job."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable

from torch import Tensor
from torch.utils.data import get_worker_info

from ..errors import UserError
from ..system import STOPPING, system_limit

SHARED_MEMORY = "/dev/shm"
PREFETCHED = 2  # batches that a worker makes ahead, PyTorch's default
PATIENCE = 60.0  # seconds that a worker waits for room in shared memory
FILES, FILES_EACH = 64, 16  # that a process has open at most, and more for each data worker: queues, batches in memory
_REMEDY = "give it more room (docker run --shm-size 8g, or --ipc host), or take a smaller --batch-size or --workers 0"

_logger = logging.getLogger(__name__)


class WorkerError(UserError):
    """An error of a data worker, in one line.

    PyTorch's loader makes the exception of a data worker anew from a text that holds a traceback; the last line of
    it is the message.
    """

    def __init__(self, text: str):
        super().__init__(text.rsplit(f"{type(self).__name__}: ", 1)[-1].strip())


class WorkerStart:
    """Initialisation of a data worker: only its own main process may end it with a signal.

    Schedulers, torchrun and terminals send a signal to every process of a job. Workers have to outlive it, since the
    main process goes on with the step in hand, and a dead worker would end it with an error.
    """

    def __init__(self, then: Callable[[int], None] | None = None):
        self.then = then

    def __call__(self, worker: int) -> None:
        if hasattr(signal, "sigtimedwait"):  # it tells who sent a signal
            signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
            threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()
            sys.excepthook = _report
        else:  # macOS
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self.then is not None:
            self.then(worker)


def _report(kind: type[BaseException], error: BaseException, trace: object) -> None:
    """Print an error of a thread, unless a main process that ends has left a batch that it was about to take."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


class SharedCollate:
    """A collate function whose batches lie in shared memory when they leave a data worker.

    PyTorch would put them there in a thread of the worker, where an error is printed and the batch lost: the main
    process would wait for it forever. Here a worker waits until the main process has used up earlier batches, and
    what does not pass is an error of the run.
    """

    def __init__(self, collate: Callable[[list], object]):
        self.collate = collate

    def __call__(self, samples: list) -> object:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                batch = self.collate(samples)
                if get_worker_info() is not None:
                    for tensor in _tensors(batch):
                        tensor.share_memory_()
                return batch
            except RuntimeError as error:
                if "shared memory" not in str(error):
                    raise
                if time.monotonic() > deadline:
                    raise WorkerError(f"{SHARED_MEMORY}, which data workers use, is full; {_REMEDY}") from error
            time.sleep(0.1)


def fitting_workers(workers: int, batch_bytes: int, what: str) -> int:
    """Return how many of the data workers have room in shared memory, all of them where that cannot be told.

    Fewer of them change the time that a run takes, and nothing else.

    Raises:
        UserError: there is no room for one batch, or a limit of open files, past which a batch may be lost and waited
            for without end.
    """
    need, (soft, hard) = FILES + FILES_EACH * workers, system_limit("NOFILE")
    if workers and soft < need:
        import resource  # Windows has none

        if hard < need:
            raise UserError(f"--workers {workers} may need {need} open files, and the limit is {hard} (ulimit -n): "
                            "raise it, or take fewer --workers (0: none)")
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    try:
        disk = os.statvfs(SHARED_MEMORY)
    except (OSError, AttributeError):  # not Linux
        return workers
    free, processes = disk.f_bavail * disk.f_frsize, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    batches = free // (processes * batch_bytes)
    if not workers or batches >= PREFETCHED * workers + 1:  # one is in the hands of the main process
        return workers
    each = f"{processes} processes, each with " if processes > 1 else ""
    need = processes * batch_bytes * (PREFETCHED * workers + 1)
    text = (f"{SHARED_MEMORY} has {free / 1e6:.1f} MB free, and {what} need {need / 1e6:.1f} MB of it ({each}--workers "
            f"{workers} x {PREFETCHED} batches ahead of {batch_bytes / 1e6:.1f} MB)")
    if not batches:
        raise UserError(f"{text}; not one batch fits: {_REMEDY}")
    fitting = max(1, (batches - 1) // PREFETCHED)
    if fitting < workers:
        _logger.warning(f"WARNING: {text}; {fitting} of the workers are used, which takes longer and changes nothing "
                        f"else: {_REMEDY}")
    return fitting


def _tensors(value: object) -> Iterable[Tensor]:
    """All tensors of a batch."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
    elif hasattr(value, "__dict__"):
        yield from _tensors(vars(value))


def _obey(parent: int) -> None:
    """Take signals from the queue of a process; end it on SIGTERM from its parent, and when that is gone."""
    while True:
        taken = signal.sigtimedwait(STOPPING, 2.0)
        if os.getppid() != parent:
            os._exit(1)
        if taken is not None and taken.si_signo == signal.SIGTERM and taken.si_pid == parent:
            os._exit(0)
