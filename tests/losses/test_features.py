"""What holds for every loss on features: derivatives, extremes, precision, order of the batch, state."""

import pytest
import torch

from w2s_plugins.losses import LossContext
from w2s_plugins.losses.features import match_size, pair_from_deepest

from .feature_cases import NAMES, NUM_CLASSES, STUDENT, cast, make, make_inputs, rows, total

ON_MAPS = {
    "fitnet": [0, 1, 2],
    "at": [0, 1, 2],
    "nst": [0, 1, 2],
    "vid": [0, 1, 2],
    "ofa": [0, 1, 2],
    "sp": [2],
}


@pytest.mark.parametrize("name", NAMES)
def test_derivative(name):
    loss = make(name)
    inputs = make_inputs(batch=3)
    if name == "crd":
        loss(inputs)  # sets the normaliser
        loss.eval()  # or the memory would move under the difference quotients

    def of_features(*features):
        return total(loss, inputs.replace(student_features=list(features)))

    # ofa and reviewkd have convolutions in float64 at every stage: random directions there, every entry elsewhere
    assert torch.autograd.gradcheck(
        of_features, inputs.student_features, fast_mode=name in ("ofa", "reviewkd")
    )


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_the_student_and_the_parameters_but_not_the_teacher(name):
    loss, inputs = make(name), make_inputs()
    total(loss, inputs).backward()
    used = range(4) if name == "reviewkd" else ON_MAPS.get(name, [3])
    gradients = [f.grad for f in inputs.student_features]
    assert [i for i, grad in enumerate(gradients) if grad is not None and grad.any()] == [*used]
    assert all(f.grad is None for f in [inputs.teacher_logits, *inputs.teacher_features])
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())


EXTREMES = {
    "one sample": make_inputs(batch=1),
    "two equal samples": rows(make_inputs(), torch.tensor([0, 0, 1])),
    **{
        f"float32, scale {scale}": cast(make_inputs(scale=scale), torch.float32)
        for scale in (1e4, 1e-4, 0.0)
    },
}


@pytest.mark.parametrize("case", EXTREMES)
@pytest.mark.parametrize("name", NAMES)
def test_extremes_are_finite(name, case):
    inputs = cast(EXTREMES[case], EXTREMES[case].student_logits.dtype)
    loss = make(name).to(inputs.student_logits.dtype)
    value = total(loss, inputs)
    value.backward()
    gradients = [leaf.grad for leaf in (*inputs.student_features, *loss.parameters())]
    assert value.isfinite()
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_inputs_are_computed_in_float32(name):
    half = cast(make_inputs(), torch.bfloat16)
    expected = total(make(name), cast(half, torch.float64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = total(make(name).float(), half)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=2e-5)  # the rounding of float32 sums


def test_stages_are_paired_from_the_deepest():
    assert pair_from_deepest([1, 2, 3], [7, 9]) == [(2, 7), (3, 9)]
    assert pair_from_deepest([3], [7, 8, 9]) == [(3, 9)]
    assert pair_from_deepest([], [7]) == []


def test_sizes_are_matched_by_pooling_the_larger_in_each_direction():
    student, teacher = torch.randn(2, 3, 8, 2), torch.randn(2, 5, 4, 6)
    s, t = match_size(student, teacher)
    assert s.shape == (2, 3, 4, 2)
    assert t.shape == (2, 5, 4, 2)
    torch.testing.assert_close(s, (student[:, :, ::2] + student[:, :, 1::2]) / 2)
    torch.testing.assert_close(t, (teacher[..., ::3] + teacher[..., 1::3] + teacher[..., 2::3]) / 3)


def test_ofa_targets():
    inputs = make_inputs()
    hard = total(make("ofa", eps=1.5), inputs)
    soft = torch.full((len(inputs.target), NUM_CLASSES), 0.1).scatter(
        1, inputs.target[:, None], 0.6
    )
    assert torch.equal(total(make("ofa", eps=1.5), inputs.replace(target=soft)), hard)
    by_teacher = total(make("ofa", eps=1.5), inputs.replace(target=inputs.teacher_logits.argmax(1)))
    assert torch.equal(total(make("ofa", eps=1.5), inputs.replace(target=None)), by_teacher)
    assert by_teacher != hard


def test_ofa_needs_no_features_of_the_teacher():
    context = LossContext(NUM_CLASSES, student_feature_shapes=STUDENT)
    loss = make("ofa", context)
    assert len(loss.exits) == 3
    assert total(loss, make_inputs().replace(teacher_features=None)).isfinite()


def test_reviewkd_warms_up():
    inputs = make_inputs()
    full = total(make("reviewkd"), inputs)
    assert torch.equal(total(make("reviewkd", warmup=0.5), inputs), full)
    assert torch.equal(
        total(make("reviewkd", warmup=0.5), inputs.replace(progress=0.25)), full * 0.5
    )
