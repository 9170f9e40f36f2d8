"""Several students one after the other (``--stages``): each may label for the next, or hand its weights on.

Every stage is an ordinary run in a folder of its own, with the flags of the command line and its own, which win. A file
lists them:

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
"""

import numpy as np

from ..monitor import format_table
from ..run.record import PREDICTIONS
from .outcome import figures_of, read_predictions
from .planning import Plan


def finish(plan: Plan) -> tuple[dict, str]:
    """Return the record of each stage, how far the last one is above the others, and what a reader has to know; and the
    table that ``--stages`` ends with.
    """
    # how far the last one is above each that was measured on the same samples
    names = list(plan.done)
    first, last = names[0], names[-1]
    gains = {name: gain_over(plan, last, name) for name in names[:-1]}
    last_above = {name: gain for name, gain in gains.items() if gain}
    warnings = [f"{name}: {text}" for name, done in plan.done.items() for text in done["warnings"]]
    # a reader would take the last one
    below = [name for name, above in last_above.items() if above["value"] < 0]
    if below:
        best = min(below, key=lambda name: last_above[name]["value"])
        above = last_above[best]
        warnings.append(
            f"the last stage, {last}, is below an earlier one, {best} ({above['value']:+.2f}, 95 % interval "
            f"{above['low']:+.2f} to {above['high']:+.2f}): the better student is {best}, exported to "
            f"{plan.folders[best] / 'export'}")
    # a row for each stage, with what it is above the first one
    rows = []
    for name, done in plan.done.items():
        model, metrics = done["model"], done["metrics"]
        trained = "head" if model["linear_probe"] else model.get("trained", model["params"])
        gain = gain_over(plan, name, first) if name != first else None
        above = gain and "{value:+.2f}, {low:+.2f} to {high:+.2f}".format(**gain)
        rows.append([name, metrics.get("top1"), above, metrics.get("agreement"), trained, done["seconds"]])
    table = format_table(rows, ["stage", "top-1", f"above {first}, 95 %", "agreement", "trained weights", "seconds"])
    return dict(stages=plan.done, last_above=last_above, warnings=warnings), (
        f"{table}\n* the last one is exported to {plan.folders[last] / 'export'}")


def gain_over(plan: Plan, name: str, other: str) -> dict[str, float] | None:
    """Return how far one stage is above another: ``value`` in percent, ``low`` and ``high`` of its bootstrap interval
    over test samples; None where they were not measured on the same ones.
    """
    ours, theirs = hits_of(plan, name), hits_of(plan, other)
    if ours is None or theirs is None or len(ours) != len(theirs):
        return None
    splits = [plan.done[stage]["data"]["splits"]["val"]["fingerprint"] for stage in (name, other)]
    if splits[0] != splits[1]:  # streams have none
        return None
    return figures_of({"gain": ours.astype(float) - theirs})["gain"]


def hits_of(plan: Plan, name: str) -> np.ndarray | None:
    """Return which test samples a stage has right, (N,); None without ground truth."""
    # without ground truth there is no column of it
    file = plan.folders[name] / PREDICTIONS[plan.done[name]["selected"]["rule"]]
    said = read_predictions(file) if file.is_file() else {}
    return (said["student"] == said["target"]).to_numpy() if "target" in said else None
