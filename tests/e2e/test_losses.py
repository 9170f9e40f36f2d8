"""Losses that bring more than a formula, through the training script: features, memory, sums, several teachers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import TINY, Run, read_events, read_result, read_run, taught

Student = Callable[..., Path]


@pytest.fixture(scope="module")
def weak(ranks: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weak")
    for seed in (0, 1):
        ranks(*TINY, "--model", "w2s_cnn2", "--seed", seed, "--output", folder, "--experiment", f"weak{seed}",
              cwd=folder, processes=1).ok()
    return folder


@pytest.fixture(scope="module")
def student(ranks: Run, weak: Path) -> Student:
    """Trains a student and returns the folder of its run."""
    def train(name: str, *flags: object, processes: int = 1) -> Path:
        ranks(*TINY, "--model", "w2s_cnn5", *taught(weak / "weak0"),
              "--task-loss-weight", "0", "--output", weak, "--experiment", name, *flags, cwd=weak,
              processes=processes).ok()
        return weak / name
    return train


def test_features_and_memory_on_two_processes(student: Student) -> None:
    run = student("two", "--loss", "elr+fitnet", "--loss-kwargs", "fitnet.weight=0.1", "--batch-size", "8",
                  processes=2)
    state = read_run(run)["task_state"]
    assert state["loss.parts.elr.memory.visits"].sum() == 2 * 64  # both ranks' samples, two epochs
    assert any("fitnet" in name for name in state)
    exported = json.loads((run / "export" / "config.json").read_text())
    assert exported["architecture"] == "w2s_cnn5"


@pytest.mark.parametrize(("flags", "figure"), [
    (["--teacher-assign", "student"], "teacher0_share"),
    (["--teacher-assign", "student", "--teacher-targets", "cached"], "teacher1_share"),
])
def test_several_teachers(student: Student, weak: Path, flags: list[str], figure: str) -> None:
    run = student(figure, *taught(weak / 'weak0', weak / 'weak1'), *flags)
    last = read_events(run)[-1]
    assert 0 <= last["train"][figure] <= 1
    record = read_result(run)
    assert [Path(m["source"]["file"]).parts[-3] for m in record["teacher"]["models"]] == ["weak0", "weak1"]
