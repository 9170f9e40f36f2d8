"""Selection of samples whose label is likely to be right, and the files that selections are kept in."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import AnyDataset, MapDataset, Subset
from ..data.keys import positions_in_split
from ..errors import UserError, one_line
from ..files import check_regular, to_json

BLOCK = 2**26  # similarities in memory at a time


@dataclass(frozen=True)
class Selection:
    """The samples that were selected.

    Args:
        about: rule, model, counts, and precision and recall where clean labels are known.
        indices: where the samples are in the whole training split.
    """

    about: dict[str, object]
    indices: list[int]

    def to_text(self) -> str:
        """Return the text of an index file: a comment with what it is, then an index a line."""
        return f"# {to_json(self.about)}\n" + "".join(f"{i}\n" for i in self.indices)


def agrees_with_neighbours(
    features: Tensor,
    labels: Tensor,
    k: int,
    num_classes: int,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> Tensor:
    """Say for each sample whether its label is the most frequent one among its K nearest neighbours by cosine.

    The sample itself is not one of its neighbours. Of several labels that are equally frequent each counts as the most
    frequent. Similarities are computed for some samples at a time, `BLOCK` of them at most.

    Args:
        features: (N, D), on the device that does the work.
        labels: (N,) class indices, on the same device.
        k: K, from 1 to N - 1.
        num_classes: C.
        progress: wraps the sequence of blocks to show progress.

    Returns:
        (N,) bool.

    Raises:
        UserError: K is not below the number of samples.
    """
    # a sample has no more neighbours than there are others
    count = len(features)
    if k >= count:
        raise UserError(f"--clean-select knn:{k}: expected less than the {count} training samples")
    # all pairs at once would not fit into memory
    features = F.normalize(features, dim=1)
    agrees = torch.zeros(count, dtype=torch.bool, device=features.device)
    rows = max(1, min(count, BLOCK // max(count, num_classes)))
    blocks = range(0, count, rows)
    for first in progress(blocks) if progress else blocks:
        # cosines of some samples with all, but not with themselves
        in_block = labels[first : first + rows].unsqueeze(1)
        similarity = features[first : first + rows] @ features.T
        similarity.diagonal(first).fill_(-torch.inf)

        # the neighbours vote; of a tie each class counts
        neighbours = labels[similarity.topk(k, dim=1).indices]
        votes = torch.zeros(len(in_block), num_classes, device=features.device)
        votes.scatter_add_(1, neighbours, torch.ones_like(neighbours, dtype=votes.dtype))
        agrees[first : first + rows] = votes.gather(1, in_block).squeeze(1) == votes.amax(dim=1)
    return agrees


def smallest_share(values: Tensor, share: float) -> Tensor:
    """Say which samples (N,) are the given share with the smallest values (N,), R * N rounded to the nearest number of
    samples, at least one; of equal values the first come first.
    """
    # stable, so that a run on another machine selects the same of equal values
    chosen = values.argsort(stable=True)[: max(1, int(share * len(values) + 0.5))]
    return torch.zeros(len(values), dtype=torch.bool).index_fill_(0, chosen.cpu(), True)


class Figures(TypedDict):
    """What a selection has left, see `selection_figures`."""

    candidates: int
    selected: int
    empty_classes: int
    precision: float | None
    recall: float | None


def selection_figures(
    selected: Sequence[bool] | Tensor,
    given: Sequence[int] | None,
    clean: Sequence[int] | None,
) -> Figures:
    """Return the counts of a selection and, where clean labels are known, how good it is.

    Args:
        selected: (N,) which samples.
        given: labels they were given, None where there are none.
        clean: their clean labels, or None.

    Returns:
        ``candidates``, ``selected``, ``empty_classes`` (those with samples before and none after); ``precision``, the
        share of the selected samples whose label is clean, and ``recall``, the share of the samples with a clean label
        that are selected, None where unknown.
    """
    # a class that loses all of its samples will not be learned, whatever the precision
    kept = np.asarray(selected, dtype=bool)
    count = int(kept.sum())
    figures = Figures(
        candidates=len(kept), selected=count, empty_classes=0, precision=None, recall=None
    )
    if given is None:
        return figures
    labels = np.asarray(given)
    figures["empty_classes"] = len({*labels} - {*labels[kept]})
    if clean is None:
        return figures

    # how many of those that are kept have a label that is right, and how many of those that have are kept
    right = np.equal(labels, clean)
    hits = int((kept & right).sum())
    figures["precision"] = hits / max(1, count)
    figures["recall"] = hits / max(1, int(right.sum()))
    return figures


def read_selection(
    file: str, dataset: AnyDataset, split_size: int, fingerprint: str | None
) -> tuple[list[bool], dict]:
    """Read which samples of a training set an index file selects.

    The file is one that a run has written, a text with an index a line, or an npy with indices or with a mask over the
    whole split (as the code of Sel-CL writes).

    Args:
        file: its path.
        dataset: the training set, a part of the split.
        split_size: samples in the whole split, which indices count in.
        fingerprint: of the training set; a file that a run has written must be for the same.

    Returns:
        For each sample of the training set whether it is selected, and what the file says about itself.

    Raises:
        UserError: unreadable, indices out of range, made for other data, or no sample is left.
    """
    flag, path, about = f"--clean-select file:{file}", Path(file), {}
    try:
        # a text says what it is in its first line, an npy says nothing
        check_regular(path)
        if path.suffix == ".npy":
            rows = np.load(path, allow_pickle=False)
            is_mask = rows.shape == (split_size,) and np.isin(rows, (0, 1)).all()
            rows = np.flatnonzero(rows) if is_mask else rows
        else:
            lines = path.read_text(encoding="utf-8").splitlines()
            if lines and lines[0].startswith("#"):
                about = dict(json.loads(lines.pop(0)[1:]))
            rows = np.array([int(line) for line in lines if line.strip()], dtype=np.int64)
        indices = set(rows.astype(np.int64, casting="same_kind").tolist())
    except Exception as error:  # damaged files fail in many ways
        raise UserError(
            f"{flag}: expected an index a line, or an npy with indices or a mask of {split_size} samples: "
            f"{one_line(error, 120)}"
        ) from error

    # indices mean nothing in other data
    if about.get("fingerprint") not in (None, fingerprint):
        raise UserError(
            f"{flag}: it was made for other training data: dataset, --train-slice, --select-split and "
            "--label-noise must be the same"
        )
    if indices and not 0 <= min(indices) <= max(indices) < split_size:
        raise UserError(
            f"{flag}: indices from {min(indices)} to {max(indices)}; the training split has 0 to "
            f"{split_size - 1}"
        )
    # of a part of the split, those of the file that are in it
    selected = [i in indices for i in positions_in_split(dataset)]
    if not any(selected):
        raise UserError(
            f"{flag}: none of its {len(indices)} samples is in the training set of {len(selected)}"
        )
    return selected, about


def take_selected(dataset: MapDataset, selected: Sequence[bool] | Tensor) -> Subset:
    """Return the selected part of a dataset."""
    return Subset(dataset, [i for i, kept in enumerate(selected) if kept])
