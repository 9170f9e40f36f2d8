"""How answers about several classes an image differ, class by class: of two tables, and of each member of a crowd.

Decisions are (N, C): 1, 0, or `NO_LABEL` where nothing is said.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..no_label import NO_LABEL

if TYPE_CHECKING:
    from pandas import DataFrame

MOST_SHOWN = 3  # pairs of classes, and mistakes of an annotator


def compare_classes(one: np.ndarray, other: np.ndarray, names: Sequence[str]) -> "DataFrame":
    """Return how often two tables say yes to each class, the class with the most differences first: ``class``, ``both``,
    ``first`` and ``second`` (only that one, and the other says no), ``precision`` and ``recall`` of the first if the second
    were right, and ``agree``, all three in percent; NaN of nothing.

    Args:
        one: (N, C) what the first table says.
        other: (N, C) what the second one says.
        names: of the classes.
    """
    from pandas import DataFrame

    known = (one != NO_LABEL) & (other != NO_LABEL)
    both, first, second = (
        (known & (one == says) & (other == has)).sum(axis=0)
        for says, has in ((1, 1), (1, 0), (0, 1))
    )
    with np.errstate(invalid="ignore"):
        shares = dict(
            precision=both / (both + first),
            recall=both / (both + second),
            agree=1 - (first + second) / known.sum(axis=0),
        )
    columns = {"class": names, "both": both, "first": first, "second": second}
    columns |= {name: (100 * share).round(1) for name, share in shares.items()}
    order = np.argsort(-(first + second), kind="stable")
    return DataFrame(columns).iloc[order]


def most_exchanged(one: np.ndarray, other: np.ndarray, names: Sequence[str]) -> str:
    """Return the classes that two tables say for each other most often: of an image the first has one and the second the
    other, and neither has both; arguments as of `compare_classes`.
    """
    # in float32, whose products are fast, and whole numbers up to 16 million
    more, less = (
        ((one == says) & (other == has)).astype(np.float32) for says, has in ((1, 0), (0, 1))
    )
    return _most(more.T @ less, names, "{} for {}")


def most_together(decisions: np.ndarray, names: Sequence[str]) -> str:
    """Return the pairs of classes that most images have."""
    has = (decisions == 1).astype(np.float32)
    return _most(np.triu(has.T @ has, 1), names, "{} and {}")


def mistakes(
    decisions: np.ndarray, truth: np.ndarray, people: Sequence[str], names: Sequence[str]
) -> Iterator[str]:
    """Yield a line for each annotator with the classes that are missed, or said where they are not, most often.

    Args:
        decisions: (P, N, C) of each of the ``people``.
        truth: (N, C), `NO_LABEL` where nobody knows, as of a tie.
        people: in the order of the lines.
        names: of the classes.
    """
    for person, said in zip(people, decisions, strict=True):
        missed, added = (
            ((said == says) & (truth == has)).sum(axis=0) for says, has in ((0, 1), (1, 0))
        )
        # of those that are as frequent the first classes come first
        counts = np.stack([missed, added], axis=1).ravel()
        order = [i for i in np.argsort(-counts, kind="stable")[:MOST_SHOWN].tolist() if counts[i]]
        texts = [f"{('misses', 'adds')[i % 2]} {names[i // 2]} ({counts[i]})" for i in order]
        yield f"{person} {', '.join(texts) or 'is never wrong'}"


def _most(counts: np.ndarray, names: Sequence[str], words: str) -> str:
    """Return the pairs of classes with the highest counts (C, C), none with 0."""
    order = np.argsort(-counts, axis=None, kind="stable")[:MOST_SHOWN]
    pairs = [divmod(place, len(names)) for place in order.tolist()]
    return ", ".join(
        f"{words.format(names[one], names[other])} ({counts[one, other]:.0f})"
        for one, other in pairs
        if counts[one, other]
    )
