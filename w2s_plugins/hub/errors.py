"""What goes wrong between here and the Hub, in one line: what can be done about it, or the client's own words."""

import logging
import traceback
from collections.abc import Callable
from typing import TypeVar

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

from ..errors import LOGIN, PublicFormatter, UserError, one_line, scrub

_T = TypeVar("_T")

UNREACHABLE = (HTTPError, OfflineModeIsEnabled, LocalEntryNotFoundError, ConnectionError, TimeoutError)
_ADVICE = {  # the first class that fits an answer of the Hub
    GatedRepoError: f"the repository is gated; ask for access on its page at {constants.ENDPOINT} and then {LOGIN}",
    RepositoryNotFoundError: f"no such repository on the Hub, or it is private: then {LOGIN}",
    RevisionNotFoundError: "the repository has no such revision",
    EntryNotFoundError: "a timm model has config.json and model.safetensors or pytorch_model.bin",
}

# lines of the client name the Hub, a password included; what has no handler goes to the last one
for _handler in (*logging.getLogger("huggingface_hub").handlers, logging.lastResort):
    _handler.setFormatter(PublicFormatter())


def on_hub(what: str, call: Callable[[], _T]) -> _T:
    """Return ``call()``, which talks to the Hub; what goes wrong there is a one-line `UserError` beginning with
    ``what``.

    These are errors of huggingface_hub and its HTTP client, and of a file in its cache. All others pass. No message
    contains a token. What may pass, huggingface_hub itself tries again.
    """
    try:
        return call()
    except UserError:
        raise
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        shown = "".join(traceback.format_exception(error))
        # --debug prints the cause as well, unless a secret is in it
        raise UserError(scrub(f"{what}: {reason}")) from (error if scrub(shown) == shown else None)


def check_repo_id(repo_id: str) -> None:
    """Raise a `UserError` unless ``repo_id`` has the form of a Hub id, ``ORG/NAME`` or ``NAME``."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(
            f"not a Hub id: {one_line(ValueError(repr(repo_id)), 120)}; expected ORG/NAME of letters, digits, "
            "'-', '_' and '.', at most 96 each, such as me/my-student") from error


def check_login(repo_id: str, flag: str = "--push-to-hub") -> None:
    """Raise a `UserError` unless ``repo_id`` is a Hub id and there is a token to push with."""
    check_repo_id(repo_id)
    if not get_token():
        raise UserError(f"{flag} needs a token: {LOGIN}")


def _reason(error: BaseException) -> str | None:
    """Return what to tell the user about an error, or None if it has nothing to do with the Hub."""
    if isinstance(error, HfHubHTTPError):
        return _http_reason(error)
    # timm and transformers raise errors of their own, from that of the client
    if error.__cause__ is not None:
        reason = _reason(error.__cause__)
        if reason is not None:
            return reason
    said = one_line(error, 120)
    if isinstance(error, UnicodeEncodeError) and "Bearer" in str(error.object):
        return f"the access token has characters that no token has; {LOGIN}"
    if isinstance(error, OSError) and said.startswith("Consistency check failed"):
        return f"a download was cut short, try again ({said})"
    # huggingface_hub 1.x retries a refused connection with a client that it has closed
    if not isinstance(error, UNREACHABLE) and "client has been closed" not in said:
        return None
    if constants.is_offline_mode():
        return f"HF_HUB_OFFLINE is set, and it is not in the local cache {constants.HF_HUB_CACHE}"
    return f"the Hub at {constants.ENDPOINT} cannot be reached or did not answer ({type(error).__name__}: {said})"


def _http_reason(error: HfHubHTTPError) -> str:
    for kind, advice in _ADVICE.items():
        if isinstance(error, kind):
            return advice
    status = error.response.status_code
    said = one_line(ValueError(error.server_message or str(error)), 200)
    if status == 401:
        return f"the Hub wants a valid access token ({said}); {LOGIN}"
    if status in (402, 403):
        return f"the access token may not do this ({said}); to push it needs write access, else access to read"
    return f"the Hub answered {status}: {said}"
