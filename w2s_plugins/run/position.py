"""Where a run stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class TermMeter:
    """Running sums of loss terms, kept on the device so that no step waits for it. Bad steps are left out."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def update(self, result: dict[str, Tensor], batch_size: int) -> None:
        # A loss that is not finite counts for nothing, and neither do its terms. In float64, where MPS has it: an epoch
        # adds up millions of samples.
        loss = result["loss"].detach()
        dtype = torch.float32 if loss.device.type == "mps" else torch.float64
        weight = torch.isfinite(loss).to(dtype) * batch_size
        for name, value in {**result, "count": torch.ones_like(loss)}.items():
            if isinstance(value, Tensor) and value.ndim == 0:
                value = value.detach().to(dtype).nan_to_num(0.0, 0.0, 0.0) * weight
                self.sums[name] = self.sums[name] + value if name in self.sums else value

    def average(self, distributed: bool = False) -> dict[str, float]:
        """Means by sample since the start of the epoch, over all ranks. Waits for the device."""
        if not self.sums:
            return {}
        # one exchange for all terms
        stacked = torch.stack(list(self.sums.values()))
        if distributed:
            dist.all_reduce(stacked)
        values = dict(zip(self.sums, stacked.tolist()))
        count = max(values.pop("count"), 1.0)
        return {name: value / count for name, value in values.items()}

    def state_dict(self) -> dict[str, Tensor]:
        return {k: v.cpu() for k, v in self.sums.items()}

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Put back what `state_dict` returned."""
        self.sums = {k: v.to(device) for k, v in state.items()}


@dataclass
class Position:
    """Where a run stands: everything that a checkpoint inside an epoch needs besides the weights."""

    epoch: int = 0
    batch: int = 0  # batches of the epoch that are done
    bad_steps: int = 0  # in a row
    meter: TermMeter = field(default_factory=TermMeter)
    # flags that were changed on the way: at which epoch and update, and their old and new values
    changes: list[dict] = field(default_factory=list)
    # the epoch is trained, and its statistics of batch norm are those of all ranks
    statistics_shared: bool = False
    taken: int = 0  # steps of the optimizer that were not skipped, since the start of the run

    def count(self, result: dict[str, Tensor], target: Tensor, number: int) -> None:
        """Count a batch and its terms.

        Args:
            result: what the task returned.
            target: (B,) or (B, C) labels.
            number: of the batch in the epoch.
        """
        self.meter.update(result, len(target))
        self.batch = number + 1

    def state_dict(self) -> dict[str, object]:
        """Return what a checkpoint holds of it, beside the epoch."""
        # the epoch stands in the checkpoint under timm's name
        noted = {name: value for name, value in vars(self).items() if name != "epoch"}
        return {**noted, "meter": self.meter.state_dict()}

    @classmethod
    def from_notes(cls, content: Mapping[str, Any], notes: Mapping[str, Any]) -> Position:
        """Return where the run stood that wrote a checkpoint.

        Args:
            content: the whole checkpoint.
            notes: the part of it that has `state_dict`; empty in one of timm.
        """
        position = cls(
            epoch=int(content["epoch"]),
            bad_steps=int(notes.get("bad_steps", 0)),
            taken=int(notes.get("taken", 0)),
            changes=[dict(change) for change in notes.get("changes", ())],
        )
        # One with a metric, and any of timm, is of the end of an epoch. The batch, the sums of terms and shared
        # statistics belong to an epoch that is not finished.
        if "metric" in content or "batch" not in notes:
            position.epoch += 1
        else:
            position.batch = int(notes["batch"])
            position.statistics_shared = bool(notes.get("statistics_shared", False))
            position.meter.load_state_dict(notes["meter"], torch.device("cpu"))
        return position

    def next_epoch(self) -> None:
        """Move to the start of the next epoch."""
        # what was counted belongs to the epoch that has ended
        self.epoch, self.batch, self.statistics_shared = self.epoch + 1, 0, False
        self.meter = TermMeter()
