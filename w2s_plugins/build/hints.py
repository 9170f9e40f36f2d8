"""What a run could do to be faster, and where it cannot tell anything, each in one line."""

import argparse

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


def warm_up_hint(args: argparse.Namespace, epochs: int) -> str | None:
    """Return a line that says that the warm-up takes longer than all ``epochs`` of the training, or None."""
    if args.sched in ("none", "constant") or epochs > args.warmup_epochs or not args.warmup_epochs:
        return None
    return (f"the warm-up of {args.warmup_epochs} epochs does not end within the {epochs} that are trained: the rate "
            f"never reaches --lr {args.lr:g}; give a smaller --warmup-epochs")


def average_hint(args: argparse.Namespace, updates: int) -> str | None:
    """Return a line that says that the average of the weights is mostly made of those before training, or None."""
    start = args.model_ema_decay ** updates
    if not args.model_ema or args.model_ema_warmup or start < 0.5:
        return None
    return (f"{start:.0%} of the average of the weights will be those before training: --model-ema-decay "
            f"{args.model_ema_decay:g} is for more than these {updates} updates; give a smaller one, or add "
            "--model-ema-warmup")
