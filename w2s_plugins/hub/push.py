"""Publish the export of a run, a folder, or a dataset on the Hub."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoUrl
from safetensors import SafetensorError, safe_open

from .. import __version__
from ..errors import UserError, name_runs, one_line, scrub
from ..files import read_plain
from .card import MODEL_ID, with_license
from .errors import check_repo_id, on_hub
from .export import check_export
from .figure import FIGURE, draw_figure, with_figure
from .source import _COMMIT

_EXPORT = ("config.json", "model.safetensors", "README.md")  # and perhaps a figure; nothing else goes
_STALE = (FIGURE, ".eval_results/w2s_plugins.yaml")  # of an earlier model, the second by an earlier version


def push_export(
        folder: str | Path,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        license: str | None = None,
) -> str:
    """Publish an export as one commit, with the final id in its card and a figure of its run; the folder is only read.

    Only what `export_model` writes is published, and no link: what else lies there may be anything.

    Args:
        folder: What `export_model` wrote.
        repo_id: ``ORG/NAME``; created when missing.
        private: Create it private; an existing public repository is then refused.
        revision: Branch to push to, created when missing.
        commit_message: First line of the commit.
        license: In place of the one that the card names, if any.

    Returns:
        Address of the published model.

    Raises:
        UserError: The export is incomplete, or the push failed; it can be repeated.
    """
    folder = Path(folder)
    check_repo_id(repo_id)
    _check_complete(folder, repo_id)

    def contents(full_id: str) -> dict[str, Path | bytes]:
        found: dict[str, Path | bytes] = {name: folder / name for name in _EXPORT}
        card = (folder / "README.md").read_text(encoding="utf-8")
        card = card.replace(MODEL_ID, f"hf-hub:{full_id}@{revision}" if revision else f"hf-hub:{full_id}")
        card = with_license(card, license) if license else card
        result = folder.parent / "result.json"  # that the export is of this run was looked at
        drawn = draw_figure(read_plain(result)) if folder.resolve().name == "export" and result.is_file() else None
        if drawn is not None:
            found[FIGURE], words = drawn
            card = with_figure(card, words)
        return {**found, "README.md": card.encode()}

    try:
        return _push("model", repo_id, contents, lambda names: [name for name in names if name in _STALE],
                     private, revision, commit_message or "Upload model")
    except UserError as error:
        run = folder.parent if folder.name == "export" else folder
        more = ["--hub-license", license] if license else []
        raise UserError(f"{error}; {folder} is as it was, repeat with: "
                        f"{push_command('hub', run, repo_id, private, revision, *more)}") from error.__cause__


def _check_complete(folder: Path, repo_id: str) -> None:
    """Raise a `UserError` unless a folder has a whole export, without links."""
    linked = next((folder / name for name in _EXPORT if (folder / name).is_symlink()), None)
    if linked is not None:
        raise UserError(f"{linked} is a link, which is not published; put the file itself there, or export again")
    missing = [name for name in _EXPORT if not (folder / name).is_file()]
    if missing:
        hint = name_runs(folder.parent) or "; finish the training run, it writes RUN/export at its end"
        raise UserError(f"no complete export in {folder} ({', '.join(missing)} missing){hint}")
    check_export(folder, f"push to {repo_id}:")
    try:
        with safe_open(folder / "model.safetensors", framework="pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise UserError(f"push to {repo_id}: {folder / 'model.safetensors'}: truncated or damaged ({one_line(error)}); "
                        "it is not published") from error


def push_command(
        module: str, path: Path, repo_id: str, private: bool | None, revision: str | None, *more: str) -> str:
    """Return the command that pushes again what could not be pushed."""
    command = ["python", "-m", f"w2s_plugins.{module}", "push", str(path), repo_id]
    if private:
        command.append("--private")
    if revision:
        command += ["--revision", revision]
    return shlex.join([*command, *more])


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
        api, url = _prepare(repo_id, private, revision, "model")
        api.upload_folder(repo_id=url.repo_id, folder_path=folder, path_in_repo=path_in_repo, revision=revision,
                          commit_message=commit_message, delete_patterns="*", allow_patterns=list(patterns))
        return url

    url = on_hub(f"push to {repo_id}", upload)
    return scrub(f"{url}/tree/{quote(revision or 'main', safe='')}/{path_in_repo}")


def push_files(
        kind: str,
        files: Sequence[Path],
        card: Callable[[str], str],
        repo_id: str,
        *,
        replaces: Callable[[Sequence[str]], Sequence[str]],
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str,
) -> str:
    """Publish files as one commit of a repository, at its top.

    Args:
        kind: ``dataset`` or ``space``.
        files: what is published beside the card.
        card: makes the card of the id of the repository.
        repo_id: ``ORG/NAME``; created when missing.
        replaces: returns which of the files that are there go, where they are not written anew; may refuse them.
        private: create it private; an existing public repository is then refused.
        revision: branch to push to, created when missing.
        commit_message: first line of the commit.

    Returns:
        Address of the repository.

    Raises:
        UserError: the push failed; it can be repeated.
    """
    def contents(full_id: str) -> dict[str, Path | bytes]:
        return {"README.md": card(full_id).encode(), **{file.name: file for file in files}}

    return _push(kind, repo_id, contents, replaces, private, revision, commit_message)


def _push(
        kind: str,
        repo_id: str,
        contents: Callable[[str], Mapping[str, Path | bytes]],
        replaces: Callable[[Sequence[str]], Sequence[str]],
        private: bool | None,
        revision: str | None,
        message: str,
) -> str:
    """Publish what ``contents`` returns for the full id as one commit; arguments as for `push_files`."""
    if revision and _COMMIT.fullmatch(revision):
        raise UserError(f"cannot push to the commit {revision}; expected the name of a branch, such as main")

    def commit() -> str:
        api, url = _prepare(repo_id, private, revision, kind)
        # what an earlier push has left there goes in the same commit
        old = replaces(api.list_repo_files(url.repo_id, revision=revision, repo_type=kind))
        new = contents(url.repo_id)
        operations = [
            *(CommitOperationAdd(name, content) for name, content in new.items()),
            *(CommitOperationDelete(name) for name in old if name not in new),
        ]
        api.create_commit(url.repo_id, operations, commit_message=message, revision=revision, repo_type=kind)
        return scrub(f"{url}/tree/{quote(revision, safe='')}" if revision else str(url))

    return on_hub(f"push to {repo_id}", commit)


def _prepare(repo_id: str, private: bool | None, revision: str | None, kind: str) -> tuple[HfApi, RepoUrl]:
    """Create the repository and the branch where they are missing; return the client and the repository's address."""
    api = HfApi(library_name="w2s_plugins", library_version=__version__)
    sdk = "gradio" if kind == "space" else None
    url = api.create_repo(repo_id, private=private, exist_ok=True, repo_type=kind, space_sdk=sdk)
    repo_id = url.repo_id  # with the user's name, where it was left out
    if private and not api.repo_info(repo_id, repo_type=kind).private:
        raise UserError(f"push to {repo_id}: the repository exists and is public; make it private on its settings "
                        "page, or choose another name")
    if revision and revision != "main" and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True, repo_type=kind)
    return api, url
