"""Figures of weak-to-strong generalisation."""

from collections.abc import Sequence

from .figures import headline_name


def performance_gap_recovered(weak: float, student: float, ceiling: float) -> float | None:
    """Return PGR = (student - weak) / (ceiling - weak) (Weak-to-Strong Generalization, 2023, arXiv 2312.09390).

    Args:
        weak: accuracy of the weak teacher, or its mAP.
        student: accuracy of the strong student trained on its labels.
        ceiling: accuracy of the strong student trained on ground truth; all three in one unit, on one test set.

    Returns:
        1 when the student reaches the ceiling, 0 when it stays at the teacher, below 0 when it falls behind; None where
        the ceiling is not above the teacher, so that there is no gap to recover.
    """
    # with a gap of 0 or less the share would be infinite, or grow as the student gets worse
    return (student - weak) / (ceiling - weak) if ceiling > weak else None


def no_gap_hint(weak: float | None, ceiling: float | None) -> str | None:
    """Return what is to be said of a ceiling that is not above the teacher; None where it is, or one is not known."""
    if weak is None or ceiling is None or ceiling > weak:
        return None
    return (
        f"there is no gap to recover, and no PGR: the ceiling ({ceiling:.2f}) is not above "
        f"the weak teacher ({weak:.2f})"
    )


def above_ceiling_hint(name: str, value: float, ceiling: float) -> str | None:
    """Return what is to be said of a student or control that is above its ceiling; None where it is not."""
    if value <= ceiling:
        return None
    return (
        f"the {name} ({value:.2f}) is above the ceiling ({ceiling:.2f}), which is none then, "
        "and a PGR over it is too high: train the ceiling as the student learns best from true "
        "labels, --ceiling-config"
    )


def gain_by_epoch(evaluations: Sequence[dict]) -> dict[str, list[dict]] | None:
    """Return ``by_epoch``, the accuracy or mAP of a student, its agreement with its teacher and ``copied``, the share of the
    teacher's errors that it makes as well, in percent; None where nothing was evaluated beside the teacher.

    Weak-to-strong correction comes early, and longer training may undo it (arXiv 2510.24812).

    Args:
        evaluations: each with ``epoch`` and, under ``val``, these figures.
    """
    # what a run that has no teacher measures has no row, and then there is no curve
    rows = []
    for event in evaluations:
        figures = event.get("val", {})
        names = (headline_name(figures), "agreement", "copied")
        if figures.keys() >= {*names}:
            by_name = {name: figures[name] for name in names}
            rows.append(dict(epoch=event["epoch"], **by_name))
    return dict(by_epoch=rows) if rows else None
