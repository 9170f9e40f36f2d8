#!/usr/bin/env python3
"""Seconds in which a model is asked about a folder of large photographs: by a loop of Pillow, and by this project.

    python -m benchmarks.predict
    python -m benchmarks.predict --images 1

`loop` opens each image with Pillow, applies timm's evaluation transform and asks the model in batches; `pass` is what
cached answers of a teacher, features and the command `predict` are made with; `predict` is that command, a process of its
own with its start, which the others do not have. All have one process that decodes. They take turns; ratios are to the
loop in the same turn.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config

from benchmarks.measure import machine, ratios, spread, table, take_turns, timed, write_photographs
from w2s_plugins.data.unlabeled import open_images
from w2s_plugins.distributed.world import World
from w2s_plugins.labels.store import Part
from w2s_plugins.teachers.stored import Pass, label_images

MODEL = "resnet18"


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", default="4000x3000", metavar="WxH")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two images and one turn")
    args = parser.parse_args(argv)
    if args.quick:
        args.images, args.size, args.turns = 2, "500x375", 1
    torch.set_num_threads(1)
    width, height = map(int, args.size.split("x"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = write_photographs(folder, args.images, size=(width, height), distinct=16) / "train"
        model = timm.create_model(MODEL).eval()
        save_file(model.state_dict(), folder / "weights.safetensors")
        ways: dict[str, Callable[[], object]] = {"loop": lambda: loop(model, root)}
        for decoder in ("pil", "fast"):
            ways[f"pass, {decoder}"] = lambda decoder=decoder: whole_pass(model, root, decoder)
            ways[f"predict, {decoder}"] = lambda decoder=decoder: predict(folder, root, decoder)
        seconds = take_turns({way: timed(call) for way, call in ways.items()}, args.turns)
    print(f"{args.images} of {args.size} px, {args.turns} turns, {machine()}\n")
    rows = [
        (way, f"{statistics.median(found):.2f}", spread(ratios(found, seconds["loop"])))
        for way, found in seconds.items()
    ]
    print(table(("way", "seconds", "x loop"), rows))


@torch.inference_mode()
def loop(model: torch.nn.Module, root: Path) -> None:
    """Ask about all images as one would by hand."""
    transform = create_transform(**resolve_data_config({}, model=model))
    files = sorted(root.rglob("*.jpg"))
    for first in range(0, len(files), 64):
        views = []
        for file in files[first : first + 64]:
            with Image.open(file) as image:
                views.append(transform(image.convert("RGB")))
        model(torch.stack(views))


def whole_pass(model: torch.nn.Module, root: Path, decoder: str) -> None:
    """Ask as cached answers, features and predict do."""
    images = open_images(str(root))
    how = Pass(World(torch.device("cpu"), 0, 1, False), 64, decoder=decoder)
    config = resolve_data_config({}, model=model)
    list(label_images(model, config, images, how, [Part(0, 0, len(images))]))


def predict(folder: Path, root: Path, decoder: str) -> None:
    """Run the command."""
    file = folder / "answers.csv"
    command = [sys.executable, "-m", "w2s_plugins.predictions", MODEL, root, "--output", file]
    command += [
        "--checkpoint",
        folder / "weights.safetensors",
        "--workers",
        0,
        "--decoder",
        decoder,
    ]
    subprocess.run([*map(str, command)], check=True, capture_output=True)
    file.unlink()


if __name__ == "__main__":
    main()
