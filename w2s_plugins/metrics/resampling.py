"""Test samples drawn anew, for intervals."""

from collections.abc import Iterator

import numpy as np

CONFIDENCE = 0.95
_BLOCK = 2_000_000  # drawn samples at a time


def drawn_counts(count: int, resamples: int, seed: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """Yield blocks of resamples: the number of the first one, and how often each sample is drawn, (block, N) in float32.

    Args:
        count: N samples, of which as many are drawn with replacement.
        resamples: R, of all blocks together.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    # in blocks, which bound the memory: a thousand resamples of a large test set do not fit into it
    block = max(1, _BLOCK // count)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        # how often each sample is drawn in each row of the block
        drawn = rng.integers(0, count, (size, count), dtype=np.int32)
        drawn += np.arange(size, dtype=np.int32)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        yield start, times.astype(np.float32)


def resampled_means(rows: np.ndarray, resamples: int, seed: int = 0) -> np.ndarray:
    """Return the means of rows over samples drawn with replacement, the same ones for all rows.

    Args:
        rows: (K, N), zeros and ones or any numbers.
        resamples: R.
        seed: of the draws.

    Returns:
        (K, R).
    """
    # One draw for all rows, so that a difference of two rows is compared on the same samples. As counts of each sample it
    # becomes a product of matrices.
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    count = rows.shape[1]
    means = np.empty((len(rows), resamples))
    for start, times in drawn_counts(count, resamples, seed):
        means[:, start : start + len(times)] = rows @ times.T
    return means / count
