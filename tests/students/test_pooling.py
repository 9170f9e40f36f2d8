"""Several poolings of one pass: what plain timm models with these poolings give their classifiers."""

import pytest
import timm
import torch
from timm.models import get_model_args

from tests.parts import random_images
from w2s_plugins.cli.forms import candidate_pieces
from w2s_plugins.distributed.world import Precision
from w2s_plugins.errors import UserError
from w2s_plugins.students.pooling import set_pooling
from w2s_plugins.students.probe import create_encoder

VIT = ["token", "avg", "max", "avgmax", "both"]
SMALL = dict(embed_dim=64, depth=3, num_heads=2, img_size=64)
MODELS = {
    "test_vit": ({"img_size": 64}, VIT),
    "vit_small_patch16_dinov3": (SMALL, VIT),  # EVA with registers, norm before the pooling
    "eva02_tiny_patch14_224": ({**SMALL, "img_size": 56}, VIT),  # norm behind it
    "test_convnext": ({}, ["avg", "max", "avgmax"]),
    "test_efficientnet": ({}, ["max", "catavgmax", "avg"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_candidates_are_what_plain_models_give_their_classifiers(name: str) -> None:
    kwargs, pools = MODELS[name]
    torch.manual_seed(0)
    student = timm.create_model(name, num_classes=10, **kwargs).eval()
    size = kwargs.get("img_size", 64)
    config = dict(input_size=(3, size, size), mean=(0.5,) * 3, std=(0.5,) * 3)
    blocks = [1, 3] if "token" in pools else [1]
    encoder = create_encoder(
        student, config, Precision(torch.device("cpu"), torch.float32), name, candidate_pieces(pools, blocks))
    images = random_images(4, size)
    features = encoder.model(images)
    columns = torch.cat([candidate.columns for candidate in encoder.candidates.values()])
    assert columns.unique().tolist() == list(range(encoder.width)) == list(range(features.shape[1]))
    for pool in set(pools) - {"both"}:
        candidate = encoder.candidates[pool]
        assert candidate.exportable
        set_pooling(student, candidate.pool, name)
        plain = timm.create_model(name, **get_model_args(student)).eval()
        plain.load_state_dict(student.state_dict())
        with torch.inference_mode():
            expected = plain.forward_head(plain.forward_features(images), pre_logits=True)
        torch.testing.assert_close(features[:, candidate.columns], expected, rtol=1e-5, atol=1e-5)
    if "both" not in pools:
        return
    states: list[torch.Tensor] = []
    for block in student.blocks[-3:]:
        block.register_forward_hook(lambda block, args, output: states.append(output))
    with torch.inference_mode():
        student(images)
        tokens = [student.fc_norm(student.norm(state)[:, 0]) for state in states]
    expected = torch.cat([*tokens, features[:, encoder.candidates["avg"].columns]], dim=1)
    found = encoder.candidates["both:3"]
    assert not found.exportable
    torch.testing.assert_close(features[:, found.columns], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name, pools, blocks, message", [
    ("test_vit", ["catavgmax", "avg"], [1], "test_vit has no such pooling"),
    ("test_convnext", ["avg", "both"], [1], "it has avg, max, avgmax"),
    ("test_vit", ["token"], [1, 99], "no class tokens of its last 99 blocks"),
])
def test_refused(name: str, pools: list[str], blocks: list[int], message: str) -> None:
    config = dict(input_size=(3, 64, 64), mean=(0.5,) * 3, std=(0.5,) * 3)
    student = timm.create_model(name, num_classes=10, **({"img_size": 64} if name == "test_vit" else {}))
    with pytest.raises(UserError, match=message):
        create_encoder(student, config, Precision(torch.device("cpu"), torch.float32), name,
                       candidate_pieces(pools, blocks))
