"""Image files as samples, decoded by Pillow as timm does; what cannot be read is named."""

from pathlib import Path
from typing import BinaryIO

from PIL import EpsImagePlugin, Image, UnidentifiedImageError
from timm.data import ImageDataset

from ..errors import one_line
from .unreadable import UnreadableSample

EpsImagePlugin.gs_binary = False  # a picture in PostScript is a program, which Pillow would have Ghostscript run


class FileDataset(ImageDataset):
    """timm's dataset of image files, but that a file that cannot be read is an `UnreadableSample`.

    timm puts the next sample in the place of one that cannot be read; that would give it another sample's image under
    its own position, by which targets are cached and losses remember, and count a sample twice in an evaluation.
    """

    def __getitem__(self, index: int) -> tuple[object, int]:
        try:
            # whatever is wrong with the file, the error has its name
            file, target, *_ = self.reader[index]
            with file:
                image = file.read() if self.load_bytes else self._decode(file)
        except Exception as error:  # decoders raise whatever a broken file makes them stumble on
            raise self._unreadable(index, error) from error
        if self.transform is not None:
            image = self.transform(image)
        return image, -1 if target is None else target

    def _decode(self, file: BinaryIO) -> Image.Image:
        image = Image.open(file)
        return image.convert(self.input_img_mode) if self.input_img_mode else image.copy()

    def _unreadable(self, index: int, error: Exception) -> UnreadableSample:
        root = getattr(self.reader, "root", None)
        name = Path(root, self.filename(index)) if root else f"sample {index}"
        return UnreadableSample(f"{name}: cannot be read ({explain_unreadable(error)})")


def explain_unreadable(error: Exception) -> str:
    """Return in a few words why a file could not be read, without its name."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of a format that Pillow does not know"
    text = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
    return text if isinstance(error, (OSError, Image.DecompressionBombError)) else f"{type(error).__name__}: {text}"
