"""``--unlabeled``: folders and tar files of images whose sub-folders mean nothing."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.parts import (
    assert_refused,
    data_config,
    lines,
    train_loader,
    train_settings,
    write_folder,
)
from w2s_plugins.data.datasets import create_dataset, is_unlabeled, labels_of
from w2s_plugins.data.keys import describe, file_names
from w2s_plugins.data.slices import hold_out, take_slice
from w2s_plugins.data.unlabeled import open_unlabeled
from w2s_plugins.no_label import NO_LABEL
from w2s_plugins.training.data import build_data

CONFIG = data_config(8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Nine images at three depths, among other files."""
    root = write_folder(tmp_path / "photos", {"a/b": 6, "c": 3}, size=(8, 8))
    for number, file in enumerate(sorted((root / "c").rglob("*.jpg"))):
        file.rename(root / f"{number}.JPG")
    for name in ("notes.txt", ".hidden.jpg", "a/Thumbs.db"):
        (root / name).write_text("x")
    return root


def archive(root: Path, path: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:
        file.add(root, arcname=".")
    return path


def pixels(dataset: object) -> list[np.ndarray]:
    return [np.asarray(dataset[i][0]) for i in range(len(dataset))]


def test_any_depth_and_a_tar_file_of_it(photos: Path, tmp_path: Path) -> None:
    folder = open_unlabeled(str(photos))
    inner = (f"a/b/class{i % 3}/{i:03}.jpg" for i in (0, 3, 1, 4, 2, 5))
    names = ["0.JPG", "1.JPG", "2.JPG", *inner]
    assert file_names(folder) == names
    assert folder.filenames(absolute=True)[0] == str(photos / "0.JPG")
    assert (labels_of(folder), folder[0][1], is_unlabeled(folder)) == (None, NO_LABEL, True)
    packed = open_unlabeled(str(archive(photos, tmp_path / "photos.tar")))
    assert file_names(packed) == names
    assert all(np.array_equal(a, b) for a, b in zip(pixels(folder), pixels(packed), strict=True))
    # labels of them are found again, whatever stands beside them
    identities = {describe(folder, "", "").fingerprint, describe(packed, "x", "").fingerprint}
    photos.rename(tmp_path / "moved")
    identities.add(describe(open_unlabeled(f"{tmp_path}/moved/"), "x", "").fingerprint)
    assert len(identities) == 1


def test_several(photos: Path, tmp_path: Path) -> None:
    more = write_folder(tmp_path / "more", {"photos": 3})
    both = open_unlabeled(f"{photos}, {more / 'photos'},{archive(more, tmp_path / 'x.tar')}")
    assert len(both) == len(pixels(both)) == 15
    some = "photos/0.JPG more/photos/class0/000.jpg x.tar/photos/class0/000.jpg"
    assert {*some.split()} < set(file_names(both))


@pytest.mark.parametrize("inner", ["photos/a", "photos"])
def test_one_in_the_other(photos: Path, inner: str) -> None:
    message = "one is in the other, its images would count twice"
    assert_refused(message, open_unlabeled, f"{photos},{photos.parent / inner}")


BAD = r"""
{}/photo  ->  no such folder or tar file \(nearest: photos
{}/empty  ->  no images in it; expected files named .jpg
{}/photos/a/Thumbs.db  ->  not a tar file, compressed, or damaged
{}/x.tar.gz  ->  without compression
{}/tars  ->  no images in it; .*name tar files themselves
  ->  expected a folder of images
"""


@pytest.mark.parametrize("path, message", lines(BAD))
def test_bad_input(photos: Path, tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "empty" / "sub").mkdir(parents=True)
    (tmp_path / "tars").mkdir()
    archive(photos, tmp_path / "tars" / "x.tar")
    archive(photos, tmp_path / "x.tar.gz", "w:gz")
    assert_refused(message, open_unlabeled, path.format(tmp_path))


def test_parts_have_no_labels_either(photos: Path) -> None:
    whole = open_unlabeled(str(photos))
    train, select = hold_out(take_slice(whole, "0:8", 0), 0.25, 0)
    assert (len(train), len(select)) == (6, 2)
    assert [labels_of(part) for part in (train, select)] == [None, None]
    assert is_unlabeled(train) and is_unlabeled(select)
    assert not set(file_names(train)) & set(file_names(select))
    again, _ = hold_out(take_slice(open_unlabeled(str(photos)), "0:8", 0), 0.25, 0)
    assert file_names(again) == file_names(train)


@pytest.mark.parametrize("flags", ["--seed 42", "--mixup 0.5", "--mixup 0.5 --no-prefetcher"])
def test_batches_say_that_there_is_no_label(photos: Path, flags: str) -> None:
    beside = f"--unlabeled {photos} --teacher resnet18 --batch-size 4 --num-classes 3"
    settings = train_settings(beside, flags, dataset="")
    batch = next(train_loader(open_unlabeled(str(photos)), settings, CONFIG).epoch(0))
    assert batch.target.tolist() == [NO_LABEL] * 4
    assert torch.isfinite(batch.input).all()


def test_a_flat_folder_as_labelled_data(photos: Path, tmp_path: Path) -> None:
    def opened(root: Path) -> None:
        create_dataset("", str(root), "train", flag="--train-split")

    remedy = ".*images without labels by --unlabeled"
    assert_refused(f"no folder of the split 'train'{remedy}", opened, photos)
    photos.rename(tmp_path / "train")
    assert_refused(f"0.JPG is in no folder of a class{remedy}", opened, tmp_path)


def test_nothing_is_made_of_labels_that_are_not_there(photos: Path) -> None:
    flags = f"--unlabeled {photos} --teacher w2s_cnn2 --class-names x,y,z"
    settings = train_settings(flags, dataset="")
    assert settings.loss.task_loss_weight == 0.0
    assert (settings.data.val_split, settings.data.data_dir) == ("", None)
    data = build_data(settings)
    assert (data.val, data.groups, data.noise) == (None, None, None)
    assert (data.class_names, data.num_classes) == (list("xyz"), 3)
