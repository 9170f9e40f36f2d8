"""Every flag that makes training faster, with every kind of target that is stored, and the linear probe."""

import csv
from pathlib import Path

import pytest
import yaml

from w2s_plugins.data import create_dataset

from .conftest import TINY, Run, read_lines, taught

RECOMMENDED = ["--amp --channels-last --torchcompile eager"]  # which needs no compiler
TARGETS = yaml.safe_load("""
online: ""
labels of a file: --label-noise labels:labels.csv --task-loss bce --task-loss-weight 0.5
cached: --teacher-targets cached
cached views: --teacher-targets cached-views:2
the nearest teacher: --teacher-targets cached --teacher-assign student
selected: --clean-select entropy:0.5 --teacher-targets cached
average: --teacher-targets cached --model-ema --grad-accum-steps 2 --loss elr
probe: --linear-probe
probe of labels of a file: --linear-probe --label-noise labels:labels.csv
""")


@pytest.mark.parametrize("kind", TARGETS)
def test_trains(here: Run, weak: Path, kind: str) -> None:
    labels = create_dataset("w2s/digits", None, "train").targets
    with open("labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([["index", "label"], *enumerate(labels[1:] + labels[:1])])
    teachers = 2 if "teacher" in kind else 1
    done = here(
        *TINY,
        "--epochs 1 --device cpu --model w2s_cnn5",
        *taught(*[weak] * teachers),
        "--loss kd",
        *TARGETS[kind].split(),
        *RECOMMENDED,
        "--experiment run",
    ).ok()
    assert ("WARNING: --linear-probe: no effect of " in done.err) == (
        "--linear-probe" in TARGETS[kind]
    )
    (epoch,) = (
        event
        for event in read_lines(Path("output/train/run/metrics.jsonl"))
        if event["event"] == "eval"
    )
    assert epoch["train"]["loss"] > 0
