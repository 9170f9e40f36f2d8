#!/usr/bin/env python3
"""How far pixels of ``--decoder fast`` are from Pillow's, by the scale at which a JPEG is decoded, and in which time.

    python -m benchmarks.pixels
    python -m benchmarks.pixels --photographs FOLDER

Windows are drawn as timm draws random crops. A window is resized so far that it still has the margin times as many pixels
a side as the result, and less than twice that. Differences are in levels of 255: their mean, the mean of the view where it
is the largest, and the largest of a pixel. Without a folder, the photographs are scikit-learn's two.
"""

import argparse
import io
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sklearn.datasets
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import InterpolationMode

from benchmarks.measure import machine, table
from w2s_plugins.data.decoding import SCALES, decode_at, draw_window, read_header, resize_part

MARGINS = 1, 1.5, 2
VIEWS = 60


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=Path, help="folder of JPEG files")
    parser.add_argument("--quick", action="store_true", help="two views, to see that it works")
    args = parser.parse_args(argv)
    folder = args.photographs or Path(sklearn.datasets.__file__).parent / "images"
    files = [path.read_bytes() for path in sorted(folder.glob("*.jp*g"))]
    torch.set_num_threads(1)
    print(f"{len(files)} photographs, {machine()}\n")
    views = 2 if args.quick else VIEWS
    rows = [
        (margin, f"1/{scale}", *measure(files, margin, scale, views))
        for margin in MARGINS
        for scale in (*reversed(SCALES), 1)
        if margin == MARGINS[-1] or scale > 1
    ]
    print(table(("margin", "scale", "mean", "worst view", "worst pixel", "time / Pillow"), rows))


def measure(
    files: Sequence[bytes], margin: float, scale: int, views: int
) -> tuple[str, str, int, str]:
    """Return the differences of views of some photographs that are decoded at a scale, and the ratio of times."""
    random.seed(0)
    torch.manual_seed(0)
    means, largest, ours, theirs = [], 0.0, 0.0, 0.0
    crop = RandomResizedCropAndInterpolation(64)
    for data in files:
        header = read_header(data)
        if header is None:
            continue
        for _ in range(views):
            window, *_ = draw_window(crop, header.size)
            top, left, height, width = window
            fraction = random.uniform(margin, 2 * margin) * scale
            size = max(1, int(height / fraction)), max(1, int(width / fraction))

            started = time.process_time()
            pixels = decode_at(data, header, scale)
            if pixels is None:
                raise RuntimeError("a photograph is broken")
            one = resize_part(pixels, header.place(window, scale), size, InterpolationMode.BICUBIC)
            between = time.process_time()
            image = Image.open(io.BytesIO(data)).convert("RGB")
            image = image.crop((left, top, left + width, top + height))
            two = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
            ours, theirs = ours + between - started, theirs + time.process_time() - between

            difference = np.abs(np.asarray(one, dtype=float) - np.asarray(two, dtype=float))
            means.append(difference.mean())
            largest = max(largest, difference.max())
    return (
        f"{np.mean(means):.3f}",
        f"{max(means):.2f}",
        int(largest),
        f"{ours / theirs:.2f}",
    )


if __name__ == "__main__":
    main()
