"""What goes wrong between here and the Hub, in one line."""

import errno
import logging
import re
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import SequenceMatcher
from typing import TypeVar
from urllib.error import URLError
from urllib.parse import unquote

import timm
import torch
from huggingface_hub import HfApi, constants, get_token, scan_cache_dir, set_client_factory
from huggingface_hub.errors import (
    CacheNotFound,
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

from w2s_plugins.errors import UserError, nearest, one_line

from ..tokens import LOGIN, scrub

_logger = logging.getLogger(__name__)


HUB_TIMEOUT = 300.0  # seconds; huggingface_hub sets none for its API calls, so a hung server would hang the run


ATTEMPTS = 5  # of what failed for a reason that may pass; the waits between them are 1, 2, 4 and 8 seconds


LONGEST_WAIT = 120.0  # seconds; a Hub that asks for more (Retry-After) is told of in an error


_T = TypeVar("_T")


_PASSING = {408, 409, 412, 429}  # statuses that may pass, as those from 500 on


_UNREACHABLE = (HTTPError, OfflineModeIsEnabled, LocalEntryNotFoundError, ConnectionError, TimeoutError, URLError)


_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".npz")


_URL = re.compile(
    r"https?://[^/\s]+/(?:api/models/)?(?P<repo>[\w.-]+(?:/(?!resolve/|revision/)[\w.-]+)?)"
    r"(?:/(?:resolve|revision|tree|preupload|commit|branch)/(?P<revision>[^/?\s]+)(?:/(?P<file>[^?\s]+))?)?"
)


def _make_public(record: logging.LogRecord) -> bool:
    """Leave secrets out of a line of the log: the client's own name the address of the Hub, password included."""
    record.msg, record.args = scrub(record.getMessage()), ()
    if record.exc_info:
        record.exc_text = scrub("".join(traceback.format_exception(*record.exc_info)))
    return True


# handlers, since the filter of a logger is not asked about lines of loggers below it; what has none goes to the last
for _handler in (*logging.getLogger("huggingface_hub").handlers, logging.lastResort):
    _handler.addFilter(_make_public)


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn whatever goes wrong between here and the Hub into a one-line `UserError` that starts with ``what``.

    Covers huggingface_hub, its HTTP client, and timm's ``create_model`` on top of them: ids, revisions and files that
    do not exist, gated and private repositories, refused tokens, rate limits, server errors, an unreachable Hub (the
    message lists the models in the local cache, nearest id first), a full disk, and repositories that hold no timm
    model. All other exceptions pass. No message contains a token.
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

    huggingface_hub repeats single requests itself: look-ups of files (5 times at 429, server errors and where the Hub
    is out of reach), uploads of files (5 times at 429 and server errors), downloads that break off (5 times) or meet
    429. It does not repeat what makes or commits to a repository, a download that meets a server error, or anything
    whose bytes turn out to be wrong; this function does, up to `ATTEMPTS` times, but not after a time-out. An attempt
    starts from the same random state of torch as the first, so that a run does not depend on the network.

    Args:
        what: Start of every message.
        call: May be called several times.

    Raises:
        UserError: as `hub_errors`.
    """
    random_state = torch.get_rng_state()
    with hub_errors(what):
        for number in range(1, ATTEMPTS):
            set_client_factory(_create_client)
            try:
                return call()
            except Exception as error:
                wait = _retry_wait(error, 2.0 ** (number - 1))
                if wait is None:
                    raise
                reason = str(error) if isinstance(error, UserError) else _reason(error, what)
                _logger.warning(scrub(f"{what}: {reason}; trying again in {wait:g} s ({number} of {ATTEMPTS - 1})"))
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


def check_login(repo_id: str) -> None:
    """Raise a `UserError` unless ``repo_id`` is a Hub id and there is a token to push with."""
    check_repo_id(repo_id)
    if not get_token():
        raise UserError(f"--push-to-hub needs a token: {LOGIN}")


class DamagedDownload(UserError):
    """A file whose bytes are not those that the Hub announced. It is no longer in the cache."""


def _create_client() -> object:
    """huggingface_hub's client, with an end to every wait."""
    client = default_client_factory()
    client.timeout = HUB_TIMEOUT
    client.event_hooks = {**client.event_hooks, "response": [_refuse_long_wait]}
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
    broken = any(isinstance(e, (HTTPError, ConnectionError, DamagedDownload))
                 or str(e).startswith("Consistency check failed") for e in chain)
    return usual if broken else None


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
            return _http_reason(e)
        if isinstance(e, UnicodeEncodeError) and "Bearer" in str(e.object):
            return f"the access token has characters that no token has; {LOGIN}"
    # huggingface_hub 1.x retries a refused connection with a client that it has closed
    if any(isinstance(e, _UNREACHABLE) or "client has been closed" in str(e) for e in chain):
        return _unreachable_reason(chain, what)
    return _loader_reason(error)


def _http_reason(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    url = _URL.match(_url(error))
    repo, revision, file = (unquote(part or "") for part in url.groups()) if url else ("", "", "")
    if isinstance(error, GatedRepoError):
        return f"{repo} is gated; ask for access at {constants.ENDPOINT}/{repo} and then {LOGIN}"
    if isinstance(error, RepositoryNotFoundError):
        known = _cached_models() + (["timm/" + m for m in timm.list_pretrained()] if repo.startswith("timm/") else [])
        others = [name for name in known if name != repo]
        return f"no repository {repo} on the Hub{nearest(repo, others)}, or it is private: then {LOGIN}"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no revision {revision!r}{nearest(revision, _revisions(repo))}"
    if isinstance(error, EntryNotFoundError):
        timm_files = "; a timm model has config.json and model.safetensors or pytorch_model.bin"
        return f"{repo} has no file {file} at revision {revision}{timm_files}"
    said = f" ({one_line(ValueError(error.server_message), 200)})" if error.server_message else ""
    if status == 401:
        return f"the Hub wants a valid access token{said}; {LOGIN}"
    if status in (402, 403):
        return f"the access token may not do this{said}; it needs write access to push, else access to {repo or 'it'}"
    if status == 429:
        seconds = error.response.headers.get("Retry-After", "")
        when = f"in {seconds} s" if seconds.isdigit() else "later"
        return f"too many requests, try again {when}; with a token the limit is higher: {LOGIN}"
    if status in (409, 412):
        return f"someone else is changing the repository{said}; try again"
    if status >= 500:
        return f"the Hub at {constants.ENDPOINT} has a server error ({status}), try again later{said}"
    return f"the Hub answered {status}{said or ' ' + one_line(error, 200)}"


def _unreachable_reason(chain: list[BaseException], what: str) -> str:
    last = next((e for e in reversed(chain) if isinstance(e, _UNREACHABLE)), chain[-1])
    if constants.is_offline_mode():
        reason = "HF_HUB_OFFLINE is set"
    else:
        name = type(last).__name__
        refused = name.startswith(("Connect", "Proxy", "URL", "Runtime"))
        verb = "cannot be reached" if refused else "did not answer as it should"
        reason = f"the Hub at {constants.ENDPOINT} {verb} ({name}: {one_line(last, 120)})"
    url = next(filter(None, map(_url, chain)), "")
    if "/api/" in url:  # nothing that a cache could answer
        return reason
    repo = _URL.match(url)
    wanted = (repo["repo"] if repo else what).lower()
    cached = sorted(_cached_models(), key=lambda m: (-SequenceMatcher(None, m.lower(), wanted).ratio(), m))
    if not cached:
        return f"{reason}, and no model is in the local cache {constants.HF_HUB_CACHE}"
    more = f" and {len(cached) - 5} more" if len(cached) > 5 else ""
    return f"{reason}, and the local cache has only {', '.join(cached[:5])}{more}"


def _loader_reason(error: Exception) -> str | None:
    """Errors of timm and huggingface_hub without a type of their own are told by the functions they came through."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = {str(frame.f_globals.get("__name__")).split(".")[0] for frame in frames}
    functions = {f.f_code.co_name for f in frames if str(f.f_globals.get("__name__")).startswith("timm.")}
    text = one_line(error, 160)
    if text.startswith("Consistency check failed"):
        return f"a download was cut short, try again ({one_line(error, 100)})"
    if "huggingface_hub" in modules:
        return text if isinstance(error, OSError) else f"{type(error).__name__}: {text}"
    if unknown := re.fullmatch(r"Unknown model \((.*)\)", str(error), re.DOTALL):
        hint = nearest(unknown[1], timm.list_models())
        return f"timm {timm.__version__} has no architecture {unknown[1]!r}{hint}"
    if "hf_split" in functions:
        return "expected at most one @, before the revision"
    bad_fields = "resolve_pretrained_cfg" in functions and isinstance(error, TypeError)
    if bad_fields or "load_model_config_from_hf" in functions:
        return f"not a timm model: its config.json lacks timm's fields ({type(error).__name__}: {text})"
    if "load_state_dict_from_hf" in functions:
        return f"its weights cannot be read ({type(error).__name__}: {text})"
    return None


def _url(error: BaseException) -> str:
    if isinstance(error, HfHubHTTPError):
        return str(error.response.request.url)
    try:
        return str(error.request.url)
    except (AttributeError, RuntimeError):  # an httpx error that never had a request raises RuntimeError
        found = re.search(r"https?://\S+", str(error))
        return found[0] if found else ""


def _cached_models() -> list[str]:
    """Ids of the models whose weights are in the local cache, with ``@COMMIT`` where no branch main points to them."""
    try:
        repos = [r for r in scan_cache_dir().repos if r.repo_type == "model"]
    except (CacheNotFound, ValueError, OSError):
        return []
    models = []
    for repo in repos:
        whole = [r for r in repo.revisions if any(f.file_name.endswith(_WEIGHTS) for f in r.files)]
        if any("main" in r.refs for r in whole):
            models.append(repo.repo_id)
        else:
            models += [f"{repo.repo_id}@{r.commit_hash}" for r in whole]
    return models


def _revisions(repo: str) -> list[str]:
    try:
        refs = HfApi().list_repo_refs(repo)
    except Exception:  # only a hint is lost
        return []
    return [ref.name for ref in (*refs.branches, *refs.tags)]
