"""The inference form of teachers: equal to the plain one, without what only training needs."""

import copy
import logging

import pytest
import timm
import torch
from timm.data import resolve_data_config
from torch import nn

from tests.parts import random_images, small_model, train_settings
from w2s_plugins.distributed.world import Precision
from w2s_plugins.models.feature_extraction import create_feature_extractor, pooled_features
from w2s_plugins.models.fingerprint import fingerprint
from w2s_plugins.models.inference import (
    cpu_has_bfloat16_units,
    inference_dtype,
    inference_form,
)
from w2s_plugins.teachers.teacher import StudentInput, Teacher, TeacherModel
from w2s_plugins.training.device import create_precision, join_processes
from w2s_plugins.training.teacher import build_teacher

SIZE = (3, 64, 64)
TOLERANCE = 2e-5  # of the largest value of an output; rounding gives about 1e-6

# Models of different families, and how many of their batch norms remain.
FAMILIES = {
    "resnet10t": 0,
    "test_efficientnet": 0,
    "test_byobnet": 0,
    "test_vit": 0,
    "repvgg_a0": 0,
    "w2s_cnn5": 0,
    "cifar_wrn_16_1": 7,  # those before a convolution
}


def trained(model: nn.Module) -> nn.Module:
    """Move batch norm off what it is when it is created."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
            ):
                tensor.data.uniform_(low, high, generator=generator)
    return model.eval().requires_grad_(False)


def create(name: str) -> nn.Module:
    torch.manual_seed(0)
    return trained(
        timm.create_model(name, num_classes=10, **({"img_size": 64} if "vit" in name else {}))
    )


def count_norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def outputs(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Logits, every feature level, pre-logits."""
    with torch.inference_mode():
        final, maps = model.forward_intermediates(images)
        return [model(images), *maps, model.forward_head(final, pre_logits=True)]


def assert_equal_outputs(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE * b.abs().max().item())


def member(model: nn.Module, **kwargs: object) -> TeacherModel:
    config = {**resolve_data_config(model=model), "input_size": SIZE}
    return TeacherModel(model, config, StudentInput(config["mean"], config["std"], 3, 10), **kwargs)


@pytest.mark.parametrize("name", FAMILIES)
def test_same_outputs_with_fewer_operations(name):
    model = create(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modules = repr(model)
    form = inference_form(model, SIZE)
    images = random_images(3, 64)
    assert_equal_outputs(outputs(form, images), outputs(model, images))
    assert count_norms(form) == FAMILIES[name]
    assert repr(model) == modules
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m.training for m in form.modules()) and not any(
        p.requires_grad for p in form.parameters()
    )


class Tangled(nn.Module):
    """Batch norms of which only the last can be folded."""

    def __init__(self):
        super().__init__()
        self.read_twice, self.norm1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.called_twice, self.norm2 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.before_relu, self.norm3 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.shared, self.tokens = nn.Conv2d(8, 8, 1), nn.Linear(16, 8)
        self.norm4 = nn.BatchNorm1d(8)  # its channels are not the features of the linear layer
        self.no_statistics, self.norm5 = (
            nn.Conv1d(8, 8, 1),
            nn.BatchNorm1d(8, track_running_stats=False),
        )
        self.reshaped, self.norm6 = nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.head, self.norm7 = nn.Linear(8, 10), nn.BatchNorm1d(10)

    def forward(self, x):
        x = self.read_twice(x)
        x = self.norm1(x) + x
        x = self.norm2(self.called_twice(x)) + self.called_twice(x * 2)
        x = self.norm3(self.before_relu(x).relu_())
        x = self.norm1(self.shared(x))
        x = self.norm4(self.tokens(x.flatten(2)[:, :, :16]))
        x = self.norm5(self.no_statistics(x))
        x = self.norm6(self.reshaped(x).flatten(0, 1)).unflatten(0, (-1, 8)).mean(1)
        return self.norm7(self.head(x))


def test_only_a_norm_that_alone_reads_a_layer_is_folded():
    torch.manual_seed(0)
    model = trained(Tangled())
    form = inference_form(model, SIZE)
    kept = [
        name
        for name, module in form.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    assert kept == ["norm1", "norm2", "norm3", "norm4", "norm5", "norm6"]
    images = random_images(3, 64)
    with torch.inference_mode():
        assert_equal_outputs([form(images)], [model(images)])


class Odd(nn.Sequential):
    """Looks at its batch norm, ``how`` decides for what."""

    def __init__(self, how: str):
        super().__init__(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.how = how

    def forward(self, x):
        if self.how == "reads its weight":
            return super().forward(x) * self[1].weight.sum()
        return super().forward(x) + isinstance(self[1], nn.BatchNorm2d)


@pytest.mark.parametrize(
    "how, message",
    [
        ("reads its weight", "Odd: fold_batch_norms is left out: AttributeError"),
        (
            "asks for its type",
            "Odd: fold_batch_norms is left out: RuntimeError('changes outputs by ",
        ),
    ],
)
def test_a_change_that_does_not_work_is_left_out(how, message, caplog):
    caplog.set_level(logging.DEBUG, "w2s_plugins")
    model = trained(Odd(how))
    form = inference_form(model, SIZE)
    assert count_norms(form) == 1
    assert torch.equal(form(random_images(3, 64)), model(random_images(3, 64)))
    assert [r.levelname for r in caplog.records] == ["DEBUG"] and caplog.text.count(message) == 1


# ---------------------------------------------------------------- in a teacher


def test_identity_is_that_of_the_plain_model():
    model = create("test_resnet")
    expected = {**fingerprint(copy.deepcopy(model)), "class_map": None, "dtype": "float32"}
    teacher = member(model)
    assert count_norms(teacher.fast) == 0 and teacher.fingerprint == expected


def test_features_of_a_teacher():
    """Also of a level that is a convolution's output, which only batch norm reads: the stem of a wide ResNet."""
    model, images = create("cifar_wrn_16_1"), random_images(3, 64)
    extractor = create_feature_extractor(model, SIZE, range(4))
    with torch.no_grad():
        expected_logits, expected = extractor(model, images)
    teacher = Teacher([member(model)])
    teacher.choose_stages(range(4))
    logits, features = teacher.with_features(images)
    assert_equal_outputs([logits, *features], [expected_logits, *expected])
    assert_equal_outputs([teacher(images)], [expected_logits])
    assert_equal_outputs(teacher.encode(images), [pooled_features(model, images)])


@pytest.mark.parametrize(
    "device, dtype, expected",
    [
        ("cpu", torch.float16, torch.float32),
        ("cuda", None, torch.float32),
        ("cuda", torch.float16, torch.float16),
    ],
)
def test_dtype_that_is_fastest(device, dtype, expected):
    assert inference_dtype(Precision(torch.device(device), amp_dtype=dtype)) == expected
    assert inference_dtype(Precision(torch.device(device), dtype or torch.float32)) == expected


@pytest.mark.parametrize(
    "flags, is_half", [(("--amp",), True), (("--model-dtype", "bfloat16"), True), ((), False)]
)
def test_flags_of_a_teacher(flags, is_half, tmp_path):
    student = small_model()
    torch.save(student.state_dict(), tmp_path / "weak.pth")
    settings = train_settings(
        "--teacher", "w2s_cnn2", "--teacher-checkpoint", str(tmp_path / "weak.pth"), *flags
    )
    world = join_processes(settings.compute)
    teacher = build_teacher(
        settings,
        student,
        resolve_data_config(model=student),
        create_precision(settings.compute, world),
    )
    assert teacher.members[0].dtype == (
        torch.bfloat16 if is_half and cpu_has_bfloat16_units() else torch.float32
    )
