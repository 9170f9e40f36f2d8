"""What the answers of an audit tell, as lines and tables: accuracies, which opinion is best, and what it confuses."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from scipy.stats import beta

from ..errors import say, shorten, typed
from ..files import to_csv, write_text
from ..monitor import format_table
from .estimate import OUTSIDE, PRIOR, Answers, Estimate, effective_number

WRONG = 0.05  # of what is called most likely best may be wrong, by each of the others an equal part of this
FEWEST = 20  # answers; from fewer nobody can say how many would decide
MEMORISED = 0.98  # of its labels, which a student repeats: what it says of these images tells nothing about new ones
LISTED = 3  # classes or confusions in a line
MOST_SHARES = 50  # classes whose shares are printed


def say_accuracies(names: Sequence[str], result: Estimate) -> None:
    """Print the accuracy of each opinion in percent, and how far the best one is above it."""
    best = int(result.accuracy.argmax())
    rows = [
        [
            name,
            _percent(result.accuracy[k]),
            f"{_percent(result.low[k])} to {_percent(result.high[k])}",
        ]
        for k, name in enumerate(names)
    ]
    header = ["", "accuracy", "95 % interval"]
    if len(names) == 2:
        # the second one is the student where the first one is its labels
        ends = f"{_percent(result.lowest[1, 0])} to {_percent(result.highest[1, 0])}"
        rows.append(["difference", _percent(result.difference[1, 0]), ends])
    elif len(names) > 2:
        header += ["best in", f"{shorten(names[best], 20)} above it", "interval of all pairs"]
        for k, row in enumerate(rows):
            row.append(f"{100 * result.is_best[k]:.0f} %")
            if k != best:
                ends = f"{_percent(result.lowest[best, k])} to {_percent(result.highest[best, k])}"
                row += [f"{100 * result.difference[best, k]:+.1f}", ends]
            else:
                row += ["", ""]
        rows = [rows[k] for k in np.argsort(-result.accuracy, kind="stable")]
    say(*format_table(rows, header).split("\n"))


def say_yes(names: Sequence[str], precision: np.ndarray, recall: np.ndarray, answers: int) -> None:
    """Print precision and recall (K, 3) of the yes of each opinion in percent, with their intervals.

    Args:
        names: of the opinions.
        precision: from `estimate.count_yes`.
        recall: from there, too.
        answers: how many are yes.
    """
    rows: list[list[str]] = []
    for name, *shares in zip(names, precision, recall):
        row = [name]
        for value, low, high in shares:
            is_known = not math.isnan(value)
            row += (
                [_percent(value), f"{_percent(low)} to {_percent(high)}"] if is_known else ["", ""]
            )
        rows.append(row)
    header = ["", "precision", "95 % interval", "recall", "95 % interval"]
    say(*format_table(rows, header).split("\n"))
    say(
        f"precision: which share of what it says yes to is there; recall: to which share of what is there it says yes. "
        f"{_counted(answers)} of yes say so"
    )


def _are_shown_as_nothing(low: float, high: float) -> bool:
    """Say whether the ends of a difference are shown as 0.0 points: nothing to act on, however sure it is."""
    return max(abs(low), abs(high)) < 0.0005


def verdict_on_one(
    result: Estimate,
    export: Path,
    answered: int,
    drawn: int,
    images: int,
    unit: str = "image",
    agreement: float = 0.0,
) -> str:
    """Return whether a student is better than its labels, and what to do.

    Args:
        result: of the labels and the student.
        export: what to use if it is.
        answered: how many images have an answer.
        drawn: how many are drawn.
        images: how many there are.
        unit: what they are, if they are questions.
        agreement: how often the student says what its labels say, from 0 to 1.
    """
    # the interval of the difference decides, not its value
    low, high = result.lowest[1, 0], result.highest[1, 0]
    # a student that knows its labels by heart is level with them here, and may be far below them elsewhere
    is_level = low <= 0 <= high or _are_shown_as_nothing(low, high)
    if agreement >= MEMORISED and is_level:
        return _of_what_is_known("the student", agreement, unit)
    if (low or high) and _are_shown_as_nothing(low, high):
        return (
            f"Level: they differ on so few {unit}s that it does not matter. Use whichever you like"
        )
    if low > 0:
        return f"Better: the student is right more often than its labels. Use {export}"
    if high < 0:
        return "Worse: the labels are right more often than the student. Keep them"
    if low == high:
        return f"Level: where they differ, as many {unit}s speak for either. Use whichever you like"
    advice = _advice(int(result.needed[1, 0]), answered, drawn, images, unit)
    return f"Not decided: the answers don't say whether the student is better than its labels; {advice}"


def verdict_on_several(
    names: Sequence[str],
    result: Estimate,
    answered: int,
    drawn: int,
    images: int,
    unit: str = "image",
    memorised: Mapping[str, float] = MappingProxyType({}),
) -> str:
    """Return which opinion is best, as far as the answers tell; other arguments as for `verdict_on_one`.

    Args:
        memorised: how often students that repeat their labels do, from 0 to 1, by their names.
    """
    best = int(result.accuracy.argmax())
    others = [k for k in range(len(names)) if k != best]
    ends = {k: (result.lowest[best, k], result.highest[best, k]) for k in others}
    undecided = [k for k in others if ends[k][0] <= 0 or _are_shown_as_nothing(*ends[k])]
    if not undecided:
        return f"Best: {names[best]}, right more often than any other"
    if all(_are_shown_as_nothing(*ends[k]) for k in undecided):
        for name in (names[k] for k in (best, *undecided)):
            if name in memorised:
                return _of_what_is_known(name, memorised[name], unit)
        level = " and ".join(names[k] for k in undecided)
        return f"Level: {names[best]} and {level} are right equally often. Use whichever you like"
    # by how much another one may be better: what is lost at most by taking this one
    lost = 100 * max(-result.lowest[best, k] for k in undecided)
    rivals = shorten(", ".join(names[k] for k in undecided), 100)
    if result.is_best[best] >= least_likely(len(names)):
        return (
            f"Most likely best: {names[best]}, with a probability of {100 * result.is_best[best]:.0f} %, and no other is "
            f"more than {lost:.1f} points better"
        )
    needed = max(int(result.needed[best, k]) for k in undecided)
    return (
        f"Not decided: {names[best]} seems best, and no other is more than {lost:.1f} points better; it may be no "
        f"better than {rivals}; {_advice(needed, answered, drawn, images, unit)}"
    )


def _of_what_is_known(student: str, agreement: float, unit: str) -> str:
    """Return why nothing is advised about a student that knows the labels by heart."""
    return (
        f"Not decided: {student} repeats its labels on {_percent(agreement)} % of the {unit}s that it was trained on, "
        "which says nothing about new images, where it may be worse. Compare both on images that it has not seen: "
        f"{typed('labels')} audit PREDICTED.csv LABELS.csv --data-dir NEW, where the first table is what the student "
        "predicts for them"
    )


def least_likely(count: int) -> float:
    """Return the probability from which on the best one of several opinions is called the most likely one."""
    return 1 - WRONG / max(1, count - 1)


def _advice(needed: int, answered: int, drawn: int, images: int, unit: str) -> str:
    needed = max(needed, answered + 1, FEWEST)
    if needed >= images:
        return f"it would take more {unit}s than there are ({images})"
    return (
        f"about {needed - answered} more answers would decide it, if the difference is as it seems (--images "
        f"{max(needed, drawn)})"
    )


def write_differences(path: Path, names: Sequence[str], result: Estimate) -> None:
    """Write the difference of each pair in points, with its interval."""
    rows = [
        dict(
            first=first,
            second=second,
            difference=round(100 * result.difference[i, j], 2),
            low=round(100 * result.lowest[i, j], 2),
            high=round(100 * result.highest[i, j], 2),
        )
        for i, first in enumerate(names)
        for j, second in enumerate(names)
        if i < j
    ]
    write_text(path, to_csv(rows))


# ---------------------------------------------------------------- classes


def confusion_of(says: np.ndarray, answers: Answers, count: int) -> np.ndarray:
    """Return about how many images (C, C) of a true class are said to be of each class, by the answers.

    Args:
        says: (n,) classes, about the images with an answer.
        answers: about these images.
        count: of classes.
    """
    matrix = np.zeros((count, count))
    np.add.at(matrix, (answers.truth, says), 1 + answers.others)
    return matrix


def class_shares(says: np.ndarray, confusion: np.ndarray, answered: float) -> np.ndarray:
    """Return the share (C,) of each class: as somebody says of all images, corrected by what the answers say of his
    mistakes (prediction-powered inference, arXiv 2301.09633), as far as that is beyond chance (James and Stein, 1961).

    Args:
        says: (N,) classes, about all images.
        confusion: (C, C) from `confusion_of`.
        answered: how many answers of one weight tell as much.
    """
    said = np.bincount(says, minlength=len(confusion)) / len(says)
    total = max(confusion.sum(), 1e-9)
    missed = (confusion.sum(axis=1) - confusion.sum(axis=0)) / total
    # few answers correct by chance, too, so that a correction counts by how far it is beyond that
    wrong = 1 - np.trace(confusion) / total
    noise = max(0.0, 2 * wrong - (missed**2).sum()) / max(answered, 1)
    noise *= max(0.0, 1 - answered / len(says))
    missed *= max(0.0, 1 - noise / max((missed**2).sum(), 1e-12))
    # no class has none, or even fewer images than that
    shares = np.maximum(said + missed, 0.5 / len(says))
    return shares / shares.sum()


def by_class(
    says: np.ndarray, answers: Answers, count: int
) -> list[tuple[float, float, float, int]]:
    """Return how often somebody is right about images of each class: the value, a 95 % interval and the answers.

    Args:
        says: (n,) classes, about the images with an answer.
        answers: about these images.
        count: of classes.
    """
    return right_by(answers.truth, says == answers.truth, 1 + answers.others, count)


def right_by(
    kinds: np.ndarray, right: np.ndarray, weights: np.ndarray, count: int
) -> list[tuple[float, float, float, int]]:
    """Return how often somebody is right about each kind: the value, a 95 % interval and the answers.

    Args:
        kinds: (n,) numbers, of the answers.
        right: (n,) whether he is right.
        weights: (n,) of how many images each speaks.
        count: of kinds.
    """
    found = []
    for kind in range(count):
        own = kinds == kind
        value, size = 0.5, 0.0
        if own.any():
            value = float(np.average(right[own], weights=weights[own]))
            size = effective_number(weights[own])
        ends = beta(value * size + PRIOR, (1 - value) * size + PRIOR).ppf(
            [OUTSIDE / 2, 1 - OUTSIDE / 2]
        )
        found.append((value, float(ends[0]), float(ends[1]), int(own.sum())))
    return found


def say_of_classes(
    folder: Path,
    name: str,
    classes: Sequence[str],
    says: np.ndarray,
    about: np.ndarray,
    answers: Answers,
) -> None:
    """Write accuracy and share of each class, and what is taken for what, and print a line about each.

    Args:
        folder: of the files.
        name: of whose opinion it is.
        classes: their names.
        says: (N,) its classes, about all images.
        about: (n,) its classes, about the images with an answer.
        answers: about these.
    """
    confusion = confusion_of(about, answers, len(classes))
    shares = class_shares(says, confusion, effective_number(1 + answers.others))
    accuracies = by_class(about, answers, len(classes))
    rows = [
        dict(
            zip(("class", "share", "accuracy", "low", "high"), (label, *_rounded(share, *found))),
            answers=found[3],
        )
        for label, share, found in zip(classes, shares, accuracies)
    ]
    write_text(folder / "classes.csv", to_csv(rows))
    # a class may be called as the column of their names
    column = "class" if "class" not in classes else "true class"
    matrix = [
        dict({column: label}, **dict(zip(classes, row.round(1).tolist())))
        for label, row in zip(classes, confusion)
    ]
    write_text(folder / "confusion.csv", to_csv(matrix))

    # those with answers that are right least often, and what is confused most often
    _say_worst(folder, name, classes, accuracies)
    # one answer may speak of many images, by chance
    counts = confusion_of(about, answers._replace(others=np.zeros(len(about))), len(classes))
    wrong = np.where(counts > 1, confusion, 0) * (1 - np.eye(len(classes)))
    pairs = [divmod(int(place), len(classes)) for place in np.argsort(-wrong, axis=None)[:LISTED]]
    texts = [
        f"{classes[true]} taken for {classes[said]} (about {wrong[true, said]:.0f} images, by "
        f"{counts[true, said]:.0f} answers)"
        for true, said in pairs
        if wrong[true, said] > 0
    ]
    if texts:
        say(f"* confused: {', '.join(texts)}; all in {folder / 'confusion.csv'}")
    if len(classes) <= MOST_SHARES:
        numbers = ",".join(f"{100 * share:.3g}" for share in shares)
        say(
            f"* shares of the classes in percent: --loss balanced_elr --loss-kwargs shares=[{numbers}]"
        )


def _say_worst(
    folder: Path,
    name: str,
    classes: Sequence[str],
    accuracies: Sequence[tuple[float, float, float, int]],
) -> None:
    """Print the classes that somebody is right about least often, as far as there are answers."""
    seen = [label for label in range(len(classes)) if accuracies[label][3]]
    worst = sorted(seen, key=lambda label: accuracies[label][2])[:LISTED]
    texts = [
        f"{classes[label]} {_percent(value)} % ({_percent(low)} to {_percent(high)}, {_counted(count)})"
        for label in worst
        for value, low, high, count in [accuracies[label]]
    ]
    say(
        f"* {name} by class, by the upper end of the interval: {', '.join(texts)}; all in {folder / 'classes.csv'}"
    )


def say_of_questions(
    folder: Path,
    name: str,
    classes: Sequence[str],
    of_class: np.ndarray,
    says: np.ndarray,
    answers: Answers,
) -> None:
    """Write how often somebody is right about each of several classes, and print a line about those with the least.

    Args:
        folder: of the file.
        name: of whose opinion it is.
        classes: their names.
        of_class: (n,) the class that each question with an answer is about.
        says: (n,) his opinion about it, 1 for yes and 0 for no.
        answers: about these questions.
    """
    weights = 1 + answers.others
    accuracies = right_by(of_class, says == answers.truth, weights, len(classes))
    rows = [
        dict(
            zip(("class", "accuracy", "low", "high"), (label, *_rounded(*of_one[:3]))),
            answers=of_one[3],
        )
        for label, of_one in zip(classes, accuracies)
    ]
    write_text(folder / "classes.csv", to_csv(rows))
    _say_worst(folder, name, classes, accuracies)


def _counted(answers: int) -> str:
    return f"{answers} answer" + "s" * (answers != 1)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _rounded(*shares: float) -> list[float]:
    return [round(float(share), 4) for share in shares[:4]]
