"""Evaluation loaders: every sample once, in order; and how the loaders of a run share a data set."""

import pytest
import torch

from tests.parts import data_config, train_settings
from w2s_plugins.data import (
    LoaderSettings,
    create_dataset,
    create_eval_loader,
    hold_out,
    take_slice,
)
from w2s_plugins.distributed.world import Precision, World
from w2s_plugins.training.loaders import build_loaders
from w2s_plugins.training.splits import Data

CONFIG = data_config(16, std=(0.25,) * 3)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "batch_size, workers, prefetch", [(1, 0, True), (7, 2, False), (7, 0, True), (40, 0, True)]
)
def test_every_sample_once_in_order(batch_size, workers, prefetch):
    dataset = take_slice(create_dataset("w2s/digits", None, "validation"), "0:25", 0)
    loader = create_eval_loader(
        dataset,
        CONFIG,
        LoaderSettings(batch_size=batch_size, workers=workers, device=CPU, prefetch=prefetch),
    )
    for _ in range(2):
        batches = list(loader)
        assert torch.cat([target for _, target in batches]).tolist() == dataset.targets
        assert sum(len(images) for images, _ in batches) == 25
        assert len(batches) == len(loader) == -(-25 // batch_size)
    image = torch.cat([images for images, _ in loader])[3]
    assert image.shape == (3, 16, 16)
    grey = torch.from_numpy(dataset.dataset.images[dataset.indices[3]]) / 255
    assert image.mean().item() == pytest.approx((grey.mean().item() - 0.5) / 0.25, abs=0.2)


@pytest.mark.parametrize("flags", [(), ("--train-img-sizes", "16", "24"), ("--aug-splits", "2")])
def test_held_out_part_is_evaluated_without_the_augmentation_of_training(flags):
    """Both parts share one data set, whose training transform must not reach the evaluation, nor the other way."""
    settings = train_settings("--num-classes", "10", "--batch-size", "8", *flags)
    train = take_slice(create_dataset("w2s/digits", None, "train"), "0:100", 0)
    train, select = hold_out(train, 20, 0)
    val = create_dataset("w2s/digits", None, "validation")
    loaders = build_loaders(
        settings,
        Data(train, val, select, 10),
        CONFIG,
        Precision(CPU),
        World(CPU, rank=0, size=1, distributed=False),
    )
    first = [torch.cat([images for images, _ in loaders["select"]]) for _ in range(2)]
    assert torch.equal(*first)  # no random crops
    views = [next(loaders["train"].epoch(0)).input for _ in range(2)]
    assert torch.equal(*views)
    other = next(loaders["train"].epoch(1)).input
    assert views[0].shape != other.shape or not torch.equal(views[0], other)
    assert torch.equal(torch.cat([images for images, _ in loaders["select"]]), first[0])
    assert torch.cat([target for _, target in loaders["select"]]).tolist() == select.targets
    plain = create_dataset("w2s/digits", None, "train")
    expected = create_eval_loader(
        plain, CONFIG, LoaderSettings(batch_size=2000, workers=0, device=CPU)
    )
    positions = [train.dataset.indices[i] for i in select.indices]
    assert torch.equal(first[0], next(iter(expected))[0][positions])
