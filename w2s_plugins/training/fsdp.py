"""Students that do not fit one device: PyTorch's `fully_shard` (FSDP2) on the student's blocks.

Every rank keeps one part in N of each parameter, of its gradient and of the optimizer's state, and the whole of one
block while that block runs. What is in no block (embeddings, the last norm, the head, parameters of the loss) forms one
more group, whole during a step.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from timm.task import TrainingTask
from timm.utils.model import unwrap_model
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from ..distributed.world import Precision, World
from ..errors import UserError, logger, one_line
from ..models.inference import first_output
from ..models.loading import TimmModel, of_timm
from .device import CompileOptions
from .task import StudentModule, evaluated_model, trained_module

SMALLEST_SHARE = 0.001  # of the parameters; smaller modules are not worth an exchange of their own
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class ShardedModel(nn.Module):
    """A sharded model, for evaluation and export.

    Args:
        model: the sharded model; `timm.utils.unwrap_model` returns it.
        empty: the same model without weights, from `empty_copy`.
        root: the outermost sharded module.
        run: runs the model through ``root``.
    """

    def __init__(
        self, model: nn.Module, empty: nn.Module, root: nn.Module, run: Callable[[Tensor], Tensor]
    ):
        super().__init__()
        self.module = model
        self._parts = empty, root, run  # in a tuple, so that they are not registered again

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C) without autograd. All ranks must call it equally often."""
        _, root, run = self._parts
        with torch.no_grad():
            logits = first_output(run(images))
        if isinstance(root, FSDPModule):
            root.reshard()
        return logits

    def gather(self) -> TimmModel | None:
        """Return the model with all its weights on the CPU, on rank 0; None elsewhere. All ranks must call it."""
        # Tensor by tensor, since the whole model need not fit the device of rank 0; others get nothing.
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(self.module, options=options)
        if not state:
            return None
        model = of_timm(copy.deepcopy(self._parts[0]))
        model.load_state_dict(state, assign=True)
        return model


def shard(
    task: TrainingTask,
    precision: Precision,
    world: World,
    compile_options: CompileOptions | None = None,
) -> None:
    """Shard the student with its loss and its average over all ranks, in place.

    Parameters become other objects: the optimizer is made afterwards.

    Args:
        task: of the student.
        precision: the dtype in which blocks are gathered.
        world: this process.
        compile_options: of `torch.nn.Module.compile` for the blocks; None does not compile them.
    """
    # One process without torchrun is a group of its own, so that sharding can be tried there.
    if not dist.is_initialized():
        backend = "gloo" if world.device.type == "cpu" else "nccl"
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]  # as torch documents it
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    # Blocks are found, and an empty copy is made, while parameters are still plain tensors.
    mesh = init_device_mesh(world.device.type, (world.size,))
    student, root = unwrap_model(evaluated_model(task)), trained_module(task)
    blocks = find_blocks(student)
    empty = empty_copy(student)
    if compile_options:  # the hooks that gather and free the weights stay outside
        for block in blocks:
            block.compile(**compile_options)
    shard_model(student, blocks, root, precision, mesh)
    kept = sum(p.to_local().numel() for p in student.parameters())
    logger.info(
        f"Student sharded over {world.size} process(es): {kept} of {size(student)} parameters are on this "
        f"one; {len(blocks)} blocks are gathered one by one, the rest for the whole of a step"
    )
    # An evaluation goes through the root as training does, so that its hooks gather the weights.
    if isinstance(root, StudentModule):
        register_fsdp_forward_method(root, "predict")
    task.eval_model = ShardedModel(
        student, empty, root, root.predict if isinstance(root, StudentModule) else root
    )
    task.device = world.device
    if isinstance(task.criterion, nn.Module):
        task.criterion.to(world.device)
    # The average has the same blocks, so that both are updated shard by shard.
    if task.has_ema():
        average = trained_module(task, average=True)
        if not isinstance(average, ModelEmaV3):
            raise RuntimeError(f"the average of a task is a {type(average).__name__}")
        average.foreach = False  # its lists would mix sharded parameters with buffers
        model = average.module
        shard_model(model, find_blocks(model), model, precision, mesh)
        task.eval_model_ema = ShardedModel(model, empty, model, model)


def shard_model(
    model: nn.Module,
    blocks: list[nn.Module],
    root: nn.Module,
    precision: Precision,
    mesh: DeviceMesh,
) -> None:
    """Shard each block on its own and what is left of ``root``, which holds ``model``, as one more group.

    With mixed precision the blocks are gathered in its dtype, which halves what is sent; gradients are summed in
    float32, and what is in no block stays in float32 and is left to autocast. The kernels of batch norm want its
    parameters in float32, so models with it are gathered in float32 throughout.
    """
    # The dtype in which blocks are gathered is not that of their shards, which stay in float32 for the optimizer.
    has_batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    # What is sent is halved in half precision; sums of gradients over many ranks would lose digits in it.
    policy = MixedPrecisionPolicy(
        param_dtype=None if has_batch_norm else precision.amp_dtype, reduce_dtype=torch.float32
    )
    try:
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(
            root,
            mesh=mesh,
            mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False),
        )
    except (NotImplementedError, ValueError) as error:
        raise UserError(f"--fsdp: this model cannot be sharded: {one_line(error)}") from error


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks of a model: the members of its lists and sequences of modules.

    Where most of a member is again in such lists, as with the stages of hierarchical models, theirs are taken instead.
    Modules that share a parameter with others, and those with hardly any, are no blocks.
    """
    # A parameter in two blocks would be gathered by one and missing in the other.
    places = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    smallest = SMALLEST_SHARE * size(model)
    return [
        block
        for block in _members(model)
        if size(block) >= smallest and all(places[id(p)] == 1 for p in block.parameters())
    ]


def _members(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        # From the inside out: what of a child are blocks decides whether the child itself is one.
        inner = list(_members(child))
        if isinstance(module, CONTAINERS) and not isinstance(child, CONTAINERS):
            inner = [m for m in inner if any(m.children())]  # not the layers of a block
            yield from inner if 2 * sum(map(size, inner)) >= size(child) else [child]
        else:
            yield from inner


def size(module: nn.Module) -> int:
    """Return the number of parameters of a module."""
    return sum(p.numel() for p in module.parameters())


def empty_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model whose parameters are on the meta device: shapes without memory."""
    # A copy that finds its parameters made already does not copy their content.
    memo = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, memo)
