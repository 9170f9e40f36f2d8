"""dkd, dist, standardised kd, product and logconf against other people's implementations."""

import pytest
import torch
import torch.nn.functional as F

from w2s_plugins.losses import create_loss

from .golden import cases_of, logits_inputs

DKD_RELEASED = {"alpha": 1.0, "beta": 2.0, "temperature": 1.0}  # defaults of the released training script


def check(case, value, inputs, atol):
    assert value.item() == pytest.approx(case["total"], abs=atol), case["kwargs"]
    value.backward()
    expected = torch.tensor(case["grads"]["student_logits"], dtype=torch.float64)
    torch.testing.assert_close(inputs.student_logits.grad.double(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("case", cases_of("dkd"))
def test_dkd(case):
    inputs = logits_inputs(case)
    kwargs = {**DKD_RELEASED, **{k.removeprefix("dkd_"): v for k, v in case["kwargs"].items()}}
    value = sum(create_loss("dkd", **kwargs)(inputs).values())
    assert value.item() == pytest.approx(case["terms"]["loss_kd"], abs=1e-10)
    check(case, value + F.cross_entropy(inputs.student_logits, inputs.target), inputs, 1e-10)


@pytest.mark.parametrize("golden, ours", [("dist", "dist"), ("product", "product")])
def test_same_kwargs(golden, ours):
    for case in cases_of(golden):
        inputs = logits_inputs(case)
        check(case, sum(create_loss(ours, **case["kwargs"])(inputs).values()), inputs, 1e-10)


@pytest.mark.parametrize("case", cases_of("kd_logit_std"))
def test_logit_standardization(case):
    """The golden term has no factor T^2."""
    inputs, temperature = logits_inputs(case), case["kwargs"]["temperature"]
    loss = create_loss("kd", temperature=temperature, logit_standardization=True)
    check(case, loss(inputs)["kd"] / temperature ** 2, inputs, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", cases_of("logconf_binary"))
def test_logconf(case, dtype):
    """The released code computes in float32 whatever it is given, so its values are good to 1e-7 and no better."""
    inputs = logits_inputs(case)
    inputs = inputs.replace(
        student_logits=inputs.student_logits.detach().to(dtype).requires_grad_(),
        teacher_logits=inputs.teacher_logits.to(dtype))
    loss = create_loss(
        "logconf", aux_coef=case["kwargs"]["aux_coef"], warmup=case["kwargs"]["warmup_frac"], original_warmup=True)
    check(case, sum(loss(inputs).values()), inputs, 1e-7)
