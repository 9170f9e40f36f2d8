"""Figures as they are shown and compared."""

from collections.abc import Mapping

HEADLINE = "top1"  # the figure that runs are compared by
CLOSING = (HEADLINE, "top5", "agreement", "pgr")  # what a run ends with
HEADINGS = {
    "top1": "top-1",
    "top5": "top-5",
    "top1_many": "top-1 many",
    "top1_medium": "top-1 medium",
    "top1_few": "top-1 few",
    "loss": "loss",
    "teacher_top1": "teacher top-1",
    "agreement": "agreement",
    "ceiling_top1": "ceiling",
    "pgr": "PGR",
}
_INTERVAL = "_ci95"  # ends the name of half the width of a figure's interval


def headline_of(figures: Mapping[str, float]) -> float | None:
    """Return the figure that models are compared by, in percent: top-1 of one class an image. None: not measured."""
    return figures.get(HEADLINE)


def format_figures(figures: dict[str, float]) -> dict[str, str]:
    """Return texts such as ``61.50 ± 0.42`` by shape."""
    texts = {}
    # a figure and its interval are two entries of result.json, and one cell of a table
    for name, value in figures.items():
        if not name.endswith(_INTERVAL):
            texts[name] = f"{value:.2f} ± {figures[name + _INTERVAL]:.2f}"
    return texts
