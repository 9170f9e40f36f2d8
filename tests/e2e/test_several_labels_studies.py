"""Several runs of several classes an image, and what is made of their students."""

import math
from pathlib import Path

import pytest

from . import test_several_labels
from .conftest import Run, read_result
from .test_several_labels import STUDENT, TRUTH, WEAK

pairs = test_several_labels.pairs  # the fixture


def test_protocol(pairs: Run) -> None:
    """Teacher, ceiling, student and a control, compared in mAP."""
    flags = "--protocol w2s --teacher w2s_cnn2 --controls direct --weak-fraction 0.3 --loss bce"
    done = pairs(*STUDENT, TRUTH, flags, "--epochs 4 --experiment p").ok()
    record = read_result("output/train/p")
    for name in ("weak", "student", "ceiling"):
        run = read_result(Path("output/train/p", name))
        assert record[name]["value"] == pytest.approx(run["metrics"]["map"], abs=0.01)
        assert record[name]["low"] < record[name]["high"]
    gap = record["ceiling"]["value"] - record["weak"]["value"]
    if gap > 0:
        gained = record["student"]["value"] - record["weak"]["value"]
        assert record["pgr"]["value"] == pytest.approx(gained / gap, abs=0.01)
    assert "mAP (95 % interval)" in done.out and "above direct" in done.out


def test_stages_with_few_true_labels(pairs: Run) -> None:
    """The teachers of the last stage are averaged, and the stage that would tell how to weigh them is left out."""
    recipe = "--stages weak-labels-plus-few-true --unlabeled test --teacher labels:test.csv"
    flags = "--data-dir . --train-split train --train-labels train.csv --val-split train --val-labels train.csv"
    done = pairs(*STUDENT, flags, recipe, "--tune all --epochs 2 --experiment few").ok()
    record = read_result("output/train/few")
    assert [*record["stages"]] == ["direct", "student"]
    assert record["stages"]["student"]["teacher"].get("assign") in (None, "mean")
    assert done.err.count("teachers are averaged class by class") == 1
    assert "without the stage part" in done.err


def test_stages_of_candidates(pairs: Run) -> None:
    recipe = "--stages weak-labels-candidates --epochs 1 --experiment all"
    done = pairs(*STUDENT, WEAK, recipe).ok()
    stages = read_result("output/train/all")["stages"]
    assert [*stages] == ["probe", "last", "adapters", "all"]
    assert all(math.isfinite(stage["metrics"]["map"]) for stage in stages.values())
    assert {stage["loss"]["name"] for stage in stages.values()} == {"elr"}
    assert "--task multilabel: --loss elr (--for-multilabel)" in done.err
