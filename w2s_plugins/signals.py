"""Preemption: a signal ends the run after the step in hand, at the same step on every rank."""

import signal
from types import FrameType

import torch.distributed as dist


class Interrupted(Exception):
    """The run is to stop here and now; its state is that of a finished update.

    Args:
        signum: the signal that asked for it.
        together: all ranks stop at the same update, so they may still talk to each other.
    """

    def __init__(self, signum: int, together: bool):
        super().__init__(signal.Signals(signum).name)
        self.signum, self.together = signum, together

    @property
    def exit_code(self) -> int:
        """128 + the number of the signal, as shells report it: 143 for SIGTERM, 130 for SIGINT."""
        return 128 + self.signum


class SignalWatch:
    """Notes signals in place of dying of them. A second SIGINT ends the process at once.

    Args:
        signals: signals to note.
        distributed: agree with the other ranks on the step to stop at.
    """

    KEY = "w2s/stop"

    def __init__(self, signals: tuple[int, ...], distributed: bool):
        self.received: int | None = None
        self.store = dist.distributed_c10d._get_default_store() if distributed else None
        self._previous = {s: signal.signal(s, self._note) for s in signals}

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signum

    def check(self, update: int) -> None:
        """Raise `Interrupted` at the end of an update when it is time to stop.

        A rank that has a signal asks for a stop after the next update. It joins the gradient exchange of that update
        only afterwards, so no other rank can finish that update without having been asked: all stop at the same one.
        """
        if self.store is None:
            self.check_here()
            return
        if self.received is not None and not self.store.check([self.KEY]):
            self.store.set(self.KEY, f"{update + 1} {self.received}")
        if self.store.check([self.KEY]):
            last, signum = map(int, self.store.get(self.KEY).decode().split())
            if update >= last:
                raise Interrupted(signum, together=True)

    def check_here(self) -> None:
        """Raise `Interrupted` at once when this process has a signal; for work without exchange between ranks."""
        if self.received is not None:
            raise Interrupted(self.received, together=self.store is None)

    def close(self) -> None:
        """Put the former handlers back."""
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
