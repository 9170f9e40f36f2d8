"""What of a student is trained, by family of networks; adapters merge into plain weights."""

import copy

import pytest
import timm
import torch
from torch import nn

from w2s_plugins.errors import UserError
from w2s_plugins.settings.forms import parse_tuning
from w2s_plugins.students.adapters import merge_adapters
from w2s_plugins.students.tuning import choose_trained, freeze_batchnorm

VIT = dict(depth=3, embed_dim=32, num_heads=2, patch_size=16, img_size=64)
SMALL = dict(depth=2, embed_dim=32, num_heads=2, img_size=64)
# name: arguments that make it small, and the layers that get an adapter
FAMILIES = {
    "vit_tiny_patch16_224": (VIT, {"qkv", "proj", "fc1", "fc2"}),
    # its queries are read without calling the layer
    "eva02_tiny_patch14_224": (dict(SMALL, patch_size=16), {"proj", "fc1", "fc2"}),
    "convnext_atto": (dict(depths=(1, 1, 2, 1), dims=(8, 16, 32, 64)), {"fc1", "fc2"}),
    "tf_efficientnet_lite0": ({}, {"conv_pw", "conv_pwl", "conv_head"}),
    # pools by attention
    "vit_base_patch16_siglip_224": (SMALL, {"qkv", "q", "kv", "proj", "fc1", "fc2"}),
    "resnet18": ({}, {"conv1", "conv2", "0"}),
}
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **FAMILIES[name][0]).eval()


def trained(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad]


def tune(model: nn.Module, part: str) -> nn.Module:
    choose_trained(model, parse_tuning(part), IMAGES[:1], "student")
    return model


@pytest.mark.parametrize(
    "name, kind",
    [
        *((name, "lora") for name in FAMILIES),
        ("vit_tiny_patch16_224", "dora"),
        ("vit_tiny_patch16_224", "rslora"),
    ],
)
def test_adapters(name: str, kind: str) -> None:
    """They sit where the family has its layers, and merged they say the same."""
    plain = make(name)
    model = tune(copy.deepcopy(plain), f"lora:rank=2,kind={kind}")
    places = {n.split(".lora_A")[0].rpartition(".")[2] for n in trained(model) if ".lora_A" in n}
    assert places - {"1", "0"} == FAMILIES[name][1] - {"0"}
    assert len([n for n in trained(model) if "lora_" not in n]) == 2  # the head's
    with torch.no_grad():
        for n in trained(model):
            model.get_parameter(n).add_(0.05 * torch.randn(model.get_parameter(n).shape))
    adapted = model(IMAGES)
    assert (adapted - plain(IMAGES)).abs().max() > 1e-3
    merge_adapters(model)
    assert (model(IMAGES) - adapted).abs().max() <= 1e-5 * adapted.abs().max()
    assert model.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("name", FAMILIES)
def test_parts(name: str) -> None:
    """Each part is what its name says, the head always with it."""
    model = make(name)
    head = [
        n
        for n, p in model.named_parameters()
        if any(p is q for q in model.get_classifier().parameters())
    ]
    assert trained(tune(make(name), "head")) == head
    norms = set(trained(tune(make(name), "norm"))) - set(head)
    assert norms and all(model.get_submodule(n.rpartition(".")[0]).weight.ndim == 1 for n in norms)
    assert {n.rpartition(".")[2] for n in set(trained(tune(make(name), "bias"))) - set(head)} == {
        "bias"
    }
    one, two = (set(trained(tune(make(name), f"last:{n}"))) for n in (1, 2))
    assert set(head) < one < two < {n for n, _ in model.named_parameters()}


@pytest.mark.parametrize(
    "share, blocks", [("1", {"2"}), (".1", {"2"}), ("0.40", {"2"}), ("0.7", {"1", "2"})]
)
def test_last_blocks_of_a_transformer(share: str, blocks: set[str]) -> None:
    names = trained(tune(make("vit_tiny_patch16_224"), f"last:{share}"))  # of three
    assert {n.split(".")[0] for n in names} == {"blocks", "norm", "head"}
    assert {n.split(".")[1] for n in names if n.startswith("blocks")} == blocks


@pytest.mark.parametrize("count", [3, 4])
def test_the_stem_is_no_block(count: int) -> None:
    """Of two blocks above it as many can be trained, and a third one would be the stem."""
    model = make("vit_tiny_patch16_224")
    blocks = len(model.blocks)
    assert blocks == 3
    if count == blocks:
        names = trained(tune(model, f"last:{count}"))
        assert not [name for name in names if "embed" in name or "token" in name]
        return
    with pytest.raises(UserError, match=f"has {blocks} blocks above its stem; --tune all"):
        tune(model, f"last:{count}")


def test_dropout_of_adapters_reaches_them() -> None:
    model = tune(make("vit_tiny_patch16_224"), "lora:rank=2,dropout=0.25")
    rates = {
        module.p
        for name, module in model.named_modules()
        if ".lora_dropout." in name and isinstance(module, nn.Dropout)
    }
    assert rates == {0.25}


def test_two_heads() -> None:
    """Distilled transformers have two, and both are trained."""
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=5, **VIT)
    assert {n.split(".")[0] for n in trained(tune(model, "head"))} == {"head", "head_dist"}


@pytest.mark.parametrize("part", ["last:1", "norm"])
def test_statistics_belong_to_their_weights(part: str) -> None:
    """Where --tune trains a part no batch norm changes its statistics, or uses those of the batch."""
    model = tune(make("resnet18"), part)
    before = copy.deepcopy(model.state_dict())
    model.train()
    freeze_batchnorm(model)
    model(IMAGES)
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())
