"""What measures the logits of a split against ground truth, by what a label is: timm's evaluators.

That of several classes an image is told of true labels of which some are unknown. Figures by class and intervals are in
`several`.
"""

import functools
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from timm.task.evaluator import ClassificationEvaluator, MultiLabelClassificationEvaluator
from torch import Tensor

from ..errors import logger
from ..private_names import gather_rows
from ..target_kind import SeveralClasses, TargetKind
from .several import THRESHOLD, average_precision, decide, f1_figures, mean_of_known

FEW_POSITIVES = 5  # an AP over fewer moves by tens of points with one image
_UNKNOWN = 2  # in the bytes that are kept of true labels


def truth_remark(positives: Sequence[int], negatives: Sequence[int]) -> str | None:
    """Return what a reader of mAP and F1 has to know of classes with few images that are known to have them, or not to,
    (C,) each; None where each has enough.
    """
    pairs = [*zip(positives, negatives)]
    never, always = sum(not yes for yes, _ in pairs), sum(yes > 0 and not no for yes, no in pairs)
    few = sum(0 < yes < FEW_POSITIVES and no > 0 for yes, no in pairs)
    parts = []
    if never:
        parts.append(f"{never} have no positive image and leave the mAP")
    if always:
        parts.append(f"{always} have no negative image and leave mAP and F1")
    if few:
        parts.append(f"{few} have fewer than {FEW_POSITIVES} positives, whose AP is uncertain")
    if not parts:
        return None
    end = "; none is left, so there is no mAP" if never + always == len(pairs) else ""
    return f"of {len(pairs)} classes {', and '.join(parts)}{end}"


@functools.cache  # once a process, and not after every epoch
def _tell(remark: str) -> None:
    logger.warning(f"WARNING: {remark}")


class SeveralEvaluator(MultiLabelClassificationEvaluator):
    """timm's evaluator of several classes an image, for true labels of which some are unknown.

    Where nothing is unknown its figures are timm's to the last bit. What is unknown counts nowhere: the loss is the mean
    over known labels, AP is over the images of which the class is known, and so is F1. A class that all of them have, or
    none, cannot be ranked and leaves the mAP; one that all have leaves F1 too, because a yes is never wrong there. That
    is said once; where no class is left, the figure is absent.

    Args:
        device: of the logits.
        max_samples: how many count; what follows is padding.
        threshold: of the probability, for F1.

    Raises:
        ValueError: the threshold is not between 0 and 1.
    """

    loss_sum: Tensor
    counts: Tensor
    outputs: list[Tensor]
    targets: list[Tensor]

    def __init__(
        self,
        device: torch.device | str | None = None,
        *,
        max_samples: int | None = None,
        threshold: float = THRESHOLD,
    ):
        super().__init__(device, max_samples=max_samples, threshold=threshold)

    @property
    def logits(self) -> Tensor:
        """What was said of the samples of this rank, (N, C) in float32 on the CPU, with NaN of what nothing was said."""
        return torch.cat(self.outputs) if self.outputs else torch.empty(0, 0)

    @torch.no_grad()
    def update(self, output: Tensor, target: Tensor) -> None:
        """Take in logits (B, C) and true labels (B, C) with NaN for what is unknown.

        Raises:
            ValueError: they are of different shapes.
        """
        # timm's own way, where its arithmetic is right
        known = ~target.isnan()
        if output.ndim != 2 or target.shape != output.shape:
            raise ValueError(
                "Multi-label evaluation expects matching (batch, num_classes) logits and targets."
            )
        output, target = self._prepare(output, target)
        if not len(output):
            return
        target, known = target.float(), known[: len(output)]
        # A model that says something of some classes has no loss of the others; one that says nothing at all has
        # diverged, and its loss is NaN, as timm's is.
        counted = known & ~output.isnan()
        if not counted.any():
            counted = known
        if counted.all():
            loss = self.criterion(output, target)
        else:
            loss = self.criterion(output[counted], target[counted])
        # in images, of which each has C labels: counts are examples, counted labels and all labels
        number = int(counted.sum())
        if number:
            self.loss_sum += loss.to(self.loss_sum.dtype) * (number / output.shape[1])
        self.counts += torch.tensor([len(output), number, output.numel()], device=self.device)
        # soft labels are made hard for everything but the loss
        if not (~known | (target == 0) | (target == 1)).all() and not self._warned_soft_targets:
            logger.warning("WARNING: soft true labels count as 1 from 0.5 on for mAP and F1")
            self._warned_soft_targets = True
        self.outputs.append(output.cpu())
        states = (target >= 0.5).to(torch.uint8).masked_fill(~known, _UNKNOWN)
        self.targets.append(states.cpu())

    def _summary(self, loss_sum: Tensor, counts: Tensor) -> OrderedDict[str, float]:
        examples, counted, labels = counts.tolist()
        images = counted * examples / max(labels, 1)
        return OrderedDict(loss=loss_sum.item() / images if images else 0.0)

    def compute(self, distributed: bool = False) -> OrderedDict[str, float]:
        """Return ``loss``, and in percent ``map``, ``micro_f1``, ``macro_f1`` and ``sample_f1``.

        Args:
            distributed: of all ranks together, each of which must call it.
        """
        loss_sum, counts = self.loss_sum.clone(), self.counts.clone()
        output = self.logits
        states = torch.cat(self.targets) if self.targets else torch.empty(0, 0, dtype=torch.uint8)
        if distributed:
            dist.all_reduce(loss_sum)
            dist.all_reduce(counts)
            output, states = (gather_rows(rows, self.device) for rows in (output, states))
        figures = self._summary(loss_sum, counts)
        if not len(output):
            figures.update(map=0.0, micro_f1=0.0, macro_f1=0.0, sample_f1=0.0)
            return figures

        if remark := truth_remark(
            (states == 1).sum(dim=0).tolist(), (states == 0).sum(dim=0).tolist()
        ):
            _tell(remark)
        if not (states == 0).any():
            return figures

        # what is unknown is NaN
        truth = (states == 1).double().masked_fill(states == _UNKNOWN, torch.nan)
        scores, truth = output.cpu().numpy(), truth.cpu().numpy()
        ap = average_precision(scores, truth)
        if not np.isnan(ap).all():
            figures["map"] = 100 * mean_of_known(ap)
        f1 = f1_figures(decide(output.sigmoid().cpu().numpy(), self.threshold), truth)
        figures.update(micro_f1=100 * f1.micro, macro_f1=100 * f1.macro, sample_f1=100 * f1.sample)
        return figures


def create_evaluator(
    target_kind: TargetKind, device: torch.device, max_samples: int | None
) -> ClassificationEvaluator:
    """Return timm's evaluator: of loss, top-1 and top-5, or of several classes an image of mAP and F1.

    Args:
        target_kind: what a label is.
        device: of the logits.
        max_samples: how many count; what follows is padding.
    """
    if isinstance(target_kind, SeveralClasses):
        threshold = target_kind.threshold
        # F1 of an evaluation is that of one threshold, as timm has it
        if not isinstance(threshold, float):
            threshold = THRESHOLD
        return SeveralEvaluator(device, max_samples=max_samples, threshold=threshold)
    return ClassificationEvaluator(device, max_samples=max_samples)
