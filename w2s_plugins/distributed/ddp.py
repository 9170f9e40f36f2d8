"""DistributedDataParallel without what costs time and changes nothing.

DDP makes gradients views into its buckets. A loss of features without ground truth leaves the head without gradient:
the task then detaches the logits it returns and asks for a static graph, or, with accumulation, whose `no_sync` must
not come before a static graph is known, for a search of unused parameters. Other losses need neither. Of buffers, DDP
is left those that training reads and changes: tables outside checkpoints never change, the memory of a loss is the
same on all ranks, and batch norm in training does not read its statistics. Unless `--no-ddp-bb`, those of rank 0 are
sent once, before the last update of an epoch, which leaves to the last bit what a broadcast at every step leaves (an
average of weights keeps each rank's own until `--dist-bn`).
"""

import torch.distributed as dist
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of batch norm


def ddp_options(task: TrainingTask, *, broadcast_buffers: bool, accum_steps: int) -> dict[str, bool]:
    """Return what a task passes to DDP. Gradients are views into DDP's buckets, which saves a copy of them.

    Args:
        task: a task that is to be distributed.
        broadcast_buffers: rank 0's buffers count, as with timm's script without ``--no-ddp-bb``.
        accum_steps: batches per update.
    """
    options = dict(broadcast_buffers=broadcast_buffers, gradient_as_bucket_view=True)
    if getattr(task, "leaves_unused", False) and accum_steps == 1:  # a static graph must not begin in `no_sync`
        options["static_graph"] = True
    return options


def skip_buffers(module: nn.Module, *, statistics: bool = False) -> None:
    """Let DDP leave out buffers that need not be sent at every step.

    They are tables that the constructor makes, which are in no checkpoint and never change; the memory of a loss and
    the weights of teachers, which are the same on every rank; and with ``statistics`` those of batch norm, see
    `share_statistics`.
    """
    # tables of the constructor, what is the same on every rank, and statistics that are sent once an epoch
    kept = module.state_dict().keys()
    names = {name for name, _ in module.named_buffers()
             if name not in kept or name.removeprefix("_orig_mod.").startswith(("loss.", "mix."))
             or (statistics and name.endswith(STATISTICS))}
    # what the module itself leaves out
    names.update(getattr(module, "_ddp_params_and_buffers_to_ignore", ()))
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)


def share_statistics(module: nn.Module) -> None:
    """Give all ranks the batch norm statistics of rank 0.

    Training does not read them. So before the last step of an epoch this leaves behind, to the last bit, what DDP's
    broadcast at every step would.
    """
    for name, buffer in unwrap_model(module).named_buffers():
        if name.endswith(STATISTICS):
            dist.broadcast(buffer, 0)
