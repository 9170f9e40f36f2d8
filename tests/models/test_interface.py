"""timm's model interface, for every network of the package."""

from pathlib import Path

import pytest
import timm
import torch
from timm.models import group_parameters, save_for_hf

import w2s_plugins.models  # noqa: F401

# One of each class, for what does not depend on depth and width; the large ones made small.
SMALL = {
    "cifar_resnet8": {},
    "cifar_resnet50": {"depths": (1, 2, 1, 1), "widths": (16, 32, 32, 64, 64)},
    "cifar_vgg8": {},
    "cifar_wrn_16_2": {},
    "cifar_mobilenetv2": {},
    "cifar_shufflenetv1": {},
    "cifar_shufflenetv2": {},
    "preact_resnet18": {"depths": (2, 1, 1, 1), "widths": (16, 16, 32, 32, 64)},
    "fewshot_resnet18": {"depths": (1, 2, 1, 1)},
    "w2s_cnn2": {},
    "w2s_cnn5": {},
}


def images(size: int = 32, batch: int = 1, chans: int = 3) -> torch.Tensor:
    return torch.randn(batch, chans, size, size, generator=torch.Generator().manual_seed(0))


def create(name: str, **kwargs) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs).eval()


def small(name: str, **kwargs) -> torch.nn.Module:
    return create(name, **SMALL.get(name, {}), **kwargs)


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_features(name: str) -> None:
    model = small(name)
    x = images()
    final, features = model.forward_intermediates(x)
    assert torch.equal(final, model.forward_features(x))
    assert torch.equal(model.forward_head(final), model(x))
    assert final.shape[1] == model.num_features
    assert model.head_hidden_size == model.get_classifier().in_features
    assert model.forward_head(final, pre_logits=True).shape == (1, model.head_hidden_size)
    told = [(info["num_chs"], *[32 // info["reduction"]] * 2) for info in model.feature_info]
    assert [tuple(feature.shape[1:]) for feature in features] == told
    assert all(model.get_submodule(info["module"]) for info in model.feature_info)
    if not model.final:
        assert torch.equal(features[-1], final)
    last, (chosen,) = model.forward_intermediates(x, indices=[1])
    assert torch.equal(chosen, features[1]) and torch.equal(last, final)


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_reset_classifier(name: str) -> None:
    model = small(name)
    x = images()
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(5)
    assert model.num_classes == model.get_classifier().out_features == 5
    assert model(x).shape == (1, 5)
    model.reset_classifier(3, "catavgmax")
    assert model.head_hidden_size == 2 * model.num_features and model(x).shape == (1, 3)
    model.reset_classifier(0, "avg")
    assert model.num_classes == 0 and torch.equal(model(x), pooled)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), model.forward_features(x))


@pytest.mark.parametrize("coarse", [False, True], ids=["by block", "by stage"])
@pytest.mark.parametrize("name", SMALL)
def test_parameter_groups_follow_depth(name: str, coarse: bool) -> None:
    model = small(name)
    groups = group_parameters(model, model.group_matcher(coarse), reverse=True)
    order = [groups[key] for key, _ in model.named_parameters()]
    assert order == sorted(order)
    last = [key for key, group in groups.items() if group == max(order)]
    assert last == [f"{model.classifier_name}.weight", f"{model.classifier_name}.bias"]
    parts = bool(model.stem) + len(model._stages) + bool(model.final) + 1
    assert len(set(order)) == parts if coarse else len(set(order)) >= parts


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_export_loads_back(name: str, tmp_path: Path) -> None:
    model = small(name, num_classes=7, in_chans=1)
    assert model(images(64, 2, chans=1)).shape == (2, 7)
    save_for_hf(model, tmp_path, model_args={**SMALL[name], "in_chans": 1})
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(loaded(images(chans=1)), model(images(chans=1)))


@pytest.mark.parametrize("name", ["cifar_wrn_16_1", "w2s_cnn5"])
@torch.no_grad()
def test_compile_and_trace(name: str) -> None:
    model, x = small(name), images()
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))
    assert torch.equal(torch.jit.trace(model, x)(x), model(x))
