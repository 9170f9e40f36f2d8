"""Publish files on the Hub as one commit: the export of a run, or labels."""

import io
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from ..errors import UserError, holds_access_token, holds_login, holds_token, one_line, scrub, typed
from ..files import open_regular
from ..version import __version__
from .client import check_repo_id, on_hub
from .export import check_export
from .model_card import MODEL_ID, with_license

PUBLISHED = ("config.json", "model.safetensors", "README.md")  # of an export; nothing else goes
# bytes of a file that are looked through at once, and of a token at most
BLOCK, LONGEST_SECRET = 2**24, 2**12


def push_export(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
    license: str | None = None,
    dry_run: bool = False,
) -> str:
    """Publish an export, with its id in its card; the folder is only read.

    Only what `export_model` writes is published, and no link: what else lies there may be anything.

    Args:
        folder: what `export_model` wrote.
        repo_id: ``ORG/NAME``; created when missing.
        private: as for `push_files`.
        revision: as for `push_files`.
        commit_message: first line of the commit.
        license: in place of the one that the card names, if any.
        dry_run: as for `push_files`.

    Returns:
        Address of the published model.

    Raises:
        UserError: the export is incomplete, or the push failed; it can be repeated.
    """
    check_repo_id(repo_id)
    # a whole export, without links, which might lead to anything on this machine
    for name in PUBLISHED:
        if (folder / name).is_symlink():
            raise UserError(
                f"{folder / name} is a link, which is not published; put the file itself there"
            )
        if not (folder / name).is_file():
            raise UserError(
                f"no complete export in {folder}: {name} is missing; a training run writes RUN/export at "
                "its end"
            )
    check_export(folder, f"push to {repo_id}:")
    # the card names the repository
    readme = folder / "README.md"
    try:
        card = readme.read_text(encoding="utf-8")
        model_id = f"hf-hub:{repo_id}@{revision}" if revision else f"hf-hub:{repo_id}"
        card = card.replace(MODEL_ID, model_id)
        if license:
            card = with_license(card, license)
    except (ValueError, yaml.YAMLError) as error:  # a text that somebody has edited
        raise UserError(
            f"{readme}: is no model card ({one_line(error, 100)}); put it right, or have it written anew "
            f"by {typed('hub')} card"
        ) from error
    contents = {**{name: folder / name for name in PUBLISHED}, "README.md": card.encode()}

    try:
        return push_files(
            contents,
            repo_id,
            private=private,
            revision=revision,
            commit_message=commit_message or "Upload model",
            dry_run=dry_run,
        )
    except UserError as error:
        raise UserError(
            f"{error}; {folder} is as it was and can be pushed again ({typed('hub')} push)"
        ) from error


def _check_public(name: str, content: Path | bytes) -> None:
    """Raise a `UserError` for a file with an access token in it, or a text with a password in a URL."""
    path = "" if isinstance(content, bytes) else f" ({content})"
    before = b""
    with io.BytesIO(content) if isinstance(content, bytes) else open_regular(content) as file:
        while block := file.read(BLOCK):
            # what lies across the end of a block is seen with the next one; bytes of weights look like anything
            text = (before + block).decode("utf-8", "replace")
            if holds_access_token(text) or (b"\0" not in block and holds_login(text)):
                raise UserError(
                    f"{name}{path} holds an access token, or a name or password in a URL; nothing was "
                    "sent: take it out of this file"
                )
            before = block[-LONGEST_SECRET:]


def push_files(
    contents: Mapping[str, Path | bytes],
    repo_id: str,
    *,
    replaces: Callable[[Sequence[str]], Iterable[str]] = lambda names: (),
    kind: str = "model",
    private: bool = False,
    revision: str | None = None,
    commit_message: str,
    dry_run: bool = False,
) -> str:
    """Publish files as one commit of a repository; whatever is published passes here, and none of it holds a token.

    Args:
        contents: by their path there.
        repo_id: ``ORG/NAME``; created when missing.
        replaces: returns which of the files that are there belong to an earlier push, and are deleted if they are not
            written anew; may refuse them.
        kind: ``model`` or ``dataset``.
        private: create it private; an existing public repository is then refused.
        revision: branch to push to, created when missing.
        commit_message: first line of the commit.
        dry_run: write them into a new folder in place of the Hub, which is not asked.

    Returns:
        Address of the repository, or of the branch; of a dry run where its folder is.

    Raises:
        UserError: something of it holds an access token, or the push failed; it can be repeated.
    """
    # What is on the Hub once is read within minutes, and stays in its history: it is looked through before.
    for text in (repo_id, revision or "", commit_message):
        if holds_token(text):
            raise UserError(
                f"push to {repo_id}: the commit's message, the repository or the branch is called by an "
                "access token or a password; nothing was sent: leave it out"
            )
    for name, content in contents.items():
        _check_public(name, content)
    if dry_run:
        # copies, to be looked at: a link would lead to what may change meanwhile
        folder = Path(tempfile.mkdtemp(prefix=f"{repo_id.replace('/', '--')}-"))
        for name, content in contents.items():
            (folder / name).write_bytes(
                content if isinstance(content, bytes) else content.read_bytes()
            )
        return f"{folder}: what would be pushed to {repo_id}; nothing was sent"
    api = HfApi(library_name="w2s_plugins", library_version=__version__)

    def push() -> str:
        # the repository and the branch are made where they are missing
        url = api.create_repo(repo_id, private=private or None, exist_ok=True, repo_type=kind)
        if private and not api.repo_info(repo_id, repo_type=kind).private:
            raise UserError(
                f"push to {repo_id}: the repository exists and is public; make it private on its settings "
                "page, or choose another name"
            )
        if revision and revision != "main":
            api.create_branch(repo_id, branch=revision, exist_ok=True, repo_type=kind)
        # what an earlier push has left there goes in the same commit
        stale = {*replaces(api.list_repo_files(repo_id, revision=revision, repo_type=kind))} - {
            *contents
        }
        operations = [
            *(CommitOperationAdd(name, content) for name, content in contents.items()),
            *(CommitOperationDelete(name) for name in sorted(stale)),
        ]
        api.create_commit(
            repo_id, operations, commit_message=commit_message, revision=revision, repo_type=kind
        )
        return scrub(f"{url}/tree/{quote(revision, safe='')}" if revision else str(url))

    return on_hub(f"push to {repo_id}", push, needed=True)
