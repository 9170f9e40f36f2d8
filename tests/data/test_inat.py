"""iNaturalist: the published lists with their images, and what is refused."""

import json

import pytest

from tests.parts import SPECIES, assert_refused, lines, write_folder, write_list
from w2s_plugins.data import create_dataset, labels_of
from w2s_plugins.data.datasets import class_names_of, num_classes_of
from w2s_plugins.data.decoding import FileDataset
from w2s_plugins.data.keys import describe


@pytest.fixture
def inat(tmp_path):
    write_folder(tmp_path / "train_val2018", {"Amphibia": 9})
    write_list(tmp_path, "train2018.json", "train_val2018")
    write_list(tmp_path, "val2018.json", "train_val2018")
    return tmp_path


def refused(root, message, **kwargs):
    where = "inat2018", root and str(root), "train"
    assert_refused(message, create_dataset, *where, flag="--train-split", **kwargs)


def test_labels_are_those_of_the_list(inat):
    dataset = create_dataset("inat2018", str(inat), "train")
    assert type(dataset) is FileDataset and len(dataset) == 9
    names = dataset.filenames()
    assert names[0].startswith("train_val2018/Amphibia/class") and len(set(names)) == 9
    expected = [int(name.split("class")[1][0]) for name in names]
    assert labels_of(dataset) == [dataset[i][1] for i in range(9)] == expected
    assert class_names_of(dataset) == SPECIES and num_classes_of(dataset) == 4
    assert dataset[0][0].size == (48, 40) and dataset.filename(0, basename=True).endswith(".jpg")
    folders = create_dataset("", str(inat / "train_val2018"), "Amphibia")
    one, other = (describe(data, "inat2018", "train").fingerprint for data in (dataset, folders))
    assert one != other


@pytest.mark.parametrize("split", ["train", "train_mini", "val"])
def test_2021_and_lists_in_a_folder_of_their_own(inat, split):
    write_list(inat, f"annotations/{split}.json", "train_val2018")
    assert len(create_dataset("inat2021", str(inat), split)) == 9


def test_images_elsewhere(inat):
    (inat / "train_val2018").rename(inat / "images")
    refused(
        inat,
        r"train2018.json: its images are missing, the first is \S+/class\d/00\d.jpg; .*--data-dir",
    )


def test_names_in_the_open_and_names_of_several_classes(inat):
    categories = [dict(id=i, name=f"species {i // 2}") for i in range(4)]
    (inat / "categories.json").write_text(json.dumps(categories))
    dataset = create_dataset("inat2018", str(inat), "train")
    assert class_names_of(dataset) == ["species 0 0", "species 0 1", "species 1 2", "species 1 3"]


ONCE = "9 images and labels of 9; expected one label of each, and every image once"


@pytest.mark.parametrize(
    ("key", "entry", "message"),
    [
        ("images", None, "not a list of iNaturalist's form"),
        ("images", dict(file_name="../x/0.jpg"), "'../x/0.jpg' is no path inside --data-dir"),
        ("images", dict(file_name="/etc/passwd"), "'/etc/passwd' is no path inside --data-dir"),
        ("images", dict(id=900), ONCE),
        ("images", "same", ONCE),
        ("annotations", dict(image_id=900), "9 images and labels of 8"),
        ("annotations", dict(category_id="5"), "expected .* whole numbers"),
        ("annotations", dict(category_id=4), "expected ids from 0 to 3"),
        ("categories", dict(id=4), "expected ids from 0 to 3"),
    ],
)
def test_a_bad_list(inat, key, entry, message):
    entries = write_list(inat, "train2018.json", "train_val2018")[key]
    if entry == "same":
        entry = dict(file_name=entries[1]["file_name"])
    entries[2] = {**entries[2], **entry} if isinstance(entry, dict) else entry
    write_list(inat, "train2018.json", "train_val2018", **{key: entries})
    refused(inat, message)


NO_LISTS = """
{"images": []}  ->  a list of test images has no annotations
{"images": [], "annotations": []}  ->  0 images
{"images"  ->  not a readable json file
[1]  ->  iNaturalist's form
7  ->  iNaturalist's form
"""


@pytest.mark.parametrize("text, message", lines(NO_LISTS))
def test_no_list(inat, text, message):
    (inat / "train2018.json").write_text(text)
    refused(inat, message)


def test_nothing_there(inat):
    refused(None, "--dataset inat2018 needs --data-dir FOLDER")
    refused(inat / "nowhere", "nowhere: no such folder")
    refused(inat, "--class-map", class_map="x")
    (inat / "train2018.json").unlink()
    near = r"\(nearest: val2018.json\); found: val2018.json"
    refused(inat, rf"--train-split train: no train2018.json in \S+ {near}")
    message = r"unknown dataset 'inat2017' \(nearest: inat20"
    assert_refused(message, create_dataset, "inat2017", str(inat), "train")
