"""Inputs and loss names that the tests of all losses share."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from w2s_plugins.losses import DistillationLoss, LossContext, LossInputs, create_loss, list_losses
from w2s_plugins.losses.base import LOSSES
from w2s_plugins.target_kind import ONE_CLASS, SEVERAL_CLASSES

NUM_SAMPLES = 300
BY_CLASS = " by class"  # after the name of a loss that learns several classes an image


def own_losses() -> list[str]:
    """Names of the package's losses; other tests in this process may have registered more."""
    return [
        name
        for name in list_losses()
        if LOSSES.get(name).factory.__module__.startswith("w2s_plugins.")
    ]


def logit_losses() -> list[str]:
    """Names of those that work on logits alone and learn one class an image."""
    return [
        name
        for name in own_losses()
        if not create_loss(name).needs_features and ONE_CLASS.name in LOSSES.get(name).target_kinds
    ]


def several_losses() -> list[str]:
    """Names, with `BY_CLASS`, of those that learn several classes an image."""
    known = [n for n in own_losses() if SEVERAL_CLASSES.name in LOSSES.get(n).target_kinds]
    return [name + BY_CLASS for name in known]


def create(name: str, **kwargs: object) -> DistillationLoss:
    """Create a loss, or a sum, for the kind of labels that its name says."""
    loss = create_loss(name.replace(BY_CLASS, ""), **kwargs)
    loss.take_kind(SEVERAL_CLASSES if BY_CLASS in name else ONE_CLASS)
    return loss


def make_inputs(
    batch_size: int,
    num_classes: int,
    *,
    seed: int = 0,
    target: str | None = "hard",
    dtype: torch.dtype = torch.float64,
    scale: float = 2.0,
) -> LossInputs:
    """Random inputs with gradient on the student and every field a logit loss may ask for."""
    generator = torch.Generator().manual_seed(seed)

    def logits() -> torch.Tensor:
        return (
            scale * torch.randn(batch_size, num_classes, generator=generator, dtype=torch.float64)
        ).to(dtype)

    targets = {
        "hard": torch.randint(num_classes, (batch_size,), generator=generator),
        "soft": torch.rand(batch_size, num_classes, generator=generator).softmax(dim=1),
        None: None,
    }
    return LossInputs(
        student_logits=logits().requires_grad_(),
        teacher_logits=logits(),
        target=targets[target],
        index=torch.randperm(NUM_SAMPLES, generator=generator)[:batch_size],
        progress=0.4,
    )


def make_loss(
    name: str, num_classes: int, num_samples: int = NUM_SAMPLES, **kwargs: object
) -> DistillationLoss:
    """Create a loss and give it its memory."""
    loss = create(name, **kwargs)
    loss.setup(LossContext(num_classes=num_classes, num_samples=num_samples))
    return loss


def run_rank(rank: int, work: Callable[[int], object], folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(rank)  # as ranks are in training
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    torch.save(work(rank), folder / f"{rank}.pt")
    dist.destroy_process_group()


def on_two_ranks(work: Callable[[int], object], folder: Path) -> list:
    """What a function of the rank returns on each of two processes of one group."""
    mp.start_processes(run_rank, (work, folder), nprocs=2, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
