"""``--decoder fast``: the views of Pillow, to within rounding, and Pillow itself where a file is no plain JPEG."""

import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
from PIL import Image, ImageFile, ImageOps
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor

from tests.data.test_kinds_of_images import turned
from tests.parts import data_config, train_loader, train_settings, write_folder
from w2s_plugins.data import LoaderSettings, create_dataset, create_eval_loader, take_slice
from w2s_plugins.data.decoding import (
    FastTransform,
    can_be_fast,
    choose_scale,
    decode_at,
    draw_window,
    read_header,
    resize_part,
    to_mode,
)
from w2s_plugins.data.views import kept_generators, seed_generators

PHOTOGRAPHS = [
    Path(sklearn.datasets.__file__).parent / "images" / name for name in ("china.jpg", "flower.jpg")
]
CPU = torch.device("cpu")
# Levels of 255, by the scale of decoding: the largest mean difference of a view, and of a pixel. At full size weights are
# rounded differently; at others the frequencies that are left out are not quite those that a resize would leave out.
# python -m benchmarks.pixels measures 0.01 and 1 at full size, then 1.56, 1.95 and 2.08, and 26. Of a window that is
# exactly twice as large, Pillow 13 makes 0.17 and 8.
BOUNDS = {1: (0.3, 12), 2: (2.0, 30), 4: (2.5, 30), 8: (3.0, 30)}
MEAN, MEAN_OF_A_VIEW = 0.05, BOUNDS[1][0]
# batches hold levels from 0 to 255
CONFIG = data_config(
    64, mean=(0.0,) * 3, std=(1 / 255,) * 3, interpolation="bicubic", crop_pct=0.875
)
PLAIN = "--color-jitter 0"


def both(transform: object, data: bytes, path: Path, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The view of one file by Pillow and by torchvision; the draws must leave the generators in one state."""
    views, states = [], []
    fast = FastTransform(transform)
    for view in (
        lambda: transform(Image.open(path).convert("RGB")),
        lambda: fast.other_steps(fast.make_first_step(data)),
    ):
        with kept_generators():
            seed_generators(seed)
            views.append(view().float())
            states.append((random.getstate(), torch.get_rng_state().tolist()))
    assert states[0] == states[1]
    return tuple(views)


def assert_close(one: Tensor, two: Tensor, scale: int = 1) -> None:
    assert one.shape == two.shape
    difference = (one - two).abs()
    mean, largest = BOUNDS[scale]
    assert difference.mean() < mean and difference.max() <= largest


@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda p: p.stem)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "random"])
def test_training_views_have_the_geometry_of_pillow(path, interpolation):
    how = dict(is_training=True, interpolation=interpolation, vflip=0.5, color_jitter=0)
    transform = create_transform((3, 224, 224), use_prefetcher=True, **how)
    assert can_be_fast(transform)
    pairs = [both(transform, path.read_bytes(), path, seed) for seed in range(20)]
    for one, two in pairs:
        assert_close(one, two)
        shifted = (one[..., 1:] - two[..., :-1]).abs().mean()
        assert shifted > 5 * MEAN_OF_A_VIEW  # so a pixel to the side would have been seen
    assert torch.tensor([(one - two).abs().mean() for one, two in pairs]).mean() < MEAN
    assert len({one.numpy().tobytes() for one, _ in pairs}) == 20


SMALL = dict(input_size=(3, 64, 64), interpolation="bicubic", use_prefetcher=True)


@pytest.mark.parametrize("size", [(427, 640), (640, 427), (40, 50), (300, 31), (64, 64)], ids=str)
@pytest.mark.parametrize(
    "kwargs",
    [
        dict(crop_mode="center"),
        dict(crop_mode="squash"),
        dict(crop_pct=1.0),
        dict(interpolation="bilinear"),
        dict(input_size=(3, 48, 96)),
        dict(is_training=True, no_aug=True),
    ],
    ids=str,
)
def test_evaluation_views_have_the_geometry_of_pillow(tmp_path, size, kwargs):
    path = tmp_path / "image.jpg"
    Image.open(PHOTOGRAPHS[0]).resize(size[::-1]).save(path, quality=90)
    transform = create_transform(**SMALL | kwargs)
    assert can_be_fast(transform)
    _, wanted, _ = draw_window(transform.transforms[0], size)
    assert_close(*both(transform, path.read_bytes(), path), choose_scale(size, wanted))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_windows_lie_where_pillow_has_them(tmp_path, scale, orientation):
    """To a fraction of a pixel: what is half a pixel of the result to the side differs more."""
    path = tmp_path / "image.jpg"
    photograph = Image.open(PHOTOGRAPHS[0])
    photograph.save(path, quality=95, exif=turned(orientation))
    data = path.read_bytes()
    header = read_header(data)
    whole = to_mode(Image.open(path), "RGB")
    assert header.size == whole.size[::-1]
    random.seed(0)
    torch.manual_seed(0)
    crop = RandomResizedCropAndInterpolation(64, (0.3, 0.8), interpolation="bicubic")
    for _ in range(5):
        window, _, mode = draw_window(crop, header.size)
        size = window[2] // (2 * scale), window[3] // (2 * scale)
        assert choose_scale(window[2:], size) == scale
        pixels = decode_at(data, header, scale)
        assert pixels.shape == (*(math.ceil(side / scale) for side in header.size), 3)
        found = resize_part(pixels, header.place(window, scale), size, mode)
        assert found.size == size[::-1]

        def differs(to: int, found=found, window=window, size=size) -> float:
            """From the window that Pillow resizes, which is moved by some pixels of the image."""
            top, left, height, width = window
            part = whole.crop((left + to, top, left + to + width, top + height))
            expected = np.asarray(part.resize(size[::-1], Image.Resampling.BICUBIC), dtype=float)
            if not to:
                assert_close(
                    torch.tensor(np.asarray(found) * 1.0), torch.from_numpy(expected), scale
                )
            return np.abs(np.asarray(found) - expected).mean()

        half = max(1, scale)
        assert differs(0) < min(differs(half), differs(-half))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_colours_have_twice_the_pixels_too(tmp_path, subsampling):
    """Those that are stored at half the width alone are decoded at twice the scale."""
    path = tmp_path / "image.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((512, 384)).save(path, quality=95, subsampling=subsampling)
    transform = create_transform(**{**SMALL, "input_size": (3, 32, 32)})
    one, two = both(transform, path.read_bytes(), path)
    assert (one - two).abs().mean() < 1.5


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (8, 8)])
def test_the_smallest_images(tmp_path, size):
    """timm draws windows of no pixels of them."""
    path = tmp_path / "image.jpg"
    Image.open(PHOTOGRAPHS[0]).resize(size).save(path)
    transform = create_transform((3, 32, 32), is_training=True, color_jitter=0, use_prefetcher=True)
    for seed in range(60):
        assert_close(*both(transform, path.read_bytes(), path, seed))


@pytest.mark.parametrize(
    ("window", "size", "scale"),
    [
        ((448, 448), (224, 224), 1),
        ((896, 896), (224, 224), 2),
        ((896, 895), (224, 224), 1),
        ((1792, 4000), (224, 224), 4),
        ((3584, 3584), (224, 224), 8),
        ((9000, 9000), (224, 224), 8),
        ((10, 10), (224, 224), 1),
    ],
)
def test_the_smallest_scale_that_leaves_twice_the_pixels(window, size, scale):
    assert choose_scale(window, size) == scale


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "kwargs",
    [dict(color_jitter=0.4), dict(auto_augment="rand-m9-mstd0.5-inc1"), dict(use_prefetcher=False)],
    ids=str,
)
def test_pillow_makes_the_steps_that_follow(kwargs, seed):
    """With the same draws; what a pixel that is rounded otherwise becomes in them is up to them."""
    kwargs = {"use_prefetcher": True, **kwargs}
    transform = create_transform((3, 224, 224), is_training=True, **kwargs)
    assert can_be_fast(transform)
    one, two = both(transform, PHOTOGRAPHS[0].read_bytes(), PHOTOGRAPHS[0], seed)
    scale = one.abs().max() / 255
    assert one.shape == two.shape and (one - two).abs().mean() < scale


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(is_training=True, train_crop_mode="rkrc"),
        dict(is_training=True, interpolation="lanczos"),
        dict(interpolation="nearest"),
    ],
    ids=str,
)
def test_first_steps_that_need_pillow(kwargs):
    assert not can_be_fast(create_transform(**SMALL | kwargs))


def test_randaugment_may_keep_no_bits():
    """Of any version of Pillow; 13 refuses what timm asks it for."""
    image = Image.open(PHOTOGRAPHS[0])
    none, some = (AugmentOp("Posterize", 1.0, magnitude) for magnitude in (0, 5))
    none.magnitude_std = some.magnitude_std = 0
    assert none(image).getextrema() == ((0, 0),) * 3
    assert some(image).tobytes() == ImageOps.posterize(image, 2).tobytes()


# ---------------------------------------------------------------- files


def save_rubbish(image: Image.Image, path: Path) -> None:
    image.save(path)
    with path.open("ab") as file:
        file.write(b"rub")


def save_16_bit(image: Image.Image, path: Path) -> None:
    levels = np.asarray(image.convert("L")).astype(np.uint16) * 257
    Image.fromarray(levels).save(path)


FILES: dict[str, tuple[str, Callable[[Image.Image, Path], None]]] = {
    "plain": ("jpg", lambda image, path: image.save(path)),
    "full chroma": ("jpg", lambda image, path: image.save(path, subsampling=0)),
    "grey": ("jpg", lambda image, path: image.convert("L").save(path)),
    "rotated by EXIF": ("jpg", lambda image, path: image.save(path, exif=turned(6))),
    "rubbish at the end": ("jpg", save_rubbish),
    "CMYK": ("jpg", lambda image, path: image.convert("CMYK").save(path)),
    "PNG": ("png", lambda image, path: image.save(path)),
    "PNG called JPEG": ("jpg", lambda image, path: image.save(path, "PNG")),
    "PNG alpha": ("png", lambda image, path: image.convert("RGBA").save(path)),
    "PNG 16 bit": ("png", save_16_bit),
}
FAST = ("plain", "full chroma", "grey", "rubbish at the end", "rotated by EXIF")


@pytest.mark.parametrize("case", FILES)
def test_files_are_read_as_with_pillow(tmp_path, case):
    """With the same random draws; how broken ones are refused is in test_unreadable.py."""
    suffix, save = FILES[case]
    one, two = (Image.open(path).resize((200, 150)) for path in PHOTOGRAPHS)
    for split in ("class0", "class1"):
        (tmp_path / "train" / split).mkdir(parents=True)
    save(one, tmp_path / "train" / "class0" / f"a.{suffix}")
    two.save(tmp_path / "train" / "class1" / "b.jpg")
    dataset = create_dataset("", str(tmp_path), "train")
    transform = create_transform((3, 64, 64), is_training=True, color_jitter=0, use_prefetcher=True)
    views = []
    for chosen in (transform, FastTransform(transform)):
        dataset.transform = chosen
        with kept_generators():
            seed_generators(3)
            views.append((*dataset[0], random.random()))
    (one, *drawn), (two, *other_drawn) = views
    assert drawn == other_drawn
    assert_close(one.float(), two.float())
    if case not in FAST:
        assert torch.equal(one, two)


# ---------------------------------------------------------------- loaders


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    counts = {"train": 26, "validation": 12}
    return write_folder(tmp_path_factory.mktemp("data"), counts, size=(120, 90))


@pytest.fixture
def batches(folder):
    def load(*flags: str) -> list:
        settings = train_settings(
            f"--data-dir {folder} --num-classes 3 --batch-size 4", *flags, dataset=""
        )
        dataset = create_dataset("", str(folder), "train", flag="--train-split")
        return list(train_loader(dataset, settings, CONFIG).epoch(0))

    return load


def pixels(found: list) -> Tensor:
    return torch.cat([batch.input for batch in found])


@pytest.mark.parametrize("flags", ["--seed 42", "--mixup 0.5 --reprob 0.5", "--no-aug"])
def test_same_key_same_view(batches, flags):
    ours, theirs = (batches(PLAIN, flags, f"--decoder {name}") for name in ("fast", "pil"))
    for one, two in zip(ours, theirs, strict=True):
        assert torch.equal(one.index, two.index) and torch.equal(one.target, two.target)
    assert_close(pixels(ours), pixels(theirs))
    assert torch.equal(pixels(batches(PLAIN, flags)), pixels(ours))  # the default


def test_jpeg_files_are_not_decoded_by_pillow(batches, monkeypatch):
    """It reads the header only, which says how large they are."""
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("Pillow was asked"))
    assert pixels(batches(PLAIN, "--decoder fast")).std() > 10


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation(folder, workers):
    dataset = take_slice(create_dataset("", str(folder), "validation"), "0:9", 0)

    def seen(decoder: str) -> Tensor:
        how = LoaderSettings(batch_size=4, workers=workers, device=CPU, decoder=decoder)
        return torch.cat([images for images, _ in create_eval_loader(dataset, CONFIG, how)])

    assert_close(seen("pil"), seen("fast"))
