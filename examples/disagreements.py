"""Some of the photographs on which two tables of labels disagree, drawn at random, with what both say.

python -m w2s_plugins.labels check student.csv --against teacher.csv --output disagree.csv
python examples/disagreements.py disagree.csv photos/ --names student teacher --output disagree.png
"""

import argparse
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

COLUMNS, ROWS = 4, 3
LONGEST = 24  # letters of a class that fit above a photograph


def draw(table: Path, folder: Path, names: list[str], seed: int, output: Path) -> None:
    """Write a picture of twelve of the photographs; those with the surest labels would be no fair sample."""
    rows = pd.read_csv(table)
    rows = rows.sample(min(COLUMNS * ROWS, len(rows)), random_state=seed)
    figure = Figure(figsize=(8, 6.8), layout="constrained")
    axes = list(figure.subplots(ROWS, COLUMNS).flat)
    for axis in axes:
        axis.axis("off")
    for axis, row in zip(axes, rows.itertuples()):
        axis.imshow(Image.open(folder / row.filename).convert("RGB"))
        labels = [str(label)[:LONGEST] for label in (row.label, row.against_label)]
        axis.set_title(f"{names[0]}: {labels[0]}\n{names[1]}: {labels[1]}", fontsize=8)
    figure.savefig(output, dpi=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--names", nargs=2, default=["first", "second"], metavar="NAME")
    parser.add_argument("--seed", type=int, default=0, help="another one draws other photographs")
    parser.add_argument("--output", type=Path, default=Path("disagree.png"))
    args = parser.parse_args()
    draw(args.table, args.folder, args.names, args.seed, args.output)
