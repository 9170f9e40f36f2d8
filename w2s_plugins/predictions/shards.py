"""A model asked about the images of shards, by any number of processes that share nothing but a file system.

A process locks a shard that nobody has labelled or is labelling, writes its labels under another name, and renames the
whole folder. So a folder that has a shard's name is complete, and what was interrupted is done again by whoever comes
by: the system frees the lock of a process that has ended.
"""

import contextlib
import dataclasses
import functools
import logging
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from ..data.keys import SampleKeys
from ..data.shards import WDS, Shard, find_shards, open_shards
from ..data.unlabeled import FLAG
from ..data.unreadable import Blanked
from ..distributed.world import World
from ..errors import UserError, write_errors
from ..files import apply_umask, delete, write_json, write_text
from ..hub.shards import find_hub_shards
from ..labels.store import KEYS, MANIFEST, Manifest, read_manifest, refuse_not_finite, rows_by_size, write_part
from ..teachers.stored import Pass, label_images
from .run import Predictor, Request, begin, open_predictor, reasons

_logger = logging.getLogger(__name__)

CLAIMS = ".claims"  # in the folder of the labels
AGAIN = "give another folder with --output, or make room"


def predict_shards(request: Request) -> None:
    """Label the shards that no other process labels, until none is left.

    Raises:
        UserError: no such model or shards; a damaged shard; other labels are there; the disk is full.
    """
    try:
        _predict_shards(request)
    except UserError as error:
        raise UserError(str(error).removeprefix(f"{FLAG} ")) from error


def _predict_shards(request: Request) -> None:
    names = begin(request)
    if request.dir.startswith(WDS):
        root, shards = find_shards(request.dir)
    elif request.output is not None:
        root, shards = find_hub_shards(request.dir, request.output)
    else:
        raise UserError(f"{request.dir}: needs --output FOLDER, where the labels of its files go")
    output = request.output or root
    with write_errors(output, AGAIN):
        (output / CLAIMS).mkdir(parents=True, exist_ok=True)
    device = request.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    predictor = open_predictor(request, names, torch.device(device))
    about = dict(
        num_classes=predictor.member.num_classes, who=predictor.member.fingerprint, topk=request.top_k,
        kind="logits" if request.all else "top-k" if request.top_k else "hard", class_names=predictor.class_names)
    check_earlier([shard for shard in shards if is_labelled(shard, output)], output, about,
                  predictor.member.data_config)
    label, done = functools.partial(label_shard, predictor, about, request, output), 0
    while count := label_free_ones(shards, output, label):
        done += count
    left = [shard.name for shard in shards if not is_labelled(shard, output)]
    others = f"; {len(left)} are in the hands of others ({left[0]}, ...): the same command again labels what they " \
        "leave" if left else ""
    _logger.info(f"{output}: {len(shards) - len(left)} of {len(shards)} shards are labelled, {done} of them by this "
                 f"process{others}")


def check_earlier(labelled: Sequence[Shard], output: Path, about: dict[str, object], transform: dict) -> None:
    """Delete the labels of shards that have changed since; those whose manifest says nothing of it are believed.

    Args:
        labelled: shards that have labels, all of which are of one kind.
        output: folder of all labels.
        about: see `label_shard`.
        transform: what the model sees of an image.

    Raises:
        UserError: labels that are there are not such as would be written.
    """
    for number, shard in enumerate(labelled):
        found = read_manifest(output / shard.name)
        wanted = dataclasses.replace(found, **about, seen={**found.seen, "transform": transform}).content
        differs = [key for key in ("who", "kind", "topk", "class_names", "seen") if wanted[key] != found.content[key]]
        if number == 0 and differs:
            raise UserError(f"{output / shard.name}: its labels are by another model or of another kind (they differ "
                            f"in {', '.join(differs)}); give another folder with --output, or delete those that are "
                            "there")
        if found.seen["data"].get("stamp", shard.stamp) != shard.stamp:
            _logger.warning(f"WARNING: {shard.name} has changed since it was labelled; it is labelled anew")
            delete(output / shard.name)


def label_free_ones(shards: Sequence[Shard], output: Path, label: Callable[[Shard, Path], None]) -> int:
    """Label each shard that is free when its turn comes; return how many were.

    Each process begins somewhere else, so that they seldom want the same one. Whoever works on a shard holds its lock,
    which is free again when that process has ended, in whatever way.
    """
    first, count = random.SystemRandom().randrange(len(shards)), 0
    for shard in (*shards[first:], *shards[:first]):
        target = output / shard.name
        if is_labelled(shard, output):
            continue
        lock = FileLock(output / CLAIMS / shard.name.replace("/", "%"))
        with contextlib.suppress(Timeout), lock.acquire(timeout=0):
            if is_labelled(shard, output):  # meanwhile
                continue
            temporary = target.with_name(f".{target.name}.labelling")
            try:
                delete(temporary)  # of a process that was interrupted
                with write_errors(temporary, AGAIN):
                    temporary.mkdir(parents=True)
                    label(shard, temporary)
                    apply_umask(temporary)
                    os.rename(temporary, target)
            finally:
                delete(temporary)
            delete(Path(lock.lock_file))  # nobody needs it any more
            count += 1
    return count


def is_labelled(shard: Shard, output: Path) -> bool:
    """Say whether the labels of a shard are there."""
    return (output / shard.name / MANIFEST).is_file()


def label_shard(
        predictor: Predictor, about: dict[str, object], request: Request, output: Path, shard: Shard, folder: Path,
) -> None:
    """Write the labels of a shard to a folder: logits with ``--all``, the best with ``--top-k``, else the class alone.

    Args:
        predictor: the model.
        about: what the manifests of all shards have in common: the model, its classes, and the kind of labels.
        request: how images are loaded.
        output: folder of all labels.
        shard: of which shard.
        folder: where they go.
    """
    member = predictor.member
    mode = "RGB" if member.data_config["input_size"][0] == 3 else "L"
    dataset = open_shards(shard.path.parent, [shard], output, mode)
    keys = SampleKeys("filename", dataset.reader.indexes[0].keys)
    seen = dict(data=dict(shard=shard.name, stamp=shard.stamp), transform=member.data_config)
    manifest = Manifest(len(dataset), **about, seen=seen, keyed_by=keys.by, keys_sha256=keys.sha256,
                        part_rows=rows_by_size(member.num_classes))
    write_text(folder / KEYS, keys.text)
    world, parts, unread = World(torch.device(member.scale.device), 0, 1, False), manifest.parts(0), []
    asked = label_images(
        member, member.data_config, Blanked(dataset), Pass(world, request.batch_size, request.workers), parts)
    for part, (logits, missing) in zip(parts, asked):
        refuse_not_finite(folder, manifest, part, logits, missing)
        write_part(folder, manifest, part, logits.argmax(1) if manifest.kind == "hard" else logits, missing)
        unread += missing
    if unread:
        _logger.warning(f"WARNING: {shard.name}: {len(unread)} of {len(dataset)} images have no label, since they "
                        f"could not be read: {reasons(dataset, unread)}")
    write_json(folder / MANIFEST, manifest.content)
    _logger.info(f"{shard.name}: {len(dataset)} images labelled")
