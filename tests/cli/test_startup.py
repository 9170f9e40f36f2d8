"""The scripts answer what the command line alone decides before torch and all that needs it is imported."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, Done, environment, run_script

HEAVY = ("torch", "torchvision", "timm", "numpy", "sklearn", "PIL")


@pytest.fixture
def light(tmp_path: Path) -> Callable[..., Done]:
    """Runs a script where nothing heavy can be imported."""
    for name in HEAVY:
        (tmp_path / "heavy" / name).mkdir(parents=True)
        (tmp_path / "heavy" / name / "__init__.py").write_text(f"raise RuntimeError('{name} was imported')")
    env = environment(PYTHONPATH=str(tmp_path / "heavy"))
    return lambda *flags, **kwargs: run_script(*flags, cwd=tmp_path, env={**env, **kwargs.pop("env", {})}, **kwargs)


@pytest.mark.parametrize("script", ["train_w2s.py", "validate.py"])
def test_help(light, script):
    done = light("--help", script=script).ok()
    assert done.out.startswith(f"usage: {script}") and "--teacher-checkpoint" in done.out and done.err == ""


@pytest.mark.parametrize("flags, message", [
    (["--epohcs", 1], "unknown flag '--epohcs' (nearest: --epochs"),
    (["--epochs", "many"], "--epochs: invalid int value: 'many'"),
    (["--epochs", 0], "--epochs 0: expected at least 1"),
    (["--sched", "cosin"], "--sched: unknown choice 'cosin' (nearest: cosine"),
    (["--weak-config", "x.yaml"], "--weak-config x.yaml has no effect without --protocol w2s"),
    (["--config", "none.yaml"], "--config none.yaml: no such file"),
    (["--config", "wrong.yaml"], "--config wrong.yaml: epochs: 'many' is a str, expected int"),
    (["--config", "unknown.yaml"], "--config unknown.yaml: unknown key 'epohcs' (nearest: epochs"),
    (["--config", "broken.yaml"], "--config broken.yaml: not a YAML file"),
])
def test_wrong_flags(light, tmp_path, flags, message):
    for name, text in (("wrong", "epochs: many"), ("unknown", "epohcs: 1"), ("broken", "epochs: [")):
        (tmp_path / f"{name}.yaml").write_text(text)
    done = light(*flags)
    assert done.error.startswith(message)
    assert done.err.count("\n") == 1 and done.out == ""


@pytest.mark.parametrize("flags, code, message", [
    (["--help"], 0, "usage: python -m w2s_plugins.data"),
    (["check"], 2, "the following arguments are required: DIR"),
    (["check", "--workers", "many", "x"], 2, "invalid int value: 'many'"),
    (["chek"], 2, "invalid choice: 'chek'"),
])
def test_commands_on_data(tmp_path, flags, code, message):
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")
    done = subprocess.run(
        [sys.executable, "-m", "w2s_plugins.data", *flags], capture_output=True, text=True, cwd=tmp_path,
        env=environment(PYTHONPATH=f"{tmp_path}:{ROOT}"))
    assert done.returncode == code and message in done.stdout + done.stderr and "imported" not in done.stderr


def test_one_of_several_processes_tells_it(light, tmp_path):
    """As under torchrun, which itself needs torch."""
    of_a_node = dict(WORLD_SIZE="2", MASTER_PORT="1", TMPDIR=str(tmp_path))
    done = [light("--epohcs", 1, env={**of_a_node, "RANK": rank}) for rank in "01"]
    assert [d.code for d in done] == [2, 2]
    assert done[0].error.startswith("unknown flag '--epohcs'") and done[1].err == ""


def test_right_flags_go_on_to_the_imports(light):
    """What the others show is not that nothing is ever imported."""
    done = light("--epochs", 1)
    assert done.code == 1 and done.err.endswith("RuntimeError: torch was imported\n")
