"""Views that runs of a study share are those that each would have made."""

import dataclasses
import os
import pickle
import random
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.parts import train_args, train_loader, write_folder
from w2s_plugins.build.loaders import loader_settings, train_views
from w2s_plugins.data import (
    KEPT_VIEWS,
    LoaderSettings,
    create_dataset,
    create_eval_loader,
    create_train_loader,
    kept,
    take_slice,
)
from w2s_plugins.data.decoding import FileDataset
from w2s_plugins.data.kept import KeptViews, keep_views
from w2s_plugins.data.keys import PROBES
from w2s_plugins.data.unlabeled import open_unlabeled
from w2s_plugins.distributed.world import Precision, World

from .test_views import ALL, CONFIG, COUNT, assert_same, epochs

CASES = {  # whether each view is made once; None: its transforms are not the dataset's own, and not counted
    "crop, flip and jitter": True, "no augmentation": True, "randaugment": True, "erasing pixel": True,
    "both, elem": True, "mixed, for stored labels": True, "sizes": None, "splits": False, "repeats": False,
    "no prefetcher": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"), {"train": COUNT, "validation": 10})


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "views").mkdir()
    monkeypatch.setenv(KEPT_VIEWS, str(tmp_path / "views"))
    return tmp_path / "views"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which samples are opened, in this process, and given a transform."""
    opened, of_file = [], FileDataset.__getitem__

    def note(self: FileDataset, index: int) -> tuple:
        if self.transform is not None:
            opened.append(index)
        return of_file(self, index)
    monkeypatch.setattr(FileDataset, "__getitem__", note)
    return opened


def loader(folder: Path, *flags: str, workers: int = 0):
    args = train_args("--num-classes", "3", "--batch-size", "4", "--workers", str(workers), *flags)
    return train_loader(create_dataset("", str(folder), "train"), args, CONFIG)


def evaluated(folder: Path, split: str = "validation", **changes: object) -> torch.Tensor:
    dataset = create_dataset("", str(folder), split)
    loaded = create_eval_loader(dataset, {**CONFIG, **changes}, LoaderSettings(4, 0, torch.device("cpu")))
    return torch.cat([images for images, _ in loaded])


@pytest.mark.parametrize(("case", "once"), CASES.items())
def test_a_second_run_has_the_same_batches(case, once, folder, place, made, monkeypatch):
    monkeypatch.delenv(KEPT_VIEWS)
    expected = epochs(loader(folder, *ALL[case]))
    monkeypatch.setenv(KEPT_VIEWS, str(place))
    made.clear()
    assert_same(epochs(loader(folder, *ALL[case])), expected)
    first = len(made)
    state = random.getstate(), torch.get_rng_state()
    assert_same(epochs(loader(folder, *ALL[case])), expected)
    assert once is None or (len(made) == first) == once, "the second opens none"
    assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1])


@pytest.mark.parametrize("changes", [{"epoch_size": 3 * COUNT}, {"labelled": 2}], ids=str)
def test_samples_that_come_again_have_views_of_their_own(changes, folder, place, monkeypatch):
    args, cpu = train_args("--num-classes", "3", "--batch-size", "4", "--workers", "0"), torch.device("cpu")
    views = dataclasses.replace(train_views(args, CONFIG, 3), **changes)

    def seen() -> list:
        labelled = take_slice(create_dataset("", str(folder), "validation"), "0:3", 0) if views.labelled else None
        return epochs(create_train_loader(
            create_dataset("", str(folder), "train"), views, CONFIG,
            loader_settings(args, Precision(cpu), World(cpu, 0, 1, False)), labelled=labelled))
    monkeypatch.delenv(KEPT_VIEWS)
    expected = seen()
    assert max(torch.bincount(torch.cat([batch.index for batch in expected[:len(expected) // 2]]))) > 1
    monkeypatch.setenv(KEPT_VIEWS, str(place))
    assert_same(seen(), expected)
    assert_same(seen(), expected)


def test_workers_share_views(folder, place, made):
    expected = epochs(loader(folder, workers=2))
    assert_same(epochs(loader(folder)), expected)
    assert not made, "the workers have made all"


def test_what_makes_views_others(folder, place, made):
    for flags in ((), ("--seed", "1"), ("--hflip", "0.2"), ("--decoder", "pil"), ("--input-img-mode", "RGB")):
        list(loader(folder, *flags).epoch(0))
    assert len(list(place.iterdir())) == 4, "the last are those of the first"
    several = [evaluated(folder), evaluated(folder), evaluated(folder, crop_pct=0.5), evaluated(folder, "train")]
    assert torch.equal(*several[:2]) and not torch.equal(*several[1:3])
    assert len(list(place.iterdir())) == 7


@pytest.mark.parametrize("kind", ["folder", "tar", "torch", "unlabelled"])
def test_one_image_of_many_has_changed(kind, tmp_path, place):
    """Data that are the same by names, labels and the images that identify them elsewhere, are not taken for others."""
    folders = [write_folder(tmp_path / "a", {"validation": 80}), tmp_path / "b"]
    shutil.copytree(*folders)
    paths = [sorted((folder / "validation").rglob("*.*")) for folder in folders]
    changed = min({*range(80)} - {*np.linspace(0, 79, PROBES).astype(int).tolist()})
    paths[1][changed].write_bytes(paths[1][changed - 1].read_bytes())

    def seen(folder: Path) -> torch.Tensor:
        if kind == "tar":
            with tarfile.open(folder / "images.tar", "w") as file:
                file.add(folder / "validation", "")
            dataset = create_dataset("", str(folder / "images.tar"), "validation", flag="--val-sets")
        elif kind == "unlabelled":
            dataset = open_unlabeled(str(folder / "validation"))
        else:
            dataset = create_dataset("torch/image_folder" if kind == "torch" else "", str(folder), "validation")
        loaded = create_eval_loader(dataset, CONFIG, LoaderSettings(40, 0, torch.device("cpu")))
        return torch.cat([images for images, _ in loaded])

    found = [seen(folder) for folder in folders]
    assert [i for i, (a, b) in enumerate(zip(*found)) if not torch.equal(a, b)] == [changed]
    assert torch.equal(seen(folders[0]), found[0]) and len(list(place.iterdir())) == 2 + (kind == "tar")
    paths[0][changed].write_bytes(paths[1][changed].read_bytes())  # while the study runs
    assert torch.equal(seen(folders[0]), found[1])


def test_records(tmp_path):
    (tmp_path / "folder").mkdir()
    path, image = tmp_path / "folder" / "views", torch.arange(12, dtype=torch.uint8).view(3, 2, 2)
    mine, theirs = (KeptViews(path, (3, 2, 2), 1 << 30) for _ in range(2))
    assert mine.read([0, 5]) == [None, None]
    mine.keep(5, image, -1)
    before, (found, label), after = theirs.read([4, 5, 6])
    assert torch.equal(found, image) and label == -1 and before is after is None
    assert torch.equal(pickle.loads(pickle.dumps(mine)).read([5])[0][0], image)
    for no_record in (image.float(), image[:2], image.numpy()):
        mine.keep(4, no_record, 1)
    mine.keep(4, image, torch.tensor(1))
    assert mine.read([4]) == [None]
    with path.open("r+b") as file:  # as a process leaves it that is killed while it writes
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    assert mine.read([5]) == [None]
    mine.keep(5, image, 3)
    assert theirs.read([5])[0][1] == 3
    shutil.rmtree(path.parent)
    theirs.keep(6, image, 0)
    assert mine.read([5])[0][1] == 3, "who has it open keeps it"


def test_space(folder, place, monkeypatch):
    monkeypatch.delenv(KEPT_VIEWS)
    expected = epochs(loader(folder))
    monkeypatch.setenv(KEPT_VIEWS, str(place))
    monkeypatch.setattr(kept, "SPACE", 100_000)
    monkeypatch.setattr(kept, "_LOOK", 1)
    for _ in range(2):
        assert_same(epochs(loader(folder)), expected)
    (first,) = place.iterdir()
    assert 50_000 < kept.used(place) < 150_000, "26 views of 3 kB in 2 epochs are 160,000"
    dataset = create_dataset("", str(folder), "train")
    views = keep_views([dataset], {}, (3, 32, 32))
    assert views.path != first and [views.path] == list(place.iterdir()), "the oldest makes way"
    assert keep_views([dataset], {}, (3, 64, 64)) is None, "an epoch does not fit"


@pytest.mark.parametrize("place", ["/nowhere", "/proc", "/dev/null", ""])
def test_a_folder_that_cannot_be_used(place, folder, tmp_path, monkeypatch):
    expected = evaluated(folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(KEPT_VIEWS, place)
    assert torch.equal(evaluated(folder), expected) and not list(tmp_path.iterdir())
