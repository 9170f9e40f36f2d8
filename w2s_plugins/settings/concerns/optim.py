"""Optimizer, schedule, and the average of the weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ..field import Concern, Count, Factor, NonNegative, Positive, Range, Role, Share, Whole, flag


@dataclass(frozen=True, kw_only=True)
class OptimSettings(Concern, role=Role.SCHEDULE):
    """Optimizer, schedule, and the average of the weights."""

    # one step of the optimizer
    grad_accum_steps: Count = flag(1, "batches per update", role=Role.MODEL)
    opt: str = flag("sgd", "optimizer, one of timm's", role=Role.STATE | Role.OPTIMIZER)
    opt_eps: NonNegative | None = flag(None, "epsilon of the optimizer", role=Role.OPTIMIZER)
    opt_betas: Sequence[Share] | None = flag(None, "betas of the optimizer", role=Role.OPTIMIZER)
    momentum: Share = flag(0.9, "momentum", role=Role.OPTIMIZER)
    weight_decay: NonNegative = flag(2e-05, "weight decay", role=Role.OPTIMIZER | Role.TUNING)
    # gradients
    clip_grad: Positive | None = flag(None, "gradient clipping value", role=Role.OPTIMIZER)
    clip_mode: Literal["norm", "value", "agc"] = flag(
        "norm", "norm, value or agc", role=Role.OPTIMIZER
    )
    # learning rates of parts of the network
    layer_decay: Share | None = flag(
        None,
        "learning-rate decay from layer to layer",
        role=Role.STATE | Role.OPTIMIZER,
        idle="--linear-probe",
    )
    layer_decay_min_scale: Share = flag(0, "smallest scale of layer decay", role=Role.OPTIMIZER)
    layer_decay_no_opt_scale: Share | None = flag(
        None, "layers below this scale are not trained", role=Role.OPTIMIZER
    )
    # whatever else the optimizer of timm takes
    opt_kwargs: Mapping[str, Any] = flag(
        {}, "more optimizer arguments", role=Role.STATE | Role.OPTIMIZER
    )
    # the learning rate, and how it falls
    sched: Literal[
        "constant", "cosine", "multistep", "none", "plateau", "poly", "rsqrt", "step", "tanh", "wsd"
    ] = flag("cosine", "learning-rate schedule", metavar="NAME")
    sched_on_updates: bool = flag(False, "step the schedule by update, not by epoch")
    lr: NonNegative | None = flag(
        None,
        "learning rate; without it --lr-base is scaled by the batch size",
        role=Role.SCHEDULE | Role.TUNING,
    )
    # the learning rate by the size of the batch
    lr_base: NonNegative = flag(
        0.1, "learning rate at --lr-base-size", role=Role.ALIAS | Role.SCHEDULE
    )
    lr_base_size: Count = flag(
        256, "batch size that --lr-base is meant for", role=Role.ALIAS | Role.SCHEDULE
    )
    lr_base_scale: Literal["", "linear", "sqrt"] = flag(
        "",
        "linear or sqrt (default: by optimizer)",
        role=Role.ALIAS | Role.SCHEDULE,
        metavar="RULE",
    )
    # noise and cycles
    lr_noise: Sequence[NonNegative] | None = flag(
        None, "range of epochs with noise on the learning rate"
    )
    lr_noise_pct: Annotated[float, Range(0.01, 1)] = flag(0.67, "limit of that noise")
    lr_noise_std: Annotated[float, Range(0, 10)] = flag(1.0, "standard deviation of that noise")
    lr_cycle_mul: Factor = flag(1.0, "factor on the cycle length")
    lr_cycle_decay: Share = flag(0.5, "decay from cycle to cycle")
    lr_cycle_limit: Count = flag(1, "number of cycles")
    lr_k_decay: Factor = flag(1.0, "k of k-decay for cosine and poly")
    # the shape of a decay
    lr_decay_fn: Literal["1-sqrt", "linear", "cosine", "power", "exp"] | None = flag(
        None, "shape of the decay of wsd (default: 1-sqrt) and rsqrt (default: linear)"
    )
    lr_stable_timescale: Positive | None = flag(
        None, "time scale of rsqrt in epochs (default: --warmup-epochs)"
    )
    # the two ends of the schedule
    warmup_lr: NonNegative = flag(1e-05, "learning rate at the start of the warm-up")
    min_lr: NonNegative = flag(0, "lowest learning rate of cyclic schedules")
    # how long
    epochs: Count = flag(300, "epochs")
    decay_milestones: Sequence[Whole] = flag([90, 180, 270], "milestones of multistep")
    # steps, plateaus and the warm-up
    decay_epochs: Positive = flag(
        90,
        "epochs between decays of step; epochs of the decay that ends wsd and rsqrt, below 1 a "
        "share of the schedule (there 0.2, unless given)",
    )
    warmup_epochs: Whole = flag(5, "epochs of warm-up")
    warmup_prefix: bool = flag(False, "the warm-up comes on top of --epochs")
    cooldown_epochs: Whole = flag(0, "epochs at the lowest rate, after the schedule")
    patience_epochs: Whole = flag(10, "patience of plateau")
    decay_rate: NonNegative = flag(0.1, "factor of a decay", names=("--decay-rate", "--dr"))
    # a second set of weights, which follows the first
    model_ema: bool = flag(
        False, "keep an exponential moving average of the weights", role=Role.SHAPE | Role.TRAINING
    )
    model_ema_force_cpu: bool = flag(
        False, "keep it on the CPU, without evaluation", role=Role.TRAINING, idle="--fsdp"
    )
    model_ema_decay: Share = flag(0.9998, "its decay", role=Role.TRAINING)
    model_ema_warmup: bool = flag(False, "warm its decay up", role=Role.TRAINING)
    # with --train-img-sizes
    variable_batch_loss_scale: Literal["none", "sqrt", "linear"] = flag(
        "none", "scale of the loss with the batch size of --train-img-sizes", role=Role.TRAINING
    )
