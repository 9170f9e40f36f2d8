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
from collections.abc import Callable, Iterable
from pathlib import Path

EXIT_USER_ERROR = 2
_watch = None  # the `Heartbeat` of a process that is one of several


class UserError(Exception):
    """Something the user can put right. The message names what was wrong, what was expected and the nearest choice."""


class OneLineParser(argparse.ArgumentParser):
    """argparse whose errors are `UserError`s."""

    def error(self, message: str) -> None:
        raise UserError(f"{message}; see {self.prog} --help")


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


def write_remedy(path: Path, error: Exception) -> str:
    """Return what is left and what can be done about a file that could not be written."""
    if not path.parent.is_dir():
        return "the folder was deleted or its disk is gone; what was in it is lost unless it comes back"
    code = getattr(error, "errno", None)
    full = code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or type(error) is RuntimeError
    then = "make room and go on with --resume" if full else (
        "make the folder writable and go on with --resume" if code in (errno.EACCES, errno.EROFS, errno.EPERM) else "")
    return "what was there before is unchanged" + (f"; {then}" if then else "")


def run_main(main: Callable[[], None], prog: str) -> None:
    """Run a script's ``main``; a `UserError` becomes one line on stderr and exit code 2.

    With ``--debug`` on the command line the traceback is shown as well. On several ranks of one node, the first
    rank that fails prints and the others end silently; any other error ends all of them as well, with its traceback.
    """
    try:
        main()
    except UserError as error:
        if "--debug" in sys.argv:
            import traceback
            traceback.print_exc()
        if first_to_report():
            text = re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", str(error))  # a name may hold anything
            print(f"{prog}: error: {text}", file=sys.stderr, flush=True)
        if _watch is not None:
            with contextlib.suppress(RuntimeError):  # the others may be gone
                _watch.announce(str(error))
        _exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        _exit(130)
    except BrokenPipeError:
        _exit(1)
    except Exception as error:
        if _watch is None:
            raise
        _watch.failed(error)


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
