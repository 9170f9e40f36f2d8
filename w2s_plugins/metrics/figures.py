"""Figures as they are shown."""

_INTERVAL = "_ci95"  # ends the name of half the width of a figure's interval


def format_figures(figures: dict[str, float]) -> dict[str, str]:
    """Return texts such as ``61.50 ± 0.42`` by shape."""
    texts = {}
    # a figure and its interval are two entries of result.json, and one cell of a table
    for name, value in figures.items():
        if not name.endswith(_INTERVAL):
            texts[name] = f"{value:.2f} ± {figures[name + _INTERVAL]:.2f}"
    return texts
