"""Losses on relations between samples, and contrastive and regression losses on one vector a sample.

All use the last feature of each side, the pooled pre-logits (B, D), but `sp`, which uses the deepest feature map.
Relations are those within the batch of one process.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import Count, NonNegative, Order, Positive, Seed, Share
from .base import (
    DistillationLoss,
    LossContext,
    LossInputs,
    add_up,
    promised,
    register_loss,
)
from .features import BatchNorm, both_features, both_shapes
from .memory import gather_rows, size_of
from .undo import Undo


def both_vectors(inputs: LossInputs) -> tuple[Tensor, Tensor]:
    """Return the last feature of student and of teacher, each flattened to (B, D)."""
    student, teacher = both_features(inputs)
    return student[-1].flatten(1), teacher[-1].flatten(1)


@register_loss(
    "sp",
    summary="similarities between the samples of a batch, on the deepest map",
    paper="Tung and Mori 2019, 1907.09682",
    needs_features=True,
)
def sp(inputs: LossInputs) -> dict[str, Tensor]:
    """Similarity-Preserving Knowledge Distillation (2019, arXiv 1907.09682).

    ||G_t - G_s||^2 / B^2, with G the Gram matrix of the flattened deepest maps, its rows L2-normalised.
    """
    # each row of similarities has unit length
    student, teacher = (_deepest_map(features).flatten(1) for features in both_features(inputs))
    similar_to_student = F.normalize(student @ student.T)
    similar_to_teacher = F.normalize(teacher @ teacher.T)
    return {"sp": F.mse_loss(similar_to_student, similar_to_teacher)}


@register_loss(
    "pkt",
    summary="probabilities that a sample picks another as its neighbour",
    paper="Passalis and Tefas 2018, 1803.10837",
    needs_features=True,
)
def pkt(inputs: LossInputs, *, eps: NonNegative = 1e-7) -> dict[str, Tensor]:
    """Probabilistic knowledge transfer (Learning Deep Representations with PKT, 2018, arXiv 1803.10837).

    KL divergence from the teacher's to the student's neighbour probabilities, which are the cosine similarities,
    shifted to [0, 1] and divided by their sum over a row; the mean over the B * B entries.
    """
    # whom a sample picks as its neighbour means the same in spaces of any width; eps keeps the logarithm finite
    p, q = (_neighbour_probabilities(vectors, eps) for vectors in both_vectors(inputs))
    return {"pkt": (q * ((q + eps) / (p + eps)).log()).mean()}


@register_loss(
    "rkd",
    summary="distances between pairs and angles within triplets of samples",
    paper="Park et al. 2019, 1904.05068",
    needs_features=True,
)
def rkd(
    inputs: LossInputs,
    *,
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
    eps: NonNegative = 1e-12,
    squared: bool = False,
) -> dict[str, Tensor]:
    """Relational Knowledge Distillation (2019, arXiv 1904.05068).

    Huber loss between student and teacher of the distances of all pairs, each side divided by its mean, and of the
    cosines of the angles in all triplets. Memory grows with B^2 D and B^3.

    Args:
        distance_weight: weight of the distances.
        angle_weight: weight of the angles.
        eps: smallest squared distance.
        squared: use squared distances.
    """
    # (B, B, D) differences
    student, teacher = (v[None, :, :] - v[:, None, :] for v in both_vectors(inputs))
    # Pairs, and then triplets. Huber's loss, because a few far pairs would rule a squared one.
    distance = F.smooth_l1_loss(
        _relative_distances(student, eps, squared),
        _relative_distances(teacher, eps, squared),
    )
    angle = F.smooth_l1_loss(_cosines(student), _cosines(teacher))
    return {"distance": distance_weight * distance, "angle": angle_weight * angle}


@register_loss(
    "cc",
    summary="correlations between the samples of a batch under a Gaussian kernel",
    paper="Peng et al. 2019, 1904.01802",
    needs_features=True,
)
def cc(inputs: LossInputs, *, gamma: float = 0.4, order: Order = 2) -> dict[str, Tensor]:
    """Correlation Congruence for Knowledge Distillation (2019, arXiv 1904.01802).

    ||C_t - C_s||^2 / B^2, with C the Gaussian kernel exp(-gamma |x - y|^2) of the unit vectors x, y of two samples,
    as its Taylor series exp(-2 gamma) sum_p (2 gamma)^p / p! (x . y)^p up to ``order``.
    """
    student, teacher = (_gaussian_kernel(vectors, gamma, order) for vectors in both_vectors(inputs))
    return {"cc": F.mse_loss(student, teacher)}


@register_loss(
    "srd",
    summary="log-sum distance of projected, batch-normalised vectors",
    paper="Miles and Mikolajczyk 2023, 2303.11098",
)
class SRD(DistillationLoss):
    """Simple recipe (Understanding the Role of the Projector in Knowledge Distillation, 2023, arXiv 2303.11098).

    log sum |n(W s) - n(t)|^alpha over samples and dimensions, with W a learnt linear projection and n batch norm
    without learnt scale.
    """

    needs_features = True
    floor = 1e-5  # keeps the logarithm finite where the two are equal

    def __init__(self, *, alpha: float = 4.0):
        super().__init__()
        self.alpha = alpha

    def setup(self, context: LossContext) -> None:
        student, teacher = _vector_widths(context)
        self.projection = nn.Linear(student, teacher)
        self.norm_student = BatchNorm(teacher, eps=1e-4, affine=False)
        self.norm_teacher = BatchNorm(teacher, eps=1e-4, affine=False)

    def compute(self, inputs: LossInputs) -> dict[str, Tensor]:
        student, teacher = both_vectors(inputs)
        # no learnt scale: the loss cannot be lowered by it
        student = self.norm_student(self.projection(student)[:, :, None, None])
        teacher = self.norm_teacher(teacher[:, :, None, None])
        # the gradient of a logarithm does not shrink as the two come near each other
        distance = (student - teacher).abs().pow(self.alpha).sum()
        return {"srd": (distance + self.floor).log()}


@register_loss(
    "crd",
    summary="tells a sample's own teacher vector from those of other samples",
    paper="Tian et al. 2019, 1910.10699",
)
class CRD(DistillationLoss):
    """Contrastive Representation Distillation (2019, arXiv 1910.10699), with a memory of all training samples.

    Student and teacher vectors are embedded linearly on the unit sphere. An embedding v is to recognise the other
    network's embedding m of the same sample among those of M others, drawn uniformly from the memory of the N training
    samples: with h = exp(v . m / T) / Z / (exp(v . m / T) / Z + M / N), the loss is the mean over the batch of
    -log h(own) - sum log(1 - h(other)), once for each of the two networks. Z is set by the first batch. Afterwards the
    batch's embeddings are mixed into the memory.

    The others are a function of the seed and of the number of steps taken, and are shared by the batch. On several
    processes the memory takes in all batches on each, so that it is the memory of one process with the whole batch.

    Args:
        feat_dim: dimension of the embeddings.
        negatives: M.
        temperature: T.
        momentum: share of the old memory in the new one.
        seed: of the memory at the start and of the draws.
    """

    needs_features = True
    needs_index = True

    memory_student: Tensor  # (N, feat_dim)
    memory_teacher: Tensor
    log_z: Tensor  # (2,), NaN before the first batch
    step: Tensor  # steps taken

    def __init__(
        self,
        *,
        feat_dim: Count = 128,
        negatives: Count = 16384,
        temperature: Positive = 0.07,
        momentum: Share = 0.5,
        seed: Seed = 0,
    ):
        super().__init__()
        self.feat_dim = feat_dim
        self.negatives = negatives
        self.temperature = temperature
        self.momentum = momentum
        self.seed = seed
        self.undo = Undo()

    def setup(self, context: LossContext) -> None:
        size = size_of(context, self.name)
        student, teacher = _vector_widths(context)
        self.embed_student = nn.Linear(student, self.feat_dim)
        self.embed_teacher = nn.Linear(teacher, self.feat_dim)
        # the memory of all ranks begins alike
        generator = torch.Generator().manual_seed(self.seed)
        bound = math.sqrt(3 / self.feat_dim)  # expected length of one
        for name in ("memory_student", "memory_teacher"):
            memory = torch.rand(size, self.feat_dim, generator=generator)
            self.register_buffer(name, (2 * memory - 1) * bound)
        self.register_buffer("log_z", torch.full((2,), torch.nan))
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def compute(self, inputs: LossInputs) -> dict[str, Tensor]:
        index = promised(inputs.index, "index")
        student, teacher = both_vectors(inputs)
        student = F.normalize(self.embed_student(student))
        teacher = F.normalize(self.embed_teacher(teacher))
        # the same others for the whole batch
        others = draw_indices(self.seed, self.step, self.negatives, len(self.memory_student))
        sides = ((student, self.memory_teacher), (teacher, self.memory_student))
        scores = [self._similarities(v, memory, index, others) for v, memory in sides]
        # the normalisers are those of the first batch: they are constants of the estimate, not something to learn
        log_z = torch.where(self.log_z.isnan(), self._log_normalisers(scores), self.log_z)
        losses: list[Tensor] = []
        for (positive, negative), z in zip(scores, log_z):
            losses.append(self._contrast(positive - z, negative - z))
        if self.training:
            self._remember(index, torch.stack([student, teacher], dim=1), log_z)
        return {"crd": add_up(losses)}

    def _similarities(
        self,
        v: Tensor,
        memory: Tensor,
        index: Tensor,
        others: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return v . m / T for the sample's own entry (B,) and for the others (B, M), -inf where that is its own."""
        # a sample is no negative of itself
        positive = (v * memory[index]).sum(dim=1)
        negative = (v @ memory[others].T).masked_fill(others == index[:, None], -torch.inf)
        return positive / self.temperature, negative / self.temperature

    def _log_normalisers(self, scores: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Return log Z of each side: N times the mean of exp(v . m / T), over the batches of all processes."""
        # in logarithms: the sums are of exponentials
        of_sides = [torch.cat([positive, negative.flatten()]) for positive, negative in scores]
        flat = torch.stack(of_sides).detach()
        counts = flat.isfinite().sum(dim=1).to(flat.dtype)
        sums = torch.stack([flat.logsumexp(dim=1), counts.log()])
        log_sum, log_count = gather_rows(sums[None])[0].logsumexp(dim=0)
        return log_sum - log_count + math.log(len(self.memory_student))

    def _contrast(self, positive: Tensor, negative: Tensor) -> Tensor:
        # -log h and -log(1 - h) as softplus, which neither overflows nor loses the digits of small probabilities
        noise = math.log(self.negatives / len(self.memory_student))
        of_negatives = F.softplus(negative - noise).sum(dim=1)
        return (F.softplus(noise - positive) + of_negatives).mean()

    @torch.no_grad()
    def _remember(self, index: Tensor, vectors: Tensor, log_z: Tensor) -> None:
        """Mix the embeddings (B, 2, feat_dim) of student and teacher into their memories."""
        # the batches of all ranks
        index, vectors = gather_rows(index, vectors)
        # a sample that comes twice counts once
        first = (index[:, None] == index).int().argmax(dim=1)
        vectors = vectors[first]
        memories = (self.memory_student, self.memory_teacher)
        self.undo.note(*memories, index=index)
        for memory, v in zip(memories, vectors.unbind(dim=1)):
            mixed = self.momentum * memory[index] + (1 - self.momentum) * v
            memory.index_copy_(0, index, F.normalize(mixed))
        self.undo.note(self.log_z, self.step)
        self.log_z.copy_(log_z)
        self.step += 1


def draw_indices(seed: int, step: Tensor, count: int, size: int) -> Tensor:
    """Return ``count`` indices below ``size``, uniform, with replacement: a function of seed and step alone.

    The draws are SplitMix64 (Steele et al., Fast Splittable Pseudorandom Number Generators, 2014) of a counter, in
    integers, so that they are the same on every device and need no generator's state.
    """
    # each step draws from where the last one ended
    counter = step * count + torch.arange(1, count + 1, device=step.device)
    start = _mix(torch.full_like(step, seed))
    return (_mix(start + counter * _signed(0x9E3779B97F4A7C15)) & 0x7FFFFFFFFFFFFFFF) % size


def _mix(x: Tensor) -> Tensor:
    """The output function of SplitMix64; int64 wraps around as uint64 does."""
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; the one of int64 copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x


def _vector_widths(context: LossContext) -> tuple[int, int]:
    student, teacher = both_shapes(context)
    return math.prod(student[-1]), math.prod(teacher[-1])


def _deepest_map(features: list[Tensor]) -> Tensor:
    """Return the last map (B, C, H, W), or the last feature where there is no map."""
    maps = [feature for feature in features if feature.ndim == 4]
    return maps[-1] if maps else features[-1]


def _neighbour_probabilities(vectors: Tensor, eps: float) -> Tensor:
    vectors = vectors / (torch.linalg.vector_norm(vectors, dim=1, keepdim=True) + eps)
    similarities = (vectors @ vectors.T + 1) / 2
    return similarities / similarities.sum(dim=1, keepdim=True)


def _relative_distances(differences: Tensor, eps: float, squared: bool) -> Tensor:
    """Return the distances (B, B) divided by their mean over pairs of two samples; 0 on the diagonal."""
    # the diagonal is 0, its gradient too
    distances = differences.square().sum(dim=2).clamp(min=eps)
    if not squared:
        distances = distances.sqrt()
    count = len(distances)
    distances = distances.masked_fill(
        torch.eye(count, dtype=torch.bool, device=distances.device), 0
    )
    # relative distances have no unit
    mean = distances.sum() / max(count * (count - 1), 1)
    return distances / mean.clamp(min=torch.finfo(mean.dtype).tiny)


def _cosines(differences: Tensor) -> Tensor:
    """Return the cosines (B, B, B) of the angles at each sample between each two others."""
    # the angle at j between i and k: products of the unit vectors that lead away from j
    directions = F.normalize(differences, dim=2)
    return directions @ directions.transpose(1, 2)


def _gaussian_kernel(vectors: Tensor, gamma: float, order: int) -> Tensor:
    unit = F.normalize(vectors)
    # as many terms of the series as asked for
    cosines = unit @ unit.T
    terms = [(2 * gamma) ** p / math.factorial(p) * cosines**p for p in range(order + 1)]
    return math.exp(-2 * gamma) * add_up(terms)
