"""The parser answers before torch and all that needs it is imported: ``--help``, wrong flags, types and files."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from timm.data.dataset_factory import _TORCH_BASIC_DS

from tests.e2e.conftest import ROOT, Done, environment
from w2s_plugins import __version__
from w2s_plugins.cli.forms import TORCH_NAMES

HEAVY = ("torch", "torchvision", "timm", "numpy", "pandas", "sklearn", "PIL", "pyarrow")


@pytest.fixture
def light_env(tmp_path: Path) -> dict[str, str]:
    """Environment in which nothing heavy can be imported."""
    for name in HEAVY:
        (tmp_path / "heavy" / name).mkdir(parents=True)
        (tmp_path / "heavy" / name / "__init__.py").write_text(
            f"raise RuntimeError('{name} was imported')"
        )
    return environment(PYTHONPATH=str(tmp_path / "heavy"))


@pytest.fixture
def light(tmp_path: Path, light_env: dict[str, str]) -> Callable[..., Done]:
    """Runs a script there."""

    def run(
        *flags: object, script: str = "train_w2s.py", env: dict[str, str] | None = None
    ) -> Done:
        done = subprocess.run(
            [sys.executable, str(ROOT / script), *map(str, flags)],
            cwd=tmp_path,
            env={**light_env, **(env or {})},
            capture_output=True,
            text=True,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.mark.parametrize("script", ["train_w2s.py", "validate.py"])
def test_help(light, script):
    assert light("--version", script=script).ok().out == f"w2s-plugins {__version__}\n"
    done = light("--help", script=script).ok()
    assert (
        done.out.startswith(f"usage: {script}")
        and "--teacher-checkpoint" in done.out
        and done.err == ""
    )
    if script == "train_w2s.py":
        assert "--rkd-eps" in light("--help-all").ok().out


SAID = {
    "study --help": "usage: python -m w2s_plugins.study",
    "study --version": f"w2s-plugins {__version__}\n",
    "demo --version": f"w2s-plugins {__version__}\n",
    "predictions --version": f"w2s-plugins {__version__}\n",
    "study plna x.yaml": "COMMAND: unknown choice 'plna' (nearest: plan",
    "study run x.yaml --jbos 2": "run: unknown flag '--jbos' (nearest: --jobs",
    "study run x.yaml --jobs 0": "run: --jobs 0: expected at least 1",
    "hub --help": "usage: python -m w2s_plugins.hub",
    "hub push no me/x --pivate": "push: unknown flag '--pivate' (nearest: --private",
    "hub push w2s_plugin me/x": "RUN: unknown model 'w2s_plugin' (nearest: w2s_plugins",
    "hub push RUN x": "not a Hub id: 'x'",
    "hub push RUN": "the following arguments are required: ORG/NAME",
    "labels push x.csv": "the following arguments are required: ORG/NAME",
    "hub push RUN/args.yaml me/x": "RUN: unknown model ",
    "hub push RUN me/x": "push to me/x: needs a token: run `hf auth login` or set HF_TOKEN",
    "predictions m . --output x.csv --topk 2": "unknown flag '--topk' (nearest: --top-k",
    "predictions m . --output x.csv --all --top-k 2": "--top-k: not allowed with",
    "predictions m . --output x.xls": "--output x.xls: of an unknown kind",
    "predictions m w2s_plugin": "w2s_plugin: no such folder, image or tar file (nearest: w2s_plugins",
    "labels chekc": "COMMAND: unknown choice 'chekc' (nearest: check",
}


@pytest.mark.parametrize("words", SAID)
def test_commands_of_the_package(light_env, tmp_path, words):
    (tmp_path / "args.yaml").touch()
    module, *argv = words.replace("RUN", str(tmp_path)).split()
    done = subprocess.run(
        [sys.executable, "-m", f"w2s_plugins.{module}", *argv],
        cwd=ROOT,
        env=light_env | {"HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    if argv[0] in ("--help", "--version"):
        assert done.returncode == 0 and done.stdout.startswith(SAID[words]) and done.stderr == ""
    else:
        assert done.returncode == 2 and done.stderr.startswith(
            f"w2s_plugins.{module}: error: {SAID[words]}"
        )
        assert done.stderr.count("\n") == 1 and done.stdout == ""


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--epohcs", 1], "unknown flag '--epohcs' (nearest: --epochs"),
        (["--epochs", "many"], "--epochs: invalid int value: 'many'"),
        (["--weak-config", "x.yaml"], "--weak-config x.yaml has no effect without --protocol w2s"),
        (["--config", "wrong.yaml"], "--config wrong.yaml: epochs: 'many' is a str, expected int"),
    ],
)
def test_wrong_flags(light, tmp_path, flags, message):
    (tmp_path / "wrong.yaml").write_text("epochs: many")
    done = light(*flags)
    assert done.error.startswith(message)
    assert done.err.count("\n") == 1 and done.out == ""


def test_right_flags_go_on_to_the_imports(light):
    """What the others show is not that nothing is ever imported."""
    done = light("--dataset", "w2s/digits", "--epochs", 1)
    assert done.code == 1 and done.err.endswith("RuntimeError: torch was imported\n")


def test_names_that_the_parser_knows_are_those_of_timm():
    assert {f"torch/{name}" for name in _TORCH_BASIC_DS} < set(TORCH_NAMES)
