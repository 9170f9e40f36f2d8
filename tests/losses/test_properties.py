"""What holds for every loss on logits, found by name so that new ones are covered."""

import copy
import logging

import pytest
import torch

from w2s_plugins.losses import create_loss
from w2s_plugins.losses.base import LOSSES as REGISTRY

from .common import logit_losses, make_inputs, make_loss

LOSSES = logit_losses()
TEMPERED = [name for name in LOSSES if "logit_standardization" in REGISTRY.get(name).defaults]


def total(loss, inputs):
    return sum(loss(inputs).values())


def value_and_grad(loss, inputs):
    value = total(loss, inputs)
    gradient, = torch.autograd.grad(value, inputs.student_logits)
    return value.detach(), gradient


def finite(loss, inputs):
    value, gradient = value_and_grad(loss, inputs)
    return bool(value.isfinite()) and bool(gradient.isfinite().all())


@pytest.fixture(params=LOSSES)
def name(request):
    return request.param


def test_terms_are_scalars_with_a_gradient_on_the_student_alone(name):
    inputs = make_inputs(8, 5)
    teacher = inputs.teacher_logits.clone().requires_grad_()
    terms = make_loss(name, 5)(inputs.replace(teacher_logits=teacher))
    assert terms and all(term.shape == () for term in terms.values())
    sum(terms.values()).backward()
    assert teacher.grad is None
    assert inputs.student_logits.grad.shape == inputs.student_logits.shape


@pytest.mark.parametrize("target", ["hard", "soft", None])
def test_order_of_the_batch_is_irrelevant(name, target):
    inputs = make_inputs(16, 6, target=target)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    shuffled = inputs.replace(
        student_logits=inputs.student_logits.detach()[order].requires_grad_(),
        teacher_logits=inputs.teacher_logits[order],
        target=None if target is None else inputs.target[order],
        index=inputs.index[order])
    first, second = make_loss(name, 6).double(), make_loss(name, 6).double()
    (value, gradient), (value2, gradient2) = value_and_grad(first, inputs), value_and_grad(second, shuffled)
    torch.testing.assert_close(value, value2, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient[order], gradient2, rtol=1e-10, atol=1e-12)
    for (key, one), two in zip(first.state_dict().items(), second.state_dict().values()):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-15, msg=key)


@pytest.mark.parametrize("target", ["soft", None])
def test_soft_targets_and_none_stand_for_their_likeliest_class(name, target):
    inputs = make_inputs(8, 5, target=target)
    label = inputs.teacher_logits.argmax(1) if target is None else inputs.target.argmax(1)
    assert torch.equal(total(make_loss(name, 5), inputs), total(make_loss(name, 5), inputs.replace(target=label)))


def test_float32_agrees_with_float64(name):
    """Rounding of the logits alone moves a loss by about eps * |logit| * |gradient|; 1e-5 is ten times that."""
    exact = make_inputs(32, 100, dtype=torch.float64)
    single = exact.replace(
        student_logits=exact.student_logits.detach().float().requires_grad_(),
        teacher_logits=exact.teacher_logits.float())
    value, gradient = value_and_grad(make_loss(name, 100).double(), exact)
    value32, gradient32 = value_and_grad(make_loss(name, 100), single)
    assert value32.dtype == torch.float32
    torch.testing.assert_close(value32.double(), value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient32.double(), gradient, rtol=1e-3, atol=1e-5 * gradient.abs().max().item())


def test_bfloat16_under_autocast_is_the_loss_of_the_rounded_logits(name):
    """The arithmetic is float32: nothing beyond the rounding of the logits themselves (2^-9 relative) is lost."""
    half = make_inputs(32, 100, dtype=torch.bfloat16)
    rounded = half.replace(
        student_logits=half.student_logits.detach().double().requires_grad_(),
        teacher_logits=half.teacher_logits.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = make_loss(name, 100)(half)
        value, gradient = value_and_grad(make_loss(name, 100), half)
    exact_terms = make_loss(name, 100).double()(rounded)
    for key, term in terms.items():
        assert term.dtype == torch.float32
        torch.testing.assert_close(term.double(), exact_terms[key], rtol=2e-5, atol=1e-6)
    _, expected_gradient = value_and_grad(make_loss(name, 100).double(), rounded)
    scale = expected_gradient.abs().max().item()
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=2**-7, atol=1e-4 * scale)
    unrounded, _ = value_and_grad(make_loss(name, 100).double(), make_inputs(32, 100))
    assert value.item() == pytest.approx(unrounded.item(), rel=0.03, abs=1e-3)


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e4])
@pytest.mark.parametrize("loss_name, kwargs", [
    *((name, {}) for name in LOSSES), *((name, {"logit_standardization": True}) for name in TEMPERED)])
def test_extreme_logits(loss_name, kwargs, scale):
    loss = make_loss(loss_name, 10, **kwargs)
    for seed in range(3):
        inputs = make_inputs(6, 10, scale=scale, dtype=torch.float32, seed=seed)
        assert finite(loss, inputs), "both extreme"
        ordinary = make_inputs(6, 10, dtype=torch.float32, seed=seed)
        assert finite(loss, inputs.replace(teacher_logits=ordinary.teacher_logits)), "student extreme"
        assert finite(loss, ordinary.replace(teacher_logits=inputs.teacher_logits)), "teacher extreme"
    hot = torch.full((4, 10), -1e4).scatter(1, torch.arange(4).unsqueeze(1), 1e4)
    cases = [hot, hot.flip(1), torch.full((4, 10), 1e4), torch.full((4, 10), -1e4), torch.zeros(4, 10)]
    for student in cases:
        for teacher in cases:
            inputs = make_inputs(4, 10, dtype=torch.float32).replace(
                student_logits=student.clone().requires_grad_(), teacher_logits=teacher)
            assert finite(loss, inputs), "one-hot or constant"


def test_what_has_a_temperature_has_logit_standardization(name):
    kwargs = REGISTRY.get(name).defaults
    if {"temperature", "kd_temperature", "temperatures"} & set(kwargs):
        assert kwargs["logit_standardization"].default is False


@pytest.mark.parametrize("shape", [(1, 10), (1, 2), (2, 2), (3, 1000)])
def test_small_batches_and_many_classes(name, shape):
    for target in ("hard", "soft", None):
        assert finite(make_loss(name, shape[1]), make_inputs(*shape, target=target, dtype=torch.float32))


def test_non_contiguous_inputs(name):
    inputs = make_inputs(8, 6)
    transposed = inputs.replace(
        student_logits=inputs.student_logits.detach().T.contiguous().T.requires_grad_(),
        teacher_logits=inputs.teacher_logits.T.contiguous().T)
    assert not transposed.student_logits.is_contiguous()
    (value, gradient), (value2, gradient2) = (
        value_and_grad(make_loss(name, 6), case) for case in (inputs, transposed))
    torch.testing.assert_close(value, value2, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, gradient2, rtol=1e-12, atol=1e-12)


def test_saved_state_comes_back(name, tmp_path):
    """Two runs are the same to the last bit, and so is one that goes on from a file."""
    loss, twin = make_loss(name, 5), make_loss(name, 5)
    for step in range(3):
        found = [value_and_grad(one, make_inputs(8, 5, seed=step)) for one in (loss, twin)]
        assert all(torch.equal(*both) for both in zip(*found))
    torch.save(loss.state_dict(), tmp_path / "loss.pt")
    again = make_loss(name, 5)
    assert not loss.needs_index or any(not torch.equal(a, b) for a, b in zip(
        loss.state_dict().values(), again.state_dict().values())), "training left no trace"
    again.load_state_dict(torch.load(tmp_path / "loss.pt", weights_only=True))
    inputs = make_inputs(8, 5, seed=2)
    assert torch.equal(total(loss, inputs), total(again, inputs))
    assert all(torch.equal(a, b) for a, b in zip(loss.state_dict().values(), again.state_dict().values()))


def test_evaluation_changes_nothing(name):
    loss = make_loss(name, 5).eval()
    before = copy.deepcopy(loss.state_dict())
    total(loss, make_inputs(8, 5))
    assert all(torch.equal(v, before[k]) for k, v in loss.state_dict().items())


def test_compiled_is_the_same(name):
    """Graph capture with torch's ahead-of-time autograd; code generation is the backend's affair."""
    torch._dynamo.reset()
    eager, compiled = make_loss(name, 5), torch.compile(make_loss(name, 5), backend="aot_eager")
    for step in range(2):
        inputs = make_inputs(8, 5, seed=step, dtype=torch.float32)
        (value, gradient), (value2, gradient2) = value_and_grad(eager, inputs), value_and_grad(compiled, inputs)
        torch.testing.assert_close(value, value2, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(gradient, gradient2, rtol=1e-5, atol=1e-7)


def test_missing_ground_truth_is_said_once(name, caplog):
    loss = make_loss(name, 5)
    with caplog.at_level(logging.INFO, logger="w2s_plugins.losses.base"):
        for step in range(2):
            total(loss, make_inputs(8, 5, target=None, seed=step))
    said = [record for record in caplog.records if name in record.getMessage()]
    assert len(said) == loss.needs_target


def test_only_these_need_ground_truth():
    assert {name for name in LOSSES if create_loss(name).needs_target} == {"dkd", "nkd"}


def test_only_these_need_the_index():
    expected = {"elr", "balanced_elr", "temporal", "sop"}
    assert {name for name in LOSSES if create_loss(name).needs_index} == expected
