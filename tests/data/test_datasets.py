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
from w2s_plugins.errors import UserError

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


def check(dataset, count, labels, classes):
    """Labels as told equal labels as read; classes are named in order."""
    assert len(dataset) == count
    assert labels_of(dataset) == labels == [dataset[i][1] for i in range(count)]
    assert class_names_of(dataset) == classes
    assert num_classes_of(dataset) == len(classes)
    assert dataset[0][0].mode == "RGB"


def test_folder(folder):
    check(create_dataset("", str(folder), "train"), 9, [0, 0, 0, 1, 1, 1, 2, 2, 2], CLASSES)
    check(create_dataset("", str(folder), "val"), 6, [0, 0, 1, 1, 2, 2], CLASSES)


def test_folder_with_class_map(folder, tmp_path):
    (tmp_path / "map.txt").write_text("class2\nclass0\nclass1\n")
    dataset = create_dataset("", str(folder), "train", class_map=str(tmp_path / "map.txt"))
    check(dataset, 9, [1, 1, 1, 2, 2, 2, 0, 0, 0], ["class2", "class0", "class1"])
    absent = str(tmp_path / "absent.txt")
    message = refusal(create_dataset, "", str(folder), "train", class_map=absent)
    assert message.startswith(f"--data-dir {folder}, --class-map {absent}, split 'train': ")


def test_tar_file(folder, tmp_path):
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        for split_class in sorted((folder / "train").iterdir()):
            tar.add(split_class, split_class.name)
    dataset = create_dataset("", str(tmp_path / "data.tar"), "train", flag="--train-split")
    check(dataset, 9, [0, 0, 0, 1, 1, 1, 2, 2, 2], CLASSES)  # which has read it in this process
    loaded = DataLoader(Subset(dataset, list(range(9)) * 20), batch_size=None, num_workers=3)
    plain = [dataset[i][0].tobytes() for i in range(9)]
    assert [
        image.tobytes() for image, _ in loaded
    ] == plain * 20  # workers share no place in the file
    assert_refused(
        r"data.tar: one tar file is one split.*--val-split ''",
        create_dataset,
        "",
        str(tmp_path / "data.tar"),
        "validation",
        flag="--val-split",
    )


def test_torchvision(fashion):
    dataset = create_dataset("torch/fashion_mnist", str(fashion), "train")
    check(dataset, 20, [i % 10 for i in range(20)], dataset.dataset.classes)
    grey = create_dataset("torch/fashion_mnist", str(fashion), "validation", input_img_mode="L")
    assert len(grey) == 10
    assert grey[0][0].mode == "L"
    grey.transform = np.asarray
    assert grey[0][0].shape == (28, 28)


def test_embedded_digits():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = np.rint(images.reshape(-1, 8, 8) * 255 / 16)
    parts = train_test_split(images, labels, test_size=600, stratify=labels, random_state=0)
    for split, images, labels in zip(
        ("train", "validation", "test"), (*parts[:2], parts[1]), (*parts[2:], parts[3])
    ):
        digits = create_dataset("w2s/digits", None, split)
        check(digits, len(labels), labels.tolist(), [str(c) for c in range(10)])
        np.testing.assert_array_equal(digits.images, images)
    assert create_dataset("w2s/digits", None, "train", input_img_mode="L")[0][0].mode == "L"


def test_subset_of_a_folder(folder):
    part = Subset(create_dataset("", str(folder), "train"), [8, 0])
    check(part, 2, [2, 0], CLASSES)
    assert part.filenames() == ["class2/008.jpg", "class0/000.jpg"]
    part.transform = np.asarray
    assert part[0][0].shape == (40, 48, 3)
    assert part.dataset.transform is np.asarray


def test_fingerprint_is_of_the_content_not_of_the_place(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    one, two = (
        describe(create_dataset("", str(f), "train"), "", "train")
        for f in (folder, tmp_path / "copy")
    )
    assert one == two
    assert (one.name, one.num_samples, one.num_classes) == ("folder", 9, 3)
    (tmp_path / "copy/train/class0/000.jpg").rename(tmp_path / "copy/train/class0/999.jpg")
    assert (
        describe(create_dataset("", str(tmp_path / "copy"), "train"), "", "train").fingerprint
        != one.fingerprint
    )
    digits = create_dataset("w2s/digits", None, "train")
    parts = [
        take_slice(digits, text, seed)
        for text, seed in ((":", 0), ("0:0.5", 0), ("0:0.5", 1), ("0.5:", 0))
    ]
    assert len({describe(part, "w2s/digits", "train").fingerprint for part in parts}) == 4


def test_torchvision_data_that_is_not_there(tmp_path):
    assert_refused("--dataset-download", create_dataset, "torch/cifar10", str(tmp_path), "train")
    with pytest.raises(UserError) as caught:
        create_dataset("", str(tmp_path / "nowhere"), "train")
    assert "--dataset-download" not in str(caught.value)


def test_image_modes_are_brought_to_one(tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    for mode in ("L", "RGBA", "P", "CMYK"):
        suffix = "jpg" if mode == "CMYK" else "png"
        Image.new(mode, (8, 8), 1).save(tmp_path / "train" / "a" / f"{mode}.{suffix}")
    dataset = create_dataset("", str(tmp_path), "train")
    assert {dataset[i][0].mode for i in range(4)} == {"RGB"}
