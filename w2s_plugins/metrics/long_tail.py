"""Accuracy on classes with many, some and few training samples."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from ..data import AnyDataset, labels_of
from ..errors import UserError, one_line
from ..files import read_text

CLASS_COUNTS = "class_counts.json"  # in a run folder


@dataclass(frozen=True)
class ShotGroups:
    """Classes by the number of their training samples.

    Accuracies are means over the classes of a group, as in *Large-Scale Long-Tailed Recognition in an Open World*
    (2019, arXiv:1904.05160), whose thresholds are the defaults. Classes without evaluated samples do not count.

    Args:
        counts: training samples of each class.
        few: few-shot classes have fewer samples than this.
        many: many-shot classes have more samples than this; the others are medium.
    """

    counts: Sequence[int]
    few: int = 20
    many: int = 100

    def masks(self) -> dict[str, Tensor]:
        """Return which classes are in each group, as (C,) bool."""
        # what is in neither of the outer groups is medium
        counts = torch.tensor(self.counts)
        many = counts > self.many
        few = counts < self.few
        return {"many": many, "medium": ~(many | few), "few": few}

    def evaluate(
        self,
        predictions: Tensor,
        targets: Tensor,
        device: torch.device,
        distributed: bool,
    ) -> dict[str, float]:
        """Return ``top1_many``, ``top1_medium`` and ``top1_few`` in percent, of the groups that have samples.

        Args:
            predictions: classes (N,), on the CPU.
            targets: labels (N,), on the CPU.
            device: where the ranks exchange their counts.
            distributed: measure all ranks together.
        """
        # those that are right, and all, of each class: (2, C)
        size = len(self.counts)
        right = targets[predictions == targets]
        sums = torch.stack([right.bincount(minlength=size), targets.bincount(minlength=size)])
        if distributed:
            sums = sums.to(device)
            dist.all_reduce(sums)
        correct, total = sums.cpu().double()

        # classes without samples here have no accuracy
        figures = {}
        for name, mask in self.masks().items():
            seen = mask & (total > 0)
            if seen.any():
                accuracies = correct[seen] / total[seen]
                figures[f"top1_{name}"] = 100.0 * accuracies.mean().item()
        return figures

    def __str__(self) -> str:
        sizes = {name: int(mask.sum()) for name, mask in self.masks().items()}
        return (
            f"{sizes['many']} many-shot classes (more than {self.many} training samples), "
            f"{sizes['medium']} medium-shot, {sizes['few']} few-shot (fewer than {self.few})"
        )


def count_classes(dataset: AnyDataset, num_classes: int | None) -> list[int] | None:
    """Return the number of samples of each class, or None where the dataset does not tell."""
    # to look at every image for its label would take as long as an epoch
    labels = labels_of(dataset)
    if labels is None or num_classes is None:
        return None
    return torch.tensor(labels).bincount(minlength=num_classes).tolist()


def choose_groups(
    mode: str,
    counts: Sequence[int] | None,
    thresholds: Sequence[int],
) -> ShotGroups | None:
    """Return the groups that training measures by, or None.

    Args:
        mode: always, never, or auto: where the training split is long-tailed.
        counts: training samples of each class, None where the dataset does not tell.
        thresholds: few and many.

    Raises:
        UserError: mode is always, and the dataset does not tell.
    """
    if mode == "always" and counts is None:
        raise UserError(
            "--long-tail always: this kind of dataset does not tell its labels without "
            "being read; use a folder, inat2018, torch/, hfds/ or w2s/ dataset"
        )
    if mode == "never" or counts is None:
        return None
    # where it was not asked for, only a long tail is worth these columns: many-shot and few-shot classes
    groups = ShotGroups(counts, *thresholds)
    is_long_tailed = max(counts) > groups.many and min(counts) < groups.few
    return groups if mode == "always" or is_long_tailed else None


def counts_to_json(split: str, counts: Sequence[int]) -> str:
    """Return the content of `CLASS_COUNTS`."""
    return json.dumps(dict(split=split, counts=list(counts))) + "\n"


def read_counts(path: Path, flag: str) -> list[int]:
    """Read the file of class counts of a run, or a json list of numbers.

    Raises:
        UserError: it is neither.
    """
    try:
        # The file of a run has the split beside its counts; it may come from others, so each number is checked before
        # tensors are made of it.
        content = json.loads(read_text(path))
        counts = content["counts"] if isinstance(content, dict) else content
        if not counts or not all(type(n) is int and 0 <= n < 2**62 for n in counts):
            raise ValueError("its counts are no list of whole numbers")
        return counts
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{flag} {path}: expected {CLASS_COUNTS} of a run, or a json list of the training "
            f"samples of each class ({one_line(error)})"
        ) from error
