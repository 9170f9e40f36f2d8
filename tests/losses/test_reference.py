"""Every logit loss against a second implementation from its paper's formula: value and gradient, in float64."""

import inspect

import pytest
import torch
import yaml

from w2s_plugins.losses import LossContext, create_loss

from . import reference
from .common import logit_losses, make_inputs

VARIANTS = yaml.safe_load("""
adaptconf: [{temperature: 2.0, ramp: 0.5}, {ramp: 0.25, kd_temperature: 3.0}]
augconf: [{alpha: 0.3, ramp: 0.6}]
bootstrap: [{hard: true}, {beta: 0.4}, {beta: 0.6, hard: true}]
chi2: [{floor: 0.2}, {floor: 1.0e-6}]
conf_weighted: [{temperature: 3.0}]
confidence_mask: [{threshold: 0.5}, {threshold: 0.6, source: teacher}, {threshold: 0.6, source: student}]
dist: [{beta: 2.0, gamma: 0.5, temperature: 4.0}]
dkd: [{alpha: 0.5, beta: 2.0, temperature: 1.0}]
gce: [{q: 0.3}, {q: 1.0}]
jsd_kd: [{beta: 0.1}, {beta: 0.7, temperature: 3.0}]
kd: [{temperature: 1.0}]
logconf: [{aux_coef: 0.75, warmup: 0.8}, {original_warmup: true, warmup: 0.8}, {form: multiclass}]
mlkd: [{temperatures: [2.0]}]
nce_rce: [{alpha: 10.0, beta: 0.1, log_zero: -9.0}]
nkd: [{gamma: 0.5, temperature: 3.0}]
reverse_kl: [{temperature: 4.0}]
sce: [{alpha: 6.0, beta: 0.1, log_zero: -6.0}]
small_loss: [{keep: 0.5}, {keep: 0.3, ramp: 0.9}]
ttm: [{temperature: 5.0}]
wttm: [{temperature: 5.0}]
""")


def cases():
    for name in sorted(reference.STATELESS):
        variants = [{}, *VARIANTS.get(name, [])]
        if "logit_standardization" in inspect.signature(reference.STATELESS[name]).parameters:
            variants += [{**kwargs, "logit_standardization": True} for kwargs in variants]
        yield from ((name, kwargs) for kwargs in variants)


def test_every_logit_loss_has_a_second_implementation():
    """But for two, which test_golden.py compares with other people's code in all that they can do."""
    assert set(logit_losses()) <= {*reference.STATELESS, *reference.WITH_MEMORY, "bkd", "product"}


def assert_same(value, expected, logits):
    assert value.item() == pytest.approx(expected.item(), abs=1e-10, rel=1e-12)
    if not expected.requires_grad:  # no sample passed the mask
        return
    (ours,) = torch.autograd.grad(value, logits)
    (theirs,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "name, kwargs, target",
    [
        (name, kwargs, target)
        for name, kwargs in cases()
        for target in (["hard", "soft", None] if create_loss(name).needs_target else ["hard"])
    ],
)
def test_value_and_gradient(name, kwargs, target):
    for seed, shape in enumerate([(6, 5), (7, 2), (3, 6), (1, 4)]):
        inputs = make_inputs(*shape, seed=seed, target=target)
        value = sum(create_loss(name, **kwargs)(inputs).values())
        if name == "logconf" and shape[0] == 1:
            continue  # a quantile of one value: nothing to interpolate in the reference
        assert_same(value, reference.STATELESS[name](inputs, **kwargs), inputs.student_logits)


MEMORY_VARIANTS = [
    ("elr", {}),
    ("elr", {"lam": 7.0, "beta": 0.9}),
    ("elr", {"beta": 0.0}),
    ("balanced_elr", {}),
    ("balanced_elr", {"balance": 0.5, "lam": 1.0, "shares": [1.0, 1.0, 2.0, 4.0]}),
    ("temporal", {}),
    ("temporal", {"alpha": 0.9, "share": 1.0, "ramp": 0.0}),
    ("sop", {"lr_u": 10.0}),
    ("sop", {"lr_u": 0.5, "lr_v": 1.0}),
]


def make_with_memory(name, kwargs, num_classes=4, num_samples=9):
    loss = create_loss(name, **kwargs)
    loss.setup(LossContext(num_classes=num_classes, num_samples=num_samples))
    loss.double()
    if name != "sop":
        return loss, reference.WITH_MEMORY[name](**kwargs)
    generator = torch.Generator().manual_seed(5)
    loss.u.copy_(
        1.2 * torch.rand(loss.u.shape, generator=generator, dtype=torch.float64)
    )  # some beyond the clamp at 1
    loss.v.copy_(1.2 * torch.rand(loss.v.shape, generator=generator, dtype=torch.float64))
    loss.u[::2] *= 1e-3  # as good as untouched: the label's probability can fall below the floor
    return loss, reference.SOP(loss.u, loss.v, **{"lr_u": 1.0, "lr_v": 10.0, **kwargs})


@pytest.mark.parametrize("name, kwargs", MEMORY_VARIANTS)
def test_value_gradient_and_memory_over_steps(name, kwargs):
    loss, expected = make_with_memory(name, kwargs)
    for step, index in enumerate(
        [[0, 1, 2, 3], [2, 3, 4, 8], [4, 4, 0, 1], [2, 2, 2, 7], [0, 1, 2, 3]]
    ):
        scale = (
            8.0 if name == "sop" and step % 2 else 2.0
        )  # probabilities below SOP's floor as well
        inputs = make_inputs(4, 4, seed=step, scale=scale).replace(
            index=torch.tensor(index), progress=step / 5
        )
        assert_same(sum(loss(inputs).values()), expected.step(inputs), inputs.student_logits)
    if name == "sop":
        torch.testing.assert_close(loss.u, expected.u.detach(), rtol=0, atol=1e-12)
        torch.testing.assert_close(loss.v, expected.v.detach(), rtol=0, atol=1e-12)
    loss.eval()
    inputs = make_inputs(4, 4, seed=9).replace(index=torch.tensor([8, 6, 0, 4]), progress=0.5)
    assert_same(
        sum(loss(inputs).values()), expected.step(inputs, training=False), inputs.student_logits
    )
