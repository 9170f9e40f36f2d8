"""What the benchmarks share: turns, ratios with their spread, tables, the machine's description, images."""

import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_sample_images

NOISE = 6.0  # levels: a photograph of 12 megapixels has 3 MB then


def take_turns(measures: Mapping[str, Callable[[], float]], turns: int) -> dict[str, list[float]]:
    """Let things be measured one after the other, several times over, so that other work falls on all of them.

    Args:
        measures: by name, what measures once and returns the figure.
        turns: rounds that count, after one that does not.

    Returns:
        By name, the figure of each turn. Every other turn goes backwards, so that none always follows the same one.
    """
    figures: dict[str, list[float]] = {name: [] for name in measures}
    for turn in range(-1, turns):
        # there and back, so that none has always the same before it
        for name in list(measures) if turn % 2 == 0 else reversed(list(measures)):
            figure = measures[name]()
            if turn >= 0:
                figures[name].append(figure)
    return figures


def timed(call: Callable[[], object]) -> Callable[[], float]:
    """Return a function that makes the call and returns its seconds, those of a CUDA device that is in use included."""

    def measure() -> float:
        started = time.perf_counter()
        call()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter() - started

    return measure


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Return the ratio of each turn."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def spread(values: Sequence[float]) -> str:
    """Return the median and, in brackets, lower and upper quartile."""
    low, high = np.quantile(values, (0.25, 0.75))
    return f"{statistics.median(values):.3f} ({low:.3f} to {high:.3f})"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table, its first column to the left and the others to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (header, rule, *rows))


def machine() -> str:
    """Return one line on processor, cores, PyTorch's threads, and versions."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    # the name of the processor, where the system tells it
    name = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
    cuda = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{name} ({torch.backends.cpu.get_cpu_capability()}), {os.cpu_count()} core(s), "
        f"{torch.get_num_threads()} thread(s){cuda}, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}, timm {timm.__version__}"
    )


def write_photographs(
    root: Path,
    count: int,
    split: str = "train",
    size: tuple[int, int] = (500, 375),
    distinct: int | None = None,
) -> Path:
    """Write JPEG files of random crops of scikit-learn's two photographs, ``root/split/class0`` and ``class1``.

    Args:
        root: folder.
        count: files.
        split: its name.
        size: width and height. Larger ones than 500 x 375 get the noise of a sensor, without which an enlarged crop
            would be a smaller file than a photograph is.
        distinct: files that differ, all others are copies; None for all.
    """
    # the same crops in every run
    rng = np.random.default_rng(0)
    photographs = [Image.fromarray(p) for p in load_sample_images().images]
    for i in range(count if distinct is None else min(count, distinct)):
        photograph = photographs[i % 2]
        width = int(
            rng.integers(250, 500)
        )  # of the photograph, which has 640 x 427: larger images are enlarged
        height = width * size[1] // size[0]
        left, top = (
            int(rng.integers(0, whole - part))
            for whole, part in zip(photograph.size, (width, height))
        )
        crop = photograph.resize(
            size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height)
        )
        folder = root / split / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        if size[0] > 500:
            noise = rng.normal(0, NOISE, (size[1], size[0], 3))
            crop = Image.fromarray((np.asarray(crop) + noise).clip(0, 255).astype(np.uint8))
        crop.save(folder / f"{i:05}.jpg", quality=95 if size[0] <= 500 else 90)
    for i in range(distinct or count, count):
        folder = root / split / f"class{i % 2}"
        shutil.copy(folder / f"{i % (distinct or count):05}.jpg", folder / f"{i:05}.jpg")
    return root
