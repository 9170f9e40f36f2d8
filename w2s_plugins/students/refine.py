"""What a linear classifier on the student's own frozen features makes of a teacher's labels: ``--refine-labels``.

A network that is trained on a teacher's answers learns its mistakes too. A linear map of pretrained features cannot say
most of them, since a weak model makes them for reasons that these features do not show; so the student is taught by
that map's answers, in place of the teacher's.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..labels.reader import LabelReader
from ..teachers.stored import CachedTargets
from ..teachers.teacher import combine
from .discriminant import fit_discriminant

_ROWS = 4096  # read at a time


class RefinedTargets(CachedTargets):
    """Logits of the discriminants (`fit_discriminant`) that are fitted to what is stored, one for each model.

    Args:
        targets: the teacher's stored labels.
        features: (D,) of each sample, and each of its views, stored.
        count: samples.

    Attributes:
        figures: ``changed``, the percentage of samples whose likeliest class is another one than the teacher's, and
            ``top1``, the accuracy of the classifiers on other images, where that is known.
    """

    def __init__(self, targets: CachedTargets, features: LabelReader, count: int):
        super().__init__(targets.readers, targets.device)
        self.teacher, self.features, self.count = targets, features, count
        self.heads = [fit_discriminant(lambda reader=reader: self._batches(reader)) for reader in self.readers]
        self.set_epoch(0)
        self.figures: dict[str, float | None] = dict(changed=self._changed(), top1=None)

    def measure(self, features: LabelReader, truth: Tensor) -> None:
        """Note the accuracy on other images with these features (D,) and classes (N,)."""
        right = sum(int((self._say(features, index).argmax(dim=1).cpu() == truth[index]).sum())
                    for index in torch.arange(len(truth)).split(_ROWS))
        self.figures["top1"] = 100 * right / len(truth)

    def set_epoch(self, epoch: int) -> None:
        """Choose the view of an epoch. Raises `UserError` when its files are damaged."""
        super().set_epoch(epoch)
        if self.features.manifest.views > 1:
            self.features.set_view(epoch % self.features.manifest.views)

    def __call__(self, index: Tensor) -> Tensor:
        """Return the logits (B, C) of the samples ``index`` (B,), the mean over the models."""
        return self._say(self.features, index)

    def by_member(self, index: Tensor) -> Tensor:
        """Return the logits for every model, (M, B, C)."""
        seen = self.features(index.cpu(), self.device)
        return torch.stack([head(seen) for head in self.heads])

    def _say(self, features: LabelReader, index: Tensor) -> Tensor:
        seen = features(index.cpu(), self.device)
        return combine([head(seen) for head in self.heads])

    @property
    def record(self) -> list[dict[str, str]]:
        """Key and folder of each, and of the features."""
        return [*super().record, dict(key=self.features.manifest.key, path=str(self.features.folder))]

    def _changed(self) -> float:
        different = total = 0
        for index in torch.arange(self.count).split(_ROWS):
            known = torch.stack([reader.has(index) for reader in self.readers]).any(dim=0)
            if known.any():
                known = index[known]
                different += int((self.teacher(known).argmax(dim=1) != self(known).argmax(dim=1)).sum())
                total += len(known)
        return 100 * different / total

    def _batches(self, reader: LabelReader) -> Iterator[tuple[Tensor, Tensor]]:
        for view in range(self.features.manifest.views):
            self.set_epoch(view)
            for index in torch.arange(self.count).split(_ROWS):
                known = index if reader.complete else index[reader.has(index)]
                if len(known):
                    yield self.features(known, self.device), reader(known, self.device).softmax(dim=1)
