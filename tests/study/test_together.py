"""Probes of a study that one process trains together: what they are when each has a process of its own."""

import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train_w2s
from tests.parts import write_folder
from w2s_plugins.cli import parse, train_parser
from w2s_plugins.run import record as report
from w2s_plugins.study.layout import PlannedRun, finished, load_plan, read_json, read_result
from w2s_plugins.study.lease import STALE, look
from w2s_plugins.study.worker import ceiling_flags

from .conftest import Cli
from .specs import BASE, changed, write
from .test_running import Runners, runner, starts  # noqa: F401  (a fixture)

PROBE = {"model": "w2s_cnn5", "linear_probe": True, "epochs": 30, "opt": "adamw", "lr": 0.01}
LOSSES = ["kd", {"name": "sharp", "loss": "kd", "kwargs": {"temperature": 1e38}}, "elr", "sop", "adaptconf"]


def alone(run: PlannedRun, plan: list[PlannedRun], output: Path) -> Path:
    """Train a run by itself, in this process; return its folder."""
    more = ceiling_flags([other for other in plan if other.id in run.needs])
    train_w2s.train(*parse(train_parser(), [*run.argv, *more, "--output", str(output)]))
    return output / run.folder


@pytest.mark.timeout(600)  # four processes are started one after another
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_together(tmp_path: Path, runner: Runners, cli: Cli) -> None:  # noqa: F811
    images = write_folder(tmp_path / "images", {"train": 160, "validation": 40})
    shifted = write_folder(tmp_path / "shifted", {"validation": 30})
    base = {**BASE, "dataset": "", "data_dir": str(images), "target_cache": str(tmp_path / "targets"),
            "val_sets": [f"shifted={shifted}"], "corruptions": ["contrast:3"]}
    spec = write(tmp_path, changed(base=base, strong=[{"name": "p", "flags": PROBE}], losses=LOSSES, seeds=2))
    root = tmp_path / "out"
    cli("plan", spec, "--output", root, "--no-estimate")
    plan = load_plan(root)
    for run in plan:
        if run.kind != "student":
            alone(run, plan, root / "runs")
    students = [run for run in plan if run.kind == "student"]

    # ---- one process has all of them, and others see that; what it leaves goes on
    first = runner(spec, "--output", root, "--jobs", 1)
    first.wait_until(lambda: all((run.path / "last.pth.tar").exists() for run in students if run.loss != "sharp"))
    assert not any(look(run, STALE).free for run in students)
    holders = {read_json(next((root / "state").glob(f"{run.id}.*.lock")))["child"] for run in students}
    assert len(holders) == 1
    assert first.end(signal.SIGTERM) == 143
    assert {read_json(run.state_file("json"))["state"] for run in students} == {"stopped"}

    second = runner(spec, "--output", root, "--jobs", 1)
    assert second.end() == 1
    broken, good = ([run for run in students if (run.loss == "sharp") == sharp] for sharp in (True, False))
    assert all(map(finished, good)) and [starts(run) for run in good] == [2] * len(good)
    for run in broken:
        assert "loss or gradient is not finite; the run goes on by itself" in run.state_file("log").read_text()
        assert f"FAILED {run.id}: exit code 2: " in second.text and starts(run) == 4
    assert ": goes on with epoch" in good[0].state_file("log").read_text()

    ends = [run.state_file("log").read_text().rpartition(" done: ")[2] for run in good]
    assert sum("Decoder of the evaluation images" in end for end in ends) == 2, "images of test sets: once a teacher"

    # ---- each is what it is alone
    for run in good:
        other = alone(run, plan, tmp_path / "alone")
        mine, theirs = read_result(run), read_json(other / "result.json")
        assert mine["metrics"] == pytest.approx(theirs["metrics"], abs=1e-4) and mine["loss"] == theirs["loss"]
        assert mine["pgr"] == theirs["pgr"]
        for name in ("shifted", "contrast-3"):
            here, there = (r["test_sets"][name] for r in (mine, theirs))
            assert here.pop("teacher") == pytest.approx(there.pop("teacher"), abs=1e-4)
            assert here == pytest.approx(there, abs=1e-4)
            csv = report.predictions_on(name)
            assert (run.path / csv).read_text() == (other / csv).read_text()
        theirs = load_file(other / "export" / "model.safetensors")
        for name, tensor in load_file(run.path / "export" / "model.safetensors").items():
            torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-5)
        assert (run.path / "predictions_last.csv").read_text() == (other / "predictions_last.csv").read_text()
