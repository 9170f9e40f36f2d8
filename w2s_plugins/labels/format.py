"""The format of labels: who said what about which sample, as a folder.

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
entry with the key of its manifest, its place, the sha256 of its tensors, the error of its rounding, and the rows that
nobody could be asked about.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError, one_line
from ..files import atomic_write, check_count, check_regular, read_plain

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
        return json.loads(json.dumps(dict(
            format=FORMAT, kind=self.kind, dtype=str(self.stored).removeprefix("torch."), topk=self.topk,
            classes=self.num_classes, class_names=self.class_names, samples=self.num_samples, views=self.views,
            keys=dict(by=self.keyed_by, sha256=self.keys_sha256), who=self.who, seen=self.seen,
            **({} if self.part_rows is None else {"part_rows": self.part_rows})), default=str))

    @cached_property
    def key(self) -> str:
        """Hash of the content; folders of cached labels have it for a name."""
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()[:24]

    # ------------------------------------------------------------ where things lie

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

    # ------------------------------------------------------------ what answers become

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

    def rounding(self, answers: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """Return by how much probabilities differ for being stored, (n, C)."""
        if self.kind == "hard":
            return torch.zeros(1)
        given = answers if self.kind == "probabilities" else answers.softmax(dim=1)
        return (self.decode(tensors).softmax(dim=1) - given).abs().double()

    def fault(self, tensors: dict[str, Tensor]) -> str | None:
        """Say what is wrong with the values of a part; None where nothing is."""
        for name, tensor in tensors.items():
            if not tensor.is_floating_point():
                if not 0 <= int(tensor.min()) <= int(tensor.max()) < self.num_classes:
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
        counts, names, keys = [found[name] for name in ("samples", "classes", "views")], found["class_names"], (
            found["keys"])
        manifest = Manifest(
            *counts[:2], found["who"], found["seen"], found["kind"], DTYPES.get(found["dtype"], torch.float32),
            found["topk"], counts[2], names, keys["by"], keys["sha256"], found.get("part_rows"))
        whole = all(type(count) is int and 0 < count < 2 ** 40 for count in counts) and (
            manifest.kind in KINDS and (manifest.kind == "top-k") == (type(manifest.topk) is int)
            and (manifest.part_rows is None or (type(manifest.part_rows) is int and manifest.part_rows >= MIN_ROWS))
            and (names is None or (isinstance(names, list) and len(names) == manifest.num_classes
                                   and all(isinstance(name, str) for name in names)))
            and all(isinstance(part, dict) for part in (manifest.who, manifest.seen)))
        if not whole or manifest.content != found:
            raise ValueError("its values do not go together")
    except (OSError, ValueError, KeyError, TypeError, UserError, StopIteration) as error:
        raise UserError(f"{path}: no manifest of labels in format {FORMAT} ({one_line(error)})") from error
    stored = sum(part.stat().st_size for part in folder.glob("view*.safetensors"))
    check_count(manifest.num_samples, stored, f"{path}: its samples, by the bytes of its parts")
    if manifest.kind in ("hard", "top-k"):  # others have a column for each
        check_count(manifest.num_classes, max(manifest.num_samples, len(names or ())), f"{path}: its classes")
    return manifest


def rows_by_size(columns: int) -> int:
    """Return how many rows of answers go into a part of `PART_BYTES` in float32, for folders that are one of many."""
    return max(MIN_ROWS, PART_BYTES // (4 * columns))


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
    error = manifest.rounding(answers, tensors)
    about = dict(key=manifest.key, part=part, sha256=digest(tensors), max_error=error.max().item(),
                 mean_error=error.mean().item())
    if missing:
        about["missing"] = list(missing)
    with atomic_write(folder / part.file) as temporary:
        save_file(tensors, temporary, metadata={"part": json.dumps(about)})  # one entry: their order is not fixed


def refuse_not_finite(
        folder: Path, manifest: Manifest, part: Part, answers: Tensor, missing: Sequence[int] = ()) -> None:
    """Raise a `UserError` that names samples with NaN or infinity; others would find it again and again."""
    rows = (part.first + (~answers.isfinite().reshape(len(answers), -1).all(dim=1)).nonzero().flatten()).tolist()
    if rows := [row for row in rows if row not in missing]:
        raise UserError(f"{folder}: the {manifest.title.split()[0]} gives values that are not finite for {len(rows)} "
                        f"of {part.stop - part.first} samples ({', '.join(map(str, rows[:3]))}"
                        f"{', ...' if len(rows) > 3 else ''}); they are not stored: take other weights or, where it "
                        "runs in half precision, leave out --amp")


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
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["part"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        if about["key"] != manifest.key or about["part"] != list(part):
            raise UserError(f"{path}: is part {about['part']} of the labels {about['key']}, expected {list(part)} of "
                            f"{manifest.key}; {REMEDY}")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: truncated or damaged ({one_line(error)}); {REMEDY}") from error
    found = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
    expected = {name: ((part.stop - part.first, *shape), dtype) for name, (shape, dtype) in manifest.layout.items()}
    if found != expected:
        raise UserError(f"{path}: holds {found}, expected {expected}; {REMEDY}")
    missing = about.get("missing", [])
    if not isinstance(missing, list) or any(i not in range(part.first, part.stop) for i in missing):
        raise UserError(f"{path}: says that it lacks the samples {missing}, expected some from {part.first} to "
                        f"{part.stop - 1}; {REMEDY}")
    if check and digest(tensors) != about.get("sha256"):
        raise UserError(f"{path}: its checksum is not that of its content, it was damaged; {REMEDY}")
    if check and (fault := manifest.fault(tensors)):
        raise UserError(f"{path}: holds {fault}; {REMEDY}")
    return tensors, about
