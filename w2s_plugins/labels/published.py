"""Labels on the Hub: a dataset repository with a folder of labels or one table, fetched and published."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError, holds_token
from ..files import read_plain, read_text
from ..hub.errors import check_repo_id
from ..hub.fetch import fetch
from ..hub.push import push_files
from ..hub.source import check_download
from .card import describe_folder, describe_table, labels_card
from .store import KEYS, MANIFEST, read_keys, read_manifest
from .table import ROLES, SUFFIXES, read_frame, read_label_table

HUB = "hf://datasets/"  # begins the name of labels on the Hub
# how paths begin that lead out of a folder: absolute ones, of Windows or in a home too, addresses, and those with ..
_OUTSIDE = re.compile(r"(?is)\s*([\\/]|~[^\\/]*[\\/]|[a-z]:|[a-z][\w+.-]*:[\\/]|(.*[\\/])?\.\.([\\/]|$))")


class Place(NamedTuple):
    """Where labels are: a folder of them, or a table, and the commit that they are from, where they are on the Hub."""

    path: Path
    commit: str | None = None


def local_labels(name: str, flag: str) -> Place:
    """Return where the labels with a name are on this disk; those of the Hub are brought into its local cache.

    Args:
        name: a path, or ``hf://datasets/ORG/NAME``, perhaps with ``@REVISION``.
        flag: begins the messages.

    Raises:
        UserError: no such repository or revision, it holds no labels, or the Hub cannot be reached.
    """
    if not name.startswith("hf:"):
        return Place(Path(name))
    if not name.startswith(HUB):
        raise UserError(f"{flag}: labels on the Hub are datasets: expected {HUB}ORG/NAME or {HUB}ORG/NAME@REVISION")
    folder, files = fetch(name.removeprefix(HUB), lambda names: _label_files(names, flag), flag)
    for file in files:
        check_download(folder / file, flag)
    return Place(folder if MANIFEST in files else folder / files[0], folder.name)


def _label_files(names: Sequence[str], flag: str) -> list[str]:
    """Return which files of a repository are labels. Raises `UserError` for none, or for several tables."""
    if MANIFEST in names:
        return [name for name in names
                if name in (MANIFEST, KEYS) or (name.endswith(".safetensors") and "/" not in name)]
    tables = [name for name in names if name.lower().endswith(SUFFIXES) and ".." not in name]
    if len(tables) != 1:
        raise UserError(f"{flag}: is no set of labels: expected a {MANIFEST}, as `labels push` writes it, or one table "
                        f"({', '.join(SUFFIXES)}); it has {len(tables)} tables")
    return tables


def _replaced_files(names: Sequence[str], repo_id: str) -> list[str]:
    """Return the labels that are in a repository already. Raises `UserError` where it is one of something else."""
    others = sorted({*names} - {"README.md", ".gitattributes"})
    labels = _label_files(others, f"push to {repo_id}") if others else []
    if len(labels) < len(others):
        raise UserError(f"push to {repo_id}: the dataset holds other files than labels; choose another name")
    return labels


def push_labels(
        path: Path,
        repo_id: str,
        *,
        private: bool = False,
        revision: str | None = None,
        commit_message: str | None = None,
        license: str | None = None,
) -> str:
    """Publish labels as one commit of a dataset on the Hub, with a card; return its address.

    Args:
        path: a folder of labels, a table, or the folder of a run whose teacher's answers are stored.
        repo_id: ``ORG/NAME``; created when missing.
        private: create it private; an existing public repository is then refused.
        revision: branch to push to, created when missing.
        commit_message: first line of the commit.
        license: of the labels; None says nothing about it.

    Raises:
        UserError: no labels, damaged ones, or those that others could not use; the push failed and can be repeated.
    """
    check_repo_id(repo_id)
    labels, record = path, None
    if (path / "result.json").is_file():
        labels, record = _labels_of_run(path)

    # everything is read and checked before anything is sent
    if labels.is_dir():
        manifest = read_manifest(labels)
        about = describe_folder(labels, manifest, record)
        files = [labels / part.file for part in manifest.parts(0)]
        words = [labels / name for name in (MANIFEST, KEYS) if (labels / name).is_file()]
        check_names(labels, read_keys(labels, manifest))
        texts = [read_text(file) for file in words]
        files += words
    else:
        about, files = describe_table(read_label_table(labels)), [labels]
        frame = read_frame(labels, str(labels))
        for name in frame.columns:
            if name.lower() in ROLES["filename"]:  # several of which it may have
                check_names(labels, frame[name])
        texts = [frame.to_csv()]
    if any(holds_token(text) for text in texts):
        raise UserError(f"{labels}: holds an access token or a password; it is not published")

    card = labels_card(about, f"{HUB}{repo_id}" + (f"@{revision}" if revision else ""), license)
    contents = {"README.md": card.encode(), **{file.name: file for file in files}}
    return push_files(
        contents, repo_id, replaces=lambda names: _replaced_files(names, repo_id), kind="dataset", private=private,
        revision=revision, commit_message=commit_message or "Upload labels")


def check_names(labels: Path, names: Iterable[object]) -> None:
    """Raise a `UserError` where a sample is named by a path that is not one inside of the folder of the images."""
    outside = next((name for name in map(str, names) if _OUTSIDE.match(name)), None)
    if outside is not None:
        raise UserError(f"{labels}: names its samples by paths of this machine, such as {outside[:200]}; expected "
                        "paths relative to the folder of the images")


def _labels_of_run(run: Path) -> tuple[Path, dict]:
    """Return the stored answers of the teacher of a run, and its record.

    Raises:
        UserError: the run has stored none, or has several teachers.
    """
    try:
        record = read_plain(run / "result.json")
        (cache,), (_,) = record["teacher"]["cache"], record["teacher"]["models"]
        return Path(cache["path"]), record
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run}: its record names no stored answers of one teacher; expected a run with --teacher "
                        "NAME --teacher-targets cached, a folder of labels, or a table") from error
