"""Files of a dataset on the Hub, brought into the local cache."""

import glob
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from ..data.unlabeled import FLAG, HUB
from ..errors import UserError, logger, nearest, said_of, scrub
from .client import UNREACHABLE, check_repo_id, on_hub


def fetch(
    name: str, choose: Callable[[Sequence[str]], list[str]], what: str
) -> tuple[Path, list[str]]:
    """Return the folder of the cache with the files of one commit, whose hash is its name, and those that were chosen.

    If the Hub cannot be reached, what an earlier call has brought is taken.

    Args:
        name: ``ORG/NAME``, or ``ORG/NAME@REVISION``: a branch, a tag or a commit.
        choose: returns which of the files of the repository are wanted; may refuse them.
        what: begins the messages.

    Raises:
        UserError: no such dataset or revision, ``choose`` refuses the files, or the Hub cannot be reached.
    """
    repo, _, revision = name.partition("@")
    revision = revision or "main"
    with said_of(f"{what}: "):
        check_repo_id(repo)

    def in_cache(patterns: list[str], local_files_only: bool = False) -> Path:
        folder = snapshot_download(
            repo,
            repo_type="dataset",
            revision=revision,
            allow_patterns=patterns,
            local_files_only=local_files_only,
        )
        return Path(folder)

    def download() -> tuple[Path, list[str]]:
        # the files of one commit: they are listed, chosen, and brought together
        try:
            info = HfApi().dataset_info(repo, revision=revision)
            chosen = choose([file.rfilename for file in info.siblings or ()])
            folder = in_cache([glob.escape(file) for file in chosen])
        except (RepositoryNotFoundError, RevisionNotFoundError):
            raise  # this is an answer, whatever the cache has
        except UNREACHABLE as error:
            # the folder alone: files of the repository that nobody wanted are not there
            folder = in_cache([], local_files_only=True)
            logger.warning(
                scrub(
                    f"WARNING: {what}: the Hub cannot be asked ({type(error).__name__}): the commit "
                    f"{folder.name} is taken, as it is in the cache"
                )
            )
            files = [
                path.relative_to(folder).as_posix()
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            ]
            return folder, choose(files)
        # the list and the files are asked for one after the other
        if folder.name != info.sha:
            raise UserError(f"{what}: the dataset was changed meanwhile; try again")
        return folder, chosen

    return on_hub(what, download)


def find_hub_shards(text: str) -> list[Path]:
    """Return the tar files of ``hfids/ORG/NAME[:SPLIT][@REVISION]``, which are fetched.

    No code of the dataset is run.

    Raises:
        UserError: no such dataset or split, or it has no tar files.
    """
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?(@[\w./-]+)?", text.removeprefix(HUB))
    if match is None:
        raise UserError(
            f"{FLAG} {text}: expected {HUB}ORG/NAME, {HUB}ORG/NAME:SPLIT, or with @REVISION behind it"
        )
    repo, split, revision = match.groups(default="")

    # a split is a word in the path of its files
    word = re.compile(rf"(?<![A-Za-z0-9]){re.escape(split)}(?![A-Za-z0-9])")

    def choose(names: Sequence[str]) -> list[str]:
        files = sorted(name for name in names if name.endswith(".tar"))
        chosen = [file for file in files if not split or word.search(file)]
        if not chosen:
            known = {
                part for file in files for part in re.split(r"\W+", file)[:-1] if not part.isdigit()
            }
            of_split = f" of the split '{split}'{nearest(split, known)}" if split else ""
            raise UserError(f"{FLAG} {text}: the dataset has no .tar file{of_split}")
        return chosen

    # they are read as any tar files on a disk
    folder, files = fetch(repo + revision, choose, f"{FLAG} {text}")
    return [folder / file for file in files]
