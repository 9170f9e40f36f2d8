"""What is told to the person who typed the command: errors in one line with exit code 2, foreign text made harmless
(no access tokens, no codes of a terminal), log lines that are left out for a while."""

import contextlib
import difflib
import errno
import importlib.util
import io
import logging
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from logging.handlers import BufferingHandler
from pathlib import Path
from types import ModuleType
from typing import NoReturn, TypeVar

T = TypeVar("T")

logger = logging.getLogger(__package__)  # of all modules

EXIT_USER_ERROR = 2
INSTALLED = (Path(__file__).parent / "top").is_dir()  # a wheel has the scripts in it
# signals that stop a run; Windows has only the first two
STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)
# what the system refuses, which is told in one line: no room, no right, a path that is too long to be one
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG)
# what is to be done after a file could not be written: by most commands, and by a training that has written checkpoints
AGAIN, RESUME = "start the same command again", "go on with --resume"
# characters of an error or a word, and of a line of the log, which may list a thousand classes; a cell of a table, say,
# may be a whole file
MOST_SHOWN, MOST_LOGGED = 4000, 100_000
# characters; no name of anything is longer, and to compare two of them takes the product of both
LONGEST_NAME = 500


class UserError(Exception):
    """Something the user can put right. The message names what was wrong, what was expected and the nearest choice."""

    def __str__(self) -> str:
        return shorten(super().__str__())


@contextlib.contextmanager
def said_of(where: str) -> Iterator[None]:
    """Begin the message of a `UserError` with what it is about."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{where}{error}") from error


def called(prog: str) -> str:
    """Return the name that this program was typed with: that of a console command, else ``prog``."""
    name = Path(sys.argv[0]).stem
    return name if name.startswith("w2s-") else prog


def typed(command: str) -> str:
    """Return how a command of this project is typed where this program runs: ``w2s-hub`` where it is installed, in a
    checkout the module or the script."""
    if INSTALLED or called(""):
        return f"w2s-{command}"
    return "python train_w2s.py" if command == "train" else f"python -m w2s_plugins.{command}"


def name_runs(folder: Path) -> str:
    """Return a hint at the runs inside a folder, as that of a protocol has them; nothing where there are none."""
    runs = sorted(path.parent for path in folder.glob("*/args.yaml"))
    return f"; there are runs in it, give one of them: {', '.join(map(str, runs))}" if runs else ""


def nearest(name: str, choices: Iterable[str], count: int = 3) -> str:
    """Return a hint such as `` (nearest: a, b)`` with the closest names, or an empty string when none is close."""
    # Capitals do not count.
    choices = [str(c) for c in choices]
    folded = {c.lower(): c for c in choices if len(c) <= LONGEST_NAME}
    close = difflib.get_close_matches(str(name)[:LONGEST_NAME].lower(), folded, n=count, cutoff=0.5)
    return f" (nearest: {', '.join(folded[c] for c in close)})" if close else ""


def near_path(path: str | Path) -> str:
    """Return a hint as `nearest` does for a path that is not there: what has such a name in its folder."""
    path = Path(path)
    return nearest(path.name, os.listdir(path.parent)) if os.path.isdir(path.parent) else ""


def near_folder(folder: Path, file: str) -> str:
    """Return a hint as `nearest` does for a folder that should have a file: those beside it that have one."""
    return nearest(folder.name, [path.parent.name for path in folder.parent.glob(f"*/{file}")])


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return the text of an exception folded to one line of at most ``limit`` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def shorten(text: str, limit: int = MOST_SHOWN) -> str:
    """Return a text, or the beginning and the end of one with more than ``limit`` characters."""
    # what is to be done stands at the end of a message
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} [... {len(text) - 2 * half} characters ...] {text[-half:]}"


def print_traceback(error: BaseException) -> None:
    """Print the traceback of an error, without access tokens."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    print("\n".join(shorten(shown(line)) for line in lines), file=sys.stderr, flush=True)


def cannot_be_written(path: Path, reason: str, then: str = AGAIN) -> UserError:
    """Return the error of a file that could not be written, which ends with what to do ``then``."""
    return UserError(
        f"{path}: cannot be written ({reason}); what was there before is unchanged: put that right, and "
        f"{then}"
    )


@contextlib.contextmanager
def write_errors(path: Path, then: str = AGAIN) -> Iterator[None]:
    """Turn what the system says while ``path`` is written into a `UserError` with what can be done about it."""
    try:
        yield
    except OSError as error:
        raise cannot_be_written(path, one_line(error), then) from error


def refusal(error: BaseException) -> str | None:
    """Return in one line, in its own words, what the system has refused; None for an error of any other kind."""
    # Other errors of the system, such as of the network, are told by whoever knows what was tried.
    if isinstance(error, MemoryError):
        return f"out of memory: {one_line(error)}"
    if isinstance(error, OSError) and error.errno in _REFUSED:
        path = os.fsdecode(error.filename or "the output")
        if error.errno == errno.ENAMETOOLONG:
            path = f"{path[:80]}..."
        return f"{path}: {error.strerror}"
    return None


def run_main(main: Callable[[], T], prog: str) -> T:
    """Run a script's ``main`` and return what it returns; a `UserError`, or a `refusal`, becomes one line on stderr and
    exit code 2.

    With ``--debug`` on the command line the traceback is shown as well; of any other error it always is.
    """
    # timm imports it wherever it is installed, which takes a second of each start
    put_off_import("wandb")
    # What is logged before a program has chosen where to is written as everything else is; names may hold anything,
    # which a terminal need not be able to encode.
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(PublicFormatter())
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook has others
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return main()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # another one ends it at once
        _exit(130)
    except BrokenPipeError:
        _exit(1)
    except Exception as error:
        # The first rank of a node reports: where it has failed too, torchrun ends the others meanwhile.
        time.sleep(min(3.0, float(os.environ.get("LOCAL_RANK", "0"))))
        # What the user can put right is one line; of anything else the traceback is what helps.
        message = str(error) if isinstance(error, UserError) else refusal(error)
        if message is None or "--debug" in sys.argv:
            print_traceback(error)
        if message is None:
            _exit(1)
        with contextlib.suppress(OSError):  # its disk is full as well
            print(f"{called(prog)}: error: {shown(message)}", file=sys.stderr, flush=True)
        _exit(EXIT_USER_ERROR)


def put_off_import(name: str) -> None:
    """Have a package, if it is installed, imported by the first use of what is in it, not by ``import``."""
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is not None:
        sys.modules[name] = _Later(name)
        # whoever looks whether the package is there, as accelerate does, asks for this
        sys.modules[name].__spec__ = spec


class _Later(ModuleType):
    """Stands for a package until something of it is used."""

    def __getattr__(self, name: str) -> object:
        # inspect asks every module for it, and would import them all
        if name == "__file__":
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def _exit(code: int) -> NoReturn:
    """End; at once after an error on one of several ranks, whose shutdown would wait for exchanges that never come."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        exit_now(code)
    _flush()
    sys.exit(code)


def _flush() -> None:
    """Flush what was printed; what a full disk does not take is lost, for the interpreter would try it once more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), stream.fileno())


def exit_now(code: int) -> NoReturn:
    """End the process without tearing anything down."""
    _flush()
    os._exit(code)


_LONG_WORD = re.compile(rf"\S{{{MOST_SHOWN},}}")
LOGIN = "run `hf auth login` or set HF_TOKEN"
_TOKEN = re.compile(r"\bhf_(?:[A-Za-z0-9]{16,}|(?:oauth|jwt)_[\w.-]+)")
# Of a URL what stands between slashes and host: a name, a password, a token. It is looked for behind the slashes: a
# search for what stands before them would read a long word again from each of its letters.
_BEFORE_HOST = r"(?<=[\w+.-]{2}:/){slashes}[^/\s]*@"


def holds_token(text: str) -> bool:
    """True when an access token, of the user or of anybody, or a URL with a name or password is in ``text``."""
    return holds_access_token(text) or holds_login(text)


def holds_access_token(text: str) -> bool:
    """True when an access token, of the user or of anybody, is in ``text``."""
    return bool(_TOKEN.search(text)) or any(secret in text for secret in _secrets())


def holds_login(text: str) -> bool:
    """True when a URL with a name or password before its host is in ``text``; a path has one slash in place of two."""
    return bool(re.search(_BEFORE_HOST.replace("{slashes}", "/?"), text))


def scrub(text: str) -> str:
    """Remove every access token from ``text``, as well as names, passwords and signatures in URLs."""
    # The user's own, then whatever looks like one, then what URLs may hold.
    for secret in _secrets():
        text = text.replace(secret, "***")
    text = re.sub(_BEFORE_HOST.replace("{slashes}", "/"), "/", _TOKEN.sub("hf_***", text))
    return re.sub(r"(https?://)([^?\s]+)(?:\?[^\s'\")]*)?", r"\1\2", text)


def shown(text: object) -> str:
    """Return text for a line of a terminal or a log, wherever it comes from: what would move the cursor, colour, break
    or reverse the line stands as an escape such as ``\\x1b``, and secrets are left out.
    """
    public = scrub(str(text))
    if public.isprintable():
        return public
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in public)


def say(*lines: object) -> None:
    """Print lines, each as `shown`."""
    print("\n".join(map(shown, lines)), flush=True)


class PublicFormatter(logging.Formatter):
    """Writes a message in one line, as `shown`; any package may log what a file or a server said."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        message = _LONG_WORD.sub(lambda word: shorten(word[0]), shown(record.message.rstrip()))
        record.message = shorten(message, MOST_LOGGED)
        return super().formatMessage(record)

    def formatException(self, ei: tuple) -> str:
        return "\n".join(shorten(shown(line)) for line in super().formatException(ei).split("\n"))


def _secrets() -> list[str]:
    """The user's own tokens, from where huggingface_hub looks for them."""
    from huggingface_hub.constants import HF_TOKEN_PATH  # no program waits for it at its start

    secrets = [os.environ.get(name, "") for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")]
    with contextlib.suppress(OSError, UnicodeDecodeError):
        secrets.append(Path(HF_TOKEN_PATH).read_text())
    # a shorter one would garble texts, and is no token
    return [secret.strip() for secret in secrets if len(secret.strip()) >= 4]


@contextlib.contextmanager
def kept_warnings() -> Iterator[list[logging.LogRecord]]:
    """Keep what this package warns of meanwhile."""
    handler = BufferingHandler(sys.maxsize)
    handler.setLevel(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield handler.buffer
    finally:
        logger.removeHandler(handler)


@contextlib.contextmanager
def quietly(level: int = logging.WARNING) -> Iterator[None]:
    """Leave out all that is logged up to a level; what was left out before stays so."""
    previous = logging.root.manager.disable
    logging.disable(max(previous, level))
    try:
        yield
    finally:
        logging.disable(previous)
