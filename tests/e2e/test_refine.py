"""``--refine-labels``: what the student is taught, and beside what it works."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from w2s_plugins.labels.store import LabelReader, read_keys
from w2s_plugins.students.discriminant import fit_discriminant

from .conftest import (
    TINY,
    Fork,
    Run,
    assert_goes_on,
    differences,
    read_events,
    read_result,
    read_run,
    taught,
)


@pytest.fixture
def flags(weak: Path) -> list[object]:
    """A student that begins with the weights of the teacher, whose answers it is to refine."""
    start = weak / "export" / "model.safetensors"
    return [
        *TINY,
        "--model w2s_cnn2",
        "--initial-checkpoint",
        start,
        "--teacher",
        weak,
        "--task-loss-weight 0 --teacher-targets cached --refine-labels --loss kd",
        "--loss-kwargs temperature=1",
        "--experiment",
    ]


@pytest.fixture
def given(flags: list[object], tmp_path: Path) -> list[object]:
    """The same, taught by answers of a file, one for every second image, most of which are wrong."""
    (tmp_path / "labels.csv").write_text(
        "index,label\n" + "".join(f"{i},{i % 10}\n" for i in range(0, 1197, 2))
    )
    at = flags.index("--teacher")
    return [*flags[: at + 1], "labels:labels.csv?missing=skip", *flags[at + 2 :]]


def test_the_student_learns_what_the_classifier_says(here: Run, given: list[object]) -> None:
    log = here(*given, "run", "--linear-probe --lr 1e-09 --batch-size 31").ok().err
    run = Path("output/train/run")
    teacher = read_result(run)["teacher"]
    (features,) = (
        LabelReader(Path(cache["path"])) for cache in teacher["cache"]
    )  # a table is not stored
    assert features.manifest.kind == "features"
    keys, device = (
        [int(key) for key in read_keys(features.folder, features.manifest)],
        torch.device("cpu"),
    )
    said = torch.eye(10)[[key % 10 for key in keys]].clamp(min=torch.finfo(torch.float32).tiny)
    seen = features(torch.arange(len(keys)), device)
    found = fit_discriminant(lambda: iter([(seen, said)]))(seen)
    differs = 100 * (found.argmax(1) != said.argmax(1)).float().mean()
    assert 0 < differs < 100
    assert (
        f"for {differs:.1f} % of the images the discriminant says another class than the teacher"
        in log
    )
    assert teacher["refined"]["differs"] == pytest.approx(differs.item())
    # the head stays what it is: its loss is the divergence of what it says from the labels
    head = load_file(run / "export" / "model.safetensors")
    student = (seen @ head["fc.weight"].T + head["fc.bias"]).log_softmax(1)
    refined = (found.softmax(1) + said) / 2
    divergence = (refined * (refined.log() - student)).sum(1).mean()
    trained = [e["terms"]["loss"] for e in read_events(run, "train")]
    assert len(keys) == 31 and trained == 2 * [pytest.approx(divergence.item(), rel=1e-3)]


@pytest.mark.parametrize(
    "more",
    [
        "--teacher-targets cached-views:2 --mixup 0.2",
        "--amp --amp-dtype bfloat16 --model-ema --model-ema-decay 0.5",
        "--linear-probe --opt adamw",
    ],
    ids=["views", "amp and average", "probe"],
)
def test_beside_others_and_interrupted(here: Run, flags: list[object], more: str) -> None:
    whole = assert_goes_on(here, *flags, "whole", *more.split(), "--epochs 3")
    here(*flags, "plain", *more.split(), "--epochs 3 --no-refine-labels").ok()
    assert differences(
        *(read_run(run)["state_dict"] for run in (whole, Path("output/train/plain")))
    )


def test_two_ranks(fork: Fork, given: list[object]) -> None:
    run = fork(*given, "run", "--batch-size 8", processes=2)
    assert run.wait() == [0, 0], run.text(0)
    (differs,) = re.findall(r"for ([\d.]+) % of the images the discr", run.text(0))
    assert float(differs) > 0 and "--refine-labels:" not in run.text(1)


def test_a_model_without_such_a_head(here: Run, weak: Path) -> None:
    """The recipe asks for it: the line says what to write where another model is no choice."""
    flags = [
        *TINY,
        "--model deit_tiny_distilled_patch16_224 --img-size 32 --epochs 1",
        *taught(weak),
        "--config weak-labels",
    ]
    error = here(*flags, "--experiment no").error
    assert (
        "--refine-labels: the head of --model deit_tiny_distilled_patch16_224 is not one linear layer"
        in error
    )
    assert "or give --no-refine-labels" in error and not Path("output").exists()
    here(*flags, "--experiment plain --no-refine-labels").ok()
