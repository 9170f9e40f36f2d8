"""Labels of a teacher, halfway to what a linear classifier on the student's own frozen features makes of them:
``--refine-labels``.

A network that is trained on a teacher's answers learns its mistakes too. A linear map of pretrained features cannot say
most of them, since a weak model makes them for reasons that these features do not show. Where the features are poor it
knows less than the teacher, and the mean of both is still about as good.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..labels.samples import SampleLabels
from ..labels.store import LabelReader
from ..teachers.stored import CachedTargets
from .discriminant import fit_discriminant

_ROWS = 4096  # read at a time


class RefinedTargets(CachedTargets):
    """Logits of the mean of what is stored and of the discriminant (`fit_discriminant`) that is fitted to it, for each
    model of the teacher; where nothing is stored for a sample, of the discriminant.

    Args:
        targets: the teacher's stored labels.
        features: (D,) of each sample, and each of its views, stored.
        count: samples.

    Attributes:
        figures: ``differs``, the percentage of samples of which the discriminants say another class than the teacher.
    """

    def __init__(self, targets: CachedTargets, features: LabelReader, count: int):
        super().__init__(targets.readers, targets.device, targets.target_kind)
        self.teacher, self.features, self.count = targets, features, count
        self.heads = [
            fit_discriminant(lambda reader=reader: self._batches(reader)) for reader in self.readers
        ]
        # To fit them every view was read in turn; training begins with that of the first epoch.
        self.set_epoch(0)
        self.figures = dict(differs=self._differs())

    def set_epoch(self, epoch: int) -> None:
        """Choose the view of an epoch. Raises `UserError` when its files are damaged."""
        super().set_epoch(epoch)
        if self.features.manifest.views > 1:
            self.features.set_view(epoch % self.features.manifest.views)

    def __call__(self, index: Tensor) -> Tensor:
        """Return the logits (B, C) of the samples ``index`` (B,), the mean over the models."""
        return self.target_kind.average(list(self.by_member(index)))

    def by_member(self, index: Tensor) -> Tensor:
        """Return the logits for every model, (M, B, C)."""
        # Of each model the mean of what it said and of its discriminant, where it said anything.
        index, answers = index.cpu(), []
        seen = self.features(index, self.device)
        for reader, head in zip(self.readers, self.heads):
            shares = self.target_kind.probabilities(head(seen))
            rows = reader.has(index).nonzero().flatten()
            if len(rows):
                on_device = rows.to(self.device, non_blocking=True)
                of_reader = self.target_kind.probabilities(reader(index[rows], self.device))
                shares[on_device] = (shares[on_device] + of_reader) / 2
            answers.append(self.target_kind.from_probabilities(shares))
        return torch.stack(answers)

    @property
    def record(self) -> list[dict[str, str]]:
        """Key and folder of each, and of the features."""
        return [
            *super().record,
            dict(key=self.features.manifest.key, path=str(self.features.folder)),
        ]

    def _differs(self) -> float:
        # Of samples about which the teacher said something.
        kind, different, total = self.target_kind, 0, 0
        for index in torch.arange(self.count).split(_ROWS):
            known = index[torch.stack([reader.has(index) for reader in self.readers]).any(dim=0)]
            if len(known):
                seen = self.features(known, self.device)
                classes = kind.decide(kind.average([head(seen) for head in self.heads]))
                different += int(
                    (kind.agreement(kind.decide(self.teacher(known)), classes) < 1).sum()
                )
                total += len(known)
        return 100 * different / total

    def _batches(self, reader: LabelReader | SampleLabels) -> Iterator[tuple[Tensor, Tensor]]:
        # Each view of a sample counts as a sample of its own, as it does in training.
        for view in range(self.features.manifest.views):
            self.set_epoch(view)
            for index in torch.arange(self.count).split(_ROWS):
                known = index if reader.complete else index[reader.has(index)]
                if len(known):
                    yield (
                        self.features(known, self.device),
                        self.target_kind.probabilities(reader(known, self.device)),
                    )
