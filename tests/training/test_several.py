"""Training on several true labels an image, beside timm's own task."""

import copy

import pytest
import torch
from timm.task import ClassificationTask, MultiLabelClassificationTask
from torch import Tensor, nn

from tests.parts import default_settings
from w2s_plugins.target_kind import SEVERAL_CLASSES
from w2s_plugins.training.create_task import create_criterion
from w2s_plugins.training.task import consistency

CLASSES = 5


def batches(unknown: bool = False) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(4):
        target = (torch.rand(8, CLASSES, generator=generator) < 0.3).float()
        if unknown:
            target[torch.rand(8, CLASSES, generator=generator) < 0.3] = torch.nan
        made.append((torch.randn(8, 3, generator=generator), target))
    return made


def train(task: nn.Module, model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for images, target in data:
        loss = task(images, target)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def criterion_of(**flags: object) -> nn.Module:
    settings = default_settings(task="multilabel", **flags)
    return create_criterion(settings.loss, settings.views, CLASSES, SEVERAL_CLASSES)


@pytest.mark.parametrize(
    ("loss", "smoothing"),
    [
        *((loss, 0.0) for loss in ("bce", "asl", "poly", "twoway", "zlpr")),
        ("bce", 0.2),
        ("asl", 0.2),
    ],
)
def test_training_is_timms_to_the_last_bit(loss: str, smoothing: float) -> None:
    ours = nn.Linear(3, CLASSES)
    theirs = copy.deepcopy(ours)
    kwargs = dict(loss_type=loss, smoothing=smoothing)
    if loss == "asl":
        settings = default_settings().loss
        kwargs |= dict(asl_gamma_pos=settings.asl_gamma_pos, asl_gamma_neg=settings.asl_gamma_neg)
    if loss == "poly":
        kwargs |= dict(poly_epsilon=default_settings().loss.poly_epsilon)
    timms = MultiLabelClassificationTask(theirs, criterion_kwargs=kwargs, verbose=False)
    criterion = criterion_of(task_loss=loss, smoothing=smoothing)
    task = ClassificationTask(ours, criterion, verbose=False)
    assert train(task, ours, batches()) == train(timms, theirs, batches())
    assert torch.equal(ours.weight, theirs.weight)


def test_unknown_labels_have_no_part_in_the_loss() -> None:
    """The loss is the mean over the known ones, and a batch without any changes nothing."""
    criterion = criterion_of(task_loss="bce", smoothing=0.0)
    logits = torch.randn(4, CLASSES, dtype=torch.float64, requires_grad=True)
    target = batches(unknown=True)[0][1][:4].double()
    p, known = logits.sigmoid(), ~target.isnan()
    expected = -torch.where(target == 1, p.log(), (1 - p).log())[known].mean()
    torch.testing.assert_close(criterion(logits, target), expected)
    (gradient,) = torch.autograd.grad(criterion(logits, target), logits)
    assert (gradient[~known] == 0).all() and gradient.isfinite().all()
    nothing = criterion(logits, torch.full_like(target, torch.nan))
    (gradient,) = torch.autograd.grad(nothing, logits)
    assert nothing == 0 and (gradient == 0).all()


def test_strong_views_learn_what_is_said_of_the_first_ones() -> None:
    first, strong = torch.randn(6, CLASSES), torch.randn(6, CLASSES)
    expected = nn.functional.binary_cross_entropy_with_logits(strong, (first >= 0).float())
    torch.testing.assert_close(consistency(first, strong, SEVERAL_CLASSES), expected)
