"""The Hugging Face Hub: clear errors, where weights came from, export, model card, push.

``python -m w2s_plugins.hub push RUN ORG/NAME`` publishes the export of a finished run, without training again.
Tokens come from ``hf auth login`` or ``HF_TOKEN`` only.
"""

import errno
import hashlib
import logging
import os
import re
import shlex
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import SequenceMatcher
from pathlib import Path
from typing import TypeVar
from urllib.error import URLError
from urllib.parse import quote, unquote

import timm
import torch
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    RepoUrl,
    constants,
    get_token,
    scan_cache_dir,
    set_client_factory,
    try_to_load_from_cache,
)
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
from safetensors import SafetensorError, safe_open
from timm.models import parse_model_name, save_for_hf
from timm.models._hub import HF_WEIGHTS_NAME, _get_safe_alternatives, hf_split

from w2s_plugins import __version__
from w2s_plugins.errors import OneLineParser, UserError, holds_login, nearest, one_line, run_main, without_logins
from w2s_plugins.model_card import EVAL_RESULTS, MODEL_ID, eval_results, model_card
from w2s_plugins.plain_files import read_plain

LOGIN = "run `hf auth login` or set HF_TOKEN"
EXPORTED = ("config.json", "model.safetensors")  # what an export is loaded from
HUB_TIMEOUT = 300.0  # seconds; huggingface_hub sets none for its API calls, so a hung server would hang the run
ATTEMPTS = 5  # of what failed for a reason that may pass; the waits between them are 1, 2, 4 and 8 seconds
LONGEST_WAIT = 120.0  # seconds; a Hub that asks for more (Retry-After) is told of in an error

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")
_PASSING = {408, 409, 412, 429}  # statuses that may pass, as those from 500 on
_UNREACHABLE = (HTTPError, OfflineModeIsEnabled, LocalEntryNotFoundError, ConnectionError, TimeoutError, URLError)
_EXPORT = ("config.json", "model.safetensors", "README.md")  # and perhaps EVAL_RESULTS; nothing else is published
_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".npz")
_URL = re.compile(
    r"https?://[^/\s]+/(?:api/models/)?(?P<repo>[\w.-]+(?:/(?!resolve/|revision/)[\w.-]+)?)"
    r"(?:/(?:resolve|revision|tree|preupload|commit|branch)/(?P<revision>[^/?\s]+)(?:/(?P<file>[^?\s]+))?)?"
)
_TOKEN = re.compile(r"\bhf_(?:[A-Za-z0-9]{16,}|(?:oauth|jwt)_[\w.-]+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def holds_token(text: str) -> bool:
    """True when an access token, of the user or of anybody, or a URL with a name or password is in ``text``."""
    return bool(_TOKEN.search(text)) or holds_login(text) or any(secret in text for secret in _secrets())


def _secrets() -> list[str]:
    secrets = [os.environ.get(k, "") for k in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")]
    with suppress(OSError, UnicodeDecodeError):
        secrets.append(Path(constants.HF_TOKEN_PATH).read_text())
    return [s.strip() for s in secrets if len(s.strip()) >= 4]  # a shorter one would garble texts, and is no token


def scrub(text: str) -> str:
    """Remove every access token from ``text``, as well as passwords and signatures in URLs."""
    for secret in _secrets():
        text = text.replace(secret, "***")
    text = without_logins(_TOKEN.sub("hf_***", text))
    return re.sub(r"(https?://)([^?\s]+)(?:\?[^\s'\")]*)?", r"\1\2", text)


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


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, or of all files of a folder in order of their names, as 64 hex digits."""
    digest, path = hashlib.sha256(), Path(path)
    for part in sorted(path.iterdir()) if path.is_dir() else [path]:
        with open(part, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def export_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of what an export is loaded from, by name of the file, for result.json."""
    return {name: file_sha256(folder / name) for name in EXPORTED if (folder / name).is_file()}


def check_export(folder: Path, what: str) -> None:
    """Compare the export of a run with what its result.json says of it; any other folder passes.

    Raises:
        UserError: a file is missing or not the one that was exported, or result.json cannot be read.
    """
    result = folder.parent / "result.json"
    if folder.resolve().name != "export" or not result.is_file():
        return
    try:
        said, found = dict(read_plain(result)["export"]), export_hashes(folder)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{what} {folder}: {result} does not say what was exported ({type(error).__name__}); repeat "
                        "the run's command with --resume auto, which writes both again") from error
    if wrong := sorted(name for name in EXPORTED if said.get(name) != found.get(name)):
        raise UserError(f"{what} {folder / wrong[0]}: damaged: it is not the file that the run exported, its SHA-256 "
                        "is not that in result.json; repeat the run's command with --resume auto, which writes both "
                        "again, or copy the folder elsewhere if you changed it yourself")


def hub_source(model: torch.nn.Module, name: str, revision: str | None = None) -> dict[str, str] | None:
    """Say which file of which commit the pretrained weights of a timm model came from.

    Args:
        model: Model just created by ``timm.create_model(name, pretrained=True)``.
        name: The name it was created by: timm's own, or ``hf-hub:ORG/NAME[@REVISION]``.
        revision: Branch, tag or commit, when not part of ``name``.

    Returns:
        ``{"repo", "revision" (commit hash), "file", "sha256"}``; of weights that timm downloads from elsewhere
        ``{"file" (the address), "sha256"}``; None where nothing is known.

    Raises:
        UserError: The cached file is not the one the Hub announced (large files are stored under their hash).
    """
    kind, model_id = parse_model_name(name)
    cfg = model.pretrained_cfg
    if kind == "local-dir" or (kind is None and (cfg.get("file") or not cfg.get("hf_hub_id"))):
        url = cfg.get("url") if kind is None and not cfg.get("file") else None
        path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url or "").name
        return {"file": url, "sha256": file_sha256(path)} if path.is_file() else None
    repo, pinned = hf_split(model_id if kind else cfg["hf_hub_id"])
    wanted = cfg.get("hf_hub_filename") or HF_WEIGHTS_NAME
    for file in (*_get_safe_alternatives(wanted), wanted):
        path = try_to_load_from_cache(repo, file, revision=revision or pinned)
        if isinstance(path, str):
            break
    else:
        return None
    digest = file_sha256(path)
    blob = os.path.basename(os.readlink(path)) if os.path.islink(path) else ""
    if re.fullmatch("[0-9a-f]{64}", blob) and blob != digest:
        for damaged in (os.path.realpath(path), path):
            Path(damaged).unlink(missing_ok=True)
        raise DamagedDownload(f"{name}: {file} was damaged on its way, its SHA-256 is {digest} and the Hub announced "
                              f"{blob}; the file is removed from the cache, load the model again")
    commit = Path(path).parents[len(Path(file).parts) - 1].name
    return {"repo": repo, "revision": commit, "file": file, "sha256": digest}


def share(path: Path) -> None:
    """Give a file or folder the mode that the user's umask asks for; safetensors and temporary files are private."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def export_model(
        model: torch.nn.Module,
        folder: str | Path,
        data_config: dict,
        record: dict,
        class_names: list[str] | None = None,
) -> None:
    """Write ``folder`` in timm's Hub format: config.json, model.safetensors, README.md, perhaps .eval_results/.

    It is written next to ``folder`` and then renamed, so that an earlier export stays whole until the new one is.

    Args:
        model: timm model, not wrapped.
        folder: Folder to create or replace.
        data_config: Preprocessing of evaluation, as ``timm.data.resolve_data_config`` returns it.
        record: Content of the run's ``result.json``, see `model_card`.
        class_names: Name of each class, for timm's ``label_names``; those of earlier training are left out.

    Raises:
        UserError: The folder cannot be written, or timm cannot load what was written; an earlier export stays then.
    """
    folder = Path(folder)
    new, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("new", "old"))
    # safetensors refuses the strides of channels_last
    hook = model.register_state_dict_post_hook(
        lambda module, state, *_: state.update({k: v.contiguous() for k, v in state.items()}))
    try:
        shutil.rmtree(new, ignore_errors=True)
        earlier = {k: None for k in ("label_names", "label_descriptions") if model.pretrained_cfg.get(k)}
        save_for_hf(model, new, safe_serialization=True, data_config=data_config,
                    model_config=dict(pretrained_cfg=earlier, label_names=class_names))
        (new / "README.md").write_text(scrub(model_card(record)), encoding="utf-8")
        if results := eval_results(record):
            (new / EVAL_RESULTS).parent.mkdir()
            (new / EVAL_RESULTS).write_text(results, encoding="utf-8")
        for file in new.rglob("*"):
            share(file)
        _flush(new)
        _check_loads(model, new, folder, data_config)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except UserError:
        shutil.rmtree(new, ignore_errors=True)
        raise
    except (OSError, SafetensorError) as error:
        shutil.rmtree(new, ignore_errors=True)
        raise UserError(f"cannot write the export {folder}: {one_line(error)}; make room and go on with "
                        "--resume, or choose another output folder and export again") from error
    finally:
        hook.remove()


@torch.inference_mode()
def _check_loads(model: torch.nn.Module, export: Path, name: Path, data_config: dict) -> None:
    """Load an export as timm does, into a fresh model, and compare weights, and logits of two images, with the model's.

    Raises:
        UserError: timm cannot load it, or loads something else.
    """
    refused = (f"{name}: not exported: %s; the checkpoints of the run are kept. A student that a plugin wraps has to "
               "be unwrapped by it, or be registered as an architecture of its own")
    try:
        fresh = timm.create_model(f"local-dir:{export}", pretrained=True)
    except Exception as error:  # each architecture refuses in its own way what does not fit it
        raise UserError(refused % f"timm cannot load it again ({one_line(error, 200)})") from error
    own, loaded = model.state_dict(), fresh.state_dict()
    odd = sorted(key for key in own.keys() | loaded.keys() if key not in own or key not in loaded
                 or not torch.equal(own[key].float().cpu(), loaded[key].float().cpu()))
    if odd:
        raise UserError(refused % f"timm loads other weights from it ({len(odd)} tensors differ, first {odd[0]})")
    some, training = next(model.parameters()), model.training
    size = (data_config or model.pretrained_cfg)["input_size"]
    images = torch.randn(2, *size, generator=torch.Generator().manual_seed(0)).to(some.device, some.dtype)
    ours, theirs = (m.eval()(images).float() for m in (model, fresh.to(some.device, some.dtype)))
    model.train(training)
    near = 0.01 if some.dtype == torch.float32 else 0.05  # what memory format and units of the device change
    reach = near * ours.abs().nan_to_num(0, 0, 0).max().item()
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=near, atol=reach, equal_nan=True):
        raise UserError(refused % "timm's model of it gives other logits")


def push_export(
        folder: str | Path,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
) -> str:
    """Publish an export as one commit, with the final id in its card; the folder itself is only read.

    Only what `export_model` writes is published, and no link: what else lies there may be anything.

    Args:
        folder: What `export_model` wrote.
        repo_id: ``ORG/NAME``; created when missing.
        private: Create it private; an existing public repository is then refused.
        revision: Branch to push to, created when missing.
        commit_message: First line of the commit.

    Returns:
        Address of the published model.

    Raises:
        UserError: The export is incomplete, or the push failed; it can be repeated.
    """
    folder = Path(folder)
    check_repo_id(repo_id)
    for path in (folder / n for n in (*_EXPORT, EVAL_RESULTS, Path(EVAL_RESULTS).parent)):
        if path.is_symlink():
            raise UserError(f"{path} is a link, which is not published; expected what the training run wrote: export "
                            "again, or put the file itself there")
    if missing := [n for n in _EXPORT if not (folder / n).is_file()]:
        raise UserError(f"no complete export in {folder} ({', '.join(missing)} missing); finish the training run, it "
                        "writes RUN/export at its end")
    if revision and _COMMIT.fullmatch(revision):
        raise UserError(f"cannot push to the commit {revision}; expected the name of a branch, such as main")
    check_export(folder, f"push to {repo_id}:")
    try:
        with safe_open(folder / "model.safetensors", framework="pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise UserError(f"push to {repo_id}: {folder / 'model.safetensors'}: truncated or damaged ({one_line(error)}); "
                        "it is not published") from error
    try:
        return on_hub(f"push to {repo_id}", lambda: _push(
            folder, repo_id, private, revision, commit_message or "Upload model"))
    except UserError as error:
        run = folder.parent if folder.name == "export" else folder
        command = ["python", "-m", "w2s_plugins.hub", "push", str(run), repo_id]
        command += ["--private"] * bool(private) + (["--revision", revision] if revision else [])
        raise UserError(f"{error}; {folder} is as it was, repeat with: {shlex.join(command)}") from error.__cause__


def push_folder(
        folder: Path,
        repo_id: str,
        path_in_repo: str,
        patterns: Sequence[str],
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str,
) -> str:
    """Publish the files of a folder in a folder of a repository as one commit; what else is there stays.

    Args:
        folder: with the files.
        repo_id: ``ORG/NAME``; created when missing.
        path_in_repo: folder there; files of an earlier upload that are no longer there are deleted.
        patterns: which files, such as ``table.*``; others that lie in the folder stay here.
        private: Create it private; an existing public repository is then refused.
        revision: Branch to push to, created when missing.
        commit_message: First line of the commit.

    Returns:
        Address of the folder.

    Raises:
        UserError: the push failed; it can be repeated.
    """
    def upload() -> RepoUrl:
        api, url = _prepare(repo_id, private, revision)
        api.upload_folder(repo_id=url.repo_id, folder_path=folder, path_in_repo=path_in_repo, revision=revision,
                          commit_message=commit_message, delete_patterns="*", allow_patterns=list(patterns))
        return url

    url = on_hub(f"push to {repo_id}", upload)
    return scrub(f"{url}/tree/{quote(revision or 'main', safe='')}/{path_in_repo}")


def main() -> None:
    """Command line: ``python -m w2s_plugins.hub push RUN ORG/NAME``."""
    parser = OneLineParser(prog="python -m w2s_plugins.hub", description="Publish models on the Hugging Face Hub.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    push = commands.add_parser("push", help="publish the export of a run")
    push.add_argument("run", metavar="RUN", type=Path, help="run folder (its export/ is published)")
    push.add_argument("repo_id", metavar="ORG/NAME", help="repository, created when missing")
    push.add_argument("--private", action="store_true", default=None, help="create the repository private")
    push.add_argument("--revision", metavar="R", help="branch to push to, created when missing (default: main)")
    push.add_argument("--commit-message", metavar="M", help="first line of the commit")
    push.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    if not args.run.is_dir():
        siblings = [str(p) for p in args.run.parent.glob("*") if p.is_dir()]
        raise UserError(f"no run folder {args.run}{nearest(str(args.run), siblings)}")
    print(push_export(args.run / "export", args.repo_id, private=args.private, revision=args.revision,
                      commit_message=args.commit_message))


class DamagedDownload(UserError):
    """A file whose bytes are not those that the Hub announced. It is no longer in the cache."""


def _prepare(repo_id: str, private: bool | None, revision: str | None) -> tuple[HfApi, RepoUrl]:
    """Create the repository and the branch where they are missing; return the client and the repository's address."""
    api = HfApi(library_name="w2s_plugins", library_version=__version__)
    url = api.create_repo(repo_id, private=private, exist_ok=True)
    repo_id = url.repo_id  # with the user's name, where it was left out
    if private and not api.repo_info(repo_id).private:
        raise UserError(f"push to {repo_id}: the repository exists and is public; make it private on its settings "
                        "page, or choose another name")
    if revision and revision != "main" and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return api, url


def _push(folder: Path, repo_id: str, private: bool | None, revision: str | None, message: str) -> str:
    api, url = _prepare(repo_id, private, revision)
    repo_id = url.repo_id
    card = (folder / "README.md").read_text(encoding="utf-8")
    card = card.replace(MODEL_ID, f"hf-hub:{repo_id}@{revision}" if revision else f"hf-hub:{repo_id}")
    operations = [CommitOperationAdd("README.md", card.encode())]
    for name in (*_EXPORT, EVAL_RESULTS):
        if name != "README.md" and (folder / name).is_file():
            operations.append(CommitOperationAdd(name, str(folder / name)))
    if not (folder / EVAL_RESULTS).exists() and api.file_exists(repo_id, EVAL_RESULTS, revision=revision):
        operations.append(CommitOperationDelete(EVAL_RESULTS))  # results of an earlier model
    api.create_commit(repo_id, operations, commit_message=message, revision=revision)
    return scrub(f"{url}/tree/{quote(revision, safe='')}" if revision else str(url))


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


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


if __name__ == "__main__":
    run_main(main, "w2s_plugins.hub")
