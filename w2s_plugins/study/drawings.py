"""The figures of a report: test images, and what is read off the runs of a study, each where its data exist.

They are 3.3 inches wide, a column of a paper. Colours are those of Okabe and Ito (Color Universal Design, 2008), which
people of any colour vision tell apart; lines also differ by dash and marker. SVG files are the same byte for byte for
the same runs.
"""

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import matplotlib.style
import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import UserError, one_line
from ..files import atomic_write
from ..hub.markdown import plain
from ..metrics.figures import headline_name
from .gallery import open_gallery, picture
from .loss_table import Group
from .scores import NAMES, is_of_several

WIDTH, HEIGHT, DPI = 3.3, 2.3, 220
PICTURES = 6  # in a row of the gallery
MOST_LINES = 6  # beside the teacher and the ceiling; more cannot be told apart
STYLE = Path(__file__).parent / "templates/report.mplstyle"


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


def style() -> AbstractContextManager:
    """Draw and save in the style of this module, whatever the user's own is."""
    return matplotlib.style.context(STYLE, after_reset=True)


def draw_all(groups: list[Group]) -> list[Drawn]:
    """Draw all figures for which there are data, galleries first. Why there are no pictures is noted in the group."""
    drawn = []
    with style():
        for name, (title, table_of) in FIGURES.items():
            for number, group in enumerate(groups, 1):
                figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
                if table_of is None:
                    words = draw_pictures(figure, group)
                else:
                    words = draw_table(figure, *table_of(group))
                # of what cannot be put in words there is nothing to see either
                if words:
                    heading = f"{title} ({group.title})"
                    drawn.append(Drawn(f"{name}-{number}", figure, heading, f"{title}. {words}"))
    return drawn


def save(drawn: Drawn, folder: Path) -> None:
    """Write NAME.png and NAME.svg, without the time."""
    with style():
        # with the time in them, two reports of the same runs would differ
        for kind, metadata in {"svg": {"Date": None}, "png": {}}.items():
            with atomic_write(folder / f"{drawn.name}.{kind}") as temporary:
                drawn.figure.savefig(temporary, format=kind, dpi=DPI, metadata=metadata)


def short(text: str, limit: int = 22) -> str:
    """Return a name cut to a length that a column has room for."""
    text = plain(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


# ---------------------------------------------------------------- tables, and how pandas plots them


def pgr_table(group: Group) -> tuple[pandas.DataFrame, dict]:
    """Performance gap recovered by each loss, with intervals."""
    # with one seed there may be no interval, and no PGR where the ceiling is not above the teacher
    known = [(row.loss, row.figures.get("pgr")) for row in group.rows]
    figures = [{**figure, "loss": loss} for loss, figure in known if figure]
    table = (
        pandas.DataFrame(figures, columns=["loss", "value", "low", "high"])
        .set_index("loss")
        .astype(float)
    )
    # the frame holds all intervals, but one that is far wider than the bars must not hide them
    reach = table.assign(zero=0.0)
    least, most = min(0, table["value"].min()), max(0, table["value"].max())
    ends = max(reach.min(axis=None), least - 1) - 0.05, min(reach.max(axis=None), most + 1) + 0.05
    errors = (table["high"] - table["low"]).fillna(0) / 2
    look = dict(
        kind="barh",
        color="C5",
        xerr=errors.to_numpy(),
        xlim=ends,
        xlabel="PGR",
    )
    return table.filter(["value"]), look


def curve_table(group: Group) -> tuple[pandas.DataFrame, dict]:
    """Accuracy on the test samples after each evaluated epoch, mean over seeds, with those of teacher and ceiling."""
    curves = {}
    for loss, runs in list(group.runs.items())[:MOST_LINES]:
        events = [
            event
            for run in runs
            for event in (run.record.get("gain") or {"by_epoch": ()})["by_epoch"]
        ]
        # one evaluation is no curve
        if len(events) > len(runs):
            curves[loss] = (
                pandas.DataFrame(events).groupby("epoch")[headline_name(events[0])].mean()
            )
    # teacher and ceiling as level lines
    table = pandas.DataFrame(curves)
    for name in ("weak", "ceiling"):
        if curves and name in group.rows[0].figures:
            table[NAMES[name]] = group.rows[0].figures[name]["value"]
    look = dict(
        markevery=max(1, len(table) // 10),
        xlabel="epoch",
        ylabel=f"{group.measure} (%)",
    )
    return table.set_axis(table.index + 1), look


# what each is of; the gallery is no table
FIGURES = {
    "gallery": (
        "Test images with their true class, and behind ✗ what the teacher says. Above, the best student corrects it; "
        "below, it makes the same mistake",
        None,
    ),
    "pgr": (
        "Performance gap recovered, with 95 % intervals; ◂ and ▸ mark one that goes on beyond the frame",
        pgr_table,
    ),
    "curves": ("Learning curves, means over the seeds", curve_table),
}


def draw_table(figure: Figure, table: pandas.DataFrame, look: dict) -> str:
    """Draw a line for each column, or bars for each row; return what it shows in words, nothing where there is nothing."""
    if table.empty:
        return ""
    axes = figure.subplots()
    bars = "kind" in look
    plotted = table.rename(columns=short, index=short if bars else None)
    plotted.plot(ax=axes, legend=False, **look)
    axes.set(xlabel=look["xlabel"], ylabel=look.get("ylabel", ""))
    # a bar has its room however many there are, and the best one stands above
    height = HEIGHT
    if bars:
        height = 0.6 + 0.19 * len(table)
        if "xerr" in look:
            mark_cut_intervals(axes, table.iloc[:, 0].to_numpy(), look["xerr"], look["xlim"])
        axes.invert_yaxis()
    else:
        axes.locator_params(axis="x", integer=True)
    # the legend is below the axes, where it hides nothing
    count = len(plotted.columns)
    if count > 1:
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        height += 0.15 * math.ceil(count / 2)
    figure.set_figheight(height)
    # in words: every bar, and where each line ends
    rows = table if bars else table.ffill().tail(1).T
    return "; ".join(f"{name}: {values.round(2).tolist()}" for name, values in rows.iterrows())


def mark_cut_intervals(
    axes: Axes, values: np.ndarray, errors: np.ndarray, ends: tuple[float, float]
) -> None:
    """Draw a triangle at the frame for each interval, ``values`` -+ ``errors`` of the bars (N,), that goes on beyond it."""
    left, right = ends
    for row, (value, error) in enumerate(zip(values, errors)):
        cut = {"<": (left, value - error < left), ">": (right, value + error > right)}
        for marker, (place, is_cut) in cut.items():
            if is_cut:
                axes.plot(
                    [place],
                    [row],
                    linestyle="",
                    marker=marker,
                    color="black",
                    markersize=3,
                    clip_on=False,
                )


def draw_pictures(figure: Figure, group: Group) -> str:
    """Draw test images where the best student corrects its teacher, and where it copies its mistake."""
    # labels in a teacher's place make no mistakes here
    students = [runs[0] for runs in group.runs.values() if "agreement" in runs[0].hits]
    # of several classes an image a student may correct one and copy another
    if not students or is_of_several(students[0].answers):
        return ""
    student = students[0]
    try:
        dataset = open_gallery(student)
    except (UserError, OSError, ValueError, TypeError) as error:
        group.notes.append(f"No pictures: {one_line(error)}")
        return ""
    # a sample is shown with its name, or else the number of its class
    names = dict(enumerate(student.record["model"].get("class_names") or []))
    right, same = student.hits["student"], student.hits["agreement"]
    words = []
    for row, kind in zip(figure.subplots(2, PICTURES), (right & ~same, same & ~right)):
        for panel in row:
            panel.set_axis_off()
        # spread over the test set
        positions = kind.to_numpy().nonzero()[0]
        for panel, position in zip(row, positions[:: max(1, len(positions) // PICTURES)]):
            labels = student.answers.loc[position, ["target", "weak"]]
            truth, answer = (str(names.get(label, label)) for label in labels)
            panel.imshow(picture(dataset, position), interpolation="nearest")
            panel.set_title(f"{short(truth, 9)}\n✗ {short(answer, 8)}", fontsize=6)
            words.append(f"{truth} taken for {answer}")
    return ", ".join(words)
