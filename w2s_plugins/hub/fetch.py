"""Some files of a repository, brought into the local cache."""

import glob
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .. import __version__
from ..errors import UserError, nearest
from ..tokens import LOGIN, scrub
from .errors import UNREACHABLE, DamagedDownload, check_repo_id, on_hub
from .source import check_download

_logger = logging.getLogger(__name__)


def fetch(
        kind: Literal["dataset", "model"],
        name: str,
        choose: Callable[[Sequence[str]], list[str]],
        first: str,
        what: str,
) -> tuple[Path, list[str]]:
    """Return the folder of the cache with the files of one commit, whose hash is its name, and those that were chosen.

    When the Hub cannot be reached, what an earlier call has brought is taken.

    Args:
        kind: of the repository.
        name: ``ORG/NAME``, or ``ORG/NAME@REVISION``: a branch, a tag or a commit.
        choose: returns which of the files of the repository are wanted; may refuse them.
        first: the file that is wanted wherever there is one: what is in the cache without it is not whole.
        what: begins the messages.

    Raises:
        UserError: no such repository or revision, ``choose`` refuses the files, or the Hub cannot be reached.
    """
    repo, _, revision = name.partition("@")
    revision = revision or "main"
    try:
        check_repo_id(repo)
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
    api = HfApi(library_name="w2s_plugins", library_version=__version__)
    kwargs = dict(repo_type=kind, revision=revision)

    def bring() -> tuple[Path, list[str]]:
        try:
            info = api.repo_info(repo, **kwargs)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError as error:
            raise UserError(f"{what}: no such {kind} on the Hub{_near_names(api, kind, repo)}, or it is private: then "
                            f"{LOGIN}") from error
        except RevisionNotFoundError as error:
            hint = _near_revisions(api, kind, repo, revision)
            raise UserError(f"{what}: the {kind} has no such revision{hint}") from error
        except UNREACHABLE as error:
            with suppress(LocalEntryNotFoundError):
                folder = Path(snapshot_download(repo, **kwargs, local_files_only=True, allow_patterns=[first]))
                _logger.warning(scrub(f"WARNING: {what}: the Hub cannot be asked ({type(error).__name__}): the commit "
                                      f"{folder.name} is taken, as it is in the cache"))
                return folder, choose([path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*"))
                                       if path.is_file()])
            raise
        chosen = choose([file.rfilename for file in info.siblings])
        folder = Path(snapshot_download(repo, **kwargs, allow_patterns=[*map(glob.escape, chosen)]))
        if folder.name != info.sha:
            raise DamagedDownload(f"{what}: the {kind} was changed meanwhile; try again")
        for file in chosen:
            check_download(folder / file, what)
        return folder, chosen
    return on_hub(what, bring)


def _near_names(api: HfApi, kind: str, repo: str) -> str:
    with suppress(*UNREACHABLE):
        known = api.list_datasets if kind == "dataset" else api.list_models
        return nearest(repo, [found.id for found in known(author=repo.partition("/")[0], limit=1000)])
    return ""


def _near_revisions(api: HfApi, kind: str, repo: str, revision: str) -> str:
    with suppress(*UNREACHABLE):
        refs = api.list_repo_refs(repo, repo_type=kind)
        return nearest(revision, [ref.name for ref in (*refs.branches, *refs.tags)])
    return ""
