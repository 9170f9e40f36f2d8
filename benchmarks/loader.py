#!/usr/bin/env python3
"""Images per second of timm's training loader and of this project's, on the same folder of JPEG files.

    python -m benchmarks.loader
    python -m benchmarks.loader --workers 8 16 --batch-size 256 --data-dir /data/imagenet

Flags are those of plain training: random crops with random interpolation and flips, no colour jitter. The loaders take
turns, an epoch each, so that other work on the machine does not fall on one of them; ratios are to timm's loader in the
same turn. Without --data-dir, crops of scikit-learn's two photographs are written to a temporary folder.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import timm
import torch
from timm.data import create_loader

from benchmarks.measure import machine, ratios, spread, table, take_turns, write_photographs
from w2s_plugins.cli import parse, train_parser
from w2s_plugins.data import create_dataset, create_train_loader
from w2s_plugins.distributed.world import Precision, World
from w2s_plugins.settings.composite import TrainSettings
from w2s_plugins.training.loaders import loader_settings, train_views

LOADERS = ("timm", "pil", "fast")
CONFIG = dict(
    input_size=(3, 224, 224),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    interpolation="bicubic",
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data-dir", type=Path, help="folder with train/ (default: one that is made)"
    )
    parser.add_argument(
        "--images", type=int, default=1024, help="images in the folder that is made"
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument(
        "--quick", action="store_true", help="eight images and one turn, to see that it works"
    )
    args = parser.parse_args(argv)
    if args.quick:
        args.images, args.batch_size, args.workers, args.turns = 8, 4, [1], 1
    # one thread, as in a data worker
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        # a folder that is given, or photographs that are made
        root = args.data_dir or write_photographs(Path(folder), args.images)
        print(f"{args.turns} turns, batch {args.batch_size}, {machine()}\n")
        rows = [row for workers in args.workers for row in measure(root, workers, args)]
        print(table(("workers", "loader", "images/s", "x timm"), rows))


def make_epoch(name: str, root: Path, workers: int, batch_size: int) -> Callable[[int], int]:
    """Return a function that loads an epoch and returns its number of images."""
    # the same flags for all; timm's loader decodes with Pillow
    args, _ = parse(
        train_parser(),
        [
            "--data-dir",
            str(root),
            "--num-classes",
            "2",
            "--batch-size",
            str(batch_size),
            "--workers",
            str(workers),
            "--color-jitter",
            "0",
            "--decoder",
            "pil" if name == "timm" else name,
        ],
    )
    settings, cpu = TrainSettings.from_flags(vars(args)), torch.device("cpu")
    if name != "timm":
        loader = create_train_loader(
            create_dataset("", str(root), "train"),
            train_views(settings, CONFIG, 2),
            CONFIG,
            loader_settings(settings.data, Precision(cpu), World(cpu, 0, 1, False)),
        )
        return lambda epoch: sum(len(batch.input) for batch in loader.epoch(epoch))
    # timm's own dataset and loader
    kwargs = train_views(settings, CONFIG, 2).transform
    kwargs.pop("re_num_splits")
    loader = create_loader(
        timm.data.create_dataset("", root=str(root), split="train"),
        input_size=CONFIG["input_size"],
        batch_size=batch_size,
        num_workers=workers,
        device=cpu,
        **kwargs,
    )
    return lambda epoch: sum(len(images) for images, _ in loader)


def measure(root: Path, workers: int, args: argparse.Namespace) -> list[tuple[object, ...]]:
    """Return a row for each loader."""
    # an epoch each in turns
    rates = take_turns(
        {name: rate_of(make_epoch(name, root, workers, args.batch_size)) for name in LOADERS},
        args.turns,
    )
    rows = []
    for name in LOADERS:
        to_timm = ratios(rates[name], rates["timm"])
        rows.append((workers, name, f"{statistics.median(rates[name]):.0f}", spread(to_timm)))
    return rows


def rate_of(epoch: Callable[[int], int]) -> Callable[[], float]:
    """Return a function that loads the next epoch and returns its images per second."""
    numbers = itertools.count()

    def measure() -> float:
        started = time.perf_counter()
        return epoch(next(numbers)) / (time.perf_counter() - started)

    return measure


if __name__ == "__main__":
    main()
