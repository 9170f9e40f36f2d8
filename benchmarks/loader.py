#!/usr/bin/env python3
"""Images per second of timm's training loader and of this project's, on the same folder of JPEG files.

    python -m benchmarks.loader
    python -m benchmarks.loader --cases 4000x3000:224 --workers 8 16
    python -m benchmarks.loader --data-dir /data/imagenet --cases :224 --batch-size 256

Flags are those of plain training: random crops with random interpolation and flips, no colour jitter. The loaders take
turns, an epoch each, so that other work on the machine does not fall on one of them; ratios are to timm's loader in the
same turn. A case is the size of the photographs, which are made of scikit-learn's two unless --data-dir has some, and the
side of the images that are made of them. With --steps, an image's milliseconds in each step are printed instead, of one
process without workers, `fast` beside `pil`. On Linux, the milliseconds of a processor that workers need for an image and the
memory of the largest of them are printed, too.
"""

import argparse
import io
import itertools
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from PIL import Image
from timm.data import create_loader, create_transform
from timm.data.loader import fast_collate

from benchmarks.measure import machine, ratios, spread, table, take_turns, write_photographs
from w2s_plugins.cli import parse, train_parser
from w2s_plugins.data import create_dataset, create_train_loader
from w2s_plugins.data.decoding import (
    FastTransform,
    decode_at,
    draw_window,
    read_header,
    resize_part,
    to_mode,
)
from w2s_plugins.distributed.world import Precision, World
from w2s_plugins.settings.composite import TrainSettings
from w2s_plugins.training.loaders import loader_settings, train_views

LOADERS = ("timm", "pil", "fast")
CONFIG = dict(
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    interpolation="bicubic",
)
CASES = "4000x3000:224", "1600x1200:224", "500x375:224", "500x375:96"
DISTINCT = 16  # large photographs that differ


class Case(NamedTuple):
    """What is loaded: photographs (width, height), None for those of the user, and the side of the images."""

    photograph: tuple[int, int] | None
    side: int

    @classmethod
    def parse(cls, text: str) -> "Case":
        """Read WIDTHxHEIGHT:SIDE."""
        size, _, side = text.partition(":")
        width, _, height = size.partition("x")
        return cls((int(width), int(height)) if size else None, int(side))


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, help="folder with train/ (default: made)")
    parser.add_argument("--cases", nargs="+", default=CASES, metavar="WxH:SIDE")
    parser.add_argument(
        "--images", type=int, default=512, help="of 500 x 375; of larger ones fewer"
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", action="store_true", help="where the time goes")
    parser.add_argument(
        "--quick", action="store_true", help="eight images and one turn, to see that it works"
    )
    args = parser.parse_args(argv)
    if args.quick:
        args.images, args.batch_size, args.workers, args.turns = 8, 4, [1], 1
        args.cases = ["500x375:96"]
    # one thread, as in a data worker
    torch.set_num_threads(1)
    print(f"{args.turns} turns, batch {args.batch_size}, {machine()}\n")
    rows = []
    for text in args.cases:
        case = Case.parse(text)
        with tempfile.TemporaryDirectory() as folder:
            # a folder that is given, or photographs that are made: as many that an epoch takes about as long
            root = args.data_dir
            if case.photograph is not None:
                count = args.images * 500 // case.photograph[0]
                count = max(args.batch_size, count // args.batch_size * args.batch_size)
                root = write_photographs(
                    Path(folder), count, size=case.photograph, distinct=DISTINCT
                )
            if args.steps:
                rows += [(text, *row) for row in measure_steps(root, case.side, args.batch_size)]
                continue
            for workers in args.workers:
                rows += [(text, *row) for row in measure(root, case.side, workers, args)]
    if args.steps:
        print(table(("case", "decoder", *STEPS), rows))
        return
    columns = "case", "workers", "loader", "images/s", "x timm", "CPU ms an image", "MB of a worker"
    print(table(columns, rows))


class Load(NamedTuple):
    """An epoch of a loader.

    Args:
        images: how many.
        cpu: seconds of the workers' processors; nan where the system does not tell.
        memory: MB of the largest worker so far.
    """

    images: int
    cpu: float
    memory: float


def make_epoch(
    name: str, root: Path, side: int, workers: int, batch_size: int
) -> Callable[[int], Load]:
    """Return a function that loads an epoch."""
    # the same flags for all; timm's loader decodes with Pillow
    decoder = "pil" if name == "timm" else name
    flags = (
        f"--data-dir {root} --num-classes 2 --batch-size {batch_size} --workers {workers} --color-jitter 0 "
        f"--decoder {decoder}"
    )
    args, _ = parse(train_parser(), flags.split())
    settings, cpu = TrainSettings.from_flags(vars(args)), torch.device("cpu")
    config = dict(CONFIG, input_size=(3, side, side))
    if name != "timm":
        loader = create_train_loader(
            create_dataset("", str(root), "train"),
            train_views(settings, config, 2),
            config,
            loader_settings(settings.data, Precision(cpu), World(cpu, 0, 1, False)),
        )
        return lambda epoch: load(len(batch.input) for batch in loader.epoch(epoch))
    # timm's own dataset and loader
    kwargs = train_views(settings, config, 2).transform
    kwargs.pop("re_num_splits")
    loader = create_loader(
        timm.data.create_dataset("", root=str(root), split="train"),
        input_size=config["input_size"],
        batch_size=batch_size,
        num_workers=workers,
        device=cpu,
        **kwargs,
    )
    return lambda epoch: load(len(images) for images, _ in loader)


def load(sizes: Iterator[int]) -> Load:
    """Load all batches, of which the sizes come."""
    # the workers of other loaders wait meanwhile
    before = cpu_seconds()
    images = sum(sizes)
    after = cpu_seconds()
    return Load(images, sum(after[pid] - before.get(pid, 0.0) for pid in after), largest_worker())


def cpu_seconds() -> dict[int, float]:
    """Return the processor time of each child process."""
    found = {}
    for child in multiprocessing.active_children():
        file = Path(f"/proc/{child.pid}/stat")
        if not file.exists():
            return {0: math.nan}
        fields = file.read_text().rpartition(")")[2].split()
        found[child.pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def largest_worker() -> float:
    """Return the memory, in MB, that the largest child process has had at once and shares with no other."""
    sizes = [math.nan]
    for child in multiprocessing.active_children():
        file = Path(f"/proc/{child.pid}/smaps_rollup")
        if file.exists():
            lines = [line.split() for line in file.read_text().splitlines()]
            sizes.append(
                sum(int(line[1]) for line in lines if line[0].startswith("Private_")) / 1024
            )
    return max(sizes[1:], default=math.nan)


def measure(
    root: Path, side: int, workers: int, args: argparse.Namespace
) -> list[tuple[object, ...]]:
    """Return a row for each loader."""
    loads: dict[str, list[Load]] = {name: [] for name in LOADERS}
    # an epoch each in turns
    rates = take_turns(
        {
            name: rate_of(make_epoch(name, root, side, workers, args.batch_size), loads[name])
            for name in LOADERS
        },
        args.turns,
    )
    rows = []
    for name in LOADERS:
        to_timm = ratios(rates[name], rates["timm"])
        cpu = statistics.median(1000 * one.cpu / one.images for one in loads[name])
        rows.append(
            (
                workers,
                name,
                f"{statistics.median(rates[name]):.0f}",
                spread(to_timm),
                f"{cpu:.1f}",
                f"{max(one.memory for one in loads[name]):.0f}",
            )
        )
    return rows


STEPS = "read", "header", "decode", "crop and resize", "other steps", "collate", "normalise"


def measure_steps(root: Path, side: int, batch_size: int) -> list[tuple[object, ...]]:
    """Return a row for each decoder: the milliseconds of a processor that each step takes of an image."""
    transform = create_transform(
        (3, side, side), is_training=True, color_jitter=0, use_prefetcher=True
    )
    files = sorted(root.rglob("*.jpg"))[:batch_size]
    rows = []
    for name in ("pil", "fast"):
        steps = FastTransform(transform)
        spent = dict.fromkeys(STEPS, 0.0)
        began = time.process_time()

        def step(what: str, spent: dict[str, float] = spent) -> None:
            nonlocal began
            now = time.process_time()
            spent[what] += now - began
            began = now

        views = []
        for file in files:
            data = file.read_bytes()
            step("read")
            if name == "pil":
                image = Image.open(io.BytesIO(data))
                step("header")
                image = to_mode(image, "RGB")
                step("decode")
                image = steps.first_step(image)
            else:
                header = read_header(data)
                window, size, mode = draw_window(steps.first_step, header.size)
                scale = header.scale(window, size)
                step("header")
                pixels = decode_at(data, header, scale)
                step("decode")
                image = resize_part(pixels, header.place(window, scale), size, mode)
            step("crop and resize")
            views.append((steps.other_steps(image), 0))
            step("other steps")
        images, _ = fast_collate(views)
        step("collate")
        mean, std = (torch.tensor(CONFIG[what]).view(3, 1, 1) * 255 for what in ("mean", "std"))
        images.float().sub_(mean).div_(std)
        step("normalise")
        rows.append((name, *(f"{1000 * spent[what] / len(files):.2f}" for what in STEPS)))
    return rows


def rate_of(epoch: Callable[[int], Load], loads: list[Load]) -> Callable[[], float]:
    """Return a function that loads the next epoch, notes it, and returns its images per second."""
    numbers = itertools.count()

    def measure() -> float:
        started = time.perf_counter()
        loads.append(epoch(next(numbers)))
        return loads[-1].images / (time.perf_counter() - started)

    return measure


if __name__ == "__main__":
    main()
