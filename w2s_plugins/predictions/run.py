"""A model asked about images without labels, and its answers written as a table of labels.

The answers are kept beside the table as they come, in the parts of the format of labels (`labels.store`): so several
processes share the work, and an interrupted prediction goes on. The folder is named after model, images and transform,
and is deleted when the table is there.
"""

import functools
import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
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
from ..data.keys import SampleKeys, sample_keys
from ..data.unlabeled import open_images
from ..data.unreadable import Blanked
from ..distributed.world import World, agree, meet
from ..errors import UserError, exit_now
from ..files import atomic_write, delete
from ..labels.answers import TableForm, answer_columns, check_form
from ..labels.names import read_class_names
from ..labels.store import LabelReader, Manifest, ensure_labels, missing_parts
from ..labels.table_writer import write_label_table
from ..models.class_names import names_of_model
from ..models.loading import check_finite, check_input_size
from ..monitor import Console, setup_logging
from ..registry import load_plugins
from ..run.args_file import read_run_args
from ..teachers import kinds
from ..teachers.kinds import check_kind, input_text, kind_of, open_kind, read_prompts
from ..teachers.stored import Pass, label_images
from ..teachers.teacher import StudentInput, TeacherModel, TeacherSettings, load_frozen_model

_logger = logging.getLogger(__name__)

FLAGS = "MODEL", "--checkpoint"
PATIENCE = 600.0  # seconds that an exchange between processes may take
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
    # all processes name the folder of answers alike, whatever their file systems say of times
    manifest = agree(describe(predictor, dataset, keys) if world.primary else None, world.distributed)
    parts = request.output.with_name(f"{request.output.name}.parts")
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
    seen = dict(files=stamp_of(place.file for place in dataset.reader.samples), transform=member.data_config)
    return Manifest(len(dataset), width, member.fingerprint, seen, "features", torch.float32,
                    keyed_by=keys.by, keys_sha256=keys.sha256)


def stamp_of(files: Iterable[str]) -> str:
    """Return a text that is another one when a file has become another: by size, and time of the last change.

    That is not the time of its content, which copying tools set back, but the one that no program can set.
    """
    found = hashlib.sha256()
    for file in dict.fromkeys(files):
        try:
            about = os.stat(file)
        except OSError:  # whoever reads it says so
            found.update(b"none ")
        else:
            found.update(f"{about.st_size} {about.st_mtime_ns} {about.st_ctime_ns} ".encode())
    return found.hexdigest()


def ask_model(
        predictor: Predictor, dataset: FileDataset, keys: SampleKeys, manifest: Manifest, folder: Path,
        request: Request, world: World,
) -> Path:
    """Ask the model about the images that it was not asked about before, on all processes together."""
    if world.primary:
        total, missing = manifest.num_samples, sum(part.stop - part.first for part in missing_parts(folder, manifest))
        kept = f", {total - missing} of which are answered from before" if missing < total else ""
        _logger.info(f"{request.dir}: {total} images{kept}")
    labeller = functools.partial(
        label_images, predictor, predictor.member.data_config, Blanked(dataset),
        Pass(world, request.batch_size, request.workers))
    return ensure_labels(
        folder, manifest, keys, labeller, distributed=world.distributed,
        progress=Console(world.primary, 0).wrap("Images"), title="model answers")


# ---------------------------------------------------------------- what is written


def write_answers(
        folder: Path, manifest: Manifest, keys: SampleKeys, dataset: FileDataset, predictor: Predictor,
        form: TableForm, request: Request,
) -> None:
    """Write the table, and the embeddings where these are wanted. Raises `UserError` when no image could be read."""
    reader, classes = LabelReader(folder, expected=manifest), predictor.member.num_classes
    unread = reader.missing.tolist()
    unnamed = [row for row, name in enumerate(keys.values) if not is_text(name)]
    left_out = {*unread, *unnamed}
    why = "; ".join(Blanked(dataset).why(row) for row in unread[:SHOWN]) + ("; ..." if len(unread) > SHOWN else "")
    if len(left_out) == manifest.num_samples:
        raise UserError(f"{request.dir}: none of its {manifest.num_samples} images can be read and named: {why}")

    def chunks() -> Iterator[tuple[list[str], Tensor]]:
        for part, tensors in zip(manifest.parts(0), reader.parts):
            rows = [row for row in range(part.first, part.stop) if row not in left_out]
            if rows:
                yield [keys.values[row] for row in rows], tensors["features"][[row - part.first for row in rows]]

    rows = write_label_table(request.output, (
        answer_columns(names, keys.by, values[:, :classes].softmax(dim=1).numpy(), predictor.class_names, form)
        for names, values in chunks()))
    _logger.info(f"{request.output}: {rows} images labelled by {request.model}")
    if request.embeddings is not None:
        names, values = zip(*chunks())
        with atomic_write(request.embeddings) as temporary, temporary.open("wb") as file:
            np.savez(file, filename=np.concatenate(names), embeddings=torch.cat(values)[:, classes:].numpy())
        _logger.info(f"{request.embeddings}: their embeddings")
    for rows_out, reason in ((unread, f"could not be read: {why}"), (
            unnamed, f"have names that are not UTF-8, such as {keys.values[(unnamed or [0])[0]]!a}")):
        if rows_out:
            _logger.warning(f"WARNING: {len(rows_out)} of {manifest.num_samples} images are left out, since they "
                            f"{reason}")


def is_text(name: str) -> bool:
    """Say whether a name of a file can be written in UTF-8."""
    return not any("\ud800" <= c <= "\udfff" for c in name)
