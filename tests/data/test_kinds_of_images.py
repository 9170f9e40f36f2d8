"""An image is seen upright, in 8 bits and in its own colours, whatever its file is like and wherever that lies."""

import itertools
import logging
import os
import re
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from tests.parts import assert_refused
from tests.processes import python
from w2s_plugins.data import create_dataset
from w2s_plugins.data.decoding import to_mode
from w2s_plugins.data.unlabeled import find_shards, open_shards, open_unlabeled

COLOURS = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
LEVELS = COLOURS[..., 0]


def turned(side: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = side
    return exif


def write(path: Path, image: Image.Image, **how: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **how)
    return path


def seen(dataset: Dataset) -> dict[str, np.ndarray]:
    names = [Path(name).name for name in dataset.filenames()]
    return {name: np.asarray(dataset[i][0]) for i, name in enumerate(names)}


# ---------------------------------------------------------------- what is in a file


def test_formats(tmp_path: Path) -> None:
    """Those without loss to the last bit; of HEIC, which pillow-heif reads, what that gives."""
    pillow_heif = pytest.importorskip("pillow_heif", reason="an extra")
    few = Image.fromarray(COLOURS).quantize(16).convert("RGB")
    for name in ("bmp", "tif", "TIFF", "png", "webp", "jfif"):
        write(tmp_path / f"a.{name}", few, lossless=True)
    write(tmp_path / "a.gif", few, save_all=True, append_images=[ImageOps.invert(few)])
    write(tmp_path / "a.heic", few.resize((120, 80)))
    views = seen(open_unlabeled(str(tmp_path)))
    assert np.array_equal(views.pop("a.heic"), pillow_heif.open_heif(tmp_path / "a.heic"))
    assert np.array_equal(views.pop("a.jfif"), Image.open(tmp_path / "a.jfif"))
    assert len(views) == 6 and all(np.array_equal(view, few) for view in views.values())


@pytest.mark.parametrize("side", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_every_side_up(tmp_path: Path, suffix: str, side: int) -> None:
    """What was turned before it was stored is seen as it was; to within rounding where it is stored with loss."""
    image = Image.fromarray(COLOURS)
    image.getexif()[0x0112] = {6: 8, 8: 6}.get(side, side)  # how to turn it back
    how = {"jpg": dict(quality=100, subsampling=0), "webp": dict(lossless=True)}.get(suffix, {})
    stored = ImageOps.exif_transpose(image)
    write(tmp_path / f"x.{suffix}", stored, exif=turned(side), **how)
    (view,) = seen(open_unlabeled(str(tmp_path))).values()
    assert view.shape == COLOURS.shape
    assert np.abs(view.astype(int) - COLOURS).max() <= (8 if suffix == "jpg" else 0)


@pytest.mark.parametrize(
    "exif", [b"rubbish", b"MM\0*\0\0\xff\xff", b"II*\0\x08\0\0\0\1\0\x12\1"], ids=repr
)
def test_broken_exif_says_nothing(tmp_path: Path, exif: bytes) -> None:
    path = write(tmp_path / "a.jpg", Image.fromarray(COLOURS), exif=b"Exif\0\0" + exif)
    assert np.array_equal(seen(open_unlabeled(str(tmp_path)))["a.jpg"], Image.open(path))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "suffix, levels",
    [
        ("png", LEVELS.astype(np.uint16) * 257),
        ("tif", LEVELS.astype(np.uint16) * 257),
        ("tif", LEVELS.astype(np.int32) * 257),
        ("tif", LEVELS.astype(np.float32) / 255),
        ("tif", LEVELS.astype(np.float32)),
        ("tif", LEVELS.astype(np.float32) * 257),
    ],
    ids=lambda value: str(getattr(value, "dtype", value)),
)
def test_many_levels_are_scaled_and_not_clipped(
    tmp_path: Path, suffix: str, levels: np.ndarray, mode: str
) -> None:
    write(tmp_path / f"a.{suffix}", Image.fromarray(levels))
    (view,) = seen(open_unlabeled(str(tmp_path), mode)).values()
    assert np.array_equal(view, Image.fromarray(LEVELS).convert(mode))


@pytest.mark.parametrize(
    "levels, grey",
    [
        (np.array([-5, 128, 129, 32768, 70000], np.int32), [0, 0, 1, 128, 255]),
        (np.array([-1, 0.5, np.nan, 1], np.float32), [0, 128, 0, 255]),
        (np.array([-1, 0.5, 257, np.inf], np.float32), [0, 0, 1, 255]),
    ],
    ids=str,
)
def test_levels_out_of_range(levels: np.ndarray, grey: list[int]) -> None:
    image = Image.fromarray(levels[None])
    assert np.asarray(to_mode(image, "L"))[0].tolist() == grey
    kept = np.asarray(to_mode(image, image.mode))[0]  # who asks for them gets them
    assert np.array_equal(kept, levels, equal_nan=True)


def test_colours_below_the_transparency_of_a_palette_are_seen(tmp_path: Path) -> None:
    few = Image.fromarray(COLOURS).quantize(16)
    write(tmp_path / "a.png", few, transparency=bytes(range(16)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(seen(open_unlabeled(str(tmp_path)))["a.png"], few.convert("RGB"))


# ---------------------------------------------------------------- wherever it lies


def packed(root: Path, prefix: str = "") -> Path:
    with tarfile.open(root / "x.tar", "w") as archive:
        for number in range(2):
            archive.add(root / f"train/a/{number}.png", f"{prefix}{number}.png")
            archive.add(root / "label", f"{prefix}{number}.cls")
    return root / "x.tar"


PLACES: dict[str, Callable[[Path], Dataset]] = {
    "classes": lambda root: create_dataset("", str(root), "train"),
    "torchvision": lambda root: create_dataset("torch/image_folder", str(root), "train"),
    "tar file": lambda root: create_dataset(
        "", str(packed(root, "a/")), "train", flag="--train-split"
    ),
    "stream": lambda root: create_dataset("wds/x", str(root), f"{packed(root).name}|2"),
    "unlabelled": lambda root: open_unlabeled(str(root)),
    "unlabelled shard": lambda root: open_shards(find_shards(f"wds/{packed(root)}")),
}


@pytest.mark.parametrize("place", PLACES)
def test_everywhere_alike(tmp_path: Path, place: str) -> None:
    write(tmp_path / "train/a/0.png", Image.fromarray(np.rot90(COLOURS)), exif=turned(6))
    write(tmp_path / "train/a/1.png", Image.fromarray(LEVELS.astype(np.uint16) * 257))
    (tmp_path / "label").write_text("0")
    one, two = (np.asarray(image) for image, _ in itertools.islice(PLACES[place](tmp_path), 2))
    assert np.array_equal(one, COLOURS)
    assert np.array_equal(two, Image.fromarray(LEVELS).convert("RGB"))


# ---------------------------------------------------------------- what is not read


NOT_READ = "3 file(s) are not read: .mov (2), .txt (1)"


@pytest.fixture
def others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Path:
    """A folder of an image and files of other kinds, and a tar file of it."""
    caplog.set_level(logging.INFO)
    folder = write(tmp_path / "train/a/0.png", Image.fromarray(COLOURS)).parent
    for name in ("1.mov", "2.MOV", "3.txt", "README", ".DS_Store"):
        (folder / name).touch()
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(folder, "a")
    return tmp_path


@pytest.mark.parametrize(
    "where, labelled", [("", True), ("x.tar", True), ("train/a", False), ("x.tar", False)]
)
def test_what_is_not_read_is_said(
    others: Path, caplog: pytest.LogCaptureFixture, monkeypatch, where: str, labelled: bool
) -> None:
    """Once, and without another look at the disk than that for the images."""
    root, walks, walk = str(others / where), [], os.walk
    monkeypatch.setattr(
        os, "walk", lambda *args, **kwargs: walks.append(args) or walk(*args, **kwargs)
    )
    if labelled:
        create_dataset("", root, "train", flag="--train-split")
        prefix = f"--data-dir {root}, split 'train'"
    else:
        open_unlabeled(root)
        prefix = root
    assert caplog.messages.count(f"{prefix}: {NOT_READ}") == 1
    assert len(walks) == (not root.endswith(".tar"))


@pytest.mark.parametrize(
    "open_folder",
    [lambda root: create_dataset("", str(root), "train"), lambda root: open_unlabeled(str(root))],
    ids=["labelled", "unlabelled"],
)
def test_what_is_not_read_explains_that_nothing_is_there(
    others: Path, open_folder: Callable[[Path], Dataset]
) -> None:
    (others / "train/a/0.png").unlink()
    (others / "x.tar").unlink()
    assert_refused(re.escape(f"({NOT_READ})"), open_folder, others)


def test_heic_without_what_reads_it(tmp_path: Path) -> None:
    """In a process in which it is not installed."""
    (tmp_path / "1.HEIC").touch()
    code = (
        "import sys; sys.modules['pillow_heif'] = None; from w2s_plugins.data.unlabeled import open_images; "
        f"open_images({str(tmp_path)!r})"
    )
    done = python("-c", code, env=os.environ, cwd=tmp_path)
    message = "(1 file(s) are not read: .heic (1); pip install pillow-heif, and .heic is read)"
    assert message in done.stderr
