"""The benchmark of the loaders runs and prints a row for each."""

import pytest

from tests.e2e.conftest import ROOT, environment
from tests.processes import python


@pytest.mark.slow
def test_benchmark_prints_a_row_for_each_loader():
    command = ["-m", "benchmarks.loader", "--images", "8", "--batch-size", "4", "--workers", "1", "--turns", "1"]
    result = python(*command, env=environment(), cwd=ROOT)
    assert result.returncode == 0, result.stderr
    rows = [line.split("|") for line in result.stdout.splitlines() if line.startswith("| ")]
    assert [row[2].strip() for row in rows] == ["loader", "---:", "timm", "pil", "fast"]
    assert rows[2][4].strip() == "1.00" and all(float(row[3]) > 0 for row in rows[2:])
    assert result.stdout.count(" microseconds with ") == 2
