"""Each loss on features between models of different kinds: over 10 steps on one batch it falls."""

from functools import cache

import pytest
import timm
import torch
from torch import nn

from w2s_plugins.losses import LossContext, LossInputs, create_loss
from w2s_plugins.models.features import create_feature_extractor

from .feature_cases import NAMES

SIZE = (3, 64, 64)
BATCH = 8
LR = 5e-4
FALL = {"vid": 0.001}  # share of the value at the start; vid's is mostly the logarithm of its variance
MODELS = {
    "cnn": ("test_resnet", {}),
    "vit": ("test_vit", {"img_size": 64}),
    "swin": ("swin_tiny_patch4_window7_224", {
        "img_size": 64, "window_size": 2, "embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 4)}),
    "convnext": ("test_convnext", {}),
}
PAIRS = [("cnn", "cnn"), ("vit", "cnn"), ("cnn", "vit"), ("vit", "vit"), ("swin", "convnext")]


def create(kind: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    name, kwargs = MODELS[kind]
    return timm.create_model(name, num_classes=5, **kwargs)


def images() -> torch.Tensor:
    return torch.randn(BATCH, *SIZE, generator=torch.Generator().manual_seed(0))


@cache
def teacher_outputs(kind: str) -> tuple[torch.Tensor, list[torch.Tensor], tuple[tuple[int, ...], ...]]:
    teacher = create(kind, seed=1).eval()
    extract = create_feature_extractor(teacher, SIZE)
    with torch.no_grad():
        logits, features = extract(teacher, images())
    return 10 * logits, features, extract.shapes  # an untrained head is unsure


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("student_kind", "teacher_kind"), PAIRS)
def test_loss_falls(student_kind, teacher_kind, name):
    teacher_logits, teacher_features, teacher_shapes = teacher_outputs(teacher_kind)
    student = create(student_kind, seed=2)
    extract = create_feature_extractor(student, SIZE)
    loss = create_loss(name, **({"negatives": 16, "feat_dim": 16} if name == "crd" else {}))
    loss.setup(LossContext(5, 8 * BATCH, list(extract.shapes), list(teacher_shapes)))
    before = {key: value.clone() for key, value in student.named_parameters()}
    optimizer = torch.optim.Adam([*student.parameters(), *loss.parameters()], lr=LR)
    batch, values = images(), []
    for _ in range(11):
        logits, features = extract(student, batch)
        value = sum(loss(LossInputs(
            logits,
            teacher_logits,
            target=torch.arange(BATCH) % 5,
            student_features=features,
            teacher_features=teacher_features,
            index=torch.arange(BATCH),
        )).values())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0] - FALL.get(name, 0.05) * abs(values[0])
    assert any(not torch.equal(value, before[key]) for key, value in student.named_parameters())
