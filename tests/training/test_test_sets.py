"""Classes of further test sets are those of the model, by name."""

import pkgutil
from types import SimpleNamespace

import pytest
from timm.data import ImageNetInfo
from torch.utils.data import Dataset

from w2s_plugins.data import labels_of
from w2s_plugins.errors import UserError
from w2s_plugins.training.test_sets import matched, open_test_sets

SYNSETS = ImageNetInfo().label_names()


class Made(Dataset):
    """One sample of each class."""

    def __init__(self, classes: list[str]):
        self.classes, self.targets = classes, list(range(len(classes)))

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, index: int) -> tuple[None, int]:
        return None, index


def test_fewer_classes_in_another_order() -> None:
    found = matched(Made(["b", "d"]), "x", ["d", "c", "b"], 3)
    assert labels_of(found.dataset) == [2, 0] and found.counted is None
    with pytest.raises(UserError, match="'e' of 'x' is none of the 3 of the model"):
        matched(Made(["b", "e"]), "x", ["d", "c", "b"], 3)
    with pytest.raises(UserError, match="has 2 classes, and the model, whose classes have no names, 3"):
        matched(Made(["b", "e"]), "x", None, 3)


def test_sets_of_imagenet() -> None:
    """Sketch has all classes, V2 numbers them, of A only its own count."""
    assert labels_of(matched(Made(SYNSETS), "sketch", SYNSETS, 1000).dataset) == list(range(1000))
    assert labels_of(matched(Made([str(i) for i in range(1000)]), "v2", SYNSETS, 1000).dataset) == list(range(1000))
    names = pkgutil.get_data("timm.data", "_info/imagenet_a_synsets.txt").decode().split()
    indices = pkgutil.get_data("timm.data", "_info/imagenet_a_indices.txt").decode().split()
    found = matched(Made(names), "a", SYNSETS, 1000)
    assert found.counted == list(map(int, indices)) and labels_of(found.dataset) == list(range(200))
    assert matched(Made(names[:-1]), "a", SYNSETS, 1000).counted is None


@pytest.mark.parametrize(("sets", "message"), [
    (["x"], "expected NAME=PATH"), (["a/b=x"], "expected NAME="), (["last=w2s/digits:test"], "name 'last' is taken"),
    (["x=w2s/digits:test", "x=w2s/digits:train"], "the name 'x' is taken"),
    (["x=/no/such"], "^--val-sets x=/no/such: no such folder"), (["x=w2s/digits"], "which split"),
])
def test_refused(sets: list[str], message: str) -> None:
    args = SimpleNamespace(val_sets=sets, data_dir=None)
    with pytest.raises(UserError, match=message):
        open_test_sets(args, None, 10, "RGB")
