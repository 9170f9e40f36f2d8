"""Sums of losses; bad names and values are in e2e/test_bad_flags.py."""

import pytest
import torch

from w2s_plugins.losses import (
    create_loss,
    describe_losses,
    list_losses,
    register_loss,
)
from w2s_plugins.losses.base import LOSSES

from .common import make_inputs


def test_a_sum_is_the_weighted_sum_of_its_parts():
    inputs = make_inputs(8, 5)
    both = create_loss(
        "adaptconf+dkd", **{"adaptconf.temperature": 2.0, "dkd.weight": 0.1, "dkd.beta": 3}
    )(inputs)
    first, second = (
        create_loss("adaptconf", temperature=2.0)(inputs),
        create_loss("dkd", beta=3.0)(inputs),
    )
    assert list(both) == ["adaptconf.kd", "adaptconf.self", "dkd.target", "dkd.non_target"]
    for term, value in first.items():
        assert torch.equal(both[f"adaptconf.{term}"], value)
    for term, value in second.items():
        assert torch.equal(both[f"dkd.{term}"], 0.1 * value)


def test_spaces_and_three_parts():
    assert list(create_loss(" kd + hard+gce ")(make_inputs(4, 3))) == [
        "kd.kd",
        "hard.hard",
        "gce.gce",
    ]


@pytest.mark.parametrize(
    "name, needs",
    [
        ("kd+hard", ()),
        ("kd+dkd", ("target",)),
        ("elr+kd", ("index",)),
        ("nkd+sop", ("target", "index")),
        ("kd+at", ("features",)),
    ],
)
def test_needs_are_those_of_any_part(name, needs):
    loss = create_loss(name)
    assert (
        tuple(need for need in ("target", "index", "features") if getattr(loss, f"needs_{need}"))
        == needs
    )


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


def test_every_loss_is_described():
    text = describe_losses()
    for name in list_losses():
        entry = LOSSES.get(name)
        if not entry.factory.__module__.startswith("w2s_plugins."):
            continue  # a plugin of another test
        assert f"{name}(" in text and entry.summary and entry.summary in text
        assert entry.paper, f"{name} has no paper"
