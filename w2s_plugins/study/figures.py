"""The figures of a report, drawn from the runs of a study, each only where its data exist.

They are 3.3 inches wide, a column of a paper. Colours are those of Okabe and Ito (Color Universal Design, 2008), which
people of any colour vision tell apart; lines also differ by dash and marker. SVG and PDF files are the same byte for
byte for the same runs.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import CARETDOWN, CARETLEFT, CARETRIGHT, CARETUP
from matplotlib.ticker import MaxNLocator
from PIL import Image

from ..errors import UserError, one_line
from ..files import atomic_write
from ..losses.base import LOSSES
from .collect import PARTS, Collected, StudentRun
from .gallery import Gallery, open_gallery
from .table import title_of

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#B8A800")
DASHES, MARKERS = ("-", "--", ":", "-."), "osD^vPX*"
WIDTH, DPI = 3.3, 220
MOST_LINES = 8  # more cannot be told apart
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
    """Draw all figures for which there are data; also return why galleries are missing, where they are."""
    notes: list[str] = []
    numbers = line_numbers(table)
    with style():
        means = table.get("over_sets", [])
        families = [[group for group in table["groups"] if all(group[part] == mean[part] for part in PARTS[1:-1])]
                    for mean in means] or [table["groups"]]
        drawn = [*(radar({"groups": groups}, numbers) for groups in families), *map(mean_bars, means),
                 *(sweep(table, name, key) for name, key in swept(table))]
        for number, (group, runs) in enumerate(zip(table["groups"], found.groups().values()), start=1):
            by_loss: dict[str, list[StudentRun]] = {cell["loss"]: [] for cell in group["cells"]}
            for student in runs:
                by_loss[student.loss].append(student)
            gallery = open_gallery(runs, notes)
            of_group = [pgr_bars(group), agreement_scatter(group, numbers), misfit_scatter(group, numbers),
                        learning_curves(group, by_loss, numbers), learning_curves(group, by_loss, numbers, "copied"),
                        mistakes(by_loss), confusions(group, by_loss, gallery), pictures(group, by_loss, gallery)]
            for item in filter(None, of_group):
                item.name += f"-{number}"
                item.title += f" ({title_of(group)})" if len(table["groups"]) > 1 else ""
                drawn.append(item)
    return _numbered(filter(None, drawn)), notes


def _numbered(drawn: Iterable[Drawn]) -> list[Drawn]:
    """Give each figure a file name of its own."""
    kept, seen = [], {}
    for item in drawn:
        seen[item.name] = seen.get(item.name, 0) + 1
        if seen[item.name] > 1:
            item.name += f"-{seen[item.name]}"
        kept.append(item)
    return kept


def save(drawn: Drawn, folder: Path) -> None:
    """Write NAME.png, NAME.svg and NAME.pdf.

    The PNG has a palette: the same to the eye in a third of the bytes.
    """
    pixels = BytesIO()
    with style():
        for kind, none in (("svg", ("Date", "Creator")), ("pdf", ("CreationDate", "Creator", "Producer"))):
            with atomic_write(folder / f"{drawn.name}.{kind}") as temporary:
                drawn.figure.savefig(temporary, format=kind, metadata=dict.fromkeys(none))
        drawn.figure.savefig(pixels, format="png", dpi=DPI, metadata={"Software": None})
    with Image.open(pixels) as image, atomic_write(folder / f"{drawn.name}.png") as temporary:
        image.convert("RGB").quantize().save(temporary, "PNG", optimize=True, dpi=(DPI, DPI))


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
    """Number losses by their mean rank over the groups, so that each looks the same in all figures of a report."""
    ranks: dict[str, list[int]] = {}
    for group in table["groups"]:
        for rank, cell in enumerate(group["cells"]):
            ranks.setdefault(cell["loss"], []).append(rank)
    return {loss: number for number, loss in enumerate(sorted(ranks, key=lambda loss: np.mean(ranks[loss])))}


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


def reach(figure: dict, floor: float = -math.inf) -> tuple[float, float]:
    """Return the ends of an interval, the mean twice where it is not known; nothing is below ``floor``."""
    return max(floor, figure["mean"] - half(figure)), figure["mean"] + half(figure)


def framed(
        figures: Sequence[dict], least: float, most: float = math.inf, floor: float = -math.inf) -> tuple[float, float]:
    """Return the ends of an axis with all means and 0 on it, and intervals as far as they leave the means apart.

    Args:
        figures: what is shown.
        least: room beyond the means that there is for intervals anyway.
        most: room that there is at most.
        floor: of these figures.
    """
    means, ends = [figure["mean"] for figure in figures], [reach(figure, floor) for figure in figures]
    low, high = min(0, *means), max(0, *means)
    room = min(most, max(least, high - low, float(np.median([half(figure) for figure in figures]))))
    left, right = min(low, *(end for end, _ in ends)), max(high, *(end for _, end in ends))
    margin = 0.03 * (high - low + room)
    return max(left, low - room) - margin, min(right, high + room) + margin


def mark_cut(
        axes: Axes,
        point: tuple[float, float],
        across: tuple[float, float],
        up: tuple[float, float],
        colour: str,
) -> str:
    """Draw an arrow wherever a point or its intervals go on beyond the frame; return what is then to be said of it."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    x, y = min(max(point[0], left), right), min(max(point[1], bottom), top)
    cut = [mark for beyond, *mark in ((across[0] < left, left, y, CARETLEFT), (across[1] > right, right, y, CARETRIGHT),
                                      (up[0] < bottom, x, bottom, CARETDOWN), (up[1] > top, x, top, CARETUP)) if beyond]
    for place_x, place_y, marker in cut:
        axes.plot(place_x, place_y, marker=marker, color=colour, markersize=4, linestyle="", zorder=3)
    what = "intervals" if (x, y) == point else "points"
    return f" Some {what} go on beyond the frame." if cut else ""


def most_telling(cells: list[dict], reference: str) -> list[dict]:
    """Return the cells that fit a figure, best first: all, or the best ones with the reference and the last."""
    if len(cells) <= MOST_LINES:
        return cells
    needed = [cell for cell in cells if cell["loss"] == reference or cell is cells[-1]]
    others = [cell for cell in cells if cell not in needed]
    kept = [*others[:MOST_LINES - len(needed)], *needed]
    return [cell for cell in cells if cell in kept]


def listed(pairs: Iterable[tuple[str, float]], digits: int = 1) -> str:
    """Return such as ``kd 85.1, adaptconf 86.2``."""
    return ", ".join(f"{name} {value:.{digits}f}" for name, value in pairs)


# ---------------------------------------------------------------- all groups


def radar(table: dict, numbers: dict[str, int]) -> Drawn | None:
    """Mean accuracy by task (a group of the table) and loss; three tasks or more with losses in common."""
    groups = table["groups"]
    means = [{cell["loss"]: cell["student"]["mean"] for cell in group["cells"]} for group in groups]
    common = [cell for cell in groups[0]["cells"] if all(cell["loss"] in m for m in means)]
    if len(groups) < 3 or len(common) < 2:
        return None
    ranks = {cell["loss"]: np.mean([sorted(m.values(), reverse=True).index(m[cell["loss"]]) for m in means])
             for cell in common}
    reference = groups[0]["reference"]
    methods: dict[str, str] = {}  # a grid over kwargs would fill the figure: one setting of each
    for cell in sorted(common, key=lambda c: (c["loss"] != reference, bool(c["kwargs"]), ranks[c["loss"]])):
        methods.setdefault(cell["name"], cell["loss"])
    shown = sorted(methods.values(), key=lambda loss: (loss != reference, ranks[loss]))[:MOST_LINES]
    values = np.array([[m[loss] for m in means] for loss in shown])
    low, high = values.min(axis=0), values.max(axis=0)
    reach = 0.25 + 0.75 * (values - low) / np.where(high > low, high - low, 1)
    angles = np.linspace(0, 2 * math.pi, len(groups), endpoint=False)
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    axes = figure.add_subplot(projection="polar")
    for loss, row in zip(shown, reach):
        axes.plot(np.append(angles, angles[0]), np.append(row, row[0]), label=short(loss), **look(numbers[loss]))
    axes.set_ylim(0, 1.05)
    axes.set_yticks([0.25, 1.0], ["", ""])
    labels = [f"{letter(i)}: {a:.1f} to {b:.1f}" for i, (a, b) in enumerate(zip(low, high))]
    axes.set_xticks(angles, labels)
    for angle, text in zip(angles, axes.get_xticklabels()):
        side = math.cos(angle)
        text.set_horizontalalignment("center" if abs(side) < 0.1 else "left" if side > 0 else "right")
    axes.tick_params(axis="x", pad=1)
    legend_below(figure, axes)
    tasks = "; ".join(f"{letter(i)}: {title_of(group)}" for i, group in enumerate(groups))
    alt = (f"Radar of the mean accuracy of {len(shown)} losses on {len(groups)} tasks. Each axis runs from the worst "
           "to the best of these losses, so it does not start at zero. Of a loss with several settings the one with "
           f"default kwargs is shown, else the best one by these very results. {tasks}. Mean rank, 0 is best: "
           f"{listed((loss, ranks[loss]) for loss in shown)}.")
    return Drawn("radar", figure, f"Accuracy by task and loss. {tasks}", alt)


def letter(number: int) -> str:
    """Name an axis: A, B, ..., Z, A1, ..."""
    return chr(ord("A") + number % 26) + (str(number // 26) if number >= 26 else "")


def swept(table: dict) -> list[tuple[str, str]]:
    """Return the losses and those of their numeric kwargs of which a group has three values or more."""
    found: dict[tuple[str, str], None] = {}
    for group in table["groups"]:
        for cell in group["cells"]:
            for key in cell["kwargs"]:
                if any(len(points) > 2 for points in sweep_points(group, cell["name"], key).values()):
                    found[cell["name"], key] = None
    return list(found)


def sweep_points(group: dict, name: str, key: str) -> dict[str, list[tuple[float, dict]]]:
    """Return the values of a kwarg and their cells, sorted, by what the other kwargs of the loss are."""
    lines: dict[str, list[tuple[float, dict]]] = {}
    for cell in group["cells"]:
        value = kwarg_of(cell, key)
        if cell["name"] == name and isinstance(value, (int, float)) and not isinstance(value, bool):
            others = ", ".join(f"{k}={v}" for k, v in sorted(cell["kwargs"].items()) if k != key)
            lines.setdefault(others, []).append((float(value), cell))
    return {others: sorted(points, key=lambda point: point[0]) for others, points in lines.items()}


def kwarg_of(cell: dict, key: str) -> object:
    """Return the value of a kwarg, its default where it was not given; None where the loss is not known here."""
    if key in cell["kwargs"] or cell["name"] not in LOSSES.names():
        return cell["kwargs"].get(key)
    parameter = LOSSES.get(cell["name"]).defaults.get(key)
    return None if parameter is None else parameter.default


def sweep(table: dict, name: str, key: str) -> Drawn:
    """Accuracy against a hyper-parameter of a loss, such as alpha of augconf and T of adaptconf, with intervals."""
    figure, (axes,) = new_figure(2.4)
    parts, xs, number = [], [], 0
    for group, own in zip(table["groups"], differing_titles(table["groups"])):
        for others, points in sweep_points(group, name, key).items():
            if len(points) < 3:
                continue
            label = ", ".join(filter(None, (own, others)))
            x, figures = [value for value, _ in points], [cell["student"] for _, cell in points]
            axes.errorbar(x, [f["mean"] for f in figures], [half(f) for f in figures], capsize=2,
                          label=short(label or name), **look(number))
            parts.append(f"{label or name}: " + listed(((f"{v:g}:", f["mean"]) for v, f in zip(x, figures))))
            xs, number = xs + x, number + 1
    if min(xs) > 0 and max(xs) / min(xs) >= 20:
        axes.set_xscale("log")
        axes.set_xticks(sorted(set(xs)), [f"{x:g}" for x in sorted(set(xs))], rotation=45, minor=False)
        axes.minorticks_off()
    symbol = {"alpha": "\N{GREEK SMALL LETTER ALPHA}", "temperature": "T"}.get(key, key)
    axes.set(xlabel=f"{symbol} of {name}", ylabel="accuracy (%)")
    if number > 1:
        legend_below(figure, axes)
    alt = f"Mean accuracy in percent with 95 % intervals against {key} of {name}. {'. '.join(parts)}."
    return Drawn(f"sweep-{slug(name)}-{slug(key)}", figure, f"Accuracy against {symbol} of {name}", alt)


def differing_titles(groups: list[dict]) -> list[str]:
    """Return what tells each group from the others; nothing where there is one."""
    parts = [part for part in PARTS[:-1] if len({group.get(part) for group in groups}) > 1]
    return [", ".join(group[part] for part in parts) for group in groups]


def slug(text: str) -> str:
    """Return a text fit for a file name."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text)[:40].strip("-") or "x"


# ---------------------------------------------------------------- one group


def pgr_bars(group: dict) -> Drawn | None:
    """Performance gap recovered by each loss, with intervals."""
    cells = [cell for cell in group["cells"] if cell["pgr"]][::-1]
    if not cells:
        return None
    figure, (axes,) = new_figure(0.75 + 0.19 * len(cells))
    means, halves = [c["pgr"]["mean"] for c in cells], [half(c["pgr"]) for c in cells]
    names = [short(cell["loss"], 28) + (" (ref.)" if cell["loss"] == group["reference"] else "") for cell in cells]
    axes.barh(range(len(cells)), means, xerr=halves, color=COLOURS[5], edgecolor="black", linewidth=0.5,
              error_kw=dict(lw=0.8, capsize=2))
    axes.set_yticks(range(len(cells)), names)
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set_xlim(framed([cell["pgr"] for cell in cells], 0.1, 3))
    cut = {mark_cut(axes, (cell["pgr"]["mean"], place), reach(cell["pgr"]), (place, place), "black")
           for place, cell in enumerate(cells)}
    axes.set_xlabel("PGR")
    alt = (f"Bars of the mean performance gap recovered with 95 % intervals: "
           f"{listed(((c['loss'], c['pgr']['mean']) for c in cells[::-1]), 2)}."
           + "".join(cut))
    return Drawn("pgr", figure, "Performance gap recovered", alt)


def mean_bars(mean: dict) -> Drawn | None:
    """Performance gap recovered by each loss over data sets."""
    drawn = pgr_bars(mean)
    if drawn:
        drawn.name += "-over-sets"
        drawn.title += f", mean over {', '.join(mean['sets'])} ({title_of(mean)})"
    return drawn


def agreement_scatter(group: dict, numbers: dict[str, int]) -> Drawn:
    """Teacher-student agreement against accuracy, a point for each loss; the teacher itself stands at 100 %."""
    cells = most_telling(group["cells"], group["reference"])
    figure, (axes,) = new_figure(2.3)
    for cell in cells:
        axes.errorbar(cell["agreement"]["mean"], cell["student"]["mean"], half(cell["student"]),
                      half(cell["agreement"]), elinewidth=0.5, label=short(cell["loss"]),
                      **{**look(numbers[cell["loss"]]), "linestyle": ""})
    teacher = cells[0]["weak"]["mean"]
    axes.plot(100, teacher, color="black", marker="*", markersize=8, linestyle="", label="teacher")
    xs, ys = [c["agreement"]["mean"] for c in cells], [c["student"]["mean"] for c in cells]
    for values, limit in ((near_most(xs) + [100.0], axes.set_xlim), (near_most(ys) + [teacher], axes.set_ylim)):
        pad = max(1.0, 0.25 * (max(values) - min(values)))
        limit(max(-2, min(values) - pad), min(102, max(values) + pad))
    cut = {mark_cut(axes, (x, y), reach(c["agreement"]), reach(c["student"]), look(numbers[c["loss"]])["color"])
           for c, x, y in zip(cells, xs, ys)}
    axes.set(xlabel="agreement with the teacher (%)", ylabel="accuracy (%)")
    legend_below(figure, axes)
    alt = (f"Accuracy against agreement with the teacher, in percent. The teacher has accuracy {teacher:.1f}. "
           + ". ".join(f"{c['loss']}: agreement {c['agreement']['mean']:.1f}, accuracy {c['student']['mean']:.1f}"
                       for c in cells) + "." + "".join(sorted(cut)))
    return Drawn("agreement", figure, "Agreement with the teacher against accuracy", alt)


def near_most(values: list[float], least: float = 10.0) -> list[float]:
    """Return the values that are about where most are: a run that has diverged would leave the others no room.

    Args:
        values: in percent.
        least: distance from the median that is never too far.
    """
    middle = float(np.median(values))
    room = max(least, 6 * float(np.median([abs(value - middle) for value in values])))
    return [value for value in values if abs(value - middle) <= room]


def misfit_scatter(group: dict, numbers: dict[str, int]) -> Drawn | None:
    """Gain against misfit, a point for each loss, with the line above which theory has the nearest one."""
    cells = [cell for cell in most_telling(group["cells"], group["reference"]) if cell["gain"]]
    if not cells:
        return None
    figure, (axes,) = new_figure(2.3)
    points = [(cell["misfit"]["mean"], cell["gain"]["mean"]) for cell in cells]
    across = [reach(cell["misfit"], floor=0) for cell in cells]  # a divergence is not below 0
    for cell, (x, y), (low, high) in zip(cells, points, across):
        axes.errorbar(x, y, half(cell["gain"]), [[x - low], [high - x]], elinewidth=0.5, label=short(cell["loss"]),
                      **{**look(numbers[cell["loss"]]), "linestyle": ""})
    axes.set_xlim(framed([cell["misfit"] for cell in cells], 0.1, floor=0))
    axes.set_ylim(framed([cell["gain"] for cell in cells], 0.1))
    cut = {mark_cut(axes, point, ends, reach(cell["gain"]), look(numbers[cell["loss"]])["color"])
           for cell, point, ends in zip(cells, points, across)}
    axes.axline((0, 0), slope=1, color="grey", linewidth=0.8, linestyle="--", label="gain = misfit")
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set(xlabel="misfit: KL from the teacher (nats)", ylabel="gain in cross-entropy (nats)")
    legend_below(figure, axes)
    alt = ("Gain in cross-entropy over the teacher against the misfit, in nats, with the line on which they are equal. "
           + ". ".join(f"{c['loss']}: misfit {c['misfit']['mean']:.2f}, gain {c['gain']['mean']:.2f}" for c in cells)
           + "." + "".join(cut))
    return Drawn("misfit", figure, "Gain against misfit", alt)


def read_events(folder: Path, kind: str) -> list[dict]:
    """Return the events of a kind in a run's metrics.jsonl; none where there is no such file."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    try:
        events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [event for event in events if event["event"] == kind]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)}); expected the events that a run writes") from error


CURVES = {  # what is drawn by epoch: label of the axis, name and title of the figure
    "top1": ("accuracy (%)", "curves", "Learning curves"),
    "copied": ("teacher's mistakes copied (%)", "copied", "Mistakes that the students copy, over training"),
}


def learning_curves(
        group: dict, by_loss: dict[str, list[StudentRun]], numbers: dict[str, int], key: str = "top1") -> Drawn | None:
    """What is measured on the test samples after each evaluated epoch, mean over seeds."""
    figure, (axes,) = new_figure(2.3)
    label, name, title = CURVES[key]
    parts = []
    for cell in most_telling(group["cells"], group["reference"]):
        runs: dict[int, list[float]] = {}
        for student in by_loss[cell["loss"]]:
            for event in read_events(student.folder, "eval"):
                if key in event.get("val", ()):
                    runs.setdefault(event["epoch"] + 1, []).append(event["val"][key])
        complete = {e: np.mean(v) for e, v in sorted(runs.items()) if len(v) == len(by_loss[cell["loss"]])}
        if len(complete) > 1:  # one evaluation is no curve
            line = look(numbers[cell["loss"]])
            if len(complete) >= 12:  # markers would hide the line
                line["marker"] = ""
            axes.plot(list(complete), list(complete.values()), label=short(cell["loss"]), **line)
            first, last = min(complete), max(complete)
            parts.append(f"{cell['loss']}: {complete[first]:.1f} after epoch {first}, {complete[last]:.1f} after "
                         f"{last}")
    if not parts:
        return None
    for who, dash in (("weak", "--"), ("ceiling", ":")) if key == "top1" else ():
        figure_of = group["cells"][0][who]
        if figure_of:
            axes.axhline(figure_of["mean"], color="grey", linewidth=0.8, linestyle=dash,
                         label="teacher" if who == "weak" else "ceiling")
    axes.set(xlabel="epoch", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(figure, axes)
    what = "Accuracy" if key == "top1" else "Share of the teacher's mistakes that the student makes as well,"
    return Drawn(name, figure, title, f"{what} in percent over training. {'; '.join(parts)}.")


# ---------------------------------------------------------------- mistakes


def mistakes(by_loss: dict[str, list[StudentRun]]) -> Drawn | None:
    """What students make of their teacher's mistakes: corrected, copied, replaced by others; and what they spoil."""
    rows = {}
    for loss, runs in by_loss.items():
        wrong = sum(int((~r.hits["weak"]).sum()) for r in runs)
        right = sum(int(r.hits["weak"].sum()) for r in runs)
        if wrong and right:
            corrected = sum(int((~r.hits["weak"] & r.hits["student"]).sum()) for r in runs)
            copied = sum(int((~r.hits["weak"] & r.hits["agreement"]).sum()) for r in runs)
            spoilt = sum(int((r.hits["weak"] & ~r.hits["student"]).sum()) for r in runs)
            rows[loss] = (100 * corrected / wrong, 100 * copied / wrong, 100 - 100 * (corrected + copied) / wrong,
                          100 * spoilt / right)
    if not rows:
        return None
    figure, (axes,) = new_figure(0.6 + 0.19 * len(rows))
    stacked_bars(axes, {short(loss): row[:3] for loss, row in rows.items()}, "share of the teacher's mistakes (%)")
    for place, row in enumerate(rows.values()):
        axes.plot(row[3], place, marker="D", color="black", linestyle="", markersize=3, markeredgecolor="white",
                  markeredgewidth=0.5, label="spoilt, of what the teacher has right" if place == 0 else None)
    legend_below(figure, axes)
    alt = "Of the teacher's mistakes on test samples, in percent: " + "; ".join(
        f"{loss} corrects {a:.0f}, copies {b:.0f}, errs otherwise on {c:.0f}, and spoils {d:.0f} of what the teacher "
        "has right" for loss, (a, b, c, d) in rows.items()) + "."
    return Drawn("mistakes", figure, "What becomes of the teacher's mistakes", alt)


def stacked_bars(axes: Axes, rows: dict[str, tuple[float, float, float]], xlabel: str) -> None:
    """Draw shares of corrected, copied and other mistakes, the first row on top."""
    start = np.zeros(len(rows))
    for index, (label, colour, hatch) in enumerate((
            ("corrected", COLOURS[2], ""), ("copied", COLOURS[3], "////"), ("another mistake", "#CCCCCC", ""))):
        values = np.array([row[index] for row in rows.values()])
        axes.barh(range(len(rows)), values, left=start, color=colour, hatch=hatch, edgecolor="black", linewidth=0.4,
                  label=label)
        start = start + values
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel(xlabel, loc="right")  # in the middle it may go on beyond the figure, long names leave little room


def confusions(group: dict, by_loss: dict[str, list[StudentRun]], gallery: Gallery | None) -> Drawn | None:
    """The teacher's most frequent confusions, and what the best student makes of each."""
    loss = group["cells"][0]["loss"]
    counts: dict[tuple[int, int], np.ndarray] = {}
    for student in by_loss[loss]:
        wrong = ~student.hits["weak"]
        for truth, said, answer in zip(student.target[wrong], student.teacher[wrong], student.student[wrong]):
            row = counts.setdefault((int(truth), int(said)), np.zeros(3, dtype=np.int64))
            row[0 if answer == truth else 1 if answer == said else 2] += 1
    if not counts:
        return None
    often = sorted(counts.items(), key=lambda item: (-item[1].sum(), item[0]))[:10]
    name = gallery.name if gallery else str
    rows = {f"{short(name(truth), 12)} as {short(name(said), 12)} ({row.sum()})": tuple(100 * row / row.sum())
            for (truth, said), row in often}
    figure, (axes,) = new_figure(0.72 + 0.19 * len(rows))
    stacked_bars(axes, rows, f"share of samples (%)\nstudent: {short(loss, 28)}")
    legend_below(figure, axes)
    alt = (f"The teacher's {len(rows)} most frequent confusions over all seeds, and in percent what the student of "
           f"{loss} says: " + "; ".join(f"{label}: right {a:.0f}, the same mistake {b:.0f}, another {c:.0f}"
                                for label, (a, b, c) in rows.items()) + ".")
    return Drawn("confusions", figure, f"The teacher's confusions, and the student of {loss}", alt)


def pictures(group: dict, by_loss: dict[str, list[StudentRun]], gallery: Gallery | None) -> Drawn | None:
    """Test images where the best student corrects its teacher, and where it copies its mistake; of its first seed."""
    if gallery is None:
        return None
    loss, columns = group["cells"][0]["loss"], 6
    student = by_loss[loss][0]
    wrong = ~student.hits["weak"]
    kinds = {"student right, teacher wrong": wrong & student.hits["student"],
             "both make the same mistake": wrong & student.hits["agreement"]}
    chosen = {text: gallery.spread(np.nonzero(mask)[0], columns) for text, mask in kinds.items() if mask.any()}
    if not chosen:
        return None
    figure = Figure(figsize=(WIDTH, 0.15 + 0.95 * len(chosen)), layout="constrained")
    parts = []
    for (text, places), sub in zip(chosen.items(), np.atleast_1d(figure.subfigures(len(chosen), 1))):
        sub.suptitle(text, fontsize=7.5)
        panels = sub.subplots(1, columns)
        for panel in panels:
            panel.set_axis_off()
        for panel, place in zip(panels, places):
            truth, said = gallery.name(student.target[place]), gallery.name(student.teacher[place])
            panel.imshow(gallery.image(place), cmap="gray", interpolation="nearest")
            panel.set_title(f"{short(truth, 9)}\n✗ {short(said, 8)}", fontsize=6)
        names = [f"{gallery.name(student.target[p])} taken for {gallery.name(student.teacher[p])}" for p in places]
        parts.append(f"{text}: {', '.join(names)}")
    alt = (f"Test images of seed {student.seed} with the loss {loss}, under each the true class and what the teacher "
           f"says. {'. '.join(parts)}.")
    return Drawn("gallery", figure, f"Where the student of {loss} corrects its teacher, and where it copies it", alt)
