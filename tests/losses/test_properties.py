"""What holds for every loss on logits, found by name so that new ones are covered."""

import copy

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


# what is done to logits in float64, and how far value and gradient may then be from those of the same numbers
FORMS = {
    "not contiguous": (lambda x: x.T.contiguous().T, 1e-12, 1e-10, 1e-12),
    "float32": (torch.Tensor.float, 1e-5, 1e-3, 1e-5),
    "bfloat16 under autocast": (torch.Tensor.bfloat16, 2e-5, 2 ** -7, 1e-4),
}


@pytest.mark.parametrize("form", FORMS)
def test_arithmetic_is_that_of_float64(name, form):
    """Of half precision nothing beyond the rounding of the logits and of the gradient itself is lost."""
    change, of_value, of_gradient, of_largest = FORMS[form]
    inputs = make_inputs(32, 100)
    logits = [change(side.detach()) for side in (inputs.student_logits, inputs.teacher_logits)]
    found, exact = (inputs.replace(student_logits=z.clone().requires_grad_(), teacher_logits=w)
                    for z, w in (logits, [side.double().contiguous() for side in logits]))
    loss = make_loss(name, 100)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled="bfloat16" in form):
        value, gradient = value_and_grad(loss if logits[0].dtype != torch.float64 else loss.double(), found)
    assert value.dtype in (torch.float32, torch.float64)
    expected, expected_gradient = value_and_grad(make_loss(name, 100).double(), exact)
    torch.testing.assert_close(value.double(), expected, rtol=of_value, atol=1e-6)
    torch.testing.assert_close(
        gradient.double(), expected_gradient, rtol=of_gradient, atol=of_largest * expected_gradient.abs().max().item())


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


def test_only_these_need_ground_truth():
    assert {name for name in LOSSES if create_loss(name).needs_target} == {"dkd", "nkd"}


def test_only_these_need_the_index():
    expected = {"elr", "balanced_elr", "temporal", "sop"}
    assert {name for name in LOSSES if create_loss(name).needs_index} == expected
