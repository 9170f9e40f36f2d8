"""The student and how it starts."""

import re
from argparse import Namespace
from typing import NamedTuple

import torch
from timm.layers import SplitBatchNorm2d, convert_splitbn_model, convert_sync_batchnorm
from torch import nn

from ..distributed.world import World
from ..errors import UserError, logger
from ..files import file_sha256
from ..models.loading import (
    check_input_size,
    check_loaded,
    create_model,
    find_weights,
    input_config,
    load_weights,
    pretrained_source,
    read_weights,
)
from ..students.adapters import heads_of
from ..students.published import Published, choose_pool, load_published, read_published, warn_of_normalisation
from ..students.tuning import choose_trained
from .device import first_device

# losses that divide by how far the logits of a sample lie apart, or learn nothing where all are zero
NOT_FROM_ZEROS = re.compile(r"\b(dist|evidential|logit_standardization)\b")


class Student(NamedTuple):
    """The model that is trained.

    Args:
        model: a timm model on its device.
        data_config: timm's data configuration: input size, normalisation, interpolation.
        source: how it starts, for the record.
        resolved: flags as they turned out, for args.yaml and checkpoints: a run is read back by them.
    """

    model: nn.Module
    data_config: dict
    source: dict
    resolved: dict[str, object]


def build_student(
        args: Namespace, world: World, num_classes: int | None = None) -> Student:
    """Create the student.

    Args:
        args: parsed flags.
        world: this process.
        num_classes: classes of the data; None leaves the model's own.
    """
    # A published checkpoint may say behind which pooling its weights are fine-tuned, so it is read before the model is
    # made.
    published, pool = None, args.gp
    if args.finetune:
        published = read_published(find_weights(args.finetune, "--finetune"), "--finetune")
        if not (pool or args.model_kwargs.get("global_pool")):
            pool = choose_pool(published, args.model)
    model = _create_model(args, num_classes, pool)

    # Weights, and then the head: whether it is a new one can be seen only by how it was made.
    head_as_made = [p.detach().clone() for head in heads_of(model) for p in head.parameters()]
    source = _load_start(args, model, published)
    if args.linear_probe:
        model.reset_classifier(model.num_classes)  # pretrained heads know the ground truth of their own data
    _begin_head(args, model, source["init"], head_as_made)

    # What is trained is chosen in the plain model, before it is brought to its device and its kind of batch norm.
    if args.grad_checkpointing:
        try:
            model.set_grad_checkpointing(enable=True)
        except (AssertionError, AttributeError) as error:
            raise UserError(f"--grad-checkpointing: --model {args.model} cannot do it") from error
    data_config = input_config(model, f"--model {args.model}", vars(args))
    if published is not None:
        warn_of_normalisation(published, data_config)
    if args.tune != "all":
        check_input_size(model, data_config["input_size"], f"--model {args.model}")  # adapters are tried on an image
        images = torch.zeros(1, *data_config["input_size"])
        choose_trained(model, args.tune, images, f"--model {args.model}")
        # what suits a convolutional student, as in the recipe, is too fast for blocks with attention
        attention = any("Attention" in type(module).__name__ for module in model.modules())
        if args.tune.startswith("last") and attention and args.opt.startswith("adam") and \
                not args.layer_decay and (args.lr or 0) > 1e-4:
            logger.warning(f"WARNING: --tune {args.tune} at --lr {args.lr} may spoil a transformer; --tune lora --lr "
                           "0.002 did better (docs/evidence/transformer.md)")
        source |= dict(
            tune=args.tune, trained=sum(p.numel() for p in model.parameters() if p.requires_grad))
    model = _place(args, model, data_config["input_size"], world)
    return Student(model, data_config, source, dict(num_classes=model.num_classes, gp=pool))


def _create_model(args: Namespace, num_classes: int | None, pool: str | None) -> nn.Module:
    """Create the model, with pretrained weights where asked for."""
    # Weights of a file take the place of the published ones where timm would fetch these.
    overlay = state = None
    if args.pretrained_path:
        file = find_weights(args.pretrained_path, "--pretrained-path")
        overlay = dict(file=str(file), num_classes=-1)
        if file.suffix != ".npz":  # weights of JAX, which only the model itself can read
            state = read_weights(file, "--pretrained-path")
    flags = dict(
        num_classes=args.num_classes if num_classes is None else num_classes,
        drop_rate=args.drop or None,
        drop_path_rate=args.drop_path if args.drop_path is not None else args.drop_connect,
        drop_block_rate=args.drop_block,
        global_pool=pool,
        bn_momentum=args.bn_momentum,
        bn_eps=args.bn_eps,
        pretrained_cfg_overlay=overlay,
    )
    model = create_model(
        "--model",
        args.model,
        pretrained=args.pretrained or bool(overlay),
        inputs=dict(img_size=args.img_size, input_size=args.input_size, in_chans=args.in_chans),
        instead="--pretrained-path FILE",
        **{**flags, **args.model_kwargs},
    )
    if state is not None:
        check_loaded(model, state, str(file), "--pretrained-path")
    return model


def _place(
        args: Namespace,
        model: nn.Module,
        input_size: tuple[int, int, int],
        world: World,
) -> nn.Module:
    """Bring a model to its device, dtype, memory layout and kind of batch norm, and see that it takes the images."""
    # Batch norms are exchanged before the model is moved: the new ones come along.
    if args.split_bn:
        model = convert_splitbn_model(model, max(args.aug_splits, 2))
    model.to(
        device=first_device(args.fsdp, world), dtype=getattr(torch, args.model_dtype) if args.model_dtype else None)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    # Every size that training uses is tried once, so that none fails epochs later.
    channels, *size = input_size
    for shape in {tuple(size), *((s, s) for s in args.train_img_sizes or ())}:
        check_input_size(model, (channels, *shape), f"--model {args.model}")
    return convert_sync_batchnorm(model) if args.sync_bn and world.distributed else model


def plain_batch_norm(model: nn.Module) -> None:
    """Leave of each split batch norm the part that evaluations use, in place: it is what plain timm loads."""
    for module in model.modules():
        if isinstance(module, SplitBatchNorm2d):
            del module.aux_bn
            module.__class__ = nn.BatchNorm2d


@torch.no_grad()
def _begin_head(args: Namespace, model: nn.Module, init: str, head_as_made: list[torch.Tensor]) -> None:
    """Scale the head as asked for; with zeros, unless asked otherwise, where it is new on pretrained weights, and a
    teacher is learned from or a part is trained, by a loss that can begin there. All else begins as timm has it.

    Args:
        args: parsed flags.
        model: the student, with its weights.
        init: where these come from.
        head_as_made: the head before a file was read.
    """
    # timm makes a new head where the number of classes differs, which it cannot tell of --pretrained-path; a file may
    # leave the head that was made.
    heads, scale = heads_of(model), args.head_init_scale
    if init == "pretrained":
        is_new = model.num_classes != model.pretrained_cfg.get("num_classes")
    else:
        parameters = [p for head in heads for p in head.parameters()]
        is_new = init == "checkpoint" and all(map(torch.equal, parameters, head_as_made))
    if scale is None and not args.linear_probe:
        in_part = args.tune != "all"
        if args.teacher and init != "random" and not in_part:  # recipes tune a part, or say how the head begins
            logger.info("A pretrained student, and no recipe: the recommended one is --config weak-labels "
                        "(docs/recipe.md)")
        if is_new and (args.teacher or in_part) and not NOT_FROM_ZEROS.search(f"{args.loss} {args.loss_kwargs}"):
            logger.info("The new head begins with zeros (--head-init-scale 1: with timm's random weights)")
            scale = 0.0
    for head in heads:
        if scale is not None:
            for parameter in head.parameters():
                parameter.mul_(scale)
        if args.head_init_bias is not None and head.bias is not None:
            nn.init.constant_(head.bias, args.head_init_bias)


def _load_start(args: Namespace, model: nn.Module, published: Published | None) -> dict:
    """Load what ``--initial-checkpoint`` or ``--finetune`` names; log and return how the student starts."""
    # Later flags win: a checkpoint over pretrained weights, --finetune over both.
    init, origin = "random", None
    if args.pretrained_path:
        file = find_weights(args.pretrained_path, "--pretrained-path")
        init, origin = "pretrained", dict(file=args.pretrained_path, sha256=file_sha256(file))
    elif args.pretrained:
        init, origin = "pretrained", pretrained_source(model, args.model, "--model")
    if args.initial_checkpoint:
        flag, file = "--initial-checkpoint", find_weights(args.initial_checkpoint, "--initial-checkpoint")
        report = load_weights(model, read_weights(file, flag, use_ema=True), str(file), flag)
        logger.info(f"Student {args.model}: {report}")
        init, origin = "checkpoint", dict(file=args.initial_checkpoint, sha256=file_sha256(file))
    if published is not None:
        logger.info(f"Student {args.model}: {load_published(model, published, '--finetune')}")
        init, origin = "checkpoint", dict(file=args.finetune, sha256=file_sha256(published.path))
    params = sum(p.numel() for p in model.parameters())
    logger.info(f"Student {args.model}: {params / 1e6:.2f} M parameters, {model.num_classes} classes, starts from "
                f"{init} weights")
    return dict(init=init, source=origin, params=params)
