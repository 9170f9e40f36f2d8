"""Published checkpoints as the start of a student: the weights compute what they did under their published names."""

import argparse

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import nn

from tests.parts import assert_refused, random_images, train_settings
from w2s_plugins.distributed.world import World
from w2s_plugins.training.student import build_student

WORLD = World(torch.device("cpu"), rank=0, size=1, distributed=False)
WIDTH, DEPTH, HEADS, PATCH = 32, 3, 4, 8
SIZE = 32  # 4 x 4 patches
IMAGES = random_images(3, SIZE)
SHAPE = dict(patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, mlp_ratio=4)


def draw(*shape):
    return 0.3 * torch.randn(*shape)


def encoder(seed=0, **more):
    """A ViT, whose names are those of MAE, DINO and DINOv2, and its weights, all of them drawn."""
    torch.manual_seed(seed)
    model = timm.create_model("test_vit", **SHAPE, img_size=SIZE, num_classes=0, **more).eval()
    state = {name: value + draw(*value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    return model, state


def linear(name, out, width):
    return {f"{name}.weight": draw(out, width), f"{name}.bias": draw(out)}


def mae(decoder=False):
    """An encoder without a position of its class token, and a decoder."""
    model, state = encoder()
    state["pos_embed"][:, 0] = 0
    model.load_state_dict(state)
    if decoder:
        state |= {"mask_token": draw(1, 1, 16), "decoder_pos_embed": draw(1, 17, 16)}
        state |= linear("decoder_embed", 16, WIDTH)
        state |= linear("decoder_blocks.0.attn.qkv", 48, 16) | linear("decoder_pred", 192, 16)
    return model, state


def student(file, *flags, model="test_vit", kwargs=()):
    flags = ["--model", model, "--num-classes", "7", "--finetune", str(file), *flags]
    if model == "test_vit":
        shape = {**SHAPE, **dict(word.split("=") for word in kwargs)}
        flags += [
            "--img-size",
            str(SIZE),
            "--model-kwargs",
            *(f"{k}={v}" for k, v in shape.items()),
        ]
    torch.manual_seed(1)
    settings = train_settings(*flags)
    built = build_student(settings, WORLD, settings.data.num_classes)
    return built.model.eval(), built.resolved


@torch.no_grad()
def pooled(model):
    """What goes into the head."""
    return model.forward_head(model.forward_features(IMAGES), pre_logits=True)


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.fixture
def log(caplog):
    caplog.set_level("INFO")
    return caplog


@pytest.fixture
def save(tmp_path):
    def write(content, name="a.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


@pytest.mark.parametrize("decoder", [False, True])
def test_mae_is_pooled_by_its_average(save, log, decoder):
    source, state = mae(decoder)
    model, found = student(save({"model": state}))
    source.norm = nn.Identity()
    with torch.no_grad():
        tokens = source.forward_features(IMAGES)[:, 1:]
    same(pooled(model), F.layer_norm(tokens.mean(1), (WIDTH,), eps=1e-6))  # fc_norm is new
    assert (found["gp"], model.global_pool) == ("avg", "avg")  # and so in args.yaml
    assert "pooling is avg" in log.text and "--gp token" in log.text
    ignored = (
        "10 (mask_token, decoder_pos_embed, decoder_embed.weight, decoder_embed.bias, ...)"
        if decoder
        else ("2 (norm.weight, norm.bias)")
    )
    new = "4 (fc_norm.weight, fc_norm.bias, head.weight, head.bias)"
    assert f"(MAE): 40 tensors loaded, {ignored} ignored, {new} new" in log.text
    assert (
        "images are normalised by mean (0.5, 0.5, 0.5)" in log.text
        and "--mean 0.485 0.456 0.406" in log.text
    )


@pytest.mark.parametrize("flags", [["--gp", "token"], []])
def test_the_flag_decides_about_pooling(save, log, flags):
    source, state = mae()
    model, _ = student(
        save({"model": state}), *flags, kwargs=() if flags else ["global_pool=token"]
    )
    same(pooled(model), pooled(source))
    assert "pooling is" not in log.text
    assert "42 tensors loaded, none ignored, 2 (head.weight, head.bias) new" in log.text


def test_dino(save, log):
    """The backbone alone, and a whole checkpoint, of which the teacher counts; its projection is left out."""
    source, state = encoder()
    same(pooled(student(save(state))[0]), pooled(source))
    head = linear("head.mlp.0", 8, WIDTH) | {"head.last_layer.weight_g": draw(9, 1)}
    teacher = {f"backbone.{k}": v for k, v in state.items()} | head
    pupil = {f"module.backbone.{k}": v for k, v in encoder(5)[1].items()} | {
        f"module.{k}": v for k, v in head.items()
    }
    file = save(
        dict(
            student=pupil,
            teacher=teacher,
            epoch=1,
            args=argparse.Namespace(arch="vit"),
            fp16_scaler=None,
            dino_loss={"center": draw(1, 9)},
        )
    )
    same(pooled(student(file)[0]), pooled(source))
    ignored = "3 (head.mlp.0.weight, head.mlp.0.bias, head.last_layer.weight_g)"
    assert f"(DINO): 42 tensors loaded, {ignored} ignored" in log.text


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2(save, log, chunked, registers):
    """Its blocks may be in two chunks; the class token of a model with registers has its position in it."""
    more = dict(
        init_values=1.0, **(dict(reg_tokens=registers, no_embed_class=True) if registers else {})
    )
    source, state = encoder(**more)
    published = state | {"mask_token": draw(1, WIDTH)}
    if registers:
        place = draw(1, 1, WIDTH)
        published["register_tokens"] = published.pop("reg_token")
        published["cls_token"] = state["cls_token"] - place
        published["pos_embed"] = torch.cat([place, state["pos_embed"]], dim=1)
    if chunked:
        for number in range(DEPTH):
            for name in [name for name in published if name.startswith(f"blocks.{number}.")]:
                published[f"blocks.{number // 2}.{name.removeprefix('blocks.')}"] = published.pop(
                    name
                )
    model, _ = student(save(published), kwargs=[f"{name}={value}" for name, value in more.items()])
    same(pooled(model), pooled(source))
    assert "(DINOv2): " in log.text and "2 (head.weight, head.bias) new" in log.text


# ---------------------------------------------------------------- CLIP


def clip_visual():
    """The visual transformer of open_clip, its weights drawn; a projection as wide as the student has classes."""
    visual = VisionTransformer(
        SIZE, PATCH, WIDTH, DEPTH, HEADS, mlp_ratio=4, output_dim=7, act_layer=QuickGELU
    )
    for parameter in visual.parameters():
        parameter.data = draw(*parameter.shape) + parameter.data
    return visual.eval()


CLIP = ["pre_norm=True", "act_layer=quick_gelu", "norm_layer=layernorm"]


def clip_state(visual, prefix=""):
    state = {f"{prefix}visual.{k}": v for k, v in visual.state_dict().items()}
    state |= {
        f"{prefix}{k}": v
        for k, v in (
            {"logit_scale": draw(1).squeeze(), "text_projection": draw(8, 7)}
            | linear("transformer.resblocks.0.mlp.c_fc", 8, 8)
        ).items()
    }
    return state


@pytest.mark.parametrize(
    "wrap",
    [lambda v: clip_state(v), lambda v: {"state_dict": clip_state(v, "module.")}],
    ids=["openai", "open_clip"],
)
def test_clip(save, log, wrap):
    torch.manual_seed(0)
    visual = clip_visual()
    model, _ = student(save(wrap(visual)), kwargs=CLIP)
    assert not torch.equal(model.head.weight, visual.proj.T)
    visual.proj = None  # what is before the projection
    with torch.no_grad():
        torch.testing.assert_close(pooled(model), visual(IMAGES), rtol=1e-3, atol=1e-4)
    assert (
        "(CLIP): 43 tensors loaded, 5 (" in log.text
        and "2 (head.weight, head.bias) new" in log.text
    )
    assert "--mean 0.48145466" in log.text


# ---------------------------------------------------------------- what is refused


def test_torchscript_archive(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "ViT-B-32.pt"))
    assert_refused(
        r"ViT-B-32.pt: refused: .* a TorchScript archive", student, tmp_path / "ViT-B-32.pt"
    )


def not_finite():
    _, state = mae()
    state["blocks.1.mlp.fc1.bias"][3] = float("nan")
    return state


@pytest.mark.parametrize(
    "make, model, kwargs, message",
    [
        (
            lambda: mae()[1],
            "w2s_cnn2",
            [],
            r"0 matched.*MAE weights are for models such as vit_base_patch16_224.mae",
        ),
        (lambda: dict(teacher={}, student={}), "w2s_cnn2", [], "holds no tensors"),
        (
            lambda: dict(model={"a": torch.ones(2)}, args=argparse.Namespace(x=np.float64)),
            "w2s_cnn2",
            [],
            "refused: it is a pickle that would run",
        ),
        (
            not_finite,
            "test_vit",
            [],
            r"1 of its 42 tensors have values that are not finite \(blocks.1.mlp.fc1.bias\)",
        ),
        (
            lambda: clip_state(clip_visual()),
            "test_vit",
            [],
            r"norm_pre.*; CLIP weights are for models such as vit_base_patch16_clip_224",
        ),
        (
            lambda: encoder(init_values=1.0)[1] | {"mask_token": draw(1, WIDTH)},
            "test_vit",
            [],
            r"blocks.0.ls1.gamma.*; DINOv2 weights are for models such as",
        ),
        (
            lambda: encoder(init_values=1.0)[1] | {"register_tokens": draw(1, 4, WIDTH)},
            "test_vit",
            ["init_values=1"],
            "register_tokens.*; DINOv2 with registers weights are for models such as",
        ),
        (lambda: mae()[1], "test_vit", ["depth=2"], r"unexpected \(blocks.2"),
    ],
)
def test_weights_of_another_model(save, make, model, kwargs, message):
    assert_refused(message, student, save(make()), model=model, kwargs=kwargs)
