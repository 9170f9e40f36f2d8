"""Which classes a run has and what they are called: ``--class-names``, the data, the teacher; splits that lack some."""

import logging
import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file
from timm.data import ImageNetInfo
from timm.models import save_for_hf

from tests.parts import small_model, train_settings, write_folder
from w2s_plugins.data.datasets import class_names_of, labels_of, num_classes_of
from w2s_plugins.errors import UserError
from w2s_plugins.labels.names import read_class_names
from w2s_plugins.labels.published import Place
from w2s_plugins.models.class_names import imagenet_names, match_classes, names_of_data
from w2s_plugins.registry import load_plugins
from w2s_plugins.training.classes import classes_of_teacher
from w2s_plugins.training.data import build_data
from w2s_plugins.training.labels import LabelSource
from w2s_plugins.training.splits import Data

NAMES = ["class0", "class1", "class2"]
ORDER = "class2,class0,class1"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data", {"train": 9, "validation": 6})


def build(root: Path, *flags: object) -> Data:
    return build_data(train_settings("--batch-size 4 --data-dir", root, *flags, dataset=""))


def unlabeled(root: Path, *flags: object) -> Data:
    return build_data(train_settings("--unlabeled", root / "train", *flags, dataset=""))


# ---------------------------------------------------------------- the flag


@pytest.mark.parametrize(
    "content",
    ["cat\ndog\nred fox\n", "\ufeffcat\r\n\r\n dog \r\nred fox", '["cat", "dog", "red fox"]'],
)
def test_a_file_of_names(tmp_path: Path, content: str) -> None:
    (tmp_path / "names").write_bytes(content.encode())
    assert read_class_names(str(tmp_path / "names")) == ["cat", "dog", "red fox"]
    assert read_class_names("cat, dog,red fox") == ["cat", "dog", "red fox"]


def test_names_of_labelled_data(root: Path) -> None:
    plain = build(root)
    assert (plain.class_names, plain.num_classes, len(plain.train), len(plain.val)) == (
        NAMES,
        3,
        9,
        6,
    )
    assert build(root, "--val-split", "").val is None
    other = build(root, "--class-names", ORDER)  # another order: labels follow
    assert (
        other.class_names
        == names_of_data(other.train)
        == names_of_data(other.val)
        == ["class2", "class0", "class1"]
    )
    for split in ("train", "val"):
        before, after = labels_of(getattr(plain, split)), labels_of(getattr(other, split))
        assert [other.class_names[label] for label in after] == [NAMES[label] for label in before]
        assert [getattr(other, split)[i][1] for i in range(6)] == after[:6]
    cut = [
        build(root, *flags, "--train-slice 0:5").train.filenames()
        for flags in ((), ("--class-names", ORDER))
    ]
    assert cut[0] == cut[1], "a slice is of the same samples whatever the order of the classes"
    more = build(
        root, "--class-names a,class2,class0,class1 --num-classes 4"
    )  # of which the data lack one
    assert (more.num_classes, sorted(set(labels_of(more.train)))) == (4, [1, 2, 3])
    renamed = build(root, "--class-names cat,dog,fox")
    assert class_names_of(renamed.val) == renamed.class_names == ["cat", "dog", "fox"]
    assert labels_of(renamed.train) == labels_of(plain.train)
    assert labels_of(build(root, "--class-names class0,dog,class2").train) == labels_of(plain.train)


# ---------------------------------------------------------------- splits that lack classes


def test_a_validation_split_that_lacks_classes(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(root / "validation" / "class0")
    caplog.set_level(logging.INFO)
    data = build(root)
    assert "The split 'validation' has 2 of the 3 classes; it lacks class0" in caplog.text
    assert (data.num_classes, labels_of(data.val)) == (3, [1, 1, 2, 2])
    assert [data.val[i][1] for i in range(4)] == [1, 1, 2, 2]
    assert num_classes_of(data.val) == 3 and names_of_data(data.val) == NAMES


def test_a_validation_split_with_a_class_of_its_own(root: Path) -> None:
    (root / "validation" / "class1").rename(root / "validation" / "clas1")
    with pytest.raises(
        UserError,
        match=r"'clas1' of 'validation' is none of the 3 of the training set .*nearest: cl",
    ):
        build(root)


# ---------------------------------------------------------------- without labels


@pytest.fixture
def weak(tmp_path: Path) -> Path:
    """An export of a teacher with names in an order of its own."""
    model = small_model(num_classes=3)
    save_for_hf(
        model,
        tmp_path / "weak",
        model_config=dict(label_names=[*reversed(NAMES)]),
        safe_serialization=True,
    )
    return tmp_path / "weak"


def test_where_names_come_from(root: Path, weak: Path, tmp_path: Path) -> None:
    teacher, val = ("--teacher", f"local-dir:{weak}"), ("--data-dir", root)
    shutil.rmtree(root / "validation" / "class1")
    assert unlabeled(root, *teacher).class_names == [*reversed(NAMES)]
    assert unlabeled(root, *teacher, "--class-names a,b,c").class_names == ["a", "b", "c"]
    data = unlabeled(root, *teacher, *val)
    assert (data.class_names, data.num_classes) == ([*reversed(NAMES)], 3)
    assert sorted(set(labels_of(data.val))) == [0, 2]
    assert names_of_data(data.train) == data.class_names  # which stored labels take over
    nameless = tmp_path / "weak.safetensors"
    save_file(small_model(num_classes=2).state_dict(), nameless)
    teacher = ("--teacher", "w2s_cnn2", "--teacher-checkpoint", nameless)
    assert unlabeled(root, *teacher, *val).class_names == ["class0", "class2"]
    data = unlabeled(root, *teacher)
    assert (data.class_names, data.num_classes) == (None, 2)
    assert unlabeled(root, *teacher, "--num-classes 2").num_classes == 2


def test_a_kind_of_teacher_that_takes_the_names(root: Path, tmp_path: Path) -> None:
    """That of the examples: it is not asked for classes, of which it has none."""
    code = (Path(__file__).parents[2] / "examples/teacher_prefix.py").read_text()
    (tmp_path / "names_taker.py").write_text(code.replace('"mine"', '"names-taker"'))
    load_plugins([str(tmp_path / "names_taker.py")])
    teacher = ("--teacher", "names-taker:something")
    with pytest.raises(UserError, match="which classes there are is said by nothing; give --class"):
        unlabeled(root, *teacher)
    assert unlabeled(root, *teacher, "--class-names a,b,c").class_names == ["a", "b", "c"]
    assert unlabeled(root, *teacher, "--data-dir", root).class_names == NAMES


def test_names_of_labels_and_a_model(root: Path, weak: Path, tmp_path: Path) -> None:
    """All that is named counts: files may have seen a part of the classes only."""
    for name, lines in (
        ("a", "0.png,owl\n1.png,class2"),
        ("b", "0.png,class2\n1.png,emu"),
        ("c", "0.png,7"),
    ):
        (tmp_path / f"{name}.csv").write_text(f"filename,label\n{lines}\n")

    def names(*names: str) -> list[str] | None:
        found = [LabelSource(name, Place(tmp_path / name)) for name in names]
        teacher = ",".join([*(f"labels:{name}" for name in names), f"local-dir:{weak}"])
        settings = train_settings("--unlabeled", root / "train", "--teacher", teacher, dataset="")
        return build_data(settings, found).class_names

    assert names("a.csv", "b.csv") == ["class2", "owl", "emu", "class1", "class0"]
    assert names("b.csv", "a.csv", "c.csv") == ["class2", "emu", "owl", "class1", "class0"]
    assert names("c.csv") == [*reversed(NAMES)]

    # columns of annotators are known by the classes of the samples that have labels
    rows = [
        "photo,anna,bob,note",
        "0.png,class1,owl,x",
        "1.png,class2,class0,y",
        "2.png,class1,class0,z",
    ]
    (tmp_path / "d.csv").write_text("\n".join(rows))
    settings = train_settings(
        "--unlabeled",
        str(root / "train"),
        "--data-dir",
        root,
        "--teacher labels:d.csv --val-split validation",
        dataset="",
    )
    data = build_data(settings, [LabelSource("d.csv", Place(tmp_path / "d.csv"))])
    assert data.class_names == [*NAMES, "owl"]

    # and what is nearly called as one of these is misspelt, however often
    (tmp_path / "d.csv").write_text("photo,label\n0.png,clas-s1\n1.png,clas-s1\n2.png,owl\n")
    with pytest.raises(
        UserError, match=r"2 of 3 \('clas-s1' 2 \(nearest: class1\)\); .* --class-names"
    ):
        build_data(settings, [LabelSource("d.csv", Place(tmp_path / "d.csv"))])
    (tmp_path / "a.csv").write_text("filename,label\n0.png,owl\n")
    with pytest.raises(
        UserError, match=r"none of its 3 classes .* is one of the 1 of the data \('owl', ...\)"
    ):
        names("a.csv")


def test_labelled_samples_beside_images_without_labels(
    root: Path, weak: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = (
        "--teacher",
        f"local-dir:{weak}",
        "--data-dir",
        root,
        "--val-split",
        "",
        "--task-loss-weight",
        "0.5",
    )
    data = unlabeled(root, *flags, "--train-slice 0:6")
    assert (data.class_names, len(data.train), len(data.labelled_set)) == ([*reversed(NAMES)], 9, 6)
    files = data.labelled_set.filenames()
    assert [data.class_names[label] for label in labels_of(data.labelled_set)] == [
        Path(f).parent.name for f in files
    ]
    assert [data.labelled_set[i][1] for i in range(6)] == labels_of(data.labelled_set)
    for split in ("train", "validation"):
        (root / split / "class1").rename(root / split / "owl")
    data = unlabeled(root, *flags)  # a class that the teacher never names
    assert (data.class_names, data.num_classes) == ([*reversed(NAMES), "owl"], 4)
    assert sorted(set(labels_of(data.labelled_set))) == [0, 2, 3]
    for number in (0, 2):
        (root / "train" / f"class{number}").rename(root / "train" / f"cat{number}")
    with pytest.raises(
        UserError,
        match=r"none of its 3 classes \('class2', 'class1', ...\) is one of the 3 of the "
        r"data \('cat0', 'cat2', ...\)",
    ):
        unlabeled(root, *flags)


SYNSETS, WORDS = [*ImageNetInfo().label_names()], [*ImageNetInfo().label_descriptions()]


@pytest.mark.parametrize("names", [SYNSETS[1:], WORDS[::-1]], ids=["synsets", "words"])
def test_names_of_imagenet_are_matched(names: list[str]) -> None:
    theirs = imagenet_names(small_model(num_classes=1000), names)
    matched = match_classes("teacher", theirs, names).tolist()
    known = {old: names[new] for old, new in enumerate(matched) if new >= 0}
    assert len(known) == len(names)
    assert all(name in (SYNSETS[old], WORDS[old]) for old, name in known.items())


def test_names_of_imagenet_that_need_no_matching_or_have_none() -> None:
    model = small_model(num_classes=1000)
    theirs = imagenet_names(model, SYNSETS)
    assert match_classes("teacher", theirs, SYNSETS) is None, "in the same order"
    assert imagenet_names(model, ["cat", "dog"]) is None, "there are kinds of them only"


def test_names_that_may_be_lists_are_said_in_a_training(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once: the table is read again with its own names, which nothing is said of."""
    Path(tmp_path, "t.csv").write_text('image,label\na,"beach, dog"\nb,cat\nc,bird\n')
    table = tmp_path / "t.csv"
    flags = ["--unlabeled", root / "train", "--teacher", f"labels:{table}"]
    settings = train_settings(*flags, dataset="")
    labels = [LabelSource(str(table), Place(table))]
    assert classes_of_teacher(settings.teacher, 3, labels=labels)[1] == 3
    said = "t.csv: taken for one class each: 'beach, dog'; if these are several labels, take --task"
    assert caplog.text.count(said) == 1


def test_synsets_of_imagenet(root: Path) -> None:
    settings = train_settings("--unlabeled", root / "train", "--teacher resnet18", dataset="")
    names, count = classes_of_teacher(settings.teacher, 3)
    assert (count, len(names), names[0]) == (1000, 1000, "n01440764")
    settings = train_settings("--unlabeled", root / "train", "--teacher w2s_cnn2", dataset="")
    assert classes_of_teacher(settings.teacher, 3) == (None, 10)
