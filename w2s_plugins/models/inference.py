"""A frozen model in the form that is fastest without autograd, equal to the plain one within rounding.

Branches that exist for training alone are merged by timm, and batch norm goes into the convolution or linear layer
before it. Each change is checked against the plain model on random images, and left out where outputs or features
differ.

Also how any model, frozen or trained, goes over a loader: `run_over`.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypedDict

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from timm.utils.model import reparameterize_model
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from ..distributed.world import Precision
from ..errors import logger
from ..private_names import (
    TorchDispatchMode,
    is_amx_tile_supported,
    is_avx512_bf16_supported,
    tree_leaves,
)

TOLERANCE = 1e-4  # of the largest value of an output
# exactly these, no subclass that does more
LAYERS = (nn.Conv1d, nn.Conv2d, Conv2dSame, nn.Linear)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, BatchNormAct2d)
# methods that timm's reparameterize_model calls
REPARAMETERIZE = ("fuse", "reparameterize", "switch_to_deploy")


class CompileOptions(TypedDict):
    """Arguments of torch.compile."""

    backend: str
    mode: str | None


def inference_form(model: nn.Module, input_size: tuple[int, int, int]) -> nn.Module:
    """Return a model that computes what ``model`` does in evaluation mode, in less time.

    Args:
        model: a timm model in evaluation mode; it stays as it is. Weights that need no change are shared with it.
        input_size: (C, H, W) of its images.

    Returns:
        A model whose logits, feature levels and pre-logits differ from those of ``model`` by at most `TOLERANCE`
        of their largest value in float32; ``model`` itself where nothing can be gained.
    """
    # Each change is tried on random images, and what fails or differs is left out.
    parameter = next(model.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *input_size, generator=generator).to(parameter)
    form = model
    for change in (merge_branches, fold_batch_norms):
        try:
            changed = change(form, images)
            difference = 0.0 if changed is form else _difference(changed, model, images)
            if difference > TOLERANCE:
                raise RuntimeError(f"changes outputs by {difference:.2g} of the largest")
            form = changed
        # Whatever a model does that nobody thought of: its plain form works.
        except Exception as error:
            logger.debug(f"{type(model).__name__}: {change.__name__} is left out: {error!r}")
    return form


def cpu_has_bfloat16_units() -> bool:
    """True where an x86 CPU multiplies matrices in bfloat16 (AMX, AVX512-BF16); elsewhere it is emulated."""
    return is_amx_tile_supported() or is_avx512_bf16_supported()


def inference_dtype(precision: Precision) -> torch.dtype:
    """Return the dtype of a frozen model: autocast's or the student's where the device is fast in it, else float32."""
    # Emulated dtypes are slower than float32.
    dtype = precision.amp_dtype or precision.dtype
    if precision.device.type != "cpu":
        return dtype
    is_fast = dtype == torch.bfloat16 and cpu_has_bfloat16_units()
    return dtype if is_fast else torch.float32


def run_over(
    model: Callable[[Any], Any],
    batches: Iterable[tuple[Any, Tensor]],
    precision: Precision,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what a model gives for each batch, and the labels: the one way in which a model goes over a loader.

    Whoever collects says how autograd is: `torch.no_grad` or `torch.inference_mode` around its loop.

    Args:
        model: from images to logits (B, C) or features (B, D).
        batches: images and labels.
        precision: device, dtype and memory layout of the images, and autocast.
    """
    for images, labels in batches:
        # NaFlex patches, and the views of several teachers, come together and are on the device already.
        if isinstance(images, Tensor):
            images = images.to(device=precision.device, dtype=precision.dtype)
            images = images.contiguous(memory_format=precision.layout)
        with precision.autocast():
            output = first_output(model(images))
        yield output, labels.to(precision.device)


def in_full_batches(ask: Callable[[Tensor], Tensor], size: int) -> Callable[[Tensor], Tensor]:
    """Return a model that is always asked about ``size`` images: fewer are filled up with the last one of them."""

    def ask_full(images: Tensor) -> Tensor:
        missing = size - len(images)
        if missing > 0:
            images = torch.cat([images, images[-1:].expand(missing, *images.shape[1:])])
        return ask(images)[: size - missing]

    return ask_full


def first_output(output: Tensor | tuple | list) -> Tensor:
    """Return the logits of a model. Some models return a tuple whose first item they are."""
    return output[0] if isinstance(output, (tuple, list)) else output


def _passes(model: nn.Module) -> list[Callable[[Tensor], object]]:
    """Return the ways in which a run may use a teacher: for logits and, with timm's interface, for features."""
    forward_intermediates = getattr(model, "forward_intermediates", None)
    forward_head = getattr(model, "forward_head", None)
    if forward_intermediates is None or forward_head is None:
        return [model]

    def features(images: Tensor) -> list[Tensor]:
        final, maps = forward_intermediates(images)
        return [*maps, forward_head(final, pre_logits=True)]

    return [model, features]


@torch.inference_mode()
def _difference(changed: nn.Module, plain: nn.Module, images: Tensor) -> float:
    """Return the largest difference of an output, relative to its largest value."""
    ours, theirs = (
        tree_leaves([run(images) for run in _passes(form)]) for form in (changed, plain)
    )
    relative = []
    for a, b in zip(ours, theirs, strict=True):
        largest = b.abs().max().clamp(min=1e-12)
        relative.append((a - b).abs().max() / largest)
    return torch.stack(relative).nan_to_num(torch.inf).max().item()


def _copy(model: nn.Module) -> nn.Module:
    """Return other modules with the same weights."""
    # deepcopy takes what its memo holds for copied already
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def merge_branches(model: nn.Module, images: Tensor) -> nn.Module:
    """Let timm merge the branches of RepVGG, MobileOne and the like."""
    if not any(hasattr(m, name) for m in model.modules() for name in REPARAMETERIZE):
        return model
    return reparameterize_model(_copy(model), inplace=True).eval().requires_grad_(False)


@torch.no_grad()
def fold_batch_norms(model: nn.Module, images: Tensor) -> nn.Module:
    """Fold batch norm into the layer before it; the activation of timm's norm layers stays."""
    if not any(type(m) in BATCH_NORMS for m in model.modules()):
        return model
    # Pairs in every way of use; what one of them reads in between must stay.
    pairs = set.intersection(*(_find_pairs(model, run, images) for run in _passes(model)))
    form = _copy(model)
    for layer_name, norm_name in pairs:
        norm = form.get_submodule(norm_name)
        _fold(form.get_submodule(layer_name), norm)
        form.set_submodule(norm_name, getattr(norm, "act", nn.Identity()))
    return form.eval().requires_grad_(False)


def _fold(layer: nn.Module, norm: nn.Module) -> None:
    """Put mean and scale of a batch norm into weight and bias of the layer before it."""
    if not isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
        raise TypeError(f"{type(norm).__name__} is no batch norm")
    # Without running statistics there is no constant that could be folded.
    if norm.running_mean is None or norm.running_var is None:
        raise TypeError("a batch norm without statistics depends on its batch")
    statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    if isinstance(layer, nn.Linear):
        layer.weight, layer.bias = fuse_linear_bn_weights(layer.weight, layer.bias, *statistics)
    elif isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        layer.weight, layer.bias = fuse_conv_bn_weights(layer.weight, layer.bias, *statistics)
    else:
        raise TypeError(f"{type(layer).__name__} has no weights to fold into")


class _Reads(TorchDispatchMode):
    """Counts the operations that read each tensor."""

    def __init__(self):
        super().__init__()
        self.counts: Counter[int] = Counter()

    def __torch_dispatch__(
        self,
        func: Callable,
        types: object,
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> object:
        # A reshape counts as well: who reads its result reads the tensor.
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self.counts[id(leaf)] += 1
        return func(*args, **(kwargs or {}))


def _find_pairs(
    model: nn.Module,
    run: Callable[[Tensor], object],
    images: Tensor,
) -> set[tuple[str, str]]:
    """Return the names of layers and batch norms such that the norm, and nothing else, reads the layer's output.

    Both work once in a run. A tensor is followed by its identity, so one that was reshaped in between is no pair.
    """
    names = {module: name for name, module in model.named_modules()}
    reads = _Reads()
    calls: Counter[nn.Module] = Counter()
    # outputs of layers by their identities; they are kept, so that identities stay theirs
    made: dict[int, tuple[nn.Module, Tensor]] = {}
    normed: list[tuple[int, nn.Module]] = []

    def after(layer: nn.Module, args: tuple, output: Tensor) -> None:
        if type(layer) not in LAYERS:
            return
        calls[layer] += 1
        # the features of a linear layer are what a norm takes for channels in (B, D) alone
        if type(layer) is not nn.Linear or output.ndim == 2:
            reads.counts[id(output)] = 0
            made[id(output)] = (layer, output)

    def before(norm: nn.Module, args: tuple) -> None:
        if type(norm) in BATCH_NORMS and norm.running_mean is not None:
            calls[norm] += 1
            if id(args[0]) in made:
                normed.append((id(args[0]), norm))

    # Watch one run, in which every layer notes its output and every norm its input.
    watch_layers = register_module_forward_hook(after)
    watch_norms = register_module_forward_pre_hook(before)
    with torch.inference_mode(), watch_layers, watch_norms, reads:
        returned = {id(leaf) for leaf in tree_leaves(run(images))}

    # What is read by others too, is an output of the model, or is called twice is no pair.
    pairs = set()
    for key, norm in normed:
        layer, _ = made[key]
        is_read_once = reads.counts[key] == 1 and key not in returned
        if is_read_once and calls[layer] == calls[norm] == 1:
            pairs.add((names[layer], names[norm]))
    return pairs
