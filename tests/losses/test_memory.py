"""Memory by sample: the same on every rank as in one process, whatever the batches look like."""


import pytest
import torch

from w2s_plugins.errors import UserError
from w2s_plugins.losses import LossInputs, create_loss
from w2s_plugins.training.step import BufferUndo

from . import feature_cases
from .common import NUM_SAMPLES, make_inputs, make_loss, on_two_ranks

WITH_MEMORY = ["elr", "balanced_elr", "temporal", "sop", "elr+sop"]
STEPS = [  # rows of rank 0, rows of rank 1; sample 3 is on both ranks at once, sample 5 twice on one
    ([0, 1, 2], [3, 4, 5]),
    ([3, 7, 5, 5], [3, 2]),
    ([6], [0, 1, 8]),
]


def batch(step, index, dtype=torch.float32):
    """A prediction is a function of the step and the sample, and differs between the places of a repeated one."""
    rows = [make_inputs(1, 4, seed=1000 * step + 10 * i + place, dtype=dtype) for place, i in enumerate(index)]
    return LossInputs(
        student_logits=torch.cat([row.student_logits.detach() for row in rows]).requires_grad_(),
        teacher_logits=torch.cat([row.teacher_logits for row in rows]),
        index=torch.tensor(index), progress=step / 3)


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
    ranks = [found[name] for found in two_ranks]
    for key, value in state.items():
        assert torch.equal(ranks[0][0][key], ranks[1][0][key]), f"the ranks disagree on {key}"
        assert torch.equal(ranks[0][0][key], value), f"{key} differs from one process"
        fresh = make_loss(name, 4).state_dict()[key]
        assert not torch.equal(value, fresh), f"{key} was not updated"
    for (whole, size), (first, n), (second, m) in zip(values, *(rank[1] for rank in ranks)):
        assert n + m == size
        assert whole == pytest.approx((first * n + second * m) / size, rel=1e-5)


def test_memory_of_unseen_samples_stays_as_it_was():
    for name in WITH_MEMORY:
        fresh, state = make_loss(name, 4).state_dict(), train(name)[0]
        by_sample = {key: value for key, value in state.items() if len(value) == NUM_SAMPLES}
        assert by_sample and all(torch.equal(value[9:], fresh[key][9:]) for key, value in by_sample.items())


@pytest.mark.parametrize("shares", [None, [1.0, 2.0, 3.0, 4.0]])
def test_shift_gives_the_classes_their_shares(shares):
    """A teacher with a preference: the mean softmax has other shares before, the given ones after a few epochs."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4000, 4, generator=generator) + torch.tensor([1.5, 0.0, 0.0, -1.0])
    wanted = torch.tensor(shares or 4 * [1.0]) / sum(shares or 4 * [1.0])
    loss = make_loss("balanced_elr", 4, shares=shares, num_samples=4000)
    assert (logits.softmax(dim=1).mean(dim=0) - wanted).abs().max() > 0.1
    for rows in torch.randperm(4000, generator=generator).repeat(5).split(100):
        loss(LossInputs(student_logits=torch.zeros(len(rows), 4), teacher_logits=logits[rows], index=rows))
    shifted = (logits + loss.shift.bias).softmax(dim=1).mean(dim=0)
    assert (shifted - wanted).abs().max() < 0.02  # what the noise of batches of 100 leaves


def test_shares_of_other_classes_are_refused():
    with pytest.raises(UserError, match="'balanced_elr': shares has 3 numbers, expected one for each of the 4 classes"):
        make_loss("balanced_elr", 4, shares=[0.2, 0.3, 0.5])
    with pytest.raises(UserError, match="expected a list, each a number > 0"):
        create_loss("balanced_elr", shares=[0.0, 1.0])


def case_of(name):
    """A loss that has seen its samples once, and inputs of the same samples."""
    loss = feature_cases.make(name) if name == "crd" else make_loss(name, 4)
    inputs = feature_cases.make_inputs() if name == "crd" else batch(0, [0, 1, 5, 5])
    loss(inputs)
    return loss, inputs


@pytest.mark.parametrize("name", [*WITH_MEMORY, "crd"])
def test_a_skipped_step_leaves_the_memory_as_it_was(name):
    """Two batches of NaN within one step, whose samples overlap; then a good step."""
    loss, inputs = case_of(name)
    memory, before = BufferUndo(loss), {k: v.clone() for k, v in loss.state_dict().items()}
    poisoned = inputs.replace(
        student_logits=inputs.student_logits * torch.nan, teacher_logits=inputs.teacher_logits * torch.nan,
        student_features=inputs.student_features and [f * torch.nan for f in inputs.student_features])
    memory.keep()
    loss(poisoned)
    loss(inputs.replace(index=inputs.index.roll(1)))
    assert not all(torch.equal(v, before[k]) for k, v in loss.state_dict().items())
    memory.put_back()
    assert all(torch.equal(v, before[k]) for k, v in loss.state_dict().items())
    loss(inputs)
    assert not all(torch.equal(v, before[k]) for k, v in loss.state_dict().items())
