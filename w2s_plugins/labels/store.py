"""What a model says, stored: a folder of labels that is written once, checked, and read by the keys of samples.

`labels.json` is the manifest: what kind of answers, over which classes, by whom (`who`), of what (`seen`: the plain
image in which transform, or the student's views with their seed and augmentation), of how many samples in how many
views, and by what samples are known. `keys.json` lists the samples' keys (`data.keys`); it is absent where these count
the samples. The answers lie in at most 64 parts a view, `viewVVV-FIRSTROW.safetensors`, in the order of the keys. A
part of n samples holds, over C classes:

| kind | tensors |
| --- | --- |
| logits | `logits` (n, C) |
| top-k | `values` (n, K + 1) and `indices` (n, K): the K largest logits and where they belong |
| features | `features` (n, D): no labels, but stored alike |

The last of the K + 1 values stands for each of the other classes: the logit that gives all of them together the mass
that they had, spread evenly. So the probabilities of the K classes stay what they were. The header of a part has one
entry with the key of its manifest, its place, the sha256 of its tensors, and the rows that nobody could be asked about.

Ranks write parts in turn, one run at a time, and a part is whole or absent, so the files depend neither on the number
of ranks nor on interruptions, as long as whoever labels says the same of a part at any time.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
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
from ..errors import UserError, one_line, write_errors
from ..files import (
    atomic_write,
    check_count,
    check_regular,
    file_sha256,
    read_plain,
    read_text,
    remove_temporary_files,
    write_json,
    write_text,
)

_logger = logging.getLogger(__name__)

FORMAT = 2
MANIFEST, KEYS = "labels.json", "keys.json"
KINDS = ("logits", "top-k", "features")  # that are stored; those of tables are hard and probabilities as well
DTYPES = {str(dtype).removeprefix("torch."): dtype
          for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
# of what is read from outside
TYPES = {
    "num_samples": int, "num_classes": int, "who": dict, "seen": dict, "topk": int | None, "views": int,
    "class_names": list | None, "keys_sha256": str | None}
MIN_ROWS, MAX_PARTS = 256, 64  # rows of a part at least, parts of a view at most
TINY = torch.finfo(torch.float32).tiny  # for the logarithm of a probability of 0
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
        topk: K, for top-k only.
        views: number of views; 1 for plain images.
        class_names: names of the classes, None where they have none.
        keyed_by: what the samples' keys are, see `SampleKeys`.
        keys_sha256: hash of `keys.json`, None where the keys count the samples.

    Raises:
        UserError: K is not below the number of classes.
    """

    num_samples: int
    num_classes: int
    who: dict[str, object]
    seen: dict[str, object]
    kind: str = "logits"
    dtype: torch.dtype = torch.float16
    topk: int | None = None
    views: int = 1
    class_names: Sequence[str] | None = None
    keyed_by: str = "index"
    keys_sha256: str | None = None

    def __post_init__(self) -> None:
        if self.topk is not None and not 0 < self.topk < self.num_classes:
            raise UserError(f"--teacher-topk {self.topk}: expected 1 to {self.num_classes - 1}, below the number of "
                            f"classes; without the flag all {self.num_classes} are kept")

    @property
    def title(self) -> str:
        return "student features" if self.kind == "features" else "teacher targets"

    @cached_property
    def content(self) -> dict[str, object]:
        """What `labels.json` holds, as it comes back from it."""
        fields = {**asdict(self), "dtype": str(self.dtype).removeprefix("torch."), "format": FORMAT}
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
        return [Part(view, first, min(first + self.rows, self.num_samples))
                for first in range(0, self.num_samples, self.rows)]

    @property
    def layout(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape of a row, and dtype, of each tensor of a part."""
        if self.kind == "top-k":
            return {"indices": ((self.topk,), torch.int32), "values": ((self.topk + 1,), self.dtype)}
        return {self.kind: ((self.num_classes,), self.dtype)}

    def encode(self, answers: Tensor) -> dict[str, Tensor]:
        """Return the tensors of a part; ``answers`` are logits (n, C) or features (n, D) in float32."""
        if self.kind != "top-k":
            return {self.kind: self._rounded(answers)}
        values, indices = answers.topk(self.topk, dim=1)
        others = answers.scatter(1, indices, -math.inf).logsumexp(1, keepdim=True)
        values = torch.cat([values, others - math.log(self.num_classes - self.topk)], dim=1)
        return {"indices": indices.int(), "values": self._rounded(values)}

    def _rounded(self, values: Tensor) -> Tensor:
        largest = torch.finfo(self.dtype).max
        return values.to(self.dtype).clamp(-largest, largest)

    def decode(self, tensors: dict[str, Tensor], confidence: float = 1.0) -> Tensor:
        """Return logits (n, C), or features, in float32; none of them is infinite.

        Args:
            tensors: rows of a part, or, of a table, class numbers (n,) or probabilities (n, C) by its kind.
            confidence: the probability of the class of a hard label; the others share the rest evenly.
        """
        if self.kind == "hard":
            classes = tensors["hard"].long().unsqueeze(1)
            other = math.log(max((1 - confidence) / max(1, self.num_classes - 1), TINY))
            logits = torch.full((len(classes), self.num_classes), other, device=classes.device)
            return logits.scatter_(1, classes, math.log(max(confidence, TINY)))
        if self.kind == "top-k":
            values = tensors["values"].float()
            logits = values[:, -1:].repeat(1, self.num_classes)
            return logits.scatter_(1, tensors["indices"].long(), values[:, :-1])
        answers = tensors[self.kind].float()
        return answers.clamp(min=TINY).log() if self.kind == "probabilities" else answers


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a folder of labels, whoever has written it.

    Raises:
        UserError: there is none, or it is none of this format.
    """
    path = folder / MANIFEST
    try:
        found = read_plain(path)
        if found.pop("format") != FORMAT or found["kind"] not in KINDS:
            raise ValueError("it is of another format, or kind")
        if not all(isinstance(found[name], kinds) for name, kinds in TYPES.items()):
            raise ValueError("a value is of another type")
        manifest = Manifest(**{**found, "dtype": DTYPES[found["dtype"]]})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError) as error:
        raise UserError(f"{path}: no manifest of labels in format {FORMAT} ({one_line(error)})") from error
    names = manifest.class_names
    if names is not None and len(names) != manifest.num_classes:
        raise UserError(f"{path}: {len(names)} names of {manifest.num_classes} classes")
    # only top-k has no column for each; a few bytes must not ask for any amount of memory
    check_count(manifest.num_classes if manifest.topk else 0, manifest.num_samples, f"{path}: its classes")
    return manifest


def read_keys(folder: Path, manifest: Manifest) -> Sequence[str] | Sequence[int]:
    """Return the keys of the samples of a folder of labels.

    Raises:
        UserError: the file is absent or damaged.
    """
    if manifest.keys_sha256 is None:
        return range(manifest.num_samples)
    path = folder / KEYS
    try:
        keys = json.loads(read_text(path))
        if file_sha256(path) != manifest.keys_sha256:
            raise ValueError("its checksum is not that of its content")
        if len(keys) != manifest.num_samples:
            raise ValueError(f"{len(keys)} keys of {manifest.num_samples} samples")
        if not isinstance(keys, list) or not all(isinstance(key, (str, int)) for key in keys):
            raise ValueError("a key is neither a name nor a number")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({one_line(error)}); take another copy of the file") from error
    return keys


# ---------------------------------------------------------------- one part


def digest(tensors: dict[str, Tensor]) -> str:
    """Return the sha256 of some tensors."""
    content = hashlib.sha256()
    for name in sorted(tensors):
        content.update(tensors[name].contiguous().view(torch.uint8).numpy())
    return content.hexdigest()


def write_part(folder: Path, manifest: Manifest, part: Part, answers: Tensor, missing: Sequence[int] = ()) -> None:
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
    odd = (~answers.isfinite().all(dim=1)).nonzero().flatten() + part.first
    rows = [row for row in odd.tolist() if row not in missing]
    if rows:
        raise UserError(f"{folder}: the {manifest.title.split()[0]} gives values that are not finite for {len(rows)} "
                        f"of {part.stop - part.first} samples (first: {rows[0]}); they are not stored: take other "
                        "weights or, where it runs in half precision, leave out --amp")
    tensors = manifest.encode(answers)
    about = dict(key=manifest.key, part=part, sha256=digest(tensors))
    if missing:
        about["missing"] = list(missing)
    with atomic_write(folder / part.file) as temporary:
        save_file(tensors, temporary, metadata={"part": json.dumps(about)})  # one entry: their order is not fixed


def read_part(folder: Path, manifest: Manifest, part: Part) -> tuple[dict[str, Tensor], list[int]]:
    """Map a part into memory and check it; return its tensors, and the rows that nobody could be asked about.

    Raises:
        UserError: absent, truncated, damaged, or part of other labels.
    """
    path = folder / part.file
    expected = {name: ((part.stop - part.first, *shape), dtype) for name, (shape, dtype) in manifest.layout.items()}
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["part"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        missing = about.get("missing", [])
        if about["key"] != manifest.key or about["part"] != list(part):
            raise ValueError(f"it is part {about['part']} of the labels {about['key']}")
        if {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()} != expected:
            raise ValueError("its tensors are not those of its manifest")
        if digest(tensors) != about["sha256"]:
            raise ValueError("its checksum is not that of its content")
        # that it is whole does not say that what stands in it can be meant
        if not all(part.first <= row < part.stop for row in missing):
            raise ValueError("it lacks rows that are not its own")
        finite = torch.stack([tensor.isfinite().all(dim=1) for tensor in tensors.values()]).all(dim=0)
        finite[[row - part.first for row in missing]] = True  # nobody is given what stands there
        if not finite.all():
            raise ValueError("a value is not finite")
        classes = tensors.get("indices", torch.zeros(1))
        if not 0 <= classes.min() <= classes.max() < manifest.num_classes:
            raise ValueError("an index is no class")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path}: damaged, or not part of these labels ({one_line(error)}); {REMEDY}") from error
    return tensors, missing


# ---------------------------------------------------------------- read by the keys of samples


class LabelReader:
    """Reads the labels of a folder, by the positions of samples in whatever dataset asks.

    The files are mapped into memory: ranks share them, and only the rows that are asked for are copied. Positions stay
    on the CPU, so that reading never waits for a device.

    Args:
        folder: a complete folder of labels.
        keys: of the samples that positions count, which may be others than those with a label, in any order; None where
            they count the rows.
        expected: what the folder has to hold; None for whatever its manifest says.

    Raises:
        UserError: it holds something else, or is damaged.
    """

    def __init__(self, folder: Path, keys: SampleKeys | None = None, expected: Manifest | None = None):
        self.folder, self.keys, self.manifest = folder, keys, expected or read_manifest(folder)
        self.set_view(0)
        self.rows = None if keys is None else self._rows_of(keys)
        self.complete = not len(self.missing) and (self.rows is None or bool((self.rows >= 0).all()))

    def _rows_of(self, keys: SampleKeys) -> Tensor | None:
        """Return the row of each key, -1 for none; None where keys and rows are the same."""
        manifest = self.manifest
        if keys.by != manifest.keyed_by:
            raise UserError(f"{self.folder}: its labels are known by {manifest.keyed_by}, the samples of the data by "
                            f"{keys.by}")
        if keys.sha256 == manifest.keys_sha256 and len(keys.values) == manifest.num_samples:
            return None
        places = {key: row for row, key in enumerate(read_keys(self.folder, manifest))}
        return torch.tensor([places.get(key, -1) for key in keys.values])

    def set_view(self, view: int) -> None:
        """Choose the view that is read, and check its parts."""
        parts = [read_part(self.folder, self.manifest, part) for part in self.manifest.parts(view)]
        self.parts = [tensors for tensors, _ in parts]
        self.missing = torch.tensor([row for _, missing in parts for row in missing], dtype=torch.long)

    def has(self, index: Tensor) -> Tensor:
        """Say of which of the samples ``index`` (B,) there is a label."""
        rows = index if self.rows is None else self.rows[index]
        return (rows >= 0) & ~torch.isin(rows, self.missing)

    def __call__(self, index: Tensor, device: torch.device) -> Tensor:
        """Return logits (B, C) in float32 on ``device`` for the samples ``index`` (B,) on the CPU.

        Raises:
            UserError: one of them has no label.
        """
        absent = index[~self.has(index)]
        if len(absent):
            sample = int(absent[0]) if self.keys is None else self.keys.values[int(absent[0])]
            raise UserError(f"{self.folder}: has no label of {sample}, which may not have been readable when they were "
                            "made; delete the folder, and the next run makes it anew")

        # the rows of each part that has any
        rows = index if self.rows is None else self.rows[index]
        part_of_row = rows // self.manifest.rows
        found = {}
        for name, (shape, dtype) in self.manifest.layout.items():
            table = torch.empty(len(index), *shape, dtype=dtype, pin_memory=device.type == "cuda")
            for number in part_of_row.unique().tolist():
                where = part_of_row == number
                table[where] = self.parts[number][name][rows[where] - number * self.manifest.rows]
            found[name] = table.to(device, non_blocking=True)
        return self.manifest.decode(found)


# ---------------------------------------------------------------- written once


def ensure_labels(
        folder: Path,
        manifest: Manifest,
        keys: SampleKeys,
        labeller: Labeller,
        *,
        distributed: bool = False,
        progress: Callable[[Sequence], Sequence] | None = None,
    ) -> Path:
    """Return a complete folder of labels; what is missing of it is written, by all ranks together.

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
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
    title = manifest.title
    if not broadcast_from_rank0(rank == 0 and missing_parts(folder, manifest), distributed):
        _logger.info(f"{title.capitalize()} found in {folder}: the {title.split()[0]} need not run")
        return folder

    # All ranks ask for the lock again and again, so that none is left in a collective until it times out.
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    while not broadcast_from_rank0(rank == 0 and _acquire(lock), distributed):
        _logger.info(f"Another run is writing the {title} {folder}: waiting for it")
        time.sleep(1)
    try:
        missing = broadcast_from_rank0(rank == 0 and _prepare(folder, manifest, keys), distributed)
        parts = missing[rank::ranks]
        if parts:
            _logger.info(f"{title.capitalize()}: {manifest.kind} of {manifest.num_samples} images in {manifest.views} "
                         f"view(s), {len(missing)} part(s) to write to {folder}")
            for part, answers in zip(progress(parts) if progress else parts, labeller(parts)):
                write_part(folder, manifest, part, *answers)
        if distributed:
            barrier()
    finally:
        lock.release()
    return folder


def _prepare(folder: Path, manifest: Manifest, keys: SampleKeys) -> list[Part]:
    """Write what all parts share; return the parts that are missing, if another run has not made them meanwhile."""
    missing = missing_parts(folder, manifest)
    if missing:
        remove_temporary_files(folder)  # of a writer that was killed
        if keys.text is not None:
            write_text(folder / KEYS, keys.text)
        write_json(folder / MANIFEST, manifest.content)
    return missing


def missing_parts(folder: Path, manifest: Manifest) -> list[Part]:
    """Return the parts that are not there yet."""
    present = {path.name for path in folder.glob("*.safetensors")}
    return [part for view in range(manifest.views) for part in manifest.parts(view) if part.file not in present]


def _acquire(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True
