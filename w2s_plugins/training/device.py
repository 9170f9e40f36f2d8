"""The device and the other processes."""

import datetime
import importlib
import os
from typing import overload

import torch
import torch.distributed as dist
from timm.layers.fast_norm import set_fast_norm
from timm.utils.cuda import NativeScaler
from timm.utils.distributed import init_distributed_device_so
from timm.utils.jit import set_jit_fuser
from timm.utils.random import random_seed
from torch import nn

from ..distributed.world import Precision, World
from ..errors import UserError, logger, one_line
from ..models.inference import CompileOptions, cpu_has_bfloat16_units
from ..models.loading import is_transformer
from ..settings.concerns import ComputeSettings


def join_processes(settings: ComputeSettings) -> World:
    """Choose the device, join the other processes, and say where the work is done."""
    # Faster kernels, which round a little otherwise; --deterministic leaves the search for them out.
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
    world = join_group(settings.device)
    how = settings.model_dtype or "float32"
    if settings.amp:
        how = f"mixed precision in {settings.amp_dtype}"
    logger.info(f"{world.size} process(es) on {world.device}, {how}")
    if settings.fuser:
        set_jit_fuser(settings.fuser)
    if settings.fast_norm:
        set_fast_norm()
    return world


def join_group(device: str, timeout: float = 600) -> World:
    """Join the process group, once: the runs of a protocol follow each other in one group.

    Args:
        device: that of the flags; of several processes each takes its own.
        timeout: seconds that an exchange between processes may take before it fails.
    """
    # A later run of a protocol: the group is there, and each process keeps its device.
    if dist.is_initialized() and dist.get_world_size() > 1:
        if device != "cpu":
            device = f"{device.split(':')[0]}:{os.environ.get('LOCAL_RANK', '0')}"
        return World(torch.device(device), dist.get_rank(), dist.get_world_size(), True)
    try:
        # torchrun, SLURM and MPI say in their own variables who is who; timm knows them all.
        joined = init_distributed_device_so(device)
    except (dist.DistNetworkError, ValueError) as error:  # or the environment lacks what says where
        raise UserError(
            f"the processes cannot meet: {one_line(error)}; give each run its own MASTER_PORT"
        ) from error
    if joined["distributed"]:
        # torch 2.15 has a public name for it
        set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
        set_timeout(datetime.timedelta(seconds=timeout))
    return World(
        torch.device(str(joined["device"])),
        int(joined["global_rank"]),
        int(joined["world_size"]),
        bool(joined["distributed"]),
    )


def setup_device(settings: ComputeSettings, seed: int) -> World:
    """Join the other processes and set what training needs globally; ``seed`` decides the initial weights."""
    # Backends of other accelerators register themselves when they are imported.
    for module in settings.device_modules or ():
        logger.info(f"--device-modules {module}: is imported, which runs its code")
        try:
            importlib.import_module(module)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"--device-modules {module}: cannot be imported: {one_line(error)}"
            ) from error
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        # It finds errors, and costs time. torch makes the attribute when it is imported.
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    torch.use_deterministic_algorithms(settings.deterministic, warn_only=True)
    world = join_processes(settings)
    random_seed(seed, 0)  # the same initial weights on every rank
    return world


def place_model(
    model: nn.Module, device: torch.device, settings: ComputeSettings
) -> torch.memory_format:
    """Bring a model to its device, dtype and memory layout, in place; return the layout."""
    model.to(device=device, dtype=named_dtype(settings.model_dtype))
    layout = choose_layout(model, device, settings)
    if layout is torch.channels_last:
        model.to(memory_format=layout)  # pyright: ignore[reportCallIssue]  # torch's own types lack it
    return layout


def choose_layout(
    model: nn.Module, device: torch.device, settings: ComputeSettings
) -> torch.memory_format:
    """Return the memory layout that was asked for, else the one that is faster, by rule and not by a stopwatch.

    On a CPU convolutions are faster with channels last (PyTorch's blog, "Accelerating PyTorch Vision Models with Channels
    Last on CPU", 2022), on tensor cores in half precision ("Channels Last Memory Format in PyTorch", of its tutorials).
    Transformers have one convolution, which cuts images into patches, and stay as timm has them.
    """
    channels_last = settings.channels_last
    if channels_last is None and not settings.fsdp:
        in_half = settings.amp or settings.model_dtype in ("float16", "bfloat16")
        is_faster = device.type == "cpu" or (device.type == "cuda" and in_half)
        convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        channels_last = is_faster and len(convolutions) > 1 and not is_transformer(model)
    return torch.channels_last if channels_last else torch.contiguous_format


def note_faster_dtype(model: nn.Module, device: torch.device, settings: ComputeSettings) -> None:
    """Log the flags that make training faster on this CPU, which stay a choice because they round otherwise.

    On units for bfloat16, ResNets, ViTs, DenseNet and VGG took 0.44 to 0.79 of the time of a step. Depthwise convolutions
    took longer.
    """
    is_grouped = any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in model.modules())
    is_chosen = settings.amp or settings.model_dtype is not None
    if device.type == "cpu" and not is_chosen and not is_grouped and cpu_has_bfloat16_units():
        logger.info(
            "This processor is faster in bfloat16: --amp --amp-dtype bfloat16 trains such a network in less time"
        )


def first_device(sharded: bool, world: World) -> torch.device:
    """Return where a model is made: on the CPU when it is to be sharded, for the whole may not fit the device."""
    return torch.device("cpu") if sharded else world.device


def create_precision(
    settings: ComputeSettings,
    world: World,
    layout: torch.memory_format = torch.contiguous_format,
) -> Precision:
    """Return the dtype and layout of images and model, and autocast with its scaler."""
    # float16 alone needs a scaler: bfloat16 has the exponents of float32, so small gradients do not become 0.
    amp_dtype = named_dtype(settings.amp_dtype) if settings.amp else None
    scaler = NativeScaler(device=world.device.type) if amp_dtype == torch.float16 else None
    dtype = named_dtype(settings.model_dtype) or torch.float32
    return Precision(world.device, dtype, amp_dtype, scaler, layout)


@overload
def named_dtype(name: str) -> torch.dtype: ...
@overload
def named_dtype(name: None) -> None: ...
def named_dtype(name: str | None) -> torch.dtype | None:
    """Return torch's dtype of this name; None without a name."""
    return getattr(torch, name) if name else None


def compile_options(settings: ComputeSettings) -> CompileOptions | None:
    """Return the arguments of torch.compile, or None without ``--torchcompile``."""
    if not settings.torchcompile:
        return None
    return CompileOptions(backend=settings.torchcompile, mode=settings.torchcompile_mode)
