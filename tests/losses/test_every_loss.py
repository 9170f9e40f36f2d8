"""What holds for every loss, found by name so that new ones are covered."""

import copy

import pytest
import torch

from tests.parts import assert_refused
from w2s_plugins.losses import DistillationLoss, LossContext, LossInputs, create_loss
from w2s_plugins.losses.base import LOSSES as REGISTRY
from w2s_plugins.training.student import NOT_FROM_ZEROS

from . import feature_cases
from .common import BY_CLASS, create, logit_losses, make_inputs, make_loss, several_losses

LOSSES = [*logit_losses(), *several_losses()]
ALL = [*LOSSES, *feature_cases.NAMES]
WITH_MEMORY = ["elr", "balanced_elr", "temporal", "sop", "crd", "elr by class", "nvum by class"]


def make(name: str, dtype: torch.dtype = torch.float64) -> DistillationLoss:
    loss = feature_cases.make(name) if name in feature_cases.NAMES else make_loss(name, 5)
    return loss.to(dtype)


def inputs_of(name: str, seed: int = 0) -> LossInputs:
    """Six samples in float64, with gradient on the student."""
    return (
        feature_cases.make_inputs(seed=seed)
        if name in feature_cases.NAMES
        else make_inputs(6, 5, seed=seed)
    )


def total(loss: DistillationLoss, inputs: LossInputs) -> torch.Tensor:
    return sum(loss(inputs).values())


def value_and_grad(
    loss: DistillationLoss, inputs: LossInputs, of: LossInputs | None = None
) -> list[torch.Tensor]:
    """The value, and its gradient on what the student gave, by default of the same inputs."""
    of = of or inputs
    value = total(loss, inputs)
    leaves = [of.student_logits, *(of.student_features or ())]
    return [
        value.detach(),
        *torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True),
    ]


def finite(loss: DistillationLoss, inputs: LossInputs) -> bool:
    return all(bool(found.isfinite().all()) for found in value_and_grad(loss, inputs))


def state_of(loss: DistillationLoss) -> dict[str, torch.Tensor]:
    return copy.deepcopy(dict(loss.state_dict()))


def assert_equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], **how: float) -> None:
    for key, value in one.items():
        torch.testing.assert_close(
            value, two[key], equal_nan=True, msg=key, **{"rtol": 0, "atol": 0, **how}
        )


@pytest.mark.parametrize("name", ALL)
def test_order_of_the_batch_is_irrelevant(name):
    inputs, one, two = inputs_of(name), make(name), make(name)
    shuffled = inputs.rows(torch.tensor([3, 5, 0, 2, 1, 4]))
    for found, expected in zip(
        value_and_grad(one, shuffled, of=inputs), value_and_grad(two, inputs)
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert_equal(one.state_dict(), two.state_dict(), rtol=1e-12, atol=1e-15)


STANDARDIZED = [
    (name, {"logit_standardization": True})
    for name in logit_losses()
    if "logit_standardization" in REGISTRY.get(name).defaults
]


FORMS_OF_LOSSES = [*((name, {}) for name in LOSSES), *STANDARDIZED]


@pytest.mark.parametrize("name, kwargs", FORMS_OF_LOSSES)
def test_it_can_begin_where_all_logits_are_zero(name, kwargs):
    """Else the student's head does not begin with zeros: the first step would be huge, or none would ever be made."""
    zeros = torch.zeros(6, 5, dtype=torch.float64, requires_grad=True)
    inputs = inputs_of(name).replace(student_logits=zeros)
    norm = value_and_grad(make_loss(name, 5, **kwargs).double(), inputs)[1].norm()
    assert (1e-3 < norm < 1e3) != bool(NOT_FROM_ZEROS.search(f"{name} {kwargs}"))


@pytest.mark.parametrize("name", [*ALL, "elr+sop+kd", "elr by class+nvum by class+kd by class"])
def test_saved_state_comes_back(name, tmp_path):
    """Two runs are the same to the last bit, and so is one that goes on from a file."""
    loss, twin = make(name), make(name)
    for step in range(3):
        found = [value_and_grad(one, inputs_of(name, step)) for one in (loss, twin)]
        assert all(torch.equal(*both) for both in zip(*found))
    torch.save(loss.state_dict(), tmp_path / "loss.pt")
    again = make(name)
    trained, fresh = loss.state_dict(), again.state_dict()
    if name in WITH_MEMORY:
        assert not all(torch.equal(trained[key], fresh[key]) for key in trained)
    again.load_state_dict(torch.load(tmp_path / "loss.pt", weights_only=True))
    for step in range(2, 4):
        assert torch.equal(total(loss, inputs_of(name, step)), total(again, inputs_of(name, step)))
    assert_equal(loss.state_dict(), again.state_dict())


@pytest.mark.parametrize("name", ALL)
def test_evaluation_changes_nothing(name):
    loss = make(name).eval()
    before = state_of(loss)
    total(loss, inputs_of(name))
    assert_equal(before, loss.state_dict())


@pytest.mark.parametrize(
    "name", ["+".join(logit_losses()), "+".join(several_losses()), *feature_cases.NAMES]
)
def test_compiled_is_the_same(name):
    """Graph capture with torch's ahead-of-time autograd; code generation is the backend's affair."""
    torch._dynamo.reset()
    eager = make(name)
    compiled = torch.compile(make(name), backend="aot_eager", fullgraph=name in feature_cases.NAMES)
    for step in range(2):
        found, expected = (
            value_and_grad(loss, inputs_of(name, step)) for loss in (compiled, eager)
        )
        # of crd torch computes the memory's rows again after they have changed: its gradient is to be had eagerly only
        for one, two in zip(found[:1] if name == "crd" else found, expected):
            torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_what_is_missing_is_said_in_one_line(name):
    assert_refused("no sample index", make(name), inputs_of(name).replace(index=None))
    shapes = (
        feature_cases.CONTEXT.student_feature_shapes,
        feature_cases.CONTEXT.teacher_feature_shapes,
    )
    assert_refused("known size", create(name).setup, LossContext(5, None, *shapes))


def test_only_these_need_ground_truth_or_the_index():
    assert {name for name in ALL if create(name).needs_target} == {"dkd", "nkd", "ofa"}
    assert {name for name in ALL if create(name).needs_index} == {*WITH_MEMORY}


# ---------------------------------------------------------------- losses on logits


@pytest.fixture(params=LOSSES)
def name(request):
    return request.param


def test_terms_are_scalars_with_a_gradient_on_the_student_alone(name):
    inputs = make_inputs(8, 5)
    teacher = inputs.teacher_logits.clone().requires_grad_()
    terms = make(name)(inputs.replace(teacher_logits=teacher))
    assert terms and all(term.shape == () for term in terms.values())
    sum(terms.values()).backward()
    assert teacher.grad is None
    assert inputs.student_logits.grad.shape == inputs.student_logits.shape


@pytest.mark.parametrize("side", ["student_stages", "teacher_stages"])
def test_levels_of_features_that_nobody_compares_are_refused(name, side):
    name = name.removesuffix(BY_CLASS)
    message = f"loss '{name}' compares no features: leave out student_stages and teacher_st"
    assert_refused(message, create_loss, name, **{side: [0]})


@pytest.mark.parametrize("target", ["soft", None])
def test_soft_targets_and_none_stand_for_their_likeliest_class(name, target):
    inputs = make_inputs(8, 5, target=target)
    label = inputs.teacher_logits.argmax(1) if target is None else inputs.target.argmax(1)
    assert torch.equal(total(make(name), inputs), total(make(name), inputs.replace(target=label)))


# what is done to logits in float64, and how far value and gradient may then be from those of the same numbers
FORMS = {
    "not contiguous": (lambda x: x.T.contiguous().T, 1e-12, 1e-10, 1e-12),
    "float32": (torch.Tensor.float, 1e-5, 1e-3, 1e-5),
    "bfloat16 under autocast": (torch.Tensor.bfloat16, 2e-5, 2**-7, 1e-4),
}


@pytest.mark.parametrize("form", FORMS)
def test_arithmetic_is_that_of_float64(name, form):
    """Of half precision nothing beyond the rounding of the logits and of the gradient itself is lost."""
    change, of_value, of_gradient, of_largest = FORMS[form]
    inputs = make_inputs(32, 100)
    student, teacher = (change(z.detach()) for z in (inputs.student_logits, inputs.teacher_logits))

    def computed(student, teacher, loss):
        changed = inputs.replace(student_logits=student.requires_grad_(), teacher_logits=teacher)
        return value_and_grad(loss, changed)

    exact = [z.double().contiguous().clone() for z in (student, teacher)]
    loss = make_loss(name, 100)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled="bfloat16" in form):
        doubled = loss.double() if student.dtype == torch.float64 else loss
        value, gradient = computed(student.clone(), teacher, doubled)
    assert value.dtype in (torch.float32, torch.float64)
    expected, expected_gradient = computed(*exact, make_loss(name, 100).double())
    torch.testing.assert_close(value.double(), expected, rtol=of_value, atol=1e-6)
    atol = of_largest * expected_gradient.abs().max().item()
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=of_gradient, atol=atol)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e4])
@pytest.mark.parametrize("loss_name, kwargs", FORMS_OF_LOSSES)
def test_extreme_logits(loss_name, kwargs, scale, seed):
    """Of both, of the student, of the teacher."""
    loss = make_loss(loss_name, 10, **kwargs)
    extreme = make_inputs(6, 10, scale=scale, dtype=torch.float32, seed=seed)
    ordinary = make_inputs(6, 10, dtype=torch.float32, seed=seed)
    assert finite(loss, extreme)
    assert finite(loss, extreme.replace(teacher_logits=ordinary.teacher_logits))
    assert finite(loss, ordinary.replace(teacher_logits=extreme.teacher_logits))


def test_what_has_a_temperature_has_logit_standardization(name):
    kwargs = REGISTRY.get(name.removesuffix(BY_CLASS)).defaults
    if {"temperature", "kd_temperature", "temperatures"} & set(kwargs):
        assert kwargs["logit_standardization"].default is False


HOT = torch.full((4, 10), -1e4).scatter(1, torch.arange(4).unsqueeze(1), 1e4)


SATURATED = {
    "one-hot": HOT,
    "one-hot otherwise": HOT.flip(1),
    "all large": torch.full((4, 10), 1e4),
    "all small": torch.full((4, 10), -1e4),
    "all zero": torch.zeros(4, 10),
}


@pytest.mark.parametrize("student", SATURATED)
@pytest.mark.parametrize("loss_name, kwargs", FORMS_OF_LOSSES)
def test_one_hot_or_constant_logits(loss_name, kwargs, student):
    loss, inputs = make_loss(loss_name, 10, **kwargs), make_inputs(4, 10, dtype=torch.float32)
    inputs = inputs.replace(student_logits=SATURATED[student].clone().requires_grad_())
    assert [
        case
        for case, logits in SATURATED.items()
        if not finite(loss, inputs.replace(teacher_logits=logits))
    ] == []


@pytest.mark.parametrize("target", ["hard", "soft", None])
@pytest.mark.parametrize("shape", [(1, 10), (1, 2), (2, 2), (3, 1000)], ids=str)
def test_small_batches_and_many_classes(name, shape, target):
    inputs = make_inputs(*shape, target=target, dtype=torch.float32)
    assert finite(make_loss(name, shape[1]), inputs)
