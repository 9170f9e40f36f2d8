"""Folders, tar files, torchvision's datasets and the embedded one: labels, classes, and what is refused."""

import shutil
import struct
import tarfile

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from tests.parts import assert_refused, refusal, write_folder
from w2s_plugins.data import Subset, create_dataset, labels_of, take_slice
from w2s_plugins.data.datasets import class_names_of, num_classes_of
from w2s_plugins.data.keys import describe

CLASSES = ["class0", "class1", "class2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("folder"), {"train": 9, "validation": 6})


@pytest.fixture(scope="module")
def fashion(tmp_path_factory):
    """FashionMNIST's own files, with 20 and 10 images."""
    root = tmp_path_factory.mktemp("fashion")
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 20), ("t10k", 10)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(
            struct.pack(">4i", 2051, count, 28, 28) + images.tobytes()
        )
        labels = np.arange(count, dtype=np.uint8) % 10
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(
            struct.pack(">2i", 2049, count) + labels.tobytes()
        )
    return root


def check(dataset, labels, classes):
    """Labels as told equal labels as read; classes are named in order."""
    count = len(labels)
    assert len(dataset) == count
    assert labels_of(dataset) == labels == [dataset[i][1] for i in range(count)]
    assert class_names_of(dataset) == classes
    assert num_classes_of(dataset) == len(classes)
    assert dataset[0][0].mode == "RGB"


@pytest.mark.parametrize(
    "split, labels", [("train", [0, 0, 0, 1, 1, 1, 2, 2, 2]), ("val", [0, 0, 1, 1, 2, 2])]
)
def test_folder(folder, split, labels):
    check(create_dataset("", str(folder), split), labels, CLASSES)


def test_folder_with_class_map(folder, tmp_path):
    (tmp_path / "map.txt").write_text("class2\nclass0\nclass1\n")
    dataset = create_dataset("", str(folder), "train", class_map=str(tmp_path / "map.txt"))
    check(dataset, [1, 1, 1, 2, 2, 2, 0, 0, 0], ["class2", "class0", "class1"])
    # a class that is listed twice leaves a number without a name
    (tmp_path / "twice.txt").write_text("class1\nclass0\nclass1\nclass2\n")
    twice = create_dataset("", str(folder), "train", class_map=str(tmp_path / "twice.txt"))
    assert labels_of(twice) == [1, 1, 1, 2, 2, 2, 3, 3, 3] and class_names_of(twice) is None
    absent = str(tmp_path / "absent.txt")
    message = f"^--data-dir {folder}, --class-map {absent}, split 'train': "
    assert_refused(message, create_dataset, "", str(folder), "train", class_map=absent)


def test_tar_file(folder, tmp_path):
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        for split_class in sorted((folder / "train").iterdir()):
            tar.add(split_class, split_class.name)
    where = "", str(tmp_path / "data.tar")
    dataset = create_dataset(*where, "train", flag="--train-split")
    check(dataset, [0, 0, 0, 1, 1, 1, 2, 2, 2], CLASSES)  # which has read it in this process
    loaded = DataLoader(Subset(dataset, list(range(9)) * 20), batch_size=None, num_workers=3)
    plain = [dataset[i][0].tobytes() for i in range(9)]
    # workers share no place in the file
    assert [image.tobytes() for image, _ in loaded] == plain * 20
    message = r"data.tar: one tar file is one split.*--val-split ''"
    assert_refused(message, create_dataset, *where, "validation", flag="--val-split")


def test_torchvision(fashion):
    dataset = create_dataset("torch/fashion_mnist", str(fashion), "train")
    check(dataset, [i % 10 for i in range(20)], dataset.dataset.classes)
    grey = create_dataset("torch/fashion_mnist", str(fashion), "validation", input_img_mode="L")
    assert len(grey) == 10
    assert grey[0][0].mode == "L"
    grey.transform = np.asarray
    assert grey[0][0].shape == (28, 28)


@pytest.mark.parametrize("split, part", [("train", 0), ("validation", 1), ("test", 1)])
def test_embedded_digits(split, part):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = np.rint(images.reshape(-1, 8, 8) * 255 / 16)
    parts = train_test_split(images, labels, test_size=600, stratify=labels, random_state=0)
    digits = create_dataset("w2s/digits", None, split)
    check(digits, parts[2 + part].tolist(), [str(c) for c in range(10)])
    np.testing.assert_array_equal(digits.images, parts[part])


def test_embedded_digits_in_grey():
    assert create_dataset("w2s/digits", None, "train", input_img_mode="L")[0][0].mode == "L"


def test_subset_of_a_folder(folder):
    part = Subset(create_dataset("", str(folder), "train"), [8, 0])
    check(part, [2, 0], CLASSES)
    assert part.filenames() == ["class2/008.jpg", "class0/000.jpg"]
    part.transform = np.asarray
    assert part[0][0].shape == (40, 48, 3)
    assert part.dataset.transform is np.asarray


def test_fingerprint_is_of_the_content_not_of_the_place(folder, tmp_path):
    def described(root):
        return describe(create_dataset("", str(root), "train"), "", "train")

    copy = shutil.copytree(folder, tmp_path / "copy")
    one = described(folder)
    assert described(copy) == one
    assert (one.name, one.num_samples, one.num_classes) == ("folder", 9, 3)
    (copy / "train/class0/000.jpg").rename(copy / "train/class0/999.jpg")
    assert described(copy).fingerprint != one.fingerprint


def test_fingerprint_is_of_the_part():
    digits = create_dataset("w2s/digits", None, "train")
    cuts = (":", 0), ("0:0.5", 0), ("0:0.5", 1), ("0.5:", 0)
    parts = [describe(take_slice(digits, *cut), "w2s/digits", "train") for cut in cuts]
    assert len({part.fingerprint for part in parts}) == 4


def test_torchvision_data_that_is_not_there(tmp_path):
    assert_refused("--dataset-download", create_dataset, "torch/cifar10", str(tmp_path), "train")
    elsewhere = refusal(create_dataset, "", str(tmp_path / "nowhere"), "train")
    assert "--dataset-download" not in elsewhere


@pytest.mark.parametrize(
    "mode, suffix", [("L", "png"), ("RGBA", "png"), ("P", "png"), ("CMYK", "jpg")]
)
def test_image_modes_are_brought_to_one(tmp_path, mode, suffix):
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.new(mode, (8, 8), 1).save(tmp_path / "train" / "a" / f"x.{suffix}")
    assert create_dataset("", str(tmp_path), "train")[0][0].mode == "RGB"
