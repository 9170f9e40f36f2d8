"""A teacher's outputs for a training set, kept on disk: written once by all ranks, read by every later run.

A cache is a folder ``DIR/KEY`` for one model of a teacher. ``cache.json`` says what it was made of (data, teacher,
transform or views, storage), and KEY is a hash of that. The logits lie in parts: safetensors files of some hundred rows
or more, in the order of the data, each written to a temporary name and renamed, with a checksum of its own. A cache is
complete when all its parts are there; what an interrupted run has left is kept and gone on with. With V cached epochs
of views, view v of sample i is what a student sees of it in the epochs v, v + V, v + 2 V, ...

A part holds, for n samples of C classes, ``logits`` (n, C) in float16 or float32; or, with top-k, ``values`` (n, K + 1)
and ``indices`` (n, K): the K largest logits and where they belong. The last value stands for each of the other classes:
the logit that gives all of them together the mass that they had, spread evenly. So the probabilities of the K classes
stay what they were.

`output/targets/KEY/` holds one model's logits: `cache.json` (what KEY is a hash of: fingerprint and pixels of the
data, architecture, weights, class map, dtype and transform of the teacher, storage, and for cached views seed and
augmentation) and at most 64 parts a view, `viewVVV-FIRSTROW.safetensors`. A part has `logits` (n, C), or `values` (n,
K + 1) and `indices` (n, K), and one metadata entry with key, place, sha256 and the error of its rounding. Ranks take
parts in turn, every batch is of full size and within a part, so files do not depend on the number of ranks. One run
writes at a time (`KEY.lock`). A part is mapped into memory and its checksum compared when its view is first used; a
damaged one is refused, a missing one made anew. Positions of samples stay on the CPU, so that reading never waits for
a device.
"""

import contextlib
import hashlib
import json
import logging
import math
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.models import is_model, model_entrypoint
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

from ..data import LoaderSettings, Subset, TrainLoader, create_eval_loader
from ..data.unreadable import UNREADABLE, SkippedSamples, UnreadableSample
from ..data.views import ViewKey
from ..distributed.world import agree
from ..errors import UserError, one_line
from ..files import atomic_write, write_json
from ..teachers.teacher import TeacherModel, combine

_logger = logging.getLogger(__name__)

FORMAT = 1
MIN_ROWS, MAX_PARTS = 256, 64  # rows of a part at least, parts of a view at most
PROBES = 64  # samples whose pixels identify the data
LOG_SECONDS = 20
KNOWN_CODE = ("timm", "torch", "torchvision", "w2s_plugins")  # packages whose models state_dict and repr identify
_REMEDY = "delete this file, and the next run makes it anew"


class Part(NamedTuple):
    """Rows ``first`` to ``stop`` of one view."""

    view: int
    first: int
    stop: int

    @property
    def file(self) -> str:
        return f"view{self.view:03d}-{self.first:09d}.safetensors"


@dataclass(frozen=True)
class CacheSpec:
    """What a cache holds.

    Args:
        made_of: data, teacher and transform, in terms of json.
        num_samples: N.
        num_classes: C.
        views: number of cached epochs of views; 1 for labels of whole images.
        dtype: float16 or float32.
        topk: K, or None for all classes.
        who: whose outputs they are, for messages.
        what: what they are.

    Raises:
        UserError: K is not below the number of classes.
    """

    made_of: dict[str, object]
    num_samples: int
    num_classes: int
    views: int = 1
    dtype: torch.dtype = torch.float16
    topk: int | None = None
    who: str = "teacher"
    what: str = "targets"

    def __post_init__(self) -> None:
        if self.topk is not None and not 0 < self.topk < self.num_classes:
            raise UserError(f"--teacher-topk {self.topk}: expected 1 to {self.num_classes - 1}, below the number of "
                            f"classes; without the flag all {self.num_classes} are kept")

    @property
    def title(self) -> str:
        return f"{self.who.capitalize()} {self.what}"

    @cached_property
    def identity(self) -> dict[str, object]:
        """Everything that decides the content, as it comes back from json."""
        return json.loads(json.dumps(dict(
            format=FORMAT, samples=self.num_samples, classes=self.num_classes, views=self.views,
            dtype=str(self.dtype).removeprefix("torch."), topk=self.topk, **self.made_of), default=str))

    @cached_property
    def key(self) -> str:
        """Hash of the identity; the name of the folder."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:24]

    @property
    def rows(self) -> int:
        """Rows of a part; the last one of a view may have fewer."""
        return max(MIN_ROWS, math.ceil(self.num_samples / MAX_PARTS))

    def parts(self, view: int) -> list[Part]:
        """The parts of one view."""
        return [Part(view, first, min(first + self.rows, self.num_samples))
                for first in range(0, self.num_samples, self.rows)]

    @property
    def layout(self) -> dict[str, tuple[int, torch.dtype]]:
        """Columns and dtype of each tensor of a part."""
        if self.topk is None:
            return {"logits": (self.num_classes, self.dtype)}
        index_dtype = torch.int16 if self.num_classes <= 2 ** 15 else torch.int32
        return {"indices": (self.topk, index_dtype), "values": (self.topk + 1, self.dtype)}

    @property
    def row_bytes(self) -> int:
        return sum(columns * dtype.itemsize for columns, dtype in self.layout.values())

    def encode(self, logits: Tensor) -> dict[str, Tensor]:
        """Return the tensors of a part for logits (n, C) in float32."""
        largest = torch.finfo(self.dtype).max
        if self.topk is None:
            return {"logits": logits.clamp(-largest, largest).to(self.dtype)}
        values, indices = logits.topk(self.topk, dim=1)
        others = logits.scatter(1, indices, -math.inf).logsumexp(1, keepdim=True)
        values = torch.cat([values, others - math.log(self.num_classes - self.topk)], dim=1)
        return {"indices": indices.to(self.layout["indices"][1]),
                "values": values.clamp(-largest, largest).to(self.dtype)}

    def decode(self, tensors: dict[str, Tensor]) -> Tensor:
        """Return logits (n, C) in float32."""
        if self.topk is None:
            return tensors["logits"].float()
        values = tensors["values"].float()
        logits = values[:, -1:].repeat(1, self.num_classes)
        return logits.scatter_(1, tensors["indices"].long(), values[:, :-1])


# ---------------------------------------------------------------- what decides the key


def data_identity(dataset: Dataset, fingerprint: str | None) -> dict[str, object]:
    """Identify a training set: names and labels of its samples (``fingerprint``), pixels of some of them.

    Args:
        dataset: map-style; its transform is put back afterwards.
        fingerprint: that of `describe`, None where the dataset does not tell its labels.
    """
    transform, dataset.transform = dataset.transform, None
    pixels = hashlib.sha256()
    try:
        for index in np.linspace(0, len(dataset) - 1, min(PROBES, len(dataset))).astype(int).tolist():
            try:
                image = np.asarray(dataset[index][0])
            except UnreadableSample:  # whoever needs its pixels says so
                image = np.empty(0)
            pixels.update(f"{image.shape}".encode() + image.tobytes())
    finally:
        dataset.transform = transform
    return dict(fingerprint=fingerprint, pixels=pixels.hexdigest())


def teacher_identity(member: TeacherModel) -> dict[str, object]:
    """Identify a model of the teacher by its architecture, weights, class map and dtype.

    These do not tell all about a model with code of a plugin, so such a model says itself what it is, see
    `plugin_identity`.
    """
    weights = hashlib.sha256()
    for name, tensor in member.model.state_dict().items():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        weights.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        weights.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
    architecture = getattr(member.model, "pretrained_cfg", {}).get("architecture") or type(member.model).__name__
    return dict(
        architecture=architecture,
        modules=hashlib.sha256(repr(member.model).encode()).hexdigest(),
        sha256=weights.hexdigest(),
        class_map=None if member.class_map is None else member.class_map.tolist(),
        dtype=str(member.dtype).removeprefix("torch."),
        **plugin_identity(member.model, (member.source or {}).get("name")),
    )


def plugin_identity(model: nn.Module, name: str | None) -> dict[str, str]:
    """Identify the code and data of a model that comes from a plugin, nothing for those of timm and of this project.

    The model's method ``cache_identity()`` returns a text that is another one whenever anything changes that is neither
    in its ``state_dict`` nor in its ``repr``. Without that method the identity is of this run alone: what other runs
    have stored is not found, nor is it found by them.

    Args:
        model: the model.
        name: by which timm made it.

    Raises:
        UserError: the method returns something else.
    """
    module = foreign_code(model, name)
    if module is None:
        return {}
    if not hasattr(model, "cache_identity"):
        _logger.info(f"Model {name or type(model).__name__} is code of {module} without a cache_identity(): what is "
                     "stored of its outputs is for this run only")
        return dict(plugin=f"run {uuid.uuid4().hex}")
    identity = model.cache_identity()
    if not isinstance(identity, str) or not identity:
        raise UserError(f"cache_identity() of {type(model).__name__} ({module}) returned {str(identity)[:40]!r}, "
                        "expected a text that names the version of its code and data")
    return dict(plugin=identity)


def foreign_code(model: nn.Module, name: str | None = None) -> str | None:
    """Return the module whose code a model runs when it is none of `KNOWN_CODE`, else None.

    Args:
        model: the model.
        name: by which timm made it.
    """
    names = [n.partition(".")[0] for n in (name or "", str(getattr(model, "pretrained_cfg", {}).get("architecture")))]
    code = [model_entrypoint(n) for n in names if is_model(n)]
    for part in model.modules():
        code += [type(part), *part._forward_hooks.values(), *part._forward_pre_hooks.values(),
                 *(value for key, value in vars(part).items() if key.startswith("forward") and callable(value))]
    modules = [getattr(item, "__module__", None) or type(item).__module__ for item in code]
    return next((module for module in modules if module.partition(".")[0] not in KNOWN_CODE), None)


# ---------------------------------------------------------------- the teacher at work


class PartKeys(Sampler):
    """Keys of some parts, each part filled up to whole batches with its last key.

    Batches then do not straddle parts and are all of one size, so that logits do not depend on who wrote a part.
    """

    def __init__(self, parts: Sequence[Part], batch_size: int):
        self.parts, self.batch_size = parts, batch_size

    def batches(self, part: Part) -> int:
        return math.ceil((part.stop - part.first) / self.batch_size)

    def __len__(self) -> int:
        return sum(self.batches(part) for part in self.parts) * self.batch_size

    def __iter__(self) -> Iterator[ViewKey]:
        for part in self.parts:
            for row in range(part.first, part.first + self.batches(part) * self.batch_size):
                yield ViewKey(part.view, min(row, part.stop - 1))


class Labelled(NamedTuple):
    """A batch of outputs (B, C), and which of its samples could be read, (B,)."""

    logits: Tensor
    readable: Tensor


class ImageLabeller:
    """Labels whole images, through the teacher's own evaluation transform.

    Args:
        member: the teacher.
        dataset: the training set; its transform is changed. Unreadable samples end the run unless it is `Blanked`.
        batch_size: images at a time.
        workers: data worker processes.
        device: where the teacher runs.
        decoder: ``--decoder``.
    """

    def __init__(
            self,
            member: TeacherModel,
            dataset: Dataset,
            batch_size: int,
            workers: int,
            device: torch.device,
            decoder: str = "auto",
    ):
        self.member, self.dataset, self.batch_size = member, dataset, batch_size
        self.workers, self.device, self.decoder = workers, device, decoder

    def batches(self, keys: PartKeys) -> Iterator[Labelled]:
        """Yield the logits (B, C) of each batch of keys."""
        loader = create_eval_loader(
            Subset(self.dataset, [key.index for key in keys]), self.member.data_config,
            LoaderSettings(self.batch_size, self.workers, self.device, decoder=self.decoder))
        for images, labels in loader:
            yield Labelled(frozen_logits(self.member, images), labels.cpu() != UNREADABLE)


class ViewLabeller:
    """Labels the student's own training views, as a teacher beside it would.

    Args:
        member: the teacher.
        dataset: the training set, as for `ImageLabeller`.
        create_loader: makes a training loader of the views that a sampler of keys names.
        batch_size: views at a time.
        channels_last: memory layout of the images.
    """

    def __init__(self, member: TeacherModel, dataset: Dataset, create_loader: Callable[[Sampler], TrainLoader],
                 batch_size: int, channels_last: bool = False):
        self.member, self.dataset, self.create_loader = member, dataset, create_loader
        self.batch_size, self.channels_last = batch_size, channels_last

    def batches(self, keys: PartKeys) -> Iterator[Labelled]:
        """Yield the logits (B, C) of each batch of keys."""
        for batch in self.create_loader(keys).epoch(0):
            images = batch.input
            if self.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            logits = frozen_logits(lambda x: self.member(self.member.adapt(x)), images)
            yield Labelled(logits, batch.target.cpu() != UNREADABLE)


def frozen_logits(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return logits in float32 on the CPU, without autograd and autocast."""
    with torch.inference_mode(), torch.autocast(images.device.type, enabled=False):
        return model(images).cpu()


# ---------------------------------------------------------------- writing


def ensure_cache(
        root: Path,
        spec: CacheSpec,
        labeller: ImageLabeller | ViewLabeller,
        *,
        distributed: bool = False,
        progress: Callable[[Sequence], Sequence] | None = None,
        skipped: SkippedSamples | None = None,
) -> Path:
    """Return the folder of a complete cache; what is missing of it is written, by all ranks together.

    Only one run at a time writes a cache; another one that wants the same waits for it.

    Args:
        root: folder of all caches.
        spec: what the cache is to hold.
        labeller: runs the teacher.
        distributed: share the work among the ranks; all of them call this.
        progress: wraps the sequence of this rank's parts to show progress.
        skipped: counts the samples that could not be read, of a labeller whose dataset is `Blanked`.

    Raises:
        UserError: the cache in the folder is another one; no room on the disk; it cannot be written to; a sample
            cannot be read, or more of them than are allowed.
    """
    primary = not distributed or dist.get_rank() == 0
    folder = root / spec.key
    if not agree(primary and missing_parts(folder, spec), distributed):
        _logger.info(f"{spec.title} found in {folder}: the {spec.who} need not run")
        return folder
    with _one_writer(root, spec, primary, distributed):
        missing = agree(primary and _prepare(folder, spec), distributed)
        share = missing[dist.get_rank()::dist.get_world_size()] if distributed else missing
        _write(folder, spec, labeller, share, progress, skipped)
        if distributed:
            dist.barrier()
    return folder


def missing_parts(folder: Path, spec: CacheSpec) -> list[Part]:
    """Return the parts that are not there yet. Raises `UserError` for another cache, or too little room."""
    check_identity(folder, spec)
    present = {path.name for path in folder.glob("*.safetensors")}
    # before all parts are listed, of which there may be too many to list
    check_room(folder, (spec.num_samples * spec.views - len(present) * spec.rows) * spec.row_bytes)
    return [part for view in range(spec.views) for part in spec.parts(view) if part.file not in present]


def check_identity(folder: Path, spec: CacheSpec) -> None:
    """Raise a `UserError` that names the first thing in which the cache in ``folder`` is not the one wanted."""
    path = folder / "cache.json"
    if not path.exists():
        return
    try:
        found = dict(_leaves(json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)}); delete its folder, and the next run makes it "
                        "anew") from error
    wanted = dict(_leaves(spec.identity))
    for name in sorted(wanted.keys() | found.keys()):
        if found.get(name) != wanted.get(name):
            raise UserError(f"{folder}: this cache was made for {name} {found.get(name)}, this run has "
                            f"{wanted.get(name)}; delete the folder or give another --target-cache")


def _leaves(content: object, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(content, dict):
        for name, value in content.items():
            yield from _leaves(value, f"{path}.{name}" if path else name)
    else:
        yield path, content


def _prepare(folder: Path, spec: CacheSpec) -> list[Part]:
    """Look again with the lock held, say what will be written, and see that there is room for it."""
    missing = missing_parts(folder, spec)
    if not missing:
        _logger.info(f"{spec.title} found in {folder}: another run has made them meanwhile")
        return missing
    if not (folder / "cache.json").exists():
        write_json(folder / "cache.json", spec.identity)
    size = sum(part.stop - part.first for part in missing) * spec.row_bytes
    total, free = spec.num_samples * spec.views * spec.row_bytes, shutil.disk_usage(folder).free
    views = f" x {spec.views} views" if spec.views > 1 else ""
    kept = f"; {readable(total - size)} are there from an earlier run" if size < total else ""
    _logger.info(
        f"{spec.title}: {spec.num_samples} images{views}, {spec.num_classes} "
        f"{'classes' if spec.what == 'targets' else 'columns'}"
        f"{f', top {spec.topk}' if spec.topk else ''}, {spec.identity['dtype']}: {readable(size)} to write to {folder} "
        f"({readable(free)} free{kept})")
    check_room(folder, size)
    return missing


def check_room(folder: Path, size: int) -> None:
    """Raise a `UserError` when fewer than ``size`` bytes are free on the disk of a folder, which need not exist yet."""
    free = shutil.disk_usage(next(place for place in (folder.absolute(), *folder.absolute().parents)
                                  if place.exists())).free
    if size > free:
        raise UserError(f"--target-cache {folder}: {readable(size)} are needed, {readable(free)} are free; choose "
                        "another disk, or store less with --teacher-topk K, --teacher-cache-dtype float16 or fewer "
                        "views")


def _write(
        folder: Path,
        spec: CacheSpec,
        labeller: ImageLabeller | ViewLabeller,
        parts: Sequence[Part],
        progress: Callable[[Sequence], Sequence] | None,
        skipped: SkippedSamples | None,
) -> None:
    if not parts:
        return
    keys = PartKeys(parts, labeller.batch_size)
    batches, started = labeller.batches(keys), time.monotonic()
    said = started
    for done, part in enumerate(progress(parts) if progress else parts, start=1):
        logits, seen = (torch.cat(rows)[:part.stop - part.first]
                        for rows in zip(*(next(batches) for _ in range(keys.batches(part)))))
        missing = (part.first + (~seen).nonzero().flatten()).tolist()
        if missing:
            skipped.add(labeller.dataset.why(index) for index in missing)
        write_part(folder / part.file, spec, part, logits, missing)
        now = time.monotonic()
        if now - said > LOG_SECONDS:
            said = now
            _logger.info(f"{spec.title}: part {done} of {len(parts)}, "
                         f"{(now - started) / done * (len(parts) - done):.0f} s left")


def write_part(path: Path, spec: CacheSpec, part: Part, logits: Tensor, missing: Sequence[int] = ()) -> None:
    """Write the logits (n, C) of a part, with its place, a checksum, and the error of how they are stored.

    Args:
        path: the file.
        spec: what the cache holds.
        part: which part it is.
        logits: its rows.
        missing: samples that could not be read; nobody is given their rows.

    Raises:
        UserError: some logits are not finite, or the file cannot be written.
    """
    refuse_not_finite(path, spec, logits, part, missing)
    tensors = spec.encode(logits)
    difference = (spec.decode(tensors).softmax(dim=1) - logits.softmax(dim=1)).abs().double()
    about = dict(key=spec.key, part=part, sha256=digest(tensors),
                 max_error=difference.max().item(), mean_error=difference.mean().item())
    if missing:
        about["missing"] = list(missing)
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={"part": json.dumps(about)})  # one entry: their order is not fixed


def refuse_not_finite(path: Path, spec: CacheSpec, logits: Tensor, part: Part, missing: Sequence[int] = ()) -> None:
    """Raise a `UserError` that names samples with NaN or infinity; others would find it again and again."""
    rows = (part.first + (~logits.isfinite().all(dim=1)).nonzero().flatten()).tolist()
    if rows := [row for row in rows if row not in missing]:
        raise UserError(f"{path.parent}: the {spec.who} gives values that are not finite for {len(rows)} of "
                        f"{part.stop - part.first} samples ({', '.join(map(str, rows[:3]))}"
                        f"{', ...' if len(rows) > 3 else ''}); they are not stored: take other weights, or run it in "
                        "float32")


def digest(tensors: dict[str, Tensor]) -> str:
    """Return the sha256 of some tensors."""
    content = hashlib.sha256()
    for name in sorted(tensors):
        content.update(tensors[name].contiguous().numpy())
    return content.hexdigest()


@contextlib.contextmanager
def _one_writer(root: Path, spec: CacheSpec, primary: bool, distributed: bool) -> Iterator[None]:
    """Hold the lock of a cache, on rank 0 for all ranks. It is free again when its holder dies."""
    lock = FileLock(root / f"{spec.key}.lock")
    waiting = False
    # All ranks ask again and again, so that none is left in a collective until it times out.
    while not agree(primary and _acquire(lock, root / spec.key), distributed):
        if not waiting:
            _logger.info(f"Another run is writing the {spec.who} {spec.what} {root / spec.key}: waiting for it")
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


def readable(size: float) -> str:
    """Return a number of bytes as a short text."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


# ---------------------------------------------------------------- reading


class TargetReader:
    """Reads the logits of one model of the teacher.

    The files are mapped into memory, not read: only the rows that are asked for are. The parts of a view are checked
    when it is used for the first time.

    Args:
        folder: a complete cache.
        spec: what it holds.

    Raises:
        UserError: it holds something else, or is damaged.
    """

    def __init__(self, folder: Path, spec: CacheSpec):
        check_identity(folder, spec)
        self.folder, self.spec = folder, spec
        self.parts: list[dict[str, Tensor]] = []
        self.missing = torch.tensor([], dtype=torch.long)  # samples without an answer
        self.errors: dict[int, tuple[float, float]] = {}  # of the views that were checked
        self.set_view(0)

    def set_view(self, view: int) -> None:
        """Choose the view that is read."""
        check = view not in self.errors
        opened = [read_part(self.folder / part.file, self.spec, part, check) for part in self.spec.parts(view)]
        self.parts = [tensors for tensors, _ in opened]
        self.view, self.missing = view, torch.tensor(
            [index for _, about in opened for index in about.get("missing", ())], dtype=torch.long)
        self.errors[view] = (
            max(about["max_error"] for _, about in opened),
            sum(about["mean_error"] * len(next(iter(tensors.values()))) for tensors, about in opened)
            / self.spec.num_samples)

    def __call__(self, index: Tensor, device: torch.device) -> Tensor:
        """Return logits (B, C) in float32 on ``device`` for the samples ``index`` (B,) on the CPU.

        Raises:
            UserError: one of them could not be read when the cache was made, and now it can.
        """
        if len(self.missing) and (absent := index[torch.isin(index, self.missing)].tolist()):
            part = next(p for p in self.spec.parts(self.view) if p.first <= absent[0] < p.stop)
            raise UserError(f"{self.folder / part.file}: has no {self.spec.what} of sample {absent[0]}, which "
                            f"could not be read when they were made and now can; {_REMEDY}")
        rows, order = index.sort()
        pieces = rows.split(torch.bincount(rows // self.spec.rows, minlength=len(self.parts)).tolist())
        found = {}
        for name, (columns, dtype) in self.spec.layout.items():
            table = torch.empty(len(index), columns, dtype=dtype, pin_memory=device.type == "cuda")
            table[order] = torch.cat([
                part[name][piece - number * self.spec.rows]
                for number, (part, piece) in enumerate(zip(self.parts, pieces)) if len(piece)])
            found[name] = table.to(device, non_blocking=True)
        return self.spec.decode(found)


def read_part(path: Path, spec: CacheSpec, part: Part, check: bool = True) -> tuple[dict[str, Tensor], dict]:
    """Map a part into memory; return its tensors, and what was written about them.

    Args:
        path: the file.
        spec: what the cache holds.
        part: which part it is.
        check: compare the checksum, for which the file is read.

    Raises:
        UserError: absent, truncated, damaged, or part of another cache.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["part"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: truncated or damaged ({one_line(error)}); {_REMEDY}") from error
    found = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
    expected = {name: ((part.stop - part.first, columns), dtype) for name, (columns, dtype) in spec.layout.items()}
    if about.get("key") != spec.key or about.get("part") != list(part):
        raise UserError(f"{path}: is part {about.get('part')} of the cache {about.get('key')}, expected {list(part)} "
                        f"of {spec.key}; {_REMEDY}")
    if found != expected:
        raise UserError(f"{path}: holds {found}, expected {expected}; {_REMEDY}")
    missing = about.get("missing", [])
    if not isinstance(missing, list) or any(i not in range(part.first, part.stop) for i in missing):
        raise UserError(f"{path}: says that it lacks the samples {missing}, expected some from {part.first} to "
                        f"{part.stop - 1}; {_REMEDY}")
    if check and digest(tensors) != about.get("sha256"):
        raise UserError(f"{path}: its checksum is not that of its content, it was damaged; {_REMEDY}")
    if check and not all(t.isfinite().all() for t in tensors.values()):
        raise UserError(f"{path}: holds values that are not finite; {_REMEDY}")
    return tensors, about


class CachedTargets:
    """Logits of the teacher by sample, from its caches: the teacher need not run.

    Args:
        readers: one for each model of the teacher.
        device: where logits go.
    """

    def __init__(self, readers: Sequence[TargetReader], device: torch.device):
        self.readers, self.device = readers, device

    def set_epoch(self, epoch: int) -> None:
        """Choose the view of an epoch. Raises `UserError` when its files are damaged."""
        for reader in self.readers:
            if reader.spec.views > 1:
                reader.set_view(epoch % reader.spec.views)

    def __call__(self, index: Tensor) -> Tensor:
        """Return the logits (B, C) of the samples ``index`` (B,)."""
        return combine(list(self.by_member(index)))

    def by_member(self, index: Tensor) -> Tensor:
        """Return the logits of every member, (M, B, C)."""
        index = index.cpu()
        return torch.stack([reader(index, self.device) for reader in self.readers])

    @property
    def record(self) -> list[dict[str, str]]:
        """Key and folder of each cache, for the record of a run."""
        return [dict(key=reader.spec.key, path=str(reader.folder)) for reader in self.readers]
