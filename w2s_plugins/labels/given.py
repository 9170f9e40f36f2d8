"""Labels that somebody gave, in place of a teacher that looks at images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import logger
from .samples import SampleLabels

ROWS = 8192  # that are in memory at a time


@dataclass(frozen=True)
class GivenLabels:
    """Labels that were given, for the samples that are trained on.

    Args:
        name: the file, or the dataset on the Hub; of a crowd the first.
        train: reads those of the training set.
        select: reads those of the held-out part, or None.
        commit: of the Hub that they are from, None for those of a disk.
        wrong: the share of the training samples whose label is not the true one, None where nobody knows.
    """

    name: str
    train: SampleLabels
    select: SampleLabels | None
    commit: str | None = None
    wrong: float | None = None

    @property
    def hash(self) -> str:
        """Of what they say, which a run that goes on needs again."""
        return str(self.train.manifest.who["answers"]) + (f"@{self.commit}" if self.commit else "")

    @property
    def source(self) -> dict[str, object]:
        """Where they are from, for the record of a run: a file by its name, not where it lies here."""
        manifest = self.train.manifest
        source = dict(manifest.who)
        if self.commit:
            # the commit, not the name of a branch: that one moves
            repo = self.name.partition("@")[0].removeprefix("hf://")
            source |= dict(repo=repo, revision=self.commit)
        return dict(
            name=self.public_name,
            kind=manifest.kind,
            source=source,
            samples=manifest.num_samples,
            wrong=self.wrong,
        )

    @property
    def public_name(self) -> str:
        """The name without the folders of this machine."""
        return f"labels:{self.name if self.commit else self.train.manifest.who['file']}"

    def compared_with(self, truth: Sequence[int] | Tensor) -> "GivenLabels":
        """Return the same labels, with the share of them that is not the true one; where several classes are as likely
        each is right in part, and where an image may have several (N, C) each of them is one part.
        """
        # some rows at a time: logits of all would be as large as the table
        true = truth if isinstance(truth, Tensor) else torch.tensor(truth)
        right = 0.0
        known = self.train.known.nonzero().flatten()
        for rows in known.split(ROWS):
            right += float(self.train.correctness(rows, true[rows]).sum())
        count = len(known)
        if not count:
            return self

        # how many it is right about is a fraction, where some leave it open
        wrong = (count - right) / count
        logger.info(
            f"{self.public_name}: {100 * wrong:.2f} % of {count} labels are not the ground truth; those that leave "
            "it open between several classes count in part"
        )
        return replace(self, wrong=wrong)
