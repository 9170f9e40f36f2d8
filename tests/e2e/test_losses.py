"""Losses that bring more than a formula, through the training script: features, memory, sums, several teachers."""

import json
from pathlib import Path

import pytest
import torch

from .conftest import TINY, read_lines, read_run, run_script


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weak")
    for seed in (0, 1):
        run_script(*TINY, "--model", "w2s_cnn2", "--seed", seed, "--output", folder, "--experiment", f"weak{seed}",
                   cwd=folder).ok()
    return folder


def student(weak: Path, name: str, *flags: object, processes: int = 0) -> Path:
    run_script(
        *TINY, "--model", "w2s_cnn5", "--teacher", "w2s_cnn2", "--teacher-checkpoint", weak / "weak0",
        "--task-loss-weight", "0", "--output", weak, "--experiment", name, *flags, cwd=weak, processes=processes).ok()
    return weak / name


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["elr", "crd"])
def test_memory_and_parameters_of_a_loss_survive_an_interruption(weak: Path, loss: str) -> None:
    whole = student(weak, f"{loss}-whole", "--loss", loss, "--opt", "adamw")
    student(weak, f"{loss}-parts", "--loss", loss, "--opt", "adamw", "--stop-epoch", "1")
    parts = student(weak, f"{loss}-parts", "--loss", loss, "--opt", "adamw", "--resume", "auto")
    expected, found = read_run(whole), read_run(parts)
    assert expected["task_state"].keys() == found["task_state"].keys() != set()
    for key in ("state_dict", "task_state"):
        for name, value in expected[key].items():
            assert torch.equal(value, found[key][name]), name
    assert (whole / "metrics.jsonl").read_text() == (parts / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_features_and_memory_on_two_processes(weak: Path) -> None:
    run = student(weak, "two", "--loss", "elr+fitnet", "--loss-kwargs", "fitnet.weight=0.1", "--batch-size", "8",
                  processes=2)
    state = read_run(run)["task_state"]
    assert state["loss.parts.elr.memory.visits"].sum() == 2 * 64  # both ranks' samples, two epochs
    assert any("fitnet" in name for name in state)
    exported = json.loads((run / "export" / "config.json").read_text())
    assert exported["architecture"] == "w2s_cnn5"


@pytest.mark.parametrize(("flags", "figure"), [
    (["--teacher-assign", "student"], "teacher0_share"),
    (["--teacher-weights", "learned", "--teacher-targets", "cached"], "teacher1_weight"),
])
def test_several_teachers(weak: Path, flags: list[str], figure: str) -> None:
    run = student(weak, figure, "--teacher", "w2s_cnn2,w2s_cnn2", "--teacher-checkpoint",
                  f"{weak / 'weak0'},{weak / 'weak1'}", *flags)
    last = read_lines(run / "metrics.jsonl")[-1]
    assert 0 <= last["train"][figure] <= 1
    record = json.loads((run / "result.json").read_text())
    assert [Path(m["source"]["file"]).parts[-3] for m in record["teacher"]["models"]] == ["weak0", "weak1"]
