"""Trackers with their real packages: a run that goes on is the same run there, without a network and a token."""

import os
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, TINY, environment, read_lines, run_many
from tests.parts import words

FOUND = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


@pytest.mark.slow
def test_a_run_goes_on_as_the_same_run(tmp_path: Path) -> None:
    """Killed after an epoch and resumed; a run that only starts from its checkpoint is another one."""
    pytest.importorskip("wandb")
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    env = environment(PYTHONPATH=FOUND, WANDB_MODE="offline", WANDB_SILENT="true")
    trackers = "--log-tensorboard --log-wandb --wandb-project p"
    flags = words(*TINY, f"--model w2s_cnn2 --output out {trackers} --experiment")
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

    def ids(run: str) -> list[str]:
        return [
            path.name.rpartition("-")[2] for path in tmp_path.glob(f"out/{run}/wandb/offline-run-*")
        ]

    assert len(ids("run")) == 2 and len({*ids("run")}) == 1  # two parts of one
    assert len(ids("other")) == 1 and {*ids("other")} != {*ids("run")}
    logged = read_lines(tmp_path / "out/run/metrics.jsonl")
    steps = [line["step"] for line in logged if line["event"] == "train"]
    events = EventAccumulator(str(tmp_path / "out/run")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == steps
    assert len(events.Scalars("val/top1")) == 2
