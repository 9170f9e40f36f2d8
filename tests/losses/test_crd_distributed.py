"""The memory of crd on two processes is that of one process with the whole batch."""

import torch
import torch.distributed as dist

from w2s_plugins.distributed.world import gather_in_dataset_order
from w2s_plugins.losses.memory import gather_rows

from .common import on_two_ranks
from .feature_cases import make, make_inputs, rows, total

STEPS = 3
SHARES = [torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])]


def train(share: torch.Tensor | None, average=lambda gradient: gradient) -> dict[str, torch.Tensor]:
    """A few steps of SGD on the loss's own parameters; what is left of it, and the gradient on the features."""
    loss = make("crd")
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    for step in range(STEPS):
        inputs = make_inputs(seed=step) if share is None else rows(make_inputs(seed=step), share)
        optimizer.zero_grad()
        total(loss, inputs).backward()
        for parameter in loss.parameters():
            parameter.grad = average(parameter.grad)
        optimizer.step()
    return {**loss.state_dict(), "gradient": inputs.student_features[-1].grad}


def train_rank(rank: int) -> dict[str, torch.Tensor]:
    def average(gradient: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(gradient)
        return gradient / 2

    (uneven,) = gather_rows(torch.full((rank + 1, 2), float(rank)))
    dealt = gather_in_dataset_order(torch.arange(5)[rank::2, None], True)
    return {**train(SHARES[rank], average), "uneven": uneven, "dealt": dealt}


def test_two_processes_are_one(tmp_path):
    first, second = on_two_ranks(train_rank, tmp_path)
    alone = train(None)
    gradient = alone.pop("gradient") * 2  # theirs is of a mean over half as many samples
    for key, value in alone.items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], value, rtol=1e-12, atol=1e-14)  # sums in another order
    for got, share in zip((first, second), SHARES):
        torch.testing.assert_close(got["gradient"], gradient[share], rtol=1e-10, atol=1e-14)
        assert got["uneven"].tolist() == [[0, 0], [1, 1], [1, 1]]
        assert got["dealt"].flatten().tolist() == [0, 1, 2, 3, 4], "the order of the data"


def test_a_sample_that_comes_twice_counts_once():
    inputs = make_inputs()
    once, twice = make("crd"), make("crd")
    once(rows(inputs, torch.tensor([0, 1])))
    twice(rows(inputs, torch.tensor([0, 1, 0])))
    for name in ("memory_student", "memory_teacher"):
        torch.testing.assert_close(getattr(once, name), getattr(twice, name), rtol=1e-12, atol=0)
