"""Figures of weak-to-strong generalisation."""

from ..errors import UserError


def performance_gap_recovered(weak: float, student: float, ceiling: float) -> float:
    """Return PGR = (student - weak) / (ceiling - weak) (Weak-to-Strong Generalization, 2023, arXiv 2312.09390).

    Args:
        weak: accuracy of the weak teacher.
        student: accuracy of the strong student trained on its labels.
        ceiling: accuracy of the strong student trained on ground truth; all three in one unit, on one test set.

    Returns:
        1 when the student reaches the ceiling, 0 when it stays at the teacher, below 0 when it falls behind.

    Raises:
        UserError: the ceiling is not above the teacher, so that there is no gap to recover.
    """
    if ceiling <= weak:
        raise UserError(f"PGR is not defined: the ceiling ({ceiling:.2f}) is not above the weak teacher ({weak:.2f})")
    return (student - weak) / (ceiling - weak)


def chance_level(num_classes: int) -> float:
    """Return the accuracy, in percent, of guessing among equally frequent classes."""
    return 100.0 / num_classes
