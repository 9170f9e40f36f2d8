"""An end to a server that gives a byte now and then: no wait for one is long, and all of them together have no end."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from huggingface_hub import constants

from ..errors import UserError

SLOWEST = 1000.0  # bytes a second


def holding_to_pace(window: float) -> Callable[[Any], None]:
    """Return a hook for the requests of a client: what it reads, headers and bodies, has to come with `SLOWEST`.

    httpx has no such limit; but httpcore, which it stands on, tells whoever traces a request of each new connection.

    Args:
        window: seconds of waiting after which what has come is looked at.
    """
    def trace(event: str, info: Mapping[str, Any]) -> None:
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            _Pace(info["return_value"], window)

    return lambda request: request.extensions.update(trace=trace)


class _Pace:
    """The bytes of a connection, whose methods it takes the place of. Only waits count: who reads may be as slow as a
    disk.

    Args:
        stream: a `NetworkStream` of httpcore.
        window: seconds.
    """

    def __init__(self, stream: Any, window: float):
        self.window, self.waited, self.came = window, 0.0, 0
        self._read, self._write = stream.read, stream.write
        stream.read, stream.write = self.read, self.write

    def write(self, *args: object, **kwargs: object) -> None:
        self.waited, self.came = 0.0, 0  # another request
        self._write(*args, **kwargs)

    def read(self, *args: object, **kwargs: object) -> bytes:
        """Return the next bytes. Raises a `UserError`, which nothing of the client takes for a reason to ask again."""
        started = time.monotonic()
        data = self._read(*args, **kwargs)
        self.waited, self.came = self.waited + time.monotonic() - started, self.came + len(data)
        if data and self.waited > self.window:
            if self.came < self.window * SLOWEST:
                raise UserError(f"the Hub at {constants.ENDPOINT} sends {self.came / self.waited:.0f} bytes a second, "
                                f"less than {SLOWEST:.0f} for {self.window:g} s; try again later")
            self.waited, self.came = 0.0, 0
        return data
