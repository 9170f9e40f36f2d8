"""Plain weights from those of a run with adapters, as its checkpoints have them, under PEFT's names: PEFT merges them.
"""

from collections.abc import Mapping
from types import ModuleType

import torch
from torch import Tensor, nn

from ..errors import UserError, one_line

ADAPTER = "default"  # PEFT's own name of an adapter
FACTOR, BASE = f".lora_A.{ADAPTER}.weight", ".base_layer."
OTHERS = (FACTOR, f".lora_B.{ADAPTER}.weight", f".lora_magnitude_vector.{ADAPTER}.weight")


def peft() -> ModuleType:
    """Import PEFT. Raises `UserError` where it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise UserError(f"adapters (--tune lora) need PEFT ({one_line(error)}): pip install peft") from error
    return peft


def adapter_config(rank: int, alpha: float | None, kind: str, **more: object) -> object:
    """Return PEFT's configuration of adapters: alpha is twice the rank where it is None."""
    return peft().LoraConfig(
        r=rank, lora_alpha=2 * rank if alpha is None else alpha, use_dora=kind == "dora", use_rslora=kind == "rslora",
        **more)


def has_adapters(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has adapters beside its weights."""
    return any(name.endswith(FACTOR) for name in state)


@torch.no_grad()
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
        RuntimeError: the tensors are not those of such adapters.
    """
    # The weights alone, and which layers have adapters.
    plain = {name.replace(BASE, "."): value for name, value in state.items() if not name.endswith(OTHERS)}
    layers = [name.removesuffix(FACTOR) for name in state if name.endswith(FACTOR)]
    if any(len(state[f"{layer}{FACTOR}"]) != rank for layer in layers):
        raise RuntimeError("the adapters have another rank")
    # The same layers with adapters of PEFT, without the model around them.
    with torch.random.fork_rng(devices=[]):  # new layers draw weights, which are replaced at once
        parts = nn.ModuleDict({str(number): _empty(plain[f"{layer}.weight"]) for number, layer in enumerate(layers)})
        peft().inject_adapter_in_model(adapter_config(rank, alpha, kind, target_modules=[*parts]), parts, ADAPTER)
    # Each is filled from the checkpoint, and PEFT merges it.
    for part, layer in zip(parts.values(), layers):
        own = {name.removeprefix(f"{layer}."): value for name, value in state.items() if name.startswith(f"{layer}.")}
        own.pop("base_layer.bias", None)  # an adapter leaves it as it is
        part.load_state_dict(own, assign=True)
        part.merge(safe_merge=True)
        plain[f"{layer}.weight"] = part.get_base_layer().weight
    return plain


def _empty(weight: Tensor) -> nn.Module:
    """Return a layer of the kind that has such a weight."""
    outputs, inputs, *kernel = weight.shape
    if kernel:
        return nn.utils.skip_init(nn.Conv2d, inputs, outputs, tuple(kernel), bias=False)
    return nn.utils.skip_init(nn.Linear, inputs, outputs, bias=False)
