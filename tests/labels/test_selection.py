"""Selection of clean samples: against loops written out, and the files that selections are kept in."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from w2s_plugins.labels.trust import held_out_auc, read_known, traits, trust_in

from w2s_plugins.cli.forms import parse_selection
from w2s_plugins.data import Subset, create_dataset, take_slice
from w2s_plugins.errors import UserError
from w2s_plugins.labels import selection as module
from w2s_plugins.labels.selection import (
    Selection,
    agrees_with_neighbours,
    beyond_the_weak,
    has_small_loss,
    read_selection,
    selection_figures,
    take_selected,
)
from w2s_plugins.teachers.clean_select import say_trust, sure_of


def random_features(count: int = 60, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 5, generator=generator), torch.randint(4, (count,), generator=generator)


def by_loops(features: torch.Tensor, labels: torch.Tensor, k: int) -> list[bool]:
    x, y = features.double().numpy(), labels.tolist()
    found = []
    for i in range(len(x)):
        cosines = [x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) if j != i else -np.inf
                   for j in range(len(x))]
        votes = Counter(y[j] for j in np.argsort(cosines)[::-1][:k])
        found.append(votes[y[i]] == max(votes.values()))
    return found


@pytest.mark.parametrize("k", [1, 2, 7, 59])
def test_neighbours_by_loops(k: int) -> None:
    features, labels = random_features()
    found = agrees_with_neighbours(features, labels, k, 4)
    assert found.tolist() == by_loops(features, labels, k)
    assert k == 59 or 0 < found.sum() < 60


def test_blocks_and_shares_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = random_features()
    whole = agrees_with_neighbours(features, labels, 5, 4)
    monkeypatch.setattr(module, "BLOCK", 7 * 60)
    assert agrees_with_neighbours(features, labels, 5, 4).equal(whole)
    shares = [agrees_with_neighbours(features, labels, 5, 4, rank=r, world_size=3) for r in range(3)]
    assert all(share.any() for share in shares)
    assert torch.stack(shares).sum(0).equal(whole.long())


def test_length_of_features_does_not_count_and_a_tie_is_no_objection() -> None:
    features = torch.tensor([[1.0, 0.0], [9.0, 0.1], [0.1, 0.0], [0.0, 1.0], [0.1, 7.0]])
    labels = torch.tensor([0, 1, 0, 1, 1])
    # the two nearest of the first are one of each class, so its label is among the most frequent
    assert agrees_with_neighbours(features, labels, 2, 2).tolist() == [True, False, True, True, True]
    assert agrees_with_neighbours(features, labels, 1, 2).tolist() == [True, False, True, True, True]


def test_as_many_neighbours_as_samples() -> None:
    with pytest.raises(UserError, match="--clean-select knn:60: expected less than the 60 training samples"):
        agrees_with_neighbours(*random_features(), 60, 4)


def test_small_loss() -> None:
    losses = torch.tensor([0.5, 0.1, 0.9, 0.1, 0.3])
    assert has_small_loss(losses, 0.4).tolist() == [False, True, False, True, False]
    assert has_small_loss(losses, 0.2).tolist() == [False, True, False, False, False]  # of equals the first
    assert has_small_loss(losses, 0.01).sum() == 1
    assert has_small_loss(losses, 1.0).all()


def test_projection_by_whole_kernels() -> None:
    generator = torch.Generator().manual_seed(0)
    weak, strong, y = (torch.randn(40, size, generator=generator, dtype=torch.float64) for size in (3, 60, 4))
    y = (y + strong[:, :4]).softmax(dim=1)
    smoothers = []
    for x in (weak.numpy(), strong.numpy()):
        k = x @ x.T / 40
        smoothers.append(k @ np.linalg.inv(k + 0.1 * np.trace(k) / 40 * np.eye(40)))
    expected = smoothers[1] @ (np.eye(40) - smoothers[0]) @ (y - y.mean(dim=0)).numpy()
    found = beyond_the_weak(weak.float(), strong.float(), y)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-4, atol=1e-6)
    assert beyond_the_weak(strong, weak, y).norm() < found.norm()


def test_figures() -> None:
    selected, given, clean = [True, True, True, False, False], [0, 1, 1, 0, 2], [0, 1, 0, 0, 1]
    figures = selection_figures(selected, given, clean, 4)
    assert figures == dict(candidates=5, selected=3, empty_classes=1, precision=2 / 3, recall=2 / 3)
    unknown = selection_figures(torch.tensor(selected), given, None, 4)
    assert unknown == {**figures, "precision": None, "recall": None}


def test_sure() -> None:
    shares = torch.tensor([[0.5, 0.5, 0.0], [0.9, 0.1, 0.0], [0.4, 0.3, 0.3], [1.0, 0.0, 0.0]])
    assert sure_of(shares, "entropy", 0.5).tolist() == [False, True, False, True]
    assert sure_of(shares, "confidence", 0.9).tolist() == [False, True, False, True]
    with pytest.raises(UserError, match=r"confidence:0\.95: .* that sure of no sample; expected at most 0\.900"):
        sure_of(shares[:3], "confidence", 0.95)


def teacher_with_a_blind_spot(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and whether they are right: sure and wrong of class 2, elsewhere right as often as it says."""
    generator = torch.Generator().manual_seed(seed)
    shares = (2 * torch.randn(count, 6, generator=generator)).softmax(dim=1)
    sure, label = shares.max(dim=1)
    return shares, torch.rand(count, generator=generator) < torch.where(label == 2, 0.1, sure)


def test_trust_finds_what_confidence_does_not(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    known, right = teacher_with_a_blind_spot(800, 0)
    shares, truly = teacher_with_a_blind_spot(4000, 1)
    before = torch.random.get_rng_state()
    trust = trust_in(shares, known, right)
    assert torch.random.get_rng_state().equal(before) and trust.equal(trust_in(shares, known, right))
    simple = LogisticRegression(class_weight="balanced").fit(traits(known), right).decision_function(traits(shares))
    ours, linear, confidence = (roc_auc_score(truly, score) for score in (trust, simple, shares.amax(dim=1)))
    assert ours > linear - 0.02 and ours > confidence + 0.05
    area, low, high = held_out_auc(known, right)
    assert low < ours < high and low < area < high and low > 0.5
    say_trust(known, right)
    assert "held-out AUC 0." in caplog.text and "WARNING" not in caplog.text
    say_trust(known, right[torch.randperm(800, generator=torch.Generator().manual_seed(1))])  # knows nothing
    say_trust(known[:12], right[:12])
    assert caplog.text.count("it is not shown that it tells right labels from wrong ones") == 2
    chosen = has_small_loss(-trust, 0.5)
    assert chosen.sum() == 2000 and (shares.argmax(dim=1)[chosen] == 2).float().mean() < 0.02


@pytest.mark.parametrize("content, message", [
    ("id,label,top_k\n0,1,0:0.3;1:0.7\n", "expected the columns label and truth"),
    ("id,label,truth\n0,1,1\n1,0,1\n", "has classes alone; expected the probability of each class"),
    ("id,label,top_k,truth\n0,1,0:0.3;1:0.7,1\n", "all of its 1 labels are right"),
    ("id,label,top_k,truth\n0,1,0:0.3;1:0.3;2:0.4,1\n", "has 3 classes, the data 2"),
    ("id,label,truth,0,1\n0,1,1,0.3,0.7\n1,1,,0.3,0.7\n", "row 2: truth '' is no class"),
])
def test_trust_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        read_known(str(tmp_path / "a.csv"), None, 2)


@pytest.mark.parametrize("content", [
    "id,label,cat,dog,truth\n0,dog,0.3,0.7,cat\n1,dog,0.1,0.9,dog\n",
    "id,label,truth,cat,dog\n0,dog,0,0.3,0.7\n1,dog,1,0.1,0.9\n",
    "id,label,truth,top_k\n0,dog,0,cat:0.3;dog:0.7\n1,dog,dog,cat:0.1;dog:0.9\n"])
def test_forms_of_what_is_known(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    shares, right = read_known(str(tmp_path / "a.csv"), ["cat", "dog"], 2)
    torch.testing.assert_close(shares, torch.tensor([[0.3, 0.7], [0.1, 0.9]]))
    assert right.tolist() == [False, True]


@pytest.mark.parametrize("text", [
    "entropy:0", "confidence:1.5", "knn", "knn:0", "knn:-3", "knn:2.5", "small-loss:0", "small-loss:1.1", "file:",
    "small-loss:nan", "trust:0.5", "trust:2:a.csv", "trust:a.csv", "kn:3", "small_loss:0.5", "10"])
def test_parse_refused(text: str) -> None:
    with pytest.raises(UserError, match=f"--clean-select {text}: .*expected knn:K"):
        parse_selection(text)


# ---------------------------------------------------------------- files


@pytest.fixture(scope="module")
def part() -> Subset:
    return take_slice(create_dataset("w2s/digits", None, "train"), "0:50", 0)


def test_file_of_a_run_and_of_others(tmp_path: Path, part: Subset) -> None:
    kept = part.indices[::2]
    mask = np.zeros(1197, dtype=np.float32)
    mask[kept] = 1
    (tmp_path / "own.txt").write_text(Selection({"rule": "knn:3", "fingerprint": "abc"}, kept).to_text())
    (tmp_path / "plain.txt").write_text("\n".join(map(str, kept)))
    np.save(tmp_path / "mask.npy", mask)
    np.save(tmp_path / "indices.npy", np.array(kept))
    for name in ("own.txt", "plain.txt", "mask.npy", "indices.npy"):
        selected, about = read_selection(str(tmp_path / name), part, 1197, "abc")
        assert selected == [i % 2 == 0 for i in range(50)], name
        assert about == ({"rule": "knn:3", "fingerprint": "abc"} if name == "own.txt" else {})
        assert take_selected(part, selected).targets == part.targets[::2]


@pytest.mark.parametrize("content, message", [
    ('# {"fingerprint": "xyz"}\n3\n', "it was made for other training data (xyz, here abc)"),
    ("3\n1197\n", "indices from 3 to 1197; the training split has 0 to 1196"),
    ("-1\n", "indices from -1 to -1"),
    ("three\n", "expected an index a line"),
    ("# knn\n3\n", "expected an index a line"),
    ("", "none of its 0 samples is in the training set of 50"),
])
def test_file_refused(tmp_path: Path, part: Subset, content: str, message: str) -> None:
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(UserError) as error:
        read_selection(str(tmp_path / "a.txt"), part, 1197, "abc")
    assert message in str(error.value)


def test_arrays_refused(tmp_path: Path, part: Subset) -> None:
    np.save(tmp_path / "a.npy", np.array([0.5, 2.0]))
    with pytest.raises(UserError, match="expected an index a line, or an npy"):
        read_selection(str(tmp_path / "a.npy"), part, 1197, "abc")
    np.save(tmp_path / "b.npy", np.array([{}]))
    with pytest.raises(UserError, match="expected an index a line, or an npy"):
        read_selection(str(tmp_path / "b.npy"), part, 1197, "abc")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_selection("nowhere.txt", part, 1197, "abc")
