"""What becomes of an image before training sees it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from .. import terms
from ..field import Concern, Count, NonNegative, Pixels, Positive, Range, Role, Share, Whole, flag
from ..forms import augmentation_policy


@dataclass(frozen=True, kw_only=True)
class ViewSettings(Concern, role=Role.TRAINING):
    """What becomes of an image before training sees it."""

    # what is done at all
    no_aug: bool = flag(False, "no training augmentation")
    train_crop_mode: Literal["rrc", "rkrc", "rkrr"] | None = flag(
        None, "rrc, rkrc or rkrr", role=Role.VIEW, idle=terms.PLAIN
    )
    # geometry
    scale: Sequence[NonNegative] = flag(
        [0.08, 1.0],
        "area of random crops",
        role=Role.VIEW,
        span=True,
        idle=terms.PLAIN,
        neutral=[1.0, 1.0],
    )
    ratio: Sequence[Positive] = flag(
        [0.75, 1.3333333333333333],
        "aspect of random crops",
        role=Role.VIEW,
        span=True,
        idle=terms.PLAIN,
        neutral=[1.0, 1.0],
    )
    hflip: Share = flag(0.5, "horizontal flips", role=Role.VIEW, idle=terms.PLAIN, neutral=0.0)
    vflip: Share = flag(0.0, "vertical flips", role=Role.VIEW, idle=terms.PLAIN, neutral=0.0)
    # colour
    color_jitter: NonNegative = flag(
        0.4, "strength of colour jitter", role=Role.VIEW, idle=terms.PLAIN, neutral=0.0
    )
    color_jitter_prob: Share | None = flag(
        None, "probability of colour jitter (default: always)", role=Role.VIEW, idle=terms.PLAIN
    )
    grayscale_prob: Share | None = flag(
        None, "probability of greyscale", role=Role.VIEW, idle=terms.PLAIN
    )
    gaussian_blur_prob: Share | None = flag(
        None, "probability of blur", role=Role.VIEW, idle=terms.PLAIN
    )
    # a policy of several changes
    aa: str | None = flag(
        None, "AutoAugment, RandAugment or AugMix policy", role=Role.VIEW, idle=terms.PLAIN
    )
    # several views of a sample in a batch
    aug_repeats: NonNegative = flag(
        0, "views of a sample in an epoch", role=Role.MIXING, idle="--linear-probe", neutral=0
    )
    # a second view, for losses that compare two
    strong_views: str | None = flag(
        None,
        "show each image without a label a second time, augmented like this (such as "
        "rand-m10-n3-mstd101, see --aa); of that view the student learns the class that it says "
        "of the first one",
        read=augmentation_policy,
        metavar="POLICY",
        needs="teacher",
    )
    aug_splits: Annotated[int, Range(0, 64)] = flag(
        0,
        "AugMix splits of a batch, 0 or at least 2",
        role=Role.MIXING,
        idle="--linear-probe",
        neutral=0,
    )
    # random erasing
    reprob: Share = flag(0.0, "random erasing", role=Role.VIEW, idle=terms.PLAIN, neutral=0.0)
    remode: Literal["const", "rand", "pixel"] = flag("pixel", "its fill: const, rand or pixel")
    recount: Annotated[int, Range(1, 1000)] = flag(1, "its number of boxes")
    resplit: bool = flag(
        False, "leave the first augmentation split without it", idle=terms.NOTHING_TO_SPLIT
    )
    # mixing of samples
    mixup: NonNegative = flag(
        0.0, "alpha of mixup", role=Role.MIXING, idle="--linear-probe", neutral=0.0
    )
    cutmix: NonNegative = flag(
        0.0, "alpha of cutmix", role=Role.MIXING, idle="--linear-probe", neutral=0.0
    )
    cutmix_minmax: Sequence[Share] | None = flag(
        None,
        "range of cutmix boxes, in place of alpha",
        role=Role.MIXING,
        span=True,
        idle="--linear-probe",
    )
    # how often, and on what
    mixup_prob: Share = flag(1.0, "probability of mixing")
    mixup_switch_prob: Share = flag(0.5, "share of cutmix where both are on")
    mixup_mode: Literal["batch", "pair", "elem"] = flag("batch", "batch, pair or elem")
    mixup_off_epoch: Whole = flag(0, "no mixing from this epoch on")
    # how an image is resized
    train_interpolation: Literal[
        "", "random", "nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"
    ] = flag("random", "interpolation of random crops", metavar="NAME")
    # images of several sizes, as timm's scheduled loader has them
    train_img_sizes: Sequence[Pixels] | None = flag(
        None,
        "image sizes drawn batch by batch",
        role=Role.MIXING,
        idle="--linear-probe",
        form="N N",
    )
    train_batch_sizes: Sequence[Count] | None = flag(
        None,
        "batch size for each of them",
        role=Role.PER_PROCESS | Role.TRAINING,
        needs="train_img_sizes",
    )
    train_size_probs: Sequence[NonNegative] | None = flag(
        None, "probability of each of them", needs="train_img_sizes"
    )
    train_size_schedule: Literal["constant", "progressive"] = flag("constant", "how they are drawn")
    train_size_schedule_spread: NonNegative = flag(0.65, "width of the progressive window")
    train_size_random_mix: Share = flag(0.1, "share drawn uniformly")
    train_batches_per_epoch: Count | None = flag(
        None,
        "batches in an epoch of --train-img-sizes, or of --episodic",
        names=("--train-batches-per-epoch", "--train-steps-per-epoch"),
        needs=("train_img_sizes", "episodic"),
    )

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed."""
        return self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None
