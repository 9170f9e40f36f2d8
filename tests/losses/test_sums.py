"""Sums of losses; bad names and values are in e2e/test_bad_flags.py."""

import pytest
import torch

from w2s_plugins.losses import (
    create_loss,
    describe_losses,
    register_loss,
)
from w2s_plugins.losses.base import LOSSES

from .common import make_inputs, own_losses


def test_a_sum_is_the_weighted_sum_of_its_parts():
    inputs = make_inputs(8, 5)
    kwargs = {"adaptconf.temperature": 2.0, "dkd.weight": 0.1, "dkd.beta": 3}
    both = create_loss("adaptconf+dkd", **kwargs)(inputs)
    first = create_loss("adaptconf", temperature=2.0)(inputs)
    second = create_loss("dkd", beta=3.0)(inputs)
    parts = {f"adaptconf.{term}": value for term, value in first.items()}
    parts |= {f"dkd.{term}": 0.1 * value for term, value in second.items()}
    assert list(both) == ["adaptconf.kd", "adaptconf.self", "dkd.target", "dkd.non_target"]
    torch.testing.assert_close(both, parts, rtol=0, atol=0)


def test_spaces_and_three_parts():
    terms = create_loss(" kd + hard+gce ")(make_inputs(4, 3))
    assert list(terms) == ["kd.kd", "hard.hard", "gce.gce"]


@pytest.mark.parametrize(
    "name, needs",
    [
        ("kd+hard", []),
        ("kd+dkd", ["target"]),
        ("elr+kd", ["index"]),
        ("nkd+sop", ["target", "index"]),
        ("kd+at", ["features"]),
    ],
)
def test_needs_are_those_of_any_part(name, needs):
    loss, known = create_loss(name), ("target", "index", "features")
    assert [need for need in known if getattr(loss, f"needs_{need}")] == needs


def test_ground_truth_stands_in_only_where_it_is_needed():
    """A part that can use ground truth but does not need it must not be given the teacher's argmax for it."""
    seen = []

    @register_loss("test_sees_target")
    def sees(inputs):
        seen.append(inputs.target)
        return {"zero": 0 * inputs.student_logits.sum()}

    try:
        create_loss("dkd+test_sees_target")(make_inputs(4, 3, target=None))
    finally:
        LOSSES._items.pop("test_sees_target")
    assert seen == [None]


def test_integers_pass_for_floats():
    inputs = make_inputs(4, 3)
    assert create_loss("kd", temperature=2).kwargs == {"temperature": 2.0}
    assert type(create_loss("elr", lam=3).lam) is float
    create_loss("mlkd", temperatures=[2, 4])(inputs)


@pytest.mark.parametrize("name", own_losses())
def test_every_loss_is_described(name):
    entry, text = LOSSES.get(name), describe_losses()
    assert f"{name}(" in text and entry.summary and entry.summary in text
    assert entry.paper
