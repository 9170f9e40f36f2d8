"""The benchmark of the loaders runs and prints a row for each."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_benchmark_prints_a_row_for_each_loader():
    command = [sys.executable, "-m", "benchmarks.loader", "--images", "8", "--batch-size", "4", "--workers", "1",
               "--turns", "1"]
    result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    rows = [line.split("|") for line in result.stdout.splitlines() if line.startswith("| ")]
    assert [row[2].strip() for row in rows] == ["loader", "---:", "timm", "pil", "torchvision"]
    assert rows[2][4].strip() == "1.00" and all(float(row[3]) > 0 for row in rows[2:])
    assert result.stdout.count(" microseconds with ") == 2
