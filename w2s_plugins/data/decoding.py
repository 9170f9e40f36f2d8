"""JPEG files decoded and resized by torchvision in place of Pillow, where the transforms allow it.

Geometry and randomness stay those of timm's transform objects: they draw the same numbers in the same order. Only the
arithmetic of decoding and resizing is another, on 8-bit tensors with antialias, and it takes less time.

`create_dataset` returns timm's `ImageDataset` as a `FileDataset`; a loader gives it timm's transform, wrapped in a
`TensorTransform` where every step of it can be computed on 8-bit tensors. `FileDataset` then decodes grey and RGB JPEG
files with torchvision, and hands any other file, or one that torchvision refuses, to timm's own path before anything
random is drawn. Steps draw their parameters with timm's code in timm's order, so geometry and generators are those of
Pillow; CMYK, PNG and EXIF (ignored) come out as timm has them.

``--decoder nvjpeg`` has a `DeviceTransform`: of a file it draws the `View` and leaves the rest to the device
(`on_device`).

``--decoder fast`` has a `ScaledTransform` in its place: where the first step leaves at most half of the pixels in each
direction, libjpeg decodes 1/2, 1/4 or 1/8 of them, and Pillow resizes the same part of the image from these.
"""

import io
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from PIL import EpsImagePlugin, Image, UnidentifiedImageError
from timm.data import ImageDataset
from timm.data.transforms import MaybePILToTensor, RandomResizedCropAndInterpolation, ResizeKeepRatio
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms
from torchvision.io import decode_jpeg
from torchvision.transforms.functional import center_crop, pil_modes_mapping
from torchvision.transforms.v2 import functional as F

from ..cli.forms import STRICT_DECODERS
from ..errors import UserError, one_line
from ..files import special_kind
from .unreadable import UnreadableSample

_JPEG, _END = b"\xff\xd8\xff", b"\xff\xd9"
_SMOOTH = (transforms.InterpolationMode.BILINEAR, transforms.InterpolationMode.BICUBIC)  # what torch has with antialias

_HINTS = {"ColorJitter": " (off with --color-jitter 0)", "MaybeToTensor": " (because of --no-prefetcher)"}

_logger = logging.getLogger(__name__)

EpsImagePlugin.gs_binary = False  # a picture in PostScript is a program, which Pillow would have Ghostscript run


class FileDataset(ImageDataset):
    """timm's dataset of image files. Where its transform is a `TensorTransform`, JPEG files do without Pillow.

    Every file that torchvision refuses, and every other one that is not an 8-bit grey or RGB JPEG, is decoded as timm
    does. timm puts the next sample in the place of one that cannot be read; that would give it another sample's image
    under its own position, by which targets are cached and losses remember, and count a sample twice in an evaluation.
    Here such a sample is an `UnreadableSample`.
    """

    def __getitem__(self, index: int) -> tuple[object, int]:
        try:
            refuse_special_file(self.reader, index)
            file, target, *_ = self.reader[index]
            with file:
                image, transform = self._decode(file, index)
        except Exception as error:  # decoders raise whatever a broken file makes them stumble on
            raise self._unreadable(index, error) from error
        return image if transform is None else transform(image), -1 if target is None else target

    def _decode(self, file: BinaryIO, index: int) -> tuple["Tensor | Image.Image | bytes | Encoded", Callable | None]:
        """Return an image and what is still to be done with it."""
        transform = self.transform
        if self.load_bytes:
            return file.read(), transform
        if isinstance(transform, ScaledTransform):
            if (image := transform.take_first_step(file, self.input_img_mode)) is not None:
                return image, transform.rest
            transform = transform.whole
            file.seek(0)
        if isinstance(transform, TensorTransform):
            data = file.read()
            if isinstance(transform, DeviceTransform) and (view := transform.draw_for_device(data)) is not None:
                return Encoded(data, view, self._name(index)), None
            if (image := decode_rgb(data)) is not None:
                return image, transform.on_tensor
        file.seek(0)
        image = Image.open(file)
        return image.convert(self.input_img_mode) if self.input_img_mode else image.copy(), transform

    def _unreadable(self, index: int, error: Exception) -> UnreadableSample:
        return UnreadableSample(f"{self._name(index)}: cannot be read ({explain_unreadable(error)})")

    def _name(self, index: int) -> str:
        root = getattr(self.reader, "root", None)
        return str(Path(root, self.filename(index))) if root else f"sample {index}"


def refuse_special_file(source: object, index: int) -> None:
    """Raise `OSError` when a sample is a FIFO, a socket or a device, which a reader would wait for forever."""
    samples = getattr(source, "samples", None)
    path = None if samples is None else samples[index][0]
    if isinstance(path, str) and (kind := special_kind(path)):
        raise OSError(f"{kind}, not a regular file")


def explain_unreadable(error: Exception) -> str:
    """Return in a few words why a file could not be read, without its name."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of a format that Pillow does not know"
    text = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
    return text if isinstance(error, (OSError, Image.DecompressionBombError)) else f"{type(error).__name__}: {text}"


def decode_rgb(data: bytes) -> Tensor | None:
    """Decode a grey or RGB JPEG as Pillow does: no rotation by EXIF, no colour profile.

    Returns:
        (3, H, W) uint8, or None for any other file and for a broken one.

    Raises:
        Image.DecompressionBombError: the header says more pixels than Pillow takes; torchvision has no limit.
    """
    if _read_header(data) is None:
        return None
    try:
        image = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    except RuntimeError:
        return None
    return image.expand(3, -1, -1) if len(image) in (1, 3) else None  # CMYK has four


def _read_header(data: bytes) -> Image.Image | None:
    """Return an image of which nothing is decoded, None for what is no JPEG file."""
    if not data.startswith(_JPEG):
        return None
    try:
        return Image.open(io.BytesIO(data), formats=("JPEG",))
    except OSError:
        return None


class View(NamedTuple):
    """What a transform makes of an image.

    Args:
        box: the part that is resized: left, top, right, bottom.
        size: (H, W) that it gets.
        interpolation: of resizing.
        middle: (H, W) that are left of it, None for all.
        corner: which of its corners comes to the upper left: 0 that one itself, 1 the upper right, 2 the lower left, 3
            the lower right.
    """

    box: tuple[int, int, int, int]
    size: tuple[int, int]
    interpolation: transforms.InterpolationMode
    middle: tuple[int, int] | None
    corner: int


class Encoded(NamedTuple):
    """A JPEG file that is still to be decoded, what is wanted of it, and its name."""

    data: bytes
    view: View
    name: str


class TensorTransform:
    """A transform of timm that takes Pillow images, and decoded tensors with the same draws and the same geometry."""

    def __init__(self, transform: transforms.Compose):
        self.transform = transform

    def __call__(self, image: object) -> Tensor:
        return self.transform(image)

    def on_tensor(self, image: Tensor) -> Tensor:
        """Transform a (3, H, W) uint8 image."""
        return cut(image, self.draw(image))

    def draw(self, image: Tensor | Image.Image) -> View:
        """Draw a view of an image, of which only the size is asked."""
        first, *rest = self.transform.transforms
        window, middle, corners = _window(first, image), None, torch.arange(4).view(1, 2, 2)
        for step in rest:
            if isinstance(step, transforms.CenterCrop):
                middle = tuple(step.size)
            else:  # it draws whether it flips
                corners = step(corners)
        return View(*window, middle, int(corners[0, 0, 0]))


def cut(image: Tensor, view: View) -> Tensor:
    """Return a view of a (3, H, W) uint8 image."""
    left, top, right, bottom = view.box
    part = image[None, :, top:bottom, left:right]
    if image.device.type == "cpu":
        part = part.contiguous(memory_format=torch.channels_last)  # torch resizes these several times faster
    part = F.resize_image(part, list(view.size), view.interpolation, antialias=True)[0]
    if view.middle:
        part = center_crop(part, list(view.middle))
    flipped = [dim for bit, dim in ((1, -1), (2, -2)) if view.corner & bit]
    return part.flip(flipped) if flipped else part


class DeviceTransform(TensorTransform):
    """The same, for JPEG files that the device decodes."""

    def draw_for_device(self, data: bytes) -> View | None:
        """Return a view of a file, or None, with nothing drawn, for one that is left to the CPU.

        That is what `decode_rgb` leaves to Pillow, and besides what nvJPEG might take for something else: a file that
        does not end as JPEG files do, since it may be cut off, and one that says its colours are RGB.
        """
        header = _read_header(data)
        if header is None or header.mode not in ("L", "RGB") or header.info.get("adobe_transform") == 0:
            return None
        return self.draw(header) if data.endswith(_END) else None


class ScaledTransform:
    """A transform of timm whose first step takes a part of an image and resizes it.

    Args:
        steps: the transform.
        whole: what takes its place for images that are decoded in full, itself or a `TensorTransform` of it.
    """

    def __init__(self, steps: transforms.Compose, whole: Callable):
        self.first, self.rest, self.whole = steps.transforms[0], transforms.Compose(steps.transforms[1:]), whole

    def __call__(self, image: object) -> Tensor:
        return self.whole(image)

    def take_first_step(self, file: BinaryIO, mode: str | None) -> Image.Image | None:
        """Decode a JPEG file at the smallest size that is not below what the first step makes of its part of the image.

        Args:
            file: at its beginning.
            mode: of the result, None for the file's own.

        Returns:
            What the first step gives; None, with nothing drawn, for other files and where no smaller size will do.

        Raises:
            OSError: the file is broken.
        """
        if file.read(len(_JPEG)) != _JPEG:
            return None
        file.seek(0)
        image, state = Image.open(file, formats=("JPEG",)), random.getstate()
        (left, top, right, bottom), (height, width), interpolation = _window(self.first, image)
        spare = min((right - left) / width, (bottom - top) / height)
        scale = next((n for n in (8, 4, 2) if n <= spare), None)
        if scale is None:
            random.setstate(state)
            return None
        image.draft(image.mode, (image.width // scale, image.height // scale))
        part = tuple(edge / scale for edge in (left, top, right, bottom))
        decoded = image if mode in (None, image.mode) else image.convert(mode)
        return decoded.resize((width, height), pil_modes_mapping[interpolation], box=part)


def _window(
        step: Callable,
        image: Tensor | Image.Image,
) -> tuple[tuple[int, int, int, int], tuple[int, int], transforms.InterpolationMode]:
    """Return the part of an image that a step resizes, (left, top, right, bottom), the size (H, W) that it gets, and
    how, with the draws of the step.
    """
    if isinstance(step, RandomResizedCropAndInterpolation):
        top, left, height, width, mode = _draw_crop(step, image)
        return (left, top, left + width, top + height), tuple(step.size), mode
    height, width = F.get_size(image)
    if isinstance(step, ResizeKeepRatio):
        size = step.get_params(image, step.size, step.longest)
    elif isinstance(step.size, int):  # of the shorter side
        size = [int(step.size * side / min(height, width)) for side in (height, width)]
    else:
        size = step.size
    return (0, 0, width, height), tuple(size), step.interpolation


def unsupported_step(transform: object) -> str | None:
    """Return the name of the first step that needs Pillow, or None."""
    for step in getattr(transform, "transforms", [transform]):
        if not _is_supported(step):
            return type(step).__name__
    return None


def with_decoder(transform: object, dataset: Dataset, decoder: str, images: str) -> object:
    """Return the transform for the decoder that ``--decoder`` asks for, and log which one it is.

    Raises:
        UserError: torchvision or nvJPEG is asked for, and dataset or transform do not allow it.
    """
    source = dataset
    while not isinstance(source, FileDataset) and hasattr(source, "dataset"):
        source = source.dataset
    obstacle = None
    if not isinstance(source, FileDataset):
        obstacle = "the data are not image files"
    elif source.input_img_mode != "RGB" or source.load_bytes:
        obstacle = "it gives RGB only"
    elif step := unsupported_step(transform):
        obstacle = f"{step}{_HINTS.get(step, '')} needs Pillow"
    if decoder in STRICT_DECODERS and obstacle:
        raise UserError(f"--decoder {decoder}: cannot read the {images}: {obstacle}; use --decoder auto")
    tensors = decoder != "pil" and obstacle is None
    scaled = decoder == "fast" and isinstance(source, FileDataset) and _resizes_first(transform)
    if isinstance(source, FileDataset):
        because = f": {obstacle}" if obstacle and decoder in ("auto", "fast") else ""
        jpeg = "nvJPEG" if decoder == "nvjpeg" else "torchvision"
        name = f"{jpeg} for JPEG, Pillow for others" if tensors else f"Pillow{because}"
        _logger.info(f"Decoder of the {images}: {'large JPEG scaled, else ' if scaled else ''}{name}")
    kind = DeviceTransform if decoder == "nvjpeg" else TensorTransform
    whole = kind(transform) if tensors else transform
    return ScaledTransform(transform, whole) if scaled else whole


def _resizes_first(transform: object) -> bool:
    first = getattr(transform, "transforms", [transform])[0]
    return type(first) in (RandomResizedCropAndInterpolation, transforms.Resize, ResizeKeepRatio) and _is_supported(
        first)


def _is_supported(step: object) -> bool:
    if isinstance(step, transforms.ColorJitter):  # of strength 0, it only draws an order of nothing
        return not any((step.brightness, step.contrast, step.saturation, step.hue))
    if type(step) in (RandomResizedCropAndInterpolation, transforms.Resize, ResizeKeepRatio):
        modes = step.interpolation if isinstance(step.interpolation, tuple) else (step.interpolation,)
        return set(modes) <= set(_SMOOTH) and not getattr(step, "random_scale_prob", 0)
    return type(step) in (
        transforms.RandomHorizontalFlip, transforms.RandomVerticalFlip, transforms.CenterCrop, MaybePILToTensor)


def _draw_crop(
        step: RandomResizedCropAndInterpolation,
        image: Tensor | Image.Image,
) -> tuple[int, int, int, int, transforms.InterpolationMode]:
    """Return top, left, height, width and interpolation."""
    part, mode = step.get_params(image, step.scale, step.ratio), step.interpolation
    return *part, random.choice(mode) if isinstance(mode, tuple) else mode
