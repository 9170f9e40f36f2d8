"""What the confidence losses are for: weights, ramps and the balance of classes."""

import pytest
import torch
import torch.nn.functional as F

from tests.parts import assert_refused
from w2s_plugins.losses import create_loss
from w2s_plugins.losses.confidence import adaptive_weight, balanced_labels, self_cross_entropy

from .common import make_inputs


def test_beta_is_half_in_agreement_and_falls_with_disagreement():
    student = torch.tensor([[2.0, 0.0, -1.0], [2.0, 1.0, -1.0], [8.0, 0.0, -1.0]])
    teacher = torch.tensor([[5.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 5.0, 0.0]])
    same, near, far = adaptive_weight(student, teacher, 0.5).tolist()
    assert same == 0.5 and 0 < far < near < 0.5
    assert adaptive_weight(1e4 * student, teacher, 0.1).isfinite().all()


@pytest.mark.parametrize(
    "batch_size, num_classes, tolerance",
    [(1000, 2, 0.001), (1000, 3, 0.005), (1000, 10, 0.01), (4096, 100, 0.03)],
)
def test_balanced_labels_follow_the_proportions(batch_size, num_classes, tolerance):
    """Half the sum of the differences between the shares, for a student with a strong bias to some classes."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(num_classes, (batch_size,), generator=generator)
    bias = 2 * torch.randn(num_classes, generator=generator)
    logits = bias + torch.randn(batch_size, num_classes, generator=generator)
    logits[torch.arange(batch_size), truth] += 4
    weak = torch.randn(num_classes, generator=generator).mul(0.5).softmax(0)
    probabilities = logits.softmax(1)

    def distance(label):
        return (
            0.5
            * (torch.bincount(label, minlength=num_classes) / batch_size - weak).abs().sum().item()
        )

    assert distance(probabilities.argmax(1)) > 0.1, "nothing to balance"
    assert distance(balanced_labels(probabilities, weak)) < tolerance


def test_binary_form_refuses_more_classes():
    assert_refused(
        "2 classes, here are 5", create_loss("logconf", form="binary"), make_inputs(4, 5)
    )


def test_a_student_without_an_opinion_is_not_taught_the_first_class():
    logits = torch.zeros(6, 4)
    logits[4:, 2] = 1.0
    logits.requires_grad_()
    losses = self_cross_entropy(logits)
    assert losses[:4].tolist() == [0.0] * 4
    assert torch.equal(
        losses[4:], F.cross_entropy(logits[4:], torch.tensor([2, 2]), reduction="none")
    )
    losses.sum().backward()
    assert not logits.grad[:4].any() and logits.grad[4:].any()
    found = create_loss("adaptconf")(make_inputs(6, 4).replace(student_logits=torch.zeros(6, 4)))
    assert found["self"] == 0 < found["kd"]
