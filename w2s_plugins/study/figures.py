"""The figures of a report: test images, and what is read off the runs of a study, each where its data exist.

They are 3.3 inches wide, a column of a paper. Colours are those of Okabe and Ito (Color Universal Design, 2008), which
people of any colour vision tell apart; lines also differ by dash and marker. SVG and PDF files are the same byte for
byte for the same runs.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..files import atomic_write
from .collect import Collected, StudentRun
from .gallery import Gallery, open_gallery
from .table import title_of

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#B8A800")
DASHES, MARKERS = ("-", "--", ":", "-."), "osD^vPX*"
WIDTH, DPI = 3.3, 220
MOST_LINES = 8  # more cannot be told apart
PICTURES = 6  # in a row of the gallery
STYLE = {
    "font.size": 7.5, "axes.titlesize": 8, "legend.fontsize": 6.5, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "axes.linewidth": 0.6, "lines.linewidth": 1.1, "lines.markersize": 3.5, "axes.spines.top": False,
    "axes.spines.right": False, "figure.dpi": 100, "savefig.facecolor": "white", "svg.hashsalt": "w2s_plugins",
    "pdf.fonttype": 42,  # text that can be searched and edited
    "text.parse_math": False,  # a dollar sign in the name of a class is one
}


@dataclass
class Drawn:
    """A figure with what it needs on a page.

    Args:
        name: of its files, without ending.
        figure: the drawing.
        title: a few words.
        alt: what it shows, for those who do not see it.
    """

    name: str
    figure: Figure
    title: str
    alt: str


@contextmanager
def style() -> Iterator[None]:
    """Draw and save in the style of this module, whatever the user's own is."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def draw_all(found: Collected, table: dict) -> tuple[list[Drawn], list[str]]:
    """Draw all figures for which there are data, galleries first; also return why pictures are missing, if they are."""
    notes: list[str] = []
    drawn: list[Drawn | None] = []
    numbers = line_numbers(table)
    with style():
        for mean in table["over_sets"]:
            drawn.append(pgr_bars(mean, f", mean over {', '.join(mean['sets'])} ({title_of(mean)})"))
        for group, runs in zip(table["groups"], found.groups()):
            about = f" ({title_of(group)})" if len(table["groups"]) > 1 else ""
            by_loss: dict[str, list[StudentRun]] = {cell["loss"]: [] for cell in group["cells"]}
            for student in runs:
                by_loss[student.loss].append(student)
            best = by_loss[group["cells"][0]["loss"]][0]
            drawn += [pictures(best, open_gallery(best, notes), about), pgr_bars(group, about),
                      agreement_scatter(group, numbers, about), learning_curves(group, by_loss, numbers, about),
                      mistakes(by_loss, about)]
    figures = sorted(filter(None, drawn), key=lambda item: item.name != "gallery")
    # a file name of its own for each
    seen: Counter[str] = Counter()
    for item in figures:
        seen[item.name] += 1
        item.name = f"{item.name}-{seen[item.name]}"
    return figures, notes


def save(drawn: Drawn, folder: Path) -> None:
    """Write NAME.png, NAME.svg and NAME.pdf, without the time."""
    with style():
        for kind, times in (("svg", ["Date"]), ("pdf", ["CreationDate"]), ("png", [])):
            with atomic_write(folder / f"{drawn.name}.{kind}") as temporary:
                drawn.figure.savefig(temporary, format=kind, dpi=DPI, metadata=dict.fromkeys(times))


def new_figure(height: float, rows: int = 1, **options: object) -> tuple[Figure, np.ndarray]:
    """Return a figure of column width and its axes, (rows,)."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, 1, squeeze=False, **options)[:, 0]


def look(number: int) -> dict[str, str]:
    """Colour, dash and marker of a line; after all colours they begin anew with other dashes and markers."""
    shifted = number + number // len(COLOURS)
    return dict(color=COLOURS[number % len(COLOURS)], linestyle=DASHES[shifted % len(DASHES)],
                marker=MARKERS[shifted % len(MARKERS)])


def line_numbers(table: dict) -> dict[str, int]:
    """Number losses, so that each looks the same in all figures of a report."""
    losses = dict.fromkeys(cell["loss"] for group in table["groups"] for cell in group["cells"])
    return {loss: number for number, loss in enumerate(losses)}


def short(text: str, limit: int = 34) -> str:
    """Return a name cut to a length that a column has room for."""
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= limit else text[:limit - 1] + "…"


def legend_below(figure: Figure, axes: Axes) -> None:
    """Put the legend under the axes, so that it hides nothing, in as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, min(3, 52 // (max(map(len, labels)) + 7)))
    figure.set_figheight(figure.get_figheight() + 0.15 * math.ceil(len(labels) / columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, handlelength=2.4,
                  columnspacing=1.0)


def half(figure: dict) -> float:
    """Return half the length of an interval; nothing where it is not known."""
    return 0.0 if figure["low"] is None else (figure["high"] - figure["low"]) / 2


def frame(limit: Callable, values: Sequence[float], least: float) -> None:
    """Set the ends of an axis by the means on it: intervals may go on beyond, so that one does not hide the others."""
    room = max(least, 0.25 * (max(values) - min(values)))
    limit(min(values) - room, max(values) + room)


def most_telling(group: dict) -> list[dict]:
    """Return the cells that fit a figure, best first, the reference among them."""
    cells = group["cells"]
    others = [cell for cell in cells if cell["loss"] != group["reference"]][:MOST_LINES - 1]
    return [cell for cell in cells if cell in others or cell["loss"] == group["reference"]]


def pgr_bars(group: dict, about: str = "") -> Drawn | None:
    """Performance gap recovered by each loss, with intervals; ``about`` ends the title."""
    cells = [cell for cell in group["cells"] if cell["pgr"]][::-1]
    if not cells:
        return None
    figure, (axes,) = new_figure(0.75 + 0.19 * len(cells))
    means = [cell["pgr"]["mean"] for cell in cells]
    names = [short(cell["loss"], 28) + (" (ref.)" if cell["loss"] == group["reference"] else "") for cell in cells]
    axes.barh(range(len(cells)), means, tick_label=names, xerr=[half(cell["pgr"]) for cell in cells], color=COLOURS[5],
              edgecolor="black", linewidth=0.5, error_kw=dict(lw=0.8, capsize=2))
    axes.axvline(0, color="black", linewidth=0.6)
    frame(axes.set_xlim, [0, *means], 0.1)
    axes.set_xlabel("PGR")
    texts = [f"{cell['loss']} {cell['pgr']['mean']:.2f}" for cell in reversed(cells)]
    alt = f"Bars of the mean performance gap recovered with 95 % intervals: {', '.join(texts)}."
    return Drawn("pgr", figure, f"Performance gap recovered{about}", alt)


def agreement_scatter(group: dict, numbers: Mapping[str, int], about: str = "") -> Drawn:
    """Teacher-student agreement against accuracy, a point for each loss; the teacher itself stands at 100 %."""
    cells = most_telling(group)
    figure, (axes,) = new_figure(2.3)
    for cell in cells:
        line = {**look(numbers[cell["loss"]]), "linestyle": ""}
        axes.errorbar(cell["agreement"]["mean"], cell["student"]["mean"], half(cell["student"]),
                      half(cell["agreement"]), elinewidth=0.5, label=short(cell["loss"]), **line)
    teacher = cells[0]["weak"]["mean"]
    axes.plot(100, teacher, color="black", marker="*", markersize=8, linestyle="", label="teacher")
    frame(axes.set_xlim, [100, *(cell["agreement"]["mean"] for cell in cells)], 1.0)
    axes.set_xlim(right=102)
    frame(axes.set_ylim, [teacher, *(cell["student"]["mean"] for cell in cells)], 1.0)
    axes.set(xlabel="agreement with the teacher (%)", ylabel="accuracy (%)")
    legend_below(figure, axes)
    points = [f"{cell['loss']}: agreement {cell['agreement']['mean']:.1f}, accuracy {cell['student']['mean']:.1f}"
              for cell in cells]
    alt = (f"Accuracy against agreement with the teacher, in percent. The teacher has accuracy {teacher:.1f}. "
           f"{'. '.join(points)}.")
    return Drawn("agreement", figure, f"Agreement with the teacher against accuracy{about}", alt)


def learning_curves(group: dict, by_loss: dict[str, list[StudentRun]], numbers: Mapping[str, int],
                    about: str = "") -> Drawn | None:
    """Accuracy on the test samples after each evaluated epoch, mean over seeds."""
    figure, (axes,) = new_figure(2.3)
    parts = []
    for cell in most_telling(group):
        # the epochs that all seeds were evaluated in
        runs = [pandas.DataFrame((student.record.get("gain") or {}).get("by_epoch", []), columns=["epoch", "top1"])
                for student in by_loss[cell["loss"]] if not student.test]
        if not runs:
            continue
        by_seed = pandas.concat([run.set_index("epoch") for run in runs], axis="columns", join="inner")
        curve = by_seed.mean(axis="columns")
        if len(curve) < 2:  # one evaluation is no curve
            continue
        epochs = curve.index + 1
        axes.plot(epochs, curve, markevery=max(1, len(curve) // 10), label=short(cell["loss"]),
                  **look(numbers[cell["loss"]]))
        parts.append(f"{cell['loss']}: {curve.iloc[0]:.1f} after epoch {epochs[0]}, {curve.iloc[-1]:.1f} after "
                     f"{epochs[-1]}")
    if not parts:
        return None
    for who, text, dash in (("weak", "teacher", "--"), ("ceiling", "ceiling", ":")):
        level = group["cells"][0][who]
        if level:
            axes.axhline(level["mean"], color="grey", linewidth=0.8, linestyle=dash, label=text)
    axes.set(xlabel="epoch", ylabel="accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(figure, axes)
    alt = f"Accuracy in percent over training. {'; '.join(parts)}."
    return Drawn("curves", figure, f"Learning curves{about}", alt)


def mistakes(by_loss: dict[str, list[StudentRun]], about: str = "") -> Drawn | None:
    """What students make of their teacher's mistakes: corrected, copied, replaced by others."""
    shares = {}
    for loss, runs in by_loss.items():
        wrong, right, same = (np.concatenate([run.hits[name] for run in runs])
                              for name in ("weak", "student", "agreement"))
        wrong = ~wrong
        if wrong.any():
            corrected, copied = 100 * right[wrong].mean(), 100 * same[wrong].mean()
            shares[loss] = {"corrected": corrected, "copied": copied, "another mistake": 100 - corrected - copied}
    if not shares:
        return None
    figure, (axes,) = new_figure(0.6 + 0.19 * len(shares))
    table = pandas.DataFrame(shares).T
    start = table.cumsum(axis="columns") - table
    for name, colour, hatch in zip(table, (COLOURS[2], COLOURS[3], "#CCCCCC"), ("", "////", "")):
        axes.barh(range(len(table)), table[name], left=start[name], color=colour, hatch=hatch, edgecolor="black",
                  linewidth=0.4, label=name, tick_label=list(map(short, table.index)))
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the teacher's mistakes (%)", loc="right")
    legend_below(figure, axes)
    texts = [f"{row.Index} corrects {row[1]:.0f}, copies {row[2]:.0f}, errs otherwise on {row[3]:.0f}"
             for row in table.itertuples()]
    alt = f"Of the teacher's mistakes on test samples, in percent: {'; '.join(texts)}."
    return Drawn("mistakes", figure, f"What becomes of the teacher's mistakes{about}", alt)


def pictures(student: StudentRun, gallery: Gallery, about: str = "") -> Drawn | None:
    """Test images where a student corrects its teacher, and where it copies its mistake."""
    wrong = ~student.hits["weak"]
    kinds = {"student right, teacher wrong": wrong & student.hits["student"],
             "both make the same mistake": wrong & student.hits["agreement"]}
    kinds = {text: np.nonzero(mask)[0] for text, mask in kinds.items() if mask.any()}
    if gallery.dataset is None or not kinds:
        return None
    figure = Figure(figsize=(WIDTH, 0.15 + 0.95 * len(kinds)), layout="constrained")
    parts = []
    for (text, places), row in zip(kinds.items(), np.atleast_1d(figure.subfigures(len(kinds), 1))):
        row.suptitle(text, fontsize=7.5)
        panels = row.subplots(1, PICTURES)
        for panel in panels:
            panel.set_axis_off()
        spread = np.linspace(0, len(places) - 1, min(PICTURES, len(places))).round().astype(int)
        names = []
        for panel, place in zip(panels, places[spread]):
            truth, answer = gallery.name(student.target[place]), gallery.name(student.teacher[place])
            panel.imshow(gallery.image(place), interpolation="nearest")
            panel.set_title(f"{short(truth, 9)}\n✗ {short(answer, 8)}", fontsize=6)
            names.append(f"{truth} taken for {answer}")
        parts.append(f"{text}: {', '.join(names)}")
    alt = (f"Test images of seed {student.seed} with the loss {student.loss}, under each the true class and what the "
           f"teacher says. {'. '.join(parts)}.")
    title = f"Where the student of {student.loss} corrects its teacher, and where it copies it{about}"
    return Drawn("gallery", figure, title, alt)
