"""What a model says of a dataset, stored: a folder that is written once, checked, and read by whoever finds it.

`labels.json` is the manifest: what kind of answers, over which classes, by whom (`who`), of what (`seen`: the plain
image in which transform, or the student's views with their seed and augmentation), of how many samples in how many
views, and by what samples are known. `keys.json` lists the samples' keys (`data.keys`); it is absent where these count
the samples. The answers lie in at most 64 parts a view, `viewVVV-FIRSTROW.safetensors`, in the order of the keys. A
part of n samples holds one tensor: `logits` (n, C) over C classes, or `features` (n, D), which are no labels but stored
alike. Its header has one entry with the key of its manifest, its place, the sha256 of the tensor, and the rows that
nobody could be asked about.

Ranks write parts in turn, one run at a time, and a part is whole or absent, so the files depend neither on the number
of ranks nor on interruptions, as long as whoever labels says the same of a part at any time.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..data.keys import SampleKeys
from ..distributed.world import barrier, broadcast_from_rank0
from ..errors import UserError, logger, near_folder, one_line, write_errors
from ..files import (
    atomic_write,
    check_regular,
    file_sha256,
    read_plain,
    read_text,
    remove_temporary_files,
    write_json,
    write_text,
)
from ..target_kind import SEVERAL_CLASSES

FORMAT = 2
MANIFEST, KEYS = "labels.json", "keys.json"
KINDS = (
    "logits",
    "features",
)  # that are stored; those of tables are hard and probabilities as well
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
MIN_ROWS, MAX_PARTS = 256, 64  # rows of a part at least, parts of a view at most
REMEDY = "delete this file, and the next run makes it anew"


class Part(NamedTuple):
    """Rows ``first`` to ``stop`` of one view."""

    view: int
    first: int
    stop: int

    @property
    def file(self) -> str:
        return f"view{self.view:03d}-{self.first:09d}.safetensors"


class Answers(NamedTuple):
    """What was said about the samples of a part, (n, ...), and the rows that nobody could be asked about."""

    values: Tensor
    missing: Sequence[int] = ()


Labeller = Callable[[Sequence[Part]], Iterator[Answers]]  # yields the answers of each part


# ---------------------------------------------------------------- the manifest


@dataclass(frozen=True)
class Manifest:
    """What a folder of labels holds, or a table.

    Args:
        num_samples: N.
        num_classes: C, or the width of features.
        who: identity of whoever said it, in terms of json.
        seen: identity of the data, and of what of a sample was seen.
        kind: one of `KINDS`; of a table also ``hard`` or ``probabilities``.
        dtype: of what is stored, one of `DTYPES`.
        views: number of views; 1 for plain images.
        class_names: names of the classes, None where they have none.
        keyed_by: what the samples' keys are, see `SampleKeys`.
        keys_sha256: hash of `keys.json`, None where the keys count the samples.
    """

    num_samples: int
    num_classes: int
    who: Mapping[str, object]
    seen: Mapping[str, object]
    kind: str = "logits"
    dtype: torch.dtype = torch.float16
    views: int = 1
    class_names: Sequence[str] | None = None
    keyed_by: str = "index"
    keys_sha256: str | None = None

    @property
    def title(self) -> str:
        return "student features" if self.kind == "features" else "teacher targets"

    @cached_property
    def content(self) -> dict[str, object]:
        """What `labels.json` holds, as it comes back from it."""
        # folders are named after this: topk, which once said that only the largest logits are stored, stays in it
        fields = {
            **asdict(self),
            "dtype": str(self.dtype).removeprefix("torch."),
            "topk": None,
            "format": FORMAT,
        }
        return json.loads(json.dumps(fields, default=str))

    @cached_property
    def key(self) -> str:
        """Hash of the content; folders of cached labels have it for a name."""
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()[:24]

    @property
    def rows(self) -> int:
        """Rows of a part; the last one of a view may have fewer."""
        return max(MIN_ROWS, math.ceil(self.num_samples / MAX_PARTS))

    def parts(self, view: int) -> list[Part]:
        """The parts of one view."""
        return [
            Part(view, first, min(first + self.rows, self.num_samples))
            for first in range(0, self.num_samples, self.rows)
        ]

    def encode(self, answers: Tensor) -> Tensor:
        """Return what is stored of logits (n, C) or features (n, D); beyond the range of the dtype its largest number."""
        largest = torch.finfo(self.dtype).max
        return answers.to(self.dtype).clamp(-largest, largest)


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a folder of labels, whoever has written it.

    Raises:
        UserError: there is none, or it is none of this format.
    """
    # whoever typed the name of a folder that is not there gets the nearest one
    path = folder / MANIFEST
    if not folder.exists():
        raise UserError(f"{folder}: no such folder of labels{near_folder(folder, MANIFEST)}")
    try:
        # a file of others may hold anything: what it lacks, or has beside, is an error of the constructor
        content = read_plain(path)
        if not isinstance(content, dict):
            raise ValueError("it is no mapping")
        is_known = content.pop("format") == FORMAT and content.pop("topk") is None
        if not is_known or content["kind"] not in KINDS:
            raise ValueError("it is of another format, or kind")
        manifest = Manifest(**{**content, "dtype": DTYPES[content["dtype"]]})
        if not manifest.parts(0):
            raise ValueError("it has no samples")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{path}: no manifest of labels in format {FORMAT} ({one_line(error)})"
        ) from error
    return manifest


def read_keys(folder: Path, manifest: Manifest) -> Sequence[str | int]:
    """Return the keys of the samples of a folder of labels.

    Raises:
        UserError: the file is absent or damaged.
    """
    if manifest.keys_sha256 is None:
        return range(manifest.num_samples)
    path = folder / KEYS
    try:
        # a list of that hash is the one that was written
        if file_sha256(path) != manifest.keys_sha256:
            raise ValueError("its checksum is not that of its content")
        return json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: damaged ({one_line(error)}); take another copy of the file"
        ) from error


# ---------------------------------------------------------------- one part


def digest(answers: Tensor) -> str:
    """Return the sha256 of a tensor."""
    return hashlib.sha256(answers.contiguous().view(torch.uint8).numpy().data).hexdigest()


def write_part(
    folder: Path, manifest: Manifest, part: Part, answers: Tensor, missing: Sequence[int] = ()
) -> None:
    """Write one part, under another name first.

    Args:
        folder: of the labels.
        manifest: what the folder holds.
        part: which part it is.
        answers: its rows, see `Manifest.encode`.
        missing: rows that nobody could be asked about; what ``answers`` says of them is given to nobody.

    Raises:
        UserError: some answers are not finite, or the file cannot be written.
    """
    # values that are not finite would be found again and again
    are_answers = answers.isfinite().all(dim=1)
    # a class that the model does not know is unknown
    if manifest.who.get("labels") == SEVERAL_CLASSES.name:
        are_answers = SEVERAL_CLASSES.are_answers(answers)
    odd = (~are_answers).nonzero().flatten() + part.first
    rows = [row for row in odd.tolist() if row not in missing]
    if rows:
        raise UserError(
            f"{folder}: the {manifest.title.split()[0]} gives values that are not finite for {len(rows)} "
            f"of {part.stop - part.first} samples (first: {rows[0]}); they are not stored: take other "
            f"weights (these ran in {manifest.who.get('dtype', 'float32')})"
        )
    # the checksum is of what is stored, after it was rounded
    stored = manifest.encode(answers)
    about: dict[str, object] = dict(key=manifest.key, part=part, sha256=digest(stored))
    if missing:
        about["missing"] = list(missing)
    with atomic_write(folder / part.file) as temporary:
        # one entry: the order of several is not fixed
        save_file({manifest.kind: stored}, temporary, metadata={"part": json.dumps(about)})


def read_part(folder: Path, manifest: Manifest, part: Part) -> tuple[Tensor, list[int]]:
    """Map a part into memory and check it; return its answers, and the rows that nobody could be asked about.

    Raises:
        UserError: absent, truncated, damaged, or part of other labels.
    """
    path = folder / part.file
    try:
        # of a file that is mapped only the header is read here; a wrong key may be that of an older format
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["part"])
            answers = file.get_tensor(manifest.kind)
        if about["key"] != manifest.key or about["part"] != list(part):
            raise ValueError(f"it is part {about['part']} of the labels {about['key']}")
        if (
            answers.shape != (part.stop - part.first, manifest.num_classes)
            or answers.dtype != manifest.dtype
        ):
            raise ValueError("its tensor is not that of its manifest")
        if digest(answers) != about["sha256"]:
            raise ValueError("its checksum is not that of its content")
    except (
        SafetensorError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
    ) as error:
        raise UserError(
            f"{path}: damaged, or not part of these labels ({one_line(error)}); {REMEDY}"
        ) from error
    return answers, about.get("missing", [])


# ---------------------------------------------------------------- read


def check_positions(index: Tensor, count: int | None) -> None:
    """Raise a `UserError` unless ``index`` (B,) holds positions of samples, of which there are ``count``, if known."""
    # a negative one would be counted from the end, and mean another sample
    if index.ndim != 1 or index.dtype not in (torch.int64, torch.int32):
        raise UserError(
            f"positions of samples are {index.dtype} of shape {tuple(index.shape)}; expected whole numbers "
            "(B,)"
        )
    if len(index) and (index.min() < 0 or (count is not None and index.max() >= count)):
        expected = "at least 0" if count is None else f"0 to {count - 1}"
        raise UserError(
            f"positions of samples are {int(index.min())} to {int(index.max())}; expected {expected}"
        )


class LabelReader:
    """Reads the labels of a folder, by the positions of samples.

    The files are mapped into memory: ranks share them, and only the rows that are asked for are copied. Positions stay
    on the CPU, so that reading never waits for a device.

    Args:
        folder: a complete folder of labels.

    Raises:
        UserError: it is damaged.
    """

    def __init__(self, folder: Path):
        self.folder, self.manifest = folder, read_manifest(folder)
        self.set_view(0)
        self.complete = not len(self.missing)

    def set_view(self, view: int) -> None:
        """Choose the view that is read, and check its parts."""
        parts = [read_part(self.folder, self.manifest, part) for part in self.manifest.parts(view)]
        missing = [row for _, rows in parts for row in rows]
        self.parts = [answers for answers, _ in parts]
        self.missing = torch.tensor(missing, dtype=torch.long)

    def has(self, index: Tensor) -> Tensor:
        """Say of which of the samples ``index`` (B,) there is a label."""
        check_positions(index, self.manifest.num_samples)
        return ~torch.isin(index, self.missing)

    def __call__(self, index: Tensor, device: torch.device) -> Tensor:
        """Return logits (B, C) in float32 on ``device`` for the samples ``index`` (B,) on the CPU.

        Raises:
            UserError: one of them has no label.
        """
        # what is stored in its place is what was said of a black image
        absent = index[~self.has(index)]
        if len(absent):
            sample = read_keys(self.folder, self.manifest)[int(absent[0])]
            raise UserError(
                f"{self.folder}: has no label of {sample}, which may not have been readable when they were "
                "made; delete the folder, and the next run makes it anew"
            )

        # the rows of each part that has any, copied once
        part_of_row = index // self.manifest.rows
        answers = torch.empty(
            len(index),
            self.manifest.num_classes,
            dtype=self.manifest.dtype,
            pin_memory=device.type == "cuda",
        )
        for number in part_of_row.unique().tolist():
            in_part = part_of_row == number
            answers[in_part] = self.parts[number][index[in_part] - number * self.manifest.rows]
        return answers.to(device, non_blocking=True).float()


# ---------------------------------------------------------------- written once


def ensure_labels(
    folder: Path,
    manifest: Manifest,
    keys: SampleKeys,
    labeller: Labeller,
    *,
    distributed: bool = False,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> LabelReader:
    """Return what reads a complete folder of labels; what is missing of it is written, by all ranks together.

    Only one run at a time writes to a folder; another one that wants the same waits for it.

    Args:
        folder: of the labels.
        manifest: what it is to hold.
        keys: of the samples, in the order of the labels.
        labeller: asked about the parts that are missing.
        distributed: divide the work among the ranks; all of them call this.
        progress: wraps the sequence of this rank's parts to show progress.

    Raises:
        UserError: some answers are not finite, or a file cannot be written.
    """
    # rank 0 alone looks at the disk: others may see an older state of a network file system
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
    title = manifest.title
    if not broadcast_from_rank0(rank == 0 and missing_parts(folder, manifest), distributed):
        logger.info(f"{title.capitalize()} found in {folder}: the {title.split()[0]} need not run")
        return LabelReader(folder)

    # All ranks ask for the lock again and again, so that none is left in a collective until it times out.
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    while not broadcast_from_rank0(rank == 0 and _acquire(lock), distributed):
        logger.info(f"Another run is writing the {title} {folder}: waiting for it")
        time.sleep(1)
    try:
        # what all parts share is written first, if another run has not made them meanwhile
        missing = missing_parts(folder, manifest) if rank == 0 else []
        if missing:
            remove_temporary_files(folder)  # of a writer that was killed
            if keys.text is not None:
                write_text(folder / KEYS, keys.text)
            write_json(folder / MANIFEST, manifest.content)
        missing = broadcast_from_rank0(missing, distributed)
        # in turn, so that who looks at the folder sees it grow evenly, and the last parts end at about the same time
        parts = missing[rank::ranks]
        if parts:
            logger.info(
                f"{title.capitalize()}: {manifest.kind} of {manifest.num_samples} images in {manifest.views} "
                f"view(s) are computed; {len(missing)} part(s) to write to {folder}"
            )
            for part, answers in zip(progress(parts) if progress else parts, labeller(parts)):
                write_part(folder, manifest, part, *answers)
        # nobody reads before all have written
        if distributed:
            barrier()
    finally:
        lock.release()
    return LabelReader(folder)


def missing_parts(folder: Path, manifest: Manifest) -> list[Part]:
    """Return the parts that are not there yet."""
    present = {path.name for path in folder.glob("*.safetensors")}
    return [
        part
        for view in range(manifest.views)
        for part in manifest.parts(view)
        if part.file not in present
    ]


def _acquire(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True
