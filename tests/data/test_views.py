"""A training view is a function of (seed, epoch, sample): to the last bit, whoever computes it and with whom."""

import random

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data.mixup import FastCollateMixup, Mixup
from timm.data.random_erasing import RandomErasing
from torch.utils.data import default_collate

from tests.parts import (
    assert_refused,
    data_config,
    flags_in,
    train_loader,
    train_settings,
    write_folder,
)
from w2s_plugins.data import Batch, TrainLoader, create_dataset
from w2s_plugins.data.datasets import labels_of
from w2s_plugins.data.order import KeyedSampler, TwoPartSampler
from w2s_plugins.data.views import (
    KeyedCollate,
    KeyedErasing,
    Sample,
    ViewKey,
    hash_seed,
    kept_generators,
    seed_generators,
)
from w2s_plugins.target_kind import ONE_CLASS, SEVERAL_CLASSES
from w2s_plugins.training.loaders import check_stream

CONFIG = data_config(32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25), crop_pct=0.9)
COUNT = 26
STORED = "--teacher resnet18 --teacher-targets cached"

PLAIN = yaml.safe_load("""
crop, flip and jitter: --seed 42
no augmentation: --no-aug
colour: --vflip 0.5 --color-jitter-prob 0.8 --grayscale-prob 0.3
rkrc: --train-crop-mode rkrc
randaugment: --aa rand-m9-mstd0.5-inc1
augmix: --aa augmix-m5
erasing: --reprob 0.8 --remode pixel --recount 3
erasing in the workers: --reprob 0.8 --no-prefetcher
repeats, no whole number: --aug-repeats 2.5 --reprob 0.5
""")
MIXED = "--mixup 0.8 --cutmix 1.0 --mixup-prob 0.7"
BATCHES = {
    "mixing": MIXED,
    "mixing, pairs, no prefetcher": f"{MIXED} --mixup-mode pair --no-prefetcher",
    "mixing, elements, erasing": f"{MIXED} --mixup-mode elem --reprob 0.5",
    "mixing, for stored labels": f"{MIXED} --mixup-mode elem {STORED}",
    "cutmix of any size": "--cutmix-minmax 0.2 0.6",
    "splits": "--aug-splits 3 --aa rand-m5-mstd0.5",
    "splits, erasing": "--aug-splits 2 --reprob 0.8 --resplit",
    "sizes, progressive": "--train-img-sizes 24 32 --train-size-schedule progressive --epochs 3 "
    "--train-batches-per-epoch 9",
    "sizes, mixup": "--train-img-sizes 24 32 --mixup 0.5",
}
ALL = PLAIN | BATCHES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("images"), {"train": COUNT})


@pytest.fixture
def loader(folder):
    """Make a training loader from flags of train_w2s.py."""

    def make(
        *flags: str, batch: int = 4, workers: int = 0, rank: int = 0, world_size: int = 1
    ) -> TrainLoader:
        settings = train_settings(
            f"--num-classes 3 --batch-size {batch} --workers {workers}", *flags
        )
        dataset = create_dataset("", str(folder), "train")
        return train_loader(dataset, settings, CONFIG, rank=rank, world_size=world_size)

    return make


def epochs(loader: TrainLoader, count: int = 2) -> list[Batch]:
    return [batch for epoch in range(count) for batch in loader.epoch(epoch)]


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected):
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.target, b.target)
        assert torch.equal(a.input, b.input)
        assert a.share is b.share is None or torch.equal(a.share, b.share)


def by_sample(batches: list[Batch]) -> dict[int, torch.Tensor]:
    return {int(i): image for b in batches for i, image in zip(b.index, b.input)}


@pytest.mark.parametrize("case", ALL)
def test_any_number_of_workers_gives_the_same_batches(loader, case):
    assert_same(epochs(loader(ALL[case], workers=2)), epochs(loader(ALL[case])))


@pytest.mark.parametrize("case", ALL)
def test_epochs_are_in_orders_of_their_own_and_come_again(loader, case):
    make = loader(ALL[case])
    first = list(make.epoch(0))
    orders = [torch.cat([b.index for b in batches]) for batches in (first, make.epoch(1))]
    assert not torch.equal(*orders)
    assert_same(list(make.epoch(0)), first)


@pytest.mark.parametrize("epoch, seed", [(1, 42), (0, 1)], ids=["epoch", "seed"])
@pytest.mark.parametrize("case", [case for case in PLAIN if case != "no augmentation"])
def test_epochs_and_seeds_differ_in_views(loader, case, epoch, seed):
    views = by_sample(list(loader(ALL[case]).epoch(0)))
    other = by_sample(list(loader(ALL[case], f"--seed {seed}").epoch(epoch)))
    same = [torch.equal(views[i], other[i]) for i in views.keys() & other.keys()]
    assert sum(same) <= len(same) // 4  # a flip is a coin


@pytest.mark.parametrize("case", ALL)
def test_tail_of_an_epoch(loader, case):
    make = loader(ALL[case])
    whole = list(make.epoch(1))
    assert len(whole) == len(make)
    assert_same(list(make.epoch(1, 1)), whole[1:])
    assert_same(list(make.epoch(1, len(whole) - 1)), whole[-1:])
    assert list(make.epoch(1, len(whole))) == []
    assert_same(list(make.epoch(1)), whole)


@pytest.mark.parametrize("case", PLAIN)
def test_a_view_does_not_depend_on_the_batch_it_is_in(loader, case):
    """The same keys in batches of another size give the same pixels."""
    small, large = (
        torch.cat([b.input for b in loader(ALL[case], batch=n).epoch(0)]) for n in (4, 6)
    )
    assert torch.equal(small[:24], large[:24])


@pytest.mark.parametrize("case", PLAIN)
def test_two_ranks_together_see_what_one_process_sees(loader, case):
    single = list(loader(ALL[case], batch=8).epoch(0))
    ranks = [list(loader(ALL[case], batch=4, rank=r, world_size=2).epoch(0)) for r in range(2)]

    def dealt(one: torch.Tensor | None, two: torch.Tensor | None) -> torch.Tensor | None:
        return None if one is None else torch.stack([one, two], dim=1).flatten(0, 1)

    together = [Batch(*map(dealt, *both)) for both in zip(*ranks, strict=True)]
    assert_same(together, single)


@pytest.mark.parametrize("case", ["augmix", "erasing", "mixing", "sizes, mixup"])
def test_loading_leaves_the_generators_of_the_main_process_alone(loader, case):
    make = loader(ALL[case])
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    epochs(make, 1)
    found = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    assert found == (random.random(), np.random.rand(), torch.rand(1).item())


@pytest.mark.parametrize("epoch", range(3))
@pytest.mark.parametrize(
    "workers, prefetcher, mode",
    [(0, "--seed 42", "batch"), (2, "--no-prefetcher", "pair"), (2, "--seed 42", "elem")],
)
def test_no_mixing_from_the_given_epoch_on(loader, workers, prefetcher, mode, epoch):
    mixing = f"--mixup 0.5 --cutmix 0.5 --mixup-mode {mode} --mixup-off-epoch 1"
    mixed = loader("--smoothing 0", prefetcher, mixing, workers=workers).epoch(epoch)
    plain = loader("--smoothing 0", prefetcher).epoch(epoch)
    if epoch > 0:
        one_hot = torch.nn.functional.one_hot
        plain = [b._replace(target=one_hot(b.target, 3).float()) for b in plain]
        assert_same(list(mixed), plain)
        return
    for mix, clean in zip(mixed, plain, strict=True):
        assert torch.equal(mix.index, clean.index)
        assert not torch.equal(mix.input, clean.input)


def test_mixing_is_that_of_timm(loader):
    """The mixed batch is lam * x + (1 - lam) * x.flip(0), with the lam of the targets."""
    flags = "--smoothing 0 --no-aug --no-prefetcher"
    mixed, clean = (next(loader(flags, f"--mixup {much}").epoch(0)) for much in (1, 0))
    hard = torch.nn.functional.one_hot(clean.target, 3).float()
    row = int((clean.target != clean.target.flip(0)).nonzero()[0])
    lam = mixed.target[row, clean.target[row]]
    torch.testing.assert_close(mixed.target, lam * hard + (1 - lam) * hard.flip(0))
    expected = lam * clean.input + (1 - lam) * clean.input.flip(0)
    torch.testing.assert_close(mixed.input, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prefetcher", ["--seed 42", "--no-prefetcher"])
@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_stored_labels_are_mixed_as_timm_mixes_classes(loader, folder, mode, prefetcher):
    """One-hot labels become timm's mixed targets, and neither images nor ground truth change for it."""
    flags = f"--mixup 0.8 --cutmix 1 --mixup-prob 0.8 --mixup-mode {mode}", prefetcher
    classes, shares = torch.tensor(labels_of(create_dataset("", str(folder), "train"))), []
    for ours, timms in zip(epochs(loader(*flags, STORED)), epochs(loader(*flags)), strict=True):
        assert torch.equal(ours.input, timms.input) and timms.share is None
        torch.testing.assert_close(ours.target, timms.target)
        said = torch.nn.functional.one_hot(classes[ours.index], 3).clamp(min=1e-38).log()
        smoothed = ONE_CLASS.mix(said, ours.share).softmax(1) * 0.9 + 0.1 / 3
        torch.testing.assert_close(smoothed, timms.target)
        shares += ours.share.flatten().tolist()
    assert 1.0 in shares and 0.0 < min(shares) < 0.9


def collate_of(mixing: dict, prefetched: bool, **how: object) -> KeyedCollate:
    """As `create_train_loader` makes it, of several labels an image."""
    kwargs = dict(num_classes=3, label_smoothing=0.1, multi_label=True, **mixing)
    if prefetched:
        mixup = FastCollateMixup(**kwargs)
        return KeyedCollate(mixup, mixup, **how)
    mixup = Mixup(**kwargs)
    return KeyedCollate(lambda batch: mixup(*default_collate(batch)), mixup, **how)


def batch_of(labels: torch.Tensor, number: int, prefetched: bool, epoch: int = 0) -> list[Sample]:
    """Images of four pixels."""
    pixels = np.random.default_rng(number).integers(0, 255, (len(labels), 3, 2, 2), np.uint8)
    images = pixels if prefetched else torch.tensor(pixels).float()
    keys = [ViewKey(epoch, number * len(labels) + i) for i in range(len(labels))]
    rows = zip(images, labels, keys, strict=True)
    return [Sample(image, row, key, hash_seed(*key)) for image, row, key in rows]


@pytest.mark.parametrize("prefetched", [True, False])
@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_unknown_labels_are_mixed_as_far_as_they_have_a_share(mode, prefetched):
    """What is known is timm's to the last bit, whether stored labels are mixed as well or not."""
    # boxes of cutmix that are a whole image of four pixels, or nothing of it
    mixing = dict(mixup_alpha=0.5, cutmix_alpha=0.01, prob=0.7, mode=mode)
    generator = torch.Generator().manual_seed(0)
    shares: list[float] = []
    for number in range(40):
        truth = (torch.rand(6, 3, generator=generator) < 0.4).float()
        unknown = torch.rand(6, 3, generator=generator) < 0.4
        labels = truth.masked_fill(unknown, torch.nan)
        # timm mixes pairs in place
        images, found = collate_of(mixing, prefetched)(batch_of(labels, number, prefetched))
        beside, stored = collate_of(mixing, prefetched, keeps_share=True)(
            batch_of(labels, number, prefetched)
        )
        share = stored.share
        expected = (unknown & (share > 0)) | (unknown.flip(0) & (share < 1))
        assert torch.equal(found.label.isnan(), expected) and torch.equal(images, beside)
        assert torch.equal(stored.label.isnan(), expected)

        # timm's own, of labels that are all known; stored ones are mixed by shares in float32
        plain = collate_of(mixing, prefetched)
        known = batch_of(truth, number, prefetched)
        with kept_generators():
            seed_generators(hash_seed(*(sample.view_seed for sample in known)))
            theirs, target = plain.collate([(sample.image, sample.label) for sample in known])
        assert torch.equal(images, theirs)
        assert torch.equal(found.label[~expected], target[~expected])
        torch.testing.assert_close(stored.label[~expected], target[~expected])

        logits = torch.randn(6, 3).masked_fill(unknown, torch.nan)
        assert torch.equal(SEVERAL_CLASSES.mix(logits, share).isnan(), expected)
        shares += share.flatten().tolist()
    assert {0.0, 1.0} <= {*shares} and any(0 < share < 1 for share in shares)


def test_without_mixing_unknown_labels_stay_where_they_are():
    labels = torch.tensor([[1, torch.nan, 0], [torch.nan, 1, 1]])
    collate = collate_of(dict(mixup_alpha=0.5, mode="batch"), True, mixup_off_epoch=1)
    _, found = collate(batch_of(labels, 0, True, epoch=1))
    expected = labels * (1 - 0.1) + 0.5 * 0.1
    assert torch.equal(found.label.nan_to_num(-1), expected.nan_to_num(-1))


def test_views_are_those_of_timm(loader, folder):
    """The pixels are what timm's own transform gives after seeding by hand."""
    from timm.data import create_transform

    policy = "rand-m9-mstd0.5-inc1"
    batch = next(loader(f"--aa {policy} --no-prefetcher --decoder pil").epoch(3))
    normal = dict(mean=CONFIG["mean"], std=CONFIG["std"])
    how = dict(auto_augment=policy, interpolation="random", color_jitter=0.4, **normal)
    transform = create_transform((3, 32, 32), is_training=True, **how)
    dataset = create_dataset("", str(folder), "train")
    for index, image in zip(batch.index.tolist(), batch.input):
        seed = hash_seed(42, 3, index, 0)
        random.seed(seed), np.random.seed(seed & 0xFFFFFFFF), torch.manual_seed(seed)
        assert torch.equal(transform(dataset[index][0]), image)


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_erasing_is_that_of_timm(mode):
    """What timm's erasing does to each image after seeding by hand; images that it leaves alone seed nothing more."""
    images, seeds = torch.ones(40, 3, 16, 16), torch.arange(40)
    erasing = RandomErasing(0.3, mode=mode, device="cpu")
    found = KeyedErasing(erasing)(images.clone(), seeds)
    for image, seed in zip(images, seeds.tolist()):
        random.seed(hash_seed(seed, 1)), torch.manual_seed(hash_seed(seed, 1))
        erasing(image)
    assert torch.equal(found, images)
    assert 0 < sum(not image.eq(1).all() for image in images) < 40


@pytest.mark.parametrize("how", [dict(batch=40), dict(batch=14, world_size=2)], ids=str)
@pytest.mark.parametrize("flags", ["--seed 42", "--train-img-sizes 24 32"])
def test_training_set_smaller_than_a_batch(loader, flags, how):
    assert_refused("26 training samples", loader, flags, **how)


UNINDEXED = """
--aug-splits 2 | --aug-repeats 2 | --train-img-sizes 24 32 | --mixup 1 --mixup-off-epoch 1
--mixup 1 --no-prefetcher
"""


@pytest.mark.parametrize("flags", flags_in(UNINDEXED))
def test_what_a_stream_cannot_do(flags):
    of_run = train_settings("--num-classes 3", flags)
    assert_refused("needs a dataset that can be indexed", check_stream, of_run)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 60),
    st.integers(1, 4),
    st.sampled_from([0, 1.1, 1.5, 2, 2.5, 3, 7]),
    st.integers(0, 5),
)
def test_keys_of_an_epoch(size, world_size, repeats, epoch):
    """All ranks have as many keys, no two keys are alike, and none is left out but for the remainder of the deal."""
    ranks = []
    for rank in range(world_size):
        sampler = KeyedSampler(size, 7, rank, world_size, repeats)
        sampler.set_epoch(epoch)
        ranks.append(list(sampler))
        assert len(ranks[-1]) == len(sampler) == size // world_size
    keys = [key for rank in ranks for key in rank]
    assert len(set(keys)) == len(keys)
    assert all(
        isinstance(key, ViewKey) and key.epoch == epoch and 0 <= key.index < size for key in keys
    )
    counts = np.bincount([key.index for key in keys], minlength=size)
    assert counts.max(initial=0) <= max(1, np.ceil(repeats))
    if not repeats:
        assert counts.sum() == size - size % world_size


@pytest.mark.parametrize("world_size", [1, 2])
def test_few_samples_come_round_in_a_long_epoch(world_size):
    """Each as often as any other, in views of its own."""
    ranks = [KeyedSampler(5, 7, rank, world_size, size=18) for rank in range(world_size)]
    for sampler in ranks:
        sampler.set_epoch(3)
    keys = [key for rank in ranks for key in rank]
    assert len(set(keys)) == len(keys) == 18
    counts = np.bincount([key.index for key in keys], minlength=5)
    assert counts.max() - counts.min() == 1


def test_an_epoch_that_is_no_longer_than_the_samples_is_the_usual_one():
    assert list(KeyedSampler(5, 7, size=5)) == list(KeyedSampler(5, 7))


def test_labelled_samples_follow_the_others_however_long_the_epoch():
    beside = TwoPartSampler(
        KeyedSampler(5, 7, size=18), labelled_size=3, batch_size=4, labelled_count=1
    )
    assert {keys[0].index for keys in beside} == {5, 6, 7}
