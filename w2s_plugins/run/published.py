"""Checkpoints on the Hub: what a run goes on from as JSON and safetensors, and the way back."""

import argparse
import json
import logging
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..cli.declare import NEUTRAL
from ..cli.parser import train_parser
from ..errors import UserError, name_runs, one_line, write_errors
from ..files import read_text
from ..hub.fetch import fetch
from ..hub.push import push_command, push_folder
from ..models.shards import is_sharded
from ..tokens import scrub
from .find import BEST, check_checkpoint, check_name, find_resume, place
from .lock import hold
from .place import HUB
from .saver import save_state

_logger = logging.getLogger(__name__)

FOLDER = "checkpoint"  # in the repository
STATE, OF_BEST = "state", "best"  # names of the files there
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError)


def push_checkpoint(
        run: Path,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
) -> str:
    """Publish what a run goes on from, in a folder of a repository beside its model; return its address and size.

    That is the furthest whole checkpoint and, where it is another one, the best one. Flags that change no outcome, such
    as where data and runs lie, are left out; those that do are compared when the run goes on.

    Args:
        run: its folder.
        repo_id: ``ORG/NAME``; created when missing.
        private: create it private; an existing public repository is then refused.
        revision: branch to push to, created when missing.
        commit_message: first line of the commit.

    Raises:
        UserError: there is no checkpoint, it is sharded, or the push failed and can be repeated.
    """
    # what a run would go on from
    checkpoint = find_resume(run)
    if checkpoint is None:
        raise UserError(f"push to {repo_id}: no checkpoint in {run}{name_runs(run)}")
    path = checkpoint.path
    # shards are read by ranks, in part each
    if is_sharded(path):
        raise UserError(f"push to {repo_id}: {path}: checkpoints of --fsdp are not published, only exports")
    with tempfile.TemporaryDirectory() as temporary:
        _write(path, checkpoint.take(), Path(temporary) / STATE)
        with suppress(UserError):  # it is lost or damaged, and the run that goes on says so
            if (run / BEST).exists() and place(run / BEST) != place(path):
                _write(run / BEST, check_checkpoint(run / BEST), Path(temporary) / OF_BEST)
        # the card and the export of the repository stay as they are
        size = sum(file.stat().st_size for file in Path(temporary).iterdir())
        _logger.info(f"push to {repo_id}: the checkpoint {path.name}, {size / 1e6:.1f} MB")
        try:
            url = push_folder(Path(temporary), repo_id, FOLDER, ("*",), private=private, revision=revision,
                              commit_message=commit_message or "Upload checkpoint")
        except UserError as error:
            again = push_command("hub", run, repo_id, private, revision, "--checkpoint")
            raise UserError(f"{error}; {run} is as it was, repeat with: {again}") from error.__cause__
    return f"{url} ({size / 1e6:.1f} MB)"


def pull_checkpoint(name: str, folder: Path) -> Path:
    """Bring what `push_checkpoint` has published into a folder, and return the checkpoint that the run goes on from.

    Args:
        name: ``ORG/NAME``, or ``ORG/NAME@REVISION``: a branch, a tag or a commit.
        folder: of the run that goes on; made when missing, and held.

    Raises:
        UserError: no such repository, no checkpoint in it, or a damaged one.
    """
    what = f"--resume {HUB}{name}"

    def choose(names: Sequence[str]) -> list[str]:
        if not {*_files(STATE)} <= {*names}:
            raise UserError(f"{what}: has no checkpoint: push what the run goes on from with `hub push RUN ORG/NAME "
                            f"--checkpoint`; to start from the model's weights use --model {HUB}{name} --pretrained")
        return [file for file in (*_files(STATE), *_files(OF_BEST)) if file in names]

    # two or four files, of one commit
    source, files = fetch("model", name, choose, _files(STATE)[0], what)
    size = sum((source / file).stat().st_size for file in files)
    _logger.info(f"{what}: a checkpoint of {size / 1e6:.1f} MB, commit {source.name}")
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # they are written here as a run would have, so that it goes on as from its own
    hold(folder)
    try:
        stem, state = _read(source / FOLDER / STATE)
        path = folder / check_name(f"{stem}.pth.tar")
        if {*_files(OF_BEST)} <= {*files}:
            save_state(_read(source / FOLDER / OF_BEST)[1], folder / BEST)
        save_state(state, path)
    except DAMAGED as error:
        raise UserError(f"{what}: the checkpoint is damaged, or none that this program writes: {type(error).__name__}: "
                        f"{one_line(error)}") from error
    return path


def _files(part: str) -> list[str]:
    return [f"{FOLDER}/{part}.json", f"{FOLDER}/{part}.safetensors"]


def _write(path: Path, state: dict, target: Path) -> None:
    """Write the content of a checkpoint as two files."""
    # where data and runs lie is nobody else's business
    neutral = train_parser().names(NEUTRAL)
    args = {name: value for name, value in vars(state["args"]).items() if name not in neutral}
    tensors: dict[str, Tensor] = {}
    plain = pack({**state, "args": argparse.Namespace(**args)}, tensors)
    save_file(tensors, target.with_suffix(".safetensors"))
    # tensors are numbered in the order in which the text names them
    text = json.dumps({"name": path.name.partition(".")[0], "state": plain})
    target.with_suffix(".json").write_text(scrub(text), encoding="utf-8")


def _read(source: Path) -> tuple[str, dict]:
    """Return the name of a checkpoint and its content from two files."""
    content = json.loads(read_text(source.with_suffix(".json")))
    return content["name"], unpack(content["state"], load_file(source.with_suffix(".safetensors")))


def pack(value: object, tensors: dict[str, Tensor]) -> object:
    """Return a nested value as JSON has it: what JSON knows not is a mapping with one key, which says what it is.

    Args:
        value: of dictionaries, lists, tuples, namespaces, tensors, numbers and texts.
        tensors: to which those of the value are added, under the names that stand in their places.
    """
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, argparse.Namespace):
        return {"namespace": pack(vars(value), tensors)}
    if isinstance(value, dict):
        return {"dict": [[pack(key, tensors), pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [pack(item, tensors) for item in value]}
    return [pack(item, tensors) for item in value] if isinstance(value, list) else value


def unpack(value: object, tensors: dict[str, Tensor]) -> object:
    """Return the value that `pack` made this of. Whatever is wrong with it is some exception."""
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    (kind, inner), = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "namespace":
        return argparse.Namespace(**unpack(inner, tensors))
    if kind == "tuple":
        return tuple(unpack(inner, tensors))
    if kind != "dict":
        raise ValueError(f"{kind[:80]!r} in place of a kind of value")
    return {unpack(key, tensors): unpack(item, tensors) for key, item in inner}
