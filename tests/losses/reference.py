"""Second implementations of losses, written from the papers' formulas: slow, sample by sample, class by class.

Each takes a `LossInputs` and the loss's kwargs and returns the value of the whole loss. They share no code with the
package. Losses with memory are classes: `step` takes one batch in training mode, duplicates and all.
"""

import itertools
import math

import torch


def number(x):
    return x.item() if isinstance(x, torch.Tensor) else x


def softmax(row, temperature=1.0):
    top = max(number(x) for x in row)
    powers = [torch.exp((x - top) / temperature) for x in row]
    return [x / sum(powers) for x in powers]


def argmax(row):
    values = [number(x) for x in row]
    return values.index(max(values))


def standardized(row):
    mean = sum(row) / len(row)
    deviation = torch.sqrt(sum((x - mean) ** 2 for x in row) / (len(row) - 1))
    return [(x - mean) / (deviation + 1e-7) for x in row]


def pairs(inputs, standardize=False):
    """The rows of student and teacher logits."""
    for z, w in zip(inputs.student_logits, inputs.teacher_logits):
        yield (standardized(z), standardized(w)) if standardize else (list(z), list(w))


def label(inputs, i):
    if inputs.target is None:
        return argmax(inputs.teacher_logits[i])
    return int(inputs.target[i]) if inputs.target.ndim == 1 else argmax(inputs.target[i])


def kl(q, p):
    return sum(a * torch.log(a / b) for a, b in zip(q, p))


def cross_entropy(target, p):
    return -sum(a * torch.log(b) for a, b in zip(target, p))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def kd(inputs, temperature=4.0, logit_standardization=False):
    return temperature ** 2 * mean(
        kl(softmax(w, temperature), softmax(z, temperature)) for z, w in pairs(inputs, logit_standardization))


def reverse_kl(inputs, temperature=1.0, logit_standardization=False):
    return temperature ** 2 * mean(
        kl(softmax(z, temperature), softmax(w, temperature)) for z, w in pairs(inputs, logit_standardization))


def jsd_kd(inputs, beta=0.5, temperature=1.0, logit_standardization=False):
    def one(z, w):
        p, q = softmax(z, temperature), softmax(w, temperature)
        m = [beta * b + (1 - beta) * a for a, b in zip(p, q)]
        return beta * kl(q, m) + (1 - beta) * kl(p, m)
    return temperature ** 2 * mean(one(z, w) for z, w in pairs(inputs, logit_standardization))


def reverse_ce(inputs):
    return mean(cross_entropy(softmax(z), softmax(w)) for z, w in pairs(inputs))


def hellinger(inputs):
    return mean(2 - 2 * sum(torch.sqrt(a * b) for a, b in zip(softmax(z), softmax(w))) for z, w in pairs(inputs))


def chi2(inputs, floor=0.01):
    return mean(sum((a - b) ** 2 / max(number(b), floor) for a, b in zip(softmax(z), softmax(w)))
                for z, w in pairs(inputs))


def dkd(inputs, alpha=1.0, beta=8.0, temperature=4.0, logit_standardization=False):
    total = 0
    for i, (z, w) in enumerate(pairs(inputs, logit_standardization)):
        y, p, q = label(inputs, i), softmax(z, temperature), softmax(w, temperature)
        total = total + alpha * kl([q[y], 1 - q[y]], [p[y], 1 - p[y]])
        others = [c for c in range(len(p)) if c != y]
        total = total + beta * kl([q[c] / (1 - q[y]) for c in others], [p[c] / (1 - p[y]) for c in others])
    return temperature ** 2 * total / len(inputs.student_logits)


def nkd(inputs, gamma=1.5, temperature=1.0, logit_standardization=False):
    total = 0
    for i, ((z, w), (zt, wt)) in enumerate(zip(pairs(inputs), pairs(inputs, logit_standardization))):
        y, p, q = label(inputs, i), softmax(z), softmax(w)
        total = total - q[y] * torch.log(p[y])
        p, q = softmax(zt, temperature), softmax(wt, temperature)
        for c in range(len(p)):
            if c != y:
                total = total - gamma * temperature ** 2 * q[c] / (1 - q[y]) * torch.log(p[c] / (1 - p[y]))
    return total / len(inputs.student_logits)


def dist(inputs, beta=1.0, gamma=1.0, temperature=1.0, logit_standardization=False):
    def correlation(a, b):
        a, b = [x - sum(a) / len(a) for x in a], [x - sum(b) / len(b) for x in b]
        norms = torch.stack(a).norm() * torch.stack(b).norm()  # of which torch knows the gradient at 0
        return sum(x * y for x, y in zip(a, b)) / (norms + 1e-8)
    rows = [(softmax(z, temperature), softmax(w, temperature)) for z, w in pairs(inputs, logit_standardization)]
    columns = [([p[c] for p, _ in rows], [q[c] for _, q in rows]) for c in range(len(rows[0][0]))]
    inter, intra = (1 - mean(correlation(a, b) for a, b in group) for group in (rows, columns))
    return temperature ** 2 * (beta * inter + gamma * intra)


def ttm(inputs, temperature=10.0, logit_standardization=False, weighted=False):
    total = 0
    for z, w in pairs(inputs, logit_standardization):
        powers = [q ** (1 / temperature) for q in softmax(w)]
        weight = sum(powers) if weighted else 1.0
        total = total + weight * kl([x / sum(powers) for x in powers], softmax(z))
    return total / len(inputs.student_logits)


def wttm(inputs, temperature=10.0, logit_standardization=False):
    return ttm(inputs, temperature, logit_standardization, weighted=True)


def mlkd(inputs, temperatures=(4.0, 3.0, 5.0, 2.0, 6.0), logit_standardization=False):
    total, (size, classes) = 0, inputs.student_logits.shape
    for t in temperatures:
        rows = [(softmax(z, t), softmax(w, t)) for z, w in pairs(inputs, logit_standardization)]
        total = total + t ** 2 * mean(kl(q, p) for p, q in rows)
        for (p, q), (p2, q2) in itertools.product(rows, rows):
            total = total + (sum(map(torch.mul, p, p2)) - sum(map(torch.mul, q, q2))) ** 2 / size
        for a, b in itertools.product(range(classes), range(classes)):
            total = total + sum(p[a] * p[b] - q[a] * q[b] for p, q in rows) ** 2 / classes
    return total


def adaptconf(inputs, temperature=0.5, kd_temperature=1.0, ramp=0.0, logit_standardization=False):
    total = 0
    for (z, w), (zt, wt) in zip(pairs(inputs), pairs(inputs, logit_standardization)):
        p = softmax(z)
        self_loss, weak_loss = -torch.log(p[argmax(z)]), -torch.log(p[argmax(w)])
        a, b = (math.exp(number(x) / temperature) for x in (self_loss, weak_loss))
        beta = a / (a + b) * (min(1.0, inputs.progress / ramp) if ramp else 1.0)
        soft = kd_temperature ** 2 * kl(softmax(wt, kd_temperature), softmax(zt, kd_temperature))
        total = total + (1 - beta) * soft + beta * self_loss
    return total / len(inputs.student_logits)


def augconf(inputs, alpha=0.5, ramp=0.3, kd_temperature=1.0, logit_standardization=False):
    weight = alpha * min(1.0, inputs.progress / ramp)
    own = mean(-torch.log(softmax(z)[argmax(z)]) for z, _ in pairs(inputs))
    return (1 - weight) * kd(inputs, kd_temperature, logit_standardization) + weight * own


def quantile(values, level):
    """Linear interpolation between order statistics."""
    values = sorted(number(x) for x in values)
    position = level * (len(values) - 1)
    low = min(int(position), len(values) - 2)
    return values[low] + (position - low) * (values[low + 1] - values[low])


def balanced_labels(p, proportions, rounds=6, step=0.7):
    """Thresholds by class: each in turn would give its class its share against the best rival of every sample."""
    classes = range(len(proportions))
    tau = [quantile([row[c] for row in p], 1 - proportions[c]) for c in classes]
    for _ in range(rounds if len(p) >= len(proportions) else 0):
        target = []
        for c in classes:
            margins = [row[c] - max(row[k] - tau[k] for k in classes if k != c) for row in p]
            target.append(quantile(margins, 1 - proportions[c]))
        tau = [t + step * (new - t) for t, new in zip(tau, target)]
    return [argmax([row[c] - tau[c] for c in classes]) for row in p]


def logconf(inputs, aux_coef=0.5, warmup=0.1, original_warmup=False, form="auto"):
    rows = [(softmax(z), [number(x) for x in softmax(w)]) for z, w in pairs(inputs)]
    classes = len(rows[0][0])
    shares = [mean(q[c] for _, q in rows) for c in range(classes)]
    p = [[number(x) for x in p] for p, _ in rows]
    if form == "multiclass" or classes > 2:
        hard = balanced_labels(p, shares)
    else:
        threshold = quantile([row[0] for row in p], shares[1])
        hard = [0 if row[0] >= threshold else 1 for row in p]
    if original_warmup:
        weight = aux_coef * (1.0 if inputs.progress > warmup else inputs.progress)
    else:
        weight = aux_coef * min(1.0, inputs.progress / warmup)
    return mean(
        cross_entropy([(1 - weight) * q[c] + weight * (c == h) for c in range(classes)], p)
        for (p, q), h in zip(rows, hard))


def product(inputs, alpha=1.0, beta=1.0):
    total = 0
    for z, w in pairs(inputs):
        p, q = softmax(z), softmax(w)
        raw = [number(a) ** beta * number(b) ** alpha for a, b in zip(p, q)]
        total = total + cross_entropy([x / sum(raw) for x in raw], p)
    return total / len(inputs.student_logits)


def bootstrap(inputs, beta=None, hard=False):
    beta = beta if beta is not None else (0.8 if hard else 0.95)
    total = 0
    for z, w in pairs(inputs):
        p, q = softmax(z), softmax(w)
        own = [float(c == argmax(z)) for c in range(len(p))] if hard else p
        total = total + cross_entropy([beta * a + (1 - beta) * b for a, b in zip(q, own)], p)
    return total / len(inputs.student_logits)


def annotated(inputs):
    """Student's softmax and the teacher's class of each sample."""
    for z, w in pairs(inputs):
        yield softmax(z), argmax(w)


def hard(inputs):
    return mean(-torch.log(p[y]) for p, y in annotated(inputs))


def bkd(inputs):
    total = 0
    for z, w in pairs(inputs):
        for logit, q in zip(z, softmax(w)):
            sigmoid = 1 / (1 + torch.exp(-logit))
            total = total - q * torch.log(sigmoid) - (1 - q) * torch.log(1 - sigmoid)
    return total / inputs.student_logits.numel()


def gce(inputs, q=0.7):
    return mean((1 - p[y] ** q) / q for p, y in annotated(inputs))


def reverse_cross_entropy(p, y, log_zero):
    return -sum(x * (0.0 if c == y else log_zero) for c, x in enumerate(p))


def sce(inputs, alpha=0.1, beta=1.0, log_zero=-4.0):
    return mean(
        alpha * -torch.log(p[y]) + beta * reverse_cross_entropy(p, y, log_zero) for p, y in annotated(inputs))


def nce_rce(inputs, alpha=1.0, beta=1.0, log_zero=-4.0):
    return mean(
        alpha * torch.log(p[y]) / sum(torch.log(x) for x in p) + beta * reverse_cross_entropy(p, y, log_zero)
        for p, y in annotated(inputs))


def small_loss(inputs, keep=0.8, ramp=0.05):
    losses = sorted((-torch.log(p[y]) for p, y in annotated(inputs)), key=number)
    kept = 1 - (1 - keep) * (min(1.0, inputs.progress / ramp) if ramp else 1.0)
    return mean(losses[:max(1, round(kept * len(losses)))])


def conf_weighted(inputs, temperature=1.0, logit_standardization=False):
    total = weights = 0
    for (_, w), (zt, wt) in zip(pairs(inputs), pairs(inputs, logit_standardization)):
        weight = max(number(x) for x in softmax(w))
        total = total + weight * temperature ** 2 * kl(softmax(wt, temperature), softmax(zt, temperature))
        weights += weight
    return total / weights


def confidence_mask(inputs, threshold=0.95, source="either"):
    total = torch.zeros((), dtype=torch.float64)
    for z, w in pairs(inputs):
        p, q = softmax(z), softmax(w)
        sure = {"teacher": max(map(number, q)) >= threshold, "student": max(map(number, p)) >= threshold}
        sure["either"] = any(sure.values())
        if sure[source]:
            total = total - torch.log(p[argmax(w)])
    return total / len(inputs.student_logits)


def evidential(inputs):
    total = 0
    for z, w in pairs(inputs):
        q, a = softmax(w), [max(x, x * 0) + 1 for x in z]
        strength = sum(a)
        total = total + sum(b * (torch.log(strength) - torch.log(x)) for b, x in zip(q, a))
        rest = [b + (1 - b) * x for b, x in zip(q, a)]
        divergence = torch.lgamma(sum(rest)) - math.lgamma(len(rest)) - sum(torch.lgamma(x) for x in rest)
        divergence = divergence + sum((x - 1) * (torch.digamma(x) - torch.digamma(sum(rest))) for x in rest)
        total = total + inputs.progress * divergence
    return total / len(inputs.student_logits)


class Averages:
    """Moving averages of predictions by sample, started at zero."""

    def __init__(self, decay):
        self.decay, self.sum, self.visits = decay, {}, {}

    def visit(self, inputs):
        seen = {}
        for i, (z, _) in zip(inputs.index.tolist(), pairs(inputs)):
            seen.setdefault(i, []).append([number(x) for x in softmax(z)])
        for i, rows in seen.items():
            new = [mean(column) for column in zip(*rows)]
            old = self.sum.get(i, [0.0] * len(new))
            self.sum[i] = [self.decay * a + (1 - self.decay) * b for a, b in zip(old, new)]
            self.visits[i] = self.visits.get(i, 0) + 1

    def corrected(self, i):
        if i not in self.visits:
            return None
        return [x / (1 - self.decay ** self.visits[i]) for x in self.sum[i]]


class ELR:
    def __init__(self, lam=3.0, beta=0.7):
        self.lam, self.memory = lam, Averages(beta)

    def step(self, inputs, training=True):
        if training:
            self.memory.visit(inputs)
        total = 0
        for i, (z, w) in zip(inputs.index.tolist(), pairs(inputs)):
            p, t = softmax(z), self.memory.sum.get(i)
            total = total + cross_entropy(softmax(w), p)
            if t is not None:
                total = total + self.lam * torch.log(1 - sum(a * b for a, b in zip(p, t)))
        return total / len(inputs.student_logits)


class BalancedELR(ELR):
    """ELR whose teacher is shifted; the shift of a batch is what the batches before it have made it."""

    def __init__(self, balance=1.0, shares=None, **kwargs):
        super().__init__(**kwargs)
        self.balance, self.shares, self.bias = balance, shares, None

    def step(self, inputs, training=True):
        batch_size, num_classes = inputs.teacher_logits.shape
        shares = self.shares or num_classes * [1.0]
        self.bias = self.bias or num_classes * [0.0]
        shifted = inputs.teacher_logits + self.balance * torch.tensor(self.bias, dtype=torch.float64)
        if training:
            rows = [softmax([w + b for w, b in zip(row, self.bias)]) for row in inputs.teacher_logits]
            rate = min(0.2, batch_size / (10 * num_classes))
            self.bias = [
                float(b - rate * (mean(column) / (share / sum(shares)) - 1))
                for b, column, share in zip(self.bias, zip(*rows), shares)]
        return super().step(inputs.replace(teacher_logits=shifted), training)


class Temporal:
    def __init__(self, alpha=0.6, share=0.5, ramp=0.27):
        self.share, self.ramp, self.memory = share, ramp, Averages(alpha)

    def step(self, inputs, training=True):
        ramped = min(1.0, inputs.progress / self.ramp) if self.ramp else 1.0
        weight = self.share * math.exp(-5 * (1 - ramped) ** 2)
        total = 0
        for i, (z, w) in zip(inputs.index.tolist(), pairs(inputs)):
            target, past = softmax(w), self.memory.corrected(i)
            if past is not None:
                target = [(1 - weight) * a + weight * b for a, b in zip(target, past)]
            total = total + cross_entropy(target, softmax(z))
        if training:
            self.memory.visit(inputs)
        return total / len(inputs.student_logits)


class SOP:
    """u and v as autograd parameters, both published losses, torch's SGD."""

    def __init__(self, u, v, lr_u=1.0, lr_v=10.0):
        self.u, self.v = u.clone().requires_grad_(), v.clone().requires_grad_()
        self.optimizer = torch.optim.SGD([{"params": [self.u], "lr": lr_u}, {"params": [self.v], "lr": lr_v}], lr=1.0)

    def losses(self, inputs):
        cross, squares = 0, 0
        for i, (z, w) in zip(inputs.index.tolist(), pairs(inputs)):
            p, y, own = softmax(z), argmax(w), argmax(z)
            shift = [
                (self.u[i, 0] ** 2).clamp(max=1) if c == y else -(self.v[i, c] ** 2).clamp(max=1)
                for c in range(len(p))]
            raw = [(a + (b if c == y else b.detach())).clamp(min=1e-4) for c, (a, b) in enumerate(zip(p, shift))]
            cross = cross - torch.log(raw[y] / sum(raw))
            squares = squares + sum((float(c == own) + b - float(c == y)) ** 2 for c, b in enumerate(shift))
        return cross / len(inputs.index), squares / len(inputs.index)

    def step(self, inputs, training=True):
        value = self.losses(inputs)[0]
        if training:
            detached = inputs.replace(student_logits=inputs.student_logits.detach())
            self.optimizer.zero_grad()
            sum(self.losses(detached)).backward()
            self.optimizer.step()
        return value


STATELESS = {
    f.__name__: f for f in (
        adaptconf, augconf, bkd, bootstrap, chi2, conf_weighted, confidence_mask, dist, dkd, evidential, gce, hard,
        hellinger, jsd_kd, kd, logconf, mlkd, nce_rce, nkd, product, reverse_ce, reverse_kl, sce, small_loss, ttm, wttm)
}
WITH_MEMORY = {"elr": ELR, "balanced_elr": BalancedELR, "temporal": Temporal, "sop": SOP}
