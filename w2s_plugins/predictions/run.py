"""A model asked about images without labels, and its answers written as a table of labels.

The answers are kept beside the table as they come, in the parts of the format of labels (`labels.writer`): so several
processes share the work, and an interrupted prediction goes on. The folder is named after model, images and transform,
and is deleted when the table is there.
"""

import logging
import os
import shutil
import sys
import time
import zipfile
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..build.device import join_group
from ..build.flags import check_model_name
from ..data.decoding import FileDataset
from ..data.keys import SampleKeys, data_identity, sample_keys
from ..data.unlabeled import open_images
from ..data.unreadable import Blanked
from ..distributed.world import World, meet
from ..errors import UserError, exit_now
from ..files import atomic_write, delete
from ..labels.answers import TableForm, answer_columns, check_form
from ..labels.format import Manifest, Part
from ..labels.names import read_class_names
from ..labels.reader import LabelReader
from ..labels.table_writer import write_label_table
from ..labels.writer import Answers, ensure_labels, missing_parts, readable
from ..models.class_names import names_of_model
from ..models.loading import check_finite, check_input_size
from ..monitor import setup_logging
from ..monitor.console import duration, has_terminal, tqdm
from ..quiet import unsaid
from ..registry import load_plugins
from ..run.args_file import read_run_args
from ..teachers import kinds
from ..teachers.identity import teacher_identity
from ..teachers.kinds import check_kind, input_text, kind_of, open_kind, read_prompts
from ..teachers.stored import Pass, label_images
from ..teachers.teacher import StudentInput, TeacherModel, TeacherSettings, load_frozen_model

_logger = logging.getLogger(__name__)

FLAGS = "MODEL", "--checkpoint"
PATIENCE = 600.0  # seconds that an exchange between processes may take
LOG_SECONDS = 20
SHOWN = 10  # unreadable images that are named


@dataclass(frozen=True)
class Request:
    """What is predicted, and where it goes; the flags of the command."""

    model: str
    dir: Path | str  # of shards a text
    output: Path | None = None
    checkpoint: str | None = None
    class_names: str | None = None
    prompts: str | None = None
    top_k: int | None = None
    all: bool = False  # every class with its probability
    embeddings: Path | None = None
    img_size: int | None = None
    batch_size: int = 64
    workers: int = 4
    device: str | None = None
    plugins: Sequence[str] = ()


@dataclass(frozen=True)
class Predictor:
    """A frozen model and the names of its classes, None where it knows none."""

    member: TeacherModel
    class_names: list[str] | None
    embeds: bool

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits (B, C), and beside them the embeddings (B, D) where these are wanted."""
        logits = self.member(images)
        return torch.cat([logits, self.member.encode(images)], dim=1) if self.embeds else logits


def predict(request: Request) -> None:
    """Write what a model says of the images of a folder or tar file.

    Raises:
        UserError: no such model or images; its classes do not fit the table; the disk is full.
    """
    setup_logging(primary=int(os.environ.get("RANK", "0")) == 0)
    load_plugins(request.plugins)
    names = read_class_names(request.class_names) if request.class_names else None
    dataset = open_images(request.dir)
    world = join_group(request.device or ("cuda" if torch.cuda.is_available() else "cpu"), PATIENCE)
    predictor = open_predictor(request, names, world.device)
    dataset.input_img_mode = "RGB" if predictor.member.data_config["input_size"][0] == 3 else "L"
    form = TableForm(request.top_k, request.all)
    check_form(form, predictor.class_names, predictor.member.num_classes)
    keys = sample_keys(dataset)
    manifest = describe(predictor, dataset, keys)
    parts = request.output.with_name(f"{request.output.name}.parts")
    with unsaid("w2s_plugins.labels.writer"):  # it speaks of a teacher's targets
        folder = ask_model(predictor, dataset, keys, manifest, parts / manifest.key, request, world)
    if world.primary:
        write_answers(folder, manifest, keys, dataset, predictor, form, request)
        delete(parts)
    if world.distributed:
        meet()
        dist.destroy_process_group()
        exit_now(0)


# ---------------------------------------------------------------- the model


def open_predictor(request: Request, names: list[str] | None, device: torch.device) -> Predictor:
    """Open the model with its own input size and normalisation."""
    if names is None and request.model.startswith("clip:"):
        raise UserError(f"{FLAGS[0]} {request.model}: needs the names of the classes: give --class-names FILE or a,b,c")
    if kind_of(request.model):
        opened = open_kind(request.model, kinds.Request(
            names, num_classes=None if names is None else len(names), img_size=request.img_size,
            prompts=read_prompts(request.prompts)), FLAGS[0])
        model, config, own = opened.model, opened.data_config, opened.class_names
    else:
        model, config, own = open_model(request.model, request.checkpoint, request.img_size)
    check_input_size(model, config["input_size"], f"{FLAGS[0]} {request.model}")
    if names is not None and len(names) != model.num_classes:
        raise UserError(f"--class-names: {len(names)} names, but {request.model} has {model.num_classes} classes")
    if names and own and names != own:
        raise UserError(f"--class-names: {request.model} has names of its own, {', '.join(own[:3])}, ...; leave the "
                        "flag out")
    own = names or own
    _logger.info(f"{request.model}: {model.num_classes} classes{'' if own else ' without names'}; it sees "
                 f"{input_text(config, whole=True)}")
    student = StudentInput(config["mean"], config["std"], config["input_size"][0], None)  # sees what the model sees
    member = TeacherModel(model, config, student, source=dict(name=request.model)).to(device)
    if request.embeddings is not None and not member.embeds:
        raise UserError(f"--embeddings: {request.model} has no features before its classifier that can be had; models "
                        "of timm and clip: have")
    return Predictor(member, own, request.embeddings is not None)


def open_model(
        model: str, checkpoint: str | None = None, img_size: int | None = None,
) -> tuple[nn.Module, dict[str, Any], list[str] | None]:
    """Open a model of timm: one by its name, or what is in the folder of a run or of an export.

    Returns:
        The model, the data configuration of its input, and the names of its classes, None where it knows none.

    Raises:
        UserError: there is none, it is of another kind, or its weights are not finite.
    """
    if kind_of(model):
        raise UserError(f"MODEL {model}: no model of timm; expected a run folder, an export, hf-hub:ORG/NAME, "
                        "or timm name")
    name, checkpoint = model_at(model, checkpoint)
    opened, config, _ = load_frozen_model(name, checkpoint, None, TeacherSettings(img_size=img_size), FLAGS)
    check_finite(opened.state_dict(), model, "MODEL")
    return opened, config, names_of_model(opened, checkpoint, FLAGS[1])


def model_at(model: str, checkpoint: str | None) -> tuple[str, str | None]:
    """Return name and weights of a model; it may be a folder of a run or of an export."""
    folder = Path(model)
    if checkpoint is None and folder.is_dir():
        for place in (folder, folder / "export"):
            if (place / "config.json").is_file():
                return f"local-dir:{place}", None
        if not (folder / "args.yaml").is_file():
            raise UserError(f"MODEL {model}: neither the folder of a run (args.yaml) nor an export of timm (config.json"
                            " and model.safetensors)")
        run = read_run_args(folder, "MODEL")
        model, checkpoint = str(run["model"]), str(folder)
    if ":" not in model:
        check_model_name("MODEL", model)
    else:
        check_kind("MODEL", model)
    return model, checkpoint


# ---------------------------------------------------------------- its answers


def describe(predictor: Predictor, dataset: FileDataset, keys: SampleKeys) -> Manifest:
    """Return the manifest of the answers: logits and embeddings side by side, as the model gives them."""
    member = predictor.member
    width = member.num_classes
    if predictor.embeds:
        some = torch.zeros(1, *member.data_config["input_size"], device=member.scale.device)
        with torch.inference_mode():
            width += member.encode(some).shape[1]
    seen = dict(data=data_identity(dataset, None), transform=member.data_config)
    return Manifest(len(dataset), width, teacher_identity(member), seen, "features", torch.float32,
                    keyed_by=keys.by, keys_sha256=keys.sha256)


def ask_model(
        predictor: Predictor, dataset: FileDataset, keys: SampleKeys, manifest: Manifest, folder: Path,
        request: Request, world: World,
) -> Path:
    """Ask the model about the images that it was not asked about before, on all processes together."""
    total = manifest.num_samples
    if world.primary:
        refuse_full_disk(folder, manifest, request.output)
        count = sum(part.stop - part.first for part in missing_parts(folder, manifest))
        kept = f", {total - count} of which are answered from before" if count < total else ""
        _logger.info(f"{request.dir}: {total} images{kept}; {readable(total * manifest.row_bytes)} are needed in "
                     f"{folder.parent} until {request.output.name} is written")
    how = Pass(world, request.batch_size, request.workers)

    def labeller(parts: Sequence[Part]) -> Iterator[Answers]:
        with Progress(sum(part.stop - part.first for part in parts), world) as progress:
            yield from label_images(
                progress.counting(predictor), predictor.member.data_config, Blanked(dataset), how, parts)
    return ensure_labels(folder, manifest, keys, labeller, distributed=world.distributed)


def refuse_full_disk(folder: Path, manifest: Manifest, output: Path) -> None:
    """Raise a `UserError` when the disk has no room for the answers that are not there yet."""
    present = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    needed, free = manifest.num_samples * manifest.row_bytes - present, shutil.disk_usage(output.parent).free
    if needed > free:
        raise UserError(f"--output {output}: {readable(needed)} are needed beside it, {readable(free)} are free; "
                        "choose another disk")


class Progress:
    """How far this process is with its share of the images: a bar on a terminal, lines elsewhere; rank 0 only."""

    def __init__(self, total: int, world: World):
        self.total, self.done, self.shown = total, 0, world.primary
        self.share = f" of process 1 of {world.size}" if world.distributed else ""
        self.started = self.said = time.monotonic()
        self.bar = tqdm(total=total, unit="img", dynamic_ncols=True, leave=False, file=sys.stdout) if (
            self.shown and has_terminal()) else None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def counting(self, ask: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Return a function that does what ``ask`` does, and counts the images."""
        def counted(images: Tensor) -> Tensor:
            answers = ask(images)
            self._add(min(len(images), self.total - self.done))  # the last batch of a part is filled up
            return answers
        return counted

    def _add(self, count: int) -> None:
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
            return
        now = time.monotonic()
        if self.shown and now - self.said > LOG_SECONDS:
            self.said = now
            rate = self.done / (now - self.started)
            _logger.info(f"{self.done} of {self.total} images{self.share}, {rate:.3g} img/s, "
                         f"{duration((self.total - self.done) / rate)} left")


# ---------------------------------------------------------------- what is written


def write_answers(
        folder: Path, manifest: Manifest, keys: SampleKeys, dataset: FileDataset, predictor: Predictor,
        form: TableForm, request: Request,
) -> None:
    """Write the table, and the embeddings where these are wanted. Raises `UserError` when no image could be read."""
    reader, classes = LabelReader(folder, expected=manifest), predictor.member.num_classes
    unread, unnamed = reader.missing.tolist(), [row for row, name in enumerate(keys.values) if not is_text(name)]
    left_out = {*unread, *unnamed}
    kept = [row for row in range(manifest.num_samples) if row not in left_out]
    why = "; ".join(Blanked(dataset).why(row) for row in unread[:SHOWN]) + ("; ..." if len(unread) > SHOWN else "")
    if not kept:
        raise UserError(f"{request.dir}: none of its {manifest.num_samples} images can be read and named: {why}")

    def chunks() -> Iterator[tuple[list[str], Tensor]]:
        for part, tensors in zip(manifest.parts(0), reader.parts):
            rows = kept[bisect_left(kept, part.first):bisect_left(kept, part.stop)]
            if rows:
                yield [keys.values[row] for row in rows], tensors["features"][[row - part.first for row in rows]]

    rows = write_label_table(request.output, (
        answer_columns(names, keys.by, values[:, :classes].softmax(dim=1).numpy(), predictor.class_names, form)
        for names, values in chunks()))
    if request.embeddings is not None:
        write_embeddings(request.embeddings, [keys.values[row] for row in kept], manifest.num_classes - classes, (
            values[:, classes:].numpy() for _, values in chunks()))
    for rows_out, reason in ((unread, f"could not be read: {why}"), (
            unnamed, f"have names that are not UTF-8, such as {keys.values[(unnamed or [0])[0]]!a}")):
        if rows_out:
            _logger.warning(f"WARNING: {len(rows_out)} of {manifest.num_samples} images are left out, since they "
                            f"{reason}")
    _logger.info(f"{request.output}: {rows} images labelled by {request.model}"
                 + (f"; {request.embeddings}: their embeddings" if request.embeddings else ""))


def write_embeddings(path: Path, names: Sequence[str], width: int, chunks: Iterator[np.ndarray]) -> None:
    """Write ``filename`` (N,) and ``embeddings`` (N, D) in float32, as `numpy.savez` would, a chunk at a time."""
    header = dict(descr="<f4", fortran_order=False, shape=(len(names), width))
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open("filename.npy", "w", force_zip64=True) as entry:
            np.save(entry, np.array(names))
        with archive.open("embeddings.npy", "w", force_zip64=True) as entry:
            np.lib.format.write_array_header_1_0(entry, header)
            for values in chunks:
                entry.write(np.ascontiguousarray(values, dtype="<f4").data)


def is_text(name: str) -> bool:
    """Say whether a name of a file can be written in UTF-8."""
    return not any("\ud800" <= c <= "\udfff" for c in name)
