"""Figures of weak-to-strong generalisation."""

from collections.abc import Sequence


def performance_gap_recovered(weak: float, student: float, ceiling: float) -> float | None:
    """Return PGR = (student - weak) / (ceiling - weak) (Weak-to-Strong Generalization, 2023, arXiv 2312.09390).

    Args:
        weak: accuracy of the weak teacher.
        student: accuracy of the strong student trained on its labels.
        ceiling: accuracy of the strong student trained on ground truth; all three in one unit, on one test set.

    Returns:
        1 when the student reaches the ceiling, 0 when it stays at the teacher, below 0 when it falls behind; None where
        the ceiling is not above the teacher, so that there is no gap to recover.
    """
    return (student - weak) / (ceiling - weak) if ceiling > weak else None


def no_gap_hint(weak: float | None, ceiling: float | None) -> str | None:
    """Return what is to be said of a ceiling that is not above the teacher; None where it is, or one is not known."""
    if weak is None or ceiling is None or ceiling > weak:
        return None
    return (f"there is no gap to recover, and no PGR: the ceiling ({ceiling:.2f}) is not above the weak teacher "
            f"({weak:.2f})")


def above_ceiling_hint(name: str, value: float, ceiling: float) -> str | None:
    """Return what is to be said of a student or control that is above its ceiling; None where it is not."""
    if value <= ceiling:
        return None
    return (f"the {name} ({value:.2f}) is above the ceiling ({ceiling:.2f}), which is none then, and a PGR over it is "
            "too high: train the ceiling as the student learns best from true labels, --ceiling-config")


def turning_points(evaluations: Sequence[dict], teacher: float, samples: int) -> dict[str, object] | None:
    """Return the gain of a student by epoch: when it passes its teacher, and when it begins to copy its mistakes again.

    Weak-to-strong correction comes early and longer training undoes it (arXiv 2510.24812).

    Args:
        evaluations: each with ``epoch`` and, under ``val``, ``top1``, ``agreement`` and ``copied``, the share of the
            teacher's errors that the student makes as well, in percent.
        teacher: accuracy of the teacher.
        samples: that were evaluated.

    Returns:
        ``passes_teacher``, the first epoch in which the student is above it by more than chance (1.96 standard errors
        of the paired difference); ``copies_again``, the epoch with the lowest ``copied`` from there on, where that has
        risen since by more than chance (of the difference of two shares); each None where there is none; and
        ``by_epoch``. None without such evaluations.
    """
    # what each evaluation says of the teacher's mistakes
    rows = [dict(epoch=event["epoch"], **{k: event["val"][k] for k in ("top1", "agreement", "copied")
                                          if k in event["val"]})
            for event in evaluations if "copied" in event.get("val", ())]
    if not rows:
        return None
    # when it passes its teacher, and where it has copied least since
    passes = next((number for number, row in enumerate(rows) if is_above(row, teacher, samples)), None)
    least, last = min(rows[passes or 0:], key=lambda row: row["copied"]), rows[-1]
    # the rise since, among the samples on which the teacher is wrong
    shares, wrong = [row["copied"] / 100 for row in (least, last)], max(1.0, samples * (1 - teacher / 100))
    again = passes is not None and shares[1] - shares[0] > chance_of_difference(shares, wrong)
    return dict(passes_teacher=None if passes is None else rows[passes]["epoch"],
                copies_again=least["epoch"] if again else None, by_epoch=rows)


def chance_of_difference(shares: Sequence[float], samples: float) -> float:
    """Return 1.96 standard errors of the difference of two shares of so many samples each, all between 0 and 1."""
    return 1.96 * (sum(share * (1 - share) for share in shares) / samples) ** 0.5


def is_above(row: dict[str, float], teacher: float, samples: int) -> bool:
    """Say whether a student is above its teacher by more than 1.96 standard errors, on the same samples.

    Both are right where they agree and do not err alike; of the others one is right, or none.

    Args:
        row: ``top1``, ``agreement`` and ``copied`` of the student, in percent.
        teacher: its accuracy.
        samples: that were evaluated.
    """
    # Where both are right, the student agrees with a teacher that is right.
    both = row["agreement"] - row["copied"] * (1 - teacher / 100)
    ahead, either = (row["top1"] - teacher) / 100, max(0.0, (row["top1"] + teacher - 2 * both) / 100)
    return ahead > 0 and ahead > 1.96 * (max(0.0, either - ahead ** 2) / samples) ** 0.5
