"""Image files as samples: decoded by Pillow, as timm does, or faster (``--decoder fast``).

`create_dataset` returns timm's `ImageDataset` as a `FileDataset`. With ``--decoder fast`` its transform is a
`FastTransform`: of a grey or RGB JPEG file torchvision makes the decoding and the first step of timm's transform, a
crop or a resize, on an 8-bit tensor. Pillow makes the steps that follow, and all of any other file.

The first step draws its parameters with timm's code in timm's order, so geometry and generators are those of Pillow.
Only the rounding of the resize is another: 0.004 of 255 levels on average.

Whoever decodes, `to_mode` makes an image what the rest of the package sees.
"""

import io
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import EpsImagePlugin, ExifTags, Image, ImageOps, UnidentifiedImageError
from timm.data import ImageDataset, IterableImageDataset, add_img_extensions, get_img_extensions
from timm.data.transforms import RandomResizedCropAndInterpolation, ResizeKeepRatio
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms
from torchvision.io import decode_jpeg
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ..errors import logger, one_line
from ..files import check_regular
from .unreadable import UnreadableSample

# what torch resizes with antialias, as Pillow does
SMOOTH = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)

EpsImagePlugin.gs_binary = False  # a picture in PostScript is a program, which Pillow would have Ghostscript run

# timm's readers list .png, .jpg and .jpeg unless they are told more
add_img_extensions((".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
with suppress(ImportError):  # an extra
    import pillow_heif

    pillow_heif.register_heif_opener()
    add_img_extensions((".heic", ".heif", ".hif"))


class ImageSuffixes(dict):
    """The suffixes of images, in lower case, such as .png. It counts the others that it is asked for."""

    def __init__(self):
        super().__init__(dict.fromkeys(get_img_extensions()))
        self.others = Counter()

    def __contains__(self, suffix: object) -> bool:
        known = super().__contains__(suffix)
        if suffix and not known:  # a file may have none
            self.others[suffix] += 1
        return known

    def log_others(self, where: str) -> str:
        """Log how many files are not read, by their suffixes, if there are any.

        Args:
            where: begins the line.

        Returns:
            What the line says, in brackets; empty if there is none.
        """
        others = self.others
        if not others:
            return ""
        # the most frequent ones: there may be as many suffixes as files
        named = ", ".join(f"{suffix} ({count})" for suffix, count in others.most_common(6))
        install = "; pip install pillow-heif, and .heic is read" if ".heic" in others else ""
        text = f"{others.total()} file(s) are not read: {named}{install}"
        logger.info(f"{where}: {text}")
        return f" ({text})"


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Return a decoded image as it is to be seen: upright, in 8 bits, in a mode of Pillow such as RGB.

    EXIF says which side is up. Whole numbers of more than 8 bits count as 16 bits. Floating-point numbers count as 0 to
    1 if none is larger, else as 0 to 255, else as 16 bits. Transparency is dropped, as Pillow does: the colour below it
    is seen.

    Raises:
        OSError, ValueError and others: the image is broken, or Pillow cannot convert it.
    """
    image.load()
    with suppress(Exception):  # broken EXIF says nothing
        ImageOps.exif_transpose(image, in_place=True)
    # Pillow would clip at 255
    if image.mode.startswith(("I", "F")) and image.mode != mode:
        levels = np.nan_to_num(np.asarray(image, dtype=np.float64))
        white = 65535 if image.mode != "F" or levels.max() > 255 else 255 if levels.max() > 1 else 1
        image = Image.fromarray(np.rint(levels.clip(0, white) * (255 / white)).astype(np.uint8))
    # Pillow warns of a palette whose transparency is lost in one step
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)


class Stream(IterableImageDataset):
    """timm's dataset of a stream, whose images are `to_mode`'s.

    Args:
        reader: of timm, which gives images of Pillow.
        mode: of Pillow, that images are brought to.
    """

    def __init__(self, reader: object, mode: str):
        super().__init__(None, reader=reader)
        self.mode, reader.input_img_mode = mode, ""  # timm's reader leaves them as they are

    def __iter__(self) -> Iterator[tuple[object, int]]:
        for image, target in self.reader:
            image = to_mode(image, self.mode)
            yield self.transform(image) if self.transform else image, target


class FileDataset(ImageDataset):
    """timm's dataset of image files, but that a file that cannot be read is an `UnreadableSample`.

    timm puts the next sample in the place of one that cannot be read; that would give it another sample's image under
    its own position, by which targets are cached and losses remember, and count a sample twice in an evaluation.
    """

    def __getitem__(self, index: int) -> tuple[object, int]:
        try:
            # timm's readers would wait for a FIFO, a socket or a device forever
            samples = getattr(self.reader, "samples", None)
            if samples is not None and isinstance(samples[index][0], str):
                check_regular(samples[index][0])
            file, target, *_ = self.reader[index]
            with file:
                image, transform = self._decode(file)
        except Exception as error:  # decoders raise whatever a broken file makes them stumble on
            root = getattr(self.reader, "root", None)
            name = Path(root, self.filename(index)) if root else f"sample {index}"
            raise UnreadableSample(f"{name}: cannot be read ({explain_unreadable(error)})") from error
        if transform is not None:
            image = transform(image)
        return image, -1 if target is None else target

    def _decode(self, file: BinaryIO) -> tuple[Image.Image | bytes, Callable | None]:
        """Return an image and what is still to be done with it."""
        if self.load_bytes:
            return file.read(), self.transform
        # torchvision decodes and makes the first step; Pillow gets what is no plain JPEG
        if isinstance(self.transform, FastTransform):
            image = self.transform.make_first_step(file.read())
            if image is not None:
                return image, self.transform.other_steps
            file.seek(0)
        return to_mode(Image.open(file), self.input_img_mode), self.transform


def explain_unreadable(error: Exception) -> str:
    """Return in a few words why a file could not be read, without its name."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of a format that Pillow does not know"
    text = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
    return text if isinstance(error, (OSError, Image.DecompressionBombError)) else f"{type(error).__name__}: {text}"


class FastTransform:
    """A transform of timm whose first step, a crop or a resize, torchvision makes of JPEG files.

    Args:
        steps: the transform; `can_be_fast` says whether it can be one.
    """

    def __init__(self, steps: transforms.Compose):
        self.steps = steps
        self.first_step = steps.transforms[0]
        self.other_steps = transforms.Compose(steps.transforms[1:])

    def __call__(self, image: object) -> object:
        return self.steps(image)

    def make_first_step(self, data: bytes) -> Image.Image | None:
        """Return what the first step makes of a file; None, with nothing drawn, for one that is left to Pillow."""
        # nothing may be drawn before it is known who decodes
        image = decode_rgb(data)
        if image is None:
            return None
        (top, left, height, width), size, interpolation = draw_window(self.first_step, image)
        part = image[None, :, top:top + height, left:left + width]
        part = part.contiguous(memory_format=torch.channels_last)  # torch resizes these several times faster
        resized = F.resize_image(part, list(size), interpolation, antialias=True)[0]
        return F.to_pil_image(resized)


def decode_rgb(data: bytes) -> Tensor | None:
    """Decode a grey or RGB JPEG as Pillow does, without its colour profile.

    Returns:
        (3, H, W) uint8, or None for one that EXIF says to turn, a broken one, one of more pixels than Pillow takes
        (torchvision has no limit), and any other file.
    """
    try:
        header = Image.open(io.BytesIO(data), formats=("JPEG",))  # decodes nothing
        if header.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            return None
        image = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    except Exception:  # whatever it is, Pillow says it
        return None
    return image.expand(3, -1, -1) if len(image) in (1, 3) else None  # CMYK has four


def draw_window(step: Callable, image: Tensor) -> tuple[Sequence[int], Sequence[int], InterpolationMode]:
    """Return what a step takes of an image (top, left, height, width), the size (H, W) that it gives that, and how it
    is resized, with the step's own draws.
    """
    # a random crop, whose interpolation may be drawn, too
    if isinstance(step, RandomResizedCropAndInterpolation):
        part = step.get_params(image, step.scale, step.ratio)
        mode = random.choice(step.interpolation) if isinstance(step.interpolation, tuple) else step.interpolation
        return part, step.size, mode
    # a resize of the whole image
    height, width = F.get_size(image)
    if isinstance(step, ResizeKeepRatio):
        size = step.get_params(image, step.size, step.longest)
    elif isinstance(step.size, int):  # of the shorter side
        size = [int(step.size * side / min(height, width)) for side in (height, width)]
    else:
        size = step.size
    return (0, 0, height, width), size, step.interpolation


def can_be_fast(transform: object) -> bool:
    """True where torchvision can make the first step of a transform."""
    first = getattr(transform, "transforms", [transform])[0]
    if type(first) not in (RandomResizedCropAndInterpolation, transforms.Resize, ResizeKeepRatio):
        return False
    modes = first.interpolation if isinstance(first.interpolation, tuple) else (first.interpolation,)
    return set(modes) <= set(SMOOTH) and not getattr(first, "random_scale_prob", 0)


def with_decoder(transform: object, dataset: Dataset, decoder: str, images: str) -> object:
    """Return the transform for ``--decoder``; of `fast` the log says what it does for these images."""
    if decoder != "fast":
        return transform
    # the dataset of files below slices and class lists
    source = dataset
    while not isinstance(source, FileDataset) and hasattr(source, "dataset"):
        source = source.dataset
    of_files = isinstance(source, FileDataset) and source.input_img_mode == "RGB" and not source.load_bytes
    if of_files and can_be_fast(transform):
        logger.info(f"Decoder of the {images}: torchvision for JPEG, Pillow for others")
        return FastTransform(transform)
    logger.info(f"Decoder of the {images}: Pillow; fast is for RGB image files whose first step is a smooth resize")
    return transform
