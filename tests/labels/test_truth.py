"""True labels in a table: which images and classes a split has that is opened by one."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.parts import assert_refused, encoded, write_digits, write_folder, write_tar
from w2s_plugins.data import create_dataset
from w2s_plugins.data.datasets import class_names_of, labels_of
from w2s_plugins.data.digits import Digits
from w2s_plugins.data.keys import describe, sample_keys
from w2s_plugins.labels.truth import open_with_table

CLASSES = ["cat", "dog", "hen"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve images in a folder without class folders, their classes in turn, and a table of them."""
    monkeypatch.chdir(tmp_path)
    write_digits(12, lambda number, _: tmp_path / "data/images")
    write({f"{number}.png": CLASSES[number % 3] for number in range(12)})
    return tmp_path


def write(labels: Mapping[str, object], header: str = "image,class", file: str = "t.csv") -> None:
    rows = [f"{name},{label}" for name, label in labels.items()]
    Path(file).write_text("\n".join([header, *rows]))


def opened(
    table: str = "t.csv", known: Sequence[str] | None = None, split: str = "images", **how: object
) -> dict[str, str]:
    """The class of each image of a split, in its order."""
    dataset = open_with_table(table, known, "data", split, flag="--val-split", **how)
    names = class_names_of(dataset)
    assert [dataset[i][1] for i in range(len(dataset))] == labels_of(dataset)
    return dict(zip(dataset.filenames(), [names[label] for label in labels_of(dataset)]))


def test_images_are_in_the_order_of_class_folders(root: Path) -> None:
    expected = {f"{number}.png": CLASSES[number % 3] for number in range(12)}
    write(dict(reversed(expected.items())))
    assert list(opened().items()) == list(expected.items())


def test_the_same_images_in_class_folders_are_the_same_split(tmp_path: Path) -> None:
    write_folder(tmp_path, {"train": 24}, classes=12)
    table = tmp_path / "t.csv"
    files = [path.relative_to(tmp_path / "train") for path in tmp_path.rglob("*.jpg")]
    table.write_text("\n".join(["filename,label", *(f"{file},{file.parent}" for file in files)]))
    by_folder = create_dataset("", str(tmp_path), "train")
    by_table = open_with_table(str(table), None, str(tmp_path), "train", flag="--train-split")
    assert class_names_of(by_table) == class_names_of(by_folder)
    assert labels_of(by_table) == labels_of(by_folder)
    assert sample_keys(by_table) == sample_keys(by_folder)
    assert describe(by_table, "", "train") == describe(by_folder, "", "train")


@pytest.mark.parametrize(
    "table, labels, header",
    [
        ("t.csv", {f"{n}": n % 3 for n in range(12)}, "id,label"),
        ("t.csv#second", {f"{n}": f"x,{n % 3}" for n in range(12)}, "photo,first,second"),
        (
            "t.csv",
            {f"C:\\data\\images\\{n}.png": f"{n % 3}.0" for n in range(12)},
            "filename,label",
        ),
        ("labels:t.csv", {f"{n}.png": f"{n % 3}:0.9" for n in range(12)}, "filename,top_k"),
        (
            "t.csv#anna,bob,carl?combine=majority",
            {f"{n}.png": f"{n % 3},{(n + 1) % 3},{n % 3}" for n in range(12)},
            "filename,anna,bob,carl",
        ),
    ],
)
def test_rows_find_images_and_classes_as_those_of_weak_labels(
    root: Path, table: str, labels: dict, header: str
) -> None:
    """Numbers are the names of classes where nothing else names these, and else positions among them."""
    write(labels, header)
    assert [*opened(table).values()] == [str(number % 3) for number in range(12)]
    assert [*opened(table, CLASSES).values()] == [CLASSES[number % 3] for number in range(12)]


def test_classes_are_those_of_the_images(root: Path) -> None:
    """In the order of folders, whatever order the names are known in; a split may lack some."""
    write({f"{n}.png": "Class 10" if n % 2 else "class 2" for n in range(12)})
    known = ["class 10", "class 1", "class 2"]
    dataset = open_with_table("t.csv", known, "data", "images", flag="--val-split")
    assert class_names_of(dataset) == ["class 2", "class 10"]


def test_the_folder_itself_where_no_split_was_named(root: Path) -> None:
    assert set(opened(split="validation")) == {f"images/{number}.png" for number in range(12)}
    message = "data: no folder of the split 'image' .nearest: images"
    assert_refused(message, opened, split="image")
    Path("data/train").mkdir()
    assert_refused("no folder of the split 'validation'", opened, split="validation")


def test_tar_files(root: Path) -> None:
    digits = Digits("train", "RGB")
    members = {f"a/{n}.png": encoded(digits[n][0]) for n in range(12)}
    write_tar(Path("data/all.tar"), members)
    expected = {f"a/{number}.png": CLASSES[number % 3] for number in range(12)}
    assert opened(split="all.tar") == expected
    dataset = open_with_table("t.csv", None, "data/all.tar", "validation", flag="--val-split")
    assert dataset.filenames() == list(expected)


def test_images_that_are_left_out(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By the rule of weak labels: a hundredth of them, or any number if that is asked for."""
    caplog.set_level(logging.INFO)
    labels = {f"{n}.png": CLASSES[n % 3] for n in range(8)} | {"8.png": "", "99.png": "cat"}
    write(labels)
    message = (
        "--val-labels t.csv: 4 of 12 'images' samples have no label, such as 8.png; .missing=skip"
    )
    assert_refused(message, opened)
    assert len(opened("t.csv?missing=skip")) == 8
    for said in (
        "1 of 10 answers have no class and are left out",
        "1 of 9 answers are about none of these samples, such as 99.png",
        "4 of 12 images have no label, and are left out",
    ):
        assert said in caplog.text


def test_one_class_each(root: Path) -> None:
    """Ties are no truth, and a label that is no class is an error however rare it is."""
    votes = {f"{n}.png": "2,1,0" if n else "1,1,0" for n in range(12)}
    write(votes, "filename,cat,dog,hen")
    said = "of 1 images several classes are as likely, such as of 0.png; expected one true class"
    assert_refused(said, opened, known=CLASSES)
    assert [*opened("t.csv?missing=skip", CLASSES).values()] == ["cat"] * 11
    write_digits(200, lambda number, _: root / "data/many")
    write({f"{n}.png": CLASSES[n % 3] if n else "cow" for n in range(200)})
    said = "row 1: 'cow' is no class.*answers like it: 1 of 200.*correct them, or leave them out by"
    assert_refused(said, opened, known=CLASSES, split="many")
    assert len(opened("t.csv?missing=skip", CLASSES, "many")) == 199
    assert "cow" in opened(split="many").values()


@pytest.mark.parametrize(
    "table, message",
    [
        ("u.csv", "--val-labels u.csv: no such file .nearest: t.csv"),
        ("t.csv,t.csv", "--val-labels t.csv,t.csv: expected one table"),
        ("t.csv?confidence=0.9", "confidence= is about weak labels"),
        ("t.csv?mising=skip", "--val-labels labels:t.csv.mising=skip: unknown"),
        ("t.csv#clas", "has no column 'clas' .nearest: class"),
        ("other.csv", "is about other data: none of its 1 answers names one of the 12 samples"),
        ("twice.csv", "say something else of a sample than one before, such as of 1;"),
    ],
)
def test_what_is_wrong_with_a_table(root: Path, table: str, message: str) -> None:
    write({"other.png": "cat"}, file="other.csv")
    write({"1.png": "cat", "1": "dog"}, file="twice.csv")
    assert_refused(message, opened, table)


@pytest.mark.parametrize("known", [None, CLASSES], ids=["--train-labels", "--val-labels"])
@pytest.mark.parametrize(
    ("header", "cell", "message"),
    [
        (
            "label",
            '"cat,dog"',
            "'cat,dog' holds several labels; expected one, or --task multilabel",
        ),
        ("label", "['cat']", "'..cat..' is a list; expected one, or --task multilabel"),
        ("cat,dog", "1,1", "take --task multilabel if an image has several or, if they are votes"),
    ],
)
def test_several_labels_are_asked_about(
    root: Path, known: list[str] | None, header: str, cell: str, message: str
) -> None:
    others = {f"{n}.png": "1,0" if header == "cat,dog" else CLASSES[n % 2] for n in range(1, 12)}
    write({"0.png": cell, **others}, f"filename,{header}")
    assert_refused(message, opened, known=known)


def test_a_class_map_is_about_folders(root: Path) -> None:
    assert_refused("--class-map is about class folders", opened, class_map="t.csv")
