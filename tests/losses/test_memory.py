"""Memory by sample: the same on every rank as in one process, whatever the batches look like."""

import pytest
import torch
import torch.distributed as dist

from tests.parts import assert_refused
from w2s_plugins.distributed.world import gather_in_dataset_order
from w2s_plugins.losses import LossInputs
from w2s_plugins.losses.memory import gather_rows
from w2s_plugins.training.step import BufferUndo

from . import feature_cases
from .common import BY_CLASS, NUM_SAMPLES, make_inputs, make_loss, on_two_ranks

WITH_MEMORY = [
    "elr",
    "balanced_elr",
    "temporal",
    "sop",
    "elr+sop",
    "elr by class",
    "nvum by class",
]
STEPS = [  # rows of rank 0, rows of rank 1; sample 3 is on both ranks at once, sample 5 twice on one
    ([0, 1, 2], [3, 4, 5]),
    ([3, 7, 5, 5], [3, 2]),
    ([6], [0, 1, 8]),
]


def batch(step, index, dtype=torch.float32):
    """A prediction is a function of the step and the sample, and differs between the places of a repeated one."""
    rows = [
        make_inputs(1, 4, seed=1000 * step + 10 * i + place, dtype=dtype)
        for place, i in enumerate(index)
    ]
    return LossInputs(
        student_logits=torch.cat([row.student_logits.detach() for row in rows]).requires_grad_(),
        teacher_logits=torch.cat([row.teacher_logits for row in rows]),
        index=torch.tensor(index),
        progress=step / 3,
    )


def train(name, rank=None):
    loss = make_loss(name, 4)
    values = []
    for step, parts in enumerate(STEPS):
        inputs = batch(step, [*parts[0], *parts[1]])
        if rank is not None:
            start = len(parts[0]) if rank else 0
            inputs = inputs.rows(slice(start, start + len(parts[rank])))
        value = sum(loss(inputs).values())
        values.append((value.item(), len(inputs.index)))
    return loss.state_dict(), values


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return on_two_ranks(lambda rank: {name: train(name, rank) for name in WITH_MEMORY}, folder)


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_two_ranks_remember_what_one_process_does(name, two_ranks):
    state, values = train(name)
    (one, first_values), (other, second_values) = (found[name] for found in two_ranks)
    fresh = make_loss(name, 4).state_dict()
    # torch computes the sigmoids of the last elements, beyond full vectors, by code that rounds differently
    bound = 1e-7 if BY_CLASS in name else 0
    torch.testing.assert_close(dict(one), dict(state), rtol=bound, atol=bound)
    assert [key for key, value in other.items() if not torch.equal(value, one[key])] == []
    assert [key for key, value in state.items() if torch.equal(value, fresh[key])] == []
    sums = [[value * n for value, n in steps] for steps in (values, first_values, second_values)]
    assert sums[0] == pytest.approx([a + b for a, b in zip(*sums[1:])], rel=1e-5)
    assert [n + m for (_, n), (_, m) in zip(first_values, second_values)] == [n for _, n in values]


# ---------------------------------------------------------------- crd, whose memory is learned from


SHARES = [torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])]


def train_crd(share=slice(None), average=lambda gradient: gradient):
    """A few steps of SGD on the loss's own parameters; what is left of it, and the gradient on the features."""
    loss = feature_cases.make("crd")
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    for step in range(3):
        inputs = feature_cases.rows(feature_cases.make_inputs(seed=step), share)
        optimizer.zero_grad()
        feature_cases.total(loss, inputs).backward()
        for parameter in loss.parameters():
            parameter.grad = average(parameter.grad)
        optimizer.step()
    return {**loss.state_dict(), "gradient": inputs.student_features[-1].grad}


def train_rank(rank):
    def average(gradient):
        dist.all_reduce(gradient)
        return gradient / 2

    (uneven,) = gather_rows(torch.full((rank + 1, 2), float(rank)))
    dealt = gather_in_dataset_order(torch.arange(5)[rank::2, None], True)
    return {**train_crd(SHARES[rank], average), "uneven": uneven, "dealt": dealt}


def test_two_processes_with_crd_are_one(tmp_path):
    ranks = on_two_ranks(train_rank, tmp_path)
    gradients = torch.cat([found.pop("gradient") for found in ranks])
    dealt = [
        (found.pop("uneven").tolist(), found.pop("dealt").flatten().tolist()) for found in ranks
    ]
    assert dealt == [([[0, 0], [1, 1], [1, 1]], [0, 1, 2, 3, 4])] * 2  # the order of the data
    alone = train_crd()
    # theirs is of a mean over half as many samples
    gradient = 2 * alone.pop("gradient")[torch.cat(SHARES)]
    torch.testing.assert_close(gradients, gradient, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(*ranks, rtol=0, atol=0)
    torch.testing.assert_close(ranks[0], alone, rtol=1e-12, atol=1e-14)  # sums in another order


@pytest.mark.parametrize("memory", ["memory_student", "memory_teacher"])
def test_a_sample_that_comes_twice_counts_once_in_crd(memory):
    once, twice = feature_cases.make("crd"), feature_cases.make("crd")
    once(feature_cases.rows(feature_cases.make_inputs(), torch.tensor([0, 1])))
    twice(feature_cases.rows(feature_cases.make_inputs(), torch.tensor([0, 1, 0])))
    torch.testing.assert_close(getattr(once, memory), getattr(twice, memory), rtol=1e-12, atol=0)


# ---------------------------------------------------------------- all


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_memory_of_unseen_samples_stays_as_it_was(name):
    fresh, state = make_loss(name, 4).state_dict(), train(name)[0]
    by_sample = [key for key, value in state.items() if len(value) == NUM_SAMPLES]
    assert by_sample and all(torch.equal(state[key][9:], fresh[key][9:]) for key in by_sample)


@pytest.mark.parametrize("shares", [None, [1.0, 2.0, 3.0, 4.0]])
def test_shift_gives_the_classes_their_shares(shares):
    """A teacher with a preference: the mean softmax has other shares before, the given ones after a few epochs."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4000, 4, generator=generator) + torch.tensor([1.5, 0.0, 0.0, -1.0])
    wanted = torch.tensor(shares or 4 * [1.0]) / sum(shares or 4 * [1.0])
    loss = make_loss("balanced_elr", 4, shares=shares, num_samples=4000)
    assert (logits.softmax(dim=1).mean(dim=0) - wanted).abs().max() > 0.1
    for rows in torch.randperm(4000, generator=generator).repeat(5).split(100):
        loss(
            LossInputs(
                student_logits=torch.zeros(len(rows), 4), teacher_logits=logits[rows], index=rows
            )
        )
    shifted = (logits + loss.shift.bias).softmax(dim=1).mean(dim=0)
    assert (shifted - wanted).abs().max() < 0.02  # what the noise of batches of 100 leaves


def test_shares_of_other_classes_are_refused():
    message = "'balanced_elr': shares has 3 numbers, expected one for each of the 4 classes"
    assert_refused(message, make_loss, "balanced_elr", 4, shares=[0.2, 0.3, 0.5])


def test_a_skipped_step_leaves_the_memory_of_crd_as_it_was():
    """Two batches of NaN within one step, whose samples overlap; then a good step. Others: training/test_step.py."""
    loss, inputs = feature_cases.make("crd"), feature_cases.make_inputs()
    loss(inputs)
    memory, before = BufferUndo(loss), {k: v.clone() for k, v in loss.state_dict().items()}

    def unchanged():
        return all(torch.equal(v, before[k]) for k, v in loss.state_dict().items())

    poisoned = inputs.replace(
        student_logits=inputs.student_logits * torch.nan,
        teacher_logits=inputs.teacher_logits * torch.nan,
        student_features=[f * torch.nan for f in inputs.student_features],
    )
    memory.keep()
    loss(poisoned)
    loss(inputs.replace(index=inputs.index.roll(1)))
    assert not unchanged()
    memory.put_back()
    assert unchanged()
    loss(inputs)
    assert not unchanged()
