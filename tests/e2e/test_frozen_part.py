"""``--tune last:N`` on images that stay the same: the frozen part runs once, and the student ends as it did before."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

import w2s_plugins.models  # noqa: F401  (registers the small networks)

from .conftest import TINY, Fork, Run, assert_goes_on, read_events
from .test_several_labels import STUDENT, WEAK, pairs  # noqa: F401  (a fixture)

CNN = "--model w2s_cnn5"
VIT = "--model test_vit --img-size 32"
PART = "--tune last:0.3 --task-loss-weight 0 --epochs 3 --opt adamw --lr 0.003"
IN_EVERY_STEP = "--save-images --log-interval 100"  # which needs the images
ONCE = "runs once for each image"


def assert_same_weights(*runs: str) -> None:
    a, b = (load_file(Path("output/train", run, "export/model.safetensors")) for run in runs)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.fixture
def taught(weak: Path) -> list[object]:
    return [*TINY, PART, "--no-aug", "--teacher", weak, "--teacher-targets cached"]


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param([CNN, "--loss elr --refine-labels"], id="refined labels"),
        pytest.param([CNN, "--amp --amp-dtype bfloat16"], id="amp"),
        pytest.param([CNN, "--model-ema --model-ema-decay 0.5 --mixup 0"], id="average"),
        pytest.param([CNN, "--select-split 20 --select best --val-interval 2"], id="held out"),
        pytest.param([VIT, "--drop 0.1 --grad-accum-steps 2"], id="transformer"),
        pytest.param([VIT, "--tune head --loss kd --channels-last"], id="head"),
        pytest.param([CNN, "--task-loss-weight 0.5 --epoch-slice 0:100"], id="true labels"),
    ],
)
def test_weights_and_figures_are_those_of_the_plain_way(
    here: Run, taught: list[object], flags: list[str]
) -> None:
    once = here(*taught, *flags, "--experiment once").ok()
    assert ONCE in once.err
    plain = here(*taught, *flags, IN_EVERY_STEP, "--experiment plain").ok()
    assert "the frozen part runs in every step: --save-images needs it" in plain.err
    assert_same_weights("once", "plain")
    figures = [
        [event["val"] for event in read_events(f"output/train/{name}", "eval")]
        for name in ("once", "plain")
    ]
    assert figures[0] == figures[1]


def test_several_labels(pairs: Run) -> None:  # noqa: F811
    flags = [*STUDENT, WEAK, PART, "--no-aug", "--model w2s_cnn5 --loss bce"]
    assert ONCE in pairs(*flags, "--experiment once").ok().err
    pairs(*flags, IN_EVERY_STEP, "--experiment plain").ok()
    assert_same_weights("once", "plain")


def test_goes_on_and_is_found_again(here: Run, taught: list[object]) -> None:
    torch.save(timm.create_model("w2s_cnn5").state_dict(), "start.pth")
    flags = [*taught, CNN, "--initial-checkpoint start.pth --loss elr --model-ema"]
    assert_goes_on(here, *flags, "--recovery-interval 2")
    done = here(*flags, "--seed 3 --loss kd --lr 0.01 --experiment other").ok()
    assert done.err.count("Student features found") == 2 and "to write" not in done.err


def test_two_ranks(fork: Fork, taught: list[object]) -> None:
    for name, more in (("once", ""), ("plain", IN_EVERY_STEP)):
        run = fork(*taught, CNN, *more.split(), "--batch-size 8", "--experiment", name, processes=2)
        assert run.wait() == [0, 0], run.text(0)
        assert (ONCE in run.text(0)) == (name == "once")
    assert_same_weights("once", "plain")


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("--hflip 0.5", "images are augmented"),
        ("--teacher-targets online", "the teacher sees each batch"),
        ("--epochs 1", "there is one epoch"),
        ("--mixup 0.2", "--mixup and --cutmix needs it"),
        (f"{VIT} --drop-path 0.1", "its output is not all that the rest needs, or changes"),
    ],
)
def test_the_plain_way_says_why(here: Run, taught: list[object], more: str, reason: str) -> None:
    if reason == "images are augmented":
        taught.remove("--no-aug")
    done = here(*taught, CNN, "--epochs 2", more, "--experiment run").ok()
    assert f"the frozen part runs in every step: {reason}" in done.err


def test_no_room(here: Run, taught: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("w2s_plugins.training.frozen_part.LARGEST", 1e3)
    done = here(*taught, CNN, "--epochs 2 --experiment run").ok()
    assert "runs in every step: its outputs would take 0.0 GB in output/targets" in done.err
