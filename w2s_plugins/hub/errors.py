"""What goes wrong between here and the Hub, in one line."""

import errno
import logging
import re
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import timm
import torch
from huggingface_hub import constants, get_token, set_client_factory
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import hf_raise_for_status, validate_repo_id
from huggingface_hub.utils._http import default_client_factory

from ..errors import UserError, nearest, one_line
from ..tokens import LOGIN, scrub
from .pace import holding_to_pace

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")

HUB_TIMEOUT = 300.0  # seconds; huggingface_hub sets none for its API calls, so a hung server would hang the run
WAITS = (1, 2, 4, 8)  # seconds before what failed for a reason that may pass is tried again
LONGEST_WAIT = 120.0  # seconds; a Hub that asks for more (Retry-After) is told of in an error
_PASSING = {408, 409, 412, 429}  # statuses that may pass, as those from 500 on
UNREACHABLE = (HTTPError, OfflineModeIsEnabled, LocalEntryNotFoundError, ConnectionError, TimeoutError)


def _make_public(record: logging.LogRecord) -> bool:
    """Leave secrets out of a line of the log: the client's own name the address of the Hub, password included."""
    record.msg, record.args = scrub(record.getMessage()), ()
    if record.exc_info:
        record.exc_text = scrub("".join(traceback.format_exception(*record.exc_info)))
    return True


# handlers, since the filter of a logger is not asked about lines of loggers below it; what has none goes to the last
for _handler in (*logging.getLogger("huggingface_hub").handlers, logging.lastResort):
    _handler.addFilter(_make_public)
logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)  # two lines for each of its own tries


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn whatever goes wrong between here and the Hub into a one-line `UserError` that starts with ``what``.

    These are errors of huggingface_hub and its HTTP client, and a full disk. All others pass. No message contains a
    token.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = _reason(error, what)
        if reason is None:
            raise
        shown = "".join(traceback.format_exception(error))
        # --debug prints the cause as well, unless a secret is in it
        raise UserError(scrub(f"{what}: {reason}")) from (error if scrub(shown) == shown else None)


def on_hub(what: str, call: Callable[[], _T]) -> _T:
    """Return ``call()``, which talks to the Hub; what may pass is tried again, all else ends as in `hub_errors`.

    huggingface_hub repeats single requests itself: look-ups and uploads of files, downloads that break off. It does not
    repeat what makes or commits to a repository, a download that meets a server error, or anything whose bytes turn out
    to be wrong; this function does, but not after a time-out. An attempt starts from the same random state of torch as
    the first, so that a run does not depend on the network.

    Args:
        what: Start of every message.
        call: May be called several times.

    Raises:
        UserError: as `hub_errors`.
    """
    random_state = torch.get_rng_state()
    with hub_errors(what), _silence_ends():
        for usual in WAITS:
            set_client_factory(_create_client)
            try:
                return call()
            except Exception as error:
                wait = _retry_wait(error, usual)
                if wait is None:
                    raise
                reason = str(error) if isinstance(error, UserError) else _reason(error, what)
                _logger.warning(scrub(f"{what}: {reason}; trying again in {wait:g} s"))
            time.sleep(wait)
            torch.set_rng_state(random_state)
        return call()


def check_repo_id(repo_id: str) -> None:
    """Raise a `UserError` unless ``repo_id`` has the form of a Hub id, ``ORG/NAME`` or ``NAME``."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        guess = re.sub(r"^(https?://[^/]+/|hf-hub:)", "", str(repo_id)).split("@")[0]
        guess = re.sub(r"[^\w./-]+|-{2,}|\.{2,}", "-", guess, flags=re.ASCII).strip("-./")
        try:
            validate_repo_id(guess)
            hint = f" (nearest: {guess})"
        except HFValidationError:
            hint = ""
        raise UserError(
            f"not a Hub id: {one_line(ValueError(repr(repo_id)), 120)}; expected ORG/NAME of letters, digits, "
            f"'-', '_' and '.', at most 96 each{hint}") from error


def check_login(repo_id: str, flag: str = "--push-to-hub") -> None:
    """Raise a `UserError` unless ``repo_id`` is a Hub id and there is a token to push with."""
    check_repo_id(repo_id)
    if not get_token():
        raise UserError(f"{flag} needs a token: {LOGIN}")


@contextmanager
def _silence_ends() -> Iterator[None]:
    """Limit the waits of what has no limit of its own, torch's downloads from other addresses."""
    usual = socket.getdefaulttimeout()
    socket.setdefaulttimeout(HUB_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(usual)


class DamagedDownload(UserError):
    """A file whose bytes are not those that the Hub announced. It is no longer in the cache."""


def _create_client() -> object:
    """huggingface_hub's client, with an end to every wait."""
    client = default_client_factory()
    client.timeout = HUB_TIMEOUT
    client.event_hooks = {"request": [*client.event_hooks["request"], holding_to_pace(HUB_TIMEOUT)],
                          "response": [_refuse_long_wait]}
    return client


def _refuse_long_wait(response: object) -> None:
    """Raise what huggingface_hub would wait for, however long it is."""
    if response.status_code >= 400 and _retry_after(response) > LONGEST_WAIT:
        response.read()
        hf_raise_for_status(response)


def _retry_after(response: object) -> float:
    """Seconds that the Hub asks to wait, 0 when it asks for none."""
    asked = response.headers.get("Retry-After", "")
    return float(asked) if re.fullmatch(r"\d{1,9}", asked) else 0.0


def _retry_wait(error: Exception, usual: float) -> float | None:
    """Seconds to wait before ``error`` is worth another attempt; None for never."""
    chain = _causes(error)
    # a look-up that huggingface_hub has tried six times, and a time-out, which is a long wait already
    if any(isinstance(e, LocalEntryNotFoundError) or type(e).__name__.endswith("Timeout") for e in chain):
        return None
    if answered := next((e for e in chain if isinstance(e, HfHubHTTPError)), None):
        status, wait = answered.response.status_code, max(usual, _retry_after(answered.response))
        return wait if (status in _PASSING or status >= 500) and wait <= LONGEST_WAIT else None
    if constants.is_offline_mode():
        return None
    broken = any(isinstance(e, (HTTPError, ConnectionError, DamagedDownload)) or _is_cut_short(e) for e in chain)
    return usual if broken else None


def _is_cut_short(error: BaseException) -> bool:
    return str(error).startswith("Consistency check failed")  # an OSError of huggingface_hub


def _causes(error: BaseException) -> list[BaseException]:
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain


def _reason(error: Exception, what: str) -> str | None:
    """What to tell the user about ``error``, or None if it has nothing to do with the Hub."""
    chain = _causes(error)
    for e in chain:
        if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
            place = e.filename or constants.HF_HUB_CACHE
            return f"no space left on the disk of {place}; free some, or set HF_HOME to a folder on another disk"
        if isinstance(e, HfHubHTTPError):
            return _http_reason(e, what)
        if isinstance(e, UnicodeEncodeError) and "Bearer" in str(e.object):
            return f"the access token has characters that no token has; {LOGIN}"
        if _is_cut_short(e):
            return f"a download was cut short, try again ({one_line(e, 100)})"
    # huggingface_hub 1.x retries a refused connection with a client that it has closed
    if not any(isinstance(e, UNREACHABLE) or "client has been closed" in str(e) for e in chain):
        return None
    if constants.is_offline_mode():
        return f"HF_HUB_OFFLINE is set, and it is not in the local cache {constants.HF_HUB_CACHE}"
    last = next((e for e in reversed(chain) if isinstance(e, UNREACHABLE)), chain[-1])
    name = type(last).__name__
    verb = "cannot be reached" if name.startswith(("Connect", "Proxy", "Runtime")) else "did not answer as it should"
    return f"the Hub at {constants.ENDPOINT} {verb} ({name}: {one_line(last, 120)})"


def _http_reason(error: HfHubHTTPError, what: str) -> str:
    status = error.response.status_code
    said = f" ({one_line(ValueError(error.server_message), 200)})" if error.server_message else ""
    if isinstance(error, GatedRepoError):
        return f"the repository is gated; ask for access on its page at {constants.ENDPOINT} and then {LOGIN}"
    if isinstance(error, RepositoryNotFoundError):
        named = re.search(r"timm/[\w.-]+", what)
        hint = nearest(named[0], [f"timm/{name}" for name in timm.list_pretrained()]) if named else ""
        return f"no such repository on the Hub{hint}, or it is private: then {LOGIN}"
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such revision"
    if isinstance(error, EntryNotFoundError):
        return f"a timm model has config.json and model.safetensors or pytorch_model.bin ({one_line(error, 200)})"
    if status == 401:
        return f"the Hub wants a valid access token{said}; {LOGIN}"
    if status in (402, 403):
        return f"the access token may not do this{said}; it needs write access to push, else access to the repository"
    if status == 429:
        wait = _retry_after(error.response)
        when = f"in {wait:.0f} s" if wait else "later"
        return f"too many requests, try again {when}; with a token the limit is higher: {LOGIN}"
    if status in (409, 412):
        return f"someone else is changing the repository{said}; try again"
    if status >= 500:
        return f"the Hub at {constants.ENDPOINT} has a server error ({status}), try again later{said}"
    return f"the Hub answered {status}{said or ' ' + one_line(error, 200)}"
