"""Training on several true labels an image, beside timm's own task."""

import copy
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from timm.task import ClassificationTask, MultiLabelClassificationTask
from torch import Tensor, nn

from tests.parts import default_settings, small_model
from w2s_plugins.data import MapDataset
from w2s_plugins.data.datasets import take_several
from w2s_plugins.data.decoding import FileDataset
from w2s_plugins.data.readers import LocationReader
from w2s_plugins.errors import UserError
from w2s_plugins.students.adapters import heads_of
from w2s_plugins.target_kind import SEVERAL_CLASSES
from w2s_plugins.training.create_task import create_criterion
from w2s_plugins.training.splits import Data
from w2s_plugins.training.student import begin_with_shares
from w2s_plugins.training.task import consistency

NAN = math.nan

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


class Rows(MapDataset):
    """A data set of which only the labels are looked at."""

    def __init__(self, targets: Tensor):
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)


@pytest.mark.parametrize(
    ("labels", "shares"),
    [
        ([[1, 0, 0], [1, 0, 1], [0, 0, 0], [1, 0, 0]], [3 / 4, 1 / 6, 1 / 4]),
        # of an unknown label nothing counts if others are denied, and else it counts as a no
        ([[1, NAN, 0], [NAN, 1, NAN], [NAN, NAN, 1], [0, NAN, 0]], [1 / 2, 1 / 4, 1 / 3]),
    ],
)
def test_a_head_of_zeros_begins_with_the_shares(labels: list, shares: list[float]) -> None:
    model = small_model(num_classes=3)
    (head,) = heads_of(model)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    data = Data(Rows(torch.tensor(labels, dtype=torch.float32)), None, None)
    begin_with_shares(default_settings().student, model, data, None)
    torch.testing.assert_close(head.bias.sigmoid(), torch.tensor(shares))
    # what is there stays
    begin_with_shares(
        default_settings().student, model, Data(Rows(torch.ones(4, 3)), None, None), None
    )
    torch.testing.assert_close(head.bias.sigmoid(), torch.tensor(shares))


def test_lists_of_texts_are_refused_in_one_line(tmp_path: Path) -> None:
    """A column of texts has no numbers of classes, as long as nothing else says these."""
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    reader = LocationReader(str(tmp_path), ["a.png"], [])
    vars(reader)["iter_targets"] = lambda: iter([["dog", "beach"]])
    with pytest.raises(UserError, match=r"^here: .*by --target-key"):
        take_several(FileDataset(str(tmp_path), reader=reader), False, None, "here")
