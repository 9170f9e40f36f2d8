"""One process at a time trains in a run folder: rank 0 of a run holds its lock before it writes anything there."""

import contextlib
import errno
import logging
import os
import socket
import sys
from datetime import datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLease, Timeout

from ..errors import EXIT_USER_ERROR, UserError, exit_now, one_line

_logger = logging.getLogger(__name__)

LOCK, LEASE = ".lock", ".lease"
LEASE_SECONDS = 60.0  # without a sign of life; all that contend for a folder have to agree
NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
_held: dict[Path, BaseFileLock] = {}


def hold(folder: Path) -> bool:
    """Keep other processes out of a run folder until `release` or the end of this process, in whatever way it ends.

    It is a lock of the operating system, free at once when its holder is killed and kept by one that is suspended. On
    a file system that has none it is a lease, which its holder renews: that of a dead process of this machine is free
    at once, that of another machine when it was not renewed for `LEASE_SECONDS`.

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
    try:
        _held[folder] = _lock(folder)
    except OSError as error:
        raise UserError(f"--output {folder}: cannot be written to ({error.strerror or one_line(error)}); choose "
                        "another folder with --output") from error
    return True


def release() -> None:
    """Let other processes into all folders that this one holds."""
    while _held:
        _, lock = _held.popitem()
        with contextlib.suppress(OSError):  # a disk that is gone
            lock.release()


def _lock(folder: Path) -> BaseFileLock:
    lock = FileLock(folder / LOCK, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        with contextlib.suppress(OSError, ValueError):
            raise _busy(folder, (folder / LOCK).read_text(encoding="utf-8")[:200]) from None
        raise _busy(folder, "") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return _lease(folder)
    with contextlib.suppress(OSError):  # no room; then nobody knows who it is
        (folder / LOCK).write_text(f"process {os.getpid()} on {socket.gethostname()} since "
                                   f"{datetime.now():%Y-%m-%d %H:%M:%S}", encoding="utf-8")
    return lock


def _lease(folder: Path) -> SoftFileLease:
    def lost(compromise: object) -> None:
        if compromise.reason in ("owner-changed", "marker-missing"):  # nothing more may be written
            print(f"{folder}: this process was suspended, and another one has taken the run over", file=sys.stderr)
            exit_now(EXIT_USER_ERROR)

    lease = SoftFileLease(folder / LEASE, lease_duration=LEASE_SECONDS, on_compromise=lost, thread_local=False)
    try:
        lease.acquire(timeout=1.0)  # filelock 3.30 takes that of a dead process at the second look only
    except Timeout:
        owner = lease.owner
        who = f"process {owner.pid} on {owner.hostname}" if owner else ""
        if owner is None or owner.hostname.split("?")[0] == socket.gethostname():
            raise _busy(folder, who) from None
        _logger.info(f"{folder}: {who} trains there, or has died; waiting {LEASE_SECONDS:.0f} s for a sign of life")
        try:
            lease.acquire(timeout=1.5 * LEASE_SECONDS)
        except Timeout:
            raise _busy(folder, who) from None
    return lease


def _busy(folder: Path, who: str) -> UserError:
    return UserError(f"another process trains in {folder}{f' ({who})' if who else ''}: wait for its end, or give "
                     "another --experiment")
