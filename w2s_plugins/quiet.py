"""Log lines that are left out for a while, and come again afterwards."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def quietly(level: int = logging.WARNING) -> Iterator[None]:
    """Leave out all that is logged up to a level; what was left out before stays so."""
    previous = logging.root.manager.disable
    logging.disable(max(previous, level))
    try:
        yield
    finally:
        logging.disable(previous)


@contextlib.contextmanager
def unsaid(name: str) -> Iterator[None]:
    """Leave out what one module logs, but for warnings."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
