"""A preempted run stops after the step in hand, and goes on as if nothing had happened."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from .conftest import ROOT, TINY, environment, read_run, run_script

pytestmark = pytest.mark.slow
FLAGS = [*TINY, "--model", "w2s_cnn5", "--epochs", "40", "--val-interval", "40", "--mixup", "0.2", "--model-ema",
         "--model-ema-decay", "0.9", "--opt", "adamw", "--lr", "0.001"]


def start(folder: Path, *flags: object, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *launcher, str(ROOT / "train_w2s.py"), *map(str, [*FLAGS, "--output", folder, *flags])],
        cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_steps(process: subprocess.Popen, run: Path, count: int) -> None:
    file, deadline = run / "metrics.jsonl", time.monotonic() + 60
    while not file.exists() or len(file.read_text().splitlines()) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The state at the end of a run that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    run_script(*FLAGS, "--output", folder, "--experiment", "run", cwd=folder).ok()
    return read_run(folder / "run")


def assert_same(a: dict, b: dict) -> None:
    for key in ("state_dict", "state_dict_ema"):
        for name, value in a[key].items():
            assert torch.equal(value, b[key][name]), (key, name)
    for index, state in a["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(b["optimizer"]["state"][index][name]))


@pytest.mark.parametrize(("signum", "code", "flags"), [
    (signal.SIGTERM, 143, []),
    (signal.SIGINT, 130, []),
    (signal.SIGUSR1, 138, ["--signal-usr1"]),
])
def test_signal_then_resume(tmp_path: Path, whole: dict, signum: int, code: int, flags: list[str]) -> None:
    process = start(tmp_path, "--experiment", "run", *flags)
    wait_for_steps(process, tmp_path / "run", 10)
    process.send_signal(signum)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert "Traceback" not in err and "--resume" in err
    assert len(list((tmp_path / "run").glob("recovery-*.pth.tar"))) == 1
    assert not list((tmp_path / "run").glob(".*.tmp"))
    run_script(*FLAGS, "--output", tmp_path, "--experiment", "run", "--resume", "auto", cwd=tmp_path).ok()
    assert_same(whole, read_run(tmp_path / "run"))


def test_two_ranks_stop_at_the_same_step(tmp_path: Path) -> None:
    flags = ["--batch-size", "8", "--experiment", "run"]
    process = start(
        tmp_path, *flags, launcher=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"))
    wait_for_steps(process, tmp_path / "run", 10)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert "stopped in epoch" in err, err
    assert len(list((tmp_path / "run").glob("recovery-*.pth.tar"))) == 1
    run_script(*FLAGS, *flags, "--output", tmp_path, "--resume", "auto", cwd=tmp_path, processes=2).ok()
    run_script(*FLAGS, "--batch-size", "8", "--experiment", "whole", "--output", tmp_path, cwd=tmp_path,
               processes=2).ok()
    assert_same(read_run(tmp_path / "whole"), read_run(tmp_path / "run"))


def test_killed_at_any_moment(tmp_path: Path, whole: dict) -> None:
    """SIGKILL four times, with recovery checkpoints written in the background every second update."""
    run = tmp_path / "run"
    for lines in (6, 40, 80, 120):
        process = start(tmp_path, "--experiment", "run", "--recovery-interval", "2", "--resume", "auto")
        wait_for_steps(process, run, lines)
        process.kill()
        process.communicate()
    run_script(*FLAGS, "--output", tmp_path, "--experiment", "run", "--resume", "auto", cwd=tmp_path).ok()
    assert_same(whole, read_run(run))
