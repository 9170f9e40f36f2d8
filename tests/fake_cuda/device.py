"""A CUDA whose tensors have no content: a step of training runs on it, and each call that a real one would wait for is
noted with the place that made it.

It sees what torch is asked to do: neither races nor values, and nothing of what the device makes of it. The library of
guard.cpp has to be loaded before torch is imported; the process has no other CUDA from then on.
"""

import collections
import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda:0")
ROOT = Path(__file__).parents[2]
OURS = tuple(str(ROOT / name) for name in ("train_w2s.py", "w2s_plugins", "tests"))
FAKE = FakeTensorMode(allow_non_fake_inputs=True)


class Stream:
    """A stream in which nothing happens."""

    device = CUDA

    def __init__(self, device: object = None):
        pass

    def wait_stream(self, other: object) -> None:
        pass

    def synchronize(self) -> None:
        pass


class Generator(torch.Generator):
    """A generator that draws nothing there."""

    def __new__(cls, device: object = None) -> torch.Generator:
        return super().__new__(cls)


torch.Generator = Generator
torch.cuda.Stream = Stream
torch.cuda.current_stream = lambda device=None: Stream()
torch.cuda.stream = lambda stream: contextlib.nullcontext()
torch.cuda.manual_seed_all = lambda seed: None
torch.cuda.is_bf16_supported = lambda *args: True
torch.cuda.amp.common.amp_definitely_not_available = lambda: False
FakeTensor.record_stream = lambda tensor, stream: None
for module in ("torch.utils._foreach_utils", "torch.optim.optimizer"):  # lists of these are one call on a real one too
    importlib.import_module(module)._foreach_supported_types.append(FakeTensor)

class Watch(TorchDispatchMode):
    """Notes what the device is waited for, by file and function, with the kind of wait."""

    def __init__(self):
        super().__init__()
        self.waits = collections.Counter()

    def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        kwargs, name = kwargs or {}, func._schema.name.removeprefix("aten::")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        devices = {t.device.type for t in tensors if t.ndim or t.device.type == "cuda"}
        to = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
        if "cuda" not in {*devices, to}:
            return self._answer(func, name, args, kwargs) if name == "_local_scalar_dense" else func(*args, **kwargs)
        if self._waits(name, args, kwargs, devices, to):
            self.waits[f"{place()}: {name}"] += 1
        return self._answer(func, name, args, kwargs)

    @staticmethod
    def _waits(name: str, args: tuple, kwargs: dict, devices: set[str], to: str | None) -> bool:
        if name == "_to_copy":
            return to is not None and to not in devices and not kwargs.get("non_blocking")
        if name == "copy_":
            return len(devices) > 1 and not (len(args) > 2 and args[2])
        if name.startswith("index"):
            return any(index is not None and (index.dtype == torch.bool or (index.device.type == "cpu" and index.ndim))
                       for index in args[1]) if isinstance(args[1], (list, tuple)) else False
        if name == "repeat_interleave":
            return not kwargs.get("output_size")
        return name in {"_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "unique_consecutive",
                        "masked_select", "bincount", "equal", "histc", "multinomial"}

    @staticmethod
    def _answer(func: Callable, name: str, args: tuple, kwargs: dict) -> object:
        """What a device would answer where that depends on content; its own sizes stand for those that depend on it."""
        if name == "_local_scalar_dense":
            return {torch.bool: True}.get(args[0].dtype, 1.0 if args[0].is_floating_point() else 1)
        if name == "equal":
            return True
        if name in {"index", "index_put", "index_put_"} and any(
                index is not None and index.dtype == torch.bool for index in args[1]):
            indices = [index if index is None or index.dtype != torch.bool else
                       index.new_zeros(len(index), dtype=torch.long) for index in args[1]]
            return func(args[0], indices, *args[2:], **kwargs)
        if name in {"nonzero", "masked_select"}:
            count = args[0].numel()
            return args[0].new_empty(count, args[0].ndim, dtype=torch.long) if name == "nonzero" else (
                args[0].new_empty(count))
        if name == "_unique2":
            whole = args[0].new_empty(args[0].numel(), dtype=torch.long)
            return args[0].new_empty(max(1, args[0].numel() - 1)), whole, whole[1:]
        if name == "bincount":
            return args[0].new_empty(kwargs.get("minlength") or args[2])
        return func(*args, **kwargs)


def place() -> str:
    """The file and the function of the project that an operation is of; those of an optimizer are its own."""
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.endswith("torch/optim/optimizer.py"):
            return "optimizer"
        name = frame.f_code.co_name
        if path.startswith(OURS) and path != __file__ and not name.startswith("<"):
            return f"{Path(path).relative_to(ROOT)}:{name}"
        frame = frame.f_back
    return "elsewhere"


def on_cuda(module: nn.Module) -> nn.Module:
    """Move a module there, in place; tensors that are shared stay so."""
    moved: dict[int, object] = {}
    for part in module.modules():
        for kept in (part._parameters, part._buffers):
            for name, tensor in kept.items():
                if tensor is None or tensor.device == CUDA:
                    continue
                if id(tensor) not in moved:
                    with unset_fake_temporarily():
                        meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
                    fake = FakeTensor(FAKE, meta, CUDA)
                    moved[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if isinstance(
                        tensor, nn.Parameter) else fake
                kept[name] = moved[id(tensor)]
    return module


_to = nn.Module.to
nn.Module.to = lambda module, *args, **kwargs: (  # the original swaps tensors, which fails where they are there already
    on_cuda(module) if args and args[0] == CUDA else _to(module, *args, **kwargs))


@contextlib.contextmanager
def fake_cuda() -> Iterator[Watch]:
    """Tensors are made there inside the block, and what is asked of it is noted."""
    with FAKE, Watch() as watch:
        yield watch
