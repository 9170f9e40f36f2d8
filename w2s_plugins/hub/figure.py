"""The figure of a model card: top-1 of the student by epoch, between its teacher and its ceiling."""

from io import BytesIO

from .card import is_number, lookup

FIGURE = "figure.png"
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"  # of Okabe and Ito: people of any colour vision tell them apart


def draw_figure(record: dict) -> tuple[bytes, str] | None:
    """Return a PNG and what it shows in words; None for a run whose student was never measured beside its teacher.

    Args:
        record: content of the run's ``result.json``. Accuracies are in percent.
    """
    by_epoch = lookup(record, "gain", "by_epoch")
    top1 = {lookup(row, "epoch"): lookup(row, "top1") for row in (by_epoch if isinstance(by_epoch, list) else [])}
    top1 = {epoch: value for epoch, value in top1.items() if is_number(epoch) and is_number(value)}
    teacher, ceiling = lookup(record, "teacher", "top1"), lookup(record, "ceiling_acc")
    if not top1 or not is_number(teacher):
        return None
    from matplotlib.figure import Figure  # after the flags: it takes half a second
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6, 2.6), layout="constrained")
    axes = figure.subplots()
    values = list(top1.values())
    axes.plot([epoch + 1 for epoch in top1], values, "o-", color=BLUE, markersize=4, label="student")
    words = [f"student {values[0]:.1f} to {values[-1]:.1f}"]
    # its teacher and its ceiling as lines
    for name, value, colour, dash in (("teacher", teacher, ORANGE, "--"), ("ceiling", ceiling, GREEN, ":")):
        if is_number(value):
            axes.axhline(value, color=colour, linestyle=dash, label=name)
            words.append(f"{name} {value:.1f}")
    exported = lookup(record, "selected", "epoch")
    if exported in top1:
        axes.plot(exported + 1, top1[exported], "o", color=BLUE, markersize=9, fillstyle="none", label="this model")
    axes.set(xlabel="epoch", ylabel="top-1 in percent")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False)
    png = BytesIO()
    figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
    return png.getvalue(), f"Top-1 in percent by epoch: {', '.join(words)}"


def with_figure(card: str, words: str) -> str:
    """Return a card that shows the figure above its results; one without that heading as it is."""
    return card.replace("\n## Results\n", f"\n## Results\n\n![{words}]({FIGURE})\n", 1)
