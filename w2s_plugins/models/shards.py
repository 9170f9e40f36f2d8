"""Sharded checkpoints on disk: a folder that every rank writes a part of, readable by any number of ranks.

``NAME.sharded/`` holds ``shard-*.safetensors``, written and read by `torch.distributed.checkpoint` (DCP), and
``run.pth.tar``, a small file of rank 0 with everything that is no shard. Within that file, None stands where a tensor
of the shards belongs.

DCP's own file format keeps its index in a pickle, which reading would execute. Its safetensors storage, used here, has
no index: each shard says in its header, which is JSON, which rows of which tensor it holds; ``checksums.json`` has
their SHA-256. ``run.pth.tar`` is read as any checkpoint here, with ``weights_only``. So nothing that comes from outside
can run code.
"""

import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from ..distributed.world import gather_objects
from ..errors import RESUME, UserError, one_line, write_errors
from ..files import SHARDED, file_sha256, read_plain

RUN_FILE = "run.pth.tar"
CHECKSUMS = "checksums.json"  # SHA-256 of every shard: safetensors has none of its own


def is_sharded(path: Path) -> bool:
    """True for the folder of a sharded checkpoint."""
    return path.suffix == SHARDED and (path / RUN_FILE).is_file()


def write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write sharded and replicated tensors. All ranks must call it; replicated ones are those of rank 0.

    Raises:
        UserError: a rank cannot write.
    """
    import torch.distributed.checkpoint as dcp  # takes 0.3 s, and most runs have no shards

    # Every rank writes its part.
    try:
        dcp.save(
            dict(tensors),
            storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True),
            planner=dcp.DefaultSavePlanner(dedup_save_to_lowest_rank=True),
        )
    except dcp.api.CheckpointException as error:
        raise UserError(f"{folder}: cannot be written ({_cause(error)}); what was there before is unchanged") from error
    # Rank 0 writes down the checksums of all.
    own = {path.name: file_sha256(path) for path in folder.glob(f"shard-{dist.get_rank() + 1:05}-*")}
    gathered = gather_objects(own)
    if dist.get_rank() == 0:
        hashes = {name: digest for part in gathered for name, digest in part.items()}
        with write_errors(folder, RESUME):
            (folder / CHECKSUMS).write_text(json.dumps(hashes), encoding="utf-8")


def check_shards(folder: Path, flag: str) -> None:
    """Compare shards with their checksums.

    Raises:
        UserError: one is missing, damaged or more than was written.
    """
    try:
        hashes = dict(read_plain(folder / CHECKSUMS))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{flag} {folder}: damaged: its {CHECKSUMS} cannot be read: {one_line(error)}") from error
    # A shard that is missing, damaged or too many.
    found = {path.name: file_sha256(path) for path in folder.glob("*.safetensors")}
    wrong = sorted(str(name) for name in found.keys() | hashes.keys() if found.get(name) != hashes.get(name))
    if wrong:
        raise UserError(f"{flag} {folder}: damaged: {wrong[0]} is not what was written, by its SHA-256; take an "
                        "earlier checkpoint")


def read_shards(folder: Path, into: Mapping[str, Tensor], flag: str, alone: bool = False) -> None:
    """Read tensors in place, each rank what its shards need, whatever number of ranks wrote them.

    `check_shards` was called before: of a run that goes on, when its checkpoint was chosen.

    Args:
        folder: of the checkpoint.
        into: tensors by name, sharded or whole, of any number of ranks.
        flag: the flag that named the folder, for messages.
        alone: read in this process without the others; otherwise all ranks must call it.

    Raises:
        UserError: a tensor is not there or of another shape.
    """
    import torch.distributed.checkpoint as dcp  # takes 0.3 s, and most runs have no shards

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is one process: it is meant
            dcp.load(dict(into), storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=alone)
    except Exception as error:  # damaged files fail in many ways
        raise UserError(f"{flag} {folder}: does not fit or is damaged: {_cause(error)}") from error


def read_section(folder: Path, section: str, flag: str) -> dict[str, Tensor]:
    """Return the tensors named ``section.NAME``, whole, by NAME; in this process, without the other ranks."""
    import torch.distributed.checkpoint as dcp  # takes 0.3 s, and most runs have no shards

    check_shards(folder, flag)
    try:
        metadata = dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except Exception as error:  # damaged files fail in many ways
        raise UserError(f"{flag} {folder}: damaged: {one_line(error)}") from error
    # Tensors of the sizes that the shards say, filled by DCP.
    prefix = f"{section}."
    whole = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in metadata.items()
             if name.startswith(prefix)}
    read_shards(folder, whole, flag, alone=True)
    return {name.removeprefix(prefix): tensor for name, tensor in whole.items()}


def replace_folder(source: Path, target: Path) -> None:
    """Rename a folder over another. Killed halfway it leaves `previous`, which a run that goes on finds.

    Raises:
        UserError: the folder cannot be renamed.
    """
    # The old one is put aside, so that there is a whole one at any moment.
    try:
        if target.exists():
            shutil.rmtree(previous(target), ignore_errors=True)
            os.replace(target, previous(target))
        os.replace(source, target)
        shutil.rmtree(previous(target), ignore_errors=True)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({one_line(error)})") from error


def previous(folder: Path) -> Path:
    """Where a folder lies while another takes its place."""
    return folder.with_name(f".{folder.stem}-old{folder.suffix}")


def _cause(error: BaseException) -> str:
    """The first failure of a rank within DCP's report of all of them."""
    for failure in getattr(error, "failures", {}).values():
        return one_line(failure[0] if isinstance(failure, tuple) else failure)
    return one_line(error)
