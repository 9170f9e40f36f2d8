"""One process at a time trains in a run folder: rank 0 of a run holds its lock before it writes anything there."""

import contextlib
import os
import socket
from datetime import datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from ..errors import UserError, one_line

LOCK = ".lock"
HOLDER = "process"  # begins what the lock says of its holder
_held: dict[Path, BaseFileLock] = {}


def hold(folder: Path) -> bool:
    """Keep other processes out of a run folder until `release` or the end of this process, in whatever way it ends.

    It is a lock of the operating system, free at once when its holder is killed and kept by one that is suspended. On a
    file system that has none it is a file with the holder's name: that of a dead process of this machine is free.

    Args:
        folder: it is there.

    Returns:
        False when this process held it before.

    Raises:
        UserError: another process holds it, or the folder cannot be written to.
    """
    folder = folder.resolve()
    if folder in _held and _held[folder].is_locked:  # a process that was forked from its holder does not hold it
        return False
    path = folder / LOCK
    # the system lets go of it when the process ends, in whatever way
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise _busy(folder, path) from None
    except OSError as error:
        raise UserError(f"--output {folder}: cannot be written to ({error.strerror or one_line(error)}); choose "
                        "another folder with --output") from error
    # kept open for as long as the process lives, with a word about who holds it
    _held[folder] = lock
    with contextlib.suppress(OSError, ValueError):  # no room; then nobody knows who it is
        before = path.read_text(encoding="utf-8")
        if not before or before.startswith(HOLDER):  # else filelock has written there, in place of a lock
            path.write_text(f"{HOLDER} {os.getpid()} on {socket.gethostname()} since "
                            f"{datetime.now():%Y-%m-%d %H:%M:%S}", encoding="utf-8")
    return True


def release() -> None:
    """Let other processes into all folders that this one holds."""
    while _held:
        _, lock = _held.popitem()
        with contextlib.suppress(OSError):  # a disk that is gone
            lock.release()


def _busy(folder: Path, path: Path) -> UserError:
    holder = ""
    with contextlib.suppress(OSError, ValueError):
        holder = " ".join(path.read_text(encoding="utf-8")[:200].split())
    return UserError(f"another process trains in {folder}{f' ({holder})' if holder else ''}: wait for its end, or give "
                     "another --experiment")
