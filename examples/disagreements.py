"""The photographs on which two tables of labels disagree most, drawn with what both say.

python -m w2s_plugins.labels check student.csv --against teacher.csv --output disagree.csv
python examples/disagreements.py disagree.csv photos/ --names student teacher --output disagree.png
"""

import argparse
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

COLUMNS, ROWS = 4, 3


def draw(table: Path, folder: Path, names: list[str], output: Path) -> None:
    """Write a picture of the twelve photographs of whose label the first table is surest."""
    rows = pd.read_csv(table)
    rows = rows.sort_values("confidence", ascending=False).head(COLUMNS * ROWS)
    figure = Figure(figsize=(8, 6.8), layout="constrained")
    axes = list(figure.subplots(ROWS, COLUMNS).flat)
    for axis in axes:
        axis.axis("off")
    for axis, row in zip(axes, rows.itertuples()):
        axis.imshow(Image.open(folder / row.filename).convert("RGB"))
        axis.set_title(f"{names[0]}: {row.label}\n{names[1]}: {row.against_label}", fontsize=8)
    figure.savefig(output, dpi=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--names", nargs=2, default=["first", "second"], metavar="NAME")
    parser.add_argument("--output", type=Path, default=Path("disagree.png"))
    args = parser.parse_args()
    draw(args.table, args.folder, args.names, args.output)
