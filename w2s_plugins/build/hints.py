"""What a run could do to be faster, and where it cannot tell anything, each in one line."""

import argparse

from ..metrics.pgr import chance_level

HALF = ("float16", "bfloat16")


def speed_hint(args: argparse.Namespace, device_type: str, bfloat16_units: bool = False) -> str | None:
    """Return a line that recommends what is left unused, or None.

    Args:
        args: resolved flags of the training script.
        device_type: "cuda", "cpu", ...
        bfloat16_units: the CPU multiplies matrices in bfloat16.
    """
    unused = [] if args.amp or args.model_dtype in HALF else ["--amp"]
    if device_type == "cuda":
        unused += [flag for flag, used in (
            ("--channels-last", args.channels_last), ("--torchcompile", args.torchcompile)) if not used]
    elif device_type != "cpu" or not bfloat16_units:
        unused = []
    return f"Training is usually faster with {' '.join(unused)}" if unused else None


def teacher_chance_hint(top1: float, num_classes: int, samples: int) -> str | None:
    """Return a line that says that a teacher is not better than guessing, or None."""
    found = _at_chance(top1, num_classes, samples)
    return found and f"the teacher is {found}. Wrong weights, class order, normalisation or input size?"


def student_chance_hint(top1: float, num_classes: int, samples: int) -> str | None:
    """Return a line that says that a student is not better than guessing, or None."""
    found = _at_chance(top1, num_classes, samples)
    return found and f"the student is {found}. If it has learned nothing, give it a smaller --lr or more --epochs"


def _at_chance(top1: float, num_classes: int, samples: int) -> str | None:
    """Return a description of an accuracy that is not better than guessing by two standard errors, or None."""
    chance = chance_level(num_classes) / 100
    if top1 > 100 * (chance + 2 * (chance * (1 - chance) / max(1, samples)) ** 0.5):
        return None
    return f"at chance: top-1 {top1:.2f} with {num_classes} classes (guessing gives {100 * chance:.2f})"


def average_hint(args: argparse.Namespace, updates: int) -> str | None:
    """Return a line that says that the average of the weights is mostly made of those before training, or None."""
    start = args.model_ema_decay ** updates
    if not args.model_ema or args.model_ema_warmup or start < 0.5:
        return None
    return (f"{start:.0%} of the average of the weights will be those before training: --model-ema-decay "
            f"{args.model_ema_decay:g} is for more than these {updates} updates; give a smaller one, or add "
            "--model-ema-warmup")
