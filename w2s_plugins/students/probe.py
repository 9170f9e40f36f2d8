"""Linear probe: the student's features are computed once, and only its head is trained on them.

The features of a split are what the frozen student gives its head for the plain images: evaluation transform, inference
form, float32, computed by all ranks together and kept on disk beside cached targets, under a key that knows nothing of
head and seed. The teacher labels each image once, also those of the evaluation splits, through its own transform.

Everything else is an ordinary run, in which two things stand in place of others: the loaders yield stored features, and
the student that is trained is a `Probe`, all of the model with a ``forward`` that is its classifier, of which the rest
is frozen. So optimizer, DDP, average, checkpoints and export see the whole model. The head is made anew, since a
pretrained one has seen labels.
"""

import copy
from collections.abc import Iterator

import torch
from timm.data.distributed_sampler import OrderedDistributedSampler
from torch import Tensor, nn

from ..data import Batch
from ..data.loaders import LoaderSettings
from ..data.order import KeyedBatches, KeyedSampler, check_batch_size
from ..distributed.world import Precision
from ..errors import UserError
from ..labels.store import LabelReader
from ..models.inference import inference_dtype
from ..models.loading import TimmModel, of_timm
from ..teachers.stored import CachedTargets
from ..teachers.teacher import Encoder, StudentInput
from .adapters import heads_of


class TrainFeatures:
    """The batches of an epoch, as `TrainLoader` has them: same order of samples, features in place of images.

    Features come as images of one pixel (B, D, 1, 1), which have a memory layout as others have.

    Args:
        read: features (B, D) by position.
        labels: (N,), negative where there is none.
        sampler: the order of an epoch.
        batch_size: rows of a batch; a shorter last one is dropped.
        precision: device and dtype.
    """

    def __init__(
        self,
        read: LabelReader,
        labels: Tensor,
        sampler: KeyedSampler,
        batch_size: int,
        precision: Precision,
    ):
        self.read = read
        self.labels = labels
        # Read by position in the order of any other run, so that a probe sees its samples as the whole student would.
        check_batch_size(batch_size, sampler)
        self.batches = KeyedBatches(sampler, batch_size)
        self.precision = precision
        self.average_batch_size = float(batch_size)
        self.num_batches = len(self.batches)

    def __len__(self) -> int:
        return self.num_batches

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of ``epoch`` from number ``start`` on: of the view of that epoch, where several are stored."""
        # Views take turns by epoch.
        if self.read.manifest.views > 1:
            self.read.set_view(epoch % self.read.manifest.views)
        device = self.precision.device
        self.batches.set_epoch(epoch, start)
        for keys in self.batches:
            index = torch.tensor([key.index for key in keys])
            yield Batch(
                self.read(index, device).to(self.precision.dtype)[..., None, None],
                self.labels[index].to(device),
                index,
            )


class EvalFeatures:
    """The features (B, D, 1, 1) and labels of an evaluation split, dealt out to the ranks as timm's loader does.

    Args:
        read: features (B, D) by position.
        labels: (N,), negative where there is none.
        targets: the teacher's answers by position, which `teacher` returns; None if it is asked for nothing.
        settings: size of a batch, ranks, device.
    """

    def __init__(
        self,
        read: LabelReader,
        labels: Tensor,
        targets: CachedTargets | None,
        settings: LoaderSettings,
    ):
        self.read, self.labels, self.targets, self.device = read, labels, targets, settings.device
        # says which rows are padding
        self.sampler = OrderedDistributedSampler(labels, settings.world_size, settings.rank)
        self.batches = torch.tensor(list(self.sampler)).split(settings.batch_size)
        self.index = self.batches[0]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in self.batches:
            self.index = index
            features = self.read(index, self.device)[..., None, None]
            yield features, self.labels[index].to(self.device)

    def teacher(self, features: Tensor) -> Tensor:
        """Return the teacher's logits (B, C) for the batch that was yielded last; its features say nothing of them."""
        if self.targets is None:
            raise TypeError("there are no answers of a teacher")
        return self.targets(self.index)


class Probe(TimmModel):
    """A student of which only the classifier is trained: ``forward`` is the classifier on features (B, D) or (B, D, 1, 1).

    Its parameters and buffers are the student's, under the student's names.

    Args:
        student: a timm model.
    """

    student: TimmModel

    def __init__(self, student: TimmModel):
        super().__init__()
        # Past `nn.Module.__setattr__`, which would register the student's parameters a second time.
        vars(self)["student"] = student
        for kind in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            vars(self)[kind] = vars(student)[kind]
        self.num_classes = student.num_classes
        # The optimizer is given what has gradients, and that is the classifier.
        student.requires_grad_(False)
        heads_of(student)[0].requires_grad_(True)

    def forward(self, features: Tensor) -> Tensor:
        return heads_of(self.student)[0](features.flatten(1))


def create_encoder(
    student: TimmModel,
    data_config: dict,
    precision: Precision,
    flag: str,
    what: str = "--linear-probe",
    advice: str = "choose another model",
) -> Encoder:
    """Return a frozen copy of a student that gives what its classifier sees.

    Args:
        student: a timm model.
        data_config: timm's data configuration of it.
        precision: device and dtype.
        flag: named the model.
        what: flag that asks for it.
        advice: where the model has no such head.

    Raises:
        UserError: the head is not one linear layer on pooled features.
    """
    # The model without its head, on random images.
    encoder, some = of_timm(copy.deepcopy(student).eval()), next(student.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *data_config["input_size"], generator=generator).to(some)
    head = encoder.get_classifier() if hasattr(encoder, "get_classifier") else None
    if not isinstance(head, nn.Linear):
        raise UserError(f"{what}: the head of {flag} is not one linear layer; {advice}")
    with torch.inference_mode():
        logits = encoder(images)
        encoder.reset_classifier(0)
        features = encoder(images)
        # Is the head all that lies between features and logits?
        tolerance = 1e-4 if some.dtype == torch.float32 else 0.05
        pooled = features.ndim == 2 and features.shape[1] == head.in_features
        matches = pooled and torch.allclose(head(features), logits, rtol=tolerance, atol=tolerance)
    if not matches:
        raise UserError(
            f"{what}: the logits of {flag} are not its classifier on pooled features; {advice}"
        )
    # It sees images in its own normalisation, as a teacher does.
    statistics = StudentInput.of(data_config, features.shape[1])
    source = {"name": flag.removeprefix("--model ")}
    # Its inference form is made, and checked, on the CPU as that of a teacher: with TF32 a GPU is not exact enough.
    frozen = Encoder(
        encoder.cpu(), data_config, statistics, source=source, dtype=inference_dtype(precision)
    )
    return frozen.to(precision.device).eval()
