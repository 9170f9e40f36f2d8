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
        name: the file or folder, or the dataset on the Hub.
        train: reads those of the training set.
        select: reads those of the held-out part, or None.
        commit: of the Hub that they are from, None for those of a disk.
    """

    name: str
    train: LabelReader | ShardedLabels
    select: LabelReader | ShardedLabels | None
    commit: str | None = None

    @property
    def hash(self) -> str:
        """Of what they say, which a run that goes on needs again."""
        return self.train.manifest.key + (f"@{self.commit}" if self.commit else "")

    @property
    def source(self) -> dict[str, object]:
        """Where they are from, for the record of a run."""
        manifest, repo = self.train.manifest, self.name.partition("@")[0].removeprefix("hf://")
        origin = dict(repo=repo, revision=self.commit) if self.commit else {}
        return dict(name=f"labels:{self.name}", kind=manifest.kind, source={**manifest.who, **origin},
                    samples=manifest.num_samples)

    def predictions(self, reader: LabelReader | ShardedLabels, count: int) -> Tensor:
        """Return the class (N,) that the labels give each of ``count`` samples, -1 where they say nothing."""
        index = torch.arange(count)
        has = reader.has(index)
        found = torch.full((count,), -1)
        found[has] = reader(index[has], torch.device("cpu")).argmax(dim=1)
        return found
