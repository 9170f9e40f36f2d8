#!/usr/bin/env python3
"""Draw docs/demo.svg, the table of `make demo` as a figure: means with their numbers, seeds as dots, the gap recovered.

python docs/demo_figure.py output/demo/20260101-120000
"""

import json
import statistics
import sys
from pathlib import Path

from matplotlib.figure import Figure

from w2s_plugins.study.drawings import WIDTH, Drawn, save, style

ROWS = {
    "weak": "weak teacher",
    "student": "strong student, on its labels",
    "ceiling": "ceiling: student, true labels",
}


def main(folder: Path) -> None:
    """Read the results of the seeds in a folder of the demo, and draw them."""
    results = [
        json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(folder.glob("seed*/result.json"))
    ]
    with style():
        figure = Figure(figsize=(1.5 * WIDTH, 1.4), layout="constrained")
        axes, names = figure.subplots(), []
        # a row each for teacher, student and ceiling
        for row, (key, name) in enumerate(ROWS.items()):
            values = [result[key]["value"] for result in results]
            mean = statistics.mean(values)
            names.append(f"{name}  {mean:.1f}")
            axes.plot(values, [row] * len(values), "o", color=f"C{row}")
            axes.plot(mean, row, "|", color="black", markersize=12)
        axes.set_yticks(range(len(names)), names)
        pgr = statistics.mean(result["pgr"]["value"] for result in results)
        axes.set(
            title=f"{pgr:.2f} of the gap (PGR)",
            xlabel="top-1 in percent; dots: seeds, bars: means",
            ylim=(2.5, -0.5),
        )
    save(Drawn("demo", figure, "demo", ""), Path(__file__).parent)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
