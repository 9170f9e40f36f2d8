"""Labels that somebody gave, in place of a teacher that looks at images."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .reader import LabelReader
from .sharded import ShardedLabels


@dataclass(frozen=True)
class GivenLabels:
    """Labels that were given, for the samples that are trained on.

    Args:
        path: the file or folder.
        train: reads those of the training set.
        select: reads those of the held-out part, or None.
    """

    path: str
    train: LabelReader | ShardedLabels
    select: LabelReader | ShardedLabels | None

    @property
    def source(self) -> dict[str, object]:
        """Where they are from, for the record of a run."""
        manifest = self.train.manifest
        return dict(name=f"labels:{self.path}", kind=manifest.kind, source=manifest.who, samples=manifest.num_samples)

    def predictions(self, reader: LabelReader | ShardedLabels, count: int) -> Tensor:
        """Return the class (N,) that the labels give each of ``count`` samples, -1 where they say nothing."""
        index = torch.arange(count)
        has = reader.has(index)
        found = torch.full((count,), -1)
        found[has] = reader(index[has], torch.device("cpu")).argmax(dim=1)
        return found
