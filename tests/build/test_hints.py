"""Lines on runs that cannot tell anything."""

import pytest

from tests.parts import train_args
from w2s_plugins.build.resolve import average_hint, student_chance_hint, teacher_chance_hint


@pytest.mark.parametrize("flags, updates, said", [
    ("", 250, None), ("--model-ema", 250, "95% of the average"), ("--model-ema --model-ema-decay 0.98", 250, None),
    ("--model-ema --model-ema-warmup", 250, None), ("--model-ema", 20_000, None),
])
def test_an_average_of_weights_before_training(flags, updates, said):
    hint = average_hint(train_args(*flags.split()), updates)
    assert hint is None if said is None else said in hint and "--model-ema-decay" in hint


@pytest.mark.parametrize("top1, classes, samples, chance", [
    (10.0, 10, 1000, True), (11.8, 10, 1000, True), (12.0, 10, 1000, False), (12.0, 10, 100, True),
    (0.4, 1000, 1, True),
])
def test_at_chance(top1, classes, samples, chance):
    for hint in (teacher_chance_hint(top1, classes, samples), student_chance_hint(top1, classes, samples)):
        assert (hint is not None) == chance
        assert not chance or f"top-1 {top1:.2f} with {classes} classes" in hint

