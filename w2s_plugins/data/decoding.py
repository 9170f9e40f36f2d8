"""Image files as samples: decoded at the scale that is needed, or by Pillow, as timm does (``--decoder pil``).

`create_dataset` returns timm's `ImageDataset` as a `FileDataset`. With ``--decoder fast``, the default, its transform is
a `FastTransform`, for grey and RGB JPEG files: libjpeg-turbo decodes no more pixels than the first step of timm's
transform, a crop or a resize, needs, and torch or Pillow makes that step. Pillow makes the steps that follow, and all of
any other file.

JPEG files hold 8 x 8 frequencies, of which libjpeg can leave out the high ones: it decodes at 1/2, 1/4 or 1/8 of the size
in a fraction of the time. `choose_scale` takes the smallest that leaves twice the pixels that the step returns. The step
draws its parameters with timm's code in timm's order, and the window lies where it is to the fraction of a pixel: geometry
and generators are those of Pillow, and only rounding is not (benchmarks/README.md says how much).

Whoever decodes, `to_mode` makes an image what the rest of the package sees.
"""

import io
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple, TypeGuard

import numpy as np
import simplejpeg
import torch
from PIL import EpsImagePlugin, ExifTags, Image, ImageOps, UnidentifiedImageError
from timm.data import auto_augment
from timm.data.dataset import ImageDataset, IterableImageDataset
from timm.data.readers.img_extensions import add_img_extensions, get_img_extensions
from timm.data.transforms import RandomResizedCropAndInterpolation, ResizeKeepRatio
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import pil_modes_mapping
from torchvision.transforms.v2 import functional as F

from ..errors import logger, one_line
from ..files import check_regular
from ..no_label import NO_LABEL
from .map_style import AnyDataset, MapDataset, Transform
from .readers import ImageReader, StreamReader
from .unreadable import UnreadableSample
from .wrapper import innermost

# the image that is resized has at least so many times the sides of what is wanted; what is stored says so
MARGIN = 2
SCALES = 8, 4, 2
# by how colours are stored: how much more is needed of an image; of an unknown kind all
COLOUR_SCALES = {"Gray": 1, "444": 1, "420": 1, "422": 2, "440": 2, "411": 4, "441": 4}
JPEG = b"\xff\xd8"  # how such a file begins
# EXIF's orientations of an image that lies on its side, and of those whose columns or rows are the other way round
SIDEWAYS = 5, 6, 7, 8
LEFT_IS_RIGHT = 2, 3, 6, 7
TOP_IS_BOTTOM = 3, 4, 7, 8

# what torch resizes with antialias, as Pillow does
SMOOTH = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)

# a picture in PostScript is a program, which Pillow would have Ghostscript run
EpsImagePlugin.gs_binary = False


def posterize(image: Image.Image, bits_to_keep: int, **_: object) -> Image.Image:
    """Keep so many bits of each level, as timm does. RandAugment may ask for none, which Pillow refuses from 13 on."""
    if bits_to_keep <= 0:
        return image.point(lambda _: 0)
    return auto_augment.posterize(image, bits_to_keep)


for name in ("Posterize", "PosterizeIncreasing", "PosterizeOriginal"):
    auto_augment.NAME_TO_OP[name] = posterize

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
    # which would copy an image that is in the mode already
    return image if image.mode == mode else image.convert(mode)


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

    def __getitem__(self, index: int) -> tuple[object, int | Tensor]:
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
        # Pillow gets what is no plain JPEG
        if isinstance(self.transform, FastTransform):
            start = file.read(len(JPEG))
            if start == JPEG:
                image = self.transform.make_first_step(start + file.read())
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


# steps that can be made of less than the whole image
FirstStep = RandomResizedCropAndInterpolation | transforms.Resize | ResizeKeepRatio


class FastTransform:
    """A transform of timm whose first step, a crop or a resize, is made of JPEG files at the scale that it needs.

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
        """Return what the first step makes of a file; None, with nothing drawn, for one that is left to Pillow.

        Raises:
            OSError, ValueError and others: the image is broken.
        """
        header = read_header(data)
        if header is None:
            return None
        window, size, mode = draw_window(self.first_step, header.size)
        scale = header.scale(window, size)
        pixels = decode_at(data, header, scale)
        # Pillow knows better what can be made of a broken file, or says what is wrong with it
        if pixels is None:
            scale, pixels = 1, np.array(to_mode(Image.open(io.BytesIO(data)), "RGB"))
        return resize_part(pixels, header.place(window, scale), size, mode)


class Header(NamedTuple):
    """What a JPEG file says of its image.

    Args:
        size: height and width, upright.
        orientation: EXIF's, 1 where nothing is to be turned.
        colour_scale: how much more of the pixels is needed than of the brightness alone. Of colours that are stored at
            half the height and width libjpeg decodes twice the share, but not of those at half the width alone.
    """

    size: tuple[int, int]
    orientation: int
    colour_scale: int = 1

    def scale(self, window: Sequence[int], size: Sequence[int]) -> int:
        """Return by what the image is divided for a window (top, left, height, width) of it that is resized to ``size``."""
        return max(1, choose_scale(window[2:], size) // self.colour_scale)

    def place(self, window: Sequence[int], scale: int) -> tuple[float, float, float, float]:
        """Return where a window (top, left, height, width) lies in the upright image at 1 / ``scale`` of its size: left,
        top, right and bottom in its pixels.
        """
        top, left, height, width = window
        # the last pixels of a file may stand for less than others, and where it is turned they are the first ones
        if self.orientation in LEFT_IS_RIGHT:
            left += -self.size[1] % scale
        if self.orientation in TOP_IS_BOTTOM:
            top += -self.size[0] % scale
        return left / scale, top / scale, (left + width) / scale, (top + height) / scale


def read_header(data: bytes) -> Header | None:
    """Return what a grey or RGB JPEG file says of its image; None for any other file, and for one of more pixels than
    Pillow takes.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG",))  # decodes nothing
    except Exception:  # whatever it is, Pillow says it
        return None
    if image.mode not in ("L", "RGB"):  # CMYK has four
        return None
    orientation = 1
    with suppress(Exception):  # broken EXIF says nothing
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    try:
        subsampling = simplejpeg.decode_jpeg_header(data)[3]
    except Exception:  # broken, so nothing is decoded at a scale
        return None
    width, height = image.size
    size = (width, height) if orientation in SIDEWAYS else (height, width)
    return Header(size, orientation, COLOUR_SCALES.get(subsampling, max(SCALES)))


def draw_window(
    step: FirstStep,
    size: tuple[int, int],
) -> tuple[Sequence[int], Sequence[int], InterpolationMode]:
    """Return what a step takes of an image of some size (H, W): top, left, height and width; the size (H, W) that it
    gives that; and how it is resized. The draws are the step's own.
    """
    # its steps ask an image for nothing but its size
    height, width = size
    image = torch.empty(3, height, width, device="meta")
    # a random crop, whose interpolation may be drawn, too
    if isinstance(step, RandomResizedCropAndInterpolation):
        part = step.get_params(image, step.scale, step.ratio)
        mode = step.interpolation
        if isinstance(mode, tuple):
            mode = random.choice(mode)
        return part, step.size, _smooth(mode)
    # a resize of the whole image
    if isinstance(step, ResizeKeepRatio):
        wanted = step.get_params(image, step.size, step.longest)
    elif isinstance(step.size, int):  # of the shorter side
        wanted = [int(step.size * side / min(height, width)) for side in (height, width)]
    else:
        wanted = step.size
    return (0, 0, height, width), wanted, _smooth(step.interpolation)


def choose_scale(window: Sequence[int], size: Sequence[int]) -> int:
    """Return by which of libjpeg's divisors an image is made smaller while it is decoded.

    Args:
        window: height and width of what is taken of the image.
        size: height and width that this is resized to. It stays at least `MARGIN` times as large.
    """
    fits = (
        scale
        for scale in SCALES
        if all(have >= MARGIN * scale * want for have, want in zip(window, size))
    )
    return next(fits, 1)


def decode_at(data: bytes, header: Header, scale: int) -> np.ndarray | None:
    """Decode a JPEG file at 1 / ``scale`` of its size, upright, without its colour profile.

    Returns:
        (H, W, 3) RGB in uint8; None of a broken file.
    """
    height, width = header.size
    if header.orientation in SIDEWAYS:
        height, width = width, height
    # the smallest of libjpeg's scales at which it is at least so large
    rows, columns = math.ceil(height / scale), math.ceil(width / scale)
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=rows, min_width=columns)
    except Exception:  # whatever it is, Pillow says it
        return None
    if header.orientation == 1:
        return pixels
    image = Image.fromarray(pixels)
    image.getexif()[ExifTags.Base.Orientation] = header.orientation
    ImageOps.exif_transpose(image, in_place=True)
    return np.array(image)


def resize_part(
    pixels: np.ndarray,
    box: tuple[float, float, float, float],
    size: Sequence[int],
    mode: InterpolationMode,
) -> Image.Image:
    """Return a part of an image, resized with antialias.

    Args:
        pixels: (H, W, 3) of the image in RGB.
        box: left, top, right and bottom of the part, in pixels.
        size: height and width of what is returned.
        mode: bilinear or bicubic.
    """
    height, width = size
    # timm may draw a window of no pixels of the smallest images, of which Pillow alone makes something
    if box[0] == box[2] or box[1] == box[3]:
        return Image.fromarray(pixels).crop(box).resize((width, height), pil_modes_mapping[mode])
    left, top = math.floor(box[0]), math.floor(box[1])
    # a copy of the part is resized several times faster than a view of it
    part = np.ascontiguousarray(pixels[top : math.ceil(box[3]), left : math.ceil(box[2])])
    # torch is several times faster, but takes whole pixels only
    if all(side == int(side) for side in box):
        planes = torch.from_numpy(part).permute(2, 0, 1)
        return F.to_pil_image(F.resize_image(planes[None], list(size), mode, antialias=True)[0])
    inside = box[0] - left, box[1] - top, box[2] - left, box[3] - top
    return Image.fromarray(part).resize((width, height), pil_modes_mapping[mode], box=inside)


def _smooth(mode: object) -> InterpolationMode:
    """Return how `can_be_fast` has said that an image can be resized."""
    if not isinstance(mode, InterpolationMode):
        raise TypeError(f"{mode!r} is no interpolation of torchvision")
    return mode


def can_be_fast(transform: object) -> TypeGuard[transforms.Compose]:
    """True where the first step of a transform can be made of less than the whole image."""
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


def describe_decoder(decoder: str) -> str:
    """Return what ``--decoder`` is in the description of stored answers, which are of its pixels."""
    return f"{decoder}, {MARGIN} times" if decoder == "fast" else decoder


def with_decoder(
    transform: Transform | None, dataset: AnyDataset, decoder: str
) -> Transform | None:
    """Return the transform for ``--decoder``, of a dataset whose files it can be made for."""
    # the dataset of files below slices and class lists
    source = innermost(dataset)
    of_rgb_files = (
        isinstance(source, FileDataset) and source.input_img_mode == "RGB" and not source.load_bytes
    )
    if decoder == "fast" and of_rgb_files and can_be_fast(transform):
        return FastTransform(transform)
    return transform
