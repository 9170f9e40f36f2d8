"""What goes wrong between here and the Hub, in one line: what can be done about it, or the client's own words."""

import logging
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import timm
from huggingface_hub import constants, get_token
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
from huggingface_hub.utils import validate_repo_id

from ..errors import UserError, nearest, one_line
from ..tokens import LOGIN, PublicFormatter, scrub

_T = TypeVar("_T")

UNREACHABLE = (HTTPError, OfflineModeIsEnabled, LocalEntryNotFoundError, ConnectionError, TimeoutError)

# lines of the client name the Hub, a password included; what has no handler goes to the last one
for _handler in (*logging.getLogger("huggingface_hub").handlers, logging.lastResort):
    _handler.setFormatter(PublicFormatter())


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn whatever goes wrong between here and the Hub into a one-line `UserError` that starts with ``what``.

    These are errors of huggingface_hub and its HTTP client, and of a file in its cache. All others pass. No message
    contains a token.
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
    """Return ``call()``, which talks to the Hub; its errors are those of `hub_errors`. What may pass, huggingface_hub
    itself tries again.
    """
    with hub_errors(what):
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


class DamagedDownload(UserError):
    """A file whose bytes are not those that the Hub announced. It is no longer in the cache."""


def _causes(error: BaseException) -> list[BaseException]:
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain


def _reason(error: Exception, what: str) -> str | None:
    """What to tell the user about ``error``, or None if it has nothing to do with the Hub."""
    chain = _causes(error)
    for cause in chain:
        if isinstance(cause, HfHubHTTPError):
            return _http_reason(cause, what)
        if isinstance(cause, UnicodeEncodeError) and "Bearer" in str(cause.object):
            return f"the access token has characters that no token has; {LOGIN}"
        if isinstance(cause, OSError) and str(cause).startswith("Consistency check failed"):
            return f"a download was cut short, try again ({one_line(cause, 100)})"
    # huggingface_hub 1.x retries a refused connection with a client that it has closed
    last = next((cause for cause in reversed(chain) if isinstance(cause, UNREACHABLE)), None)
    if last is None and not any("client has been closed" in str(cause) for cause in chain):
        return None
    if constants.is_offline_mode():
        return f"HF_HUB_OFFLINE is set, and it is not in the local cache {constants.HF_HUB_CACHE}"
    last = last or chain[-1]
    said = f"{type(last).__name__}: {one_line(last, 120)}"
    return f"the Hub at {constants.ENDPOINT} cannot be reached or did not answer ({said})"


def _http_reason(error: HfHubHTTPError, what: str) -> str:
    status = error.response.status_code
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
    said = one_line(ValueError(error.server_message or str(error)), 200)
    if status == 401:
        return f"the Hub wants a valid access token ({said}); {LOGIN}"
    if status in (402, 403):
        return f"the access token may not do this ({said}); to push it needs write access, else access to read"
    return f"the Hub answered {status}: {said}"
