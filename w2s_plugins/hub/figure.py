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
    top1 = {row["epoch"] + 1: row["top1"] for row in lookup(record, "gain", "by_epoch") or ()}
    teacher = lookup(record, "teacher", "top1")
    if not top1 or not is_number(teacher):
        return None
    from matplotlib.figure import Figure  # after the flags: it takes half a second
    from matplotlib.ticker import MaxNLocator

    # its curve by epoch, which are counted from 1 where people read them
    figure = Figure(figsize=(6, 2.6), layout="constrained")
    axes = figure.subplots()
    epochs, values = list(top1), list(top1.values())
    axes.plot(epochs, values, "o-", color=BLUE, markersize=4, label="student")
    words = [f"student {values[0]:.1f} to {values[-1]:.1f}", f"teacher {teacher:.1f}"]
    # its teacher and its ceiling as lines
    axes.axhline(teacher, color=ORANGE, linestyle="--", label="teacher")
    ceiling = record.get("ceiling_acc")
    if is_number(ceiling):
        axes.axhline(ceiling, color=GREEN, linestyle=":", label="ceiling")
        words.append(f"ceiling {ceiling:.1f}")
    # the epoch whose weights the card is about
    exported = lookup(record, "selected", "epoch")
    if is_number(exported) and exported + 1 in top1:
        axes.plot(exported + 1, top1[exported + 1], "o", color=BLUE, markersize=9, fillstyle="none", label="this model")
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
