"""Label noise: definitions, labels of tables, and that it is the same whatever part of the split is looked at."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import Dataset

from tests.parts import Armed, assert_refused, lines, refusal, write_folder
from w2s_plugins.data import create_dataset, hold_out, labels_of, take_slice
from w2s_plugins.data.class_splits import keep_classes
from w2s_plugins.data.keys import positions_in_split
from w2s_plugins.labels.noise import (
    CIFAR100_SUPERCLASSES,
    LabelNoise,
    asymmetric_map,
    create_label_noise,
)

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CIFAR100 = sorted(CIFAR100_SUPERCLASSES.read_text().split())  # torchvision's order


class Labels(Dataset):
    """A dataset that has labels and no images."""

    def __init__(self, targets: list[int], classes: list[str]):
        self.targets, self.classes, self.transform = targets, classes, None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[int, int]:
        return index, self.targets[index]


def balanced(names: list[str], each: int) -> Labels:
    return Labels([c for _ in range(each) for c in range(len(names))], names)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return create_dataset("w2s/digits", None, "train")


def confusion(noise: LabelNoise) -> np.ndarray:
    """Shares of the given classes for each clean class, counted one by one."""
    counts = np.zeros((noise.num_classes,) * 2)
    for clean, given in zip(noise.clean, noise.labels):
        counts[clean, given] += 1
    return counts / counts.sum(1, keepdims=True)


@pytest.mark.parametrize("ratio", [0.2, 0.4])
def test_symmetric_draws_from_all_classes_the_own_included(ratio: float) -> None:
    noise = create_label_noise(f"symmetric:{ratio}", balanced(CIFAR10, 5000))
    expected = np.full((10, 10), ratio / 10) + np.eye(10) * (1 - ratio)
    error = np.sqrt(expected * (1 - expected) / 5000)  # a standard error
    assert (np.abs(confusion(noise) - expected) < 4 * error).all()
    changed = np.array(noise.labels) != np.array(noise.clean)
    assert abs(changed.mean() - 0.9 * ratio) < 0.004


@pytest.mark.parametrize("kind", ["symmetric", "pairflip"])
def test_more_noise_changes_what_less_noise_does_and_more(digits: Dataset, kind: str) -> None:
    few, many = (create_label_noise(f"{kind}:{r}", digits, seed=1) for r in (0.2, 0.45))
    changed, more = (np.array(noise.labels) != noise.clean for noise in (few, many))
    assert (np.array(many.labels)[changed] == np.array(few.labels)[changed]).all()
    assert more.sum() > changed.sum() > 0


@pytest.mark.parametrize(
    "text, seed, digest",  # computed apart from this project, with NumPy alone
    [
        ("symmetric:0.2", 0, "077a5cee1bb5"),
        ("symmetric:0.2", 1, "13e879a81370"),
        ("pairflip:0.45", 0, "690e0ac1121a"),
    ],
)
def test_labels_of_a_seed_are_for_ever(digits: Dataset, text: str, seed: int, digest: str) -> None:
    given = bytes(create_label_noise(text, digits, seed=seed).labels)
    assert hashlib.sha256(given).hexdigest().startswith(digest)


@pytest.mark.parametrize(
    "kind, moves",
    [
        ("asymmetric:0.4", {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}),
        ("pairflip:0.45", {c: (c + 1) % 10 for c in range(10)}),
    ],
)
def test_noise_that_depends_on_the_class(kind: str, moves: dict[int, int]) -> None:
    found = confusion(create_label_noise(kind, balanced(CIFAR10, 3000)))
    ratio, expected = float(kind.split(":")[1]), np.eye(10)
    for source, target in moves.items():
        expected[source, source], expected[source, target] = 1 - ratio, ratio
    assert (found[expected == 0] == 0).all() and (found[expected == 1] == 1).all()
    assert np.abs(found - expected).max() < 0.036  # 4 standard errors


def test_a_class_that_the_split_has_no_sample_of_is_drawn_too() -> None:
    """Its name is known, as by ``--class-map``."""
    images = Labels([0, 1] * 300, ["cat", "dog", "hen"])
    noise = create_label_noise("symmetric:0.5", images)
    assert {*noise.labels} == {0, 1, 2} and noise.num_classes == 3
    assert [len(row) for row in noise.record(noise.apply(images))["confusion"]] == [3, 3, 3]
    flipped = create_label_noise("pairflip:0.4", images)
    assert {*zip(flipped.clean, flipped.labels)} == {(0, 0), (0, 1), (1, 1), (1, 2)}


def test_cifar100_moves_inside_its_superclasses() -> None:
    assert len(CIFAR100) == len(set(CIFAR100)) == 100
    mapping = asymmetric_map(CIFAR100, 100)
    other_name = ["computer_keyboard" if name == "keyboard" else name for name in CIFAR100]
    assert asymmetric_map(other_name, 100) == mapping
    named = {CIFAR100[c]: CIFAR100[m] for c, m in enumerate(mapping)}
    moves = "beaver dolphin, seal whale, whale beaver, tractor lawn_mower, pine_tree willow_tree, willow_tree maple_tree"
    assert dict(move.split() for move in moves.split(", ")).items() <= named.items()
    assert sorted(mapping) == list(range(100))


# ---------------------------------------------------------------- parts of the split


@pytest.mark.parametrize("start", CIFAR100)
def test_a_superclass_of_cifar100_has_five_classes(start: str) -> None:
    mapping = asymmetric_map(CIFAR100, 100)
    circle = [CIFAR100.index(start)]
    while (following := mapping[circle[-1]]) != circle[0]:
        circle.append(following)
    assert len(circle) == 5


@pytest.mark.parametrize("cut", ["80:", "0.25:0.75"])
@pytest.mark.parametrize("piece", [0, 1], ids=["trained on", "held out"])
def test_a_sample_has_the_same_label_in_every_slice(digits: Dataset, cut: str, piece: int) -> None:
    noise = create_label_noise("symmetric:0.4", digits, seed=3)
    part = hold_out(take_slice(digits, cut, 5), 20, 5)[piece]
    noisy = noise.apply(part)
    given, clean, positions = labels_of(noisy), labels_of(part), positions_in_split(part)
    assert given == [noise.labels[i] for i in positions]
    assert noise.clean_labels(noisy) == clean
    image, label = noisy[7]
    assert label == noisy.targets[7]
    assert image.tobytes() == digits[positions[7]][0].tobytes()
    record, pairs = noise.record(noisy), list(zip(given, clean))
    assert record["changed"] == sum(g != c for g, c in pairs) == record["rate"] * len(part)
    counts = [[pairs.count((given, clean)) for given in range(10)] for clean in range(10)]
    assert record["confusion"] == counts and record["samples"] == len(part)


def test_positions_with_a_class_list_are_those_of_its_samples(digits: Dataset) -> None:
    listed = keep_classes(digits, ["3", "7", "8"], "--class-list")
    part = take_slice(listed, "10:40", 0)
    noise = create_label_noise("symmetric:0.5", listed, seed=3)
    noisy = noise.apply(part)
    assert (
        labels_of(noisy) == [noise.labels[i] for i in positions_in_split(part)] != labels_of(part)
    )
    assert noise.clean_labels(noisy) == labels_of(part) and set(labels_of(part)) == {0, 1, 2}
    assert (
        noisy[5][0].tobytes() == digits[positions_in_split(noisy, all_classes=True)[5]][0].tobytes()
    )


def test_dataset_that_does_not_tell_its_labels() -> None:
    assert_refused(
        "--label-noise: this kind of dataset does not tell its labels",
        create_label_noise,
        "symmetric:0.2",
        range(3),
    )


# ---------------------------------------------------------------- tables


@pytest.fixture
def small() -> Labels:
    return Labels([0, 1, 2, 0, 1], ["cat", "dog", "hen"])


GIVEN = [1, 1, 2, 0, 2]


@pytest.mark.parametrize("text", ["a.csv", "labels.npy", "human.npz#worse_label"])
def test_labels_of_a_table(tmp_path: Path, small: Labels, text: str) -> None:
    """Also those that a run writes, and as the code of Sel-CL stores labels."""
    (tmp_path / "a.csv").write_text("index,given,clean\n4,2,1\n3,0,0\n2,2,2\n1,1,1\n0,1,0\n")
    np.save(tmp_path / "labels.npy", np.array(GIVEN))
    np.savez(tmp_path / "human.npz", clean_label=small.targets, worse_label=GIVEN)
    noise = create_label_noise(f"labels:{tmp_path / text}", small)
    assert noise.labels == GIVEN and noise.kind == f"labels:{text}"
    assert noise.record(noise.apply(small))["rate"] == 0.4


REFUSED = r"""
human.npz#worst_label  ->  no column 'worst_label' \(nearest: worse_label
human.npz#worse_label  ->  its column clean_label differs from the dataset's labels in 3 of 5 samples .first: 0
short.csv  ->  1 of 5 training samples are missing \(first: 4\)
bomb.npy  ->  cannot be read as npy
odd.csv  ->  row 2: '[?]' is no class; .* answers like it: 1 of 5 .*; correct them$
nowhere.csv  ->  labels:nowhere.csv: no such file
"""


@pytest.mark.parametrize("text, said", lines(REFUSED))
def test_tables_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Labels, text: str, said: str
) -> None:
    """And no code in them is run."""
    monkeypatch.chdir(tmp_path)
    np.savez("human.npz", clean_label=GIVEN[::-1], worse_label=GIVEN)
    np.save("bomb.npy", np.array([Armed("exploded")], dtype=object))
    Path("short.csv").write_text("id,label\n0,1\n1,1\n2,0\n3,0\n")
    Path("odd.csv").write_text("id,label\n0,1\n1,?\n2,0\n3,0\n4,0\n")
    found = refusal(create_label_noise, f"labels:{text}", small)
    assert "?missing" not in found  # each sample needs a label
    assert found.startswith(f"--label-noise labels:{text}") and re.search(said, found)
    assert not Path("exploded").exists()


LISTS = r"""
label / "cat,dog" / dog / hen / cat / hen  ->  row 1: 'cat,dog' holds several labels; expected one, or --task multilabel
label / "cat,dog" / "cat,dog" / "cat,dog" / "cat,dog" / "cat,dog"  ->  holds several labels; .* 5 of 5
label / "[""cat"", ""dog""]" / dog / hen / cat / hen  ->  holds several labels; expected one, or --task multilabel
label / ['cat'] / ['dog'] / ['hen'] / ['cat'] / ['hen']  ->  row 1: '\['cat'\]' is a list; expected one, or --task multi
label / cat;dog / dog / hen / cat / hen  ->  row 1: 'cat;dog' holds several labels; expected one, or --task multilabel
label / 0;1 / 1 / 2 / 0 / 2  ->  row 1: '0;1' holds several labels; expected one, or --task multilabel
cat,dog,hen / 1,1,0 / 0,1,0 / 0,0,1 / 1,0,0 / 0,0,1  ->  take --task multilabel if an image has several or, if they are votes
cat,dog,hen / 1,,0 / 0,1,0 / 0,0,1 / 1,0,0 / 0,0,1  ->  take --task multilabel if an image has several or, if columns are
"""


@pytest.mark.parametrize("rows, said", lines(LISTS))
@pytest.mark.parametrize("names", [["cat", "dog", "hen"], None], ids=["names", "numbers"])
def test_tables_of_several_labels_are_asked_about(
    tmp_path: Path, small: Labels, rows: str, said: str, names: list[str] | None
) -> None:
    """By the lines of any table, also where the classes of the data have no names."""
    small.classes = names
    if names is None:
        places = {"cat": "0", "dog": "1", "hen": "2"}
        rows, said = (re.sub("cat|dog|hen", lambda m: places[m[0]], text) for text in (rows, said))
    header, *cells = rows.split(" / ")
    text = "\n".join([f"id,{header}", *(f"{i},{cell}" for i, cell in enumerate(cells))])
    (tmp_path / "t.csv").write_text(text)
    found = refusal(create_label_noise, f"labels:{tmp_path / 't.csv'}", small)
    assert found.startswith(f"--label-noise labels:{tmp_path / 't.csv'}: ")
    assert re.search(said, found), found


def test_several_rows_of_a_sample_are_asked_about(tmp_path: Path, small: Labels) -> None:
    (tmp_path / "t.csv").write_text("id,label\n0,cat\n0,dog\n1,dog\n2,hen\n3,cat\n4,dog\n")
    message = "say something else of a sample than one before.* take --task multilabel if an image"
    assert_refused(message, create_label_noise, f"labels:{tmp_path / 't.csv'}", small)


def test_a_table_is_of_files_in_any_order_and_of_listed_classes(tmp_path: Path) -> None:
    data = create_dataset("", str(write_folder(tmp_path / "data", {"train": 12})), "train")
    part = keep_classes(data, ["class0", "class2"], "--class-list")
    rows = "".join(f"{name},{i % 2}\n" for i, name in enumerate(part.filenames()[::-1]))
    (tmp_path / "crowd.csv").write_text("path,label\n" + rows)
    noise = create_label_noise(f"labels:{tmp_path / 'crowd.csv'}", part)
    assert noise.labels == [i % 2 for i in range(len(part))][::-1]
    fifth = take_slice(part, "0:5", 3)
    noisy = noise.apply(fifth)
    assert labels_of(noisy) == [noise.labels[i] for i in positions_in_split(fifth)]
    noisy.transform = np.asarray  # names and the transform are those of the images
    assert noisy.filenames() == fifth.filenames() and isinstance(noisy[0][0], np.ndarray)
