"""The model that is trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..field import Concern, NonNegative, Role, Share, flag
from ..forms import Tuning, parse_tuning


@dataclass(frozen=True, kw_only=True)
class StudentSettings(Concern, role=Role.START):
    """The model that is trained: how it begins, which part of it is trained, its regularisation."""

    model: str = flag(
        "resnet50",
        "strong student, a timm name or hf-hub:ORG/NAME",
        role=Role.MODEL | Role.SHAPE | Role.PLACE,
        evaluation="model",
        for_teacher="teacher",
    )
    # where the weights begin
    pretrained: bool = flag(False, "start from the model's pretrained weights")
    pretrained_path: str | None = flag(
        None, "use this file as the pretrained weights", metavar="PATH"
    )
    initial_checkpoint: str = flag("", "load this checkpoint after creation", metavar="PATH")
    finetune: str = flag(
        "",
        "initialise the student from a checkpoint whose head may differ, also as MAE, DINO, "
        "DINOv2 and CLIP publish theirs",
        metavar="PATH",
    )
    # which part of it is trained
    linear_probe: bool = flag(
        False,
        "train the last layer only, on features of the frozen student that are computed once, "
        "without augmentation (but for --teacher-targets cached-views:N), and kept under "
        "--target-cache (docs/students.md)",
        role=Role.START | Role.SHAPE,
    )
    tune: Tuning = flag(
        "all",
        "what of the student is trained: all, head, norm, bias, last:N (blocks), last:0.3 (that "
        "share of them), lora (adapters; "
        "lora:rank=8,alpha=16,dropout=0,targets=qkv+fc1,kind=dora, see docs/students.md); all but "
        "the first train the head too",
        role=Role.START | Role.SHAPE | Role.STATE,
        parse=parse_tuning,
    )
    # the network itself
    gp: str | None = flag(
        None,
        "global pooling: fast, avg, max, avgmax, catavgmax",
        role=Role.MODEL | Role.SHAPE,
        evaluation="gp",
    )
    # less memory for more time
    grad_checkpointing: bool = flag(
        False,
        "recompute activations in the backward pass",
        role=Role.TRAINING,
        idle="--linear-probe",
    )
    model_kwargs: Mapping[str, Any] = flag(
        {},
        "arguments of the model's constructor",
        role=Role.START | Role.MODEL | Role.SHAPE,
        evaluation="model_kwargs",
        for_teacher="teacher_kwargs",
    )
    # the new head
    head_init_scale: NonNegative | None = flag(None, "factor on the initial head")
    head_init_bias: float | None = flag(None, "initial bias of the head")
    # regularisation: of units, of paths, of regions
    drop: Share = flag(0.0, "dropout", role=Role.TRAINING, idle="--linear-probe")
    drop_connect: Share | None = flag(
        None, "old name of --drop-path", role=Role.TRAINING, idle="--linear-probe"
    )
    drop_path: Share | None = flag(
        None, "stochastic depth", role=Role.TRAINING, idle="--linear-probe"
    )
    drop_block: Share | None = flag(None, "drop block", role=Role.TRAINING, idle="--linear-probe")
    # batch norm, in one process and in several
    bn_momentum: Share | None = flag(None, "momentum of batch norm", role=Role.MODEL)
    bn_eps: NonNegative | None = flag(None, "epsilon of batch norm", role=Role.MODEL)
    sync_bn: bool = flag(
        False,
        "synchronised batch norm (needs an accelerator)",
        role=Role.MODEL,
        idle="--linear-probe",
    )
    dist_bn: Literal["reduce", "broadcast", ""] = flag(
        "reduce", "statistics after an epoch: reduce or broadcast", role=Role.MODEL, metavar="MODE"
    )
    split_bn: bool = flag(
        False,
        "separate batch norm for augmentation splits",
        role=Role.MODEL,
        needs=("aug_splits", "resplit"),
        idle="--linear-probe",
    )
