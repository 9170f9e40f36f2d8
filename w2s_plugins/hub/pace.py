"""An end to a server that gives a byte now and then: no wait for one is long, and all of them together have no end."""

import time

from huggingface_hub import constants

from ..errors import UserError

SLOWEST = 1000.0  # bytes a second


def hold_to_pace(client: object, window: float) -> None:
    """Let what the client reads, headers and bodies, come with `SLOWEST` at least.

    Args:
        client: one of httpx, which has no such limit and gives no public way to its streams.
        window: seconds of waiting after which what has come is looked at.
    """
    for transport in (client._transport, *client._mounts.values()):
        if transport is not None:  # None: an address without a proxy
            transport._pool._network_backend = _Backend(transport._pool._network_backend, window)


class _Around:
    """Something of which only some methods are others."""

    def __init__(self, inner: object, window: float):
        self.inner, self.window = inner, window

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)


class _Backend(_Around):
    def connect_tcp(self, *args: object, **kwargs: object) -> "_Stream":
        return _Stream(self.inner.connect_tcp(*args, **kwargs), self.window)


class _Stream(_Around):
    """The bytes of a connection. Only waits count: who reads may be as slow as a disk."""

    waited, came = 0.0, 0

    def start_tls(self, *args: object, **kwargs: object) -> "_Stream":
        return _Stream(self.inner.start_tls(*args, **kwargs), self.window)

    def write(self, *args: object, **kwargs: object) -> None:
        self.waited, self.came = 0.0, 0  # another request
        self.inner.write(*args, **kwargs)

    def read(self, *args: object, **kwargs: object) -> bytes:
        """Return the next bytes. Raises a `UserError`, which nothing of the client takes for a reason to ask again."""
        started = time.monotonic()
        data = self.inner.read(*args, **kwargs)
        self.waited, self.came = self.waited + time.monotonic() - started, self.came + len(data)
        if data and self.waited > self.window:
            if self.came < self.window * SLOWEST:
                raise UserError(f"the Hub at {constants.ENDPOINT} sends {self.came / self.waited:.0f} bytes a second, "
                                f"less than {SLOWEST:.0f} for {self.window:g} s; try again later")
            self.waited, self.came = 0.0, 0
        return data
