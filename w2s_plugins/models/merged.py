"""Plain weights from those of a run with adapters, as its checkpoints have them, under PEFT's names."""

import math
from collections.abc import Mapping

from torch import Tensor

FACTORS, BASE = (".lora_A.default.weight", ".lora_B.default.weight", ".lora_magnitude_vector.default.weight"), (
    ".base_layer.")


def has_adapters(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has adapters beside its weights."""
    return any(name.endswith(FACTORS[0]) for name in state)


def merge_state(
        state: Mapping[str, Tensor],
        rank: int = 8,
        alpha: float | None = None,
        kind: str = "lora",
        **of_training: object,
) -> dict[str, Tensor]:
    """Return the weights with their adapters added to them, under the names of the plain model.

    Args:
        state: of a model with adapters.
        rank: of them, and the other settings as in `students.adapters.Adapters`.
        alpha: None for twice the rank.
        kind: ``lora``, ``dora`` or ``rslora``.
        **of_training: settings that change nothing here.

    Raises:
        KeyError: a weight is not there, as in a checkpoint inside an epoch.
    """
    scale = (2 * rank if alpha is None else alpha) / (math.sqrt(rank) if kind == "rslora" else rank)
    plain = {name.replace(BASE, "."): value for name, value in state.items() if not name.endswith(FACTORS)}
    for name in state:
        if not name.endswith(FACTORS[0]):
            continue
        layer = name.removesuffix(FACTORS[0])
        down, up, magnitude = (state.get(layer + factor) for factor in FACTORS)
        weight = plain[f"{layer}.weight"]
        merged = weight.float() + scale * (up.float().flatten(1) @ down.float().flatten(1)).view_as(weight)
        if magnitude is not None:
            norm = merged.flatten(1).norm(dim=1)
            merged = merged * (magnitude.float().flatten() / norm).view(-1, *[1] * (weight.ndim - 1))
        plain[f"{layer}.weight"] = merged.to(weight.dtype)
    return plain
