"""Lines that recommend flags for speed, and those on runs that cannot tell anything."""

import pytest

from tests.e2e.conftest import ROOT
from tests.parts import train_args
from w2s_plugins.build.hints import average_hint, speed_hint, student_chance_hint, teacher_chance_hint
from w2s_plugins.build.optimisation import highest_rate, schedule_hints
from w2s_plugins.cli import train_parser
from w2s_plugins.cli.parser import read_config
from w2s_plugins.files import read_plain


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


@pytest.mark.parametrize("flags, highest, said", [
    ("--epochs 2 --warmup-epochs 1", 0.025, "is 0.025 at most in the 2 epochs that are trained and never reaches"),
    ("--epochs 2 --warmup-epochs 1 --sched-on-updates", 0.05, None),
    ("--epochs 5", 0.04, "the warm-up of 5 epochs does not end within the 5 that are trained"),
    ("--epochs 6 --sched-on-updates", 0.05, None),
    ("--epochs 8 --stop-epoch 3 --sched-on-updates", 0.03, "the warm-up of 5 epochs does not end within the 3"),
    ("--epochs 3 --sched constant", 0.02, "the warm-up of 5 epochs"),
    ("--epochs 3 --sched constant --warmup-epochs 0", 0.05, None),
    ("--epochs 3 --sched none", None, None), ("--epochs 10", 0.04, None), ("--epochs 20", 0.0427, None),
    ("--epochs 300", 0.05, None), ("--epochs 1 --warmup-epochs 0", 0.05, None),
    ("--epochs 30 --sched step --decay-epochs 10", 0.05, None), ("--epochs 20 --sched plateau", 0.05, None),
])
def test_a_learning_rate_that_is_never_reached(flags, highest, said):
    args = train_args("--lr", "0.05", *flags.split())
    epochs = args.stop_epoch or args.epochs
    assert highest_rate(args, epochs, 20) == (highest and pytest.approx(highest, rel=0.06))
    hints = schedule_hints(args, epochs, 20)
    assert len(hints) == (said is not None) and all(said in hint and "--lr 0.05" in hint for hint in hints)
    if said and "at most" in said:
        assert "--sched-on-updates" in hints[0]


def test_recipes_reach_their_learning_rate():
    """Those that are shipped, each as a configuration, over the one that is common to its folder, or as stages."""
    parser, seen = train_parser(), 0
    for file in sorted((ROOT / "hparams").rglob("*.yaml")):
        content, base = read_plain(file), file.with_name("base.yaml")
        shared = read_config(str(base), parser) if base.exists() else {}
        if isinstance(content, dict):
            content = [read_config(str(file), parser)] if "epochs" in content else []
        for flags in (flags for flags in content if "epochs" in flags):
            args = train_args()
            vars(args).update({"lr": 0.1, **shared, **flags})
            assert schedule_hints(args, args.epochs, 20) == [], file
            seen += 1
    assert seen > 10


@pytest.mark.parametrize("top1, classes, samples, chance", [
    (10.0, 10, 1000, True), (11.8, 10, 1000, True), (12.0, 10, 1000, False), (12.0, 10, 100, True),
    (0.4, 1000, 1, True),
])
def test_at_chance(top1, classes, samples, chance):
    for hint in (teacher_chance_hint(top1, classes, samples), student_chance_hint(top1, classes, samples)):
        assert (hint is not None) == chance
        assert not chance or f"top-1 {top1:.2f} with {classes} classes" in hint

