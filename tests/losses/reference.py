"""Second implementations of losses, written from the papers' formulas, in probabilities rather than in logarithms.

Each takes a `LossInputs` and the loss's kwargs and returns the value of the whole loss. They share no code with the
package. Losses with memory are classes: `step` takes one batch in training mode, duplicates and all.
"""

import math

import torch
from torch.nn import functional


def one_hot(y, classes):
    return functional.one_hot(y, classes).double()


def softmax(logits, temperature=1.0):
    powers = ((logits - logits.detach().amax(dim=1, keepdim=True)) / temperature).exp()
    return powers / powers.sum(dim=1, keepdim=True)


def softened(inputs, temperature=1.0, standardize=False):
    """Probabilities of student and teacher."""
    for logits in (inputs.student_logits, inputs.teacher_logits):
        if standardize:
            centred = logits - logits.mean(dim=1, keepdim=True)
            deviation = (centred.square().sum(dim=1, keepdim=True) / (logits.shape[1] - 1)).sqrt()
            logits = centred / (deviation + 1e-7)
        yield softmax(logits, temperature)


def kl(q, p):
    return (q * (q / p).log()).sum(dim=1)


def cross_entropy(target, p):
    return -(target * p.log()).sum(dim=1)


def at(p, y):
    return p[torch.arange(len(p)), y]


def ramped(inputs, ramp):
    return min(1.0, inputs.progress / ramp) if ramp else 1.0


def label(inputs):
    target = inputs.teacher_logits if inputs.target is None else inputs.target
    return target if target.ndim == 1 else target.argmax(dim=1)


def kd(inputs, temperature=4.0, logit_standardization=False):
    p, q = softened(inputs, temperature, logit_standardization)
    return temperature**2 * kl(q, p).mean()


def reverse_kl(inputs, temperature=1.0, logit_standardization=False):
    p, q = softened(inputs, temperature, logit_standardization)
    return temperature**2 * kl(p, q).mean()


def jsd_kd(inputs, beta=0.5, temperature=1.0, logit_standardization=False):
    p, q = softened(inputs, temperature, logit_standardization)
    middle = beta * q + (1 - beta) * p
    return temperature**2 * (beta * kl(q, middle) + (1 - beta) * kl(p, middle)).mean()


def reverse_ce(inputs):
    p, q = softened(inputs)
    return cross_entropy(p, q).mean()


def hellinger(inputs):
    p, q = softened(inputs)
    return (2 - 2 * (p * q).sqrt().sum(dim=1)).mean()


def chi2(inputs, floor=0.01):
    p, q = softened(inputs)
    return ((p - q) ** 2 / q.clamp(min=floor)).sum(dim=1).mean()


def dkd(inputs, alpha=1.0, beta=8.0, temperature=4.0, logit_standardization=False):
    sides, others = [], []
    for p in softened(inputs, temperature, logit_standardization):
        of_label = at(p, label(inputs))[:, None]
        sides.append(torch.cat([of_label, 1 - of_label], dim=1))
        rest = p[one_hot(label(inputs), p.shape[1]) == 0].reshape(len(p), -1)
        others.append(rest / (1 - of_label))
    return temperature**2 * (alpha * kl(*sides[::-1]) + beta * kl(*others[::-1])).mean()


def nkd(inputs, gamma=1.5, temperature=1.0, logit_standardization=False):
    (p, q), (soft_p, soft_q) = (
        softened(inputs),
        softened(inputs, temperature, logit_standardization),
    )
    y = label(inputs)
    of_target = -at(q, y) * at(p, y).log()
    rest = soft_q / (1 - at(soft_q, y))[:, None] * (soft_p / (1 - at(soft_p, y))[:, None]).log()
    others = -(rest * (one_hot(y, p.shape[1]) == 0)).sum(dim=1)
    return (of_target + gamma * temperature**2 * others).mean()


def dist(inputs, beta=1.0, gamma=1.0, temperature=1.0, logit_standardization=False):
    def correlation(a, b):
        a, b = (x - x.mean(dim=1, keepdim=True) for x in (a, b))
        return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)

    p, q = softened(inputs, temperature, logit_standardization)
    inter, intra = 1 - correlation(p, q).mean(), 1 - correlation(p.T, q.T).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def ttm(inputs, temperature=10.0, logit_standardization=False, weighted=False):
    p, q = softened(inputs, standardize=logit_standardization)
    powers = q ** (1 / temperature)
    sums = powers.sum(dim=1)
    return ((sums if weighted else 1.0) * kl(powers / sums[:, None], p)).mean()


def wttm(inputs, temperature=10.0, logit_standardization=False):
    return ttm(inputs, temperature, logit_standardization, weighted=True)


def mlkd(inputs, temperatures=(4.0, 3.0, 5.0, 2.0, 6.0), logit_standardization=False):
    total, (size, classes) = 0, inputs.student_logits.shape
    for t in temperatures:
        p, q = softened(inputs, t, logit_standardization)
        total = total + t**2 * kl(q, p).mean()
        total = total + (p @ p.T - q @ q.T).square().sum() / size
        total = total + (p.T @ p - q.T @ q).square().sum() / classes
    return total


def adaptconf(inputs, temperature=0.5, kd_temperature=1.0, ramp=0.0, logit_standardization=False):
    p, _ = softened(inputs)
    own, weak = (
        -at(p, side.argmax(dim=1)).log() for side in (inputs.student_logits, inputs.teacher_logits)
    )
    a, b = ((x.detach() / temperature).exp() for x in (own, weak))
    beta = a / (a + b) * ramped(inputs, ramp)
    soft_p, soft_q = softened(inputs, kd_temperature, logit_standardization)
    return ((1 - beta) * kd_temperature**2 * kl(soft_q, soft_p) + beta * own).mean()


def augconf(inputs, alpha=0.5, ramp=0.3, kd_temperature=1.0, logit_standardization=False):
    weight = alpha * ramped(inputs, ramp)
    own = -softmax(inputs.student_logits).amax(dim=1).log().mean()
    return (1 - weight) * kd(inputs, kd_temperature, logit_standardization) + weight * own


def balanced_labels(p, shares, rounds=6, step=0.7):
    """Thresholds by class: each in turn would give its class its share against the best rival of every sample."""
    classes = range(len(shares))
    tau = torch.stack([p[:, c].quantile(1 - shares[c]) for c in classes])
    for _ in range(rounds if len(p) >= len(shares) else 0):
        rivals = torch.stack(
            [(p - tau)[:, [k for k in classes if k != c]].amax(dim=1) for c in classes], dim=1
        )
        target = torch.stack([(p - rivals)[:, c].quantile(1 - shares[c]) for c in classes])
        tau = tau + step * (target - tau)
    return (p - tau).argmax(dim=1)


def logconf(inputs, aux_coef=0.5, warmup=0.1, original_warmup=False, form="auto"):
    p, q = softened(inputs)
    shares = q.mean(dim=0)
    if form == "multiclass" or len(shares) > 2:
        hard = balanced_labels(p.detach(), shares)
    else:
        hard = (p.detach()[:, 0] < p.detach()[:, 0].quantile(shares[1])).long()
    weight = aux_coef * ramped(inputs, warmup)
    if original_warmup:
        weight = aux_coef * (1.0 if inputs.progress > warmup else inputs.progress)
    return cross_entropy((1 - weight) * q + weight * one_hot(hard, p.shape[1]), p).mean()


def bootstrap(inputs, beta=None, hard=False):
    beta = beta if beta is not None else (0.8 if hard else 0.95)
    p, q = softened(inputs)
    own = one_hot(p.argmax(dim=1), p.shape[1]) if hard else p
    return cross_entropy(beta * q + (1 - beta) * own, p).mean()


def of_label(inputs):
    """What the student says of the teacher's class."""
    return at(softmax(inputs.student_logits), inputs.teacher_logits.argmax(dim=1))


def hard(inputs):
    return -of_label(inputs).log().mean()


def gce(inputs, q=0.7):
    return ((1 - of_label(inputs) ** q) / q).mean()


def sce(inputs, alpha=0.1, beta=1.0, log_zero=-4.0):
    return (-alpha * of_label(inputs).log() - beta * log_zero * (1 - of_label(inputs))).mean()


def nce_rce(inputs, alpha=1.0, beta=1.0, log_zero=-4.0):
    nce = of_label(inputs).log() / softmax(inputs.student_logits).log().sum(dim=1)
    return (alpha * nce - beta * log_zero * (1 - of_label(inputs))).mean()


def small_loss(inputs, keep=0.8, ramp=0.05):
    losses = (-of_label(inputs).log()).sort().values
    kept = 1 - (1 - keep) * ramped(inputs, ramp)
    return losses[: max(1, round(kept * len(losses)))].mean()


def conf_weighted(inputs, temperature=1.0, logit_standardization=False):
    weights = softmax(inputs.teacher_logits).amax(dim=1)
    p, q = softened(inputs, temperature, logit_standardization)
    return temperature**2 * (weights * kl(q, p)).sum() / weights.sum()


def confidence_mask(inputs, threshold=0.95, source="either"):
    student, teacher = (p.amax(dim=1) >= threshold for p in softened(inputs))
    sure = {"student": student, "teacher": teacher, "either": student | teacher}[source]
    return -of_label(inputs)[sure].log().sum() / len(sure)


def evidential(inputs):
    q, a = softmax(inputs.teacher_logits), inputs.student_logits.clamp(min=0) + 1
    evidence = (q * (a.sum(dim=1, keepdim=True).log() - a.log())).sum(dim=1)
    prior = torch.distributions.Dirichlet(torch.ones_like(a))
    divergence = torch.distributions.kl_divergence(
        torch.distributions.Dirichlet(q + (1 - q) * a), prior
    )
    return (evidence + inputs.progress * divergence).mean()


class Averages:
    """Moving averages of predictions by sample, started at zero."""

    def __init__(self, decay):
        self.decay, self.sum, self.visits = decay, {}, {}

    def visit(self, inputs):
        p = softmax(inputs.student_logits).detach()
        for i in set(inputs.index.tolist()):
            new = p[inputs.index == i].mean(dim=0)
            self.sum[i] = self.decay * self.sum.get(i, 0) + (1 - self.decay) * new
            self.visits[i] = self.visits.get(i, 0) + 1


class ELR:
    def __init__(self, lam=3.0, beta=0.7):
        self.lam, self.memory = lam, Averages(beta)

    def step(self, inputs, training=True):
        if training:
            self.memory.visit(inputs)
        p, q = softened(inputs)
        average = torch.stack(
            [self.memory.sum.get(i, torch.zeros_like(q[0])) for i in inputs.index.tolist()]
        )
        return (cross_entropy(q, p) + self.lam * (1 - (p * average).sum(dim=1)).log()).mean()


class BalancedELR(ELR):
    """ELR whose teacher is shifted; the shift of a batch is what the batches before it have made it."""

    def __init__(self, balance=1.0, shares=None, **kwargs):
        super().__init__(**kwargs)
        self.balance, self.shares, self.bias = balance, shares, 0.0

    def step(self, inputs, training=True):
        logits = inputs.teacher_logits
        shifted = logits + self.balance * self.bias
        if training:
            shares = torch.tensor(self.shares or logits.shape[1] * [1.0], dtype=torch.float64)
            rate = min(0.2, len(logits) / (10 * logits.shape[1]))
            self.bias = self.bias - rate * (
                softmax(logits + self.bias).mean(dim=0) / (shares / shares.sum()) - 1
            )
        return super().step(inputs.replace(teacher_logits=shifted), training)


class Temporal:
    def __init__(self, alpha=0.6, share=0.5, ramp=0.27):
        self.share, self.ramp, self.memory = share, ramp, Averages(alpha)

    def step(self, inputs, training=True):
        weight = self.share * math.exp(-5 * (1 - ramped(inputs, self.ramp)) ** 2)
        p, q = softened(inputs)
        target = q.clone()
        for row, i in enumerate(inputs.index.tolist()):
            if i in self.memory.visits:
                past = self.memory.sum[i] / (1 - self.memory.decay ** self.memory.visits[i])
                target[row] = (1 - weight) * q[row] + weight * past
        if training:
            self.memory.visit(inputs)
        return cross_entropy(target, p).mean()


class SOP:
    """u and v as autograd parameters, both published losses, torch's SGD."""

    def __init__(self, u, v, lr_u=1.0, lr_v=10.0):
        self.u, self.v = u.clone().requires_grad_(), v.clone().requires_grad_()
        self.optimizer = torch.optim.SGD(
            [{"params": [self.u], "lr": lr_u}, {"params": [self.v], "lr": lr_v}], lr=1.0
        )

    def losses(self, inputs):
        p = softmax(inputs.student_logits)
        y = one_hot(inputs.teacher_logits.argmax(dim=1), p.shape[1])
        own = one_hot(p.argmax(dim=1), p.shape[1])
        u, v = (x[inputs.index].square().clamp(max=1) for x in (self.u, self.v))
        raw = (p + u * y - v.detach() * (1 - y)).clamp(
            min=1e-4
        )  # published: v learns of the second loss alone
        cross = -((raw * y).sum(dim=1) / raw.sum(dim=1)).log()
        squares = (own + u * y - v * (1 - y) - y).square().sum(dim=1)
        return cross.mean(), squares.mean()

    def step(self, inputs, training=True):
        value = self.losses(inputs)[0]
        if training:
            detached = inputs.replace(student_logits=inputs.student_logits.detach())
            self.optimizer.zero_grad()
            sum(self.losses(detached)).backward()
            self.optimizer.step()
        return value


STATELESS = {
    f.__name__: f
    for f in (
        adaptconf,
        augconf,
        bootstrap,
        chi2,
        conf_weighted,
        confidence_mask,
        dist,
        dkd,
        evidential,
        gce,
        hard,
        hellinger,
        jsd_kd,
        kd,
        logconf,
        mlkd,
        nce_rce,
        nkd,
        reverse_ce,
        reverse_kl,
        sce,
        small_loss,
        ttm,
        wttm,
    )
}
WITH_MEMORY = {"elr": ELR, "balanced_elr": BalancedELR, "temporal": Temporal, "sop": SOP}
