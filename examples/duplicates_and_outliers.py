"""Which photographs are near duplicates, and which are unlike all others, by a model's features of them.

w2s-predict tf_efficientnet_lite0 photos/ --features features.npz
python examples/duplicates_and_outliers.py features.npz photos/ --output look.png

Beside the picture, look.csv has a row for each photograph: the one that is nearest to it, the cosine between the two,
and the distance (1 - cosine) to its tenth nearest, which is large for outliers (Sun et al., Out-of-distribution
detection with deep nearest neighbors, arXiv 2204.06507).
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image
from sklearn.neighbors import NearestNeighbors

NEIGHBOURS, SHOWN = 10, 6


def read_features(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the names (N,) and the features (N, D) of what ``--features`` has written."""
    if file.suffix == ".parquet":
        table = pd.read_parquet(file)
        return table["filename"].to_numpy(), np.stack(list(table["features"]))
    arrays = np.load(file)
    return arrays["filename"], arrays["features"]


def compare(names: np.ndarray, features: np.ndarray) -> pd.DataFrame:
    """Return what is nearest to each photograph, and how far it is from the others."""
    # what all photographs have in common says nothing about two of them
    features = features - features.mean(axis=0)
    count = min(NEIGHBOURS, len(names) - 1)
    search = NearestNeighbors(n_neighbors=count, metric="cosine").fit(features)
    # without an argument a photograph is no neighbour of itself
    distances, neighbours = search.kneighbors()
    return pd.DataFrame(
        {
            "filename": names,
            "nearest": names[neighbours[:, 0]],
            "cosine": 1 - distances[:, 0],
            "outlier": distances[:, -1],
        }
    )


def near_duplicates(table: pd.DataFrame) -> pd.DataFrame:
    """Return the pairs with the largest cosine, each once."""
    pairs = pd.Series([frozenset(pair) for pair in zip(table["filename"], table["nearest"])])
    once = table[~pairs.duplicated()]
    return once.sort_values("cosine", ascending=False).head(SHOWN)


def draw(duplicates: pd.DataFrame, outliers: pd.DataFrame, folder: Path, output: Path) -> None:
    """Write a picture: near duplicates in two rows, one below the other, and outliers in a third."""
    figure = Figure(figsize=(1.6 * SHOWN, 6.2), layout="constrained")
    axes = figure.subplots(3, SHOWN)
    for axis in axes.flat:
        axis.axis("off")
    for (above, below, _), pair in zip(axes.T, duplicates.itertuples()):
        above.imshow(Image.open(folder / pair.filename).convert("RGB"))
        above.set_title(f"cosine {pair.cosine:.3f}", fontsize=8)
        below.imshow(Image.open(folder / pair.nearest).convert("RGB"))
    for axis, row in zip(axes[2], outliers.itertuples()):
        axis.imshow(Image.open(folder / row.filename).convert("RGB"))
        axis.set_title(f"outlier {row.outlier:.3f}", fontsize=8)
    figure.savefig(output, dpi=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("features", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, default=Path("look.png"))
    args = parser.parse_args()
    compared = compare(*read_features(args.features))
    duplicates = near_duplicates(compared)
    outliers = compared.sort_values("outlier", ascending=False).head(SHOWN)
    print(duplicates[["cosine", "filename", "nearest"]].to_string(index=False))
    print(outliers[["outlier", "filename"]].to_string(index=False))
    compared.to_csv(args.output.with_suffix(".csv"), index=False)
    draw(duplicates, outliers, args.folder, args.output)
