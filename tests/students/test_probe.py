"""The student of a linear probe: all of the model, of which the classifier alone is run and trained."""

import copy

import pytest
import timm
import torch

from tests.parts import random_images, small_model
from w2s_plugins.students.probe import Probe


@pytest.mark.parametrize("name", ["w2s_cnn5", "test_vit"])
def test_a_probe_is_the_model_seen_from_its_head(name: str) -> None:
    model = (
        small_model(0, name) if name.startswith("w2s") else timm.create_model(name, num_classes=10)
    ).eval()
    images = random_images(size=model.pretrained_cfg["input_size"][-1])
    logits, forward = model(images), model.forward
    probe = Probe(model)
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    assert torch.equal(probe(features), logits)
    assert list(probe.state_dict()) == list(model.state_dict())
    assert model.forward == forward and torch.equal(
        model(images), logits
    )  # the model itself is left as it was
    probe(features).sum().backward()
    assert {n for n, p in probe.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.grad is not None
    }


def test_a_copy_has_a_student_of_its_own() -> None:
    """As the average of the weights is one."""
    probe = Probe(small_model())
    average = copy.deepcopy(probe)
    with torch.no_grad():
        average.student.get_classifier().weight.zero_()
    assert (
        not average.state_dict()["fc.weight"].any() and probe.student.get_classifier().weight.any()
    )
