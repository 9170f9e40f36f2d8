"""The student and how it starts."""

import re
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from timm.layers.norm_act import convert_sync_batchnorm
from timm.layers.split_batchnorm import SplitBatchNorm2d, convert_splitbn_model
from torch import nn

from ..data.map_style import classes_of_samples
from ..distributed.world import World
from ..errors import UserError, logger
from ..files import file_sha256
from ..models.loading import (
    TimmModel,
    check_input_size,
    check_loaded,
    create_model,
    find_weights,
    input_config,
    is_transformer,
    load_weights,
    of_timm,
    pretrained_source,
    read_weights,
)
from ..settings.composite import TrainSettings
from ..settings.concerns import (
    ComputeSettings,
    InputSettings,
    LossSettings,
    OptimSettings,
    StudentSettings,
    ViewSettings,
)
from ..students.adapters import heads_of
from ..students.published import (
    Published,
    choose_pool,
    load_published,
    read_published,
    warn_of_normalisation,
)
from ..students.tuning import choose_trained
from ..target_kind import SEVERAL_CLASSES
from ..teachers.stored import CachedTargets
from .device import first_device, note_faster_dtype, place_model
from .splits import Data

ROWS = 8192  # images at a time
# losses that divide by how far the logits of a sample lie apart, or learn nothing where all are zero
NOT_FROM_ZEROS = re.compile(r"\b(dist|evidential|logit_standardization)\b")


class Student(NamedTuple):
    """The model that is trained.

    Args:
        model: a timm model on its device.
        data_config: timm's data configuration: input size, normalisation, interpolation.
        source: how it starts, for the record.
        resolved: flags as they turned out, for args.yaml and checkpoints: a run is read back by them.
        layout: memory format of the model.
    """

    model: TimmModel
    data_config: dict[str, Any]
    source: dict[str, Any]
    resolved: dict[str, object]
    layout: torch.memory_format = torch.contiguous_format


def build_student(
    settings: TrainSettings,
    world: World,
    num_classes: int | None = None,
) -> Student:
    """Create the student.

    Args:
        settings: of the run.
        world: this process.
        num_classes: classes of the data; None leaves the model's own.
    """
    # A published checkpoint may say behind which pooling its weights are fine-tuned, so it is read before the model is
    # made.
    starting = settings.student
    name = f"--model {starting.model}"
    published, pool = None, starting.gp
    if starting.finetune:
        published = read_published(find_weights(starting.finetune, "--finetune"), "--finetune")
        if not (pool or starting.model_kwargs.get("global_pool")):
            pool = choose_pool(published, starting.model)
    model = _create_model(starting, settings.input, num_classes, pool)

    # Weights, and then the head: whether it is a new one can be seen only by how it was made.
    head_as_made = [p.detach().clone() for head in heads_of(model) for p in head.parameters()]
    source = _load_start(starting, model, published)
    if starting.linear_probe:
        # a pretrained head knows the ground truth of its own data
        model.reset_classifier(model.num_classes)
    # who trains a head alone asks for a probe; recipes train blocks or adapters
    if source["init"] == "random" and starting.tune.is_partial and starting.tune.part != "head":
        logger.warning(
            f"WARNING: {name} with --tune {starting.tune.text}: starts from random weights, most of which stay as they "
            "are, so it learns little; start from pretrained ones by --pretrained or --pretrained-path FILE"
        )
    head_is_new = _has_new_head(model, source["init"], head_as_made)
    taught = bool(settings.teacher.teacher)
    _begin_head(starting, settings.loss, model, source["init"], head_is_new, taught)

    # What is trained is chosen in the plain model, before it is brought to its device and its kind of batch norm.
    if starting.grad_checkpointing:
        try:
            model.set_grad_checkpointing(True)
        except (AssertionError, AttributeError) as error:
            raise UserError(f"--grad-checkpointing: {name} cannot do it") from error
    data_config = input_config(model, name, vars(settings.input))
    if published is not None:
        warn_of_normalisation(published, data_config)
    if starting.tune.is_partial:
        check_input_size(model, data_config["input_size"], name)  # adapters are tried on an image
        images = torch.zeros(1, *data_config["input_size"])
        choose_trained(model, starting.tune, images, name)
        _warn_of_fast_blocks(starting, settings.optim, model)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        source |= dict(tune=starting.tune.text, trained=trained)
    # a probe is trained on features, which are no images
    compute = settings.compute
    if starting.linear_probe:
        compute = replace(compute, channels_last=False)
    else:
        note_faster_dtype(model, world.device, compute)
    model, layout = _move(
        starting, settings.views, compute, model, data_config["input_size"], world
    )
    resolved: dict[str, object] = dict(num_classes=model.num_classes, gp=pool)
    resolved["channels_last"] = layout is torch.channels_last
    return Student(model, data_config, source, resolved, layout)


def _create_model(
    starting: StudentSettings,
    images: InputSettings,
    num_classes: int | None,
    pool: str | None,
) -> TimmModel:
    """Create the model, with pretrained weights if they are asked for."""
    # Weights of a file take the place of the published ones where timm would fetch these.
    # timm resizes what is fetched, position embeddings and patches; a file goes the same way.
    overlay = file = None
    if starting.pretrained_path:
        file = find_weights(starting.pretrained_path, "--pretrained-path")
        overlay = dict(file=str(file), num_classes=-1)
    # Weights of JAX can be read by the model alone; all others are compared with what it has taken of them.
    state = None
    if file is not None and file.suffix != ".npz":
        state = read_weights(file, "--pretrained-path")
    drop_path = starting.drop_connect if starting.drop_path is None else starting.drop_path
    kwargs = dict(
        num_classes=num_classes,
        drop_rate=starting.drop or None,
        drop_path_rate=drop_path,
        drop_block_rate=starting.drop_block,
        global_pool=pool,
        bn_momentum=starting.bn_momentum,
        bn_eps=starting.bn_eps,
        pretrained_cfg_overlay=overlay,
    )
    model = create_model(
        "--model",
        starting.model,
        pretrained=starting.pretrained or bool(overlay),
        inputs=images.of_model,
        instead="--pretrained-path FILE",
        **{**kwargs, **starting.model_kwargs},
    )
    if state is not None:
        check_loaded(model, state, str(file), "--pretrained-path")
    return model


def _warn_of_fast_blocks(starting: StudentSettings, optim: OptimSettings, model: nn.Module) -> None:
    """Warn of a rate that suits a convolutional student, as in the recipe, but is too fast for blocks with attention."""
    plain_adam = optim.opt.startswith("adam") and not optim.layer_decay
    tunes_blocks = starting.tune.part == "last"
    if tunes_blocks and is_transformer(model) and plain_adam and (optim.lr or 0) > 1e-4:
        logger.warning(
            f"WARNING: --tune {starting.tune.text} at --lr {optim.lr} may spoil a transformer; --tune lora --lr 0.002 did "
            "better (docs/evidence/transformer.md)"
        )


def _move(
    starting: StudentSettings,
    views: ViewSettings,
    compute: ComputeSettings,
    model: TimmModel,
    input_size: tuple[int, int, int],
    world: World,
) -> tuple[TimmModel, torch.memory_format]:
    """Bring a model to its device, dtype, memory layout and kind of batch norm, and see that it takes the images; return
    the layout, too.
    """
    # Batch norms are exchanged before the model is moved: the new ones come along.
    if starting.split_bn:
        model = of_timm(convert_splitbn_model(model, max(views.aug_splits, 2)))
    layout = place_model(model, first_device(compute.fsdp, world), compute)
    # Every size that training uses is tried once, so that none fails epochs later.
    channels, *size = input_size
    for shape in {tuple(size), *((side, side) for side in views.train_img_sizes or ())}:
        check_input_size(model, (channels, *shape), f"--model {starting.model}")
    if starting.sync_bn and world.distributed:
        model = of_timm(convert_sync_batchnorm(model))
    return model, layout


def plain_batch_norm(model: nn.Module) -> None:
    """Leave of each split batch norm the part that evaluations use, in place: it is what plain timm loads."""
    for module in model.modules():
        if isinstance(module, SplitBatchNorm2d):
            del module.aux_bn
            # what it does in an evaluation is what the class does that it is made of
            module.__class__ = nn.BatchNorm2d  # pyright: ignore[reportAttributeAccessIssue]


def _has_new_head(model: TimmModel, init: str, head_as_made: list[torch.Tensor]) -> bool:
    """Return whether the head has begun anew on weights from elsewhere.

    timm makes a new head if the number of classes differs, which it cannot tell of ``--pretrained-path``; a file may
    leave the head that was made.
    """
    if init == "pretrained":
        return model.num_classes != model.pretrained_cfg.get("num_classes")
    parameters = [p for head in heads_of(model) for p in head.parameters()]
    return init == "checkpoint" and all(map(torch.equal, parameters, head_as_made))


@torch.no_grad()
def _begin_head(
    starting: StudentSettings,
    loss: LossSettings,
    model: TimmModel,
    init: str,
    is_new: bool,
    taught: bool,
) -> None:
    """Scale the head as asked for; with zeros, unless asked otherwise, if it is new on pretrained weights, and a
    teacher is learned from or a part is trained, by a loss that can begin there. All else begins as timm has it.

    Args:
        starting: how the student begins.
        loss: what it is compared by.
        model: the student, with its weights.
        init: where these come from.
        is_new: the head has begun anew on them.
        taught: there is a teacher.
    """
    scale = starting.head_init_scale
    if scale is None and not starting.linear_probe:
        # Recipes tune a part, or say how the head begins, so that whoever comes here follows none.
        in_part = starting.tune.is_partial
        if taught and init != "random" and not in_part:
            logger.info(
                "A pretrained student, and no recipe: the recommended one is --config weak-labels (docs/recipe.md)"
            )
        # With zeros the first gradients are of the head alone: random weights would send noise into the features.
        can_begin = not NOT_FROM_ZEROS.search(f"{loss.loss} {loss.loss_kwargs}")
        if is_new and (taught or in_part) and can_begin:
            logger.info(
                "The new head begins with zeros (--head-init-scale 1: with timm's random weights)"
            )
            scale = 0.0
    for head in heads_of(model):
        if scale is not None:
            for parameter in head.parameters():
                parameter.mul_(scale)
        bias = getattr(head, "bias", None)
        if starting.head_init_bias is not None and bias is not None:
            nn.init.constant_(bias, starting.head_init_bias)


@torch.no_grad()
def begin_with_shares(
    starting: StudentSettings, model: TimmModel, data: Data, targets: CachedTargets | None
) -> None:
    """Let a new head of several classes an image begin by saying of each class how many images have it.

    With zeros it would say a half, and its first updates would do nothing but unlearn that; the bias is that of focal loss
    (2017, arXiv 1708.02002), by class. Labels of a teacher that is asked in every step are not known before.

    Args:
        starting: how the student begins; a bias that was asked for stays.
        model: the student.
        data: its training set.
        targets: what it is to learn of that; None takes true labels.
    """
    truth = classes_of_samples(data.train)
    if targets is not None:
        rows = torch.arange(len(data.samples)).split(ROWS)
        truth = torch.cat([SEVERAL_CLASSES.probabilities(targets(index)).cpu() for index in rows])
    elif truth is None:
        return
    # Of a class that is known only of images that have it (one label of each is known), the unknown ones count as without.
    known = ~truth.isnan()
    is_denied = (known & (truth < 0.5)).any(dim=0)
    counted = torch.where(is_denied, known.sum(dim=0), len(truth))
    shares = truth.nansum(dim=0) / counted.clamp(min=1)
    # of a class that nobody has, or all have, the least share that so many images could show
    least = 1 / (len(data.samples) + 2)
    bias = shares.clamp(least, 1 - least).logit()
    # what begins with something of its own, a pretrained head or a bias that was asked for, stays
    for head in heads_of(model):
        own = getattr(head, "bias", None)
        if starting.head_init_bias is None and own is not None and not own.any():
            own.copy_(bias)


def _load_start(
    settings: StudentSettings,
    model: TimmModel,
    published: Published | None,
) -> dict[str, Any]:
    """Load what ``--initial-checkpoint`` or ``--finetune`` names; log and return how the student starts."""
    # Later flags win: a checkpoint over pretrained weights, --finetune over both. The record tells of the last one.
    init, named, file = "random", "", None
    if settings.pretrained_path:  # the model was created with them
        init, named = "pretrained", settings.pretrained_path
        file = find_weights(named, "--pretrained-path")
    if settings.initial_checkpoint:
        init, named = "checkpoint", settings.initial_checkpoint
        flag = "--initial-checkpoint"
        file = find_weights(named, flag)
        report = load_weights(model, read_weights(file, flag, use_ema=True), str(file), flag)
        logger.info(f"Student {settings.model}: {report}")
    if published is not None:
        init, named, file = "checkpoint", settings.finetune, published.path
        logger.info(f"Student {settings.model}: {load_published(model, published, '--finetune')}")

    # Weights of a file are known by its content, those of the Hub by their revision.
    origin = None
    if file is not None:
        origin = dict(file=named, sha256=file_sha256(file))
    elif settings.pretrained:
        init, origin = "pretrained", pretrained_source(model, settings.model, "--model")
    params = sum(p.numel() for p in model.parameters())
    logger.info(
        f"Student {settings.model}: {params / 1e6:.2f} M parameters, {model.num_classes} classes, starts from {init} "
        "weights"
    )
    return dict(init=init, source=origin, params=params)
