"""Image files as timm has them: brought to one mode, not rotated."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.parts import write_folder
from w2s_plugins.data import create_dataset


def save_exif(image: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown rotated
    image.save(path, exif=exif)


def deep(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


FILES: dict[str, tuple[str, Callable[[Image.Image, Path], None]]] = {
    "grey": ("jpg", lambda image, path: image.convert("L").save(path)),
    "rotated by EXIF": ("jpg", save_exif),
    "rubbish at the end": ("jpg", lambda image, path: (image.save(path), path.write_bytes(path.read_bytes() + b"rub"))),
    "CMYK": ("jpg", lambda image, path: image.convert("CMYK").save(path)),
    "PNG called JPEG": ("jpg", lambda image, path: image.save(path, "PNG")),
    "PNG alpha": ("png", lambda image, path: image.convert("RGBA").save(path)),
    "PNG 16 bit": ("png", lambda image, path: deep(image).save(path)),
}


@pytest.mark.parametrize("case", FILES)
def test_files_are_brought_to_one_mode(tmp_path: Path, case: str) -> None:
    suffix, save = FILES[case]
    file = write_folder(tmp_path, {"train": 3}) / "train" / "class0" / f"a.{suffix}"
    save(Image.effect_noise((40, 30), 90).convert("RGB"), file)
    dataset = create_dataset("", str(tmp_path), "train")
    number = dataset.filenames(absolute=True).index(str(file))
    image, label = dataset[number]
    assert (image.mode, image.size, label) == ("RGB", (40, 30), 0)
    assert np.array_equal(np.asarray(image), np.asarray(Image.open(file).convert("RGB")))
