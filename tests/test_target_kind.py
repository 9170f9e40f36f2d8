"""What the kinds of labels mean, by hand; and that a kind that a loss or a flag does not know is refused."""

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
from w2s_plugins.settings.forms import MULTILABEL
from w2s_plugins.target_kind import (
    ONE_CLASS,
    SEVERAL_CLASSES,
    UNMAPPED_LOGIT,
    OneClass,
    SeveralClasses,
    kind_of_problem,
    kind_of_task,
)
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


# ---------------------------------------------------------------- several classes

NAN = math.nan
SOME = torch.tensor([[0.9, 0.2, NAN], [0.5, NAN, NAN]])  # probabilities, of which some are unknown
MORE = torch.tensor([[0.5, NAN, NAN], [0.1, 0.3, NAN]])
YES_NO = torch.tensor([[1, 0, -1], [1, -1, -1]], dtype=torch.int8)


def logit(shares: Tensor) -> Tensor:
    return torch.log(shares.double()) - torch.log1p(-shares.double())


def binary_kl() -> Tensor:
    p, q = SOME.double(), MORE.double()
    each = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    return torch.tensor([[each[0, 0], each[1, 0]]])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(SEVERAL_CLASSES.probabilities(logit(SOME)), SOME, id="probabilities"),
        pytest.param(SEVERAL_CLASSES.from_probabilities(SOME), logit(SOME), id="from"),
        pytest.param(SEVERAL_CLASSES.average([LOGITS]), LOGITS, id="average of one"),
        pytest.param(
            SEVERAL_CLASSES.average([logit(SOME), logit(MORE)]),
            logit(torch.tensor([[0.7, 0.2, NAN], [0.3, 0.3, NAN]])),
            id="average of who says something",
        ),
        pytest.param(
            SEVERAL_CLASSES.mix(logit(SOME), torch.tensor([[0.7], [1.0]])),
            logit(torch.tensor([[0.7 * 0.9 + 0.3 * 0.5, NAN, NAN], [0.5, NAN, NAN]])),
            id="mix",
        ),
        pytest.param(
            SEVERAL_CLASSES.map_classes(LOGITS, torch.tensor([0, -1, 0]), 2),
            torch.tensor([[3.0, NAN], [2.0, NAN]]),
            id="map_classes",
        ),
        pytest.param(
            SEVERAL_CLASSES.divergence(logit(SOME)[None], logit(MORE)), binary_kl(), id="divergence"
        ),
        pytest.param(
            SEVERAL_CLASSES.confidence(logit(SOME)), torch.tensor([0.85, 0.5]), id="confidence"
        ),
        pytest.param(
            SEVERAL_CLASSES.uncertainty(torch.tensor([[0.5, 1.0, NAN]])),
            torch.tensor([2.0]).log(),
            id="uncertainty",
        ),
        pytest.param(
            SEVERAL_CLASSES.of_decisions(YES_NO, 3, 0.9),
            logit(torch.tensor([[0.9, 0.1, NAN], [0.9, NAN, NAN]])),
            id="of_decisions",
        ),
    ],
)
def test_values_of_several_classes(value: Tensor, expected: Tensor) -> None:
    close = dict(rtol=1e-5, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(value.double(), expected.double(), **close)


def test_hard_labels_of_several_classes() -> None:
    kind = SEVERAL_CLASSES
    assert torch.equal(kind.decide(logit(SOME)), YES_NO)
    assert torch.equal(kind.decide_shares(SOME), YES_NO)
    assert SeveralClasses(0.6).decide_shares(SOME).tolist() == [[1, 0, -1], [0, -1, -1]]
    assert torch.equal(kind.decide(kind.of_decisions(YES_NO, 3)), YES_NO)
    assert kind.are_answers(torch.tensor([[1, NAN], [NAN, NAN], [1, math.inf]])).tolist() == [
        1,
        0,
        0,
    ]

    # of who says nothing of a class nobody says that he is wrong
    truth = torch.tensor([[1.0, 1.0, 0.0], [0.0, NAN, 1.0]])
    assert kind.agreement(YES_NO, truth).tolist() == [0.5, 0.0]
    assert kind.agreement(YES_NO, torch.full((2, 3), -1)).tolist() == [1, 1]
    # F1 of one hit and one miss, and of a false alarm alone
    torch.testing.assert_close(kind.score(YES_NO, truth), torch.tensor([2 / 3, 0.0]))
    teacher = torch.tensor([[0, 0, -1], [1, 1, -1]])
    # it is wrong about the first two classes of the first image and the first of the second one
    assert kind.copied(YES_NO, teacher, truth).tolist() == [False, True, True]


def test_several_classes_in_files() -> None:
    names, rows = SEVERAL_CLASSES.predictions(
        {"target": torch.tensor([[1.0, NAN]]), "student": torch.tensor([[0, 1]], dtype=torch.int8)}
    )
    assert names == ["target.0", "target.1", "student.0", "student.1"]
    assert rows.dtype == torch.int32 and rows.tolist() == [[1, -1, 0, 1]]
    columns = SEVERAL_CLASSES.columns(np.array([[0.9, 0.6], [0.1, 0.2]]), ["beach", "dog"])
    assert columns == {"labels": ["beach,dog", "[]"]}


def test_names_of_the_kinds() -> None:
    assert (
        kind_of_task(MULTILABEL, 0.3).threshold == 0.3
        and kind_of_task("classification") is ONE_CLASS
    )
    for kind in (ONE_CLASS, SEVERAL_CLASSES):
        assert kind_of_problem(kind.problem_type) is kind
    assert kind_of_problem("regression") is None and kind_of_problem(["x"]) is None


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
