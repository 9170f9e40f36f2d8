"""Linear probe: the student's features are computed once, and only its head is trained on them.

The features of a split are what the frozen student gives its head for the plain images: evaluation transform, inference
form, float32, computed by all ranks together and kept on disk beside cached targets, under a key that
does not depend on the head. The teacher labels each image once, also those of the evaluation splits, through its own
transform. Everything else is an ordinary run: the student is the whole model, of which `forward` runs the head.

`probe.py` puts two things in place of others and leaves the rest alone: the loaders yield stored features, and
`forward` of the student, of which everything but the classifier is frozen, is the classifier until the run ends. So
optimizer, DDP, average, checkpoints and export see the whole model. Features are outputs of a frozen copy without
head, written by the code of cached targets as float32; their key knows nothing of head and seed. The head is made
anew, since a pretrained one has seen labels. The teacher's logits of the evaluation splits are stored likewise, so its
figures are those of its own transform, while `validate.py` shows it the student's view.
"""

import argparse
import copy
import functools
from collections.abc import Iterator
from pathlib import Path
from types import MethodType

import torch
from timm.data.distributed_sampler import OrderedDistributedSampler
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from ..data import Batch, labels_of
from ..data.datasets import describe
from ..data.keys import sample_keys
from ..data.views import KeyedSampler
from ..data.wrapper import without_transform
from ..distributed.world import Precision, World, agree
from ..errors import UserError
from ..labels.format import Manifest
from ..labels.reader import LabelReader
from ..labels.relabelled import Relabelled
from ..labels.splits import Data
from ..labels.writer import ensure_labels
from ..models.inference import inference_dtype
from ..monitor import Console
from ..teachers.stored import CachedTargets, Pass, label_images, model_manifest
from ..teachers.teacher import StudentInput, Teacher, TeacherModel


class TrainFeatures:
    """The batches of an epoch, as `TrainLoader` has them: same order of samples, features in place of images.

    Args:
        read: features (B, D) by position.
        labels: (N,).
        sampler: the order of an epoch.
        batch_size: rows of a batch; a shorter last one is dropped.
        precision: device and dtype.
    """

    def __init__(self, read: LabelReader, labels: Tensor, sampler: KeyedSampler, batch_size: int,
                 precision: Precision):
        self.read, self.labels, self.sampler = read, labels, sampler
        self.batch_size, self.precision = batch_size, precision
        self.average_batch_size = float(batch_size)
        self.num_batches = len(sampler) // batch_size
        if self.num_batches == 0:
            raise UserError(f"--batch-size {batch_size} is more than {len(labels)} training samples on "
                            f"{sampler.world_size} process(es) have")

    def __len__(self) -> int:
        return self.num_batches

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of ``epoch`` from number ``start`` on."""
        self.sampler.set_epoch(epoch, start * self.batch_size)
        order = torch.tensor([key.index for key in self.sampler], dtype=torch.long)
        device = self.precision.device
        for index in order[:(self.num_batches - start) * self.batch_size].split(self.batch_size):
            yield Batch(self.read(index, device).to(self.precision.dtype), self.labels[index].to(device), index)


class EvalFeatures:
    """The features and labels of an evaluation split, dealt out to the ranks as timm's loader does.

    Args:
        read: features (B, D) by position.
        labels: (N,).
        targets: what the teacher says of the same samples, or None.
        batch_size: rows of a batch.
        device: where they go.
        rank: this process.
        world_size: number of processes.
    """

    def __init__(self, read: LabelReader, labels: Tensor, targets: CachedTargets | None, batch_size: int,
                 device: torch.device, rank: int = 0, world_size: int = 1):
        self.read, self.labels, self.targets, self.device = read, labels, targets, device
        self.sampler = OrderedDistributedSampler(labels, world_size, rank)  # says which rows are padding
        self.batches = torch.tensor(list(self.sampler)).split(batch_size)
        self.index = self.batches[0]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in self.batches:
            self.index = index
            yield self.read(self.index, self.device), self.labels[self.index].to(self.device)

    def teacher(self, features: Tensor) -> Tensor:
        """Return the teacher's logits (B, C) for the batch that was yielded last; its features say nothing of them."""
        return self.targets(self.index)


def freeze(student: nn.Module) -> None:
    """Let only the classifier of a student be trained, and let its ``forward`` take features (B, D)."""
    student.requires_grad_(False)
    student.get_classifier().requires_grad_(True)
    student.forward = MethodType(_classify, student)


def thaw(student: nn.Module) -> None:
    """Let ``forward`` take images again."""
    vars(student).pop("forward", None)
    student.requires_grad_(True)


def _classify(student: nn.Module, features: Tensor) -> Tensor:
    return student.get_classifier()(features)


def create_encoder(student: nn.Module, data_config: dict, precision: Precision, flag: str) -> TeacherModel:
    """Return a frozen copy of a student that gives what its classifier sees, (B, D) in float32.

    Raises:
        UserError: the head is not one linear layer on pooled features.
    """
    heads = student.get_classifier() if hasattr(student, "get_classifier") else None
    if not isinstance(heads, nn.Linear):
        raise UserError(f"--linear-probe: the head of {flag} is not one linear layer; choose another model")
    model = copy.deepcopy(student).eval()
    parameter = heads.weight
    images = torch.randn(2, *data_config["input_size"], generator=torch.Generator().manual_seed(0)).to(parameter)
    with torch.inference_mode():
        logits = model(images)
        model.reset_classifier(0)
        features = model(images)
        again = heads(features) if features.ndim == 2 and features.shape[1] == heads.in_features else None
    tolerance = 1e-4 if parameter.dtype == torch.float32 else 0.05
    if again is None or not torch.allclose(again, logits, rtol=tolerance, atol=tolerance):
        raise UserError(f"--linear-probe: the logits of {flag} are not its classifier on pooled features; choose "
                        "another model")
    statistics = StudentInput(data_config["mean"], data_config["std"], data_config["input_size"][0], None)
    dtype = inference_dtype(precision.device, precision.amp_dtype)
    source = {"name": flag.removeprefix("--model ")}
    return TeacherModel(model, data_config, statistics, source=source, dtype=dtype).to(precision.device).eval()


def feature_loaders(
        args: argparse.Namespace,
        data: Data,
        student: nn.Module,
        teacher: Teacher | None,
        data_config: dict,
        precision: Precision,
        world: World,
) -> dict[str, object]:
    """Compute or find the features of all splits and freeze the student; return loaders in place of those of images.

    Args:
        args: parsed flags.
        data: the splits.
        student: the whole model; afterwards its ``forward`` takes features.
        teacher: labels the evaluation splits once, unless ``--no-teacher-eval``.
        data_config: input of the student.
        precision: device and dtypes.
        world: this process.

    Raises:
        UserError: a stream, a dataset that does not tell its labels, or a head that is not one linear layer.
    """
    if isinstance(data.train, IterableDataset) or labels_of(data.train) is None:
        raise UserError("--linear-probe needs a dataset that tells its labels without being read: a folder, torch/, "
                        "hfds/ or w2s/ dataset")
    encoder = create_encoder(student, data_config, precision, f"--model {args.model}")
    width = student.get_classifier().in_features

    def outputs(dataset: Dataset, split: str, member: TeacherModel, columns: int | None = None) -> LabelReader:
        return stored_outputs(args, without_transform(dataset), split, member, world, columns)

    def features(dataset: Dataset, split: str) -> tuple[LabelReader, Tensor]:
        images = dataset.dataset if isinstance(dataset, Relabelled) else dataset  # features do not depend on labels
        return outputs(images, split, encoder, width), torch.tensor(labels_of(dataset))

    def evaluation(dataset: Dataset | None, split: str) -> EvalFeatures | None:
        if dataset is None:
            return None
        targets = None
        if teacher is not None and not args.no_teacher_eval:
            readers = [outputs(dataset, split, member) for member in teacher.members]
            targets = CachedTargets(readers, world.device)
        return EvalFeatures(
            *features(dataset, split), targets, args.validation_batch_size or args.batch_size, world.device,
            world.rank, world.size)

    train = TrainFeatures(
        *features(data.train, args.train_split), KeyedSampler(len(data.train), args.seed, world.rank, world.size),
        args.batch_size, precision)
    loaders = dict(train=train, val=evaluation(data.val, args.val_split),
                   select=evaluation(data.select, args.train_split), few_shot=None)
    freeze(student)
    return loaders


def stored_outputs(
        args: argparse.Namespace,
        dataset: Dataset,
        split: str,
        member: TeacherModel,
        world: World,
        columns: int | None = None,
) -> LabelReader:
    """Return what a frozen model gives for all images of a split, exact, from disk; what is missing is computed.

    Args:
        args: parsed flags.
        dataset: the split; its transform is changed.
        split: its name.
        member: the model, with its own transform.
        world: this process; all ranks share the work.
        columns: width of the features that it gives, None where it gives logits.
    """
    def make_manifest() -> Manifest:
        return model_manifest(
            member, dataset, describe(dataset, args.dataset, split).fingerprint, args.decoder, columns,
            kind="features" if columns else "logits", dtype=torch.float32)

    manifest = agree(world.primary and make_manifest(), world.distributed)
    how = Pass(world, args.validation_batch_size or args.batch_size, args.workers, args.decoder)
    keys, labeller = sample_keys(dataset), functools.partial(label_images, member, member.data_config, dataset, how)
    folder = ensure_labels(
        Path(args.target_cache) / manifest.key, manifest, keys, labeller, distributed=world.distributed,
        progress=Console(world.primary, 0).wrap(f"{manifest.title.capitalize()} of '{split}'"))
    return LabelReader(folder, keys, manifest)
