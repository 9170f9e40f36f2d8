"""Class-stratified, seeded, disjoint parts of a training set."""

import math
import random
from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor
from torch.utils.data import IterableDataset

from ..errors import UserError
from ..settings.forms import parse_slice
from .datasets import (
    NamesFiles,
    class_names_of,
    labels_of,
    labels_unknown,
    strata,
)
from .map_style import AnyDataset, MapDataset, classes_of_samples
from .wrapper import Wrapper

D = TypeVar("D", bound=AnyDataset)


class Subset(Wrapper):
    """Some samples of a dataset; the transform is the dataset's own."""

    def __init__(self, dataset: MapDataset, indices: Sequence[int]):
        super().__init__(dataset)
        self.indices = list(indices)
        labels = labels_of(dataset)
        self.targets: Sequence[int] | Tensor
        if labels is not None:
            self.targets = [labels[i] for i in self.indices]
        several = classes_of_samples(dataset)
        if several is not None:
            self.targets = several[self.indices]
        names = class_names_of(dataset)
        if names is not None:
            self.classes = names

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[object, int | Tensor]:
        return self.dataset[self.indices[index]]

    def filenames(self, basename: bool = False, absolute: bool = False) -> list[str]:
        """Names of the files, or the positions where the dataset has none."""
        # digits and the like
        if not isinstance(self.dataset, NamesFiles):
            return [str(i) for i in self.indices]
        names = self.dataset.filenames(basename, absolute)
        return [names[i] for i in self.indices]


def positions_by_class(labels: Sequence[int]) -> dict[int, list[int]]:
    """Return the positions of the samples of each class, classes in ascending order."""
    groups: dict[int, list[int]] = {label: [] for label in sorted(set(labels))}
    for position, label in enumerate(labels):
        groups[label].append(position)
    return groups


def stratified_order(labels: Sequence[int], seed: int) -> list[int]:
    """Return an order of all samples of which every stretch has the classes in their overall proportions.

    Each class is shuffled and spread evenly over [0, 1); samples are sorted by that position, so that slices of one
    order are disjoint and stratified.
    """
    # Python's generator draws the same in all versions
    rng = random.Random(seed)
    placed: list[tuple[float, int, int]] = []
    for label, members in positions_by_class(labels).items():
        rng.shuffle(members)
        # an offset of its own: classes of one size would else follow each other in the same turn all along
        offset = rng.random()
        for k, index in enumerate(members):
            placed.append(((k + offset) / len(members), label, index))
    return [i for _, _, i in sorted(placed)]


def take_slice(
    dataset: D,
    text: str | None,
    seed: int,
    flag: str = "--train-slice",
) -> D | Subset:
    """Return the part of ``dataset`` that ``--train-slice`` or another flag names, or all of it.

    Raises:
        UserError: malformed or empty slice, or a dataset that does not tell its labels.
    """
    if not text:
        return dataset
    if isinstance(dataset, IterableDataset):
        raise labels_unknown(flag)
    # slices of one order are disjoint
    order = stratified_order(strata(dataset, flag), seed)
    stretches = [_stretch(order, part, flag) for part in text.split(",")]
    return Subset(dataset, sorted(set().union(*stretches)))


def _stretch(order: Sequence[int], text: str, flag: str) -> Sequence[int]:
    # shares are rounded to samples, so that slices that touch leave none out
    start, stop = parse_slice(text, flag)
    if isinstance(start, float) or isinstance(stop, float):
        start, stop = (_samples_in(share, len(order)) for share in (start, stop))
    if stop is not None and stop > len(order):
        raise UserError(f"{flag} {text}: the split has only {len(order)} samples")
    indices = order[start or 0 : stop]
    if not indices:
        raise UserError(f"{flag} {text}: no sample is left of {len(order)}")
    return indices


def _samples_in(share: float | None, size: int) -> int | None:
    return None if share is None else math.floor(share * size + 0.5)


def hold_out(
    dataset: D,
    amount: float | int | None,
    seed: int,
) -> tuple[D | Subset, Subset | None]:
    """Split off a stratified part, a fraction or a count, for the selection of checkpoints."""
    if not amount:
        return dataset, None
    if isinstance(dataset, IterableDataset):
        raise labels_unknown("--select-split")
    # another order than that of --train-slice
    order = stratified_order(strata(dataset, "--select-split"), seed + 1)
    count = amount * len(order) if isinstance(amount, float) else amount
    if not 0 < count <= len(order) - 1:
        raise UserError(
            f"--select-split {amount}: expected less than the {len(order)} training samples"
        )
    count = math.ceil(count)
    rest = Subset(dataset, sorted(order[count:]))
    held_out = Subset(dataset, sorted(order[:count]))
    return rest, held_out
