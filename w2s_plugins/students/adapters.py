"""Low-rank adapters of Hugging Face PEFT in a timm model: added and merged."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UserError, logger, nearest, one_line
from ..models.loading import TimmModel, first_of

ADAPTER = "default"  # PEFT's own name of an adapter


@dataclass(frozen=True)
class Adapters:
    """LoRA (Hu et al. 2021, arXiv 2106.09685), and its relatives in PEFT.

    Args:
        rank: of the product that is added to a weight.
        alpha: the product is scaled by alpha / rank, with rsLoRA by alpha / sqrt(rank); None for twice the rank.
        dropout: of the input of an adapter.
        targets: patterns of the modules that get one, empty for the choice of `target_layers`.
        kind: ``lora``, ``dora`` (arXiv 2402.09353) or ``rslora`` (arXiv 2312.03732).
    """

    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    kind: str = "lora"


def heads_of(model: TimmModel) -> list[nn.Module]:
    """Return the classifiers of a model: one, of distilled transformers two."""
    heads = model.get_classifier()
    return [heads] if isinstance(heads, nn.Module) else [*heads]


def target_layers(model: TimmModel, patterns: Sequence[str], name: str) -> list[str]:
    """Return the modules that get an adapter: those whose names end as the patterns say.

    Without patterns these are all linear layers; of a network without such in its blocks, the convolutions that join
    channels, all but the first, and never those of squeeze-and-excite: gates are small. The head is trained whole, and
    to the weights of convolutions in groups PEFT cannot add an adapter.
    """
    # The head is new or small, and is trained whole.
    in_head = {id(module) for head in heads_of(model) for module in head.modules()}
    layers = {
        layer_name: module
        for layer_name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
        and id(module) not in in_head
        and getattr(module, "groups", 1) == 1
    }
    if not patterns:
        # The first convolution sees pixels, of which an adapter of low rank is as large as the weight itself.
        convs = [
            layer_name for layer_name, module in layers.items() if isinstance(module, nn.Conv2d)
        ]
        linear = [layer_name for layer_name, module in layers.items() if type(module) is nn.Linear]
        # A network whose only linear layers are gates counts as one without: its convolutions get adapters.
        return _without_gates(linear) or _without_gates(convs[1:])

    # Each pattern is a name, or the end of one, such as `qkv` for all of `blocks.N.attn.qkv`.
    chosen: set[str] = set()
    for pattern in patterns:
        fitting = [layer_name for layer_name in layers if f".{layer_name}".endswith(f".{pattern}")]
        if not fitting:
            ends = sorted({layer_name.rpartition(".")[2] for layer_name in layers})
            raise UserError(
                f"--tune lora:targets={pattern}: {name} has no such linear layer or convolution"
                f"{nearest(pattern, ends)}; its layers are called {', '.join(ends[:12])}"
            )
        chosen.update(fitting)
    return sorted(chosen)


def _without_gates(layer_names: Sequence[str]) -> list[str]:
    return [
        layer_name
        for layer_name in layer_names
        if not re.search(r"(^|\.)(se|gate|attn_se)(\.|$)", layer_name)
    ]


def add_adapters(model: TimmModel, adapters: Adapters, images: Tensor, name: str) -> None:
    """Add adapters to a model, in place, and freeze everything else.

    Layers whose weights the model reads without calling them (the queries of EVA's attention) cannot have one.

    Args:
        model: a timm model.
        adapters: which, and where.
        images: (B, C, H, W), of any content.
        name: of the model, for messages.

    Raises:
        UserError: PEFT is missing, nothing fits the targets, or PEFT refuses a layer.
    """
    try:
        import peft
    except ImportError as error:
        raise UserError(
            f"adapters (--tune lora) need PEFT ({one_line(error)}): pip install peft"
        ) from error

    chosen = target_layers(model, adapters.targets, name)
    if not chosen:
        raise UserError(
            f"--tune lora: {name} has no linear layer or convolution to adapt; see --tune"
        )

    # In a layer that the model reads without calling it an adapter would have no effect.
    targets = _called(model, chosen, images)
    # Of a choice of ours such layers are left out; of one that was typed somebody should know.
    passed = [layer_name for layer_name in chosen if layer_name not in targets]
    if passed and (adapters.targets or not targets):
        raise UserError(
            f"--tune lora:targets: {name} reads the weights of {passed[0]} without calling the layer, "
            "an adapter there would have no effect"
        )

    # PEFT takes a fraction for alpha as well, whatever its annotation says.
    alpha = 2 * adapters.rank if adapters.alpha is None else adapters.alpha
    logger.info(
        f"--tune lora: {adapters.kind} of rank {adapters.rank} at {len(targets)} layers, {first_of(targets)}"
    )
    config = peft.LoraConfig(
        r=adapters.rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]  # it only divides it by the rank
        lora_dropout=adapters.dropout,
        target_modules=targets,
        use_dora=adapters.kind == "dora",
        use_rslora=adapters.kind == "rslora",
    )
    try:
        peft.inject_adapter_in_model(config, model, ADAPTER)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UserError(
            f"--tune lora: {name} does not take adapters at {targets[0]}: {one_line(error)}"
        ) from error


@torch.inference_mode()
def _called(model: nn.Module, layer_names: Sequence[str], images: Tensor) -> list[str]:
    """Return those of some modules that a forward pass calls."""
    # In evaluation mode, so that batch norm learns nothing of images that are made up.
    called = set()
    training = model.training
    hooks = [
        model.get_submodule(layer_name).register_forward_hook(
            lambda *_, name=layer_name: called.add(name)
        )
        for layer_name in layer_names
    ]
    model.eval()(images)
    model.train(training)
    for hook in hooks:
        hook.remove()
    return [layer_name for layer_name in layer_names if layer_name in called]


def has_adapters(model: nn.Module) -> bool:
    return hasattr(model, "peft_config")


@torch.no_grad()
def merge_adapters(model: nn.Module) -> None:
    """Add the adapters of a model to its weights, in place, so that it is a plain timm model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    # The list is made first, because the modules change under it.
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            model.set_submodule(name, module.get_base_layer())
    del model.peft_config
