"""What goes wrong between here and the Hub, in one line: what can be done about it, or the client's own words."""

import logging
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # of the HTTP library that this version of the client has
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session, validate_repo_id

from ..errors import LOGIN, PublicFormatter, UserError, one_line, scrub

_T = TypeVar("_T")

UNREACHABLE = (
    HTTPError,
    OfflineModeIsEnabled,
    LocalEntryNotFoundError,
    ConnectionError,
    TimeoutError,
)
# errors of other types that the client raises for a connection or a download that broke off
_BROKEN_OFF = ("client has been closed", "Consistency check failed")

# lines of the client name the Hub, a password included; what has no handler goes to the last one
for _handler in (*logging.getLogger("huggingface_hub").handlers, logging.lastResort):
    if _handler is not None:
        _handler.setFormatter(PublicFormatter())


def on_hub(what: str, call: Callable[[], _T], needed: bool = False, instead: str = "") -> _T:
    """Return ``call()``, which talks to the Hub; what goes wrong there is a one-line `UserError`.

    Errors of huggingface_hub and its HTTP client are meant; all others pass. No message contains a token.

    Args:
        what: begins the message.
        call: what is done.
        needed: it asks the Hub, unless that is in the cache. One request shows first whether the Hub is there, within
            ``HF_HUB_ETAG_TIMEOUT``. By itself the client tries each file six times, which takes minutes; and it waits
            without end for an answer about a repository or a login, for these requests have no timeout.
        instead: ends the message where the Hub cannot be reached.
    """
    # Of a Hub that does not answer the cache alone is taken, which the client does when it is offline.
    was_offline = constants.HF_HUB_OFFLINE
    silent = None
    if needed:
        try:
            get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except UNREACHABLE as error:
            silent = error
            constants.HF_HUB_OFFLINE = True
    try:
        try:
            return call()
        finally:
            constants.HF_HUB_OFFLINE = was_offline
    except UserError:
        raise
    except Exception as error:
        # timm and transformers raise errors of their own, from that of the client; best is what the Hub has answered
        chain: list[BaseException] = [error]
        while chain[-1].__cause__ is not None:
            chain.append(chain[-1].__cause__)
        answers = [cause for cause in chain if isinstance(cause, HfHubHTTPError)]
        causes = answers or [cause for cause in chain if _is_broken_off(cause)]
        if not causes:
            raise
        raise UserError(scrub(f"{what}: {_explain(silent or causes[0], instead)}")) from error


def _is_broken_off(error: BaseException) -> bool:
    """True for a Hub that is out of reach, or a connection that broke off."""
    return isinstance(error, UNREACHABLE) or any(words in str(error) for words in _BROKEN_OFF)


def _explain(error: BaseException, instead: str) -> str:
    # what a user can put right is said in our words
    if isinstance(error, GatedRepoError):
        return f"the repository is gated; ask for access on its page at {constants.ENDPOINT} and then {LOGIN}"
    if isinstance(error, RepositoryNotFoundError):
        return f"no such repository on the Hub, or it is private: then {LOGIN}"
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such revision"
    # nobody has answered
    if not isinstance(error, HfHubHTTPError):
        offline = " (HF_HUB_OFFLINE is set)" if constants.is_offline_mode() else ""
        return (
            f"the Hub at {constants.ENDPOINT} cannot be reached or did not answer{offline}: "
            f"{one_line(error)}{instead}"
        )
    # what the Hub has answered, in its own words
    remedy = ""
    if error.response.status_code in (401, 402, 403):
        remedy = f"; the access token may not do this: {LOGIN}"
    return f"the Hub says: {one_line(error)}{remedy}"


def valid_id(repo: str) -> str:
    """Return what has the form of a Hub id, ``NAME`` or ``ORG/NAME``; nothing of anything else."""
    try:
        validate_repo_id(repo)
    except HFValidationError:
        return ""
    return repo


def check_repo_id(repo_id: str) -> None:
    """Raise a `UserError` unless ``repo_id`` has the form of a Hub id, ``ORG/NAME``."""
    if "/" not in valid_id(repo_id):
        raise UserError(
            f"not a Hub id: {one_line(ValueError(repr(repo_id)), 120)}; expected ORG/NAME of letters, digits, '-', "
            "'_' and '.', at most 96 each, such as me/my-student"
        )


def check_login(repo_id: str, dry_run: bool = False) -> None:
    """Raise a `UserError` unless ``repo_id`` is a Hub id and, but for a dry run, the Hub knows the token to push with."""
    # Before a training of hours, so that it does not end with a refusal.
    check_repo_id(repo_id)
    if dry_run:
        return
    if not get_token():
        raise UserError(f"push to {repo_id}: needs a token: {LOGIN}")
    on_hub(f"push to {repo_id}", HfApi().whoami, needed=True)
