#!/usr/bin/env python3
"""What --decoder torchvision and --decoder fast change of photographs, against Pillow: pixels, and a model's answers.

    python -m benchmarks.decoders PHOTOGRAPHS --checkpoint WEIGHTS
    python -m benchmarks.decoders PHOTOGRAPHS --size 32

PHOTOGRAPHS is a folder of class folders, or a tar file of them, of which --images are taken, evenly spread. The views
are those of plain evaluation, and of training with crops and flips alone, alike for all decoders. A row is of all
pixels of all views: the share of views that `fast` has decoded at a part of their size (all others are as with
torchvision), the mean of the absolute difference in levels of 255, and, with the weights of a model, the share of views
of which it says the same class. --enlarge makes large photographs of small ones; they have less detail than a camera
would have seen, so that less can be lost. Small views of photographs as they are (--size 32) have all of it.
"""

import argparse
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks.measure import table
from w2s_plugins.data import create_dataset
from w2s_plugins.data.decoding import with_decoder
from w2s_plugins.data.views import ViewKey, hash_seed, seed_generators

DECODERS = ("pil", "torchvision", "fast")
BATCH = 32


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--size", type=int, default=224, help="of the views")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--enlarge", type=int, metavar="N", help="resize the shorter side of each to N pixels")
    parser.add_argument("--quality", type=int, default=95, help="of the JPEG files that --enlarge writes")
    parser.add_argument("--model", default="tf_efficientnet_lite0", help="whose answers are compared")
    parser.add_argument("--checkpoint", metavar="FILE", help="its weights (without them: pixels alone)")
    args = parser.parse_args(argv)
    model = timm.create_model(args.model, checkpoint_path=args.checkpoint).eval() if args.checkpoint else None
    with tempfile.TemporaryDirectory() as folder:
        place = args.photographs
        dataset = create_dataset("", str(place.parent), place.name)
        indices = sorted(random.Random(0).sample(range(len(dataset)), min(args.images, len(dataset))))
        if args.enlarge:
            _enlarge(dataset, indices, args, Path(folder) / "enlarged" / "all")
            dataset = create_dataset("", folder, "enlarged")
            indices = range(len(dataset))
        rows = [row for training in (False, True) for row in compare(dataset, indices, training, model, args)]
    shown = f", shorter side enlarged to {args.enlarge} px" if args.enlarge else ""
    print(f"{place.name}, {len(indices)} photographs{shown}; views of {args.size} px\n")
    print(table(("views", "decoder", "decoded smaller", "mean difference, levels", "same class"), rows))


def compare(
        dataset: Dataset,
        indices: Sequence[int],
        training: bool,
        model: nn.Module | None,
        args: argparse.Namespace,
) -> Iterator[tuple[str, ...]]:
    """Return a row for each decoder but Pillow."""
    config = resolve_data_config(model=model) if model else dict(mean=(0.5,) * 3, std=(0.5,) * 3)
    transform = create_transform(args.size, is_training=training, use_prefetcher=True, color_jitter=0,
                                 interpolation="random" if training else "bicubic")
    views = {name: torch.stack(_views(dataset, indices, with_decoder(transform, dataset, name, "images")))
             for name in DECODERS}
    answers = {name: _answers(model, images, config) for name, images in views.items()} if model else None
    for name in DECODERS[1:]:
        difference = (views[name].float() - views["pil"].float()).abs()
        smaller = (views[name] != views["torchvision"]).flatten(1).any(1).float().mean()
        same = (answers[name] == answers["pil"]).float().mean() if answers else torch.nan
        yield ("training" if training else "evaluation", name, f"{smaller:.2f}", f"{difference.mean():.3f}",
               f"{same:.3f}")


def _views(dataset: Dataset, indices: Sequence[int], transform: object) -> list[Tensor]:
    """Return one view of each photograph, (3, H, W) uint8."""
    dataset.transform, found = transform, []
    for index in indices:
        seed_generators(hash_seed(42, *ViewKey(0, index)))
        found.append(torch.as_tensor(dataset[index][0]))
    return found


@torch.inference_mode()
def _answers(model: nn.Module, images: Tensor, config: dict[str, object]) -> Tensor:
    """Return the classes that a model says, (N,)."""
    mean, std = (255 * torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    return torch.cat([model((batch - mean) / std).argmax(1) for batch in images.split(BATCH)])


def _enlarge(dataset: Dataset, indices: Sequence[int], args: argparse.Namespace, folder: Path) -> None:
    folder.mkdir(parents=True)
    for index in indices:
        image = dataset[index][0].convert("RGB")
        factor = args.enlarge / min(image.size)
        image.resize([round(factor * side) for side in image.size], Image.Resampling.BICUBIC).save(
            folder / f"{index:06}.jpg", quality=args.quality)


if __name__ == "__main__":
    main()
