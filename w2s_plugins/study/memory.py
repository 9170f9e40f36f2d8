"""The memory that training a student takes, by what of it is trained and how: counted on tensors without content.

The training step is run on PyTorch's fake tensors, and the bytes of all that are alive are added up: two passes, the
recomputation of checkpointing, and the optimizer's step. What kernels and an allocator take for themselves is left out.
"""

import contextlib
import math
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from timm.data.model_config import resolve_input_data_config
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary

from ..build.flags import check_model_name, check_optimizer
from ..build.optimisation import take_bitsandbytes
from ..cli.values import split_names
from ..engine.task import first_output
from ..errors import UserError, one_line
from ..labels.writer import readable
from ..models.loading import create_model
from ..monitor import format_table
from ..students.tuning import Tuning, choose_trained, freeze_batchnorm

TUNES = ("all", "lora", "last:1", "norm", "bias", "head")
# dtype of the weights, and that of autocast
PRECISIONS = {"float32": (torch.float32, None), "amp": (torch.float32, torch.bfloat16),
              "bfloat16": (torch.bfloat16, None)}
FLAGS = {"float32": "float32", "amp": "--amp --amp-dtype bfloat16", "bfloat16": "--model-dtype bfloat16"}


def convolution_backward(
        grad_shape: Sequence[int],
        input_shape: Sequence[int],
        weight_shape: Sequence[int],
        *args: object,
        out_shape: object = None,
        **kwargs: object,
) -> int:
    """FLOPs of a convolution's backward pass: those of its forward pass for each of the two gradients.

    torch (2.13 at least) counts the gradient of the weight of a grouped convolution as if it had one group: forty times
    the forward pass for an EfficientNet.
    """
    transposed, mask = args[4], args[7]
    places = (input_shape if transposed else grad_shape)[2:]
    return 2 * grad_shape[0] * math.prod(places) * math.prod(weight_shape) * (bool(mask[0]) + bool(mask[1]))


_ATEN = torch.ops.aten
FORMULAS = {  # of what torch counts not at all, or otherwise
    _ATEN.convolution_backward: convolution_backward,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward:
        lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4]),
}


@dataclass(frozen=True)
class Setting:
    """What is trained, and how.

    Args:
        model: name of the student.
        teacher: names, with commas; None trains without.
        batch_size: B.
        num_classes: C.
        img_size: of the student; None is its own.
        opt: timm's name of the optimizer.
    """

    model: str
    teacher: str | None
    batch_size: int
    num_classes: int
    img_size: int | None
    opt: str


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step, and its FLOPs.

    Args:
        weights: parameters and buffers of the student, and of a teacher.
        gradients: at the end of the backward pass.
        optimizer: its state.
        activations: what the forward pass leaves for the backward pass, the images included.
        peak: the most that is alive at a time; gradients come as activations go.
        recovery: of a recovery checkpoint.
        flops: of one image.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int
    recovery: int
    flops: int


class Alive(TorchDispatchMode):
    """Adds up the bytes of the tensors that are made in it and are alive; ``peak`` is the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._seen = WeakIdKeyDictionary()

    def __torch_dispatch__(
            self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._seen:
                self._seen[storage] = None
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return output

    def _add(self, size: int) -> None:
        self.bytes += size
        self.peak = max(self.peak, self.bytes)


def step_memory(
        model: nn.Module,
        teachers: Sequence[nn.Module],
        sizes: Sequence[tuple[int, ...]],
        opt: str,
        amp_dtype: torch.dtype | None = None,
) -> Memory:
    """Count what a training step takes.

    Args:
        model: on the meta device, with what is not trained frozen.
        teachers: on the meta device.
        sizes: (B, C, H, W) of the student's images, then of each teacher's.
        opt: timm's name of the optimizer.
        amp_dtype: of autocast, or None.
    """
    with FakeTensorMode(), Alive() as alive:
        for module in (model, *teachers):
            module._apply(lambda t: torch.empty(t.shape, dtype=t.dtype))
        weights = alive.bytes
        optimizer = create_optimizer_v2(model, opt=opt, lr=1e-3, weight_decay=0.05)
        model.train()
        freeze_batchnorm(model)
        counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
        with counter:  # this step makes the optimizer's state; the counter holds on to what it has seen
            _step(model, teachers, sizes, optimizer, amp_dtype, alive)
        before, alive.peak = alive.bytes, alive.bytes
        kept, gradients = _step(model, teachers, sizes, optimizer, amp_dtype, alive)
    state = sum(_bytes(tree_leaves(values)) for values in optimizer.state.values())
    frozen = _bytes(p for p in model.parameters() if not p.requires_grad)
    recovery = _bytes(model.state_dict().values()) - frozen + state
    return Memory(weights, gradients, state, kept - before, alive.peak, recovery,
                  counter.get_total_flops() // sizes[0][0])


def _step(
        model: nn.Module,
        teachers: Sequence[nn.Module],
        sizes: Sequence[tuple[int, ...]],
        optimizer: torch.optim.Optimizer,
        amp_dtype: torch.dtype | None,
        alive: Alive,
) -> tuple[int, int]:
    """Take a training step; return the bytes that are alive after the forward pass, and those of the gradients."""
    batches = [torch.empty(size, dtype=next(m.parameters()).dtype) for m, size in zip((model, *teachers), sizes)]
    with torch.autocast("cpu", amp_dtype, enabled=amp_dtype is not None):
        with torch.no_grad():
            answers = [first_output(teacher(images)) for teacher, images in zip(teachers, batches[1:])]
        loss = first_output(model(batches[0])).float().square().mean()
    kept = alive.bytes
    loss.backward()
    gradients = _bytes(p.grad for p in model.parameters() if p.grad is not None)
    del answers, loss
    optimizer.step()
    optimizer.zero_grad()
    return kept, gradients


def _bytes(tensors: Iterable[object]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


@contextlib.contextmanager
def _named(flag: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, AssertionError, ValueError, TypeError, NotImplementedError, ImportError) as error:
        raise UserError(f"{flag}: a step cannot be run without data: {one_line(error)}") from error


def count_memory(setting: Setting, tune: str, precision: str, checkpointing: bool) -> tuple[Memory, str] | None:
    """Return what a step takes, with the trained weights as a text; None where the student has no checkpointing.

    Raises:
        UserError: an unknown model or optimizer, a part that it has not, or one that cannot be run without data.
    """
    dtype, amp_dtype = PRECISIONS[precision]
    check_optimizer(setting.opt)
    take_bitsandbytes(setting.opt)
    with torch.device("meta"):
        made = [_create("--model", setting.model, setting.img_size, num_classes=setting.num_classes),
                *(_create("--teacher", name, None) for name in split_names(setting.teacher))]
        (model, size), teachers = made[0], made[1:]
        if checkpointing:
            try:
                model.set_grad_checkpointing(enable=True)
            except (AssertionError, AttributeError):
                return None
        choose_trained(model, Tuning(tune), torch.empty(1, *size), setting.model)
    for module in (model, *(teacher.eval() for teacher, _ in teachers)):
        module.to(dtype)
    with _named(f"--model {setting.model}, --opt {setting.opt}"):
        memory = step_memory(model, [teacher for teacher, _ in teachers],
                             [(setting.batch_size, *shape) for _, shape in made], setting.opt, amp_dtype)
    return memory, f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,}"


def _create(flag: str, name: str, img_size: int | None, **kwargs: object) -> tuple[nn.Module, tuple[int, int, int]]:
    check_model_name(flag, name)
    model = create_model(flag, name, pretrained=False, inputs=dict(img_size=img_size), **kwargs)
    return model, resolve_input_data_config(model, args=dict(img_size=img_size))["input_size"]


def describe_memory(setting: Setting, tunes: Sequence[str], precisions: Sequence[str]) -> str:
    """Return a table for each precision: a line for each part that is trained, with and without checkpointing."""
    lines = []
    for precision in precisions:
        rows = []
        for tune in tunes:
            for checkpointing in (False, True):
                if (found := count_memory(setting, tune, precision, checkpointing)) is None:
                    continue
                memory, trained = found
                rows.append([tune, "yes" if checkpointing else "-", trained, *map(readable, (
                    memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.peak,
                    memory.recovery)), f"{memory.flops / 1e9:,.4g}"])
        lines += ["", f"{FLAGS[precision]}:", "", format_table(rows, [
            "--tune", "checkpointing", "trained", "weights", "gradients", "optimizer", "activations", "in all",
            "recovery file", "GFLOPs an image"])]
    return "\n".join([
        f"{setting.model}{f' <- {setting.teacher}' if setting.teacher else ''}, batches of {setting.batch_size}, "
        f"--opt {setting.opt}", *lines, "",
        "In all: the most that is alive at a time; gradients come as activations go. What kernels, the allocator and "
        "CUDA take",
        "for themselves, and what a loss keeps, is left out. Checkpointing: --grad-checkpointing."])
