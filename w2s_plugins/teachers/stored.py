"""A frozen model asked about a whole dataset, once, and its stored answers in its place."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from timm.data.loader import PrefetchLoader
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ..data import (
    AnyDataset,
    LoaderSettings,
    MapDataset,
    TrainLoader,
    create_eval_loader,
)
from ..data.decoding import describe_decoder
from ..data.keys import data_identity, describe, sample_keys
from ..data.order import StretchBatches
from ..data.wrapper import without_transform
from ..distributed.world import Precision, World, broadcast_from_rank0
from ..errors import logger
from ..labels.relabelled import Relabelled
from ..labels.samples import SampleLabels
from ..labels.store import Answers, LabelReader, Manifest, Part, ensure_labels
from ..models.class_names import names_of_data
from ..models.inference import in_full_batches, run_over
from ..monitor import Console
from ..no_label import UNREADABLE
from ..target_kind import ONE_CLASS, SEVERAL_CLASSES, TargetKind
from .teacher import Teacher, TeacherModel

Loader = DataLoader | PrefetchLoader


@dataclass(frozen=True)
class Pass:
    """How a model goes over a whole dataset.

    Args:
        world: this process, and the device of the model.
        batch_size: images at a time.
        workers: data worker processes.
        decoder: ``--decoder``.
    """

    world: World
    batch_size: int
    workers: int = 0
    decoder: str = "fast"


class Asked(Protocol):
    """A frozen model whose answers are stored; see `TeacherModel`."""

    data_config: dict[str, Any]
    fingerprint: dict[str, object]

    @property
    def fills_batches(self) -> bool: ...

    def adapt(self, images: Tensor, /) -> Tensor: ...


class Encodes(Asked, Protocol):
    """One whose answers are features (B, D), stored in a dtype."""

    stores: torch.dtype

    @property
    def width(self) -> int: ...

    def encode(self, images: Tensor, /) -> Tensor: ...


class StudentViews(NamedTuple):
    """The student's training views of some epochs, about which a model is asked once.

    Args:
        epochs: how many.
        seen: what makes them, for the manifest.
        load: makes a training loader of batches of the views of a dataset.
        batch_size: views at a time.
    """

    epochs: int
    seen: dict[str, object]
    load: Callable[[MapDataset, StretchBatches], TrainLoader]
    batch_size: int


def label_images(
    ask: Callable[[Tensor], Tensor],
    data_config: dict[str, Any],
    dataset: MapDataset,
    how: Pass,
    parts: Sequence[Part],
) -> Iterator[Answers]:
    """Yield what a model says of the plain images of each part, through its own evaluation transform.

    Args:
        ask: the model.
        data_config: timm's data configuration of the model.
        dataset: its transform is changed. Unreadable samples end the run unless it is `Blanked`.
        how: batch size, workers, device.
        parts: what to label.
    """
    chosen = StretchBatches(parts, how.batch_size)
    loader = create_eval_loader(
        dataset,
        data_config,
        LoaderSettings(how.batch_size, how.workers, how.world.device, decoder=how.decoder),
        chosen=chosen,
    )
    yield from _by_part(parts, chosen, ask, loader, how.world.device)


def own_loader(
    member: TeacherModel,
    dataset: AnyDataset,
    settings: LoaderSettings,
    tf_preprocessing: bool = False,
) -> Loader:
    """Return an evaluation loader of a split in a model's own transform, whose batches have the samples that those of
    the student's have; arguments as for `create_eval_loader`.
    """
    # the dtype is the student's, and the model has its own
    settings = dataclasses.replace(settings, dtype=torch.float32)
    return create_eval_loader(
        without_transform(dataset),
        member.data_config,
        settings,
        tf_preprocessing=tf_preprocessing,
    )


def own_features(
    member: TeacherModel,
    dataset: AnyDataset,
    settings: LoaderSettings,
) -> tuple[Callable[[Tensor], Tensor], Loader]:
    """Return what gives a model's features (B, D) of images in its own form, and a loader of a split in that form."""
    return functools.partial(_ask_on_cpu, member.encode), own_loader(member, dataset, settings)


class OwnViews:
    """The batches of an evaluation split as several models see them: a list of images, one of each, and labels.

    Args:
        loaders: of the models, with the same samples in each batch.
        device: where images go.
    """

    def __init__(self, loaders: Sequence[Loader], device: torch.device):
        self.loaders = loaders
        self.device = device
        self.sampler = loaders[0].sampler  # says which rows are padding

    def __len__(self) -> int:
        return len(self.loaders[0])

    def __iter__(self) -> Iterator[tuple[list[Tensor], Tensor]]:
        # labels are the same in all of them
        for batches in zip(*self.loaders):
            yield [images.to(self.device) for images, _ in batches], batches[0][1]


def own_answers(
    teacher: Teacher,
    dataset: AnyDataset,
    settings: LoaderSettings,
    loader: Iterable,
    tf_preprocessing: bool = False,
) -> tuple[Callable[[Any], Tensor], Iterable]:
    """Return what gives the teacher's logits (B, C), and the batches of an evaluation split that it is given.

    Each model looks at the plain images through its own evaluation transform, whatever the student sees of them: so a
    teacher has one accuracy. Of a stream it is asked about the student's view, from ``loader``.
    """
    # A stream cannot be read a second time beside itself, in step with the student.
    if isinstance(dataset, IterableDataset):
        logger.info(
            "Teacher: the evaluation split is a stream, of which it sees the student's view"
        )
        return teacher, loader
    loaders = [
        own_loader(member, dataset, settings, tf_preprocessing) for member in teacher.members
    ]
    return teacher.of_own_views, OwnViews(loaders, settings.device)


def _by_part(
    parts: Sequence[Part],
    chosen: StretchBatches,
    ask: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
) -> Iterator[Answers]:
    """Yield what is said of the images of each part; labels say which of them could be read."""
    asked = run_over(functools.partial(_ask_on_cpu, ask), batches, Precision(device))
    # of several classes an image such a label is one of each
    outputs = (
        (logits, (labels.cpu() != UNREADABLE).reshape(len(labels), -1).any(dim=1))
        for logits, labels in asked
    )
    for part in parts:
        # batches of a part are taken together
        of_part = itertools.islice(outputs, chosen.count(part))
        logits, seen = (torch.cat(rows) for rows in zip(*of_part))
        missing = (part.first + (~seen).nonzero().flatten()).tolist()
        yield Answers(logits, missing)


def _ask_on_cpu(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return logits in float32 on the CPU, without autograd and autocast."""
    # On the CPU at once: answers about a whole data set need not fit on the device.
    with torch.inference_mode(), torch.autocast(images.device.type, enabled=False):
        return model(images).cpu()


class _Stored(NamedTuple):
    """What is stored of each image, see `Manifest`."""

    kind: str
    width: int
    dtype: torch.dtype


@dataclass(frozen=True)
class AnswerStore:
    """What frozen models say of whole datasets, on disk; what is missing there is asked for.

    Args:
        folder: has a folder for each model and each data set that it was asked about.
        name: of the data, for their fingerprint.
        how: all ranks take part.
    """

    folder: Path
    name: str
    how: Pass

    def answers(
        self,
        member: TeacherModel,
        dataset: MapDataset,
        split: str,
        views: StudentViews | None = None,
        *,
        dtype: torch.dtype,
    ) -> LabelReader:
        """Return the logits that a model gives for each sample.

        Args:
            member: the model.
            dataset: map-style.
            split: its name.
            views: the student's views are what it is asked about, not the plain images.
            dtype: of what is stored.

        Raises:
            UserError: some answers are not finite, or a file cannot be written.
        """
        stored = _Stored("logits", member.num_classes, dtype)
        return self._ensure(member, member, stored, dataset, split, views)

    def exact(self, member: TeacherModel, dataset: MapDataset, split: str) -> LabelReader:
        """Return the logits of each image, unrounded, whatever labels the images were given."""
        return self.answers(member, _images(dataset), split, dtype=torch.float32)

    def features(
        self,
        encoder: Encodes,
        dataset: MapDataset,
        split: str,
        views: StudentViews | None = None,
    ) -> LabelReader:
        """Return the features of each image, unrounded, whatever labels the images were given; arguments as for
        `answers`.
        """
        stored = _Stored("features", encoder.width, encoder.stores)
        return self._ensure(encoder, encoder.encode, stored, _images(dataset), split, views)

    def _ensure(
        self,
        member: Asked,
        ask: Callable[[Tensor], Tensor],
        stored: "_Stored",
        dataset: MapDataset,
        split: str,
        views: StudentViews | None,
    ) -> LabelReader:
        """Return what ``ask`` gives, which is of a model, for images in its form; compute what is not there."""
        dataset = without_transform(dataset)
        world = self.how.world
        keys = sample_keys(dataset)

        # What makes the answers others, which rank 0 says: the data, the transform, the views of the student.
        manifest = None
        if world.primary:
            fingerprint = describe(dataset, self.name, split).fingerprint
            seen: dict[str, object] = dict(
                data=data_identity(dataset, fingerprint),
                transform=dict(member.data_config, decoder=describe_decoder(self.how.decoder)),
                student_views=views and views.seen,
            )
            # columns of features are no classes, nor need a teacher's own be those of the data
            names = names_of_data(dataset)
            if stored.kind == "features" or len(names or ()) != stored.width:
                names = None
            manifest = Manifest(
                len(dataset),
                stored.width,
                member.fingerprint,
                seen,
                kind=stored.kind,
                dtype=stored.dtype,
                class_names=names,
                keyed_by=keys.by,
                keys_sha256=keys.sha256,
                views=views.epochs if views else 1,
            )
        manifest = broadcast_from_rank0(manifest, world.distributed)

        def labeller(parts: Sequence[Part]) -> Iterator[Answers]:
            size = self.how.batch_size if views is None else views.batch_size
            asked = in_full_batches(ask, size) if member.fills_batches else ask
            if views is None:
                return label_images(asked, member.data_config, dataset, self.how, parts)

            # Of the student's own views it is asked as it would be beside the student.
            def ask_of_views(images: Tensor) -> Tensor:
                return asked(member.adapt(images))

            chosen = StretchBatches(parts, size)
            loaded = views.load(dataset, chosen).epoch(0)
            batches = ((batch.input, batch.target) for batch in loaded)
            return _by_part(parts, chosen, ask_of_views, batches, world.device)

        # What is missing is computed by all ranks together.
        return ensure_labels(
            self.folder / manifest.key,
            manifest,
            keys,
            labeller,
            distributed=world.distributed,
            progress=Console(world.primary, 0).wrap(f"{manifest.title.capitalize()} of '{split}'"),
        )


def _images(dataset: MapDataset) -> MapDataset:
    """Return a dataset without labels that were given in place of its own."""
    # Other labels change no image, so that what is stored serves runs with any labels.
    return dataset.dataset if isinstance(dataset, Relabelled) else dataset


class CachedTargets:
    """Logits of the teacher by sample, from stored labels: the teacher need not run.

    Args:
        readers: one for each model of the teacher, and for each table of labels.
        device: where logits go.
        target_kind: what the labels are.
    """

    def __init__(
        self,
        readers: Sequence[LabelReader | SampleLabels],
        device: torch.device,
        target_kind: TargetKind = ONE_CLASS,
    ):
        self.readers = readers
        self.device = device
        self.target_kind = target_kind

    def set_epoch(self, epoch: int) -> None:
        """Choose the view of an epoch. Raises `UserError` when its files are damaged."""
        # More epochs than views: they come round again. Tables say the same of every view.
        for reader in self.readers:
            if isinstance(reader, LabelReader) and reader.manifest.views > 1:
                reader.set_view(epoch % reader.manifest.views)

    def __call__(self, index: Tensor) -> Tensor:
        """Return the logits (B, C) of the samples ``index`` (B,): of those who say something of a sample, the mean."""
        # Mostly all have said something of every sample. Where nobody has, the readers raise, and name the sample.
        index = index.cpu()
        has = torch.stack([reader.has(index) for reader in self.readers])
        if has.all() or not has.any(dim=0).all():
            return self.target_kind.average(list(self.by_member(index)))
        # Of several classes an image nobody need say something of all of them.
        if self.target_kind.name == SEVERAL_CLASSES.name:
            opinions = []
            for reader, has_said in zip(self.readers, has):
                width = self.readers[0].manifest.num_classes
                opinion = torch.full((len(index), width), torch.nan, device=self.device)
                opinion[has_said.to(self.device)] = reader(index[has_said], self.device)
                opinions.append(opinion)
            return self.target_kind.average(opinions)
        # Else the mean of the probabilities is that of those who have.
        shares = torch.zeros(len(index), self.readers[0].manifest.num_classes, device=self.device)
        for reader, has_said in zip(self.readers, has):
            rows = has_said.nonzero().flatten()
            answers = self.target_kind.probabilities(reader(index[rows], self.device))
            shares.index_add_(0, rows.to(self.device), answers)
        shares /= has.sum(dim=0).to(self.device)[:, None]
        return self.target_kind.from_probabilities(shares)

    def by_member(self, index: Tensor) -> Tensor:
        """Return the logits of every member, (M, B, C)."""
        index = index.cpu()
        return torch.stack([reader(index, self.device) for reader in self.readers])

    @property
    def record(self) -> list[dict[str, str]]:
        """Key and folder of each that is stored, for the record of a run; tables are not."""
        return [
            dict(key=reader.manifest.key, path=str(reader.folder))
            for reader in self.readers
            if reader.folder is not None
        ]
