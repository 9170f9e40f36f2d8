"""Which images a person is asked about, so that few answers tell how far a student is above its labels.

Where both say the same class, both are right or both are wrong, and the difference of their accuracies is exactly 0.
So most images are drawn where they differ. Those where they agree are needed for the two accuracies themselves.
"""

import math

import numpy as np

DIFFERING = 0.75  # share of the images that are drawn where student and labels differ
THIRDS = 3  # by the student's confidence, of either kind
STRATA = 2 * THIRDS  # the first half where they agree
GOLDEN = (math.sqrt(5) - 1) / 2


def find_strata(labels: np.ndarray, student: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Return the stratum (N,) of each image: 0 to 2 where the student says what its label says, by its confidence, from
    the lowest third to the highest, and 3 to 5 where it says another class.

    Args:
        labels: (N,) classes that it learned from.
        student: (N,) classes that it says.
        confidence: (N,) how sure it is.
    """
    # where the student is unsure it is wrong more often, so that images of a third are more alike than those of all
    strata = np.zeros(len(labels), dtype=np.int64)
    for first, rows in ((0, labels == student), (THIRDS, labels != student)):
        index = rows.nonzero()[0]
        order = index[np.argsort(confidence[index], kind="stable")]
        strata[order] = first + np.arange(len(order)) * THIRDS // max(1, len(order))
    return strata


def drawing_order(
    strata: np.ndarray, labels: np.ndarray, student: np.ndarray, seed: int = 0
) -> np.ndarray:
    """Return all images (N,) in the order in which they are drawn, so that more images include the fewer.

    In a stratum, every image is equally likely to be among the first n. The classes of student and labels are spread
    evenly over these n.

    Args:
        strata: (N,) from `find_strata`.
        labels: (N,) classes.
        student: (N,) classes.
        seed: of the draw.
    """
    # when each image is due: more often where they differ, unless these are most images anyway
    rng, due = np.random.default_rng(seed), np.empty(len(strata))
    differing = (strata >= THIRDS).mean()
    share = max(DIFFERING, differing)
    for stratum in range(STRATA):
        rows = (strata == stratum).nonzero()[0]
        count = len(rows)
        if not count:
            continue
        # walk around the circle of images, sorted by class, in steps of the golden ratio, from a random place
        by_class = rows[np.lexsort((rng.random(count), student[rows], labels[rows]))]
        steps = np.argsort(np.argsort(np.arange(count) * GOLDEN % 1))
        in_turn = by_class[(steps + rng.integers(count)) % count]
        # strata of a half get images in proportion to their sizes, one by one (Sainte-Lague)
        faster = share / differing if stratum >= THIRDS else (1 - share) / (1 - differing)
        due[in_turn] = (np.arange(count) + 0.5) / (count * faster)
    return np.argsort(due, kind="stable")
