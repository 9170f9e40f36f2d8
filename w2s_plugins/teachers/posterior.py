"""Several teachers as evidence: ``--teacher-assign posterior``.

A mean believes each teacher as much as it believes itself. Here the last teacher's probabilities are the prior opinion,
and each other teacher is a witness with a confusion matrix: how often it says a class if another one is true. Nobody
knows these matrices, so they are found by expectation and maximisation on the images themselves (Dawid & Skene, 1979,
Applied Statistics 28, 20, with a prior opinion of each image in place of the shares of classes). A teacher that swaps
two classes is read correctly, and one that says anything of anything is ignored. Of classes that the last teacher does
not know it has no opinion, so the others are believed about them.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UserError, logger
from ..labels.annotators import alternate, shrink
from ..metrics.calibration import find_temperature
from ..target_kind import UNMAPPED_LOGIT
from .stored import CachedTargets

_ROWS = 4096  # read at a time
_STEPS = 50  # of expectation and maximisation at most
_TOLERANCE = 1e-3  # largest change of a share in a matrix, below which they end
_PSEUDO = 5.0  # answers about a class that are assumed: half of them right, half of them as the teacher answers overall
_SAMPLE = 16384  # images at most, by which the last teacher is calibrated
# the highest is for classes that are certain, whose logits are far apart
_TEMPERATURES = 0.05, 1e4
_NEAR = 0.01  # of how sure it is to be


class Evidence(NamedTuple):
    """What a teacher says of a batch.

    Args:
        answers: (K, C) probabilities.
        rows: (K,) of the batch, those that it has seen.
        matrix: (C, C) of that teacher.
    """

    answers: Tensor
    rows: Tensor
    matrix: Tensor


class PosteriorTargets(CachedTargets):
    """Logits of the posterior of the last teacher's opinion and of what the other teachers say.

    Args:
        targets: the stored answers of two teachers or more; the last one has said something of every sample.
        count: samples.
        right: how often the last teacher is right, in percent, as far as that was measured on other images; its answers
            are divided by the temperature at which it is as sure as that on average. None leaves them as they are.

    Attributes:
        unknown: (C,) classes that the last teacher does not know.
        matrices: of each other teacher, (C, C), rows are true classes and sum to 1.
        temperature: by which the last teacher's logits are divided.
        figures: for the record of a run: the ``temperature``, on how many percent of the images that it has seen each
            other teacher is ``believed`` (None where it has seen none), and of how many percent of all images the
            posterior ``differs`` from the last teacher's class.

    Raises:
        UserError: the last teacher is certain of every answer, so that nothing could correct it.
    """

    def __init__(self, targets: CachedTargets, count: int, right: float | None = None):
        super().__init__(targets.readers, targets.device, targets.target_kind)
        *self.witnesses, self.prior = self.readers
        self.count = count
        # Views of an image are other images to a teacher, but it confuses the same classes on all of them.
        self.set_epoch(0)
        self.temperature = 1.0
        self.unknown = self._find_unknown()
        # asked once, because every batch is combined, and a device would be waited for
        self.knows_all = not self.unknown.any()
        sure = self._logits_of_some()
        if right is not None:
            self.temperature = self._calibrate(sure, right / 100)
        elif (self.target_kind.confidence(sure) == 1).all():
            raise UserError(
                "--teacher-assign posterior: the last --teacher is certain of every answer, so that no other one can "
                "correct it; say on how many percent of the images it is right, such as posterior:70"
            )
        # Teachers begin as if they had said nothing, so that the last one decides alone.
        classes = self.prior.manifest.num_classes
        self.matrices = [torch.ones(classes, classes, device=self.device) for _ in self.witnesses]
        self._fit()
        self.figures = self._measure()

    def __call__(self, index: Tensor) -> Tensor:
        """Return the logits (B, C) of the samples ``index`` (B,). Raises `UserError` where nobody says anything of one."""
        index = index.cpu()
        has = torch.stack([reader.has(index) for reader in self.readers]).any(dim=0)
        if not has.all():
            self.prior(index[~has], self.device)  # it raises, and names the sample
        return self._combine(self._prior_of(index), [*self._evidence(index)])

    def _combine(self, prior: Tensor, evidence: Sequence[Evidence]) -> Tensor:
        """Return the logits (B, C) of the posterior of a prior opinion, which is changed, and of what the others say."""
        logits = weighed(prior, evidence)
        if self.knows_all:
            return logits
        # What the others say of classes that the last one does not know stays as it is, the mean of those who have seen
        # an image; the posterior is about the rest.
        own = torch.zeros(len(prior), int(self.unknown.sum()), device=self.device)
        counts = torch.zeros(len(prior), 1, device=self.device)
        for answers, rows, _ in evidence:
            own[rows] += answers[:, self.unknown]
            counts[rows] += 1
        own /= counts.clamp(min=1)
        shares = self.target_kind.probabilities(logits) * (1 - own.sum(dim=1, keepdim=True))
        shares[:, self.unknown] = own
        return shares.clamp(min=torch.finfo(torch.float32).tiny).log()

    def _find_unknown(self) -> Tensor:
        """Return which classes (C,) the last teacher does not know, and log how many these are."""
        some = torch.arange(min(self.count, _ROWS))
        answers = self.prior(some[self.prior.has(some)], self.device)
        unknown = (answers <= UNMAPPED_LOGIT).all(dim=0) & (len(answers) > 0)
        if unknown.any():
            logger.info(
                f"--teacher-assign posterior: the last teacher does not know {int(unknown.sum())} of {len(unknown)} "
                "classes; of these the others are believed"
            )
        return unknown

    def _prior_of(self, index: Tensor) -> Tensor:
        """Return the log-probabilities (B, C) of the last teacher, calibrated."""
        # Of an image that could not be read it says nothing, so that any class is as likely.
        logits = torch.zeros(len(index), self.prior.manifest.num_classes, device=self.device)
        rows = self.prior.has(index).nonzero().flatten()
        logits[rows.to(self.device)] = self.prior(index[rows], self.device).float()
        logits = (logits / self.temperature).masked_fill(self.unknown, -math.inf)
        return logits.log_softmax(dim=1)

    def _evidence(self, index: Tensor) -> Iterator[Evidence]:
        """Yield what each other teacher says of a batch."""
        for reader, matrix in zip(self.witnesses, self.matrices):
            rows = reader.has(index).nonzero().flatten()
            answers = self.target_kind.probabilities(reader(index[rows], self.device).float())
            yield Evidence(answers, rows.to(self.device), matrix)

    def _logits_of_some(self) -> Tensor:
        """Return what the last teacher says of some images, which are spread over all that it has seen."""
        seen = torch.arange(self.count)
        seen = seen[self.prior.has(seen)]
        index = seen[:: max(1, math.ceil(len(seen) / _SAMPLE))]
        return torch.cat([self._prior_of(rows) for rows in index.split(_ROWS)])

    def _calibrate(self, logits: Tensor, right: float) -> float:
        """Return the temperature at which the last teacher is as sure on average as it is often right."""
        # At chance it would not tell one class from another, and nothing could be found from it: a trace above that.
        chance = 1 / int((~self.unknown).sum())
        goal = max(right, chance + (1 - chance) / 100)
        temperature = find_temperature(
            lambda t: self.target_kind.confidence(logits / t).mean() > goal, *_TEMPERATURES
        )
        # Somebody who says the same of all classes is never sure, and nobody is less sure than chance.
        sure = float(self.target_kind.confidence(logits / temperature).mean())
        if abs(sure - right) > _NEAR:
            logger.warning(
                f"WARNING: --teacher-assign posterior:{100 * right:g}: the last teacher cannot be made as sure as that; "
                f"its answers are taken to be right on {100 * sure:.1f} % of the images"
            )
        return temperature

    def _fit(self) -> None:
        """Find the confusion matrix of each other teacher."""
        self.matrices = alternate(self._step, self.matrices, _STEPS, _TOLERANCE)

    def _step(self, before: list[Tensor]) -> tuple[list[Tensor], float]:
        """Return the matrices after another step, and the largest change of a share in them."""
        self.matrices = before
        sums = [torch.zeros_like(matrix) for matrix in before]
        for index in torch.arange(self.count).split(_ROWS):
            # Expectation: what is on each image, if teachers confuse classes as is believed so far. Answers are read
            # once for both, because reading is what takes long.
            evidence = [*self._evidence(index)]
            logits = self._combine(self._prior_of(index), evidence)
            shares = self.target_kind.probabilities(logits)
            # Maximisation: how often a teacher says a class of images that are of another one.
            for total, (answers, rows, _) in zip(sums, evidence):
                total += shares[rows].T @ answers
        after = [smooth(total) for total in sums]
        return after, max(float((a - b).abs().max()) for a, b in zip(before, after))

    def _measure(self) -> dict[str, object]:
        """Return the `figures`, and log them."""
        right = [0.0 for _ in self.witnesses]
        seen = [0 for _ in self.witnesses]
        differs = 0
        for index in torch.arange(self.count).split(_ROWS):
            prior, evidence = self._prior_of(index), [*self._evidence(index)]
            before = self.target_kind.decide(prior)
            shares = self.target_kind.probabilities(self._combine(prior, evidence))
            differs += int((self.target_kind.decide(shares) != before).sum())
            for number, (answers, rows, _) in enumerate(evidence):
                own = shares[rows].gather(1, answers.argmax(dim=1, keepdim=True))
                right[number] += float(own.sum())
                seen[number] += len(rows)
        believed = [
            round(100 * hits / count, 1) if count else None for hits, count in zip(right, seen)
        ]
        changed = round(100 * differs / self.count, 1)
        listed = ", ".join("-" if share is None else f"{share:.1f}" for share in believed)
        logger.info(
            f"--teacher-assign posterior: the answers of the last teacher are divided by {self.temperature:.2f}; the "
            f"others are taken to be right on {listed} % of the images; the posterior says another class than the "
            f"last teacher of {changed:.1f} %"
        )
        return dict(temperature=round(self.temperature, 4), believed=believed, differs=changed)


def weighed(logits: Tensor, evidence: Iterable[Evidence]) -> Tensor:
    """Add to the logits (B, C) of a prior opinion, in place, how likely the evidence is under each class."""
    for answers, rows, matrix in evidence:
        logits[rows] += likelihood(answers, matrix).log()
    return logits


def likelihood(answers: Tensor, matrix: Tensor) -> Tensor:
    """Return how likely answers (K, C) are under each true class, (K, C): the mean over the classes that they share."""
    return (answers @ matrix.T).clamp(min=torch.finfo(torch.float32).tiny)


def smooth(counts: Tensor) -> Tensor:
    """Return the rows of a matrix of counts (C, C) as shares. A class that is hardly seen is taken to be half right."""
    overall = counts.sum(dim=0) / counts.sum().clamp(min=torch.finfo(torch.float32).tiny)
    assumed = (torch.eye(len(counts), device=counts.device) + overall) / 2
    return shrink(counts, assumed, _PSEUDO)
