"""A model asked about images without labels, and its answers written as a table of labels.

The answers are kept beside the table as they come, in the parts of the format of labels (`labels.store`): so several
processes share the work, and an interrupted prediction goes on. The folder is named after model, images and transform,
and is deleted when the table is there.
"""

import functools
import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from ..data.decoding import FileDataset
from ..data.keys import SampleKeys, sample_keys
from ..data.unlabeled import open_images
from ..data.unreadable import Blanked
from ..distributed.world import barrier, broadcast_from_rank0
from ..errors import UserError, exit_now, logger, say
from ..files import delete
from ..labels.answers import TableForm, answer_columns, top_pairs
from ..labels.names import read_class_names
from ..labels.store import LabelReader, Manifest, Part, ensure_labels, read_keys
from ..labels.table import ROLES
from ..labels.table_writer import Columns, write_label_table
from ..models.loading import check_finite
from ..monitor import Console, setup_logging
from ..registry import load_plugins
from ..settings.flags import check_available, check_model_name, named_model
from ..target_kind import TargetKind
from ..teachers.clip import read_prompts
from ..teachers.kinds import open_classifier
from ..teachers.name import TeacherName
from ..teachers.openers import Opened, Request
from ..teachers.stored import Pass, label_images
from ..teachers.teacher import open_alone
from ..training.device import join_group

FLAGS = "MODEL", "--checkpoint"
PATIENCE = 600.0  # seconds that an exchange between processes may take
SHOWN = 10  # images without an answer that are named
PRINTED = 5  # classes of one image
ROWS = 8192  # of the table that are in memory at a time


@dataclass(frozen=True)
class Prediction:
    """What is predicted, and where it goes; the flags of the command."""

    model: str
    dir: str | Path
    output: Path | None = None  # without it the best classes of one image are printed
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


def predict(wanted: Prediction) -> None:
    """Write what a model says of the images of a folder, a tar file or shards.

    Raises:
        UserError: no such model or images; its classes do not fit the table; the disk is full.
    """
    # what can be refused is refused before the model is opened, which may take minutes
    setup_logging(primary=os.environ.get("RANK", "0") == "0")
    load_plugins(wanted.plugins)
    dataset = open_images(str(wanted.dir))
    if wanted.output is None and len(dataset) > 1:
        raise UserError(
            f"{wanted.dir}: has {len(dataset)} images, whose answers are a table: give --output FILE"
        )
    device = wanted.device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_available(device)
    world = join_group(device, PATIENCE)

    # The model sees each image through its own transform. Without a table the best classes are asked for.
    opened, names = open_named(wanted)
    count = opened.num_classes
    form = TableForm(wanted.top_k, wanted.all)
    printed = wanted.top_k or (count if wanted.all else min(PRINTED, count))
    if wanted.output is None:
        form = TableForm(printed)
    check_form(form, names, count)
    member = open_alone(TeacherName.parse(wanted.model), opened, world.device, FLAGS)
    dataset.input_img_mode = "RGB" if opened.data_config["input_size"][0] == 3 else "L"
    logger.info(f"{wanted.model}: {count} classes{'' if names else ' without names'}")
    how = Pass(world, wanted.batch_size, wanted.workers)
    images = Blanked(dataset)
    labeller = functools.partial(label_images, member, member.data_config, images, how)

    # Of one image the answer is printed.
    if wanted.output is None:
        (answer,) = labeller([Part(0, 0, 1)])
        if answer.missing:
            raise UserError(f"{wanted.dir}: cannot be read: {images.why(0)}")
        shares = member.target_kind.probabilities(answer.values).numpy()
        class_names = names or [str(number) for number in range(count)]
        say(*top_pairs(class_names, shares, printed)[0].split(";"))
        return

    # It is asked about what it was not asked about before, by all processes together, which name the folder alike.
    keys = sample_keys(dataset)
    seen = dict(files=hash_of_files(dataset), transform=member.data_config)
    manifest = Manifest(
        len(dataset),
        member.num_classes,
        member.fingerprint,
        seen,
        dtype=torch.float32,
        class_names=names,
        keyed_by=keys.by,
        keys_sha256=keys.sha256,
    )
    manifest = broadcast_from_rank0(manifest, world.distributed)
    folder = wanted.output.with_name(f"{wanted.output.name}.parts")
    reader = ensure_labels(
        folder / manifest.key,
        manifest,
        keys,
        labeller,
        distributed=world.distributed,
        progress=Console(world.primary, 0).wrap("Images"),
    )

    # The first process writes the table, and only then are the answers beside it of no more use.
    if world.primary:
        kind = member.target_kind
        rows = write_answers(wanted.output, reader, keys, dataset, form, kind)
        logger.info(f"{wanted.output}: {rows} images labelled by {wanted.model}")
        delete(folder)
    if world.distributed:
        barrier()
        dist.destroy_process_group()
        exit_now(0)


def hash_of_files(dataset: FileDataset) -> str:
    """Return a hash of the sizes and times of the files of some images, where these are known.

    A file that has become another one is asked about anew: the last of its times is the one that no program can set.
    """
    locations = getattr(dataset.reader, "samples", ())
    files = dict.fromkeys(location.file for location in locations)
    states = [os.stat(file) for file in files if os.path.exists(file)]
    stamps = [(state.st_size, state.st_mtime_ns, state.st_ctime_ns) for state in states]
    return hashlib.sha256(repr(stamps).encode()).hexdigest()


# ---------------------------------------------------------------- the model


def open_model(model: str, checkpoint: str | None = None, img_size: int | None = None) -> Opened:
    """Open a model of timm: one by its name, or what is in the folder of a run or of an export.

    Raises:
        UserError: there is none, it is of another kind, or its weights are not finite.
    """
    # a student is a model of timm; what else labels images has no weights of this kind
    if not TeacherName.parse(model).is_of_timm:
        raise UserError(
            f"MODEL {model}: no model of timm; expected a run folder, an export, hf-hub:ORG/NAME, "
            "or timm name"
        )
    if checkpoint is None:
        model, checkpoint = named_model(FLAGS[0], model)
    else:
        check_model_name(FLAGS[0], model)
    request = Request(in_chans=None, img_size=img_size, checkpoint=checkpoint, flags=FLAGS)
    opened = open_classifier(TeacherName.parse(model), request)
    check_finite(opened.model.state_dict(), model, "MODEL")
    return opened


def open_named(wanted: Prediction) -> tuple[Opened, list[str] | None]:
    """Open a model of any kind; return it with the names of its classes, None where they have none.

    Raises:
        UserError: there is no such model, or ``--class-names`` are not those of its classes.
    """
    # A zero-shot classifier has the names that are given; others have to have them.
    names = read_class_names(wanted.class_names) if wanted.class_names else None
    name = TeacherName.parse(wanted.model)
    if name.is_of_timm:
        opened = open_model(wanted.model, wanted.checkpoint, wanted.img_size)
    else:
        request = Request(
            names,
            None if names is None else len(names),
            img_size=wanted.img_size,
            prompts=read_prompts(wanted.prompts),
            flags=FLAGS,
        )
        opened = open_classifier(name, request)

    # Names of the classes are for models that have none.
    of_model, count = opened.class_names, opened.num_classes
    if names is not None and len(names) != count:
        raise UserError(
            f"--class-names: {len(names)} names, but {wanted.model} has {count} classes"
        )
    if names and of_model and names != of_model:
        raise UserError(
            f"--class-names: {wanted.model} has names of its own, {', '.join(of_model[:3])}, ...; leave the "
            "flag out"
        )
    return opened, names or of_model


# ---------------------------------------------------------------- its answers


def write_answers(
    output: Path,
    reader: LabelReader,
    keys: SampleKeys,
    dataset: FileDataset,
    form: TableForm,
    target_kind: TargetKind,
) -> int:
    """Write the table and return the number of its rows. Raises `UserError` when no image could be read."""
    # Images that cannot be read, or whose names cannot be written, are left out.
    left_out = {row: Blanked(dataset).why(row) for row in reader.missing.tolist()}
    for row, key in enumerate(keys.values):
        if any("\ud800" <= character <= "\udfff" for character in str(key)):
            left_out[row] = f"{key!a}: its name is not UTF-8"
    why = "; ".join(list(left_out.values())[:SHOWN])
    if len(left_out) == len(dataset):
        raise UserError(f"{output}: none of the {len(dataset)} images can be read and named: {why}")
    if left_out:
        logger.warning(f"WARNING: {len(left_out)} of {len(dataset)} images are left out: {why}")
    return write_label_table(output, stored_columns(reader, form, left_out, target_kind))


def check_form(form: TableForm, class_names: Sequence[str] | None, num_classes: int) -> None:
    """Raise a `UserError` when a table cannot have this form for these classes."""
    if form.top_k is not None and form.top_k > num_classes:
        raise UserError(
            f"--top-k {form.top_k}: there are {num_classes} classes; expected 1 to {num_classes}"
        )
    # a class may be called as what a table has beside the classes, or as what separates them in one column
    for name in class_names or ():
        if form.every and name.strip().lower() in ROLES:
            raise UserError(
                f"--all: the class '{name}' has the name of another column; take --top-k {num_classes}"
            )
        if form.top_k is not None and ";" in name:
            raise UserError(
                f"--top-k {form.top_k}: the class '{name}' has a semicolon in its name; take --all"
            )


def stored_columns(
    reader: LabelReader, form: TableForm, left_out: Collection[int], target_kind: TargetKind
) -> Iterator[Columns]:
    """Yield the columns of what is stored, some rows at a time, without those ``left_out``."""
    # some rows at a time: probabilities of a million images in a thousand classes are 4 GB
    manifest = reader.manifest
    all_keys = read_keys(reader.folder, manifest)
    index = torch.tensor([row for row in range(manifest.num_samples) if row not in left_out])
    for rows in index.split(ROWS):
        keys = [all_keys[row] for row in rows.tolist()]
        shares = target_kind.probabilities(reader(rows, torch.device("cpu"))).numpy()
        names = manifest.class_names
        yield answer_columns(keys, manifest.keyed_by, shares, names, form, target_kind)
