"""Corruptions of test images on the fly, after ImageNet-C (Benchmarking Neural Network Robustness to Common Corruptions
and Perturbations, 2019, arXiv 1903.12261): those of its kinds that need no files and no other package.

They are made of the image as it is stored, before the transform of any model, and drawn from a hash of the sample's
key: the same pixels for all models and runs, however they are loaded. Radii, which ImageNet-C gives for 224 pixels, are
scaled with the shorter side, in smaller images with its square root: few pixels leave little to blur.
"""

import hashlib
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F

from ..cli.forms import Corruption
from .datasets import class_names_of, known_labels
from .keys import sample_keys
from .views import seeded
from .wrapper import Wrapper, without_transform

PUBLISHED_SIDE = 224  # pixels that radii are given for


def _impulse(x: Tensor, share: float) -> Tensor:
    drawn = torch.rand_like(x)
    return torch.where(drawn < share / 2, 0.0, torch.where(drawn > 1 - share / 2, 1.0, x))


def _scaled(x: Tensor, radius: float) -> float:
    ratio = min(x.shape[-2:]) / PUBLISHED_SIDE
    return radius * (ratio if ratio > 1 else ratio ** 0.5)


def _disc(x: Tensor, radius: float) -> Tensor:
    # a disc of that radius, whose mean is what a lens out of focus shows
    radius = _scaled(x, radius)
    reach = min(max(1, round(radius)), min(x.shape[-2:]) - 1)
    axis = torch.arange(-reach, reach + 1)
    inside = (radius + 0.5 - (axis[:, None] ** 2 + axis ** 2).sqrt()).clamp(0, 1)  # a pixel on the rim counts in part
    # the border mirrors the image, so that it does not darken
    padded = torch.nn.functional.pad(x[:, None], [reach] * 4, mode="reflect")
    return torch.nn.functional.conv2d(padded, (inside / inside.sum())[None, None])[:, 0]


def _blur(x: Tensor, sigma: float) -> Tensor:
    sigma = _scaled(x, sigma)
    reach = min(max(1, round(4 * sigma)), min(x.shape[-2:]) - 1)
    return F.gaussian_blur(x, [2 * reach + 1] * 2, [sigma] * 2)


def _brighter(x: Tensor, more: float) -> Tensor:
    value = x.amax(dim=0, keepdim=True)  # of hue, saturation and value
    return torch.where(value > 0, x * (value + more).clamp(max=1) / value.clamp(min=1e-6), more)


def _flatter(x: Tensor, factor: float) -> Tensor:
    mean = x.mean(dim=(1, 2), keepdim=True)
    return (x - mean) * factor + mean


def _pixelate(x: Tensor, share: float) -> Tensor:
    # each block of pixels becomes its mean
    size = [max(1, int(side * share)) for side in x.shape[-2:]]
    small = torch.nn.functional.interpolate(x[None], size, mode="area")
    return torch.nn.functional.interpolate(small, x.shape[-2:], mode="nearest")[0]


# what is done to pixels (C, H, W) in [0, 1], and how much of it at severities 1 to 5
KINDS: dict[str, tuple[Callable[[Tensor, float], Tensor], Sequence[float]]] = {
    "gaussian_noise": (lambda x, sd: x + sd * torch.randn_like(x), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (lambda x, photons: torch.poisson(x * photons) / photons, (60, 25, 12, 5, 3)),
    "impulse_noise": (_impulse, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "speckle_noise": (lambda x, sd: x + x * sd * torch.randn_like(x), (0.15, 0.2, 0.35, 0.45, 0.6)),
    "gaussian_blur": (_blur, (1, 2, 3, 4, 6)),
    "defocus_blur": (_disc, (3, 4, 6, 8, 10)),
    "brightness": (_brighter, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_flatter, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "pixelate": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": (lambda x, quality: F.jpeg((255 * x).round().byte(), int(quality)) / 255, (25, 18, 15, 10, 7)),
}


class Corrupted(Wrapper):
    """A test set with a corruption of each image.

    Args:
        dataset: map-style, of images; its own transform is left alone.
        corruption: what is done to them.
    """

    transform: object = None

    def __init__(self, dataset: Dataset, corruption: Corruption):
        # images come as they are stored; the transform of a model is applied behind
        super().__init__(without_transform(dataset))
        self.dataset.transform, self.corruption = None, corruption
        self.keys, self.targets = sample_keys(dataset).values, known_labels(dataset, "--corruptions")
        names = class_names_of(dataset)
        if names is not None:
            self.classes = names

    def __getitem__(self, index: int) -> tuple[object, int]:
        image, label = self.dataset[index]
        # the same noise for a sample wherever it is loaded, and another one for each corruption
        key = f"{self.corruption.name}|{self.keys[index]}".encode(errors="surrogateescape")
        image = corrupt(image, self.corruption, int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "little"))
        return image if self.transform is None else self.transform(image), label


def corrupt(image: Image.Image, corruption: Corruption, seed: int) -> Image.Image:
    """Return the corrupted image, of the same mode and size; what is random in it follows the seed."""
    change, amounts = KINDS[corruption.kind]
    # drawn on the CPU in float32, so that all machines see the same
    pixels = F.pil_to_tensor(image).float() / 255
    with seeded(seed):
        pixels = change(pixels, amounts[corruption.severity - 1])
    return F.to_pil_image((255 * pixels.clamp(0, 1)).round().byte(), mode=image.mode)
