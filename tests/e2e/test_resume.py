"""A run that was interrupted ends as one that was not: weights, optimizer, averages, files, all to the last bit."""

import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, TINY, Done, differences, environment, read_lines, read_run, run_script

Run = Callable[..., Done]
STUDENT = [*TINY, "--train-slice", "0:96", "--model", "w2s_cnn5", "--epochs", "3", "--opt", "adamw",
           "--lr", "0.003", "--hflip", "0.5"]
SETTINGS = {
    "plain": [],
    "mixup, ema, accumulation": [
        "--mixup", "0.2", "--cutmix", "1", "--model-ema", "--model-ema-decay", "0.8", "--model-ema-warmup",
        "--grad-accum-steps", "2", "--reprob", "0.3", "--drop", "0.2", "--clip-grad", "1", "--smoothing", "0.1"],
    "plateau": ["--sched", "plateau", "--patience-epochs", "0", "--decay-rate", "0.5", "--eval-metric", "loss",
                "--lr", "0.3", "--epochs", "6", "--warmup-epochs", "1", "--lr-noise", "0.2", "0.9"],
    "schedule by update": ["--sched", "wsd", "--decay-epochs", "1", "--sched-on-updates", "--warmup-epochs", "1"],
    "float16": ["--amp", "--amp-dtype", "float16", "--opt", "lookahead_momentum"],
    "sizes": ["--train-img-sizes", "8", "12", "--train-size-schedule", "progressive"],
    "cached": ["--teacher-targets", "cached", "--select", "best", "--select-split", "0.15", "--task-loss-weight", "0",
               "--loss", "augconf"],
    "memory by sample": ["--loss", "sop"],
    "features and memory": ["--loss", "crd", "--loss-kwargs", "negatives=16"],
}


def flags_of(setting: str, weak: Path, folder: Path) -> list[object]:
    return [*STUDENT, "--teacher", "w2s_cnn2", "--teacher-checkpoint", weak, *SETTINGS[setting], "--output", folder,
            "--experiment"]


def assert_same_run(a: Path, b: Path, checkpoints: tuple[str, ...] = ("last.pth.tar", "model_best.pth.tar")) -> None:
    for name in checkpoints:
        assert differences(read_run(a, name), read_run(b, name)) == [], name
    for name in ("metrics.jsonl", "summary.csv", "export/model.safetensors"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    assert {p.name for p in a.iterdir()} == {p.name for p in b.iterdir()}


@pytest.mark.parametrize("setting", SETTINGS)
def test_epoch_boundary(here: Run, weak: Path, tmp_path: Path, setting: str) -> None:
    flags = flags_of(setting, weak, tmp_path)
    here(*flags, "whole").ok()
    here(*flags, "parts", "--stop-epoch", 1).ok()
    here(*flags, "parts", "--stop-epoch", 2, "--resume", "auto").ok()
    here(*flags[:-1], "--resume", tmp_path / "parts").ok()  # the name of the run comes from the folder
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the next run crash when it has trained on so many batches."""
    from w2s_plugins import checkpoint, engine

    original = engine.seed_step
    monkeypatch.setattr(checkpoint, "copy_state", lambda state: None)  # no thread of a dead run goes on in this process

    def after(batches: int) -> None:
        left = batches

        def seed_step(*key: int) -> None:
            nonlocal left
            if left == 0:
                monkeypatch.setattr(engine, "seed_step", original)
                raise RuntimeError("power cut")
            left -= 1
            original(*key)

        monkeypatch.setattr(engine, "seed_step", seed_step)

    return after


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("batches", [3, 9])
def test_inside_an_epoch(
        here: Run, weak: Path, tmp_path: Path, interrupt: Callable, setting: str, batches: int) -> None:
    """In the first epoch, when there is no ``last``, and in the second, from the newest recovery checkpoint."""
    flags = [*flags_of(setting, weak, tmp_path)[:-1], "--recovery-interval", 1, "--experiment"]
    here(*flags, "whole").ok()
    interrupt(batches)
    with pytest.raises(RuntimeError, match="power cut"):
        here(*flags, "parts")
    assert len(list((tmp_path / "parts").glob("recovery-*.pth.tar"))) in (1, 2)
    done = here(*flags, "parts", "--resume", "auto").ok()
    assert f"goes on with epoch {1 if batches == 3 else 2}, step" in done.err
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_before_any_checkpoint(here: Run, weak: Path, tmp_path: Path, interrupt: Callable) -> None:
    """``--resume auto`` starts anew."""
    flags = flags_of("plain", weak, tmp_path)
    here(*flags, "whole").ok()
    interrupt(3)
    with pytest.raises(RuntimeError, match="power cut"):
        here(*flags, "parts")
    here(*flags, "parts", "--resume", "auto").ok()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


SLOW = '''
import time
import w2s_plugins.engine as engine

seed_step = engine.seed_step

def slow_seed_step(*key):
    time.sleep(0.2)
    seed_step(*key)

engine.seed_step = slow_seed_step
'''


@pytest.mark.slow
def test_killed(weak: Path, tmp_path: Path) -> None:
    """A process that has no chance to clean up, some time after a recovery checkpoint of the second epoch."""
    (tmp_path / "slow.py").write_text(SLOW)  # gives the killer time
    flags = [*flags_of("mixup, ema, accumulation", weak, tmp_path)[:-1], "--recovery-interval", 1, "--experiment"]
    run_script(*flags, "whole", cwd=tmp_path).ok()
    command = [sys.executable, str(ROOT / "train_w2s.py"), *map(str, flags), "parts", "--plugins", "slow.py"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "parts" / "recovery-1-1.pth.tar").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.wait()
    run_script(*flags, "parts", "--resume", "auto", cwd=tmp_path).ok()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_finished_run(here: Run, weak: Path, tmp_path: Path) -> None:
    """Resuming what is complete changes nothing and writes the same result."""
    flags = flags_of("plain", weak, tmp_path)
    here(*flags, "run").ok()
    before = {n: (tmp_path / "run" / n).read_bytes() for n in ("metrics.jsonl", "summary.csv", "last.pth.tar")}
    here(*flags, "run", "--resume", "auto").ok()
    assert {n: (tmp_path / "run" / n).read_bytes() for n in before} == before


def test_more_epochs(here: Run, weak: Path, tmp_path: Path) -> None:
    """A finished run can be made longer; the schedule is that of the new length."""
    flags = flags_of("plain", weak, tmp_path)
    here(*flags, "run", "--epochs", 2).ok()
    here(*flags, "run", "--epochs", 4, "--resume", "auto").ok()
    rates = [e["lr"] for e in read_lines(tmp_path / "run" / "metrics.jsonl") if e["event"] == "train"]
    assert rates[-1] == pytest.approx(0.003 * 0.5 * (1 + math.cos(3 / 4 * math.pi)))


def test_resume_into_another_folder(here: Run, weak: Path, tmp_path: Path) -> None:
    """A checkpoint of one run continued under another name leaves the first as it is."""
    flags = flags_of("plain", weak, tmp_path)
    here(*flags, "first", "--stop-epoch", 1).ok()
    before = (tmp_path / "first" / "metrics.jsonl").read_bytes()
    here(*flags, "second", "--resume", tmp_path / "first" / "last.pth.tar").ok()
    here(*flags, "whole").ok()
    # its metrics.jsonl begins with the second epoch
    assert differences(read_run(tmp_path / "second"), read_run(tmp_path / "whole")) == ["/w2s/metrics_bytes"]
    assert (tmp_path / "first" / "metrics.jsonl").read_bytes() == before


def test_weights_only(here: Run, weak: Path, tmp_path: Path) -> None:
    """``--no-resume-opt`` and ``--start-epoch``."""
    flags = flags_of("plain", weak, tmp_path)
    here(*flags, "first", "--stop-epoch", 1).ok()
    here(*flags, "second", "--resume", tmp_path / "first" / "last.pth.tar", "--no-resume-opt").ok()
    here(*flags, "third", "--resume", tmp_path / "first" / "last.pth.tar", "--start-epoch", 0).ok()
    epochs = [[e["epoch"] for e in read_lines(tmp_path / n / "metrics.jsonl") if e["event"] == "eval"]
              for n in ("second", "third")]
    assert epochs == [[1, 2], [0, 1, 2]]
    assert differences(read_run(tmp_path / "second"), read_run(tmp_path / "third"))
