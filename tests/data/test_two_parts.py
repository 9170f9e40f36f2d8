"""Batches of labelled samples and others: functions of (seed, epoch, number), whoever loads them."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.parts import data_config, train_loader, train_settings, write_folder
from w2s_plugins.data import Batch, TrainLoader, create_dataset, labels_of
from w2s_plugins.data.order import KeyedBatches, KeyedSampler, WithStrongViews
from w2s_plugins.data.unlabeled import open_unlabeled
from w2s_plugins.no_label import NO_LABEL

CONFIG = data_config(16)
UNLABELLED, LABELLED = 43, 5


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("parts"), {"photos": UNLABELLED, "train": LABELLED})


@pytest.fixture
def loader(root: Path):
    def make(
        batch: int, *flags: str, workers: int = 0, rank: int = 0, world_size: int = 1
    ) -> TrainLoader:
        settings = train_settings(
            f"--unlabeled {root}/photos --data-dir {root} --teacher resnet18 --task-loss-weight 0.5",
            f"--num-classes 3 --batch-size {batch} --workers {workers}",
            *flags,
            dataset="",
        )
        return train_loader(
            open_unlabeled(settings.data.unlabeled),
            settings,
            CONFIG,
            rank=rank,
            world_size=world_size,
            labelled=create_dataset("", str(root), "train"),
        )

    return make


def by_sample(batches: list[Batch]) -> list[tuple[int, int, bytes]]:
    return sorted(
        (int(i), int(t), image.numpy().tobytes())
        for b in batches
        for i, t, image in zip(b.index, b.target, b.input)
    )


@pytest.mark.parametrize("epoch", [0, 1])
def test_what_is_in_a_batch(loader, root: Path, epoch: int) -> None:
    labels = labels_of(create_dataset("", str(root), "train"))
    make = loader(8)
    batches = list(make.epoch(epoch))
    assert len(batches) == len(make) == UNLABELLED // 6
    index = torch.stack([batch.index for batch in batches])
    assert (index[:, :2] >= UNLABELLED).all() and (index[:, 2:] < UNLABELLED).all()
    expected = [[labels[i - UNLABELLED] for i in row[:2]] + [NO_LABEL] * 6 for row in index]
    assert [batch.target.tolist() for batch in batches] == expected
    assert len(index[:, 2:].unique()) == 42  # no other twice
    counts = Counter(index[:, :2].flatten().tolist())
    assert len(counts) == LABELLED and set(counts.values()) <= {2, 3}  # they come round
    views = {image.numpy().tobytes() for b in batches for image in b.input}
    assert len(views) == len(batches) * 8  # each time in another view


@pytest.mark.parametrize("share, count", [("0", 1), ("0.25", 2), ("0.6", 5), ("1", 7)])
def test_how_many_are_labelled(loader, share: str, count: int) -> None:
    batch = next(loader(8, "--labeled-share", share).epoch(0))
    assert int((batch.target != NO_LABEL).sum()) == count


def test_epochs_have_orders_of_their_own(loader) -> None:
    orders = [torch.stack([b.index for b in loader(8).epoch(epoch)]) for epoch in (0, 1)]
    assert not torch.equal(*orders)


def test_neither_ranks_nor_workers_nor_interruptions_change_a_batch(loader) -> None:
    whole = [by_sample([b]) for b in loader(8).epoch(1)]
    assert [by_sample([b]) for b in loader(8, workers=2).epoch(1, 3)] == whole[3:]
    ranks = zip(*(loader(4, rank=rank, world_size=2).epoch(1) for rank in range(2)))
    assert [by_sample(both) for both in ranks] == whole


STRONG = "--strong-views", "rand-m10-n3-mstd101"


@pytest.mark.parametrize(
    "flags", [(), ("--teacher-targets", "cached-views:2")], ids=["new", "stored"]
)
def test_strong_views_follow(loader, flags: tuple[str, ...]) -> None:
    """The batches are those without them, to the bit, and then the same samples in order, in other views each epoch."""
    seen: set[bytes] = set()
    for epoch in (0, 2):
        plain = [*loader(8, *flags).epoch(epoch)]
        strong = [*loader(8, *STRONG, *flags).epoch(epoch)]
        assert len(plain) == len(strong) == len(loader(8, *STRONG, *flags))
        for before, batch in zip(plain, strong):
            assert torch.equal(batch.input[:8], before.input)
            assert torch.equal(batch.index[:8], before.index)
            assert torch.equal(batch.target[:8], before.target)
            # six without labels, which follow all 43 + 5 samples
            assert (batch.index[8:] - UNLABELLED - LABELLED).tolist() == before.index[2:].tolist()
            assert (batch.target[8:] == NO_LABEL).all()
            assert not torch.equal(batch.input[8:], before.input[2:])
            seen |= {image.numpy().tobytes() for image in batch.input[8:]}
    assert len(seen) == 2 * 42


def test_strong_views_of_any_rank_worker_or_start(loader) -> None:
    whole = [by_sample([b]) for b in loader(8, *STRONG).epoch(1)]
    assert [by_sample([b]) for b in loader(8, *STRONG, workers=2).epoch(1, 3)] == whole[3:]
    ranks = zip(*(loader(4, *STRONG, rank=rank, world_size=2).epoch(1) for rank in range(2)))
    assert [by_sample(both) for both in ranks] == whole


@pytest.mark.parametrize("prefetcher", ["", "--no-prefetcher"])
def test_strong_views_of_images_that_are_not_augmented(tmp_path: Path, prefetcher: str) -> None:
    """The policy alone follows: where it changes nothing, neither crops nor flips nor erasing do."""
    photos = write_folder(tmp_path, {"photos": 8}, size=(40, 40)) / "photos"
    settings = train_settings(
        f"--unlabeled {photos} --teacher resnet18 --num-classes 3 --batch-size 4 --no-aug --reprob 1",
        f"--strong-views rand-p0 {prefetcher}",
        dataset="",
    )
    batch = next(train_loader(open_unlabeled(str(photos)), settings, CONFIG).epoch(0))
    assert torch.equal(batch.input[4:], batch.input[:4])


def test_an_image_that_comes_round_twice_has_two_strong_views() -> None:
    """In one epoch, where the few images are shown several times."""
    sampler = KeyedSampler(4, seed=0, size=8)
    batches = WithStrongViews(KeyedBatches(sampler, 8), 0, first=4)
    (keys,) = batches
    assert len({*keys[8:]}) == 8
    assert [(key.index - 4, key.repeat) for key in keys[8:]] == [key[1:] for key in keys[:8]]
