"""Lines that recommend flags for speed, and those on runs that cannot tell anything."""

import pytest

from tests.parts import train_args
from w2s_plugins.build.resolve import average_hint, speed_hint, student_chance_hint, teacher_chance_hint


@pytest.mark.parametrize("flags, device, units, expected", [
    ("", "cuda", False, ["--amp", "--channels-last", "--torchcompile"]),
    ("--amp", "cuda", False, ["--channels-last", "--torchcompile"]),
    ("--model-dtype bfloat16 --channels-last", "cuda", False, ["--torchcompile"]),
    ("--amp --channels-last --torchcompile", "cuda", False, []),
    ("", "cpu", True, ["--amp"]),
    ("--channels-last", "cpu", True, ["--amp"]),
    ("--amp", "cpu", True, []),
    ("--model-dtype bfloat16", "cpu", True, []),
    ("", "cpu", False, []),
    ("", "mps", False, []),
])
def test_names_what_is_unused_and_no_more(flags, device, units, expected):
    hint = speed_hint(train_args(*flags.split()), device, units)
    if not expected:
        assert hint is None
    else:
        assert [word for word in hint.split() if word.startswith("--")] == expected
        assert "\n" not in hint


def test_mixed_precision_on_a_cpu_is_bfloat16():
    assert train_args("--amp").amp_dtype == "bfloat16"


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

