"""The frozen beginning of a student: where it ends, and what the rest of the student makes of its stored outputs."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

import w2s_plugins.models  # noqa: F401  (registers the small networks)
from tests.parts import random_images
from w2s_plugins.distributed.world import Precision
from w2s_plugins.settings.forms import parse_tuning
from w2s_plugins.students.frozen import FrozenPart, find_frozen_part, run_whole
from w2s_plugins.students.tuning import choose_trained, freeze_batchnorm

SIZE = (3, 32, 32)
PLAIN = Precision(torch.device("cpu"))
LAST = Precision(PLAIN.device, layout=torch.channels_last)
AMP = Precision(PLAIN.device, amp_dtype=torch.bfloat16)
VIT = dict(img_size=32, num_classes=5)


def make(name: str, tune: str = "last:0.3", **kwargs: object) -> nn.Module:
    """A student of which a part is trained, whose head is all zeros, as that of the recipe."""
    torch.manual_seed(0)
    student = timm.create_model(name, **{"num_classes": 5, **kwargs})
    nn.init.zeros_(student.get_classifier().weight)
    choose_trained(student, parse_tuning(tune), torch.zeros(1, *SIZE), name)
    return student


def find(student: nn.Module, precision: Precision = PLAIN) -> FrozenPart | None:
    return find_frozen_part(student, SIZE, precision)


def step(student: nn.Module, batch: Tensor, precision: Precision) -> list[Tensor]:
    """Logits in training, with dropout where the student has some, and the gradients of its trained weights."""
    freeze_batchnorm(student.train())
    batch = batch.contiguous(memory_format=precision.layout)
    student.zero_grad()
    torch.manual_seed(1)
    with precision.autocast():
        logits = student(batch)
    nn.functional.cross_entropy(logits.float(), torch.arange(len(batch)) % 5).backward()
    gradients = [p.grad.clone() for p in student.parameters() if p.grad is not None]
    return [logits.detach(), *gradients]


@pytest.mark.parametrize(
    "precision", [PLAIN, LAST, AMP], ids=["float32", "channels last", "bfloat16"]
)
@pytest.mark.parametrize(
    ("name", "tune", "kwargs", "until"),
    [
        ("w2s_cnn5", "last:0.3", {}, "stage3.1"),
        ("tf_efficientnet_lite0", "last:0.3", {}, "blocks.4"),
        ("resnet18", "last:0.3", {}, "layer3"),
        ("test_vit", "last:0.3", dict(VIT, drop_rate=0.1), "blocks.3"),
        ("resnet18", "head", {}, "global_pool"),
    ],
)
def test_the_rest_learns_the_same_from_what_is_stored(
    name: str, tune: str, kwargs: dict, until: str, precision: Precision
) -> None:
    student, images = make(name, tune, **kwargs), random_images(16, size=32)
    names, plain = list(student.state_dict()), step(student, images, precision)
    part = find(student, precision)
    assert part is not None and part.name == until
    with torch.inference_mode():
        rows = part.encode(images)
    assert rows.shape == (16, part.width) and rows.dtype == part.stores
    stored = rows.clone().float()[..., None, None]

    part.pass_over()
    again = step(student, stored, precision)
    assert len(plain) == len(again) and all(map(torch.equal, plain, again))
    assert list(student.state_dict()) == names
    # a copy, as the average of the weights is one, has rows of its own
    average = copy.deepcopy(student)
    step(student, stored.flip(0), precision)
    assert torch.equal(step(average, stored, precision)[0], plain[0])
    for model in (student, average):
        run_whole(model)
        assert torch.equal(step(model, images, precision)[0], plain[0])


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        pytest.param("test_vit", dict(VIT, drop_path_rate=0.1), id="stochastic depth"),
        pytest.param("test_vit", dict(VIT, proj_drop_rate=0.1), id="dropout"),
        pytest.param("densenet121", {}, id="links around the last frozen layer"),
    ],
)
def test_there_is_none(name: str, kwargs: dict) -> None:
    student, images = make(name, **kwargs), random_images(16, size=32)
    state, before = torch.get_rng_state(), step(student, images, PLAIN)
    torch.set_rng_state(state)
    assert find(student) is None
    assert torch.equal(torch.get_rng_state(), state)  # what is drawn later is what it was
    assert all(map(torch.equal, step(student, images, PLAIN), before))
