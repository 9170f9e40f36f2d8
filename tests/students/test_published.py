"""Published checkpoints as the start of a student: the weights compute what an independent forward pass computes."""

import argparse
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.parts import random_images, train_args
from w2s_plugins.build.student import build_student
from w2s_plugins.distributed.world import World
from w2s_plugins.errors import UserError

WORLD = World(torch.device("cpu"), rank=0, size=1, distributed=False)
WIDTH, DEPTH, HEADS, PATCH = 32, 3, 4, 8
SIZE = 32  # 4 x 4 patches
IMAGES = random_images(3, SIZE)
SHAPE = dict(patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, mlp_ratio=4)


# ---------------------------------------------------------------- the originals: keys, and what they compute


def draw(*shape):
    return 0.3 * torch.randn(*shape)


def linear(name, out, width):
    return {f"{name}.weight": draw(out, width), f"{name}.bias": draw(out)}


def norm(name):
    return {f"{name}.weight": 1 + draw(WIDTH), f"{name}.bias": draw(WIDTH)}


def encoder(seed=0, scale=False):
    """An encoder in the layout that MAE, DINO, DINOv2 and MoCo v3 share."""
    torch.manual_seed(seed)
    state = {"cls_token": draw(1, 1, WIDTH), "pos_embed": draw(1, 17, WIDTH),
             "patch_embed.proj.weight": draw(WIDTH, 3, PATCH, PATCH), "patch_embed.proj.bias": draw(WIDTH)}
    for i in range(DEPTH):
        b = f"blocks.{i}"
        state |= norm(f"{b}.norm1") | linear(f"{b}.attn.qkv", 3 * WIDTH, WIDTH) | linear(f"{b}.attn.proj", WIDTH, WIDTH)
        state |= norm(f"{b}.norm2")
        state |= linear(f"{b}.mlp.fc1", 4 * WIDTH, WIDTH) | linear(f"{b}.mlp.fc2", WIDTH, 4 * WIDTH)
        if scale:
            state |= {f"{b}.ls1.gamma": draw(WIDTH), f"{b}.ls2.gamma": draw(WIDTH)}
    return state | norm("norm")


def tokens_of(state, images, registers=None):
    """The tokens behind the last block, by the published definitions alone."""
    def apply(name, x):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def normalise(name, x):
        return F.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def attend(name, x):
        q, k, v = apply(f"{name}.qkv", x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / (WIDTH // HEADS) ** 0.5).softmax(-1)
        return apply(f"{name}.proj", (weights @ v).transpose(1, 2).flatten(2))

    def feed(name, x):
        return apply(f"{name}.fc2", F.gelu(apply(f"{name}.fc1", x)))

    x = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=PATCH)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x.flatten(2).mT], dim=1) + state["pos_embed"]
    if registers is not None:
        x = torch.cat([x[:, :1], registers.expand(len(x), -1, -1), x[:, 1:]], dim=1)
    for i in range(DEPTH):
        for part, act in (("1", lambda n, x: attend(f"{n}.attn", x)), ("2", lambda n, x: feed(f"{n}.mlp", x))):
            y = act(f"blocks.{i}", normalise(f"blocks.{i}.norm{part}", x))
            x = x + y * state.get(f"blocks.{i}.ls{part}.gamma", torch.ones(()))
    return x, normalise


def class_features(state, images=IMAGES, registers=None):
    tokens, normalise = tokens_of(state, images, registers)
    return normalise("norm", tokens)[:, 0]


def sines(x, y):
    """Positions of 4 x 4 patches, one by one: x counts the patches of a row and y the rows, or the other way round."""
    def waves(place):
        angles = [place / 10_000 ** (k / (WIDTH // 4)) for k in range(WIDTH // 4)]
        return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]

    rows = [[0.0] * WIDTH] + [waves(x(i, j)) + waves(y(i, j)) for i in range(4) for j in range(4)]
    return torch.tensor(rows)[None]


def mae(seed=0, decoder=False):
    state = encoder(seed)
    state["pos_embed"] = sines(lambda i, j: j, lambda i, j: i)
    if decoder:
        state |= {"mask_token": draw(1, 1, 16), "decoder_pos_embed": draw(1, 17, 16)}
        state |= linear("decoder_embed", 16, WIDTH)
        state |= linear("decoder_blocks.0.attn.qkv", 48, 16) | linear("decoder_pred", 192, 16)
    return state


# ---------------------------------------------------------------- the students


def student(file, *flags, model="test_vit", kwargs=()):
    flags = ["--model", model, "--num-classes", "7", "--finetune", str(file), *flags]
    if model == "test_vit":
        shape = [f"{k}={v}" for k, v in SHAPE.items()]
        flags += ["--img-size", str(SIZE), "--model-kwargs", *shape, *kwargs]
    torch.manual_seed(1)
    args = train_args(*flags)
    built = build_student(args, WORLD, args.num_classes)
    return built.model.eval(), built.found


def pooled(model, images=IMAGES):
    """What goes into the head."""
    with torch.no_grad():
        return model.forward_head(model.forward_features(images), pre_logits=True)


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
    state = mae(decoder=decoder)
    model, found = student(save({"model": state}))
    tokens, _ = tokens_of(state, IMAGES)
    same(pooled(model), F.layer_norm(tokens[:, 1:].mean(1), (WIDTH,), eps=1e-6))  # fc_norm is new
    assert (found["gp"], model.global_pool) == ("avg", "avg")  # and so in args.yaml
    assert "pooling is avg" in log.text and "--gp token" in log.text
    ignored = "10 (mask_token, decoder_pos_embed, decoder_embed.weight, decoder_embed.bias, ...)" if decoder else (
        "2 (norm.weight, norm.bias)")
    new = "4 (fc_norm.weight, fc_norm.bias, head.weight, head.bias)"
    assert f"(MAE): 40 tensors loaded, {ignored} ignored, {new} new" in log.text
    assert "images are normalised by mean (0.5, 0.5, 0.5)" in log.text and "--mean 0.485 0.456 0.406" in log.text


def test_weights_that_are_not_finite(save):
    state = mae()
    state["blocks.1.mlp.fc1.bias"][3] = float("nan")
    message = r"--finetune .*a.pth: 1 of its 42 tensors have values that are not finite \(blocks.1.mlp.fc1.bias\)"
    with pytest.raises(UserError, match=message):
        student(save({"model": state}))


@pytest.mark.parametrize("flags", [["--gp", "token"], []])
def test_the_flag_decides_about_pooling(save, log, flags):
    state = mae()
    model, _ = student(save({"model": state}), *flags, kwargs=() if flags else ["global_pool=token"])
    same(pooled(model), class_features(state))
    assert "pooling is" not in log.text and model.global_pool == "token"
    assert "42 tensors loaded, none ignored, 2 (head.weight, head.bias) new" in log.text


def test_dino(save, log):
    """The backbone alone, and a whole checkpoint, of which the teacher counts; its projection is left out."""
    state = encoder()
    model, _ = student(save(state))
    same(pooled(model), class_features(state))
    head = linear("head.mlp.0", 8, WIDTH) | {"head.last_layer.weight_g": draw(9, 1)}
    teacher = {f"backbone.{k}": v for k, v in state.items()} | head
    pupil = {f"module.backbone.{k}": v for k, v in encoder(5).items()} | {f"module.{k}": v for k, v in head.items()}
    file = save(dict(student=pupil, teacher=teacher, epoch=1, args=argparse.Namespace(arch="vit"), fp16_scaler=None,
                     dino_loss={"center": draw(1, 9)}))
    model, _ = student(file)
    same(pooled(model), class_features(state))
    ignored = "3 (head.mlp.0.weight, head.mlp.0.bias, head.last_layer.weight_g)"
    assert f"(DINO): 42 tensors loaded, {ignored} ignored" in log.text


def chunked(state):
    """The names of blocks that were wrapped in two chunks: every block keeps its number in the whole."""
    return {k.replace(f"blocks.{k.split('.')[1]}.", f"blocks.{int(k.split('.')[1]) // 2}.{k.split('.')[1]}.")
            if k.startswith("blocks.") else k: v for k, v in state.items()}


@pytest.mark.parametrize("form", [dict, chunked])
@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2(save, log, form, registers):
    state = encoder(scale=True)
    published = form(state) | {"mask_token": draw(1, WIDTH)}
    extra = draw(1, registers, WIDTH) if registers else None
    if registers:
        published["register_tokens"] = extra
    kwargs = ["init_values=1", *((f"reg_tokens={registers}", "no_embed_class=True") if registers else ())]
    model, _ = student(save(published), kwargs=kwargs)
    same(pooled(model), class_features(state, registers=extra))
    assert "(DINOv2): " in log.text and "2 (head.weight, head.bias) new" in log.text


def moco(inner, other, projector):
    state = {f"module.base_encoder.{k}": v for k, v in (inner | projector).items()}
    state |= {f"module.momentum_encoder.{k}": v for k, v in other.items()} | linear("module.predictor.0", 8, 8)
    return dict(epoch=300, arch="vit_small", state_dict=state, optimizer={"state": {}, "param_groups": []})


def test_moco(save, log):
    state = encoder()
    projector = {**linear("head.0", 8, WIDTH), "head.1.running_mean": draw(8)}
    file = save(moco(state, encoder(7), projector))
    model, _ = student(file)
    same(pooled(model), class_features(state))
    assert "(MoCo): 42 tensors loaded" in log.text and "module.momentum" not in log.text
    assert not any(k.startswith("head.0") for k in model.state_dict())


# ---------------------------------------------------------------- CLIP


class ClipBlock(nn.Module):
    """A block of CLIP's visual transformer, under its names."""

    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp = nn.ModuleDict(dict(c_fc=nn.Linear(WIDTH, 4 * WIDTH), c_proj=nn.Linear(4 * WIDTH, WIDTH)))

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        hidden = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](hidden * torch.sigmoid(1.702 * hidden))


class ClipVisual(nn.Module):
    """CLIP's visual transformer, under its names; returns the class token before the projection."""

    def __init__(self):
        super().__init__()
        self.class_embedding, self.positional_embedding = nn.Parameter(draw(WIDTH)), nn.Parameter(draw(17, WIDTH))
        self.proj = nn.Parameter(draw(WIDTH, 7))  # as wide as the student has classes, and not its head
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.transformer = nn.ModuleDict(dict(resblocks=nn.ModuleList(ClipBlock() for _ in range(DEPTH))))
        for parameter in self.parameters():
            parameter.data = parameter.data + draw(*parameter.shape)

    def forward(self, images):
        x = self.conv1(images).flatten(2).mT
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        x = self.ln_pre(x)
        for block in self.transformer["resblocks"]:
            x = block(x)
        return self.ln_post(x[:, 0])


CLIP = ["pre_norm=True", "act_layer=quick_gelu", "norm_layer=layernorm"]


def clip_state(visual, prefix=""):
    state = {f"{prefix}visual.{k}": v for k, v in visual.state_dict().items()}
    state |= {f"{prefix}{k}": v for k, v in ({"logit_scale": draw(1).squeeze(), "text_projection": draw(8, 7)}
                                             | linear("transformer.resblocks.0.mlp.c_fc", 8, 8)).items()}
    return state


@pytest.mark.parametrize("wrap", [lambda v: clip_state(v), lambda v: {"state_dict": clip_state(v, "module.")}],
                         ids=["openai", "open_clip"])
def test_clip(save, log, wrap):
    torch.manual_seed(0)
    visual = ClipVisual().eval()
    model, _ = student(save(wrap(visual)), kwargs=CLIP)
    with torch.no_grad():
        torch.testing.assert_close(pooled(model), visual(IMAGES), rtol=1e-3, atol=1e-4)
    assert "(CLIP): 43 tensors loaded, 5 (" in log.text and "2 (head.weight, head.bias) new" in log.text
    assert not torch.equal(model.head.weight, visual.proj.T)
    assert "--mean 0.48145466" in log.text


# ---------------------------------------------------------------- what is refused


def test_torchscript_archive(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "ViT-B-32.pt"))
    with pytest.raises(UserError, match=r"ViT-B-32.pt: refused: .* a TorchScript archive") as info:
        student(tmp_path / "ViT-B-32.pt")
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("content, message", [
    (dict(model=mae()), r"0 matched.*MAE weights are for models such as vit_base_patch16_224.mae"),
    (dict(teacher={}, student={}), "holds no tensors"),
    (dict(model={"a": torch.ones(2)}, args=argparse.Namespace(x=np.float64)), "refused: it is a pickle that would run"),
])
def test_nothing_matches(save, content, message):
    with pytest.raises(UserError, match=message):
        student(save(content), model="w2s_cnn2")


@pytest.mark.parametrize("make, kwargs, message", [
    (lambda: clip_state(ClipVisual()), [],
     r"norm_pre.*; CLIP weights are for models such as vit_base_patch16_clip_224"),
    (lambda: encoder(scale=True) | {"mask_token": draw(1, WIDTH)}, [],
     r"blocks.0.ls1.gamma.*; DINOv2 weights are for models such as"),
    (lambda: encoder(scale=True) | {"mask_token": draw(1, WIDTH), "register_tokens": draw(1, 4, WIDTH)},
     ["init_values=1"], "register_tokens.*; DINOv2 with registers weights are for models such as"),
    (lambda: {"model": mae()}, ["depth=2"], r"unexpected \(blocks.2"),
], ids=["clip", "dinov2", "registers", "depth"])
def test_weights_of_another_shape(save, make, kwargs, message):
    with pytest.raises(UserError, match=message):
        student(save(make()), kwargs=kwargs)
