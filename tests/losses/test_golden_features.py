"""Losses on features and relations, and ofa's on logits, against other people's code: value and gradient."""

import pytest
import torch

from w2s_plugins.losses import LossInputs, create_loss
from w2s_plugins.losses.features import hierarchical_context_loss
from w2s_plugins.losses.logits import ofa_per_sample

from .golden import cases_of, logits_inputs


def tensor(values: list, requires_grad: bool = False) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=requires_grad)


def feature_inputs(student: list[torch.Tensor], teacher: list[torch.Tensor]) -> LossInputs:
    logits = torch.zeros(len(student[0]), 2, dtype=torch.float64)
    return LossInputs(logits, logits, student_features=student, teacher_features=teacher)


@pytest.mark.parametrize("name", ["at", "sp", "nst", "pkt", "rkd"])
def test_equals_public_code(name):
    for case in cases_of(name):
        student = tensor(case["inputs"]["student_feature"], requires_grad=True)
        teacher = tensor(case["inputs"]["teacher_feature"])
        loss = create_loss(name, **case["kwargs"])
        assert loss.needs_features
        total = sum(loss(feature_inputs([student], [teacher])).values())
        assert total.item() == pytest.approx(case["total"], abs=1e-10), case["kwargs"]
        total.backward()
        torch.testing.assert_close(student.grad, tensor(case["grads"]["student_feature"]), rtol=0, atol=1e-10)


def test_hierarchical_context_loss_equals_released_code():
    for case in cases_of("reviewkd_hcl"):
        student = [tensor(f, requires_grad=True) for f in case["inputs"]["student_features"]]
        loss = hierarchical_context_loss(student, [tensor(f) for f in case["inputs"]["teacher_features"]])
        assert loss.item() == pytest.approx(case["total"], abs=1e-10)
        loss.backward()
        for i, f in enumerate(student):
            torch.testing.assert_close(f.grad, tensor(case["grads"][f"student_features.{i}"]), rtol=0, atol=1e-10)


def test_ofa_equals_released_code():
    for case in cases_of("ofa_logit"):
        inputs = logits_inputs(case)
        loss = ofa_per_sample(inputs.student_logits, inputs.teacher_logits, inputs.target, **case["kwargs"]).mean()
        assert loss.item() == pytest.approx(case["total"], abs=1e-10)
        loss.backward()
        expected = tensor(case["grads"]["student_logits"])
        torch.testing.assert_close(inputs.student_logits.grad, expected, rtol=0, atol=1e-10)
