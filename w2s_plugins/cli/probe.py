"""The flags of a linear probe: what makes no sense on features of plain images is refused, the rest settled."""

import argparse

from ..errors import UserError
from ..losses import create_loss

# flags of augmentation and the values that ask for none; the first ones have no effect with --no-aug
PLAIN = {
    "scale": [1.0, 1.0], "ratio": [1.0, 1.0], "hflip": 0.0, "vflip": 0.0, "color_jitter": 0.0,
    "color_jitter_prob": None, "grayscale_prob": None, "gaussian_blur_prob": None, "aa": None, "reprob": 0.0,
    "train_crop_mode": None,
}
SINGLE = {"mixup": 0.0, "cutmix": 0.0, "cutmix_minmax": None, "aug_repeats": 0, "aug_splits": 0,
          "train_img_sizes": None}


def resolve_probe(args: argparse.Namespace, given: set[str]) -> None:
    """Check the flags beside ``--linear-probe`` and fill in what follows from it, in place.

    Raises:
        UserError: the first flag that has no meaning for features that are computed once.
    """
    if not args.linear_probe:
        return
    for name, plain in {**({} if args.no_aug else PLAIN), **SINGLE}.items():
        value = getattr(args, name)
        if name in given and value not in (plain, None, "") and value != 0:
            remedy = ", or add --no-aug" if name in PLAIN else ""
            shown = " ".join(map(str, value)) if isinstance(value, list) else value
            raise UserError(f"--linear-probe sees every image once, without augmentation: leave out "
                            f"--{name.replace('_', '-')} {shown}{remedy}")
    for broken, message in _rules(args, given):
        if broken:
            raise UserError(f"--linear-probe {message}")
    for name, plain in (PLAIN | SINGLE).items():
        setattr(args, name, plain)
    args.no_aug, args.dist_bn = True, ""  # there is neither a view nor a statistic to share
    if args.teacher:
        args.teacher_targets = "cached"


def _rules(args: argparse.Namespace, given: set[str]) -> list[tuple[bool, str]]:
    needs_features = args.teacher and args.loss and create_loss(args.loss, **args.loss_kwargs).needs_features
    encoder = "trains no encoder"
    off = {
        "--fsdp": args.fsdp, "--sync-bn": args.sync_bn, "--split-bn": args.split_bn,
        "--grad-checkpointing": args.grad_checkpointing, "--torchcompile": args.torchcompile,
        "--channels-last": args.channels_last, "--layer-decay": args.layer_decay is not None,
        "--drop": args.drop, "--drop-path": args.drop_path or args.drop_connect, "--drop-block": args.drop_block,
        "--tta": args.tta, "--save-images": args.save_images,
    }
    return [
        (args.episodic, f"{encoder}, and --episodic trains nothing else: leave one out"),
        (args.few_shot_eval, f"{encoder}: test the model itself with validate.py --few-shot"),
        (args.kd_model_name, "trains on stored outputs, which timm's own distillation cannot: use --teacher in place "
         "of --kd-model-name"),
        (needs_features, f"has no feature maps: --loss {args.loss} needs them; use a loss on logits, such as "
         "adaptconf"),
        (args.teacher and "teacher_targets" in given and args.teacher_targets != "cached",
         f"lets the teacher label each image once: leave out --teacher-targets {args.teacher_targets}"),
        *((broken, f"trains one linear layer on stored features, for which {flag} has no meaning: leave it out")
          for flag, broken in off.items()),
    ]
