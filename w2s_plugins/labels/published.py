"""Labels on the Hub: a dataset repository with one table, fetched and published."""

import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from ..data.keys import SampleKeys
from ..errors import UserError, holds_token, quietly
from ..hub.client import check_login
from ..hub.fetch import fetch
from ..hub.push import push_files
from ..hub.source import check_download
from ..target_kind import ONE_CLASS, TargetKind
from .answers import write_arrays
from .card import labels_card
from .samples import labels_of_samples
from .table import ROLES, SUFFIXES, file_of, open_table, plain_name

HUB = "hf://datasets/"  # begins the name of labels on the Hub
# how paths begin, after spaces, that lead out of a folder: absolute ones, of Windows or in a home too, addresses, and
# those with ..
_OUTSIDE = re.compile(
    r"(?is)([\\/]|~[^\\/]*[\\/]|[a-z]:|[a-z][\w+.-]*:[\\/]|(.*[\\/])?\.\.([\\/]|$))"
)


def leads_outside(name: str) -> bool:
    """True for the name of a sample that is not one below the folder of the images."""
    return bool(_OUTSIDE.match(name.lstrip()))


class Place(NamedTuple):
    """Where a table of labels is, and the commit that it is from, where it is on the Hub."""

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
    # a path, or a dataset of the Hub, of which the table alone is fetched
    if not name.startswith("hf:"):
        return Place(Path(name))
    if not name.startswith(HUB):
        raise UserError(
            f"{flag}: labels on the Hub are datasets: expected {HUB}ORG/NAME or {HUB}ORG/NAME@REVISION"
        )
    folder, (file,) = fetch(name.removeprefix(HUB), lambda names: [_table_of(names, flag)], flag)
    check_download(folder / file, flag)
    return Place(folder / file, folder.name)


def _table_of(names: Sequence[str], flag: str) -> str:
    """Return which file of a repository is its table of labels. Raises `UserError` for none, or for several."""
    # which of several is meant nobody knows; a name that leads out of the folder is not followed
    tables = [name for name in names if name.lower().endswith(tuple(SUFFIXES)) and ".." not in name]
    # repositories have files of other kinds with these suffixes
    tables = [name for name in tables if not name.lower().endswith((".json", ".xml"))] or tables
    if len(tables) != 1:
        raise UserError(
            f"{flag}: is no set of labels: expected one table ({', '.join(SUFFIXES)}); it has "
            f"{len(tables)}"
        )
    return tables[0]


def _replaced_files(names: Sequence[str], repo_id: str) -> list[str]:
    """Return the labels that are in a repository already. Raises `UserError` where it is one of something else."""
    # a dataset of somebody else's is not overwritten because of a slip in a name
    others = sorted({*names} - {"README.md", ".gitattributes"})
    if len(others) > 1:
        raise UserError(
            f"push to {repo_id}: the dataset holds other files than labels; choose another name"
        )
    return [_table_of(others, f"push to {repo_id}")] if others else []


class Terms(NamedTuple):
    """What a label is, and the names that it may be; None for those of the table."""

    target_kind: TargetKind = ONE_CLASS
    class_names: Sequence[str] | None = None


ONE_OF_ITS_OWN = Terms()


def push_labels(
    path: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
    license: str | None = None,
    dry_run: bool = False,
    terms: Terms = ONE_OF_ITS_OWN,
) -> str:
    """Publish labels as one commit of a dataset on the Hub, with a card; return its address.

    Args:
        path: a table, or a folder of stored answers.
        repo_id: ``ORG/NAME``; created when missing.
        private: create it private; an existing public repository is then refused.
        revision: branch to push to, created when missing.
        commit_message: first line of the commit.
        license: of the labels; None says nothing about it.
        dry_run: write what would be sent into a folder.
        terms: what a label is.

    Raises:
        UserError: no labels, damaged ones, or those that others could not use; the push failed and can be repeated.
    """
    check_login(repo_id, dry_run)
    with TemporaryDirectory() as temporary:
        # what a teacher has said becomes a table like any other
        source, manifest = path, None
        if path.is_dir():
            source = Path(temporary, "labels.npz")
            manifest = write_arrays(path, source)

        # everything is read and checked before anything is sent
        table_file = open_table(source, str(path), may_skip=False)
        target_kind = terms.target_kind
        table = table_file.labels(terms.class_names, "keep", target_kind=target_kind)
        frame, file = table_file.frame, file_of(source)[0]
        # it may have several columns of these
        named = {*ROLES["filename"], *ROLES["image_id"]}
        columns = [name for name in frame.columns if plain_name(name) in named]
        outside = next(filter(leads_outside, frame[columns].astype(str).stack()), None)
        if outside is not None:
            raise UserError(
                f"{path}: names its samples by paths of this machine, such as {outside[:200]}; expected "
                "paths relative to the folder of the images"
            )
        # numbers hold none, and of a million rows of them the text would be long
        if holds_token(frame.select_dtypes(exclude="number").to_csv() + ",".join(frame.columns)):
            raise UserError(f"{path}: holds an access token or a password; it is not published")
        # rows about one image may contradict each other
        keys = SampleKeys(table.keyed_by, [*dict.fromkeys(table.keys)])
        if len(keys.values) < len(table):
            with quietly():
                labels_of_samples(
                    table, keys, table.names, None, str(path), target_kind=target_kind
                )
        name = f"{HUB}{repo_id}" + (f"@{revision}" if revision else "")
        card = labels_card(table, name, license, manifest, target_kind)
        return push_files(
            {"README.md": card.encode(), file.name: file},
            repo_id,
            replaces=lambda names: _replaced_files(names, repo_id),
            kind="dataset",
            private=private,
            revision=revision,
            commit_message=commit_message or "Upload labels",
            dry_run=dry_run,
        )
