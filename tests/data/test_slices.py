"""Parts of a training set: disjoint, stratified, seeded; and what is refused."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.parts import assert_refused
from w2s_plugins.data import (
    Subset,
    create_dataset,
    hold_out,
    labels_of,
    parse_slice,
    stratified_order,
    take_slice,
)


@pytest.fixture(scope="module")
def digits():
    return create_dataset("w2s/digits", None, "train")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("0:0.3", (0.0, 0.3)),
        (":0.3", (None, 0.3)),
        ("40:", (40, None)),
        (" 40 : 80 ", (40, 80)),
        ("0:1", (0, 1)),
        ("0:1.0", (0.0, 1.0)),
        (":", (None, None)),
    ],
)
def test_parse_slice(text, expected):
    assert repr(parse_slice(text)) == repr(expected)  # 1 is a sample, and 1.0 is all


@pytest.mark.parametrize(
    "text", ["0.3", "a:b", "0.5:0.3", "40:40", "-1:5", "0:1.5", "0.1:0.2:0.3", "nan:0.5"]
)
def test_malformed_slice(text):
    assert_refused(f"--train-slice {text}: ", parse_slice, text)


few = st.lists(st.integers(0, 5), min_size=1, max_size=4)
many = st.lists(st.integers(0, 5), min_size=20, max_size=200)  # of few any order is stratified


@settings(max_examples=60, deadline=None, derandomize=True)
@given(few | many, st.integers(0, 2**31))
def test_order_is_stratified(labels, seed):
    """Up to any point every class has its share of what came so far, to within the rounding of each class."""
    order = stratified_order(labels, seed)
    assert sorted(order) == list(range(len(labels)))
    overall, found = Counter(labels), Counter()
    for count, index in enumerate(order, 1):
        found[labels[index]] += 1
        for label, total in overall.items():
            # each class is evenly spread, so where the cut falls is off by one sample a class
            share = total / len(labels)
            assert abs(found[label] - share * count) < 1 + share * len(overall)


@pytest.mark.parametrize(
    "text, count", [("0:0.3", 359), ("0:40", 40), ("40:", 1157), (":", 1197), ("0:40,60:80", 60)]
)
def test_shares_and_counts(digits, text, count):
    assert len(take_slice(digits, text, 0)) == count


def test_slices_are_parts_of_one_order(digits):
    one, other = (take_slice(digits, text, 0).indices for text in ("0:40", "60:80"))
    assert take_slice(digits, "0:40,60:80", 0).indices == sorted(one + other)
    assert Counter(take_slice(digits, "0:40", 0).targets) == dict.fromkeys(range(10), 4)
    assert take_slice(digits, None, 0) is digits


def test_subset_reads_the_samples_it_names(digits):
    part = take_slice(digits, "0:40", 0)
    assert labels_of(part) == part.targets == [digits.targets[i] for i in part.indices]
    read = [(part[k][0].tobytes(), part[k][1]) for k in (0, 17, 39)]
    named = [digits[part.indices[k]] for k in (0, 17, 39)]
    assert read == [(image.tobytes(), label) for image, label in named]
    twice = Subset(part, [5, 3])
    assert twice.targets == [part.targets[5], part.targets[3]]
    assert twice.classes == digits.classes
    assert twice.filenames() == [str(part.indices[5]), str(part.indices[3])]


@pytest.mark.parametrize("amount, count", [(0.1, 60), (50, 50), (1, 1), (0.0001, 1)])
def test_hold_out(digits, amount, count):
    part = take_slice(digits, "0:0.5", 0)
    rest, held = hold_out(part, amount, 0)
    assert len(held) == count
    assert sorted(rest.indices + held.indices) == list(range(len(part)))
    if count >= 50:
        assert max(Counter(held.targets).values()) - min(Counter(held.targets).values()) <= 3
    assert hold_out(part, amount, 0)[1].indices == held.indices


@pytest.mark.parametrize("amount", [1197, -3, 1.0, float("nan")])
def test_hold_out_refused(digits, amount):
    message = "--select-split .*: expected less than the 1197 training samples"
    assert_refused(message, hold_out, digits, amount, 0)


@pytest.mark.parametrize(
    "flag, take",
    [
        ("--train-slice", lambda data: take_slice(data, "0:3", 0)),
        ("--select-split", lambda data: hold_out(data, 3, 0)),
    ],
)
def test_dataset_without_labels(flag, take):
    class Unlabelled:
        def __len__(self):
            return 5

    message = f"{flag}: this kind of dataset does not tell its labels"
    assert_refused(message, take, Unlabelled())
