"""Which images a person is asked about, so that few answers tell which of several opinions is right most often.

Where all say the same class, all are right or all are wrong, and every difference of accuracies is exactly 0. So most
images are drawn where some differ. Those where all agree are needed for the accuracies themselves.

Each image has a lot, a number that never changes, and those of a stratum are drawn from the smallest lot on. So each
image has a known chance to be drawn, also if it is drawn again for other opinions: permanent random numbers (Ohlsson,
1995), and the threshold of priority sampling (Duffield, Lund and Thorup, J. ACM 54(6), 2007).
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..no_label import NO_LABEL

# share of the drawn images where some differ, unless these are more of all images: of two opinions, and of more, of
# which a person mostly asks which one is best, or where others were drawn before
DIFFERING, MOSTLY_DIFFERING = 0.75, 0.9
THIRDS = 3  # by confidence, of the images where all agree and of those where some differ
STRATA = 2 * THIRDS  # the first half where all agree


class Opinions(NamedTuple):
    """What several models or tables say of the same images.

    Args:
        says: (N, K) classes, a column for each opinion; `NO_LABEL` where it says nothing.
        confidence: (N, K) how sure each is, from 0 to 1; NaN where it does not say that.
    """

    says: np.ndarray
    confidence: np.ndarray

    def of(self, columns: Sequence[int]) -> "Opinions":
        """Return some of the opinions."""
        return type(self)(self.says[:, columns], self.confidence[:, columns])

    def at(self, rows: np.ndarray) -> "Opinions":
        """Return what they say of some images."""
        return type(self)(self.says[rows], self.confidence[rows])

    @property
    def images(self) -> np.ndarray:
        """The rows of the images of which all say something."""
        return (self.says != NO_LABEL).all(axis=1).nonzero()[0]

    @property
    def differ(self) -> np.ndarray:
        """Of which images (N,) not all say the same class."""
        return (self.says != self.says[:, :1]).any(axis=1)

    @property
    def agreement(self) -> float:
        """The share of the images on which all say the same class, from 0 to 1."""
        return float((~self.differ).mean())

    @property
    def agreeing(self) -> int:
        """How many parts there are of images where all say the same."""
        return 1

    @property
    def parts(self) -> np.ndarray:
        """The part (N,) of each image: 0 where all say the same class, 1 where some differ."""
        return self.differ.astype(np.int64)

    @property
    def strata(self) -> int:
        """How many strata there are."""
        return THIRDS * (self.agreeing + 1)

    def outcomes(self) -> list[np.ndarray]:
        """Return what may come out about each image (N,), who is right, as sums of 2^k of those that are."""
        # any other class, and each that somebody says: a class that several say is one outcome, the sum of their bits
        bits = 1 << np.arange(self.says.shape[1])
        possible = [np.zeros(max(1, len(self.says)), dtype=np.int64)]
        for k in range(self.says.shape[1]):
            is_first = (self.says[:, :k] != self.says[:, [k]]).all(axis=1)
            possible.append((self.says[is_first] == self.says[is_first, k, None]) @ bits)
        return possible


class Decisions(Opinions):
    """What several say of the same questions, each about an image and a class: 1 for yes, 0 for no.

    Where all say yes is a part of its own, since most of what all say is no: an image has few of many classes.
    """

    __slots__ = ()

    @property
    def agreement(self) -> float:
        """The share of the questions to which all say yes, of those to which one does: on most all say no."""
        with_yes = (self.says == 1).any(axis=1)
        return 1 - float(self.differ[with_yes].mean()) if with_yes.any() else 1.0

    @property
    def agreeing(self) -> int:
        return 2

    @property
    def parts(self) -> np.ndarray:
        """The part (N,) of each question: 0 where all say no, 1 where all say yes, 2 where some differ."""
        return np.where(self.differ, 2, self.says[:, 0] == 1)

    def outcomes(self) -> list[np.ndarray]:
        # there is no third answer: all who say what is so are right
        bits = 1 << np.arange(self.says.shape[1])
        return [(self.says == answer) @ bits for answer in (0, 1)]


class Step(NamedTuple):
    """Images that are drawn for some opinions, after those of earlier steps.

    Args:
        columns: which opinions.
        drawn: how many images are drawn by the end of this step, those of earlier steps among them.
    """

    columns: Sequence[int]
    drawn: int


def lots_of(keys: Sequence[str | int], seed: int = 0) -> np.ndarray:
    """Return the lot (N,) of each image, from 0 to 1, which its key decides.

    Args:
        keys: (N,) of the images.
        seed: of the lots.
    """
    digests = b"".join(
        hashlib.sha256(f"{seed} {key}".encode(errors="surrogateescape")).digest()[:8]
        for key in keys
    )
    return np.frombuffer(digests, dtype=np.uint64) / 2**64


def lots_of_parts(keys: Sequence[str | int], parts: int) -> np.ndarray:
    """Return lots as of `lots_of`, of as many parts of each image, one image after the other (N * parts,)."""
    digests = b"".join(
        hashlib.shake_256(f"0 {key}".encode(errors="surrogateescape")).digest(8 * parts)
        for key in keys
    )
    return np.frombuffer(digests, dtype=np.uint64) / 2**64


def find_strata(opinions: Opinions) -> np.ndarray:
    """Return the stratum (N,) of each image: 0 to 2 where all say the same class, by their mean confidence, from the
    lowest third to the highest, and 3 to 5 where some differ. Of `Decisions` 0 to 2 where all say no, 3 to 5 where all
    say yes, and 6 to 8 where some differ.
    """
    # where a model is unsure it is wrong more often, so that images of a third are more alike than those of all
    says_it = ~np.isnan(opinions.confidence)
    total = np.where(says_it, opinions.confidence, 0).sum(axis=1)
    confidence = total / np.maximum(1, says_it.sum(axis=1))
    strata = np.zeros(len(confidence), dtype=np.int64)
    parts = opinions.parts
    for part in range(opinions.agreeing + 1):
        index = (parts == part).nonzero()[0]
        order = index[np.argsort(confidence[index], kind="stable")]
        strata[order] = part * THIRDS + np.arange(len(order)) * THIRDS // max(1, len(order))
    return strata


def differing_share(count: int) -> float:
    """Return which share of the images that are drawn first for so many opinions are those where some differ."""
    return DIFFERING if count <= 2 else MOSTLY_DIFFERING


def order_of_step(opinions: Opinions, lots: np.ndarray, share: float) -> np.ndarray:
    """Return all images (N,) in the order in which they are drawn for some opinions.

    Args:
        opinions: of N images.
        lots: (N,) from `lots_of`.
        share: of the drawn images where some differ, at least.
    """
    # when each image is due: more often where some differ, unless these are most images anyway
    strata = find_strata(opinions)
    due = np.empty(len(lots))
    sizes = sizes_of_parts(strata, opinions.agreeing)
    shares = shares_of_parts(sizes, share)
    for stratum in range(opinions.strata):
        rows = (strata == stratum).nonzero()[0]
        if not len(rows):
            continue
        # strata of a part get images in proportion to their sizes, one by one (Sainte-Lague)
        in_turn = rows[np.argsort(lots[rows], kind="stable")]
        faster = shares[stratum // THIRDS] / sizes[stratum // THIRDS]
        due[in_turn] = (np.arange(len(rows)) + 0.5) / (len(rows) * faster)
    return np.argsort(due, kind="stable")


def sizes_of_parts(strata: np.ndarray, agreeing: int) -> list[float]:
    """Return which share of the images each part is: those where all agree, and last the one where some differ."""
    others = [float((strata // THIRDS == part).mean()) for part in range(1, agreeing + 1)]
    return [1 - sum(others), *others]


def shares_of_parts(sizes: Sequence[float], share: float) -> list[float]:
    """Return which share of the drawn images are of each part.

    Args:
        sizes: from `sizes_of_parts`.
        share: of the drawn images where some differ, at least.
    """
    share = max(share, sizes[-1])
    if len(sizes) == 2:
        return [1 - share, share]
    # of the questions where all agree, half are those where all say yes, unless these are more anyway
    no, yes = sizes[0], sizes[1]
    of_yes = 0.0 if yes == 0 else max(0.5, yes / (no + yes))
    return [(1 - share) * (1 - of_yes), (1 - share) * of_yes, share]


def drawing_order(opinions: Opinions, lots: np.ndarray, steps: Sequence[Step]) -> np.ndarray:
    """Return the images in the order in which they are drawn by some steps, so that more images include the fewer. Each
    step draws from those of which all its opinions say something.

    Args:
        opinions: of N images.
        lots: (N,) from `lots_of`.
        steps: in turn; the last one goes on to the last image.
    """
    drawn = np.empty(0, dtype=np.int64)
    for number, step in enumerate(steps, start=1):
        share = differing_share(len(step.columns)) if number == 1 else MOSTLY_DIFFERING
        own = opinions.of(step.columns)
        rows = own.images
        order = rows[order_of_step(own.at(rows), lots[rows], share)]
        rest = order[~np.isin(order, drawn)]
        most = len(lots) if number == len(steps) else step.drawn
        drawn = np.concatenate([drawn, rest[: max(0, most - len(drawn))]])
    return drawn


def chances(
    opinions: Opinions, lots: np.ndarray, steps: Sequence[Step], drawn: np.ndarray
) -> np.ndarray:
    """Return how likely each drawn image (n,) was to be drawn, from 0 to 1.

    An image is drawn by a step if its lot is below a limit: that of the first image of its stratum that is not drawn.

    Args:
        opinions: of N images.
        lots: (N,) from `lots_of`.
        steps: that have drawn them.
        drawn: (n,) the first images of `drawing_order`.
    """
    likely, first = np.zeros(len(lots)), 0
    for step in steps:
        # a step that so few images do not reach has drawn nothing
        if first >= len(drawn):
            break
        first = step.drawn
        own = opinions.of(step.columns)
        rows = own.images
        undrawn = ~np.isin(rows, drawn[:first])
        strata = find_strata(own.at(rows))
        limits = np.ones(own.strata)
        np.minimum.at(limits, strata[undrawn], lots[rows[undrawn]])
        likely[rows] = np.maximum(likely[rows], limits[strata])
    return likely[drawn]


def group_images(opinions: Opinions, of_steps: Sequence[Opinions]) -> np.ndarray:
    """Return a number (N,) of each image: 0 where all of some opinions agree, and of the others by how many steps it
    was drawn as one where some differ. So images of a group have much the same chance, and the size of each is known.
    Of `Decisions` 0 is where all say no, 1 where all say yes, and the others follow.

    Args:
        opinions: of N images.
        of_steps: those that each step was for.
    """
    differ = [step.differ for step in of_steps]
    return np.where(opinions.differ, opinions.agreeing + np.sum(differ, axis=0), opinions.parts)
