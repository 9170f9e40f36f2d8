"""Which images a person should label next, so that a student that also learns from the answers gains most.

An answer teaches what is on one image and, because a student generalises, much about those that are like it. So the
images are chosen one by one, each as the one that is near to the most images to which no labelled image is near: the
rule of MaxHerding (2024, arXiv 2407.12212). What the student says is not asked. To choose those of which it is least
sure was worse than chance with few answers, and to count images less on which it agrees with their label changed
little: docs/evidence/next-images.md.
"""

import numpy as np

NEAR = 0.25  # 1 - cosine of features at which an image is covered to the share 1 / e
CANDIDATES = 20_000  # images at most that are chosen from, a random sample of more
COVERED = 5_000  # images at most that stand for those that are to be covered
BLOCK = 1_000  # images at a time
AT_ONCE = 50  # gains that are computed anew together
CHOSEN = -1.0  # in place of a gain


def rows_to_consider(count: int, answered: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return the rows, in order, of the images that are chosen from, and of those with an answer: all images, or of
    very many a random sample, because features of all may not fit into memory.

    Args:
        count: of all images.
        answered: (A,) rows with an answer.
        seed: of the sample.
    """
    open_rows = np.setdiff1d(np.arange(count), answered)
    drawn = np.random.default_rng(seed).permutation(open_rows)[:CANDIDATES]
    return np.union1d(drawn, answered).astype(np.int64)


def order_to_ask(
    features: np.ndarray,
    answered: np.ndarray,
    images: int,
    weights: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Return the rows (n,) of the images to ask about, the most useful first; n is less than ``images`` if there are
    fewer without an answer. To ask for more images only adds some at the end.

    Args:
        features: (N, D) of the images.
        answered: (A,) rows of the images with an answer, which cover others already.
        images: how many to ask about.
        weights: (N,) how much it counts that an image is covered, from 0; None for all alike.
        seed: of the sample that stands for very many images.
    """
    directions = directions_of(features)

    # of very many images some stand for those that are to be covered
    rng = np.random.default_rng(seed)
    open_rows = np.setdiff1d(np.arange(len(features)), answered)
    to_cover = np.sort(rng.permutation(len(features))[:COVERED])
    counts = np.ones(len(to_cover), dtype=np.float32)
    if weights is not None:
        counts = weights[to_cover].astype(np.float32)
    centres = directions[to_cover]

    def near(rows: np.ndarray) -> np.ndarray:
        """Return how near images are to those that are to be covered, (n, M) from 0 to 1."""
        return np.exp((directions[rows] @ centres.T - 1) / NEAR)

    # how well each is covered by its nearest labelled image, and what each open one would add to that
    covered = np.zeros(len(to_cover), dtype=np.float32)
    for rows in blocks(answered):
        covered = np.maximum(covered, near(rows).max(axis=0))
    gain = np.zeros(len(open_rows), dtype=np.float32)
    for places in blocks(np.arange(len(open_rows))):
        gain[places] = np.maximum(near(open_rows[places]) - covered, 0) @ counts

    # The gain of an image only falls as others are chosen, so that what was computed before bounds it from above. The
    # highest bound is the highest gain once it was computed anew (lazy evaluation, Minoux 1978).
    chosen: list[int] = []
    for _ in range(min(images, len(open_rows))):
        is_exact = np.zeros(len(open_rows), dtype=bool)
        while not is_exact[best := int(gain.argmax())]:
            bounds = (~is_exact & (gain > CHOSEN)).nonzero()[0]
            highest = bounds[np.argsort(-gain[bounds], kind="stable")[:AT_ONCE]]
            gain[highest] = np.maximum(near(open_rows[highest]) - covered, 0) @ counts
            is_exact[highest] = True
        chosen.append(best)
        gain[best] = CHOSEN
        covered = np.maximum(covered, near(open_rows[[best]])[0])
    return open_rows[chosen]


def directions_of(features: np.ndarray) -> np.ndarray:
    """Return features (N, D) as seen from their mean, each of length 1."""
    directions = (features - features.mean(axis=0, dtype=np.float64)).astype(np.float32)
    return directions / np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-12)


def blocks(rows: np.ndarray) -> list[np.ndarray]:
    """Return rows in blocks, whose nearness to others fits into memory."""
    return [rows[first : first + BLOCK] for first in range(0, len(rows), BLOCK)]
