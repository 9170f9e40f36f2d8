"""``--decoder fast``: the views of Pillow, to within rounding, and Pillow itself where torchvision cannot follow."""

import logging
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
from PIL import Image, ImageFile
from timm.data import create_transform
from torch import Tensor

from tests.data.test_kinds_of_images import turned
from tests.parts import data_config, train_loader, train_settings, write_folder
from w2s_plugins.data import LoaderSettings, create_dataset, create_eval_loader, take_slice
from w2s_plugins.data.decoding import FastTransform, can_be_fast
from w2s_plugins.data.views import kept_generators, seed_generators

PHOTOGRAPHS = [
    Path(sklearn.datasets.__file__).parent / "images" / name for name in ("china.jpg", "flower.jpg")
]
CPU = torch.device("cpu")
# Levels of 255. Over 200 views of each photograph the mean difference is 0.002 (bilinear) to 0.004 (bicubic), that of
# the worst view 0.03 (bilinear) and 0.009 (bicubic), and a pixel differs by 2 at most: weights rounded differently.
MEAN, MEAN_OF_A_VIEW, LARGEST = 0.01, 0.06, 4
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


def assert_close(one: Tensor, two: Tensor) -> None:
    assert one.shape == two.shape
    difference = (one - two).abs()
    assert difference.mean() < MEAN_OF_A_VIEW and difference.max() <= LARGEST


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
    assert_close(*both(transform, path.read_bytes(), path))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "kwargs",
    [dict(color_jitter=0.4), dict(auto_augment="rand-m9-mstd0.5-inc1"), dict(use_prefetcher=False)],
    ids=str,
)
def test_pillow_makes_the_steps_that_follow(kwargs, seed):
    """With the same draws; what a pixel that is rounded otherwise becomes in them is up to them."""
    kwargs = {"use_prefetcher": True, **kwargs}
    transform = create_transform((3, 64, 64), is_training=True, **kwargs)
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
FAST = ("plain", "full chroma", "grey", "rubbish at the end")


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
    assert torch.equal(pixels(batches(PLAIN, flags)), pixels(theirs))  # the default


def test_jpeg_files_are_not_decoded_by_pillow(batches, monkeypatch):
    """It reads the header only, which says how large they are."""
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("Pillow was asked"))
    assert pixels(batches(PLAIN, "--decoder fast")).std() > 10


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation(folder, workers, caplog):
    caplog.set_level(logging.INFO)
    dataset = take_slice(create_dataset("", str(folder), "validation"), "0:9", 0)

    def seen(decoder: str) -> Tensor:
        how = LoaderSettings(batch_size=4, workers=workers, device=CPU, decoder=decoder)
        return torch.cat([images for images, _ in create_eval_loader(dataset, CONFIG, how)])

    assert_close(seen("pil"), seen("fast"))
    assert caplog.messages == [
        "Decoder of the evaluation images: torchvision for JPEG, Pillow for others"
    ]
