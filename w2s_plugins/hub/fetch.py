"""Some files of a repository, brought into the local cache."""

import glob
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

from ..errors import UserError, scrub
from .errors import UNREACHABLE, check_repo_id, on_hub
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
    where = dict(repo_type=kind, revision=revision or "main")
    try:
        check_repo_id(repo)
    except UserError as error:
        raise UserError(f"{what}: {error}") from error

    def bring() -> tuple[Path, list[str]]:
        try:
            info = HfApi().repo_info(repo, **where)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            raise  # there is an answer, whatever the cache has
        except UNREACHABLE as error:
            cached = _cached(repo, where, first)
            if cached is None:
                raise
            _logger.warning(scrub(f"WARNING: {what}: the Hub cannot be asked ({type(error).__name__}): the commit "
                                  f"{cached.name} is taken, as it is in the cache"))
            files = [path for path in sorted(cached.rglob("*")) if path.is_file()]
            return cached, choose([path.relative_to(cached).as_posix() for path in files])
        chosen = choose([file.rfilename for file in info.siblings])
        folder = Path(snapshot_download(repo, **where, allow_patterns=[glob.escape(file) for file in chosen]))
        if folder.name != info.sha:
            raise UserError(f"{what}: the {kind} was changed meanwhile; try again")
        for file in chosen:
            check_download(folder / file, what)
        return folder, chosen

    return on_hub(what, bring)


def _cached(repo: str, where: dict[str, str], first: str) -> Path | None:
    """Return the folder of the cache that an earlier call has filled."""
    try:
        return Path(snapshot_download(repo, **where, local_files_only=True, allow_patterns=[first]))
    except LocalEntryNotFoundError:
        return None
