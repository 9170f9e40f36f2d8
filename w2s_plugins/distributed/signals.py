"""Preemption: a signal ends the run after the step in hand, at the same step on every rank."""

import functools
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TypeVar

import torch
import torch.distributed as dist

from .world import World

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
        world: this process, which agrees with the others on where to stop; None for one alone.
    """

    entered: "SignalWatch | None" = None  # in this process

    def __init__(self, signals: tuple[int, ...], world: World | None = None):
        # what has come
        self.received: int | None = None
        self._interrupted: float | None = None  # when the first SIGINT came
        self._world = world
        # handlers, and what they take the place of: only the main thread can set one, or is interrupted
        in_main_thread = threading.current_thread() is threading.main_thread()
        self._previous = {s: signal.signal(s, self._note) for s in signals if in_main_thread}

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT:
            # the first SIGINT and its echoes save; a later one ends at once
            self._interrupted = self._interrupted or time.monotonic()
            if time.monotonic() - self._interrupted > TOGETHER:
                raise KeyboardInterrupt
        self.received = self.received or signum

    def check(self) -> None:
        """Raise `Interrupted` when a signal has come to any rank. All ranks call this at the same places of a run, so
        that all stop at the same one.
        """
        # a signal may reach one rank between two steps and another one after it: the largest number counts for all
        signum = self.received or 0
        if self._world is not None and self._world.distributed:
            agreed = torch.tensor(signum, device=self._world.device)
            dist.all_reduce(agreed, dist.ReduceOp.MAX)
            signum = int(agreed)
        if signum:
            raise Interrupted(signum)

    def guard(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield items, such as the batches of an evaluation, until a signal comes to this rank; then raise
        `Interrupted` on all of them, when the others have come to the end of theirs.
        """
        # nothing is exchanged in between: the ranks may have different numbers of items
        for item in items:
            if self.received is not None:
                break
            yield item
        self.check()

    def __enter__(self) -> "SignalWatch":
        # one at a time: runs follow each other in a process
        SignalWatch.entered = self
        return self

    def __exit__(self, *error: object) -> None:
        """Put the former handlers back, unless the process ends."""
        if self.received is None:
            SignalWatch.entered = None
            for signum, handler in self._previous.items():
                signal.signal(signum, handler)


def _mask(how: int) -> None:
    """Block the signals that are noted in this process, or let them through again."""
    if SignalWatch.entered is not None:
        signal.pthread_sigmask(how, SignalWatch.entered._previous)


# a data worker has handlers of PyTorch and of this process before its own
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=functools.partial(_mask, signal.SIG_BLOCK),
        after_in_parent=functools.partial(_mask, signal.SIG_UNBLOCK),
    )
