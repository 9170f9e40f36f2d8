"""Episodes as functions of seed, epoch and number: what is drawn, and what each rank gets of it."""

import re

import pytest

from tests.parts import refusal
from w2s_plugins.cli.forms import parse_shapes
from w2s_plugins.data.episodes import (
    Episodes,
    EpisodeSampler,
    EpisodeShape,
    check_shape,
    draw_episodes,
)

LABELS = [i % 6 for i in range(60)]
SHAPE = EpisodeShape(3, 2, 4)


def test_episodes_have_what_their_shape_says():
    drawn = draw_episodes(LABELS, SHAPE, 50, seed=3)
    assert drawn.shape == (50, 3, 6)
    for episode in drawn.tolist():
        classes = [{LABELS[i] for i in row} for row in episode]
        assert all(len(c) == 1 for c in classes)
        assert len(set.union(*classes)) == 3
        assert len({i for row in episode for i in row}) == 18
    assert {LABELS[i] for i in drawn.flatten().tolist()} == set(range(6))
    assert set(drawn.flatten().tolist()) == set(range(60))


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
    assert {key.epoch for b in found for key in b} == {0}
    for number, batch in enumerate(found):
        assert [key.repeat for key in batch] == [
            4 * number + place for place in range(4) for _ in range(18)
        ]
    assert len({key for b in found for key in b}) == 5 * 4 * 18  # no view twice
    assert [[k.index for k in b] for b in found] != [[k.index for k in b] for b in batches(epoch=1)]
    assert found != batches(seed=2)


def test_resumed_inside_an_epoch():
    assert batches(epoch=3, start=2) == batches(epoch=3)[2:]


def test_ranks_deal_out_the_episodes_of_one_process():
    def episodes(batch: list) -> list[list]:
        return [batch[i : i + 18] for i in range(0, len(batch), 18)]

    whole = batches()
    ranks = [batches(per_batch=2, rank=rank, world_size=2) for rank in range(2)]
    for number in range(5):
        parts = [episodes(rank[number]) for rank in ranks]
        assert [parts[0][0], parts[1][0], parts[0][1], parts[1][1]] == episodes(whole[number])


def test_shapes():
    assert parse_shapes("5x1, 20x5", 15, "--few-shot") == [
        EpisodeShape(5, 1, 15),
        EpisodeShape(20, 5, 15),
    ]
    assert "--few-shot" in refusal(
        parse_shapes, "", 15, "--few-shot"
    )  # other texts: e2e/test_bad_flags.py


@pytest.mark.parametrize(
    "shape, message",
    [
        (
            EpisodeShape(6, 1, 10),
            r"class 'a' has 10 images, fewer than 1 shot\(s\) \+ 10 queries; expected --queries of",
        ),
        (EpisodeShape(6, 11, 1), "class 'a' has 10 images"),
    ],
)
def test_more_than_the_split_has(shape, message):
    assert re.search(message, refusal(check_shape, shape, LABELS, "--few-shot", list("abcdef")))
    check_shape(EpisodeShape(6, 1, 9), LABELS, "--few-shot")
