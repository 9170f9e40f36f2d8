"""Several students one after the other (``--stages``): each may label for the next, or hand its weights on.

Every stage is an ordinary run in a folder of its own. A file lists them:

    - name: head
      linear_probe: true
    - name: lora
      teacher: given,stage:head      # mean of the command line's and what the student of that stage says, stored
      teacher_targets: cached
      clean_select: entropy:0.8      # trained on the share of which it is most certain
      tune: lora
    - name: all
      initial_checkpoint: stage:lora # goes on from its weights
      lr: 1.0e-05

A stage has the flags of the command line and its own, which win.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..metrics.pgr import RESAMPLES
from ..metrics.resampling import CONFIDENCE, resampled_means
from ..monitor import format_table
from ..run.record import PREDICTIONS
from .outcome import read_predictions
from .runs import Runs


def finish(runs: Runs) -> tuple[dict, str]:
    """Return the record of each stage, how far the last one is above the others, and what a reader has to know; and the
    table that ``--stages`` ends with.
    """
    hits = {name: hits_of(runs.folders[name] / PREDICTIONS[done["selected"]["rule"]])
            for name, done in runs.done.items()}
    last_above = above_earlier(runs.done, hits)
    warnings = [f"{name}: {text}" for name, done in runs.done.items() for text in done["warnings"]]
    warnings += behind_earlier(runs.done, last_above, runs.folders)
    last = list(runs.done)[-1]
    table = f"{closing_table(runs.done, hits)}\n* the last one is exported to {runs.folders[last] / 'export'}"
    return dict(stages=runs.done, last_above=last_above, warnings=warnings), table


def above_earlier(
        records: Mapping[str, dict], hits: Mapping[str, np.ndarray | None]) -> dict[str, dict[str, float]]:
    """Return how far the last stage is above each earlier one that was measured on the same test samples: ``value`` in
    percent, ``low`` and ``high`` of its interval over test samples.

    Args:
        records: of the stages, by name.
        hits: (N,) which test samples each stage has right, by name in their order; None without ground truth.
    """
    *others, last = hits
    pairs = ((name, gain_over(records, hits, last, name)) for name in others)
    return {name: dict(zip(("value", "low", "high"), gain)) for name, gain in pairs if gain}


def behind_earlier(
        records: Mapping[str, dict], last_above: Mapping[str, dict], folders: Mapping[str, Path]) -> list[str]:
    """Return the warning that the last stage is below an earlier one, the best of them; empty where it is not.

    Args:
        records: of the stages, by name.
        last_above: of `above_earlier`.
        folders: of their runs.
    """
    below = {name: above for name, above in last_above.items() if above["value"] < 0}
    if not below:
        return []
    *_, last = records
    best = min(below, key=lambda name: below[name]["value"])
    ours, theirs = (records[name]["metrics"]["top1"] for name in (last, best))
    low, high = below[best]["low"], below[best]["high"]
    zero = "" if high < 0 else ", which has 0 in it"
    return [f"the last stage, {last}, is below an earlier one: top-1 {ours:.2f}, {best} {theirs:.2f} "
            f"({below[best]['value']:+.2f}, 95 % interval {low:+.2f} to {high:+.2f}{zero}): the better student is "
            f"{best}, exported to {folders[best] / 'export'}"]


def gain_over(
        records: Mapping[str, dict],
        hits: Mapping[str, np.ndarray | None],
        name: str,
        other: str,
) -> tuple[float, float, float] | None:
    """Return the `difference` of two stages, with records and hits as of `above_earlier`; None where they were not
    measured on the same test samples.
    """
    if hits[name] is None or hits[other] is None or len(hits[name]) != len(hits[other]):
        return None
    ours, theirs = (records[stage]["data"]["splits"]["val"]["fingerprint"] for stage in (name, other))
    return difference(hits[name], hits[other]) if ours == theirs else None  # streams have no fingerprint


def closing_table(records: Mapping[str, dict], hits: Mapping[str, np.ndarray | None]) -> str:
    """Return a table of the stages: accuracy, what it is above that of the first one, with an interval over test
    samples, agreement with its teacher, trained weights, seconds.

    Args:
        records: of the stages, by name.
        hits: as of `above_earlier`.
    """
    rows, first = [], next(iter(records))
    for name, record in records.items():
        model, metrics = record["model"], record["metrics"]
        trained = "head" if model["linear_probe"] else model.get("trained", model["params"])
        gain = gain_over(records, hits, name, first) if name != first else None
        above = gain and "{:+.2f}, {:+.2f} to {:+.2f}".format(*gain)
        rows.append([name, metrics.get("top1"), above, metrics.get("agreement"), trained, record["seconds"]])
    return format_table(rows, ["stage", "top-1", f"above {first}, 95 %", "agreement", "trained weights", "seconds"])


def hits_of(file: Path) -> np.ndarray | None:
    """Return which test samples a run has right, (N,); None without ground truth."""
    said = read_predictions(file) if file.is_file() else {}
    return said["student"] == said["target"] if "target" in said else None


def difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, float]:
    """Return the difference of two accuracies in percent, and its bootstrap interval over samples, (N,) each."""
    gain = 100 * (ours.astype(float) - theirs)
    low, high = np.quantile(resampled_means(gain[None], RESAMPLES)[0], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(gain.mean()), float(low), float(high)
