"""One process at a time trains in a run folder: rank 0 of a run holds its lock before it writes anything there."""

from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from ..errors import UserError, one_line

LOCK = ".lock"
_locks: dict[Path, BaseFileLock] = {}  # of the folders that this process has locked


def lock_run(folder: Path) -> bool:
    """Keep other processes out of a run folder until `unlock_run` or the end of this process, in whatever way it ends.

    It is a lock of the operating system, free at once when its holder is killed and kept by one that is suspended.

    Args:
        folder: it is there.

    Returns:
        False if this process had locked it before.

    Raises:
        UserError: another process has locked it, or the folder cannot be written to.
    """
    folder = folder.resolve()
    # filelock knows that a fork of the holder does not hold it
    if folder in _locks and _locks[folder].is_locked:
        return False
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another process trains in {folder}: wait for its end, or give another --experiment"
        ) from None
    except OSError as error:
        raise UserError(
            f"--output {folder}: cannot be written to ({error.strerror or one_line(error)}); choose "
            "another folder with --output"
        ) from error
    # kept for as long as the process lives: a lock that nobody refers to is released
    _locks[folder] = lock
    return True


def unlock_run() -> None:
    """Let other processes into all folders that this one has locked."""
    while _locks:
        _, lock = _locks.popitem()
        lock.release()
