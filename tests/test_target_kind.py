"""What one class an image means, by hand; and that a kind that a loss or a flag does not know is refused."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.parts import assert_refused, default_settings
from w2s_plugins.losses import DistillationLoss, LossInputs, create_loss, register_loss
from w2s_plugins.losses.base import LOSSES
from w2s_plugins.metrics.evaluator import create_evaluator
from w2s_plugins.target_kind import ONE_CLASS, UNMAPPED_LOGIT, OneClass
from w2s_plugins.training.data import check_target_kind

LOGITS = torch.tensor([[1.0, 3.0, 3.0], [2.0, -1.0, 0.5]])
OTHERS = torch.tensor([[0.0, -2.0, 4.0], [5.0, 5.0, -5.0]])


def shares(logits: Tensor) -> Tensor:
    exponentials = torch.from_numpy(np.exp(logits.double().numpy()))
    return exponentials / exponentials.sum(-1, keepdim=True)


def mean_of_two() -> Tensor:
    return ((shares(LOGITS) + shares(OTHERS)) / 2).log()


def kl() -> Tensor:
    return F.kl_div(shares(LOGITS).log(), shares(OTHERS), reduction="none").sum(1)[None]


MIXED = 0.7 * shares(LOGITS) + 0.3 * shares(LOGITS).flip(0)
MAPPED = torch.stack([LOGITS[:, [0, 2]].exp().sum(1).log(), LOGITS[:, 1]], 1)
MAP = torch.tensor([0, 1, 0])
SURE = torch.tensor([[0.05, 0.9, 0.05], [0.9, 0.05, 0.05]]).log()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(ONE_CLASS.probabilities(LOGITS), shares(LOGITS), id="probabilities"),
        pytest.param(ONE_CLASS.average([LOGITS]), LOGITS, id="average of one"),
        pytest.param(ONE_CLASS.average([LOGITS, OTHERS]), mean_of_two(), id="average of two"),
        pytest.param(ONE_CLASS.mix(LOGITS, torch.tensor([[0.7], [0.7]])), MIXED.log(), id="mix"),
        pytest.param(ONE_CLASS.mix(LOGITS, torch.ones(2, 1)), LOGITS, id="mix of nothing"),
        pytest.param(ONE_CLASS.map_classes(LOGITS, MAP, 2), MAPPED, id="map_classes"),
        pytest.param(ONE_CLASS.divergence(OTHERS[None], LOGITS), kl(), id="divergence"),
        pytest.param(ONE_CLASS.confidence(LOGITS), shares(LOGITS).amax(1), id="confidence"),
        pytest.param(
            ONE_CLASS.uncertainty(torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])),
            torch.tensor([2.0, 1.0]).log(),
            id="uncertainty",
        ),
        pytest.param(ONE_CLASS.of_decisions(torch.tensor([1, 0]), 3, 0.9), SURE, id="of_decisions"),
    ],
)
def test_values(value: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(value.double(), expected.double(), rtol=1e-5, atol=1e-6)


def test_hard_labels() -> None:
    decisions, truth = ONE_CLASS.decide(LOGITS), torch.tensor([1, 2])
    assert decisions.tolist() == [1, 0]  # the first of a tie
    assert ONE_CLASS.agreement(decisions, truth).tolist() == [True, False]
    assert ONE_CLASS.score(decisions, truth).tolist() == [True, False]
    again = ONE_CLASS.decide(ONE_CLASS.of_decisions(truth, 3))
    assert torch.equal(again, truth)
    evaluator = create_evaluator(ONE_CLASS, torch.device("cpu"), 1)
    evaluator.update(LOGITS, truth)
    assert evaluator.compute()["top1"] == 100  # the second row is padding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_probability_of_0_is_a_finite_logit(dtype: torch.dtype) -> None:
    logits = ONE_CLASS.from_probabilities(torch.tensor([[0.0, 1.0]], dtype=dtype))
    expected = torch.tensor([[math.log(torch.finfo(dtype).tiny), 0.0]], dtype=dtype)
    torch.testing.assert_close(logits, expected)
    hidden = ONE_CLASS.map_classes(LOGITS, torch.tensor([0, 0, -1]), 2)
    assert (hidden[:, 1] == UNMAPPED_LOGIT).all()


def test_predictions_of_a_run() -> None:
    names, rows = ONE_CLASS.predictions(
        {"target": torch.tensor([1, 0]), "student": torch.tensor([1, 2])}
    )
    assert names == ["target", "student"] and rows.dtype == torch.int32
    assert rows.tolist() == [[1, 1], [0, 2]]


def test_columns_of_a_table() -> None:
    columns = ONE_CLASS.columns(np.array([[0.25, 0.75], [0.5, 0.5]], np.float32), ["cat", "dog"])
    assert list(columns) == ["label", "confidence"] and columns["label"] == ["dog", "cat"]
    assert np.array_equal(columns["confidence"], np.array([0.75, 0.5], np.float32))


# ---------------------------------------------------------------- another kind


class Lists(OneClass):
    """A kind that is not there yet; its decision is the class with the smallest logit."""

    name = "lists"
    words = "several classes an image"

    def decide(self, logits: Tensor) -> Tensor:
        return logits.argmin(dim=1)


@pytest.fixture
def of_lists(monkeypatch: pytest.MonkeyPatch) -> str:
    """A registered loss that knows another kind alone, and returns the label that it was given."""
    monkeypatch.setattr(LOSSES, "_items", dict(LOSSES._items))

    @register_loss("of_lists", needs_target=True, target_kinds=("lists",))
    def of_lists(inputs: LossInputs) -> dict[str, Tensor]:
        return {"label": inputs.target.sum()}

    return "of_lists"


@pytest.mark.parametrize("name", ["kd", "kd+rkd", "kd+of_lists"])
def test_losses_refuse_kinds_that_they_do_not_declare(name: str, of_lists: str) -> None:
    create_loss("kd+rkd").take_kind(ONE_CLASS)
    said = "^loss 'kd' cannot learn labels of several classes an image; losses that can: of_lists$"
    assert_refused(said, create_loss(name).take_kind, Lists())


def test_a_loss_is_given_the_hard_labels_of_the_kind_that_it_declares(of_lists: str) -> None:
    loss: DistillationLoss = create_loss(of_lists)
    loss.take_kind(Lists())
    assert loss(LossInputs(LOGITS, LOGITS))["label"] == 0 + 1
    assert_refused("losses that can: .*kd", loss.take_kind, ONE_CLASS)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (dict(episodic="5x1"), "--episodic"),
        (dict(few_shot_eval="5x1"), "--few-shot-eval"),
        (dict(label_noise="symmetric:0.2"), "--label-noise"),
        (dict(refine_labels=True), "--refine-labels"),
        (dict(clean_select="knn:5"), "--clean-select knn"),
    ],
)
def test_what_knows_one_class_only_is_refused(flags: dict[str, object], named: str) -> None:
    settings = default_settings(**flags)
    check_target_kind(settings, ONE_CLASS)
    said = f"^{named}: labels of several classes an image, expected one class an image$"
    assert_refused(said, check_target_kind, settings, Lists())


def test_what_knows_every_kind_is_not_refused() -> None:
    check_target_kind(default_settings(teacher="w2s_cnn2", clean_select="entropy:0.5"), Lists())
