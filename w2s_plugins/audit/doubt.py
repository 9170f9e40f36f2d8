"""Which labels a person should look at first: those that are most likely wrong.

Whether a label is wrong is asked of nobody who has learned it. The student has, and repeats what it was told. So the
images are cut into parts, and the labels of each are judged by a discriminant of frozen features that was fitted to the
labels of the others (`students.discriminant`): out-of-sample probabilities, as for confident learning (arXiv
1911.00068). A label is doubted by how far another class is above it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..no_label import NO_LABEL
from ..students.discriminant import fit_discriminant

PARTS = 5  # that labels are judged in
AT_ONCE = 8192  # images
WIDTH = (
    256  # of the features of several classes an image, each of which has a discriminant of its own
)
ALIKE = 0.95  # cosine of features, seen from their mean, of images that are near-duplicates
UNKNOWN = np.nan  # share of a class that too few other images have


def judge(features: Tensor, labels: np.ndarray, classes: int, lots: np.ndarray) -> np.ndarray:
    """Return the shares (N, C) that each class has of images by the labels of other images, NaN for a class that no other
    image has.

    Args:
        features: (N, D) of the images.
        labels: (N,) classes, `NO_LABEL` for none.
        classes: C.
        lots: (N,) from 0 to 1, which decide the part of each image.
    """
    shares = np.full((len(labels), classes), UNKNOWN, dtype=np.float32)
    targets = torch.nn.functional.one_hot(torch.from_numpy(labels).clamp(min=0), classes)
    part = (lots * PARTS).astype(np.int64)
    for number in np.unique(part):
        # fitted to the others, asked about its own
        others = ((part != number) & (labels != NO_LABEL)).nonzero()[0]
        own = (part == number).nonzero()[0]
        there = np.bincount(labels[others], minlength=classes) > 0
        if there.sum() < 2:
            continue
        blocks = torch.from_numpy(others).split(AT_ONCE)
        head = fit_discriminant(
            lambda blocks=blocks: ((features[rows].float(), targets[rows]) for rows in blocks)
        )
        said = head(features[torch.from_numpy(own)]).softmax(dim=1).numpy()
        shares[own] = np.where(there, said, UNKNOWN)
    return shares


def doubt_of(shares: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return by how far the likeliest other class is above the label (N,), from -1 to 1: NaN where there is no label, or
    no other image has its class.
    """
    known = np.nan_to_num(shares, nan=-1.0)
    rows = np.arange(len(labels))
    of_label = shares[rows, labels]
    known[rows, labels] = -1.0
    return np.where(labels == NO_LABEL, np.nan, known.max(axis=1) - of_label)


def order_to_review(
    doubt: np.ndarray,
    classes: np.ndarray,
    images: int,
    directions: np.ndarray,
) -> np.ndarray:
    """Return the rows (n,) of the labels to look at, the most doubted first: the most doubted one of each class, and
    others by their doubt, at most one of near-duplicates.

    Args:
        doubt: (N,), NaN for what is not asked.
        classes: (N,) none of which is left out.
        images: n, if there are so many.
        directions: (N, D) of the images, of length 1, by which near-duplicates are told.
    """
    order = np.argsort(-np.nan_to_num(doubt, nan=-np.inf), kind="stable")
    order = order[~np.isnan(doubt[order])]
    _, first = np.unique(classes[order], return_index=True)
    in_turn = np.concatenate([order[np.sort(first)], np.delete(order, first)])

    # near-duplicates of one that is chosen wait until another time
    chosen: list[int] = []
    for row in in_turn.tolist():
        if len(chosen) == images:
            break
        alike = directions[np.array(chosen, dtype=np.int64)] @ directions[row] > ALIKE
        if not alike.any():
            chosen.append(row)
    return np.array(sorted(chosen, key=lambda row: -doubt[row]), dtype=np.int64)


def proposals(shares: np.ndarray, label: int, most: int = 3) -> list[int]:
    """Return the likeliest other classes of an image, by their shares (C,)."""
    known: Sequence[int] = np.argsort(-np.nan_to_num(shares, nan=-1.0), kind="stable").tolist()
    return [one for one in known if one != label and shares[one] > 0][:most]
