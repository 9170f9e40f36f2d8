"""What a training run costs: FLOPs of an image, and hours of a GPU as arithmetic from them.

FLOPs are those of matrix products and convolutions, a multiplication and an addition counted as two. Hours are
estimates: they take it that a model keeps a GPU as busy as ResNet-50 does in published benchmarks.
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from timm.data.model_config import resolve_input_data_config
from timm.layers import set_fused_attn, use_fused_attn
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..build.flags import check_model_name
from ..cli.parser import read_config, train_parser
from ..cli.values import split_names
from ..errors import UserError, nearest, one_line
from ..models.loading import create_model
from ..monitor import format_table
from .label_cost import describe_labelling, throughput_here
from .memory import FORMULAS, PRECISIONS, TUNES, Setting, describe_memory

REFERENCE = "resnet50"  # whose published throughput the hours are made of, at its 224 px
IMAGENET = 1_281_167
LABELLED = 10 ** 9


@dataclass(frozen=True)
class Gpu:
    """A GPU and how fast it trained `REFERENCE` in a published benchmark, in mixed precision.

    Args:
        peak: FLOP/s in half precision on tensor cores, dense, with sums in float32; of the vendor's data sheet.
        images: images per second of a training step, or None where no benchmark was found.
        source: where that figure stands, or what is assumed in its place.
        like: GPU whose share of the peak is assumed where ``images`` is None.
    """

    peak: float
    images: float | None
    source: str
    like: str | None = None


GPUS = {
    "v100": Gpu(125e12, 1200, "NVIDIA/DeepLearningExamples, resnet50v1.5, DGX-1 16GB, one of its GPUs"),
    "a100": Gpu(312e12, 2470, "NVIDIA/DeepLearningExamples, resnet50v1.5, DGX A100 80GB, one of its GPUs"),
    "h100": Gpu(989e12, None, "assumed: as large a share of the peak as on an a100", like="a100"),
    "rtx3090": Gpu(71e12, 1218, "timm, results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv"),
    "rtx4090": Gpu(165e12, 1761, "tf_cnn_benchmarks, fp16, batch size 512, at server-gear.com; its rtx3090: 1,205"),
}


@dataclass(frozen=True)
class Recipe:
    """What is trained on what.

    Args:
        name: for the heading.
        model: the student.
        teacher: one model or several, separated by commas; None trains without.
        epochs: over all images.
        images: in the training set.
        num_classes: of the student.
        img_size: of the student; None is its own.
    """

    name: str
    model: str
    teacher: str | None
    epochs: int
    images: int = IMAGENET
    num_classes: int = 1000
    img_size: int | None = None


# the settings of Vision Superalignment (arXiv 2402.03749); hparams/imagenet_v0.yaml and imagenet_mae.yaml
PAPER = (
    Recipe("ImageNet v0", "resnet50", "resnet18", epochs=100),
    Recipe("ImageNet transfer", "vit_base_patch16_224", "resnet50", epochs=100),
    Recipe("iNaturalist 2018 transfer", "vit_base_patch16_224", "resnet50", epochs=100, images=437_513,
           num_classes=8142),
)


@dataclass(frozen=True)
class Flops:
    """FLOPs of one image through a model."""

    forward: int
    backward: int

    @property
    def training(self) -> int:
        return self.forward + self.backward


def run_cost(
        gpu: Sequence[str] | None,
        num_gpus: int,
        utilisation: float | None,
        config: Sequence[str],
        images: int | None,
        label: bool = False,
        memory: bool = False,
        **flags: object,
) -> None:
    """Print the cost of one run, or of the paper's settings, or of labelling images by a teacher.

    Args:
        gpu: some of `GPUS`; None for all.
        num_gpus: that share the work.
        utilisation: share of the peak that is reached, in place of that of `REFERENCE`.
        config: YAML files of train_w2s.py.
        images: in the training set, those of ImageNet where None; of labelling, `LABELLED` where None.
        label: of labelling images by a teacher, not of training.
        memory: that of a training step, not time.
        **flags: of train_w2s.py, over those files; None where not given; ``shard_size``, ``top_k`` and ``throughput``
            are for ``label``, ``tune``, ``precision``, ``batch_size`` and ``opt`` for ``memory``.
    """
    tunes, precisions = flags.pop("tune"), flags.pop("precision")
    if memory:
        print(describe_memory(setting_of(config, flags), tunes or TUNES, precisions or tuple(PRECISIONS)))
        return
    for name in gpu or ():
        if name.lower() not in GPUS:
            raise UserError(f"--gpu: unknown GPU '{name}'{nearest(name, GPUS)}; one of {', '.join(GPUS)}")
    gpus = list(dict.fromkeys(name.lower() for name in gpu or GPUS))
    shard_size, topk, throughput = (flags.pop(name) for name in ("shard_size", "top_k", "throughput"))
    if label:
        model, size = flags["teacher"] or REFERENCE, flags["img_size"]
        classes, reference = flags["num_classes"] or 1000, model_flops("--model", REFERENCE)[0]
        forward = model_flops("--teacher", model, classes, size, backward=False)[0].forward
        rates = {f"{name}, estimated": GPUS[name].peak * (utilisation or utilisation_of(name, reference)) / forward
                 for name in gpus}
        if throughput == "here":
            rates["this machine, measured"] = throughput_here(model, classes, size)
        elif throughput is not None:
            rates["--throughput"] = throughput
        print(describe_labelling(model, images or LABELLED, classes, shard_size, topk, rates, num_gpus))
        return
    papers = flags["model"] is None and not config
    for recipe in PAPER if papers else [recipe_of(config, images or IMAGENET, flags)]:
        print(describe(recipe, gpus, num_gpus, utilisation), end="\n\n")
    print(footnotes(gpus, num_gpus, utilisation))


def flags_of(config: Sequence[str], flags: Mapping[str, object]) -> dict[str, object]:
    """Return all flags of the run that YAML files, and flags over them, describe.

    Raises:
        UserError: a file that cannot be read, or no model.
    """
    parser = train_parser()
    given: dict[str, object] = {}
    for file in config:
        given.update(read_config(file, parser))
    given.update({name: value for name, value in flags.items() if value is not None})
    if "model" not in given:
        raise UserError(f"cost: {' '.join(config) or '--memory'} names no student; give --model NAME")
    values = {**parser.defaults(), **given}
    values["img_size"] = values["img_size"] or (values["input_size"] or [None])[-1]
    values["teacher"] = None if values["distiller"] == "vanilla" else values["teacher"] or values["kd_model_name"]
    return values


def recipe_of(config: Sequence[str], images: int, flags: Mapping[str, object]) -> Recipe:
    """Return the run that YAML files, and flags over them, describe. Raises `UserError` as `flags_of`."""
    values = flags_of(config, flags)
    return Recipe(" ".join(config) or "run", values["model"], values["teacher"], values["epochs"], images,
                  values["num_classes"] or 1000, values["img_size"])


def setting_of(config: Sequence[str], flags: Mapping[str, object]) -> Setting:
    """Return what a step is made of. Raises `UserError` as `flags_of`."""
    values = flags_of(config, flags)
    return Setting(values["model"], values["teacher"], values["batch_size"], values["num_classes"] or 1000,
                   values["img_size"], values["opt"])


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention as matrix products, which are counted; the fused kernels of the CPU are not."""
    was, experimental = use_fused_attn(), use_fused_attn(experimental=True)
    set_fused_attn(False)
    try:
        yield
    finally:
        set_fused_attn(was, experimental)


def count_flops(model: nn.Module, input_size: tuple[int, int, int], backward: bool = True) -> Flops:
    """Count the FLOPs of one image, without computing anything.

    Args:
        model: on the meta device, made with `set_fused_attn(False)` where it has attention.
        input_size: (C, H, W).
        backward: also run the backward pass.
    """
    batch = 2  # batch norm wants more than one
    images = torch.empty(batch, *input_size, device="meta")
    with torch.set_grad_enabled(backward):
        with FlopCounterMode(display=False, custom_mapping=FORMULAS) as forward_counter:
            output = model(images)
        backward_counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
        if backward:
            with backward_counter:
                (output if isinstance(output, torch.Tensor) else output[0]).sum().backward()
    return Flops(forward_counter.get_total_flops() // batch, backward_counter.get_total_flops() // batch)


@functools.cache
def model_flops(
        flag: str,
        name: str,
        num_classes: int | None = None,
        img_size: int | None = None,
        backward: bool = True,
) -> tuple[Flops, int]:
    """Return the FLOPs of a model by name, and its image size.

    Args:
        flag: the flag that named it, for messages.
        name: timm name, ``hf-hub:ORG/NAME`` or ``local-dir:PATH``; no weights are loaded.
        num_classes: its own where None.
        img_size: its own where None.
        backward: also count the backward pass.

    Raises:
        UserError: an unknown model, or one that cannot be run on this size or without data.
    """
    check_model_name(flag, name)
    kwargs = {} if num_classes is None else {"num_classes": num_classes}
    with _plain_attention(), torch.device("meta"):
        model = create_model(flag, name, pretrained=False, inputs=dict(img_size=img_size), **kwargs).train(backward)
        size = resolve_input_data_config(model, args=dict(img_size=img_size))["input_size"]
        try:
            return count_flops(model, size, backward), size[-1]
        except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
            shape = " x ".join(map(str, size))
            raise UserError(f"{flag} {name}: cannot be run on {shape}: {one_line(error)}") from error


def utilisation_of(gpu: str, reference: Flops) -> float:
    """Return the share of its peak that a GPU reaches in training `REFERENCE`."""
    found = GPUS[GPUS[gpu].like or gpu]
    return found.images * reference.training / found.peak


def describe(recipe: Recipe, gpus: Sequence[str], num_gpus: int = 1, utilisation: float | None = None) -> str:
    """Return heading, FLOPs and table of hours of a run."""
    student, size = model_flops("--model", recipe.model, recipe.num_classes, recipe.img_size)
    members = [model_flops("--teacher", name, backward=False) for name in split_names(recipe.teacher)]
    teacher = sum(flops.forward for flops, _ in members)
    seen = recipe.images * recipe.epochs
    online, alone = seen * (student.training + teacher), seen * student.training
    cached = alone + recipe.images * teacher
    sizes = ", ".join(f"{size} px" for _, size in members)
    lines = [
        f"{recipe.name}: {recipe.model}{f' <- {recipe.teacher}' if teacher else ''}, {size} px, {recipe.num_classes} "
        f"classes, {recipe.images:,} images, {recipe.epochs} epochs",
        f"GFLOPs per image: student forward {student.forward / 1e9:.2f}, backward {student.backward / 1e9:.2f}"
        + (f"; teacher forward {teacher / 1e9:.2f} ({sizes})" if teacher else ""),
        f"EFLOPs of the run: {alone / 1e18:.3g} without teacher"
        + (f", {online / 1e18:.3g} with it online ({100 * (online / alone - 1):+.1f} %)" if teacher else "")
        + (f", {cached / 1e18:.3g} with cached targets" if teacher else ""),
    ]
    reference = model_flops("--model", REFERENCE)[0]
    rows = []
    for name in gpus:
        share = utilisation or utilisation_of(name, reference)
        per_hour = GPUS[name].peak * share * num_gpus * 3600
        hours = [f"{work / per_hour:.3g}" for work in (alone, online, cached)]
        rows.append([name, f"{GPUS[name].peak / 1e12:.0f}", f"{share:.2f}", *(hours if teacher else hours[:1])])
    columns = ["without teacher", "online", "cached"] if teacher else ["hours"]
    return "\n".join([*lines, "", format_table(rows, ["estimated hours", "peak TFLOP/s", "share reached", *columns])])


def footnotes(gpus: Sequence[str], num_gpus: int = 1, utilisation: float | None = None) -> str:
    """Return what the estimates rest on."""
    lines = [f"Estimates: FLOPs of training steps / (peak x share reached x {num_gpus} GPU(s)). Loading, evaluation, "
             "exchange between", "GPUs and everything that is no matrix product or convolution are left out."]
    if utilisation is not None:
        return "\n".join([*lines, f"The share reached, {utilisation:g}, is that of --utilisation."])
    lines += [f"The share reached is that of training {REFERENCE} in mixed precision. Others differ: by timm's figures "
              "for the rtx3090,", "vit_base_patch16_224 reaches 0.58, efficientnet_b0 with its depthwise convolutions "
              "0.06. Measure yours: --utilisation R."]
    for name in gpus:
        gpu = GPUS[name]
        lines.append(f"  {name}: {f'{gpu.images:,.0f} images/s ' if gpu.images else ''}({gpu.source})")
    return "\n".join(lines)
