"""Test samples drawn anew, for intervals."""

import numpy as np

CONFIDENCE = 0.95
_BLOCK = 2_000_000  # drawn samples at a time


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
    rng = np.random.default_rng(seed)
    # in blocks, which bound the memory: a thousand resamples of a large test set do not fit into it
    block = max(1, _BLOCK // count)
    means = np.empty((len(rows), resamples))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        # how often each sample is drawn in each row of the block
        drawn = rng.integers(0, count, (size, count), dtype=np.int32)
        drawn += np.arange(size, dtype=np.int32)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        means[:, start : start + size] = rows @ times.astype(np.float32).T
    return means / count
