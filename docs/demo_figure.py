#!/usr/bin/env python3
"""Draw docs/demo.svg, the table of `make demo` as a figure: means with their numbers, seeds as dots, the gap recovered.

python docs/demo_figure.py output/demo/20260101-120000
"""

import statistics
import sys
from pathlib import Path

from matplotlib.figure import Figure

from w2s_plugins import demo
from w2s_plugins.study.drawings import WIDTH, Drawn, save, style

# the rows, by column of the table
ROWS = {
    "teacher": "weak teacher, from 80 true labels",
    "student": "strong student, from the teacher's labels",
    "direct": "strong student, from the 80 true labels",
    "both": "strong student, from both",
    "ceiling": "ceiling: strong student, all true labels",
}


def main(folder: Path) -> None:
    """Read the results of the seeds in a folder of the demo, and draw them."""
    seeds = [file for file in sorted(folder.glob("seed*")) if not file.name.endswith("-both")]
    rows = [dict(zip(demo.COLUMNS, demo.row_of(seed))) for seed in seeds]
    means = {name: statistics.mean(row[name] for row in rows) for name in demo.COLUMNS}
    with style():
        figure = Figure(figsize=(2 * WIDTH, 2.0), layout="constrained")
        axes, names = figure.subplots(), []
        # the gap from teacher to ceiling, and how much of it the student closes
        place = list(ROWS).index("student") + 0.33
        for end, color in {"ceiling": "0.8", "student": "C1"}.items():
            axes.plot(
                [means["teacher"], means[end]],
                [place] * 2,
                marker="",
                linestyle="-",
                color=color,
                linewidth=3,
            )
        axes.text(
            means["ceiling"],
            place - 0.15,
            f"{means['PGR']:.2f} of the gap",
            horizontalalignment="right",
            verticalalignment="bottom",
        )
        # a dot a seed, a bar for the mean
        for row, (key, name) in enumerate(ROWS.items()):
            values = [of_seed[key] for of_seed in rows]
            names.append(f"{name}  {means[key]:.1f}")
            axes.plot(values, [row] * len(values), "o", color=f"C{row}")
            axes.plot(means[key], row, "|", color="black", markersize=12)
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="top-1 in percent; dots: seeds, bars: means", ylim=(4.5, -0.5))
    save(Drawn("demo", figure, "demo", ""), Path(__file__).parent)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
