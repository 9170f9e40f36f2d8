"""Figures as they are shown and compared."""

from collections.abc import Mapping

HEADLINE = "top1"  # the figure that runs are compared by, of one class an image
HEADLINE_OF_SEVERAL = "map"
# what a run ends with, by its headline
CLOSING = {
    HEADLINE: (HEADLINE, "top5", "agreement", "pgr"),
    HEADLINE_OF_SEVERAL: (
        HEADLINE_OF_SEVERAL,
        "micro_f1",
        "macro_f1",
        "sample_f1",
        "micro_f1_chosen",
        "macro_f1_chosen",
        "right",
        "agreement",
        "pgr",
    ),
}
# figures of a model by itself, which are shown of its teacher too
OF_ONE_MODEL = {
    HEADLINE: (HEADLINE, "top5"),
    HEADLINE_OF_SEVERAL: (HEADLINE_OF_SEVERAL, "micro_f1", "macro_f1", "sample_f1"),
}
HEADINGS = {
    "top1": "top-1",
    "top5": "top-5",
    "top1_many": "top-1 many",
    "top1_medium": "top-1 medium",
    "top1_few": "top-1 few",
    "map": "mAP",
    "micro_f1": "micro F1",
    "macro_f1": "macro F1",
    "sample_f1": "sample F1",
    "micro_f1_chosen": "micro F1, chosen thresholds",
    "macro_f1_chosen": "macro F1, chosen thresholds",
    "right": "labels right",
    "loss": "loss",
    "teacher_top1": "teacher top-1",
    "teacher_map": "teacher mAP",
    "agreement": "agreement",
    "ceiling_top1": "ceiling",
    "ceiling_map": "ceiling",
    "pgr": "PGR",
}
FEW_IMAGES = 100  # a figure on fewer stands with their number
FEWEST_FOR_ADVICE = 30  # on fewer no model is recommended, and none is called worse
_INTERVAL = "_ci95"  # ends the name of half the width of a figure's interval


def headline_name(figures: Mapping[str, object]) -> str:
    """Return which figure models are compared by: ``map`` of several classes an image, else ``top1``."""
    return HEADLINE_OF_SEVERAL if HEADLINE_OF_SEVERAL in figures else HEADLINE


def headline_of(figures: Mapping[str, float]) -> float | None:
    """Return the figure that models are compared by, in percent. None: not measured."""
    return figures.get(headline_name(figures))


def of_few(images: int | None) -> str:
    """Return what stands beside a figure, such as `` (n = 6)``; empty on enough images, or on a stream (0)."""
    return f" (n = {images})" if images and images < FEW_IMAGES else ""


def figure_of_few(value: float | None, images: int | None) -> float | str | None:
    """Return a figure as a cell of a table, with `of_few` beside it."""
    few = of_few(images)
    return f"{value:.2f}{few}" if few and value is not None else value


def allows_advice(images: int | None) -> bool:
    """Return whether a model may be recommended by a figure on so many images; of a stream, 0, they are not counted."""
    return not images or images >= FEWEST_FOR_ADVICE


def no_advice(images: int | None) -> str:
    """Return what is said in place of a recommendation where `allows_advice` does not."""
    return f"no advice: it would rest on {images} images, and takes {FEWEST_FOR_ADVICE} at least"


def format_figures(figures: dict[str, float]) -> dict[str, str]:
    """Return texts such as ``61.50 ± 0.42`` by shape."""
    texts = {}
    # a figure and its interval are two entries of result.json, and one cell of a table
    for name, value in figures.items():
        if not name.endswith(_INTERVAL):
            texts[name] = f"{value:.2f} ± {figures[name + _INTERVAL]:.2f}"
    return texts
