"""Losses without golden values, each against the paper's formula written a second time, number by number."""

import math

import pytest
import torch
import torch.nn.functional as F

from w2s_plugins.losses.relations import _mix, _signed, draw_indices

from .feature_cases import NUM_SAMPLES, make, make_inputs, total


def pairs_of(inputs):
    """Maps of student and teacher from the deepest, each pooled to the smaller height and width."""
    student, teacher = (
        [f for f in side if f.ndim == 4]
        for side in (inputs.student_features, inputs.teacher_features)
    )
    for s, t in zip(student, teacher[-len(student) :]):
        size = min(s.shape[2], t.shape[2]), min(s.shape[3], t.shape[3])
        yield F.adaptive_avg_pool2d(s, size), F.adaptive_avg_pool2d(t, size)


def conv1x1(x, layer):
    """A 1x1 convolution as a sum over channels."""
    out = torch.einsum("bchw,oc->bohw", x, layer.weight.flatten(1))
    return out if layer.bias is None else out + layer.bias[:, None, None]


def normed(x, eps):
    """Batch norm without scale."""
    dims = [d for d in range(x.ndim) if d != 1]
    mean = x.mean(dims, keepdim=True)
    return (x - mean) / ((x - mean).square().mean(dims, keepdim=True) + eps).sqrt()


def units(x):
    return x / x.square().sum(dim=1, keepdim=True).sqrt()


def vectors_of(inputs):
    return inputs.student_features[-1], inputs.teacher_features[-1]


def same(loss, inputs, expected, rel=1e-12):
    assert total(loss, inputs).item() == pytest.approx(expected.item(), rel=rel)


def test_fitnet():
    loss, inputs = make("fitnet"), make_inputs(batch=2)
    same(
        loss,
        inputs,
        sum(
            (conv1x1(s, layer) - t).square().mean()
            for layer, (s, t) in zip(loss.projections, pairs_of(inputs), strict=True)
        ),
    )


def test_vid():
    loss, inputs = make("vid"), make_inputs(batch=2)
    expected = 0.0
    for regress, scale, (s, t) in zip(loss.regressors, loss.scales, pairs_of(inputs), strict=True):
        scale.data += torch.randn_like(scale)  # a variance of its own for each channel
        mean = conv1x1(conv1x1(conv1x1(s, regress[0]).relu(), regress[2]).relu(), regress[4])
        variance = (1 + scale.exp()).log() + 1e-5
        expected += ((t - mean).square() / (2 * variance) + variance.log() / 2).mean()
    same(loss, inputs, expected)
    variances = [F.softplus(scale) + 1e-5 for scale in make("vid", init_pred_var=3.0).scales]
    assert all(
        v.flatten().tolist() == pytest.approx([3.0] * v.numel(), rel=1e-6) for v in variances
    ), "at the start"


def nearest(x, height, width):
    h, w = x.shape[2:]
    return x[:, :, torch.arange(height) * h // height][:, :, :, torch.arange(width) * w // width]


def context_distance(s, t):
    """Of full size and of the pooled maps, each with half the weight of the one before."""
    levels = [(s - t).square().mean()]
    levels += [
        (F.adaptive_avg_pool2d(s, n) - F.adaptive_avg_pool2d(t, n)).square().mean()
        for n in (4, 2, 1)
        if n < min(s.shape[2:])
    ]
    weights = [1 / 2**i for i in range(len(levels))]
    return sum(w * level for w, level in zip(weights, levels)) / sum(weights)


def test_reviewkd():
    """From the deepest stage, at each position the two maps weighted by sigmoids of linear functions of both."""
    loss, inputs = make("reviewkd"), make_inputs(batch=2)
    student, teacher = (
        [f if f.ndim == 4 else f[:, :, None, None] for f in side]
        for side in (inputs.student_features, inputs.teacher_features[-4:])
    )
    expected, deeper = 0.0, None
    for fusion, s, t in reversed(list(zip(loss.fusions, student, teacher, strict=True))):
        x = normed(conv1x1(s, fusion.reduce[0]), 1e-5)
        if deeper is not None:
            deeper = nearest(deeper, *x.shape[2:])
            gates = 1 / (1 + (-conv1x1(torch.cat([x, deeper], dim=1), fusion.gate[0])).exp())
            x = gates[:, 0:1] * x + gates[:, 1:2] * deeper
        deeper = nearest(x, *t.shape[2:])
        expected += context_distance(
            normed(F.conv2d(deeper, fusion.expand[0].weight, padding=1), 1e-5), t
        )
    same(loss, inputs, expected, rel=1e-10)


@pytest.mark.parametrize(("gamma", "order"), [(0.4, 2), (0.7, 3)])
def test_cc(gamma, order):
    def kernel(v):
        cosines = units(v) @ units(v).T
        return math.exp(-2 * gamma) * sum(
            (2 * gamma) ** p / math.factorial(p) * cosines**p for p in range(order + 1)
        )

    inputs = make_inputs()
    student, teacher = map(kernel, vectors_of(inputs))
    same(make("cc", gamma=gamma, order=order), inputs, (student - teacher).square().mean())


@pytest.mark.parametrize("alpha", [4.0, 2.0])
def test_srd(alpha):
    loss, inputs = make("srd", alpha=alpha), make_inputs()
    student, teacher = vectors_of(inputs)
    student = student @ loss.projection.weight.T + loss.projection.bias
    power = (normed(student, 1e-4) - normed(teacher, 1e-4)).abs() ** alpha
    same(loss, inputs, (power.sum() + 1e-5).log())


def test_crd_over_three_steps():
    loss, temperature, momentum, negatives = make("crd"), 0.07, 0.5, 30
    memory = [
        loss.memory_teacher.clone(),
        loss.memory_student.clone(),
    ]  # in the order of the sides' anchors
    z = [None, None]
    for step in range(3):
        inputs = make_inputs(seed=step)
        others = draw_indices(0, torch.tensor(step), negatives, NUM_SAMPLES)
        anchors = [
            units(v @ layer.weight.T + layer.bias).detach()
            for v, layer in zip(vectors_of(inputs), (loss.embed_student, loss.embed_teacher))
        ]
        expected = 0.0
        for side in (0, 1):
            scores = (anchors[side] @ memory[side].T / temperature).exp()
            own = scores[torch.arange(len(scores)), inputs.index]
            rests = [
                row[others[others != i]] for row, i in zip(scores, inputs.index)
            ]  # none of its own
            if z[side] is None:
                z[side] = torch.cat([own, *rests]).mean() * NUM_SAMPLES
            noise = negatives / NUM_SAMPLES
            for e, rest in zip(own / z[side], rests):
                rest = rest / z[side]
                expected -= ((e / (e + noise)).log() + (noise / (rest + noise)).log().sum()) / len(
                    own
                )
        same(loss, inputs, expected, rel=1e-10)
        for side in (0, 1):
            mixed = momentum * memory[side][inputs.index] + (1 - momentum) * anchors[1 - side]
            memory[side][inputs.index] = units(mixed)
    torch.testing.assert_close(loss.memory_teacher, memory[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(loss.memory_student, memory[1], rtol=1e-12, atol=0)


def test_ofa_exits():
    """The loss on the logits of the head and of the exits, in evaluation mode."""
    loss, inputs = (
        make("ofa", eps=1.5, temperature=2.0, exit_weight=0.3).eval(),
        make_inputs(batch=2),
    )
    exits = [branch(f) for branch, f in zip(loss.exits, inputs.student_features)]
    terms = loss(inputs)
    q = (inputs.teacher_logits / 2).softmax(1)
    is_target = F.one_hot(inputs.target, q.shape[1])

    def enhanced(logits):
        return (
            -(((q + is_target) ** 1.5 - is_target) * (logits / 2).log_softmax(1))
            .sum(dim=1)
            .mean()
            .item()
        )

    assert terms["ofa"].item() == pytest.approx(enhanced(inputs.student_logits), rel=1e-12)
    assert terms["exits"].item() == pytest.approx(0.3 * sum(map(enhanced, exits)), rel=1e-9)


def test_draws_are_splitmix64():
    """The reference generator's first outputs from the state 1234567."""
    states = 1234567 + torch.arange(1, 6) * _signed(0x9E3779B97F4A7C15)
    outputs = [output % 2**64 for output in _mix(states).tolist()]
    assert outputs == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_draws_are_uniform_and_depend_on_seed_and_step_alone():
    step = torch.tensor(7)
    state = torch.get_rng_state()
    draws = draw_indices(3, step, 100_000, 50)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(draws, draw_indices(3, step, 100_000, 50))
    counts = torch.bincount(draws, minlength=50)
    assert len(counts) == 50
    chi_square = ((counts - 2000).square() / 2000).sum()
    assert 20 < chi_square < 95  # 49 degrees of freedom: beyond three in 100,000 on either side


@pytest.mark.parametrize("seed, step", [(4, 7), (3, 8)])
def test_draws_of_another_seed_or_step_are_others(seed, step):
    draws = draw_indices(3, torch.tensor(7), 100_000, 50)
    same_draws = draws == draw_indices(seed, torch.tensor(step), 100_000, 50)
    assert same_draws.double().mean().item() == pytest.approx(1 / 50, abs=0.003)
