"""Features of timm models: one pass, logits equal to the last bit, maps and pre-logits of known shapes."""

import copy

import pytest
import timm
import torch
from torch import nn

from tests.parts import assert_refused
from w2s_plugins.models.feature_extraction import create_feature_extractor, default_stages

SIZE = 64
WITH_SIZE = [  # as img_size
    "test_coatnet",
    "test_maxvit",
    "test_vit",
    "test_vit_relpos",
    "deit_tiny_distilled_patch16_224",
    "efficientvit_m0",
    "levit_128s",
    "mvitv2_tiny",
    "swin_tiny_patch4_window7_224",
    "vit_tiny_patch16_dinov3_qkvb",
    "volo_d1_224",
]
FAMILIES = [
    *WITH_SIZE,
    "test_byobnet",
    "test_convnext",
    "test_efficientnet",
    "test_resnet",
    "densenet121",
    "edgenext_xx_small",
    "fastvit_t8",
    "mobilenetv3_small_050",
    "poolformer_s12",
    "resnetv2_18",
]


def create(name: str) -> tuple[nn.Module, torch.Tensor, tuple[int, int, int]]:
    torch.manual_seed(0)
    model = timm.create_model(
        name, num_classes=7, **({"img_size": SIZE} if name in WITH_SIZE else {})
    )
    return model, torch.randn(2, 3, SIZE, SIZE), (3, SIZE, SIZE)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_equal_the_models_and_shapes_are_known(name):
    model, images, input_size = create(name)
    model.eval()
    extract = create_feature_extractor(model, input_size)
    shallowest = create_feature_extractor(model, input_size, stages=[0])
    with torch.no_grad():
        expected = model(images)
        logits, features = extract(model, images)
        assert torch.equal(logits, expected)
        assert torch.equal(shallowest(model, images)[0], expected)
    assert [tuple(f.shape[1:]) for f in features] == list(extract.shapes)
    *maps, pre_logits = features
    assert 3 <= len(maps) <= 4
    assert all(m.ndim == 4 for m in maps)
    sizes = [m.shape[-1] for m in maps]
    assert sizes == sorted(sizes, reverse=True)
    assert pre_logits.ndim == 2


@pytest.mark.parametrize("name", FAMILIES)
def test_a_training_pass_is_the_models_own(name):
    model, images, input_size = create(name)
    extract = create_feature_extractor(model, input_size)
    assert model.training
    twin = copy.deepcopy(model)
    torch.manual_seed(1)
    logits, features = extract(model, images)
    torch.manual_seed(1)
    assert torch.equal(logits, twin(images))
    # else buffers were updated more than once
    torch.testing.assert_close(
        dict(model.named_buffers()), dict(twin.named_buffers()), rtol=0, atol=0
    )
    assert all(f.requires_grad for f in features)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "efficientvit_m0"])
def test_one_pass_gives_logits_and_features(name):
    model, images, input_size = create(name)
    extract = create_feature_extractor(model, input_size)
    calls = []
    for module in model.modules():
        if module is not model and list(module.parameters(recurse=False)):
            module.register_forward_hook(lambda module, *_: calls.append(module))
    model(images)
    expected = list(calls)
    calls.clear()
    extract(model, images)
    assert calls == expected


def test_stages_by_default():
    vit = [(192, 14, 14)] * 12
    assert default_stages(vit) == (2, 5, 8, 11) and default_stages(vit[:5]) == (0, 1, 2, 4)
    assert default_stages(vit[:2]) == (0, 1)
    assert default_stages([(64, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]) == (
        1,
        2,
        3,
        4,
    )


def test_chosen_stages():
    model, _, input_size = create("test_resnet")

    def shapes(stages) -> list[tuple[int, ...]]:
        return list(create_feature_extractor(model, input_size, stages).shapes)

    every = shapes(range(5))
    assert shapes([3, 1]) == [every[1], every[3], every[5]]
    assert shapes([-1]) == [every[4], every[5]]
    assert shapes(None) == every[1:]
    assert_refused(
        "expected one or more different levels out of the model's 5, 0 to 4", shapes, [5]
    )
    assert_refused("different levels", shapes, [4, -1])
    assert_refused("different levels", shapes, [])


def test_a_head_of_zeros_is_not_mistaken_for_a_plain_one():
    model, images, input_size = create("volo_d1_224")
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.aux_head.weight)
    extract = create_feature_extractor(model, input_size)
    nn.init.ones_(model.aux_head.bias)
    model.eval()
    assert torch.equal(extract(model, images)[0], model(images))
