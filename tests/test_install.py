"""What a wheel brings: built from the source distribution, installed without a network, used from an empty folder."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import ROOT, environment
from tests.parts import words
from tests.study.specs import BASE, changed
from w2s_plugins import __version__

SOURCES = (
    "CHANGELOG.md",
    "LICENSE",
    "MANIFEST.in",
    "README.md",
    "hparams",
    "pyproject.toml",
    "requirements.txt",
    "setup.py",
    "train_w2s.py",
    "validate.py",
    "w2s_plugins",
)
COMMANDS = ("train", "validate", "predict", "study", "hub", "labels", "demo")


def run(*command: object, cwd: Path) -> str:
    """Run a command to its end; return what it has printed."""
    done = subprocess.run(
        words(*command), cwd=cwd, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, as ``python -m build`` makes it."""
    folder = tmp_path_factory.mktemp("build")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    build = "import setuptools.build_meta as backend; print(backend.build_{}('.'))"
    source = run(sys.executable, "-c", build.format("sdist"), cwd=folder).splitlines()[-1]
    with tarfile.open(folder / source) as file:
        file.extractall(folder, filter="data")
    unpacked = folder / source.removesuffix(".tar.gz")
    return (
        unpacked / run(sys.executable, "-c", build.format("wheel"), cwd=unpacked).splitlines()[-1]
    )


@pytest.fixture(scope="module")
def bin(wheel: Path) -> Path:
    """The commands of a new environment, which has the packages of this one and, before them, the wheel."""
    new = wheel.parent / "new"
    run(sys.executable, "-m", "venv", "--without-pip", new, cwd=wheel.parent)
    (packages,) = new.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(
        "\n".join(path for path in sys.path if path.endswith("site-packages"))
    )
    install = "--quiet --no-cache --offline --no-deps --python"
    run(sys.executable, "-m", "uv", "pip", "install", install, new, wheel, cwd=wheel.parent)
    return new / "bin"


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_of_the_wheel(bin: Path, tmp_path: Path, name: str) -> None:
    assert run(bin / f"w2s-{name}", "--help", cwd=tmp_path).startswith(f"usage: w2s-{name} ")
    assert run(bin / f"w2s-{name}", "--version", cwd=tmp_path) == f"w2s-plugins {__version__}\n"
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_a_wheel_from_an_empty_folder(wheel: Path, bin: Path, tmp_path: Path) -> None:
    assert wheel.name == f"w2s_plugins-{__version__}-py3-none-any.whl"
    assert wheel.stat().st_size < 2_000_000
    code = "from w2s_plugins.errors import typed; print(typed('hub'))"  # as from a notebook
    assert run(bin / "python", "-c", code, cwd=tmp_path) == "w2s-hub\n"
    assert os.listdir(tmp_path) == []

    (tmp_path / "small.yaml").write_text(
        yaml.safe_dump(changed(config="digits", base=BASE, losses=["kd"]))
    )
    run(bin / "w2s-study", "run", "small.yaml", "--output", "study", "--jobs", 1, cwd=tmp_path)
    records = [json.loads(path.read_text()) for path in tmp_path.glob("study/runs/*/result.json")]
    assert sorted(record["model"]["name"] for record in records) == [
        "w2s_cnn2",
        "w2s_cnn5",
        "w2s_cnn5",
    ]

    (weak,) = tmp_path.glob("study/runs/weak*")
    run(
        bin / "w2s-train",
        "--config digits digits-cnn5 --img-size 8 --epochs 1 --train-slice 0:64",
        "--val-interval 1 --workers 1 --experiment student --teacher-checkpoint",
        weak,
        cwd=tmp_path,
    )
    student = json.loads((tmp_path / "output/train/student/result.json").read_text())
    assert student["command"].startswith("w2s-train --config digits ")
