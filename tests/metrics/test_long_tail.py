"""Accuracy by the number of training samples, against a computation with NumPy."""

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset

from tests.parts import assert_refused, train_settings
from w2s_plugins.metrics.long_tail import (
    ShotGroups,
    choose_groups,
    count_classes,
    counts_to_json,
    read_counts,
)
from w2s_plugins.training.data import build_data


def by_numpy(counts, predictions, targets, few, many):
    groups = {"many": [], "medium": [], "few": []}
    for c, count in enumerate(counts):
        mine = targets == c
        if mine.any():
            name = "many" if count > many else "few" if count < few else "medium"
            groups[name].append((predictions[mine] == c).mean())
    return {f"top1_{name}": 100 * np.mean(values) for name, values in groups.items() if values}


@pytest.mark.parametrize("few, many", [(20, 100), (50, 50)])
@pytest.mark.parametrize("seed", range(3))
def test_means_over_classes(seed, few, many):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 200, 30)
    targets = rng.integers(0, 29, 150)  # class 29 and, by chance, others have no evaluated sample
    targets[targets == 7] = 8
    predictions = np.where(rng.random(150) < 0.6, targets, rng.integers(0, 30, 150))
    found = measured(ShotGroups(counts.tolist(), few, many), predictions, targets)
    assert found == pytest.approx(by_numpy(counts, predictions, targets, few, many))


def measured(groups, predictions, targets):
    cpu = torch.device("cpu")
    return groups.evaluate(torch.tensor(predictions), torch.tensor(targets), cpu, distributed=False)


def test_published_thresholds():
    groups = ShotGroups([19, 20, 100, 101])
    members = {name: mask.nonzero().flatten().tolist() for name, mask in groups.masks().items()}
    assert members == {"many": [3], "medium": [1, 2], "few": [0]}
    said = "1 many-shot classes (more than 100 training samples), 2 medium-shot, 1 few-shot"
    assert str(groups).startswith(said)


@pytest.mark.parametrize(
    "counts, predictions, targets, expected",
    [
        ([1, 200, 50], [0, 1, 0, 0], [0, 0, 2, 2], {"top1_few": 50.0, "top1_medium": 0.0}),
        ([1, 50], [1], [1], {"top1_medium": 100.0}),
    ],
)
def test_a_group_without_samples_is_left_out(counts, predictions, targets, expected):
    assert measured(ShotGroups(counts), predictions, targets) == expected


TAIL, EVEN = [500, 3], [500, 400]


@pytest.mark.parametrize(
    "when, counts, measured",
    [
        ("auto", TAIL, True),
        ("auto", EVEN, False),
        ("auto", None, False),
        ("always", EVEN, True),
        ("never", TAIL, False),
    ],
)
def test_when_it_is_measured(when, counts, measured):
    expected = ShotGroups(counts, 20, 100) if measured else None
    assert choose_groups(when, counts, (20, 100)) == expected


def test_what_cannot_be_measured():
    message = "--long-tail always: this kind of dataset does not tell its labels"
    assert_refused(message, choose_groups, "always", None, (20, 100))


def test_counts_are_those_of_the_whole_split():
    flags = "--train-slice 0:0.1 --label-noise symmetric:0.5 --long-tail always"
    groups = build_data(train_settings(flags)).groups
    assert sum(groups.counts) == 1197 and len(groups.counts) == 10
    assert build_data(train_settings("--train-slice 0:0.1")).groups is None
    assert build_data(train_settings("--long-tail 120:120")).groups is not None


def test_every_class_is_counted_and_streams_are_not():
    class Labelled:
        targets = (0, 1, 0)

        def __len__(self):
            return 3

    class Stream(IterableDataset):
        def __iter__(self):
            return iter([(None, 1)])

    assert count_classes(Labelled(), 4) == [2, 1, 0, 0]
    assert count_classes(Stream(), 3) is None


@pytest.mark.parametrize("text", [counts_to_json("train", [3, 0, 5]), "[3, 0, 5]"])
def test_file_of_counts(tmp_path, text):
    path = tmp_path / "c.json"
    path.write_text(text)
    assert read_counts(path, "--checkpoint") == [3, 0, 5]


@pytest.mark.parametrize(
    "text", ["", "[]", "[1, -2]", "[1.5]", '{"a": 1}', "3", '{"counts": "12"}']
)
def test_file_of_no_counts(tmp_path, text):
    path = tmp_path / "c.json"
    path.write_text(text)
    message = "--checkpoint .*c.json: expected class_counts.json of a run"
    assert_refused(message, read_counts, path, "--checkpoint")
