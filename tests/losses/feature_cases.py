"""Random features of two models that have nothing in common, and losses set up for them."""

import torch

from w2s_plugins.losses import DistillationLoss, LossContext, LossInputs, create_loss

NUM_CLASSES = 5
NUM_SAMPLES = 20
STUDENT = [(3, 8, 8), (4, 5, 5), (6, 2, 2), (7,)]
TEACHER = [(2, 9, 9), (5, 4, 6), (3, 4, 6), (8, 3, 1), (9,)]
CONTEXT = LossContext(NUM_CLASSES, NUM_SAMPLES, STUDENT, TEACHER)
KWARGS = {"crd": {"feat_dim": 4, "negatives": 30}}
NAMES = ["fitnet", "at", "nst", "vid", "reviewkd", "ofa", "sp", "pkt", "rkd", "cc", "srd", "crd"]


def make(name: str, context: LossContext = CONTEXT, **kwargs: object) -> DistillationLoss:
    """A loss in float64, its parameters the same at each call."""
    torch.manual_seed(0)
    loss = create_loss(name, **KWARGS.get(name, {}), **kwargs)
    assert loss.needs_features
    loss.setup(context)
    return loss.double()


def make_inputs(batch: int = 6, scale: float = 1.0, seed: int = 1) -> LossInputs:
    """Inputs in float64, with gradient on both sides."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return (
            scale * torch.randn(batch, *shape, generator=generator, dtype=torch.float64)
        ).requires_grad_()

    return LossInputs(
        normal(NUM_CLASSES),
        normal(NUM_CLASSES),
        target=torch.randint(NUM_CLASSES, (batch,), generator=generator),
        student_features=[normal(*shape) for shape in STUDENT],
        teacher_features=[normal(*shape) for shape in TEACHER],
        index=torch.randperm(NUM_SAMPLES, generator=generator)[:batch],
        progress=0.5,
    )


def cast(inputs: LossInputs, dtype: torch.dtype) -> LossInputs:
    """The inputs in another precision, as new leaves with gradient."""

    def leaf(x: torch.Tensor) -> torch.Tensor:
        return x.detach().to(dtype).requires_grad_()

    return inputs.replace(
        student_logits=leaf(inputs.student_logits),
        teacher_logits=leaf(inputs.teacher_logits),
        student_features=[leaf(f) for f in inputs.student_features],
        teacher_features=[leaf(f) for f in inputs.teacher_features],
    )


def rows(inputs: LossInputs, chosen: torch.Tensor) -> LossInputs:
    """Some samples of the batch, as new leaves with gradient."""
    return cast(inputs.rows(chosen), torch.float64)


def total(loss: DistillationLoss, inputs: LossInputs) -> torch.Tensor:
    return sum(loss(inputs).values())
