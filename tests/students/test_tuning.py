"""What of a student is trained, by family of networks; adapters merge into plain weights and are PEFT's own."""

import copy
import re
from pathlib import Path

import peft
import pytest
import timm
import torch
from torch import nn

from w2s_plugins.errors import UserError
from w2s_plugins.students.adapters import Adapters, merge_adapters
from w2s_plugins.students.tuning import Tuning, choose_trained, freeze_batchnorm, matching

VIT = dict(depth=3, embed_dim=32, num_heads=2, patch_size=16, img_size=64)
SMALL = dict(depth=2, embed_dim=32, num_heads=2, img_size=64)
FAMILIES = {
    "vit_tiny_patch16_224": VIT,
    "eva02_tiny_patch14_224": dict(SMALL, patch_size=16),
    "convnext_atto": dict(depths=(1, 1, 2, 1), dims=(8, 16, 32, 64)),
    "tf_efficientnet_lite0": {},
    "vit_small_patch16_dinov3": SMALL,
    "vit_base_patch16_siglip_224": SMALL,  # pools by attention
    "vit_base_patch16_clip_224": SMALL,
    "naflexvit_base_patch16_gap": SMALL,
    "swin_tiny_patch4_window7_224": dict(embed_dim=24, depths=(1, 2), num_heads=(1, 2), window_size=4, img_size=64),
    "resnet18": {},
}
ADAPTED = {
    "vit_tiny_patch16_224": {"qkv", "proj", "fc1", "fc2"},
    "eva02_tiny_patch14_224": {"proj", "fc1", "fc2"},  # its queries are read without calling the layer
    "vit_small_patch16_dinov3": {"qkv", "proj", "fc1", "fc2"},
    "vit_base_patch16_siglip_224": {"qkv", "q", "kv", "proj", "fc1", "fc2"},
    "vit_base_patch16_clip_224": {"qkv", "proj", "fc1", "fc2"},
    "naflexvit_base_patch16_gap": {"qkv", "proj", "fc1", "fc2"},
    "convnext_atto": {"fc1", "fc2"},
    "tf_efficientnet_lite0": {"conv_pw", "conv_pwl", "conv_head"},
    "swin_tiny_patch4_window7_224": {"qkv", "proj", "fc1", "fc2", "reduction"},
    "resnet18": {"conv1", "conv2", "0"},
}
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **FAMILIES[name]).eval()


def trained(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad]


def tune(model: nn.Module, part: str = "all", **settings: object) -> nn.Module:
    choose_trained(model, Tuning(part, **settings), IMAGES[:1], "student")
    return model


@pytest.mark.parametrize("name, kind", [
    *((name, "lora") for name in FAMILIES), ("vit_tiny_patch16_224", "dora"), ("vit_tiny_patch16_224", "rslora")])
def test_adapters(name: str, kind: str, tmp_path: Path) -> None:
    """They sit where the family has its layers; merged they say the same; PEFT reads what lies beside the export."""
    plain = make(name)
    model = tune(copy.deepcopy(plain), "lora", adapters=Adapters(rank=2, kind=kind))
    places = {n.split(".lora_A")[0] for n in trained(model) if ".lora_A" in n}
    assert {place.rpartition(".")[2] for place in places} - {"1", "0"} == ADAPTED[name] - {"0"}
    head = {n for n in trained(model) if "lora_" not in n}
    assert all(p is not None for p in head) and len(head) == 2
    if kind != "dora":  # an adapter begins as nothing, but for the kernels that some CPUs choose
        torch.testing.assert_close(model(IMAGES), plain(IMAGES), rtol=0, atol=1e-6)
    with torch.no_grad():
        for n in trained(model):
            model.get_parameter(n).add_(0.05 * torch.randn(model.get_parameter(n).shape))
    adapted = model(IMAGES)
    assert (adapted - plain(IMAGES)).abs().max() > 1e-3
    taken = merge_adapters(model, IMAGES)
    assert (model(IMAGES) - adapted).abs().max() <= 1e-5 * adapted.abs().max()
    assert model.state_dict().keys() == plain.state_dict().keys()
    taken.save(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(again(IMAGES), adapted, rtol=0, atol=1e-6 * adapted.abs().max().item())


@pytest.mark.parametrize("name", FAMILIES)
def test_parts(name: str) -> None:
    """Each part is what its name says, the head always with it."""
    model = make(name)
    head = [n for n, p in model.named_parameters() if any(p is q for q in model.get_classifier().parameters())]
    assert trained(tune(make(name), "head")) == head
    norms = set(trained(tune(make(name), "norm"))) - set(head)
    assert norms and all(isinstance(model.get_submodule(n.rpartition(".")[0]).weight, nn.Parameter)
                         and model.get_submodule(n.rpartition(".")[0]).weight.ndim == 1 for n in norms)
    assert {n.rpartition(".")[2] for n in set(trained(tune(make(name), "bias"))) - set(head)} == {"bias"}
    one, two = (set(trained(tune(make(name), f"last:{n}"))) for n in (1, 2))
    assert set(head) < one < two < {n for n, _ in model.named_parameters()}


def test_last_blocks_of_a_transformer() -> None:
    names = trained(tune(make("vit_tiny_patch16_224"), "last:1"))
    assert {n.split(".")[0] for n in names} == {"blocks", "norm", "head"}
    assert {n.split(".")[1] for n in names if n.startswith("blocks")} == {"2"}
    for share, blocks in ((".1", {"2"}), ("0.40", {"2"}), ("0.7", {"1", "2"})):  # of three
        names = trained(tune(make("vit_tiny_patch16_224"), f"last:{share}"))
        assert {n.split(".")[1] for n in names if n.startswith("blocks")} == blocks
    for odd in ("last:0.0", "last:1.5", "last:0", "last:-1"):
        with pytest.raises(UserError, match="expected one of all"):
            tune(make("vit_tiny_patch16_224"), odd)


def test_two_heads() -> None:
    """Distilled transformers have two, and both are trained."""
    torch.manual_seed(0)
    plain = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=5, **VIT).eval()
    assert {n.split(".")[0] for n in trained(tune(copy.deepcopy(plain), "head"))} == {"head", "head_dist"}
    model = tune(copy.deepcopy(plain), "lora", adapters=Adapters(rank=2))
    taken = merge_adapters(model, IMAGES)
    assert taken.config.modules_to_save == ["head", "head_dist"]
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_patterns() -> None:
    model = tune(make("vit_tiny_patch16_224"), freeze=("blocks", "*_embed*"), unfreeze=("blocks.2.mlp",))
    assert not any(n.startswith(("blocks.0", "patch_embed", "pos_embed")) for n in trained(model))
    assert {n for n in trained(model) if n.startswith("blocks")} == {
        f"blocks.2.mlp.{layer}.{kind}" for layer in ("fc1", "fc2") for kind in ("weight", "bias")}
    assert matching(["a.b.w", "a.c.w"], ["a.b"], "--freeze") == {"a.b.w"}


@pytest.mark.parametrize("part, settings, message", [
    ("lst:2", {}, "--tune lst:2: expected one of all, head, norm, bias, last:N, last:SHARE, lora"),
    ("last:9", {}, "--tune last:9: student has 3 blocks"),
    ("all", dict(freeze=("blcks",)), "--freeze blcks: fits no parameter of the model (nearest: blocks"),
    ("all", dict(freeze=("nowhere",)), "its parts are called cls_token, pos_embed, patch_embed, blocks, norm, head"),
    ("all", dict(freeze=("*",)), "--freeze *: nothing of student is left to train"),
    ("lora", dict(adapters=Adapters(rank=64)), "--tune lora:rank=64: blocks.0.attn.qkv of student is 32 wide"),
    ("lora", dict(adapters=Adapters(targets=("head",))), "--tune lora:targets=head: student has no such linear layer"),
    ("lora", dict(unfreeze=("blocks.0",)), "--unfreeze blocks.0: blocks.0.attn.proj.bias cannot be trained beside"),
    ("lora", dict(adapters=Adapters(targets=("qvk",))), "--tune lora:targets=qvk: student has no such linear layer or "
     "convolution (nearest: qkv)"),
])
def test_bad_input(part: str, settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        tune(make("vit_tiny_patch16_224"), part, **settings)


def test_convolutions_in_groups() -> None:
    with pytest.raises(UserError, match="conv_dw: student has no such linear layer or convolution"):
        tune(timm.create_model("test_efficientnet"), "lora", adapters=Adapters(rank=4, targets=("conv_dw",)))


def test_nothing_to_adapt() -> None:
    class Embedding(nn.Embedding):
        def get_classifier(self) -> nn.Module:
            return self

    with pytest.raises(UserError, match="--tune lora: student has no linear layer or convolution to adapt"):
        tune(Embedding(3, 4), "lora")


def test_statistics_belong_to_their_weights() -> None:
    """Where --tune trains a part no batch norm changes its statistics, or uses those of the batch; with --freeze none
    that is frozen.
    """
    for part, freeze, held in (("last:1", (), ""), ("norm", (), ""), ("all", ("*1", "layer[123]"), "layer4")):
        model = tune(make("resnet18"), part, freeze=freeze)
        before = copy.deepcopy(model.state_dict())
        model.train()
        freeze_batchnorm(model)
        model(IMAGES)
        changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
        assert bool(changed) == bool(held) and all(n.startswith(held) for n in changed)
