"""How a loss weighs samples over training (``--log-beta``): histograms by which of teacher and student are right.

They are kept on the device as whole numbers, so that no step waits for them and any order of adding gives the same.
"""

import torch
import torch.distributed as dist
from torch import Tensor

BINS = 50  # of [0, 1], the last one closed
# teacher and student agree, and are right or wrong; or only one of them is right, or each is wrong in its way; the last
# two are of samples without a label
KINDS = ("agree_right", "agree_wrong", "teacher_right", "student_right", "both_wrong", "agree", "disagree")
_ONE = 1 << 24  # sums of weights are kept in this fixed point


class WeightMeter:
    """Counts the weights of an epoch's samples by kind and size. Samples whose weight is not finite are left out.

    Those of several runs are counted side by side where what they return has a dimension more, in front.
    """

    def __init__(self) -> None:
        self.counts: dict[str, Tensor] = {}  # by weight, (kinds, BINS + 1); the last column is the sum

    def update(self, result: dict[str, object], target: Tensor) -> None:
        """Count a batch.

        Args:
            result: what a task returned: ``output`` (B, C) and, where weights are logged, ``sample_weights`` with the
                ``weights`` (N,) by name and the class that the ``teacher`` predicts (N,), of the last N samples.
            target: (B,) labels, negative where there is none, or (B, C) soft ones, whose largest entry counts.
        """
        found = result.get("sample_weights")
        if not found:
            return
        teacher, student = found["teacher"], result["output"].detach().argmax(dim=-1)
        label = target.argmax(dim=-1) if target.ndim > student.ndim else target
        last = (..., slice(-teacher.shape[-1], None))  # before them may be some that the teacher was not asked about
        kinds = kinds_of(student[last], teacher, label[last])
        runs = teacher.shape[:-1]
        kinds = kinds + len(KINDS) * torch.arange(runs.numel(), device=kinds.device).view(*runs, 1)
        for name, weights in found["weights"].items():
            finite = torch.isfinite(weights)
            weights = weights.nan_to_num(0.0, 0.0, 0.0).clamp(0, 1)
            bins = (weights * BINS).long().clamp(max=BINS - 1)
            if name not in self.counts:
                self.counts[name] = torch.zeros(
                    *runs, len(KINDS), BINS + 1, dtype=torch.int64, device=weights.device)
            flat = self.counts[name].view(-1)
            row = kinds * (BINS + 1)
            flat.index_add_(0, (row + bins).flatten(), finite.long().flatten())
            flat.index_add_(0, (row + BINS).flatten(), ((weights * _ONE).round().long() * finite).flatten())

    def record(self, distributed: bool = False) -> dict[str, dict[str, dict]]:
        """Return for each weight and each kind with samples the ``mean`` and the ``counts`` by bin, over all ranks."""
        found = {}
        for name, counts in sorted(self.counts.items()):
            counts = counts.clone()
            if distributed:
                dist.all_reduce(counts)
            found[name] = {
                kind: dict(mean=total / _ONE / sum(row), counts=row)
                for kind, (*row, total) in zip(KINDS, counts.tolist()) if any(row)
            }
        return found

    def state_dict(self) -> dict[str, Tensor]:
        return {name: counts.to("cpu", copy=True) for name, counts in self.counts.items()}

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Put back what `state_dict` returned. Raises `ValueError` for counts of another kind."""
        if any(counts.shape != (len(KINDS), BINS + 1) or counts.dtype != torch.int64 for counts in state.values()):
            raise ValueError(f"counts of weights are {len(KINDS)} x {BINS + 1} whole numbers")
        self.counts = {name: counts.to(device, copy=True) for name, counts in state.items()}


def kinds_of(student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
    """Return the position in `KINDS` of each sample, from the classes that each says it to be."""
    agree = student == teacher
    known = torch.where(
        agree, (teacher != label).long(),
        torch.where(teacher == label, 2, torch.where(student == label, 3, 4)))
    return torch.where(label < 0, 6 - agree.long(), known)
