"""Errors meant for the person who typed the command: one line, exit code 2, no traceback."""

import argparse
import contextlib
import difflib
import errno
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .tokens import scrub

EXIT_USER_ERROR = 2
_watch = None  # the `Heartbeat` of a process that is one of several


class UserError(Exception):
    """Something the user can put right. The message names what was wrong, what was expected and the nearest choice."""


class OneLineParser(argparse.ArgumentParser):
    """argparse whose errors are `UserError`s."""

    def error(self, message: str) -> None:
        raise UserError(f"{scrub(message)}; see {self.prog} --help")


def name_runs(folder: Path) -> str:
    """Return a hint at the runs inside a folder, as that of a protocol has them; nothing where there are none."""
    runs = sorted(path.parent for path in folder.glob("*/args.yaml"))
    return f"; there are runs in it, give one of them: {', '.join(map(str, runs))}" if runs else ""


def nearest(name: str, choices: Iterable[str], count: int = 3) -> str:
    """Return a hint such as `` (nearest: a, b)`` with the closest names, or an empty string when none is close."""
    choices = [str(c) for c in choices]
    folded = {c.lower(): c for c in choices}
    close = difflib.get_close_matches(str(name).lower(), folded, n=count, cutoff=0.5)
    return f" (nearest: {', '.join(folded[c] for c in close)})" if close else ""


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return the text of an exception folded to one line of at most ``limit`` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit - 3] + "..."


def print_traceback(error: BaseException) -> None:
    """Print the traceback of an error, without access tokens."""
    print(scrub("".join(traceback.format_exception(error))), end="", file=sys.stderr, flush=True)


def write_remedy(path: Path, error: Exception, then: str = "go on with --resume") -> str:
    """Return what is left and what can be done about a file that could not be written, the last of which is ``then``.
    """
    if not path.parent.is_dir():
        return (f"the folder was deleted or its disk is gone; what was in it is lost unless it comes back: bring the "
                f"disk back, or make the folder again (mkdir {path.parent})")
    code = getattr(error, "errno", None)
    full = code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or type(error) is RuntimeError
    first = "make room" if full else (
        "make the folder writable" if code in (errno.EACCES, errno.EROFS, errno.EPERM) else "")
    return "what was there before is unchanged" + (f"; {first} and {then}" if first else "")


@contextlib.contextmanager
def write_errors(path: Path, then: str = "go on with --resume") -> Iterator[None]:
    """Turn what the system says while ``path`` is written into a `UserError` with what can be done about it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({one_line(error)}); {write_remedy(path, error, then)}") from error


def release(error: BaseException | None) -> None:
    """Release what the frames of an error that has been dealt with hold: tensors, and files that were deleted but take
    room on a full disk until they are closed.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def run_main(main: Callable[[], None], prog: str) -> None:
    """Run a script's ``main``; a `UserError` becomes one line on stderr and exit code 2.

    With ``--debug`` on the command line the traceback is shown as well. On several ranks of one node, the first
    rank that fails prints and the others end silently; any other error ends all of them as well, with its traceback.
    """
    try:
        main()
    except UserError as error:
        if "--debug" in sys.argv:
            print_traceback(error)
        text = re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", scrub(str(error)))  # a name may hold anything
        if first_to_report():
            print(f"{prog}: error: {text}", file=sys.stderr, flush=True)
        if _watch is not None:
            with contextlib.suppress(RuntimeError):  # the others may be gone
                _watch.announce(text)
        _exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        _exit(130)
    except BrokenPipeError:
        _exit(1)
    except Exception as error:
        if _watch is not None:
            _watch.failed(error)
        shown = "".join(traceback.format_exception(error))
        if scrub(shown) == shown:
            raise
        print_traceback(error)
        _exit(1)


def watch_others(watch: object) -> None:
    """Let `run_main` end the other processes of the run with this one; ``watch`` is a `heartbeat.Heartbeat`."""
    global _watch
    _watch = watch


def first_to_report() -> bool:
    """True for one rank per node. The claim is a file, since the ranks may die before they ever talk to each other."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return True
    folder = Path(tempfile.gettempdir())
    for stale in folder.glob("w2s-error-*"):
        try:
            if time.time() - stale.stat().st_mtime > 3600:
                stale.unlink()
        except OSError:
            pass  # another process was faster
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    claim = folder / f"w2s-error-{os.getppid()}-{os.environ.get('MASTER_PORT', '0')}-{restarts}"
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        time.sleep(1.0)  # torchrun ends all ranks when the first one does: let the reporter print
        return False
    except OSError:
        return int(os.environ.get("RANK", "0")) == 0
    return True


def _exit(code: int) -> None:
    """End; at once after an error on one of several ranks, whose shutdown would wait for exchanges that never come."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        exit_now(code)
    sys.exit(code)


def exit_now(code: int) -> None:
    """End the process without tearing anything down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
