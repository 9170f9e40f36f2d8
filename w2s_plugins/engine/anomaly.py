"""``--detect-anomaly``: which module gave the first value that is not finite, forward or backward."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import UserError, one_line
from ..run.position import Position


@contextmanager
def detect_anomaly(modules: Mapping[str, nn.Module], position: Position, scaled: bool = False) -> Iterator[None]:
    """End training at the first value that is not finite, and name the module that it came from.

    Every module's output is looked at after its forward pass, innermost modules first; every gradient of a parameter
    when it is there; and autograd's own mode names the function whose backward pass gave NaN. All of it waits for the
    device and takes time; outside this context nothing of it is there.

    Args:
        modules: what to look at, by the name that messages begin with.
        position: where training stands.
        scaled: gradients are scaled and may overflow, as with float16: only the forward pass is looked at.

    Raises:
        UserError: naming epoch, batch and module.
    """
    def place() -> str:
        return f"--detect-anomaly: epoch {position.epoch + 1}, batch {position.batch + 1}"

    def forward_hook(name: str) -> object:
        def look(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            if finite(output):
                return
            before = ", whose input was not finite already" if not finite((args, kwargs)) else ""
            raise UserError(f"{place()}: the output of {name} ({type(module).__name__}) is not finite{before}")
        return look

    def gradient_hook(name: str) -> object:
        def look(parameter: Tensor) -> None:
            if not finite(parameter.grad):
                raise UserError(f"{place()}: the gradient of {name} is not finite")
        return look

    handles = []
    try:
        for root, module in modules.items():
            for name, part in module.named_modules(prefix=root):
                handles.append(part.register_forward_hook(forward_hook(name), with_kwargs=True))
            handles += [p.register_post_accumulate_grad_hook(gradient_hook(name)) for name, p in
                        module.named_parameters(prefix=root) if p.requires_grad and not scaled]
        with torch.autograd.detect_anomaly(check_nan=not scaled):
            yield
    except RuntimeError as error:
        if "returned nan values" not in str(error):
            raise
        raise UserError(f"{place()}: in the backward pass: {one_line(error)} (the warning above shows where it was "
                        "called in the forward pass)") from error
    finally:
        for handle in handles:
            handle.remove()


def finite(value: object) -> bool:
    """True unless a tensor in a nested value has NaN or infinity in it."""
    return all(bool(t.isfinite().all()) for t in tree_leaves(value) if isinstance(t, Tensor) and t.is_floating_point())
