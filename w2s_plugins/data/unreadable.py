"""Samples that cannot be read: what names them, what takes their place in training, and when there are too many."""

import logging
import re
from collections.abc import Iterable

import torch.distributed as dist

from ..errors import UserError

_logger = logging.getLogger(__name__)


class UnreadableSample(UserError):
    """A sample that cannot be read or decoded; the text begins with its file.

    PyTorch's loader makes the exception of a data worker anew from a text that holds a traceback; the last line of
    it is the message.
    """

    def __init__(self, text: str):
        super().__init__(text.rsplit(f"{type(self).__name__}: ", 1)[-1].strip())


def parse_data_errors(text: str) -> int | None:
    """Parse ``--data-errors``.

    Returns:
        How many files may be unreadable, or None for ``raise``.

    Raises:
        UserError: neither ``raise`` nor ``skip:N``.
    """
    if text == "raise":
        return None
    if match := re.fullmatch(r"skip:([1-9]\d*)", text):
        return int(match[1])
    raise UserError(f"--data-errors {text}: expected raise, or skip:N with N files at most that are left out, "
                    "e.g. skip:10")


class SkippedSamples:
    """The unreadable files of this process, each counted once however often it is met.

    Args:
        limit: how many there may be.
        distributed: `agree` exchanges them with the other ranks.
    """

    def __init__(self, limit: int, distributed: bool = False):
        self.limit, self.distributed = limit, distributed
        self.messages: dict[str, None] = {}  # a set in order

    def add(self, messages: Iterable[str]) -> None:
        """Count messages of `UnreadableSample`. Raises `UserError` past the limit."""
        for message in messages:
            if message in self.messages:
                continue
            self.messages[message] = None
            _logger.warning(f"{message}; another sample of the batch takes its place ({len(self.messages)} of at most "
                            f"{self.limit} files, --data-errors)")
            if len(self.messages) > self.limit:
                raise UserError(f"{message}; that makes {len(self.messages)} unreadable files, --data-errors allows "
                                f"{self.limit}; find all of them with: python -m w2s_plugins.data check DIR")

    def agree(self) -> None:
        """Count what the other ranks have met, after an epoch; all ranks must call it."""
        if self.distributed:
            found: list = [None] * dist.get_world_size()
            dist.all_gather_object(found, list(self.messages))
            self.add(message for messages in found for message in messages)
