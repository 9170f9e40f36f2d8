"""A model asked about images without labels: its answers become a table of labels, its features another file.

Both are kept beside their file as they come, in the parts of the format of labels (`labels.store`): so several
processes share the work, and an interrupted prediction goes on. The folder is named after model, images and transform,
and is deleted when the file is there.
"""

import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..data.decoding import FileDataset, describe_decoder
from ..data.keys import SampleKeys, sample_keys
from ..data.unlabeled import open_images
from ..data.unreadable import Blanked
from ..distributed.world import barrier, broadcast_from_rank0
from ..errors import UserError, exit_now, logger, say
from ..files import delete
from ..labels.answers import TableForm, answer_columns, top_pairs
from ..labels.names import read_class_names
from ..labels.store import Labeller, LabelReader, Manifest, Part, ensure_labels
from ..labels.table_writer import Columns, write_label_table
from ..models.loading import check_finite
from ..monitor import Console, setup_logging
from ..registry import load_plugins
from ..resolve.train import check_available, check_model_name, named_model
from ..settings.concerns import Prediction
from ..settings.teacher_name import TeacherName
from ..target_kind import ONE_CLASS, SeveralClasses, TargetKind, kind_of_task
from ..teachers.clip import read_prompts
from ..teachers.kinds import open_classifier
from ..teachers.openers import Opened, Request
from ..teachers.stored import Pass, label_images
from ..teachers.teacher import TeacherModel, open_alone
from ..training.device import join_group
from .features import read_rows, write_features

FLAGS = "MODEL", "--checkpoint"
PATIENCE = 600.0  # seconds that an exchange between processes may take
SHOWN = 10  # images without an answer that are named
PRINTED = 5  # classes of one image


def predict(wanted: Prediction) -> None:
    """Write what a model says of the images of a folder, a tar file or shards, or its features of them.

    Raises:
        UserError: no such model or images; its classes do not fit the table; it has no features; the disk is full.
    """
    # what can be refused is refused before the model is opened, which may take minutes
    setup_logging(primary=os.environ.get("RANK", "0") == "0")
    load_plugins(wanted.plugins)
    dataset = open_images(str(wanted.dir))
    prints = wanted.output is None and wanted.wants_labels
    if prints and len(dataset) > 1:
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
    if prints:
        form = TableForm(printed)
    if wanted.wants_labels:
        check_form(form, names, count)
        logger.info(f"{wanted.model}: {count} classes{'' if names else ' without names'}")
    member = open_alone(TeacherName.parse(wanted.model), opened, world.device, FLAGS)
    dataset.input_img_mode = "RGB" if opened.data_config["input_size"][0] == 3 else "L"
    how = Pass(world, wanted.batch_size, wanted.workers, wanted.decoder)
    asked = Asked(member, dataset, sample_keys(dataset), how)

    # Of one image the answer is printed.
    if prints:
        (answer,) = asked.about(member)([Part(0, 0, 1)])
        if answer.missing:
            raise UserError(Blanked(dataset).why(0))
        shares = member.target_kind.probabilities(answer.values).numpy()
        class_names = names or [str(number) for number in range(count)]
        say(*top_pairs(class_names, shares, printed)[0].split(";"))
        return

    # The first process writes the files, and only when all are there, the answers beside them are of no more use.
    if wanted.features is not None:
        width = member.feature_width(f"{FLAGS[0]} {wanted.model}")
        reader, rows = asked.stored(wanted.features, member.encode, width, kind="features")
        if world.primary:
            write_features(wanted.features, reader, rows)
            logger.info(f"{wanted.features}: features ({len(rows)}, {width}) by {wanted.model}")
    if wanted.output is not None:
        reader, rows = asked.stored(wanted.output, member, count, class_names=names)
        if world.primary:
            write_label_table(wanted.output, label_columns(reader, rows, form, member.target_kind))
            logger.info(f"{wanted.output}: {len(rows)} images labelled by {wanted.model}")
    if world.primary:
        for file in filter(None, (wanted.features, wanted.output)):
            delete(parts_beside(file))
    if world.distributed:
        barrier()
        dist.destroy_process_group()
        exit_now(0)


@dataclass(frozen=True)
class Asked:
    """A model and the images that it is asked about.

    Args:
        member: the model.
        dataset: the images.
        keys: of them.
        how: all processes take part.
    """

    member: TeacherModel
    dataset: FileDataset
    keys: SampleKeys
    how: Pass

    def about(self, ask: Callable[[Tensor], Tensor]) -> Labeller:
        """Return what yields the answers of ``ask``, which is of the model, about parts of the images."""
        images = Blanked(self.dataset)
        return functools.partial(label_images, ask, self.member.data_config, images, self.how)

    def stored(
        self, file: Path, ask: Callable[[Tensor], Tensor], width: int, **about: Any
    ) -> tuple[LabelReader, Tensor]:
        """Return what ``ask`` gives for the images, and the rows (n,) of those that could be read and can be named.

        What is not in the folder beside ``file`` is asked for. Images that are left out are named in a warning.

        Args:
            file: that is to hold it.
            ask: of the model.
            width: how many numbers it gives for an image.
            about: what else a `Manifest` says.

        Raises:
            UserError: no image is left, so that ``file`` is not written.
        """
        # all processes ask together, and name the folder alike
        world, count = self.how.world, len(self.dataset)
        seen = dict(
            files=hash_of_files(self.dataset),
            transform=dict(self.member.data_config, decoder=describe_decoder(self.how.decoder)),
        )
        manifest = Manifest(
            count,
            width,
            self.member.fingerprint,
            seen,
            dtype=torch.float32,
            keyed_by=self.keys.by,
            keys_sha256=self.keys.sha256,
            **about,
        )
        manifest = broadcast_from_rank0(manifest, world.distributed)
        reader = ensure_labels(
            parts_beside(file) / manifest.key,
            manifest,
            self.keys,
            self.about(ask),
            distributed=world.distributed,
            progress=Console(world.primary, 0).wrap("Images"),
        )

        left_out = {row: Blanked(self.dataset).why(row) for row in reader.missing.tolist()}
        for row, key in enumerate(self.keys.values):
            if any("\ud800" <= character <= "\udfff" for character in str(key)):
                left_out[row] = f"{key!a}: its name is not UTF-8"
        why = "; ".join(list(left_out.values())[:SHOWN])
        if len(left_out) == count:
            raise UserError(f"{file}: none of the {count} images can be read and named: {why}")
        if left_out:
            logger.warning(f"WARNING: {len(left_out)} of {count} images are left out: {why}")
        return reader, torch.tensor([row for row in range(count) if row not in left_out])


def parts_beside(file: Path) -> Path:
    """Return the folder of what is to be written to a file."""
    return file.with_name(f"{file.name}.parts")


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


def open_model(
    model: str,
    checkpoint: str | None = None,
    img_size: int | None = None,
    target_kind: TargetKind = ONE_CLASS,
) -> Opened:
    """Open a model of timm: one by its name, or what is in the folder of a run or of an export.

    Args:
        model: the name, or the folder.
        checkpoint: a file of weights, if they are not those of the name.
        img_size: size of the images in place of its own.
        target_kind: what its labels are, if nothing beside its weights says it.

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
    request = Request(
        in_chans=None,
        img_size=img_size,
        checkpoint=checkpoint,
        target_kind=target_kind,
        flags=FLAGS,
    )
    opened = open_classifier(TeacherName.parse(model), request)
    check_finite(opened.model.state_dict(), model, "MODEL")
    return opened


def open_named(wanted: Prediction) -> tuple[Opened, list[str] | None]:
    """Open a model of any kind; return it with the names of its classes, None where they have none.

    Raises:
        UserError: there is no such model, it has no classes where labels are wanted, or ``--class-names`` are not those
            of its classes.
    """
    # A zero-shot classifier has the names that are given; others have to have them.
    names = read_class_names(wanted.class_names) if wanted.class_names else None
    name = TeacherName.parse(wanted.model)
    kind = kind_of_task(wanted.task or ONE_CLASS.task)
    if name.is_of_timm:
        opened = open_model(wanted.model, wanted.checkpoint, wanted.img_size, kind)
    else:
        request = Request(
            names,
            None if names is None else len(names),
            img_size=wanted.img_size,
            prompts=read_prompts(wanted.prompts),
            flags=FLAGS,
            features=not wanted.wants_labels,
            target_kind=kind,
        )
        opened = open_classifier(name, request)

    # What it was trained for is what it says; a threshold is the user's.
    if wanted.task and opened.target_kind.name != kind.name:
        raise UserError(
            f"--task {wanted.task}: {wanted.model} gives labels of {opened.target_kind.words}; leave the flag out"
        )
    if wanted.multilabel_threshold is not None:
        kind = kind_of_task(opened.target_kind.task, wanted.multilabel_threshold)
        opened = opened._replace(target_kind=kind)
    elif isinstance(opened.target_kind, SeveralClasses):
        chosen = opened.target_kind.threshold
        if not isinstance(chosen, (int, float)) and len(chosen) != opened.num_classes:
            raise UserError(
                f"{wanted.model}: comes with {len(chosen)} thresholds for {opened.num_classes} classes; give "
                "--multilabel-threshold"
            )

    # Names of the classes are for models that have none.
    of_model, count = opened.class_names, opened.num_classes
    if wanted.wants_labels and not count:
        raise UserError(
            f"{FLAGS[0]} {wanted.model}: has no classes; --features FILE writes its features"
        )
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


def check_form(form: TableForm, class_names: Sequence[str] | None, num_classes: int) -> None:
    """Raise a `UserError` when a table cannot have this form for these classes."""
    if form.top_k is not None and form.top_k > num_classes:
        raise UserError(
            f"--top-k {form.top_k}: there are {num_classes} classes; expected 1 to {num_classes}"
        )
    # a class may have in its name what separates classes in one column
    for name in class_names or ():
        if form.top_k is not None and ";" in name:
            raise UserError(
                f"--top-k {form.top_k}: the class '{name}' has a semicolon in its name; take --all"
            )


def label_columns(
    reader: LabelReader, rows: Tensor, form: TableForm, target_kind: TargetKind
) -> Iterator[Columns]:
    """Yield the columns of a table, some rows at a time. At the end it is warned of if most images got none of several
    classes: a student of unsure labels is unsure itself.
    """
    keyed_by, names = reader.manifest.keyed_by, reader.manifest.class_names
    silent = 0
    for keys, logits in read_rows(reader, rows):
        shares = target_kind.probabilities(logits).numpy()
        yield answer_columns(keys, keyed_by, shares, names, form, target_kind)
        if isinstance(target_kind, SeveralClasses):
            silent += int((target_kind.decide(logits) != 1).all(dim=1).sum())
    # few may be right: an image may have none of the classes
    if 2 * silent > len(rows):
        logger.warning(
            f"WARNING: {silent} of {len(rows)} images got no class, because no probability is high enough; try "
            "--multilabel-threshold 0.2, or look at all probabilities by --all"
        )
