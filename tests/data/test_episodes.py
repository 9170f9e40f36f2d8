"""Episodes as functions of seed, epoch and number: what is drawn, and what each rank gets of it."""

import pytest
import torch

from tests.parts import assert_refused
from w2s_plugins.data.episodes import (
    Episodes,
    EpisodeSampler,
    EpisodeShape,
    check_shape,
    draw_episodes,
)
from w2s_plugins.settings.forms import parse_shapes

LABELS = [i % 6 for i in range(60)]
SHAPE = EpisodeShape(3, 2, 4)


def test_episodes_have_what_their_shape_says():
    drawn = draw_episodes(LABELS, SHAPE, 50, seed=3)
    assert drawn.shape == (50, 3, 6)
    classes = torch.tensor(LABELS)[drawn]
    assert (classes == classes[..., :1]).all()  # one of each row
    assert all(len(episode.unique()) == 3 for episode in classes)
    assert all(len(episode.unique()) == 18 for episode in drawn)
    assert {*classes.flatten().tolist()} == {*range(6)}
    assert {*drawn.flatten().tolist()} == {*range(60)}


def test_episodes_are_functions_of_seed_and_number():
    drawn = draw_episodes(LABELS, SHAPE, 20, seed=3)
    assert drawn.equal(draw_episodes(LABELS, SHAPE, 30, seed=3)[:20])
    assert not drawn.equal(draw_episodes(LABELS, SHAPE, 20, seed=4))
    assert len({str(episode) for episode in drawn.tolist()}) == 20
    # pinned: another machine or version must give the same episodes
    assert draw_episodes(LABELS, EpisodeShape(2, 1, 2), 1, seed=0).tolist() == [
        [[21, 33, 57], [20, 32, 44]]
    ]


def batches(epoch: int = 0, start: int = 0, seed: int = 1, per_batch: int = 4, **rank: int) -> list:
    sampler = EpisodeSampler(LABELS, Episodes(SHAPE, per_batch, 5), seed, **rank)
    sampler.set_epoch(epoch, start)
    assert len(sampler) == 5 - start
    return list(sampler)


def test_batches_are_whole_episodes_with_views_of_their_own():
    found = batches()
    assert [len(b) for b in found] == [4 * 18] * 5
    keys = [key for b in found for key in b]
    assert {key.epoch for key in keys} == {0}
    assert [key.repeat for key in keys] == [episode for episode in range(20) for _ in range(18)]
    assert len(set(keys)) == len(keys)  # no view twice
    assert [[k.index for k in b] for b in found] != [[k.index for k in b] for b in batches(epoch=1)]
    assert found != batches(seed=2)


def test_resumed_inside_an_epoch():
    assert batches(epoch=3, start=2) == batches(epoch=3)[2:]


def test_ranks_deal_out_the_episodes_of_one_process():
    def episodes(batch: list) -> list[list]:
        return [batch[i : i + 18] for i in range(0, len(batch), 18)]

    ranks = (batches(per_batch=2, rank=rank, world_size=2) for rank in range(2))
    dealt = [[*zip(episodes(one), episodes(two))] for one, two in zip(*ranks)]
    assert [[*pairs[0], *pairs[1]] for pairs in dealt] == [episodes(b) for b in batches()]


def test_shapes():
    expected = [EpisodeShape(5, 1, 15), EpisodeShape(20, 5, 15)]
    assert parse_shapes("5x1, 20x5", 15, "--few-shot") == expected
    # other texts: e2e/test_bad_flags.py
    assert_refused("--few-shot", parse_shapes, "", 15, "--few-shot")


FEWER = r"class 'a' has 10 images, fewer than 1 shot\(s\) \+ 10 queries; expected --queries of"


@pytest.mark.parametrize(
    "shape, message",
    [(EpisodeShape(6, 1, 10), FEWER), (EpisodeShape(6, 11, 1), "class 'a' has 10 images")],
)
def test_more_than_the_split_has(shape, message):
    assert_refused(message, check_shape, shape, LABELS, "--few-shot", list("abcdef"))


def test_as_many_as_the_split_has():
    assert check_shape(EpisodeShape(6, 1, 9), LABELS, "--few-shot") is None
