"""Losses for several classes an image: against timm's, against formulas written down again, and with unknown labels."""

import inspect
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.loss import create_classification_loss
from torch import Tensor

from tests.parts import assert_refused
from w2s_plugins.losses import (
    DistillationLoss,
    LossInputs,
    create_loss,
    describe_losses,
    register_loss,
)
from w2s_plugins.losses.base import LOSSES
from w2s_plugins.target_kind import ONE_CLASS, SEVERAL_CLASSES
from w2s_plugins.training.step import BufferUndo

from .common import BY_CLASS, create, make_inputs, make_loss, several_losses

NAMES = several_losses()
ASSUMING = ["an by class", "wan by class", "ll_r by class", "ll_ct by class"]
# their value of a label depends on other labels
RANKING = ["zlpr by class", "twoway by class", *ASSUMING]


def with_unknown(batch_size: int = 6, num_classes: int = 5, seed: int = 0) -> LossInputs:
    """A third of the labels unknown, all of one image and all of one class."""
    inputs = make_inputs(batch_size, num_classes, seed=seed)
    hidden = (
        torch.rand(batch_size, num_classes, generator=torch.Generator().manual_seed(seed)) < 0.3
    )
    hidden[1] = True
    hidden[:, 2] = True
    return inputs.replace(teacher_logits=inputs.teacher_logits.masked_fill(hidden, torch.nan))


def total(loss: DistillationLoss, inputs: LossInputs) -> Tensor:
    return sum(loss(inputs).values())


def value_and_grad(loss: DistillationLoss, inputs: LossInputs) -> tuple[Tensor, Tensor]:
    value = total(loss, inputs)
    return value.detach(), torch.autograd.grad(value, inputs.student_logits)[0]


def assert_same(one: tuple[Tensor, ...], two: tuple[Tensor, ...], **how: float) -> None:
    for a, b in zip(one, two):
        torch.testing.assert_close(a, b, **{"rtol": 1e-10, "atol": 1e-12, **how}, check_dtype=False)


# ---------------------------------------------------------------- timm's, where nothing is unknown

OF_TIMM = [
    ("bce", {}, {}),
    ("bce", {"target_threshold": 0.7}, {"bce_target_thresh": 0.7}),
    ("asl", {}, {}),
    ("asl", {"reduction": "mean", "clip": 0.0}, {"asl_reduction": "mean", "asl_clip": 0.0}),
    (
        "asl",
        {"gamma_neg": 2.0, "gamma_pos": 0.0, "clip": 0.3},
        {"asl_gamma_neg": 2.0, "asl_gamma_pos": 0.0, "asl_clip": 0.3},
    ),
    ("poly", {}, {}),
    (
        "poly",
        {"epsilon": -1.0, "gamma": 2.0, "alpha": 0.3},
        {"poly_epsilon": -1.0, "poly_gamma": 2.0, "poly_alpha": 0.3},
    ),
    ("zlpr", {}, {}),
    ("twoway", {}, {}),
    ("twoway", {"tp": 1.5, "tn": 2.0}, {"twoway_tp": 1.5, "twoway_tn": 2.0}),
]


@pytest.mark.parametrize("sure", [False, True])
@pytest.mark.parametrize(("name", "kwargs", "theirs"), OF_TIMM)
def test_equals_that_of_timm(
    name: str, kwargs: dict[str, float], theirs: dict[str, float], sure: bool
) -> None:
    """For soft labels, and for those that are 0 or 1. timm computes most of them in float32."""
    criterion = create_classification_loss(name, multi_label=True, **theirs)
    for seed, shape in enumerate([(7, 5), (1, 4), (5, 1)]):
        inputs = make_inputs(*shape, seed=seed)
        if sure:
            inputs = inputs.replace(teacher_logits=1e3 * inputs.teacher_logits.sign())
        found = value_and_grad(create(name + BY_CLASS, **kwargs), inputs)
        value = criterion(inputs.student_logits, inputs.teacher_logits.sigmoid())
        (gradient,) = torch.autograd.grad(value, inputs.student_logits)
        assert_same(found, (value.detach(), gradient), rtol=2e-5, atol=1e-6)


def test_a_yes_that_the_student_excludes_has_a_gradient_in_asl() -> None:
    student = torch.tensor([[-40.0, -1e4]], requires_grad=True)
    inputs = LossInputs(student, torch.full((1, 2), 1e3))
    assert value_and_grad(create("asl by class"), inputs)[1].tolist() == [[-1.0, -1.0]]


# ---------------------------------------------------------------- formulas, written down a second time with numpy


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def bce(p: float, q: float) -> float:
    return -q * math.log(p) - (1 - q) * math.log(1 - p)


def labels_of(inputs: LossInputs) -> list[tuple[int, float, float]]:
    """Image, p and q of each known label."""
    z, w = inputs.student_logits.tolist(), inputs.teacher_logits.tolist()
    return [
        (i, sigmoid(a), sigmoid(b))
        for i, (row, others) in enumerate(zip(z, w))
        for a, b in zip(row, others)
        if not math.isnan(b)
    ]


def reference_bce(inputs: LossInputs) -> float:
    return float(np.mean([bce(p, q) for _, p, q in labels_of(inputs)]))


def reference_asl(
    inputs: LossInputs, gamma_neg: float = 4.0, gamma_pos: float = 1.0, clip: float = 0.05
) -> float:
    losses = []
    for _, p, q in labels_of(inputs):
        of_no = min(1 - p + clip, 1)
        right = q * p + (1 - q) * of_no
        weight = (1 - right) ** (q * gamma_pos + (1 - q) * gamma_neg)
        losses.append(-weight * (q * math.log(p) + (1 - q) * math.log(of_no)))
    return float(np.mean(losses)) * inputs.student_logits.shape[1]


def reference_poly(inputs: LossInputs, epsilon: float = 2.0) -> float:
    return float(
        np.mean(
            [bce(p, q) + epsilon * (1 - q * p - (1 - q) * (1 - p)) for _, p, q in labels_of(inputs)]
        )
    )


def reference_zlpr(inputs: LossInputs) -> float:
    rows: dict[int, list[float]] = {}
    for i, p, q in labels_of(inputs):
        sums = rows.setdefault(i, [1.0, 1.0])
        odds = p / (1 - p)
        sums[q >= 0.5] += 1 / odds if q >= 0.5 else odds
    return float(np.mean([math.log(a) + math.log(b) for a, b in rows.values()]))


def reference_twoway(inputs: LossInputs, tp: float = 4.0, tn: float = 1.0) -> float:
    z, w = inputs.student_logits.detach().numpy(), inputs.teacher_logits.numpy()
    sides = 0.0
    for logits, labels in ((z, w), (z.T, w.T)):
        losses = []
        for row, said in zip(logits, labels):
            if not (said >= 0).any():
                continue
            no = np.sum(np.exp(row[said < 0] / tn)) ** tn
            losses.append(math.log(1 + no * np.sum(np.exp(-row[said >= 0] / tp)) ** tp))
        sides += float(np.mean(losses))
    return sides


def reference_kd(inputs: LossInputs, temperature: float = 4.0) -> float:
    z, w = inputs.student_logits.flatten(), inputs.teacher_logits.flatten()
    losses = []
    for a, b in zip(z.tolist(), w.tolist()):
        if not math.isnan(b):
            p, q = sigmoid(a / temperature), sigmoid(b / temperature)
            losses.append(q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p)))
    return temperature**2 * float(np.mean(losses))


def reference_adaptconf(inputs: LossInputs, temperature: float = 0.5, ramp: float = 0.0) -> float:
    """beta as the paper writes it."""
    losses = []
    for _, p, q in labels_of(inputs):
        on_itself, on_teacher = bce(p, float(p >= 0.5)), bce(p, float(q >= 0.5))
        powers = [math.exp(loss / temperature) for loss in (on_itself, on_teacher)]
        beta = powers[0] / sum(powers) * (min(1.0, inputs.progress / ramp) if ramp else 1.0)
        kl = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
        losses.append((1 - beta) * kl + beta * on_itself)
    return float(np.mean(losses))


def reference_assuming(
    inputs: LossInputs, how: str, share: float = 0.0, trust_negatives: bool = False
) -> float:
    """an, wan, ll_r or ll_ct."""
    z, w = inputs.student_logits.tolist(), inputs.teacher_logits.tolist()
    losses: list[float] = []
    corrected: list[float] = []
    unobserved: list[bool] = []
    for row, said in zip(z, w):
        if all(map(math.isnan, said)):
            continue
        for a, b in zip(row, said):
            q = 0.0 if math.isnan(b) else sigmoid(b)
            losses.append(bce(sigmoid(a), q))
            corrected.append(bce(sigmoid(a), 1 - q) if how == "ll_ct" else 0.0)
            unobserved.append(math.isnan(b) or (b < 0 and not trust_negatives))
    if how == "wan":
        weight = 1 / (len(z[0]) - 1)
        losses = [weight * loss if u else loss for loss, u in zip(losses, unobserved)]
    order = sorted((i for i, u in enumerate(unobserved) if u), key=lambda i: -losses[i])
    for i in order[: math.ceil(share * inputs.progress * len(losses) - 1e-9)]:
        losses[i] = corrected[i]
    return float(np.mean(losses))


BY_FORMULA: list[tuple[str, dict[str, object], Callable[[LossInputs], float]]] = [
    ("bce", {}, reference_bce),
    ("asl", {}, reference_asl),
    ("asl", {"gamma_neg": 0.5, "clip": 0.2}, lambda i: reference_asl(i, 0.5, 1.0, 0.2)),
    ("poly", {}, reference_poly),
    ("zlpr", {}, reference_zlpr),
    ("twoway", {}, reference_twoway),
    ("twoway", {"tp": 2.0, "tn": 0.5}, lambda i: reference_twoway(i, 2.0, 0.5)),
    ("kd", {}, reference_kd),
    ("kd", {"temperature": 1.0}, lambda i: reference_kd(i, 1.0)),
    ("adaptconf", {}, reference_adaptconf),
    (
        "adaptconf",
        {"temperature": 2.0, "ramp": 0.5},
        lambda i: reference_adaptconf(i, 2.0, 0.5),
    ),
    ("an", {}, lambda i: reference_assuming(i, "an")),
    ("wan", {}, lambda i: reference_assuming(i, "wan")),
    (
        "wan",
        {"trust_negatives": True},
        lambda i: reference_assuming(i, "wan", trust_negatives=True),
    ),
    ("ll_r", {"share": 0.5}, lambda i: reference_assuming(i, "ll_r", 0.5)),
    ("ll_r", {"share": 1.0}, lambda i: reference_assuming(i, "ll_r", 1.0)),
    (
        "ll_r",
        {"share": 0.5, "trust_negatives": True},
        lambda i: reference_assuming(i, "ll_r", 0.5, True),
    ),
    ("ll_r", {"share": 1.0, "start": 0.41}, lambda i: reference_assuming(i, "an")),
    ("ll_ct", {"share": 0.5}, lambda i: reference_assuming(i, "ll_ct", 0.5)),
    (
        "ll_ct",
        {"share": 1.0, "trust_negatives": True},
        lambda i: reference_assuming(i, "ll_ct", 1.0, True),
    ),
]


def test_every_loss_without_a_memory_has_a_second_implementation() -> None:
    known = {name for name, *_ in BY_FORMULA}
    assert {name.removesuffix(BY_CLASS) for name in NAMES} - {"elr", "nvum"} == known


@pytest.mark.parametrize("make", [make_inputs, with_unknown])
@pytest.mark.parametrize(("name", "kwargs", "reference"), BY_FORMULA)
def test_equals_its_formula(
    name: str,
    kwargs: dict[str, object],
    reference: Callable[[LossInputs], float],
    make: Callable[..., LossInputs],
) -> None:
    for seed in range(3):
        inputs = make(6, 5, seed=seed)
        value = total(create(name + BY_CLASS, **kwargs), inputs)
        assert value.item() == pytest.approx(reference(inputs), rel=1e-10)


@pytest.mark.parametrize("given", [None, [0.1, 0.2, 0.3, 0.4]])
def test_memory_of_nvum_over_steps(given: list[float] | None) -> None:
    """The memory written down again with numpy; the share of each class is counted or given."""
    loss = make_loss("nvum by class", 4, 9, lam=2.0, beta=0.8, shares=given).double()
    memory = np.zeros((9, 4))
    yes, known = np.ones(4), np.full(4, 2.0)
    for step, index in enumerate([[0, 1, 2], [3, 0, 8], [0, 4, 2]]):
        inputs = with_unknown(3, 4, seed=step).replace(index=torch.tensor(index))
        z, w = inputs.student_logits.detach().numpy(), inputs.teacher_logits.numpy()
        q = 1 / (1 + np.exp(-w))
        yes, known = yes + np.nansum(q, axis=0), known + (~np.isnan(q)).sum(axis=0)
        prior = yes / known if given is None else np.array(given)
        memory[index] = 0.8 * memory[index] + 0.2 * (z - np.log(prior))
        p = 1 / (1 + np.exp(-z))
        pull = np.log(1 - 1 / (1 + np.exp(-memory[index] * p)))
        each = -q * np.log(p) - (1 - q) * np.log(1 - p) + 2.0 * pull
        assert total(loss, inputs).item() == pytest.approx(np.nanmean(each), rel=1e-10)
    np.testing.assert_allclose(loss.memory.mean.numpy(), memory, rtol=1e-12)


@pytest.mark.parametrize("name", ["elr by class", "nvum by class"])
def test_a_skipped_step_leaves_the_memory_as_it_was(name: str) -> None:
    """A batch of NaN, of labels that are known; then a good step."""
    loss, inputs = make_loss(name, 5).double(), with_unknown()
    total(loss, inputs)
    memory, before = BufferUndo(loss), {k: v.clone() for k, v in loss.state_dict().items()}
    memory.keep()
    total(loss, make_inputs(6, 5).replace(student_logits=torch.full((6, 5), torch.nan)))
    assert not all(torch.equal(v, before[k]) for k, v in loss.state_dict().items())
    memory.put_back()
    assert all(torch.equal(v, before[k]) for k, v in loss.state_dict().items())
    assert total(loss, inputs).isfinite()


def test_shares_of_other_classes_are_refused() -> None:
    message = "'nvum': shares has 2 numbers, expected one for each of the 4 classes"
    assert_refused(message, make_loss, "nvum by class", 4, shares=[0.2, 0.3])


# ---------------------------------------------------------------- one class, and each as a problem of two


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("kd", {}),
        ("kd", {"temperature": 1.0}),
        ("adaptconf", {}),
        ("adaptconf", {"temperature": 2.0, "kd_temperature": 3.0, "ramp": 0.8}),
        ("elr", {}),
        ("elr", {"lam": 7.0, "beta": 0.9}),
        ("elr", {"beta": 0.0}),
    ],
)
def test_each_class_is_the_loss_of_two_classes(name: str, kwargs: dict[str, float]) -> None:
    """The mean of what the form for one class says of logits (0, z) and (0, w) of each class, memory and all."""
    by_class = make_loss(name + BY_CLASS, 3, **kwargs).double()
    of_two = [make_loss(name, 2, **kwargs).double() for _ in range(3)]
    for step in range(3):
        inputs = make_inputs(5, 3, seed=step).replace(index=torch.tensor([0, 4, 7, 2 + step, 9]))
        values = [
            total(
                loss,
                inputs.replace(
                    student_logits=F.pad(inputs.student_logits[:, i : i + 1], (1, 0)),
                    teacher_logits=F.pad(inputs.teacher_logits[:, i : i + 1], (1, 0)),
                ),
            )
            for i, loss in enumerate(of_two)
        ]
        expected = sum(values) / 3
        gradient = torch.autograd.grad(expected, inputs.student_logits)
        assert_same(value_and_grad(by_class, inputs), (expected.detach(), *gradient))


def test_a_student_without_an_opinion_is_not_taught_a_no() -> None:
    inputs = make_inputs(4, 3).replace(student_logits=torch.zeros(4, 3))
    found = create("adaptconf by class")(inputs)
    assert found["self"] == 0 < found["kd"]


def test_the_form_for_one_class_is_as_it_was() -> None:
    """Also after a loss has learned the other kind."""
    loss, inputs = create_loss("kd", temperature=2.0), make_inputs(6, 5)
    expected = total(create_loss("kd", temperature=2.0), inputs)
    loss.take_kind(SEVERAL_CLASSES)
    assert total(loss, inputs) != expected
    loss.take_kind(ONE_CLASS)
    assert torch.equal(total(loss, inputs), expected)


# ---------------------------------------------------------------- what is unknown


@pytest.mark.parametrize("name", NAMES)
def test_nothing_known_is_0_with_a_graph(name: str) -> None:
    inputs = make_inputs(6, 5)
    nothing = inputs.replace(teacher_logits=torch.full((6, 5), torch.nan, dtype=torch.float64))
    value, gradient = value_and_grad(make_loss(name, 5).double(), nothing)
    assert value == 0 and not gradient.any()


@pytest.mark.parametrize("name", NAMES)
def test_images_of_which_nothing_is_known_change_nothing(name: str) -> None:
    inputs = with_unknown()
    without = inputs.rows(torch.tensor([0, 2, 3, 4, 5]))
    found = value_and_grad(make_loss(name, 5).double(), inputs)
    value = total(make_loss(name, 5).double(), without)
    assert_same(found, (value.detach(), *torch.autograd.grad(value, inputs.student_logits)))
    assert not found[1][1].any()


@pytest.mark.parametrize("name", sorted({*NAMES} - {*ASSUMING}))
def test_unknown_labels_teach_nothing(name: str) -> None:
    """Not even through the order of the others: the student's logit there may be anything."""
    inputs = with_unknown()
    unknown = inputs.teacher_logits.isnan()
    found = value_and_grad(make_loss(name, 5).double(), inputs)
    assert found[0].isfinite() and not found[1][unknown].any() and found[1][~unknown].any()
    other = inputs.student_logits.detach().masked_fill(unknown, 50.0).requires_grad_()
    again = value_and_grad(make_loss(name, 5).double(), inputs.replace(student_logits=other))
    assert_same(found, again)


@pytest.mark.parametrize("name", sorted({*NAMES} - {*RANKING, "asl by class"}))
def test_it_is_the_mean_over_the_known_labels(name: str) -> None:
    """As if they were all that a batch of one class has."""
    inputs = with_unknown()
    known = ~inputs.teacher_logits.isnan()
    alone = inputs.replace(
        student_logits=inputs.student_logits[known].unsqueeze(1),
        teacher_logits=inputs.teacher_logits[known].unsqueeze(1),
        index=torch.arange(int(known.sum())),
    )
    # shares of classes are of classes, so that they are given to the one that counts them
    kwargs = {"shares": [0.3] * 5} if "nvum" in name else {}
    of_one = {"shares": [0.3]} if "nvum" in name else {}
    found = value_and_grad(make_loss(name, 5, **kwargs).double(), inputs)
    value = total(make_loss(name, 1, **of_one).double(), alone)
    assert_same(found, (value.detach(), *torch.autograd.grad(value, inputs.student_logits)))


@pytest.mark.parametrize("name", NAMES)
def test_order_of_the_classes_is_irrelevant(name: str) -> None:
    inputs, order = with_unknown(), torch.tensor([3, 0, 4, 2, 1])
    turned = inputs.replace(
        student_logits=inputs.student_logits[:, order],
        teacher_logits=inputs.teacher_logits[:, order],
    )
    value = total(make_loss(name, 5).double(), turned)
    found = (value.detach(), *torch.autograd.grad(value, inputs.student_logits))
    assert_same(value_and_grad(make_loss(name, 5).double(), inputs), found)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_value(name: str) -> None:
    """By finite differences, in evaluation mode, in which memories stay as they are."""
    loss = make_loss(name, 5).double()
    for seed in range(2):
        total(loss, with_unknown(seed=seed))
    loss.eval()
    inputs = with_unknown(seed=3)
    # of AdaptConf the weight of the two parts has no gradient, which differences would see
    if "adaptconf" in name:
        inputs = inputs.replace(progress=0.0)
        loss = create("adaptconf by class", ramp=0.5)
    student = inputs.student_logits.detach().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: total(loss, inputs.replace(student_logits=z)), student
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    inputs = with_unknown()
    half = inputs.student_logits.detach().to(dtype).requires_grad_()
    weak = inputs.teacher_logits.to(dtype)
    value, gradient = value_and_grad(
        make_loss(name, 5), inputs.replace(student_logits=half, teacher_logits=weak)
    )
    assert value.dtype == torch.float32 and gradient.dtype == dtype
    same = inputs.replace(
        student_logits=half.detach().double().requires_grad_(), teacher_logits=weak.double()
    )
    expected = value_and_grad(make_loss(name, 5).double(), same)
    assert_same((value.double(), gradient.double()), expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("scale", [0.0, 1e4])
@pytest.mark.parametrize("name", NAMES)
def test_extreme_logits_with_unknown_labels_are_finite(name: str, scale: float) -> None:
    inputs = with_unknown()
    for student, teacher in ((scale, 1.0), (1.0, scale), (scale, scale), (-scale, scale)):
        extreme = inputs.replace(
            student_logits=(student * inputs.student_logits).float().detach().requires_grad_(),
            teacher_logits=(teacher * inputs.teacher_logits).float(),
        )
        assert all(found.isfinite().all() for found in value_and_grad(make_loss(name, 5), extreme))


# ---------------------------------------------------------------- unknown and wrong positives


def single_positive() -> LossInputs:
    """Two images of three classes, one yes each and nothing else known."""
    student = torch.tensor([[1.0, 2.0, -1.0], [0.5, -2.0, 3.0]], dtype=torch.float64)
    teacher = torch.full((2, 3), torch.nan, dtype=torch.float64)
    teacher[0, 0] = teacher[1, 1] = 1e3
    return LossInputs(student.requires_grad_(), teacher, progress=0.5)


@pytest.mark.parametrize(
    ("name", "kwargs", "factors"),
    [
        ("an", {}, [1, 1, 1, 1]),
        ("wan", {}, [0.5, 0.5, 0.5, 0.5]),
        ("ll_r", {"share": 2 / 3}, [0, 1, 1, 0]),  # two of six: 2.0 and 3.0
        ("ll_r", {"share": 0.3}, [1, 1, 1, 0]),
    ],
)
def test_each_assumed_no(name: str, kwargs: dict[str, float], factors: list[float]) -> None:
    expected = F.softplus(torch.tensor([-1.0, 2.0])).sum()
    of_no = F.softplus(torch.tensor([2.0, -1.0, 0.5, 3.0]))
    expected = (expected + (torch.tensor(factors) * of_no).sum()) / 6
    value = total(create(name + BY_CLASS, **kwargs), single_positive())
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)


def test_corrected_labels_pull_up() -> None:
    kept = value_and_grad(create("ll_ct by class", share=0.3), single_positive())[1]
    assert (kept.sign() == torch.tensor([[-1, 1, 1], [1, -1, -1]])).all()


@pytest.mark.parametrize("name", ["ll_r", "ll_ct"])
def test_before_the_start_nothing_is_left_out(name: str) -> None:
    inputs = with_unknown().replace(progress=0.09)
    early, assumed = create(name + BY_CLASS, share=1.0), create("an by class")
    assert torch.equal(total(early, inputs), total(assumed, inputs))


# ---------------------------------------------------------------- which loss knows what


def test_a_loss_of_one_class_names_those_that_can() -> None:
    can = ", ".join(sorted(name.removesuffix(BY_CLASS) for name in NAMES))
    said = f"^loss 'gce' cannot learn labels of several classes an image; losses that can: {can}$"
    assert_refused(said, create_loss("gce").take_kind, SEVERAL_CLASSES)
    said = "^loss 'bce' cannot learn labels of one class an image; losses that can: adaptconf, at"
    assert_refused(said, create_loss("kd+bce").take_kind, ONE_CLASS)


@pytest.mark.parametrize("name", ["kd", "adaptconf"])
def test_what_has_no_meaning_by_class_is_refused(name: str) -> None:
    said = f"^loss '{name}': logit_standardization has no meaning for labels of several classes"
    loss = create_loss(f"{name}+bce", **{f"{name}.logit_standardization": True})
    assert_refused(said, loss.take_kind, SEVERAL_CLASSES)
    # a record of a run says all defaults
    create(name + BY_CLASS, logit_standardization=False)(make_inputs(4, 3))


def test_forms_of_one_loss_have_the_same_keywords() -> None:
    forms = [LOSSES.get(name) for name in LOSSES.names() if LOSSES.get(name).several]
    assert {entry.name for entry in forms} == {"adaptconf", "kd"}
    for entry in forms:
        by_class = inspect.signature(entry.several).parameters
        assert by_class.keys() | {"logit_standardization"} == {"inputs", *entry.defaults}
        assert all(by_class[name] == entry.defaults[name] for name in by_class.keys() - {"inputs"})


def test_the_list_says_which_kind_a_loss_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOSSES, "_items", dict(LOSSES._items))

    @register_loss("of_boxes", summary="boxes", target_kinds=("boxes",))
    def of_boxes(inputs: LossInputs) -> dict[str, Tensor]:
        return {"zero": 0 * inputs.student_logits.sum()}

    lines = describe_losses().splitlines()
    said = {line.partition("(")[0]: text for line, text in zip(lines[::2], lines[1::2])}
    assert said["of_boxes"].endswith("boxes (boxes)")
    assert said["bce"].endswith("] (several classes an image)")
    assert said["elr"].endswith("] (one class an image or several classes an image)")
    assert said["gce"].endswith("1805.07836]")
