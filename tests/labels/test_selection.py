"""Selection of clean samples: against loops written out, and the files that selections are kept in."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.parts import assert_refused
from w2s_plugins.data import Subset, create_dataset, take_slice
from w2s_plugins.labels import selection as module
from w2s_plugins.labels.selection import (
    Selection,
    agrees_with_neighbours,
    read_selection,
    selection_figures,
    smallest_share,
    take_selected,
)
from w2s_plugins.teachers.clean_select import most_certain


def random_features(count: int = 60, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 5, generator=generator)
    return features, torch.randint(4, (count,), generator=generator)


def by_loops(features: torch.Tensor, labels: torch.Tensor, k: int) -> list[bool]:
    x, y = features.double().numpy(), labels.tolist()
    found = []
    for i in range(len(x)):
        cosines = [
            x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) if j != i else -np.inf
            for j in range(len(x))
        ]
        votes = Counter(y[j] for j in np.argsort(cosines)[::-1][:k])
        found.append(votes[y[i]] == max(votes.values()))
    return found


@pytest.mark.parametrize("k", [1, 2, 7, 59])
def test_neighbours_by_loops(k: int) -> None:
    features, labels = random_features()
    found = agrees_with_neighbours(features, labels, k, 4)
    assert found.tolist() == by_loops(features, labels, k)
    assert k == 59 or 0 < found.sum() < 60


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = random_features()
    whole = agrees_with_neighbours(features, labels, 5, 4)
    monkeypatch.setattr(module, "BLOCK", 7 * 60)
    assert agrees_with_neighbours(features, labels, 5, 4).equal(whole)


@pytest.mark.parametrize("k", [1, 2])
def test_length_of_features_does_not_count_and_a_tie_is_no_objection(k: int) -> None:
    """The two nearest of the first are one of each class, so its label is among the most frequent."""
    features = torch.tensor([[1.0, 0.0], [9.0, 0.1], [0.1, 0.0], [0.0, 1.0], [0.1, 7.0]])
    labels = torch.tensor([0, 1, 0, 1, 1])
    assert agrees_with_neighbours(features, labels, k, 2).int().tolist() == [1, 0, 1, 1, 1]


@pytest.mark.parametrize(
    "share, chosen", [(0.4, [1, 3]), (0.2, [1]), (0.01, [1]), (1.0, [0, 1, 2, 3, 4])]
)
def test_smallest_share(share: float, chosen: list[int]) -> None:
    """Of equals the first, and one at least."""
    found = smallest_share(torch.tensor([0.5, 0.1, 0.9, 0.1, 0.3]), share)
    assert found.nonzero().flatten().tolist() == chosen


def test_figures() -> None:
    selected, given, clean = [True, True, True, False, False], [0, 1, 1, 0, 2], [0, 1, 0, 0, 1]
    figures = selection_figures(selected, given, clean)
    assert figures == dict(candidates=5, selected=3, empty_classes=1, precision=2 / 3, recall=2 / 3)
    unknown = selection_figures(torch.tensor(selected), given, None)
    assert unknown == {**figures, "precision": None, "recall": None}


def test_most_certain() -> None:
    shares = torch.tensor([[0.5, 0.5, 0.0], [0.9, 0.1, 0.0], [0.4, 0.3, 0.3], [1.0, 0.0, 0.0]])
    assert most_certain(shares, 0.5).tolist() == [False, True, False, True]


# ---------------------------------------------------------------- files


@pytest.fixture(scope="module")
def part() -> Subset:
    return take_slice(create_dataset("w2s/digits", None, "train"), "0:50", 0)


@pytest.mark.parametrize("name", ["own.txt", "plain.txt", "mask.npy", "indices.npy"])
def test_file_of_a_run_and_of_others(tmp_path: Path, part: Subset, name: str) -> None:
    kept = part.indices[::2]
    mask = np.zeros(1197, dtype=np.float32)
    mask[kept] = 1
    about = {"rule": "knn:3", "fingerprint": "abc"}
    (tmp_path / "own.txt").write_text(Selection(about, kept).to_text())
    (tmp_path / "plain.txt").write_text("\n".join(map(str, kept)))
    np.save(tmp_path / "mask.npy", mask)
    np.save(tmp_path / "indices.npy", np.array(kept))
    selected, found = read_selection(str(tmp_path / name), part, 1197, "abc")
    assert selected == [i % 2 == 0 for i in range(50)]
    assert found == (about if name == "own.txt" else {})
    assert take_selected(part, selected).targets == part.targets[::2]


@pytest.mark.parametrize(
    "array, message",
    [
        (np.array([0.5, 2.0]), "expected an index a line, or an npy"),
        (np.array([{}]), "expected an index a line, or an npy"),
        (None, "No such file"),
    ],
    ids=["shares", "objects", "none"],
)
def test_files_refused(
    tmp_path: Path, part: Subset, array: np.ndarray | None, message: str
) -> None:
    if array is not None:
        np.save(tmp_path / "a.npy", array)
    assert_refused(message, read_selection, str(tmp_path / "a.npy"), part, 1197, "abc")
