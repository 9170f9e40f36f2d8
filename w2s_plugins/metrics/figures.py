"""Figures as they are shown."""


def format_figures(figures: dict[str, float]) -> dict[str, str]:
    """Return texts such as ``61.50 ± 0.42`` by shape."""
    return {k: f"{v:.2f} ± {figures[f'{k}_ci95']:.2f}" for k, v in figures.items() if not k.endswith("_ci95")}
