"""FLOPs against published figures and against hand counts; hours against published throughput."""

import re

import pytest
import torch
from timm.layers import set_fused_attn, use_fused_attn
from torch import nn

from w2s_plugins.study.cost import GPUS, PAPER, Recipe, count_flops, describe, model_flops, utilisation_of

from .conftest import Cli


@pytest.mark.parametrize(("name", "gmacs"), [
    ("resnet50", 4.09),  # timm's results: infer_gmacs 4.11, which also counts additions of biases
    ("vit_tiny_patch16_224", 1.254),
    ("vit_base_patch16_224", 17.58),
    ("efficientnet_b0", 0.386),
])
def test_forward_pass_of_known_models(name: str, gmacs: float) -> None:
    flops, size = model_flops("--model", name)
    assert size == 224
    assert flops.forward / 2e9 == pytest.approx(gmacs, rel=0.01)
    assert 1.95 < flops.backward / flops.forward < 2, "two gradients, but none of the images"


def test_attention_is_counted_and_the_setting_put_back() -> None:
    before = use_fused_attn(), use_fused_attn(experimental=True)
    try:
        set_fused_attn(True)
        forward = model_flops("--model", "vit_tiny_patch16_224", 10, 32)[0].forward
        assert use_fused_attn()
    finally:
        set_fused_attn(*before)
    tokens, width, blocks = 5, 192, 12
    products = tokens * width * width * 12 + 2 * tokens * tokens * width  # qkv, proj, mlp; q k^T and attention v
    assert forward == 2 * (blocks * products + 4 * width * 16 * 16 * 3 + width * 10)


@pytest.mark.parametrize("layer", [
    nn.Conv2d(8, 8, 3, groups=8, bias=False),
    nn.Conv2d(8, 16, 3, stride=2, groups=4, bias=False),
    nn.Conv2d(8, 16, 3, bias=False),
    nn.ConvTranspose2d(8, 16, 3, stride=2, groups=2, bias=False),
    nn.ConvTranspose2d(8, 8, 2, stride=2, groups=8, bias=False),
], ids=str)
def test_backward_pass_of_a_grouped_convolution(layer: nn.Module) -> None:
    """Each product of the forward pass returns once in each gradient."""
    class Twice(nn.Module):  # so that the second one has a gradient of its input as well
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(8, 8, 1, bias=False), layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))

    flops = count_flops(Twice().to("meta"), (8, 9, 9))
    first = 2 * 8 * 8 * 81
    transposed = isinstance(layer, nn.ConvTranspose2d)
    places = 81 if transposed else layer(torch.empty(1, 8, 9, 9, device="meta"))[0, 0].numel()
    second = 2 * places * layer.weight.numel()
    assert flops.forward == first + second
    assert flops.backward == first + 2 * second


def test_hours_are_those_of_published_throughput() -> None:
    """One epoch of ResNet-50 on ImageNet takes as long as its images at the published rate."""
    recipe = Recipe("run", "resnet50", None, epochs=100)
    for name in ("v100", "a100", "rtx3090", "rtx4090"):
        row = describe(recipe, [name]).splitlines()[-1].split()
        assert float(row[-1]) == pytest.approx(100 * 1_281_167 / GPUS[name].images / 3600, rel=0.01)
    reference = model_flops("--model", "resnet50")[0]
    assert utilisation_of("h100", reference) == utilisation_of("a100", reference)
    assert all(0.15 < utilisation_of(name, reference) < 0.5 for name in GPUS)


def test_teacher_online_and_cached() -> None:
    """Online it runs on every view, cached once on every image."""
    recipe = Recipe("run", "w2s_cnn5", "w2s_cnn2,w2s_cnn2", epochs=10, images=1000, num_classes=10, img_size=32)
    student = model_flops("--model", "w2s_cnn5", 10, 32)[0].training
    teacher = 2 * model_flops("--teacher", "w2s_cnn2", backward=False)[0].forward
    peak, share = GPUS["a100"].peak, 1e-9
    per_hour = peak * share * 2 * 3600
    *_, alone, online, cached = describe(recipe, ["a100"], 2, share).splitlines()[-1].split()
    assert float(alone) == pytest.approx(10_000 * student / per_hour, rel=0.01)
    assert float(online) == pytest.approx(10_000 * (student + teacher) / per_hour, rel=0.01)
    assert float(cached) == pytest.approx((10_000 * student + 1000 * teacher) / per_hour, rel=0.01)


def test_command_line(cli: Cli) -> None:
    code, out, _ = cli("cost", "--config", "hparams/imagenet_mae.yaml", "--model", "vit_tiny_patch16_224", "--teacher",
                       "resnet50", "--gpu", "A100", "--num-gpus", 8)
    assert code == 0
    assert "vit_tiny_patch16_224 <- resnet50, 224 px, 1000 classes, 1,281,167 images, 100 epochs" in out
    assert "teacher forward 8.18 (224 px)" in out
    assert "h100" not in out and "8 GPU(s)" in out


def test_the_paper_s_settings_are_those_of_the_recipes(cli: Cli) -> None:
    code, out, _ = cli("cost", "--gpu", "a100")
    assert code == 0
    for recipe in PAPER:
        assert f"{recipe.name}: {recipe.model} <- {recipe.teacher}, 224 px, {recipe.num_classes} classes" in out
    assert "8142 classes, 437,513 images, 100 epochs" in out
    blocks = [block for text in out.split("\n\n") for block in text.split(": ", 1)[1:]]
    for config, recipe in (("imagenet_v0", PAPER[0]), ("imagenet_mae", PAPER[1])):
        _, single, _ = cli("cost", "--config", f"hparams/{config}.yaml", "--model", recipe.model, "--teacher",
                           recipe.teacher, "--gpu", "a100")
        assert single.split("\n\n")[0].split(": ", 1)[1] in blocks


@pytest.mark.parametrize(("flags", "message"), [
    (["--model", "resnet5"], "--model: unknown model 'resnet5' (nearest: "),
    (["--model", "resnet50", "--teacher", "restnet18"], "--teacher: unknown model 'restnet18' (nearest: "),
    (["--model", "vit_tiny_patch16_224", "--img-size", 8], "--model vit_tiny_patch16_224: cannot be "),
    (["--config", "hparams/imagenet_v0.yaml"], "cost: hparams/imagenet_v0.yaml names no student; give --model NAME"),
    (["--config", "hparams/imagenet_v1.yaml"], "--config hparams/imagenet_v1.yaml: no such file (nearest: "),
    (["--gpu", "a10"], "--gpu: unknown GPU 'a10' (nearest: a100"),
    (["--utilisation", 1.5], "--utilisation: expected a share above 0, at most 1, found 1.5"),
    (["--epochs", 0], "--epochs: expected at least 1, found 0"),
    (["--epoch", 3], "cost: unknown argument '--epoch' (nearest: --epochs"),
    (["--images", "many"], "--images: invalid count value: 'many'"),
])
def test_errors(cli: Cli, flags: list[object], message: str) -> None:
    code, out, err = cli("cost", *flags)
    assert code == 2 and not out
    assert err.startswith(f"study: error: {message}") and err.count("\n") == 1


def test_labelling_a_billion_images(cli: Cli) -> None:
    flags = ["cost", "--label", "--teacher", "test_vit", "--img-size", 160, "--gpu", "a100", "--num-gpus", 10]
    code, out, err = cli(*flags, "--throughput", 1000)
    assert code == 0, err
    cells = [re.split(r"  +", line.strip()) for line in out.splitlines()]
    assert "1,000,000,000 images in 100,000 shards of 10,000, 1,000 classes, labelled by test_vit" in out
    assert ["hard", "2", "15.2 GB", "300,000"] in cells  # with 13 bytes of key each
    assert ["top-10", "42", "55.2 GB", "300,000"] in cells  # 11 values and 10 classes of 2 bytes
    assert ["logits or probabilities", "2,000", "2.01 TB", "300,000"] in cells
    assert ["--throughput", "1,000", "278", "27.8"] in cells
    assert any(row[0] == "a100, estimated" for row in cells)
    code, out, _ = cli(*flags, "--images", 100, "--num-classes", 300, "--throughput", "here")
    assert "this machine, measured" in out and "100 images in 1 shards" in out
    assert "--throughput: expected images per second, or here, found 0" in cli(*flags, "--throughput", 0)[2]
    assert "--top-k 1000: expected 1 to 999" in cli(*flags, "--top-k", 1000)[2]
