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
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TypeGuard

import numpy as np
import torch
from PIL import EpsImagePlugin, ExifTags, Image, ImageOps, UnidentifiedImageError
from timm.data.dataset import ImageDataset, IterableImageDataset
from timm.data.readers.img_extensions import add_img_extensions, get_img_extensions
from timm.data.transforms import RandomResizedCropAndInterpolation, ResizeKeepRatio
from torch import Tensor
from torchvision import transforms
from torchvision.io import decode_jpeg
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ..errors import logger, one_line
from ..files import check_regular
from ..no_label import NO_LABEL
from .map_style import AnyDataset, MapDataset, Transform
from .readers import ImageReader, StreamReader
from .unreadable import UnreadableSample
from .wrapper import innermost

# what torch resizes with antialias, as Pillow does
SMOOTH = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)

# a picture in PostScript is a program, which Pillow would have Ghostscript run
EpsImagePlugin.gs_binary = False

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
    # a file that is cut off fails here, where its name is known, and not in a transform
    image.load()
    with suppress(Exception):  # broken EXIF says nothing
        ImageOps.exif_transpose(image, in_place=True)
    # Pillow would clip at 255
    if image.mode.startswith(("I", "F")) and image.mode != mode:
        levels = np.nan_to_num(np.asarray(image, dtype=np.float64))
        white = _white_of(image.mode, levels.max())
        levels = levels.clip(0, white) * (255 / white)
        image = Image.fromarray(np.rint(levels).astype(np.uint8))
    # Pillow warns of a palette whose transparency is lost in one step
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)


def _white_of(mode: str, largest: float) -> int:
    """Return the number that stands for white where ``largest`` is the largest of an image."""
    if mode != "F" or largest > 255:
        return 65535
    return 255 if largest > 1 else 1


class Stream(IterableImageDataset):
    """timm's dataset of a stream, whose images are `to_mode`'s.

    Args:
        reader: of timm, which gives images of Pillow.
        mode: of Pillow, that images are brought to.
    """

    def __init__(self, reader: StreamReader, mode: str):
        super().__init__(None, reader=reader)
        self.decoded = reader
        self.mode = mode
        reader.input_img_mode = ""  # timm's reader leaves them as they are

    def __iter__(self) -> Iterator[tuple[object, int]]:  # pyright: ignore[reportIncompatibleMethodOverride]  # untyped
        for image, target in self.decoded:
            image = to_mode(image, self.mode)
            yield self.transform(image) if self.transform else image, target


class FileDataset(ImageDataset, MapDataset):
    """timm's dataset of image files, but that a file that cannot be read is an `UnreadableSample`.

    timm puts the next sample in the place of one that cannot be read; that would give it another sample's image under
    its own position, by which targets are cached and losses remember, and count a sample twice in an evaluation.
    """

    reader: ImageReader
    input_img_mode: str
    load_bytes: bool
    transform: Transform | None

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
            name = Path(root, self.reader.filename(index)) if root else f"sample {index}"
            reason = explain_unreadable(error)
            raise UnreadableSample(f"{name}: cannot be read ({reason})") from error
        label = NO_LABEL if target is None else target
        return image if transform is None else transform(image), label

    def _decode(self, file: IO[bytes]) -> tuple[Image.Image | bytes, Transform | None]:
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
    if isinstance(error, OSError):
        return error.strerror or one_line(error)
    text = one_line(error)
    says_what_it_is = isinstance(error, Image.DecompressionBombError)
    return text if says_what_it_is else f"{type(error).__name__}: {text}"


# steps that torchvision can make
FirstStep = RandomResizedCropAndInterpolation | transforms.Resize | ResizeKeepRatio


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
        part = image[None, :, top : top + height, left : left + width]
        # torch resizes these several times faster
        part = part.contiguous(memory_format=torch.channels_last)
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
    if not isinstance(image, Tensor) or len(image) not in (1, 3):  # CMYK has four
        return None
    return image.expand(3, -1, -1)


def draw_window(
    step: FirstStep,
    image: Tensor,
) -> tuple[Sequence[int], Sequence[int], InterpolationMode]:
    """Return what a step takes of an image (top, left, height, width), the size (H, W) that it gives that, and how it
    is resized, with the step's own draws.
    """
    # a random crop, whose interpolation may be drawn, too
    if isinstance(step, RandomResizedCropAndInterpolation):
        part = step.get_params(image, step.scale, step.ratio)
        mode = step.interpolation
        if isinstance(mode, tuple):
            mode = random.choice(mode)
        return part, step.size, _smooth(mode)
    # a resize of the whole image
    height, width = F.get_size(image)
    if isinstance(step, ResizeKeepRatio):
        size = step.get_params(image, step.size, step.longest)
    elif isinstance(step.size, int):  # of the shorter side
        size = [int(step.size * side / min(height, width)) for side in (height, width)]
    else:
        size = step.size
    return (0, 0, height, width), size, _smooth(step.interpolation)


def _smooth(mode: object) -> InterpolationMode:
    """Return how `can_be_fast` has said that an image can be resized."""
    if not isinstance(mode, InterpolationMode):
        raise TypeError(f"{mode!r} is no interpolation of torchvision")
    return mode


def can_be_fast(transform: object) -> TypeGuard[transforms.Compose]:
    """True where torchvision can make the first step of a transform."""
    if not isinstance(transform, transforms.Compose):
        return False
    first = transform.transforms[0]
    if type(first) not in (RandomResizedCropAndInterpolation, transforms.Resize, ResizeKeepRatio):
        return False
    # torch resizes as Pillow does in these modes alone, and timm may draw one of several
    modes = first.interpolation
    if not isinstance(modes, tuple):
        modes = (modes,)
    return set(modes) <= set(SMOOTH) and not getattr(first, "random_scale_prob", 0)


def with_decoder(
    transform: Transform | None,
    dataset: AnyDataset,
    decoder: str,
    images: str,
) -> Transform | None:
    """Return the transform for ``--decoder``; of `fast` the log says what it does for these images."""
    if decoder != "fast":
        return transform
    # the dataset of files below slices and class lists
    source = innermost(dataset)
    of_rgb_files = (
        isinstance(source, FileDataset) and source.input_img_mode == "RGB" and not source.load_bytes
    )
    if of_rgb_files and can_be_fast(transform):
        logger.info(f"Decoder of the {images}: torchvision for JPEG, Pillow for others")
        return FastTransform(transform)
    logger.info(
        f"Decoder of the {images}: Pillow; fast is for RGB image files whose first step "
        "is a smooth resize"
    )
    return transform
