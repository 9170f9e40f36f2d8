"""Every benchmark runs with --quick and prints its table; how large the figures are is not tested."""

import io
import re
import shlex
import tarfile
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, environment
from tests.processes import python
from w2s_plugins.data.digits import Digits

PAIR = "w2s_cnn2<-w2s_cnn2"


def rows_of(*command: object) -> list[list[str]]:
    """Run a benchmark; return the cells of the rows below the header of its table."""
    done = python("-m", *command, "--quick", env=environment(), cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize(("command", "heads"), [
    ("throughput step", [[PAIR]]),
    ("throughput teacher", [[PAIR]]),
    ("throughput step --flags '--amp --amp-dtype bfloat16 --channels-last'", [[PAIR]]),
    ("loader", [["1", "timm"], ["1", "pil"], ["1", "fast"]]),
    ("losses --losses hard elr", [["`cross-entropy`"], ["`kd`"], ["`hard`"], ["`elr`"]]),
])
def test_a_row_for_each(command: str, heads: list[list[str]]) -> None:
    rows = rows_of(*shlex.split(f"benchmarks.{command}"))
    assert [row[:len(heads[0])] for row in rows] == heads
    for row in rows:
        figures = [float(word) for cell in row[len(heads[0]):] for word in re.findall(r"-?[\d.]+", cell)]
        assert len(figures) >= 3 and figures[0] >= 0


def test_attacks() -> None:
    done = python("-m", "benchmarks.attacks", "--quick", env=environment(), cwd=ROOT)
    assert done.returncode == 0 and "12 drawn, 0 failed" in done.stdout, done.stdout + done.stderr


def test_recipe(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as archive:
            for number, (image, label) in zip(range(120), Digits(split)):
                image.save(file := io.BytesIO(), "PNG")
                member = tarfile.TarInfo(f"{label}/{number}.png")
                member.size = file.tell()
                file.seek(0)
                archive.addfile(member, file)
    done = python("-m", "benchmarks.recipe", tmp_path / "train.tar", tmp_path / "validation.tar", "--quick",
                  "--output", tmp_path / "out", env=environment(), cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[-3:]] == ["teacher", "adaptconf", "ceiling"]
