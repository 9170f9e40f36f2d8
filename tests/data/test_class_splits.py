"""Splits of different classes: folders of their own, or one folder and a list; and the lists of the package."""

from pathlib import Path

import pytest
from timm.data import ImageNetInfo
from torch.utils.data import Dataset

from tests.parts import assert_refused, write_folder
from w2s_plugins.data import create_dataset, hold_out, open_split, take_slice
from w2s_plugins.data.class_splits import list_names, read_class_list
from w2s_plugins.data.datasets import class_names_of, labels_of


@pytest.mark.parametrize(
    "name, sizes", [("miniimagenet", (64, 16, 20)), ("tieredimagenet", (351, 97, 160))]
)
def test_lists_of_the_package(name, sizes):
    lists = [
        read_class_list(f"{name}/{split}", "--class-list")
        for split in ("base", "validation", "novel")
    ]
    assert tuple(map(len, lists)) == sizes
    together = [synset for names in lists for synset in names]
    assert len(set(together)) == len(together)
    assert set(together) <= set(ImageNetInfo("imagenet-1k").label_names())
    assert all(names == sorted(names) for names in lists)
    assert {f"{name}/base", f"{name}/novel"} <= set(list_names())


def test_list_of_other_data():
    said = "no class 'n01532829'; 64 of 64 are missing"
    assert_refused(said, listed, "w2s/digits", None, "train", "miniimagenet/base")


def listed(*args: object) -> Dataset:
    return open_split(*args, flag="--few-shot-split")


@pytest.mark.parametrize("text", ["# nothing\n\n", "a\nb\na # again\n"])
def test_lists_refused(tmp_path, text):
    path = tmp_path / "list.txt"
    path.write_text(text)
    said = "expected one class a line, and each once"
    assert_refused(said, read_class_list, str(path), "--class-list")


def test_a_list_that_is_no_text(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xff\xfe\x00")
    assert_refused("expected a text file", read_class_list, str(path), "--class-list")


@pytest.mark.parametrize(
    "folder, name",
    [
        ("base", "base"),
        ("base", "train"),
        ("train", "base"),
        ("train", "train"),
        ("novel", "novel"),
        ("novel", "test"),
        ("test", "novel"),
        ("test", "test"),
        ("val", "validation"),
        ("val", "val"),
    ],
)
def test_folders_of_splits_by_either_name(tmp_path, folder, name):
    write_folder(tmp_path, {folder: 3, "other": 2})
    dataset = open_split("", str(tmp_path), name, None, flag="--few-shot-split")
    assert len(dataset) == 3
    assert dataset.filenames(absolute=True)[0].startswith(str(tmp_path / folder))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images of six classes, in one folder of the split and in two folders of base and novel classes."""
    write_folder(tmp_path / "whole", {"train": 12}, classes=6)
    for split, classes in (("base", (0, 2, 3, 5)), ("novel", (1, 4))):
        for c in classes:
            target = tmp_path / "parts" / split / f"class{c}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(tmp_path / "whole" / "train" / f"class{c}")
        (tmp_path / f"{split}.txt").write_text("".join(f"class{c}\n" for c in reversed(classes)))
    return tmp_path


@pytest.mark.parametrize("split", ["base", "novel"])
def test_a_list_gives_what_folders_of_splits_give(folder, split):
    def opened(root: str, *names: object) -> Dataset:
        return open_split("", str(folder / root), *names, flag="--train-split")

    chosen = opened("whole", "train", str(folder / f"{split}.txt"))
    expected = opened("parts", split, None)
    assert class_names_of(chosen) == class_names_of(expected)
    assert labels_of(chosen) == labels_of(expected)
    one, other = ([(a.tobytes(), label) for a, label in data] for data in (chosen, expected))
    assert one == other != []


def test_classes_of_other_datasets_and_slices_of_them(tmp_path):
    odd = tmp_path / "odd.txt"
    odd.write_text("7\n1\n3\n")
    digits = open_split("w2s/digits", None, "train", str(odd), flag="--train-split")
    whole = create_dataset("w2s/digits", None, "train")
    assert class_names_of(digits) == ["1", "3", "7"]
    assert [int(digits.classes[t]) for t in digits.targets] == [
        t for t in whole.targets if t in (1, 3, 7)
    ]
    part, held = hold_out(take_slice(digits, "0:60", 0), 15, 0)
    assert sorted(set(labels_of(part))) == sorted(set(labels_of(held))) == [0, 1, 2]
    image, label = held[4]
    position = digits.indices[held.dataset.indices[held.indices[4]]]
    assert whole[position][0].tobytes() == image.tobytes()
    assert whole.targets[position] == int(digits.classes[label])


@pytest.mark.parametrize(
    "said",
    [
        r"the data has no class 'clas2' \(nearest: class",
        "; 2 of 3 are missing",
        "it has 6 classes",
    ],
)
def test_listed_class_that_is_not_there(folder, said):
    more = folder / "more.txt"
    more.write_text("class1\nclas2\nclass9\n")
    assert_refused(said, listed, "", str(folder / "whole"), "train", str(more))
