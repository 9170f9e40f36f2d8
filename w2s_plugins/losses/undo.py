"""Buffers that a forward pass changes, put back when the step that it belongs to is skipped."""

import torch
from torch import Tensor


class Undo:
    """What a step overwrote of a loss's memory, so that it can be put back when the step is skipped.

    Memories are large, so only the rows that change are noted, and none before the first `keep`: in a training loop
    that never puts anything back, nothing piles up.
    """

    def __init__(self) -> None:
        self._noted: list[tuple[Tensor, Tensor | None, Tensor]] | None = None

    def keep(self) -> None:
        """What the memory is now is what a skipped step leaves."""
        self._noted = []

    def note(self, *buffers: Tensor, index: Tensor | None = None) -> None:
        """Note buffers, or their rows ``index`` (B,), before they are overwritten."""
        if self._noted is None:
            return
        # rows are copied by the index anyway, a whole buffer would go on changing
        for buffer in buffers:
            before = buffer.clone() if index is None else buffer[index]
            self._noted.append((buffer, index, before))

    @torch.no_grad()
    def put_back(self) -> None:
        """Put back what was noted: the step was skipped."""
        noted = self._noted or []
        self._noted = []
        # backwards: what was noted first is the oldest, and may have been overwritten twice
        for buffer, index, before in reversed(noted):
            buffer[... if index is None else index] = before
