"""Values of other people's implementations, and how their kwargs are called here."""

import json
from pathlib import Path

import torch

from w2s_plugins.losses import LossInputs

CASES = json.loads((Path(__file__).parents[1] / "data" / "golden_losses.json").read_text())["cases"]


def cases_of(loss: str) -> list[dict]:
    """All golden cases of the loss called ``loss`` in the file."""
    cases = [case for case in CASES if case["loss"] == loss]
    assert cases, f"no golden case of {loss}"
    return cases


def logits_inputs(case: dict) -> LossInputs:
    """The inputs of a case on logits, in float64, with gradient on the student."""
    inputs = case["inputs"]

    def tensor(key: str) -> torch.Tensor:
        value = torch.tensor(inputs[key])
        return torch.tensor(inputs[key], dtype=torch.float64) if value.is_floating_point() else value

    progress = inputs.get("progress", inputs.get("epoch", 0) / inputs.get("epochs", 1))
    return LossInputs(
        student_logits=tensor("student_logits").requires_grad_(),
        teacher_logits=tensor("teacher_logits"),
        target=tensor("target") if "target" in inputs else None,
        progress=progress,
    )
