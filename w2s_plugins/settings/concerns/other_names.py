"""Flags that come to others, and flags that are refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..field import HIDDEN, Concern, NonNegative, Role, Whole, flag


@dataclass(frozen=True, kw_only=True)
class AliasSettings(Concern, role=Role.ALIAS | Role.TEACHER):
    """Flags that come to others: those of the released code of Vision Superalignment, and older ones of timm."""

    data: str | None = flag(
        None,
        "folder of the data (as --data-dir)",
        role=Role.WHERE | Role.DATA | Role.PLACE,
        names="data",
        metavar="DIR",
        nargs="?",
        in_study="data_dir",
    )
    for_transformers: Mapping[str, Any] = flag(
        {},
        "if the student has attention, these flags are B where they would be A, unless another "
        "part is tuned (recipes use it, because the rate of a convolutional network spoils a "
        "transformer)",
        role=Role.ALIAS | Role.START,
    )
    for_multilabel: Mapping[str, Any] = flag(
        {},
        "with --task multilabel these flags are B where they would be A (recipes use it, because "
        "some losses know one class an image alone)",
        role=Role.ALIAS,
    )
    jsd_loss: bool = flag(False, "Jensen-Shannon criterion over the splits", role=Role.TRAINING)
    # the criterion on ground truth
    bce_loss: bool = flag(False, "binary cross-entropy as the criterion", role=Role.TRAINING)
    distiller: str | None = flag(
        None,
        "as --loss, with that code's defaults; vanilla: no distillation",
        in_study="the key losses",
    )
    # as flags of ours, with other defaults
    gt_loss_weight: NonNegative | None = flag(
        None,
        "as --task-loss-weight; leaves the other weight at 1",
        role=Role.ALIAS | Role.TEACHER | Role.TUNING,
    )
    kd_loss_weight: NonNegative | None = flag(
        None, "as --distill-loss-weight", role=Role.ALIAS | Role.TEACHER | Role.TUNING
    )
    # arguments of losses
    superalignment_rate: float | None = flag(None, "ramp of augconf", sets={"augconf": "ramp"})
    superalignment_threshold: float | None = flag(
        None,
        "temperature of adaptconf, alpha of augconf",
        sets={"adaptconf": "temperature", "augconf": "alpha"},
    )
    dkd_alpha: NonNegative | None = flag(None, "alpha of dkd", sets={"dkd": "alpha"})
    dkd_beta: NonNegative | None = flag(None, "beta of dkd", sets={"dkd": "beta"})
    dkd_temperature: float | None = flag(None, "temperature of dkd", sets={"dkd": "temperature"})
    rkd_distance_weight: NonNegative | None = flag(
        None, "distance_weight of rkd", sets={"rkd": "distance_weight"}
    )
    rkd_angle_weight: NonNegative | None = flag(
        None, "angle_weight of rkd", sets={"rkd": "angle_weight"}
    )
    rkd_eps: float | None = flag(None, "eps of rkd", sets={"rkd": "eps"})
    rkd_squared: bool = flag(False, "squared distances in rkd", sets={"rkd": "squared"})
    fitnet_stage: Sequence[Whole] | None = flag(None, "stages of fitnet, counted from 1")
    fitnet_loss_weight: NonNegative | None = flag(None, "weight of fitnet")
    # of its evaluation, and without effect here
    speedtest: bool = flag(False, "as --val-split '' --no-teacher-eval", role=Role.ALIAS)
    eval_interval_end: float | None = flag(None, "taken, and without effect", role=Role.ALIAS)
    model_name: str | None = flag(None, "taken, and without effect", role=Role.ALIAS)


@dataclass(frozen=True, kw_only=True)
class RefusedSettings(Concern, role=Role.MODEL):
    """Flags of timm that are refused, or change nothing here."""

    torchscript: bool = flag(False, HIDDEN, role=Role.TRAINING, one_of="compiler")
    naflex_loader: bool = flag(False, HIDDEN)
    naflex_train_seq_lens: Sequence[int] = flag([128, 256, 576, 784, 1024], HIDDEN)
    naflex_max_seq_len: int = flag(576, HIDDEN)
    naflex_patch_sizes: Sequence[int] | None = flag(None, HIDDEN)
    naflex_patch_size_probs: Sequence[float] | None = flag(None, HIDDEN)
    naflex_loss_scale: Literal["none", "sqrt", "linear"] = flag("linear", HIDDEN)
    naflex_patchify_channels_first: bool = flag(False, HIDDEN)
