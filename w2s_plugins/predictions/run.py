"""A model asked about images without labels, and its answers written as a table of labels.

The answers are kept beside the table as they come, in the parts of the format of labels (`labels.store`): so several
processes share the work, and an interrupted prediction goes on. The folder is named after model, images and transform,
and is deleted when the table is there.
"""

import functools
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..build.device import join_group
from ..build.flags import check_model_name
from ..data.decoding import FileDataset
from ..data.keys import SampleKeys, sample_keys
from ..data.unlabeled import open_images
from ..data.unreadable import Blanked
from ..distributed.world import agree, meet
from ..errors import UserError, exit_now
from ..files import delete
from ..labels.answers import TableForm, answer_columns, check_form
from ..labels.names import read_class_names
from ..labels.store import LabelReader, Manifest, ensure_labels, missing_parts
from ..labels.table_writer import write_label_table
from ..models.class_names import names_of_model
from ..models.loading import check_finite, check_input_size
from ..monitor import Console, setup_logging
from ..registry import load_plugins
from ..run.args_file import read_run_args
from ..teachers import opened as teachers
from ..teachers.clip import read_prompts
from ..teachers.kinds import check_kind, input_text, open_kind
from ..teachers.name import TeacherName, find_export
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


def predict(request: Request) -> None:
    """Write what a model says of the images of a folder or tar file.

    Raises:
        UserError: no such model or images; its classes do not fit the table; the disk is full.
    """
    names = begin(request)
    dataset = open_images(request.dir)
    world = join_group(request.device or ("cuda" if torch.cuda.is_available() else "cpu"), PATIENCE)
    predictor = open_predictor(request, names, world.device)
    member = predictor.member
    dataset.input_img_mode = "RGB" if member.data_config["input_size"][0] == 3 else "L"
    keys = sample_keys(dataset)
    # all processes name the folder of answers alike, whatever their file systems say of times
    manifest = agree(describe(predictor, dataset, keys) if world.primary else None, world.distributed)
    folder = request.output.with_name(f"{request.output.name}.parts")
    if world.primary:
        missing = sum(part.stop - part.first for part in missing_parts(folder / manifest.key, manifest))
        kept = manifest.num_samples - missing
        _logger.info(f"{request.dir}: {manifest.num_samples} images"
                     f"{f', {kept} of which are answered from before' if kept else ''}")
    # the model is asked about what it was not asked about before, by all processes together
    labeller = functools.partial(label_images, member, member.data_config, Blanked(dataset),
                                 Pass(world, request.batch_size, request.workers))
    answered = ensure_labels(
        folder / manifest.key, manifest, keys, labeller, distributed=world.distributed,
        progress=Console(world.primary, 0).wrap("Images"), title="model answers")
    if world.primary:
        write_answers(LabelReader(answered, expected=manifest), keys, dataset, predictor, request)
        delete(folder)
    if world.distributed:
        meet()
        dist.destroy_process_group()
        exit_now(0)


# ---------------------------------------------------------------- the model


def begin(request: Request) -> list[str] | None:
    """Set up the log, import plugins, and return the names of ``--class-names``."""
    setup_logging(primary=os.environ.get("RANK", "0") == "0")
    load_plugins(request.plugins)
    return read_class_names(request.class_names) if request.class_names else None


def open_predictor(request: Request, names: list[str] | None, device: torch.device) -> Predictor:
    """Open the model with its own input size and normalisation, and compare its classes with the table's form."""
    who, kind = f"{FLAGS[0]} {request.model}", TeacherName.parse(request.model)
    if names is None and kind.kind == "clip":
        raise UserError(f"{who}: needs the names of the classes: give --class-names FILE or a,b,c")
    if kind.is_of_timm:
        model, config, own = open_model(request.model, request.checkpoint, request.img_size)
    else:
        model, config, own, _ = open_kind(request.model, teachers.Request(
            names, num_classes=len(names) if names else None, img_size=request.img_size,
            prompts=read_prompts(request.prompts)), FLAGS[0])
    check_input_size(model, config["input_size"], who)
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
    check_form(TableForm(request.top_k, request.all), own, model.num_classes)
    return Predictor(member, own)


def open_model(
        model: str, checkpoint: str | None = None, img_size: int | None = None,
) -> tuple[nn.Module, dict[str, Any], list[str] | None]:
    """Open a model of timm: one by its name, or what is in the folder of a run or of an export.

    Returns:
        The model, the data configuration of its input, and the names of its classes, None where it knows none.

    Raises:
        UserError: there is none, it is of another kind, or its weights are not finite.
    """
    if not TeacherName.parse(model).is_of_timm:
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
        exported = find_export(folder)
        if exported is not None:
            return exported, None
        if not (folder / "args.yaml").is_file():
            raise UserError(f"MODEL {model}: neither the folder of a run (args.yaml) nor an export of timm (config.json"
                            " and model.safetensors)")
        run = read_run_args(folder, "MODEL")
        model, checkpoint = str(run["model"]), str(folder)
    if TeacherName.parse(model).is_architecture:
        check_model_name("MODEL", model)
    else:
        check_kind("MODEL", model)
    return model, checkpoint


# ---------------------------------------------------------------- its answers


def describe(predictor: Predictor, dataset: FileDataset, keys: SampleKeys) -> Manifest:
    """Return the manifest of the answers: logits, as the model gives them."""
    member = predictor.member
    # a file that has become another one is asked about anew: its time is the one that no program can set
    stamps = []
    for file in dict.fromkeys(place.file for place in dataset.reader.samples):
        about = os.stat(file) if os.path.exists(file) else None  # else whoever reads it says so
        stamps.append(about and (about.st_size, about.st_mtime_ns, about.st_ctime_ns))
    seen = dict(files=hashlib.sha256(repr(stamps).encode()).hexdigest(), transform=member.data_config)
    return Manifest(len(dataset), member.num_classes, member.fingerprint, seen, "features", torch.float32,
                    keyed_by=keys.by, keys_sha256=keys.sha256)


def write_answers(
        reader: LabelReader, keys: SampleKeys, dataset: FileDataset, predictor: Predictor, request: Request) -> None:
    """Write the table. Raises `UserError` when no image could be read."""
    manifest = reader.manifest
    unread = reader.missing.tolist()
    unnamed = [row for row, name in enumerate(keys.values) if not is_text(name)]
    left_out = {*unread, *unnamed}
    why = reasons(dataset, unread)
    if len(left_out) == manifest.num_samples:
        raise UserError(f"{request.dir}: none of its {manifest.num_samples} images can be read and named: {why}")

    def chunks() -> Iterator[tuple[list[str], Tensor]]:
        for part, tensors in zip(manifest.parts(0), reader.parts):
            rows = [row for row in range(part.first, part.stop) if row not in left_out]
            if rows:
                yield [keys.values[row] for row in rows], tensors["features"][[row - part.first for row in rows]]

    form = TableForm(request.top_k, request.all)
    rows = write_label_table(request.output, (
        answer_columns(names, keys.by, values.softmax(dim=1).numpy(), predictor.class_names, form)
        for names, values in chunks()))
    _logger.info(f"{request.output}: {rows} images labelled by {request.model}")
    said = f"of {manifest.num_samples} images are left out, since they"
    if unread:
        _logger.warning(f"WARNING: {len(unread)} {said} could not be read: {why}")
    if unnamed:
        _logger.warning(f"WARNING: {len(unnamed)} {said} have names that are not UTF-8, such as "
                        f"{keys.values[unnamed[0]]!a}")


def reasons(dataset: FileDataset, rows: Sequence[int]) -> str:
    """Say why images could not be read, of the first of them."""
    return "; ".join([Blanked(dataset).why(row) for row in rows[:SHOWN]] + ["..."] * (len(rows) > SHOWN))


def is_text(name: str) -> bool:
    """Say whether a name of a file can be written in UTF-8."""
    return not any("\ud800" <= c <= "\udfff" for c in name)
