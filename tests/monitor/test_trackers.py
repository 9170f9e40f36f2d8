"""Trackers with their real packages: a run that goes on is the same run there, without a network and a token."""

import json
import os
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, TINY, environment, run_many

FOUND = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


@pytest.mark.slow
def test_a_run_goes_on_as_the_same_run(tmp_path: Path) -> None:
    """Killed after an epoch and resumed; a run that only starts from its checkpoint is another one."""
    for package in ("wandb", "tensorboard"):
        pytest.importorskip(package)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    env = environment(PYTHONPATH=FOUND, WANDB_MODE="offline", WANDB_SILENT="true")
    flags = [
        *TINY,
        "--model",
        "w2s_cnn2",
        "--output",
        "out",
        "--log-tensorboard",
        "--log-wandb",
        "--wandb-project",
        "p",
        "--experiment",
    ]
    for done in run_many(
        [
            [*flags, "run", "--stop-epoch", "1"],
            [*flags, "run", "--resume", "auto"],
            [*flags, "other", "--resume", "out/run/checkpoint-0.pth.tar"],
        ],
        env,
        tmp_path,
    ):
        done.ok()
    first, second, other = (
        {path.name.rpartition("-")[2] for path in tmp_path.glob(f"out/{run}/wandb/offline-run-*")}
        for run in ("run", "run", "other")
    )
    assert len(first) == 1 == len(other) and first == second != other
    assert len([*tmp_path.glob("out/run/wandb/offline-run-*")]) == 2
    logged = [
        line["step"]
        for line in map(json.loads, (tmp_path / "out/run/metrics.jsonl").read_text().splitlines())
        if line["event"] == "train"
    ]
    events = EventAccumulator(str(tmp_path / "out/run")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == logged
    assert len(events.Scalars("val/top1")) == 2
