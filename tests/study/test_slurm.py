"""Tasks of SLURM: what one does when it is told to make room. benchmarks/slurm_on_loopback.sh has a real cluster."""

import os
import pickle
import signal
import threading
from pathlib import Path

import pytest

from tests.processes import wait_until
from w2s_plugins.errors import UserError
from w2s_plugins.study.layout import load_plan
from w2s_plugins.study.slurm import Task

from .conftest import Cli
from .specs import BASE, changed, write

pytest.importorskip("submitit")


@pytest.fixture
def root(tmp_path: Path, cli: Cli) -> Path:
    base = {**BASE, "epochs": 400, "val_interval": 400}
    assert (
        cli(
            "plan",
            write(tmp_path, changed(base=base, losses=["hard"])),
            "--output",
            tmp_path / "out",
        )[0]
        == 0
    )
    return tmp_path / "out"


@pytest.mark.slow
def test_a_task_that_is_told_to_make_room_goes_on_later(root: Path) -> None:
    weak = load_plan(root)[0]
    task, outcome = Task(root, weak.name), []
    pickle.dumps(task)  # so it travels

    def work() -> None:
        try:
            outcome.append(task())
        except UserError as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    metrics = weak.folder / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") > 2)
    os.kill(task.process.pid, signal.SIGUSR2)  # SLURM tells all processes of a task
    again = task.checkpoint()
    assert list(weak.folder.glob("recovery-*")) and not weak.finished
    assert (again.function.root, again.function.run_id) == (
        root,
        weak.name,
    ) and again.function.process is None
    assert task.process.returncode == 128 + signal.SIGTERM
    thread.join(timeout=60)
    assert outcome == ["stopped"]


def test_a_task_whose_needs_are_not_there_says_so(root: Path) -> None:
    student = load_plan(root)[-1]
    with pytest.raises(
        UserError, match=f"{student.name} needs {student.needs[0]}, which is not finished"
    ):
        Task(root, student.name)()


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for SLURM's, which would give the jobs numbers from 1 on."""
    (tmp_path / "bin").mkdir()
    counted = f'echo x >> {tmp_path}/jobs; echo "Submitted batch job $(wc -l < {tmp_path}/jobs)"'
    for name, text in (("sbatch", counted), ("srun", "exit 1")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")


@pytest.mark.usefixtures("sbatch")
def test_arrays_wait_for_what_they_need(root: Path, cli: Cli) -> None:
    options = ["timeout_min=12", "slurm_partition=gpu"]
    code, out, err = cli("run", root, "--slurm --jobs 7 --slurm-options", *options)
    assert code == 0 and out.endswith("array 1: 2 runs\narray 2: 1 runs\n"), err
    first, second = (
        (root / f"state/slurm/{number}_submission.sh").read_text() for number in (1, 2)
    )
    assert "--array=0-1%2\n" in first and "dependency" not in first
    assert "#SBATCH --dependency=afterany:1\n" in second and "#SBATCH --partition=gpu\n" in second
    assert "#SBATCH --time=12\n" in second and "#SBATCH --signal=USR2@120\n" in second
    with (root / "state/slurm/2_submitted.pkl").open("rb") as file:
        assert pickle.load(file).args[0].run_id == load_plan(root)[-1].name


@pytest.mark.usefixtures("sbatch")
def test_what_submitit_refuses_is_one_line(root: Path, cli: Cli) -> None:
    code, _, err = cli("run", root, "--slurm --slurm-options slurm_partitoin=gpu")
    assert code == 2 and "partitoin" in err and len(err.splitlines()) == 1, err


def test_no_slurm_is_one_line(root: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    code, _, err = cli("run", root, "--slurm")
    assert code == 2 and "--slurm: " in err and len(err.splitlines()) == 1, err
