"""Preemption: a signal ends the run after the step in hand, at the same step on every rank."""

import functools
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TypeVar

import torch.distributed as dist

from .world import gather_objects

TOGETHER = 1.0  # seconds in which all SIGINT are one
Item = TypeVar("Item")


class Interrupted(BaseException):
    """The run is to stop here and now, all ranks at the same place; its state is that of a finished update.

    As KeyboardInterrupt, it comes out of whatever waits, and nothing that deals with errors may take it for one.

    Args:
        signum: the signal that asked for it.
    """

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """128 + the number of the signal, as shells report it: 143 for SIGTERM, 130 for SIGINT."""
        return 128 + self.signum


class SignalWatch:
    """Notes signals in place of dying of them, while it is entered. Those SIGINT that come within `TOGETHER` seconds
    are one, as a terminal, a launcher and an impatient person send it; a later one ends the process at once.

    The first signal counts; those that follow it, as SIGTERM follows SIGUSR1 in SLURM, change nothing. A run that has
    had one ends, and goes on noting them until then.

    Args:
        signals: signals to note.
        distributed: agree with the other ranks on the step to stop at.
    """

    entered: "SignalWatch | None" = None  # in this process
    NOTICE = "w2s/notice"  # some rank wants to stop; for work that ranks do apart
    _numbers = itertools.count()  # the runs of a protocol follow each other in one group of processes

    def __init__(self, signals: tuple[int, ...], distributed: bool):
        # what has come, and what the ranks agree in
        self.received: int | None = None
        self._interrupted: float | None = None  # when the first SIGINT came
        self.store = dist.distributed_c10d._get_default_store() if distributed else None
        if self.store is not None:
            self.furthest = f"w2s/furthest{next(self._numbers)}"  # see `check`
            self.store.compare_set(self.furthest, "", "-1")
        # handlers, and what they take the place of
        main = threading.current_thread() is threading.main_thread()  # no other can set a handler, or is interrupted
        self._previous = {s: signal.signal(s, self._note) for s in signals} if main else {}

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT:
            # the first SIGINT and its echoes save; a later one ends at once
            self._interrupted = self._interrupted or time.monotonic()
            if time.monotonic() - self._interrupted > TOGETHER:
                raise KeyboardInterrupt
        self.received = self.received or signum

    def check(self, update: int) -> None:
        """Raise `Interrupted` at the end of an update when it is time to stop.

        The host of a rank may be updates ahead of another's, so the ranks agree in the store, where the last update is
        that any of them has gone past. A rank that has a signal writes in its place the first that none has, and the
        signal: there all stop, for none goes past an update without having read this.
        """
        # one process asks nobody
        received = self.received
        if self.store is None:
            if received is not None:
                raise Interrupted(received)
            return
        # several write the furthest update, until nobody else has written in between
        seen = str(update - 1)  # as a rule, by the first who comes here
        while True:
            furthest, *signum = map(int, seen.split())
            if signum and update >= furthest:
                raise Interrupted(*signum)
            if signum or (received is None and furthest >= update):
                return
            wanted = str(update) if received is None else f"{max(furthest + 1, update)} {received}"
            seen = self.store.compare_set(self.furthest, seen, wanted).decode()

    def guard(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield items, such as the batches of an evaluation, until a signal comes; then raise `Interrupted`.

        Ranks may be at different items, and one may be done while another is asked to stop. So each of them exchanges
        with the others once, when it stops or after its last item, and all end alike.
        """
        # each rank stops by itself, and all agree once at the end
        for item in items:
            if self._noticed():
                break
            yield item
        if (signum := self._agreed_signal()) is not None:
            raise Interrupted(signum)

    def _noticed(self) -> bool:
        if self.store is None:
            return self.received is not None
        if self.received is not None:
            self.store.set(self.NOTICE, "")
        return self.store.check([self.NOTICE])

    def _agreed_signal(self) -> int | None:
        received = [self.received] if self.store is None else gather_objects(self.received)
        return next((signum for signum in received if signum is not None), None)

    def __enter__(self) -> "SignalWatch":
        # One at a time: runs follow each other in a process.
        SignalWatch.entered = self
        return self

    def __exit__(self, *error: object) -> None:
        """Put the former handlers back, unless the process ends."""
        if self.received is None:
            SignalWatch.entered = None
            for signum, handler in self._previous.items():
                signal.signal(signum, handler)


def _block(how: int) -> None:
    if SignalWatch.entered is not None:
        signal.pthread_sigmask(how, SignalWatch.entered._previous)


if hasattr(os, "register_at_fork"):  # a data worker has handlers of PyTorch and of this process before its own
    os.register_at_fork(before=functools.partial(_block, signal.SIG_BLOCK),
                        after_in_parent=functools.partial(_block, signal.SIG_UNBLOCK))
