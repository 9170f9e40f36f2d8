"""What a model says, stored: a folder of labels that is written once, checked, and read by the keys of samples.

`labels.json` is the manifest: what kind of answers, over which classes, by whom (`who`), of what (`seen`: the plain
image in which transform, or the student's views with their seed and augmentation), of how many samples in how many
views, and by what samples are known. `keys.json` lists the samples' keys (`data.keys`); it is absent where these count
the samples. The answers lie in at most 64 parts a view, `viewVVV-FIRSTROW.safetensors`, in the order of the keys. A
part of n samples holds, over C classes:

| kind | tensors |
| --- | --- |
| hard | `classes` (n,), in the smallest integers that hold C |
| probabilities, logits | `probabilities` or `logits` (n, C) |
| top-k | `values` (n, K + 1) and `indices` (n, K): the K largest logits and where they belong |
| features | `features` (n, D): no labels, but stored alike |

The last of the K + 1 values stands for each of the other classes: the logit that gives all of them together the mass
that they had, spread evenly. So the probabilities of the K classes stay what they were. The header of a part has one
entry with the key of its manifest, its place, the sha256 of its tensors, and the rows that nobody could be asked about.

Ranks write parts in turn, one run at a time, and a part is whole or absent, so the files depend neither on the number
of ranks nor on interruptions, as long as whoever labels says the same of a part at any time.
"""

import contextlib
import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
from ..errors import UserError, one_line
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

FORMAT = 1
MANIFEST, KEYS = "labels.json", "keys.json"
KINDS = ("hard", "probabilities", "top-k", "logits", "features")
DTYPES = {str(dtype).removeprefix("torch."): dtype
          for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
MIN_ROWS, MAX_PARTS = 256, 64  # rows of a part at least, parts of a view at most
PART_BYTES = 2 ** 28
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
Progress = Callable[[Sequence], Sequence]


# ---------------------------------------------------------------- the manifest


@dataclass(frozen=True)
class Manifest:
    """What a folder of labels holds.

    Args:
        num_samples: N.
        num_classes: C, or the width of features.
        who: identity of whoever said it, in terms of json.
        seen: identity of the data, and of what of a sample was seen.
        kind: one of `KINDS`.
        dtype: of what is stored, one of `DTYPES`; class numbers have one of their own.
        topk: K, for top-k only.
        views: number of views; 1 for plain images.
        class_names: names of the classes, None where they have none.
        keyed_by: what the samples' keys are, see `SampleKeys`.
        keys_sha256: hash of `keys.json`, None where the keys count the samples.
        part_rows: rows of a part, None for as many as make 64 parts.

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
    part_rows: int | None = None

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
        content = dict(
            format=FORMAT, kind=self.kind, dtype=str(self.stored).removeprefix("torch."), topk=self.topk,
            classes=self.num_classes, class_names=self.class_names, samples=self.num_samples, views=self.views,
            keys=dict(by=self.keyed_by, sha256=self.keys_sha256), who=self.who, seen=self.seen)
        if self.part_rows is not None:
            content["part_rows"] = self.part_rows
        return json.loads(json.dumps(content, default=str))

    @cached_property
    def key(self) -> str:
        """Hash of the content; folders of cached labels have it for a name."""
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()[:24]

    @property
    def rows(self) -> int:
        """Rows of a part; the last one of a view may have fewer."""
        return self.part_rows or max(MIN_ROWS, math.ceil(self.num_samples / MAX_PARTS))

    def parts(self, view: int) -> list[Part]:
        """The parts of one view."""
        return [Part(view, first, min(first + self.rows, self.num_samples))
                for first in range(0, self.num_samples, self.rows)]

    @property
    def stored(self) -> torch.dtype:
        """Dtype of the answers."""
        return self._class_dtype if self.kind == "hard" else self.dtype

    @property
    def _class_dtype(self) -> torch.dtype:
        return next(dtype for dtype in (torch.uint8, torch.int16, torch.int32)
                    if self.num_classes - 1 <= torch.iinfo(dtype).max)

    @property
    def layout(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape of a row, and dtype, of each tensor of a part."""
        if self.kind == "hard":
            return {"classes": ((), self.stored)}
        if self.kind == "top-k":
            return {"indices": ((self.topk,), self._class_dtype), "values": ((self.topk + 1,), self.dtype)}
        return {self.kind: ((self.num_classes,), self.dtype)}

    @property
    def row_bytes(self) -> int:
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.layout.values())

    def encode(self, answers: Tensor) -> dict[str, Tensor]:
        """Return the tensors of a part.

        Args:
            answers: class numbers (n,) for hard labels, probabilities (n, C), features (n, D), or else logits (n, C),
                in float32.
        """
        if self.kind == "hard":
            return {"classes": answers.to(self.stored)}
        if self.kind == "top-k":
            values, indices = answers.topk(self.topk, dim=1)
            others = answers.scatter(1, indices, -math.inf).logsumexp(1, keepdim=True)
            values = torch.cat([values, others - math.log(self.num_classes - self.topk)], dim=1)
            return {"indices": indices.to(self._class_dtype), "values": self._rounded(values)}
        return {self.kind: self._rounded(answers)}

    def _rounded(self, values: Tensor) -> Tensor:
        largest = torch.finfo(self.dtype).max
        return values.to(self.dtype).clamp(-largest, largest)

    def decode(self, tensors: dict[str, Tensor], confidence: float = 1.0) -> Tensor:
        """Return logits (n, C), or features, in float32; none of them is infinite.

        Args:
            tensors: rows of a part.
            confidence: the probability of the class of a hard label; the others share the rest evenly.
        """
        if self.kind == "hard":
            classes = tensors["classes"].long().unsqueeze(1)
            other = math.log(max((1 - confidence) / max(1, self.num_classes - 1), TINY))
            logits = torch.full((len(classes), self.num_classes), other, device=classes.device)
            return logits.scatter_(1, classes, math.log(max(confidence, TINY)))
        if self.kind == "top-k":
            values = tensors["values"].float()
            logits = values[:, -1:].repeat(1, self.num_classes)
            return logits.scatter_(1, tensors["indices"].long(), values[:, :-1])
        answers = tensors[self.kind].float()
        return answers.clamp(min=TINY).log() if self.kind == "probabilities" else answers

    def fault(self, tensors: dict[str, Tensor]) -> str | None:
        """Say what is wrong with the values of a part; None where nothing is."""
        for name, tensor in tensors.items():
            if not tensor.is_floating_point():
                if tensor.min() < 0 or tensor.max() >= self.num_classes:
                    return f"classes outside of 0 to {self.num_classes - 1}"
            elif not tensor.isfinite().all():
                return "values that are not finite"
            elif name == "probabilities" and tensor.min() < 0:
                return "negative probabilities"
        return None


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a folder of labels, whoever has written it.

    Raises:
        UserError: there is none, or it is none of this format.
    """
    path = folder / MANIFEST
    try:
        found = read_plain(path)
        manifest = Manifest(
            found["samples"], found["classes"], found["who"], found["seen"], found["kind"],
            DTYPES.get(found["dtype"], torch.float32), found["topk"], found["views"], found["class_names"],
            found["keys"]["by"], found["keys"]["sha256"], found.get("part_rows"))
        if not _is_of_format(manifest) or manifest.content != found:
            raise ValueError("its values do not go together")
    except (OSError, ValueError, KeyError, TypeError, UserError, StopIteration) as error:
        raise UserError(f"{path}: no manifest of labels in format {FORMAT} ({one_line(error)})") from error
    # a few bytes must not ask for any amount of memory
    stored = sum(part.stat().st_size for part in folder.glob("view*.safetensors"))
    check_count(manifest.num_samples, stored, f"{path}: its samples, by the bytes of its parts")
    if manifest.kind in ("hard", "top-k"):  # others have a column for each
        behind = max(manifest.num_samples, len(manifest.class_names or ()))
        check_count(manifest.num_classes, behind, f"{path}: its classes")
    return manifest


def _is_of_format(manifest: Manifest) -> bool:
    """Say whether the values of a manifest that comes from outside are of the types that they should be."""
    counts = [manifest.num_samples, manifest.num_classes, manifest.views]
    if manifest.kind == "top-k":
        counts.append(manifest.topk)
    elif manifest.topk is not None or manifest.kind not in KINDS:
        return False
    if manifest.part_rows is not None:
        counts.append(manifest.part_rows)
    names = manifest.class_names
    named = names is None or (isinstance(names, list) and len(names) == manifest.num_classes
                              and all(isinstance(name, str) for name in names))
    described = isinstance(manifest.who, dict) and isinstance(manifest.seen, dict)
    return named and described and all(type(count) is int and 0 < count < 2 ** 40 for count in counts)


def read_keys(folder: Path, manifest: Manifest) -> Sequence[str] | Sequence[int]:
    """Return the keys of the samples of a folder of labels.

    Raises:
        UserError: the file is absent or damaged, or names a sample twice.
    """
    if manifest.keys_sha256 is None:
        return range(manifest.num_samples)
    path = folder / KEYS
    kind = str if manifest.keyed_by == "filename" else int
    try:
        keys = json.loads(read_text(path))
        if file_sha256(path) != manifest.keys_sha256:
            raise ValueError("its checksum is not that of its content")
        if not isinstance(keys, list) or not all(type(key) is kind for key in keys):
            raise ValueError(f"no list of {kind.__name__}")
        if not len(set(keys)) == len(keys) == manifest.num_samples:
            raise ValueError(f"{len(set(keys))} different keys of {manifest.num_samples} samples")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({one_line(error)}); take another copy of the file") from error
    return keys


def rows_by_size(columns: int) -> int:
    """Return how many rows of answers go into a part of `PART_BYTES` in float32, for folders that are one of many."""
    return max(MIN_ROWS, PART_BYTES // (4 * columns))


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
    refuse_not_finite(folder, manifest, part, answers, missing)
    tensors = manifest.encode(answers)
    about = dict(key=manifest.key, part=part, sha256=digest(tensors))
    if missing:
        about["missing"] = list(missing)
    with atomic_write(folder / part.file) as temporary:
        save_file(tensors, temporary, metadata={"part": json.dumps(about)})  # one entry: their order is not fixed


def refuse_not_finite(
        folder: Path, manifest: Manifest, part: Part, answers: Tensor, missing: Sequence[int] = ()) -> None:
    """Raise a `UserError` that names samples with NaN or infinity; others would find it again and again."""
    odd = (~answers.isfinite().reshape(len(answers), -1).all(dim=1)).nonzero().flatten() + part.first
    rows = [row for row in odd.tolist() if row not in missing]
    if rows:
        raise UserError(f"{folder}: the {manifest.title.split()[0]} gives values that are not finite for {len(rows)} "
                        f"of {part.stop - part.first} samples (first: {rows[0]}); they are not stored: take other "
                        "weights or, where it runs in half precision, leave out --amp")


def read_part(folder: Path, manifest: Manifest, part: Part, check: bool = True) -> tuple[dict[str, Tensor], dict]:
    """Map a part into memory; return its tensors, and what was written about them.

    Args:
        folder: of the labels.
        manifest: what the folder holds.
        part: which part it is.
        check: compare the checksum, for which the file is read.

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
        if not isinstance(missing, list) or any(row not in range(part.first, part.stop) for row in missing):
            raise ValueError("it says that it lacks samples of other parts")
        if check and digest(tensors) != about.get("sha256"):
            raise ValueError("its checksum is not that of its content")
        fault = manifest.fault(tensors) if check else None
        if fault is not None:
            raise ValueError(f"it holds {fault}")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged, or not part of these labels ({one_line(error)}); {REMEDY}") from error
    return tensors, about


# ---------------------------------------------------------------- read by the keys of samples


class LabelReader:
    """Reads the labels of a folder, by the positions of samples in whatever dataset asks.

    The files are mapped into memory, not read: only the rows that are asked for are. The parts of a view are checked
    when it is used for the first time. Positions stay on the CPU, so that reading never waits for a device.

    Args:
        folder: a complete folder of labels.
        keys: of the samples that positions count, which may be others than those with a label, in any order; None where
            they count the rows.
        expected: what the folder has to hold; None for whatever its manifest says.
        confidence: see `Manifest.decode`.
        partial: there may be no label of any of these samples.

    Raises:
        UserError: it holds something else, no label of these samples, or is damaged.
    """

    def __init__(self, folder: Path, keys: SampleKeys | None = None, expected: Manifest | None = None,
                 confidence: float = 1.0, partial: bool = False):
        if expected is not None:
            check_content(folder, expected)
        self.folder, self.confidence = folder, confidence
        self.manifest = read_manifest(folder) if expected is None else expected
        self.keys, self.partial = keys, partial
        self.rows = None if keys is None else self._rows_of(keys)
        self.checked: set[int] = set()  # views
        self.set_view(0)

    def _rows_of(self, keys: SampleKeys) -> Tensor | None:
        """Return the row of each key, -1 for none; None where keys and rows are the same."""
        manifest = self.manifest
        if keys.by != manifest.keyed_by:
            raise UserError(f"{self.folder}: its labels are known by {manifest.keyed_by}, the samples of the data by "
                            f"{keys.by}")
        if keys.sha256 == manifest.keys_sha256 and len(keys.values) == manifest.num_samples:
            return None
        own = read_keys(self.folder, manifest)
        places = {key: row for row, key in enumerate(own)}
        rows = torch.tensor([places.get(key, -1) for key in keys.values])
        if (rows < 0).all() and not self.partial:
            raise UserError(f"{self.folder}: has no label of any of the {len(rows)} samples, such as "
                            f"{keys.values[0]}; its {len(own)} labels are of others, such as {own[0]}")
        return rows

    def set_view(self, view: int) -> None:
        """Choose the view that is read."""
        opened = [read_part(self.folder, self.manifest, part, check=view not in self.checked)
                  for part in self.manifest.parts(view)]
        self.checked.add(view)
        self.view = view
        self.parts = [tensors for tensors, _ in opened]
        # rows that nobody could be asked about
        self.missing = torch.tensor([row for _, about in opened for row in about.get("missing", ())], dtype=torch.long)
        self.complete = not len(self.missing) and (self.rows is None or bool((self.rows >= 0).all()))

    def has(self, index: Tensor) -> Tensor:
        """Say of which of the samples ``index`` (B,) there is a label."""
        rows = index if self.rows is None else self.rows[index]
        return (rows >= 0) & ~torch.isin(rows, self.missing)

    def __call__(self, index: Tensor, device: torch.device) -> Tensor:
        """Return logits (B, C) in float32 on ``device`` for the samples ``index`` (B,) on the CPU.

        Raises:
            UserError: one of them has no label.
        """
        if not self.complete:
            self._refuse_absent(index)
        rows, order = (index if self.rows is None else self.rows[index]).sort()
        pieces = rows.split(torch.bincount(rows // self.manifest.rows, minlength=len(self.parts)).tolist())
        found = {}
        for name, (shape, dtype) in self.manifest.layout.items():
            table = torch.empty(len(index), *shape, dtype=dtype, pin_memory=device.type == "cuda")
            taken = [table[:0]]  # which makes no sample a batch, too
            for number, (part, piece) in enumerate(zip(self.parts, pieces)):
                if len(piece):
                    taken.append(part[name][piece - number * self.manifest.rows])
            table[order] = torch.cat(taken)
            found[name] = table.to(device, non_blocking=True)
        return self.manifest.decode(found, self.confidence)

    def _refuse_absent(self, index: Tensor) -> None:
        absent = index[~self.has(index)].tolist()
        if not absent:
            return
        row = absent[0] if self.rows is None else int(self.rows[absent[0]])
        if row < 0:
            raise UserError(f"{self.folder}: has no label of {self.keys.values[absent[0]]}")
        part = self.manifest.parts(self.view)[row // self.manifest.rows]
        raise UserError(f"{self.folder / part.file}: has no {self.manifest.title.split()[1]} of sample {absent[0]}, "
                        f"which could not be read when they were made and now can; {REMEDY}")


# ---------------------------------------------------------------- written once


def ensure_labels(
        folder: Path,
        manifest: Manifest,
        keys: SampleKeys,
        labeller: Labeller,
        *,
        distributed: bool = False,
        progress: Progress | None = None,
        title: str | None = None,
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
        title: what they are called in messages, in place of `Manifest.title`.

    Raises:
        UserError: other labels are in the folder; no room on the disk; it cannot be written to.
    """
    primary = not distributed or dist.get_rank() == 0
    title = title or manifest.title
    if not broadcast_from_rank0(primary and missing_parts(folder, manifest), distributed):
        _logger.info(f"{title.capitalize()} found in {folder}: the {title.split()[0]} need not run")
        return folder
    with _one_writer(folder, title, primary, distributed):
        parts = broadcast_from_rank0(primary and _prepare(folder, manifest, keys, title), distributed)
        if distributed:
            parts = parts[dist.get_rank()::dist.get_world_size()]
        if parts:
            shown = progress(parts) if progress else parts
            for part, answers in zip(shown, labeller(parts)):
                write_part(folder, manifest, part, *answers)
        if distributed:
            barrier()
    return folder


def missing_parts(folder: Path, manifest: Manifest) -> list[Part]:
    """Return the parts that are not there yet. Raises `UserError` for other labels, or too little room."""
    check_content(folder, manifest)
    present = {path.name for path in folder.glob("*.safetensors")}
    # before all parts are listed, of which there may be too many to list
    size = (manifest.num_samples * manifest.views - len(present) * manifest.rows) * manifest.row_bytes
    exists = next(place for place in (folder.absolute() / MANIFEST).parents if place.exists())
    free = shutil.disk_usage(exists).free
    if size > free:
        raise UserError(f"--target-cache {folder}: {size / 1e9:.3g} GB are needed, {free / 1e9:.3g} GB are free; "
                        "choose another disk, or store less with --teacher-topk K or fewer views")
    return [part for view in range(manifest.views) for part in manifest.parts(view) if part.file not in present]


def check_content(folder: Path, manifest: Manifest) -> None:
    """Raise a `UserError` where the labels in ``folder`` are not those wanted."""
    path = folder / MANIFEST
    if not path.exists():
        return
    try:
        found = read_plain(path)
    except (OSError, ValueError):
        found = None
    if found != manifest.content:
        raise UserError(f"{folder}: has other labels than this run would make; delete the folder, or give another "
                        "--target-cache")


def _prepare(folder: Path, manifest: Manifest, keys: SampleKeys, title: str) -> list[Part]:
    """Look again with the lock held, write what all parts share, and say what will be written."""
    missing = missing_parts(folder, manifest)
    if not missing:
        return missing  # another run has made them meanwhile
    remove_temporary_files(folder)  # of a writer that was killed
    if not (folder / MANIFEST).exists():
        if keys.text is not None:
            write_text(folder / KEYS, keys.text)
        write_json(folder / MANIFEST, manifest.content)
    size = sum(part.stop - part.first for part in missing) * manifest.row_bytes
    _logger.info(f"{title.capitalize()}: {manifest.kind} of {manifest.num_samples} images in {manifest.views} view(s), "
                 f"{size / 1e6:.3g} MB to write to {folder}")
    return missing


@contextlib.contextmanager
def _one_writer(folder: Path, title: str, primary: bool, distributed: bool) -> Iterator[None]:
    """Hold the lock of a folder, on rank 0 for all ranks. It is free again when its holder dies."""
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    waiting = False
    # All ranks ask again and again, so that none is left in a collective until it times out.
    while not broadcast_from_rank0(primary and _acquire(lock, folder), distributed):
        if not waiting:
            _logger.info(f"Another run is writing the {title} {folder}: waiting for it")
        waiting = True
        time.sleep(1)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        return False
    except (OSError, NotImplementedError) as error:
        raise UserError(f"--target-cache {folder.parent}: cannot be written to ({one_line(error)}); choose another "
                        "folder") from error
    return True
