"""Several teachers as evidence: ``--teacher-assign posterior``.

A mean believes each teacher as much as it believes itself. Here the last teacher's probabilities are the prior opinion,
and each other teacher is a witness with a confusion matrix: how often it says a class if another one is true. Nobody
knows these matrices, so they are found by expectation and maximisation on the images themselves (Dawid & Skene, 1979,
Applied Statistics 28, 20, with a prior opinion of each image in place of the shares of classes). A teacher that swaps
two classes is read correctly, and one that says anything of anything is ignored.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import logger
from .stored import CachedTargets

_ROWS = 4096  # read at a time
_STEPS = 50  # of expectation and maximisation at most
_TOLERANCE = 1e-3  # largest change of a share in a matrix, below which they end
_PSEUDO = 5.0  # answers about a class that are assumed: half of them right, half of them as the teacher answers overall
_SAMPLE = 16384  # images at most, by which the last teacher is calibrated
_TEMPERATURES = (0.05, 50.0)
_HALVINGS = 40  # of that interval


class PosteriorTargets(CachedTargets):
    """Logits of the posterior of the last teacher's opinion and of what the other teachers say.

    Args:
        targets: the stored answers of two teachers or more; the last one has said something of every sample.
        count: samples.
        right: how often the last teacher is right, in percent, as far as that was measured on other images; its answers
            are divided by the temperature at which it is as sure as that on average. None leaves them as they are.

    Attributes:
        matrices: of each other teacher, (C, C), rows are true classes and sum to 1.
        temperature: by which the last teacher's logits are divided.
    """

    def __init__(self, targets: CachedTargets, count: int, right: float | None = None):
        super().__init__(targets.readers, targets.device, targets.target_kind)
        *self.witnesses, self.prior = self.readers
        self.count = count
        # Views of an image are other images to a teacher, but it confuses the same classes on all of them.
        self.set_epoch(0)
        self.temperature = 1.0 if right is None else self._calibrate(right / 100)
        self.matrices = self._fit()
        self._report()

    def __call__(self, index: Tensor) -> Tensor:
        """Return the logits (B, C) of the samples ``index`` (B,)."""
        index = index.cpu()
        logits = self._prior_of(index)
        for answers, rows, matrix in self._evidence(index):
            logits[rows] += likelihood(answers, matrix).log()
        return logits

    def _prior_of(self, index: Tensor) -> Tensor:
        """Return the log-probabilities (B, C) of the last teacher, calibrated."""
        # Of an image that could not be read it says nothing, so that any class is as likely.
        logits = torch.zeros(len(index), self.prior.manifest.num_classes, device=self.device)
        rows = self.prior.has(index).nonzero().flatten()
        logits[rows.to(self.device)] = self.prior(index[rows], self.device).float()
        return (logits / self.temperature).log_softmax(dim=1)

    def _evidence(self, index: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield what each other teacher says (K, C), of which rows (K,) of a batch, and its matrix."""
        for reader, matrix in zip(self.witnesses, self.matrices):
            rows = reader.has(index).nonzero().flatten()
            answers = self.target_kind.probabilities(reader(index[rows], self.device).float())
            yield answers, rows.to(self.device), matrix

    def _calibrate(self, right: float) -> float:
        """Return the temperature at which the last teacher is as sure on average as it is often right."""
        # Some images tell, spread over all of them.
        self.temperature = 1.0
        index = torch.arange(0, self.count, max(1, self.count // _SAMPLE))
        index = index[self.prior.has(index)]
        logits = torch.cat([self._prior_of(rows) for rows in index.split(_ROWS)])
        # The higher the temperature, the less sure.
        low, high = _TEMPERATURES
        for _ in range(_HALVINGS):
            middle = (low * high) ** 0.5
            sure = self.target_kind.confidence(logits / middle).mean()
            low, high = (middle, high) if sure > right else (low, middle)
        return low

    def _fit(self) -> list[Tensor]:
        """Return the confusion matrix of each other teacher."""
        # They begin as those of teachers who say nothing, so that the last teacher decides alone.
        classes = self.prior.manifest.num_classes
        self.matrices = [torch.ones(classes, classes, device=self.device) for _ in self.witnesses]
        for _ in range(_STEPS):
            sums = [torch.zeros_like(matrix) for matrix in self.matrices]
            for index in torch.arange(self.count).split(_ROWS):
                # Expectation: what is on each image, if teachers confuse classes as is believed so far.
                shares = self.target_kind.probabilities(self(index))
                # Maximisation: how often a teacher says a class of images that are of another one.
                for total, (answers, rows, _) in zip(sums, self._evidence(index)):
                    total += shares[rows].T @ answers
            before, self.matrices = self.matrices, [smooth(total) for total in sums]
            changes = [(a - b).abs().max() for a, b in zip(before, self.matrices)]
            if max(changes) < _TOLERANCE:
                break
        return self.matrices

    def _report(self) -> None:
        """Log how the teachers are believed, and what that changes."""
        right = [0.0 for _ in self.witnesses]
        said, differs = list(right), 0
        for index in torch.arange(self.count).split(_ROWS):
            posterior = self(index)
            shares, classes = posterior.softmax(dim=1), posterior.argmax(dim=1)
            differs += int((classes != self._prior_of(index).argmax(dim=1)).sum())
            for number, (answers, rows, _) in enumerate(self._evidence(index)):
                own = shares[rows].gather(1, answers.argmax(dim=1, keepdim=True))
                right[number] += float(own.sum())
                said[number] += len(rows)
        believed = ", ".join(f"{100 * a / b:.1f}" for a, b in zip(right, said) if b)
        logger.info(
            f"--teacher-assign posterior: the answers of the last teacher are divided by {self.temperature:.2f}; the "
            f"others are taken to be right on {believed} % of the images; the posterior says another class than the "
            f"last teacher of {100 * differs / self.count:.1f} %"
        )


def likelihood(answers: Tensor, matrix: Tensor) -> Tensor:
    """Return how likely answers (K, C) are under each true class, (K, C): the mean over the classes that they share."""
    return (answers @ matrix.T).clamp(min=torch.finfo(torch.float32).tiny)


def smooth(counts: Tensor) -> Tensor:
    """Return the rows of a matrix of counts (C, C) as shares. A class that is hardly seen is taken to be half right."""
    overall = counts.sum(dim=0) / counts.sum().clamp(min=torch.finfo(torch.float32).tiny)
    assumed = (torch.eye(len(counts), device=counts.device) + overall) / 2
    return (counts + _PSEUDO * assumed) / (counts.sum(dim=1, keepdim=True) + _PSEUDO)
