"""How sure a classifier is, brought to how often it is right."""

from collections.abc import Callable

from torch import Tensor

_HALVINGS = 40  # of an interval of temperatures


def find_temperature(
    is_too_sure: Callable[[float], bool | Tensor], low: float, high: float
) -> float:
    """Return the temperature between two from which on a classifier is no longer too sure, by bisection of logarithms.

    Args:
        is_too_sure: whether it is, if its logits are divided by a temperature; a higher one makes it less sure.
        low: lowest temperature, above 0.
        high: highest one.
    """
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if is_too_sure(middle) else (low, middle)
    return low
