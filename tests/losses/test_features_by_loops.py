"""Losses without golden values, each against a slow implementation from the paper's formula, number by number."""

import math

import pytest
import torch

from w2s_plugins.losses.relations import _mix, _signed, draw_indices

from .feature_cases import NUM_SAMPLES, make, make_inputs, total


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def pool(image, height, width):
    """Adaptive average pooling of one channel: cell i covers rows floor(i h / height) to ceil((i + 1) h / height)."""
    h, w = len(image), len(image[0])
    return [[
        mean(
            image[y][x]
            for y in range(i * h // height, -(-(i + 1) * h // height))
            for x in range(j * w // width, -(-(j + 1) * w // width)))
        for j in range(width)] for i in range(height)]


def matched(student, teacher):
    """Pairs of maps [sample][channel][y][x] from the deepest, pooled to the smaller height and width."""
    student, teacher = ([f.tolist() for f in side if f.ndim == 4] for side in (student, teacher))
    pairs = []
    for s, t in zip(student, teacher[-len(student):]):
        size = min(len(s[0][0]), len(t[0][0])), min(len(s[0][0][0]), len(t[0][0][0]))
        pairs.append([[[pool(channel, *size) for channel in sample] for sample in side] for side in (s, t)])
    return pairs


def conv1x1(sample, weight, bias=None):
    """A sample [channel][y][x] through a 1x1 convolution."""
    height, width = len(sample[0]), len(sample[0][0])
    return [[[
        sum(w * channel[y][x] for w, channel in zip(row, sample)) + (bias[i] if bias else 0)
        for x in range(width)] for y in range(height)] for i, row in enumerate(weight)]


def relu(sample):
    return [[[max(0.0, v) for v in row] for row in channel] for channel in sample]


def flat(sample):
    return [v for channel in sample for row in channel for v in row]


def matrix(parameter):
    return parameter.flatten(1).tolist()


def unit(vector):
    norm = math.sqrt(sum(v * v for v in vector))
    return [v / norm for v in vector]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def linear(layer, vector):
    return [dot(row, vector) + b for row, b in zip(layer.weight.tolist(), layer.bias.tolist())]


def standardised(samples, eps):
    """Batch norm without scale of vectors [sample][dimension]."""
    columns = []
    for column in zip(*samples):
        m = mean(column)
        variance = mean((v - m) ** 2 for v in column)
        columns.append([(v - m) / math.sqrt(variance + eps) for v in column])
    return [list(row) for row in zip(*columns)]


def test_fitnet():
    loss, inputs = make("fitnet"), make_inputs(batch=2)
    expected = 0.0
    for projection, (s, t) in zip(loss.projections, matched(inputs.student_features, inputs.teacher_features)):
        weight, bias = matrix(projection.weight), projection.bias.tolist()
        expected += mean(
            (a - b) ** 2
            for sample, target in zip(s, t) for a, b in zip(flat(conv1x1(sample, weight, bias)), flat(target)))
    assert total(loss, inputs).item() == pytest.approx(expected, rel=1e-12)


def test_vid():
    loss, inputs = make("vid"), make_inputs(batch=2)
    for scale in loss.scales:  # a variance of its own for each channel
        scale.data += torch.randn_like(scale)
    expected = 0.0
    pairs = matched(inputs.student_features, inputs.teacher_features)
    for regress, scale, (s, t) in zip(loss.regressors, loss.scales, pairs):
        weights = [matrix(regress[i].weight) for i in (0, 2, 4)]
        variances = [math.log(1 + math.exp(a)) + 1e-5 for a in scale.flatten().tolist()]
        terms = []
        for sample, target in zip(s, t):
            mu = conv1x1(relu(conv1x1(relu(conv1x1(sample, weights[0])), weights[1])), weights[2])
            for m, channel, variance in zip(mu, target, variances):
                for a, b in zip(flat([m]), flat([channel])):
                    terms.append((a - b) ** 2 / (2 * variance) + math.log(variance) / 2)
        expected += mean(terms)
    assert total(loss, inputs).item() == pytest.approx(expected, rel=1e-12)


def test_vid_starts_at_its_variance():
    variances = [torch.nn.functional.softplus(s) + 1e-5 for s in make("vid", init_pred_var=3.0).scales]
    assert all(v.flatten().tolist() == pytest.approx([3.0] * v.numel(), rel=1e-6) for v in variances)


def conv_and_norm(samples, layers, padding):
    """Convolution and batch norm of [sample][channel][y][x], its weight 1 and bias 0 as at the start."""
    weight = layers[0].weight.tolist()
    kernel = range(len(weight[0][0]))
    height, width = len(samples[0][0]), len(samples[0][0][0])
    out = []
    for sample in samples:
        out.append([[[
            sum(
                filters[c][i][j] * sample[c][y + i - padding][x + j - padding]
                for c in range(len(sample)) for i in kernel for j in kernel
                if 0 <= y + i - padding < height and 0 <= x + j - padding < width)
            for x in range(width)] for y in range(height)] for filters in weight])
    for c in range(len(weight)):
        values = [v for sample in out for row in sample[c] for v in row]
        m = mean(values)
        variance = mean((v - m) ** 2 for v in values)
        for sample in out:
            sample[c] = [[(v - m) / math.sqrt(variance + 1e-5) for v in row] for row in sample[c]]
    return out


def nearest(samples, height, width):
    h, w = len(samples[0][0]), len(samples[0][0][0])
    return [[
        [[channel[y * h // height][x * w // width] for x in range(width)] for y in range(height)]
        for channel in sample] for sample in samples]


def gated(fusion, samples, deeper):
    """Position by position, the two maps weighted by the sigmoids of two linear functions of both."""
    weight, bias = matrix(fusion.gate[0].weight), fusion.gate[0].bias.tolist()
    out = []
    for a, b in zip(samples, deeper):
        logits = conv1x1(a + b, weight, bias)
        gates = [[[1 / (1 + math.exp(-v)) for v in row] for row in channel] for channel in logits]
        out.append([[[
            gates[0][y][x] * a[c][y][x] + gates[1][y][x] * b[c][y][x]
            for x in range(len(a[0][0]))] for y in range(len(a[0]))] for c in range(len(a))])
    return out


def hcl(samples, targets):
    def distance(height=None, width=None):
        return mean(
            (a - b) ** 2
            for s, t in zip(samples, targets) for cs, ct in zip(s, t)
            for a, b in zip(*(flat([pool(c, height, width) if height else c]) for c in (cs, ct))))

    smaller = [n for n in (4, 2, 1) if n < min(len(samples[0][0]), len(samples[0][0][0]))]
    levels = [distance(), *(distance(n, n) for n in smaller)]
    weights = [1 / 2 ** i for i in range(len(levels))]
    return dot(weights, levels) / sum(weights)


def test_reviewkd():
    loss, inputs = make("reviewkd"), make_inputs(batch=2)
    student, teacher = (
        [(f if f.ndim == 4 else f[:, :, None, None]).tolist() for f in side]
        for side in (inputs.student_features, inputs.teacher_features[-4:]))
    expected, fused = 0.0, None
    for fusion, s, t in reversed(list(zip(loss.fusions, student, teacher))):
        x = conv_and_norm(s, fusion.reduce, padding=0)
        if fused is not None:
            x = gated(fusion, x, nearest(fused, len(x[0][0]), len(x[0][0][0])))
        fused = nearest(x, len(t[0][0]), len(t[0][0][0]))
        expected += hcl(conv_and_norm(fused, fusion.expand, padding=1), t)
    assert total(loss, inputs).item() == pytest.approx(expected, rel=1e-10)


def test_cc():
    inputs = make_inputs()
    student, teacher = ([unit(v) for v in side[-1].tolist()] for side in (
        inputs.student_features, inputs.teacher_features))
    for gamma, order in ((0.4, 2), (0.7, 3)):
        def kernel(a, b, gamma=gamma, order=order):
            series = sum((2 * gamma) ** p / math.factorial(p) * dot(a, b) ** p for p in range(order + 1))
            return math.exp(-2 * gamma) * series

        count = range(len(student))
        expected = mean(
            (kernel(student[i], student[j]) - kernel(teacher[i], teacher[j])) ** 2 for i in count for j in count)
        assert total(make("cc", gamma=gamma, order=order), inputs).item() == pytest.approx(expected, rel=1e-12)


def test_cc_series_becomes_the_gaussian_kernel():
    inputs = make_inputs()
    student, teacher = (
        torch.nn.functional.normalize(side[-1]) for side in (inputs.student_features, inputs.teacher_features))
    exact = [(-0.4 * torch.cdist(v, v) ** 2).exp() for v in (student, teacher)]
    expected = (exact[0] - exact[1]).square().mean()
    assert total(make("cc", order=20), inputs).item() == pytest.approx(expected.item(), rel=1e-9)


def test_srd():
    inputs = make_inputs()
    for alpha in (4.0, 2.0):
        loss = make("srd", alpha=alpha)
        student = standardised([linear(loss.projection, v) for v in inputs.student_features[-1].tolist()], 1e-4)
        teacher = standardised(inputs.teacher_features[-1].tolist(), 1e-4)
        power = sum(abs(a - b) ** alpha for s, t in zip(student, teacher) for a, b in zip(s, t))
        assert total(loss, inputs).item() == pytest.approx(math.log(power + 1e-5), rel=1e-12)


def test_crd_over_three_steps():
    loss = make("crd")
    temperature, momentum, negatives = 0.07, 0.5, 30
    memory = [loss.memory_teacher.tolist(), loss.memory_student.tolist()]  # in the order of the sides' anchors
    z = [None, None]
    for step in range(3):
        inputs = make_inputs(seed=step)
        index = inputs.index.tolist()
        others = draw_indices(0, torch.tensor(step), negatives, NUM_SAMPLES).tolist()
        anchors = [
            [unit(linear(loss.embed_student, v)) for v in inputs.student_features[-1].tolist()],
            [unit(linear(loss.embed_teacher, v)) for v in inputs.teacher_features[-1].tolist()],
        ]
        expected = 0.0
        for side in (0, 1):
            scores = [[
                math.exp(dot(v, memory[side][j]) / temperature)
                for j in [i, *(j for j in others if j != i)]] for i, v in zip(index, anchors[side])]
            if z[side] is None:
                z[side] = mean(e for row in scores for e in row) * NUM_SAMPLES
            for own, *rest in scores:
                noise = negatives / NUM_SAMPLES
                expected -= math.log(own / z[side] / (own / z[side] + noise)) / len(index)
                expected -= sum(math.log(noise / (e / z[side] + noise)) for e in rest) / len(index)
        assert total(loss, inputs).item() == pytest.approx(expected, rel=1e-10)
        for side in (0, 1):
            for i, v in zip(index, anchors[1 - side]):
                memory[side][i] = unit([momentum * a + (1 - momentum) * b for a, b in zip(memory[side][i], v)])
    torch.testing.assert_close(loss.memory_teacher, torch.tensor(memory[0], dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(loss.memory_student, torch.tensor(memory[1], dtype=torch.float64), rtol=1e-12, atol=0)


def test_ofa_exits():
    """The exits in evaluation mode, layer by layer, and the loss on their logits class by class."""
    loss, inputs = make("ofa", eps=1.5, temperature=2.0, exit_weight=0.3).eval(), make_inputs(batch=2)
    maps = [f.tolist() for f in inputs.student_features if f.ndim == 4]
    terms = loss(inputs)
    logits = [[exit_logits(branch, sample) for sample in f] for branch, f in zip(loss.exits, maps)]
    expected = [
        mean(enhanced(*row) for row in zip(group, inputs.teacher_logits.tolist(), inputs.target.tolist()))
        for group in [inputs.student_logits.tolist(), *logits]]
    assert terms["ofa"].item() == pytest.approx(expected[0], rel=1e-12)
    assert terms["exits"].item() == pytest.approx(0.3 * sum(expected[1:]), rel=1e-9)


def enhanced(student, teacher, target, eps=1.5, temperature=2.0):
    p, q = ([math.exp(v / temperature) for v in side] for side in (student, teacher))
    p, q = ([e / sum(side) for e in side] for side in (p, q))
    return -sum(((b + (c == target)) ** eps - (c == target)) * math.log(a) for c, (a, b) in enumerate(zip(p, q)))


def exit_logits(branch, sample):
    for layer in branch:
        if isinstance(layer, torch.nn.ReLU):
            sample = relu(sample)
        elif isinstance(layer, torch.nn.BatchNorm2d):  # running statistics 0 and 1
            sample = [[[v / math.sqrt(1 + 1e-5) for v in row] for row in channel] for channel in sample]
        elif isinstance(layer, torch.nn.Conv2d) and layer.groups > 1:
            sample = [depthwise(channel, w[0], layer.stride[0]) for channel, w in zip(sample, layer.weight.tolist())]
        elif isinstance(layer, torch.nn.Conv2d):
            sample = conv1x1(sample, matrix(layer.weight), None if layer.bias is None else layer.bias.tolist())
        elif isinstance(layer, torch.nn.Linear):
            return linear(layer, [mean(flat([channel])) for channel in sample])


def depthwise(image, kernel, stride):
    h, w = len(image), len(image[0])
    return [[
        sum(
            kernel[i][j] * image[y + i - 1][x + j - 1]
            for i in range(3) for j in range(3) if 0 <= y + i - 1 < h and 0 <= x + j - 1 < w)
        for x in range(0, w, stride)] for y in range(0, h, stride)]


def test_draws_are_splitmix64():
    """The reference generator's first outputs from the state 1234567."""
    states = 1234567 + torch.arange(1, 6) * _signed(0x9E3779B97F4A7C15)
    outputs = [output % 2 ** 64 for output in _mix(states).tolist()]
    assert outputs == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]


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
    for other in (draw_indices(4, step, 100_000, 50), draw_indices(3, step + 1, 100_000, 50)):
        assert (draws == other).double().mean().item() == pytest.approx(1 / 50, abs=0.003)
