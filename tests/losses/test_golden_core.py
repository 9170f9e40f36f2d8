"""adaptconf, augconf, kd, bkd and vanilla against the paper's released code: each term, the total, the gradient."""

import pytest
import torch
import torch.nn.functional as F

from w2s_plugins.losses import create_loss

from .golden import cases_of, logits_inputs

KWARGS = {
    "adaptconf": {"superalignment_threshold": "temperature", "kd_temperature": "kd_temperature"},
    "augconf": {
        "superalignment_threshold": "alpha", "superalignment_rate": "ramp", "kd_temperature": "kd_temperature"},
    "kd": {"kd_temperature": "temperature"},
    "bkd": {},
}
TERMS = {"loss_kd": "kd", "loss_align": "self"}


@pytest.mark.parametrize("name", KWARGS)
def test_equals_released_code(name):
    for case in cases_of(name):
        inputs = logits_inputs(case)
        kwargs = {KWARGS[name][k]: v for k, v in case["kwargs"].items() if k in KWARGS[name]}
        task_weight, weight = (case["kwargs"].get(k, 1.0) for k in ("gt_loss_weight", "kd_loss_weight"))
        terms = {k: weight * v for k, v in create_loss(name, **kwargs)(inputs).items()}
        for theirs, ours in TERMS.items():
            if theirs in case["terms"]:
                assert terms[ours].item() == pytest.approx(case["terms"][theirs], abs=1e-10), case["kwargs"]
        assert len(terms) == sum(t in TERMS for t in case["terms"])
        total = sum(terms.values()) + task_weight * F.cross_entropy(inputs.student_logits, inputs.target)
        assert total.item() == pytest.approx(case["total"], abs=1e-10)
        total.backward()
        expected = torch.tensor(case["grads"]["student_logits"], dtype=torch.float64)
        torch.testing.assert_close(inputs.student_logits.grad, expected, rtol=0, atol=1e-10)


def test_hard_is_cross_entropy_on_the_teachers_argmax():
    case = cases_of("kd")[0]
    inputs = logits_inputs(case)
    log_p = inputs.student_logits.log_softmax(1)
    expected = -sum(log_p[i, row.argmax()] for i, row in enumerate(inputs.teacher_logits)) / len(log_p)
    assert create_loss("hard")(inputs)["hard"].item() == pytest.approx(expected.item(), abs=1e-12)
